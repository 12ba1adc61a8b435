"""`auto` becomes a name before a model is built; which one, and what then serves."""

from __future__ import annotations

import torch

from gpt2.attend.request import place_of, served_by
from gpt2.model import GPT
from gpt2.paths import attention, mlp
from gpt2.schema import Settings


def choose(
    settings: Settings, device: torch.device, batch: int
) -> tuple[Settings, list[str]]:
    """The settings to build the model with, and lines that tell why.

    ``batch``: sequences in a micro batch, at which paths are timed.
    """
    of_attention, about_attention = attention.choose(settings, device, batch)
    of_mlp, about_mlp = mlp.choose(settings, device, batch)
    told = [line for line in (about_attention, about_mlp) if line]
    return settings.replace(attention_backend=of_attention, mlp_backend=of_mlp), told


def built_with(model: GPT, settings: Settings) -> Settings:
    """The settings of a model, with the kernels that it was built with."""
    block = model.layers()[0]
    return settings.replace(
        attention_backend=block.attn.backend, mlp_backend=block.mlp.backend
    )


def serving(settings: Settings, device: str) -> dict[str, str]:
    """The paths that serve a model of these settings in training, as a manifest
    tells them; device: torch's name of its kind."""
    place = place_of(device, settings.resources.compile_model)
    named = settings.resources.mlp_backend
    return {
        "attention_backend": served_by(settings, place),
        "mlp_backend": "torch" if named == "auto" else named,
    }
