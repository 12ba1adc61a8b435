"""Start from the weights of a GPT-2: what is copied, and that it computes the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from gpt2.mechanisms import enabled
from gpt2.model.gpt import GPT
from gpt2.model.gpt2_weights import from_gpt2
from gpt2.plan.init_source import weights_path, weights_sha256
from gpt2.settings.schema import Settings

TOLERANCE = 1e-5  # of logits, relative to the largest


@dataclass(frozen=True, slots=True)
class Start:
    """Weights that a model starts from.

    copied: how many of its tensors are the source's; own: names of the others.
    deviation: of its logits at neutral values from those of the source, relative to the
    largest; None where ``why_not`` says why there is nothing to compare.
    """

    copied: int
    own: tuple[str, ...]
    deviation: float | None
    why_not: str = ""

    @property
    def line(self) -> str:
        said = (
            f"starts from INIT_FROM: {self.copied} tensors of {self.total} are copied"
        )
        if self.deviation is None:
            return f"{said}; {self.why_not}"
        at = f"at neutral values its logits equal the source's ({self.deviation:.1e})"
        return f"{said}; {at}"

    @property
    def total(self) -> int:
        return self.copied + len(self.own)


def source_weights(settings: Settings) -> dict[str, Tensor]:
    """Weights in INIT_FROM by our names, in fp32, positions cut to the context.

    Raises ValueError if they cannot be read, or are not those that were planned with.
    """
    sha256, path = weights_sha256(settings), weights_path(settings)
    if sha256 != settings.data.init_sha256:
        raise ValueError(
            f"INIT_FROM: {path} has SHA-256 {sha256}, but the run is of "
            f"{settings.data.init_sha256}: the file has changed"
        )
    try:
        found = from_gpt2(load_file(path), settings.model.n_layer)
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"INIT_FROM: {path}: {error}") from None
    found["wpe.weight"] = found["wpe.weight"][: settings.model.block_size]
    return {name: tensor.float() for name, tensor in found.items()}


@torch.no_grad()
def copy_source(model: GPT, settings: Settings) -> Start:
    """Copy the weights that a model shares with INIT_FROM by name and shape, and set
    learned strengths of mechanisms to where they do nothing.

    Raises ValueError as source_weights, and if the model at neutral values does not
    compute what the source does.
    """
    source, own = source_weights(settings), []
    for name, tensor in model.state_dict().items():
        if name in source and source[name].shape == tensor.shape:
            tensor.copy_(source[name])
        else:
            own.append(name)
    for mechanism in enabled(settings):
        set_in_blocks(model, mechanism.neutral_weights)
    copied = len(model.state_dict()) - len(own)
    if why := _not_comparable(settings, source, own):
        return Start(copied, tuple(own), None, why)
    deviation = _deviation(model, settings, source)
    if not deviation <= TOLERANCE:
        raise ValueError(
            f"INIT_FROM: at neutral values the logits differ from the source's by "
            f"{deviation:.1e}"
        )
    return Start(copied, tuple(own), deviation)


@torch.no_grad()
def set_in_blocks(model: GPT, values: Mapping[str, float]) -> None:
    """Set parameters of every block, by their names in it, as far as it has them."""
    for block in model.layers():
        for name, parameter in block.named_parameters():
            if name in values:
                parameter.fill_(values[name])


def _not_comparable(
    settings: Settings, source: Mapping[str, Tensor], own: list[str]
) -> str:
    """Why the model has no neutral values at which it is the source."""
    if trunk := [name for name in own if name in source]:
        return f"{len(trunk)} of GPT-2's tensors have another shape, first {trunk[0]}"
    for mechanism in enabled(settings):
        if mechanism.replaces or not (mechanism.neutral or mechanism.neutral_weights):
            return f"{mechanism.name} has no value at which it does nothing"
    return ""


def _deviation(model: GPT, settings: Settings, source: Mapping[str, Tensor]) -> float:
    """Deviation of the model's logits, at neutral values, from those of plain GPT-2
    with the source's weights, over one context of random tokens."""
    neutral: dict[str, Any] = {}
    off: dict[str, Any] = {}
    for mechanism in enabled(settings):
        neutral |= mechanism.neutral
        off |= mechanism.off
    literal = {"attention_backend": "reference", "mlp_backend": "torch"}
    ours = GPT(settings.replace(**neutral, **literal))
    ours.load_state_dict(model.state_dict())
    theirs = GPT(settings.replace(**off, **literal))
    theirs.load_state_dict(source)
    generator = torch.Generator().manual_seed(0)
    shape = (1, settings.model.block_size)
    tokens = torch.randint(settings.vocab_size, shape, generator=generator)
    expected = theirs.eval().logits(tokens)
    found = ours.eval().logits(tokens)
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1.0))
