"""Kernels of an A/A control: the next best right ones after its baseline's."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gpt2.model.backends.registry import platform_for, served_by
from gpt2.settings.schema import Settings


def choose_controls(
    usual: Settings,
    device: torch.device,
    attention_ranks: Sequence[str] = (),
    mlp_ranks: Sequence[str] = (),
) -> tuple[Settings, str]:
    """Settings with other kernels than ``usual``, which names those of the baseline,
    and a line that says which.

    ranks: the right backends on a GPU, the fastest first. Attention and MLP each take
    the next one; where neither has one, the control runs uncompiled, or else by the
    reference. Raises ValueError where nothing can differ.
    """
    resources = usual.resources
    changed = usual.replace(
        attention_backend=(
            _on_cpu(usual, device)
            if device.type != "cuda"
            else _next(resources.attention_backend, attention_ranks)
        ),
        mlp_backend=_next(resources.mlp_backend, mlp_ranks),
    )
    if _kernels(changed, device) == _kernels(usual, device):
        changed = _plainer(usual, device)
    before, after = _kernels(usual, device), _kernels(changed, device)
    differ = [
        f"{part} {after[part]} instead of {before[part]}"
        for part in before
        if after[part] != before[part]
    ]
    return changed, f"A/A control: {', '.join(differ)}"


def _next(now: str, ranks: Sequence[str]) -> str:
    """The best other one but the reference, which is slow; unchanged without one."""
    return next((name for name in ranks if name not in (now, "reference")), now)


def _on_cpu(usual: Settings, device: torch.device) -> str:
    """sdpa or the reference: the one that ``usual`` does not take, if it can serve."""
    platform = platform_for(usual, device.type)
    now = served_by(usual, platform)
    wanted = "sdpa" if now == "reference" else "reference"
    served = served_by(usual.replace(attention_backend=wanted), platform)
    return wanted if served == wanted else now


def _kernels(settings: Settings, device: torch.device) -> dict[str, str]:
    """Attention, MLP and compilation of a model with these settings."""
    resources = settings.resources
    return {
        "attention": served_by(settings, platform_for(settings, device.type)),
        "MLP": "torch" if resources.mlp_backend == "auto" else resources.mlp_backend,
        "model": "compiled" if resources.compile_model else "eager",
    }


def _plainer(usual: Settings, device: torch.device) -> Settings:
    """The usual kernels uncompiled, or else attention by the plain formulas."""
    if usual.resources.compile_model:
        return usual.replace(compile_model=False)
    if _kernels(usual, device)["attention"] == "reference":
        raise ValueError(
            "CONTROLS=y: no other right kernels than the baseline's serve here; set "
            "CONTROLS=n"
        )
    return usual.replace(attention_backend="reference")
