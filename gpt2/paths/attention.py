"""`auto` for attention on a GPU: try the paths that could serve, keep the fastest
right one (trials.py), by output, statistic, mean weights and the gradients of q,
k and v.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gpt2.attend.call import Attended, Largest
from gpt2.attend.request import Place, fallbacks, place_of, refusal, requests_of
from gpt2.attention import CausalAttention, Heads
from gpt2.block import RA_MLA_Block
from gpt2.mlp import keep_weights
from gpt2.paths import trials
from gpt2.paths.trials import Trial
from gpt2.schema import Settings

# In this order. Wherever triton serves too, flex took twice its time (H100, torch
# 2.11) and compiles for long: it is tried where no other path is right.
CANDIDATES = ("sdpa", "triton", "flex")
CHECKED_LENGTH = 277  # odd, and more than two tiles

Weigh = Callable[[Heads], Attended]


def choose(settings: Settings, device: torch.device, batch: int) -> tuple[str, str]:
    """The value of attention_backend to build the model with, and what to tell of
    it (empty: nothing).

    Trials happen on GPUs alone, and only where there is something to choose.
    """
    place = place_of(device.type, settings.resources.compile_model)
    backend = settings.resources.attention_backend
    if backend != "auto" or not device.type == "cuda":
        return backend, "\n".join(fallbacks(settings, place))
    able = candidates(settings, place)
    if not able:
        return "reference", ""
    tried: list[Trial] = []
    for path in able:
        if path != "flex" or trials.fastest(tried, "") == "":
            tried.append(attempt(path, settings, device, batch))
    return trials.fastest(tried, "reference"), trials.told("attention", tried)


def candidates(settings: Settings, place: Place) -> list[str]:
    """The paths that serve every call of a layer."""
    requests = requests_of(settings)
    return [
        path
        for path in CANDIDATES
        if not any(refusal(path, request, place) for request in requests)
    ]


def attempt(path: str, settings: Settings, device: torch.device, batch: int) -> Trial:
    """Time a path, then compare it with the reference."""

    def seconds() -> float:
        weigh = _weigher(path, settings, device)
        heads, leaves = inputs(settings, device, batch, settings.model.block_size)
        slopes = [torch.randn_like(x) for x in _numbers(weigh(heads))]
        return trials.kernel_seconds(
            lambda: torch.autograd.grad(_numbers(weigh(heads)), leaves, slopes), device
        )

    def check() -> str:
        ours = _weigher(path, settings, device)
        return compare(ours, _weigher("reference", settings, device), settings, device)

    return trials.attempt(path, seconds, check)


def _weigher(path: str, settings: Settings, device: torch.device) -> Weigh:
    """A layer's attention without projections, compiled as the model will be."""
    torch.manual_seed(0)
    chosen = settings.replace(attention_backend=path, dropout=0.0)
    layer: CausalAttention = RA_MLA_Block(chosen, 0).to(device).attn
    if layer.reciprocity is not None and layer.reciprocity.alpha is not None:
        with torch.no_grad():  # learned weights start at 0, where nothing shows
            layer.reciprocity.alpha.fill_(0.3)

    compiled = settings.resources.compile_model and path != "reference"
    return torch.compile(layer.weigh, dynamic=False) if compiled else layer.weigh


def _numbers(attended: Attended) -> list[Tensor]:
    """What there is of output, statistic and mean weights."""
    mean = attended.mean
    given = mean.values if isinstance(mean, Largest) else mean
    return [x for x in (*attended[:2], given) if x is not None]


def _comparable(attended: Attended, settings: Settings) -> Attended:
    """With the mean weights as a matrix of those that are read."""
    x, mean = settings.mechanisms, attended.mean
    if isinstance(mean, Largest):
        return attended._replace(mean=mean.matrix(mean.columns.shape[1]))
    if mean is None or not x.cross_read:
        return attended
    return attended._replace(mean=keep_weights(mean, "topk", x.cross_read, 0.0, False))


def inputs(
    settings: Settings, device: torch.device, batch: int, length: int
) -> tuple[Heads, list[Tensor]]:
    """Random heads, laid out as a projection leaves them, and their leaves: of GPT-2's
    one tensor, so that putting its gradient together counts."""
    request, heads = requests_of(settings)[-1], settings.model.n_head
    generator = torch.Generator(device).manual_seed(1)

    def draw(*last: int) -> Tensor:
        shape = (batch, length, *last)
        numbers = torch.randn(shape, generator=generator, device=device)
        return numbers.to(request.dtype).requires_grad_()

    if settings.mechanisms.attention == "mha":
        qkv = draw(3, heads, request.widths[0])
        q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
        return Heads(q, k, v, q, k, qkv=qkv), [qkv]
    leaves = [draw(heads, width) for width in (request.widths[0], *request.widths)]
    q, k, v = (leaf.transpose(1, 2) for leaf in leaves)
    return Heads(q, k, v, q, k), leaves


def compare(
    ours: Weigh, theirs: Weigh, settings: Settings, device: torch.device
) -> str:
    """What differs from the reference by more than rounding; empty: nothing."""
    length = min(CHECKED_LENGTH, settings.model.block_size)

    def results(weigh: Weigh) -> list[Tensor]:
        heads, leaves = inputs(settings, device, 2, length)
        found = _comparable(weigh(heads), settings)
        return trials.with_gradients(_numbers(found), leaves)

    kind = requests_of(settings)[-1].dtype
    return trials.difference(results(ours), results(theirs), kind)
