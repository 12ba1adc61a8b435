"""Choose the backends of attention and MLP before a model is built."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace

import torch

from gpt2.model.autotune import attention, controls, mlp
from gpt2.model.autotune.store import Tuning
from gpt2.model.backends.registry import fallbacks, platform_for, served_by
from gpt2.model.gpt import GPT
from gpt2.settings.schema import Settings
from lib.hashing import identity

LIKELY = ("cudnn", "triton", "sdpa", "flex")


def wants_tuning(settings: Settings, device: torch.device) -> bool:
    """Whether there is something to choose: on a GPU, unless the plain formulas are
    asked for."""
    return device.type == "cuda" and settings.resources.attention_backend != "reference"


def choose_backends(
    settings: Settings,
    device: torch.device,
    batch: int,
    tuning: Tuning | None = None,
    dropped: Collection[str] = (),
) -> tuple[Settings, list[str]]:
    """The settings to build the model with, and lines for the log.

    ``batch``: sequences in a micro batch. ``tuning``: the ranking of backends on this
    device; without one `auto` leaves attention to ``attend`` and the MLP to torch.
    ``dropped``: backends not to use, as ``name_of`` names them.
    """
    keys = attention.key(settings, batch), mlp.key(settings, batch)
    ranks: list[list[str]] = [[], []]
    lines = fallbacks(settings, platform_for(settings, device.type))
    if wants_tuning(settings, device) and tuning is not None:
        ranks = [tuning.ranks.get(key, []) for key in keys]
        lines += [tuning.lines[key] for key in keys if tuning.lines.get(key)]
    resources = settings.resources
    of_attention = _first("attention", resources.attention_backend, ranks[0], dropped)
    of_mlp = _first("MLP", resources.mlp_backend, ranks[1], dropped)
    if of_mlp == "cublaslt" and (why := mlp.unsupported(settings, device)):
        lines.append(f"MLP by 'cublaslt': {why}; torch serves instead")
        of_mlp = "torch"
    of_mlp = "torch" if of_mlp == "auto" else of_mlp
    usual = settings.replace(attention_backend=of_attention, mlp_backend=of_mlp)
    if not resources.other_kernels:
        return usual, lines
    changed, line = controls.choose_controls(usual, device, *ranks)
    return changed, [*lines, line]


def likely(
    settings: Settings, device: torch.device, batch: int, tuning: Tuning
) -> Tuning:
    """``tuning`` with a guess for each ranking that it lacks, by what was fastest on
    the GPUs measured so far (docs/performance.md)."""
    served = attention.candidates(settings, platform_for(settings, device.type))
    guesses = [name for name in LIKELY if name in served]
    of_mlp = "torch" if mlp.unsupported(settings, device) else "cublaslt"
    ranks = {
        attention.key(settings, batch): [*guesses, "reference"],
        mlp.key(settings, batch): [of_mlp, "torch"],
    }
    return replace(tuning, ranks={**ranks, **tuning.ranks})


def _first(
    part: str, backend: str, ranks: Sequence[str], dropped: Collection[str]
) -> str:
    """The named backend, or the best that is not dropped."""
    if backend != "auto":
        return backend
    left = [backend for backend in ranks if name_of(part, backend) not in dropped]
    return left[0] if left else (ranks[-1] if ranks else "auto")


def name_of(part: str, backend: str) -> str:
    """Name of a backend of "attention" or the "MLP" in messages and ``dropped``."""
    return f"{part} {backend}"


def names_of(built: Settings) -> tuple[str, str]:
    """The backends that a model was built with."""
    resources = built.resources
    return (
        name_of("attention", resources.attention_backend),
        name_of("MLP", resources.mlp_backend),
    )


def suspects(built: Settings, device: torch.device, batch: int) -> list[str]:
    """The backends of a model that are wrong by themselves, in this process and at the
    size of the run."""
    if device.type != "cuda":
        return []
    resources, (of_attention, of_mlp) = built.resources, names_of(built)
    # Functions and not their modules, of which mypy would not check the names.
    trials = (
        (of_attention, attention.try_attention, resources.attention_backend),
        (of_mlp, mlp.try_mlp, resources.mlp_backend),
    )
    return [
        name
        for name, trial, backend in trials
        if backend not in ("auto", "reference", "torch")
        and trial(backend, built, device, batch).problem
    ]


def next_without(
    settings: Settings,
    built: Settings,
    suspects: Collection[str],
    dropped: Collection[str],
) -> frozenset[str] | None:
    """Backends to drop after a comparison failed with those in ``built``: the suspects,
    or else the MLP's, then attention's. None if the settings name all that are left.
    """
    of_attention, of_mlp = names_of(built)
    free = []
    if settings.resources.mlp_backend == "auto" and of_mlp != "MLP torch":
        free.append(of_mlp)
    asked = settings.resources.attention_backend
    if asked == "auto" and of_attention not in (
        "attention reference",
        "attention auto",
    ):
        free.append(of_attention)
    if not free:
        return None
    guilty = [name for name in free if name in suspects]
    return frozenset([*dropped, *(guilty or free[:1])])


def arm_of(built: Settings, batch: int) -> str:
    """Hash of all that tiles and algorithms of a training step depend on."""
    optim, resources = built.optim, built.resources
    parts = built.to_dict()
    parts_that_decide = {
        "model": parts["model"],
        "mechanisms": parts["mechanisms"],
        "words": built.vocab_size,
        "precision": [optim.mixed_precision, optim.residual_fp32, resources.tf32],
        "compiled": [resources.compile_model, resources.compile_mode],
        "paths": names_of(built),
        "batch": batch,
    }
    return identity(parts_that_decide)


def built_with(model: GPT, settings: Settings) -> Settings:
    """The settings of a model, with the kernels that it was built with."""
    block = model.layers()[0]
    return settings.replace(
        attention_backend=block.attn.backend, mlp_backend=block.mlp.backend
    )


def serving(settings: Settings, device: str) -> dict[str, str]:
    """The backends that serve a model of these settings in training, as entries of the
    manifest; device: torch's name of its kind."""
    named = settings.resources.mlp_backend
    return {
        "attention_backend": served_by(settings, platform_for(settings, device)),
        "mlp_backend": "torch" if named == "auto" else named,
    }
