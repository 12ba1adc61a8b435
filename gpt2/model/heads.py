"""Parameters owned by each attention head, and removal of heads from a model."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gpt2.mechanisms import mechanisms
from gpt2.mechanisms.spec import MULTI_HEAD
from gpt2.model.gpt import GPT
from gpt2.settings.schema import Settings
from lib.pruning.heads import HeadLayer, Slice

SCORED = ("attn.projection.qkv.weight", "attn.proj.weight")


def head_layers(model: GPT) -> dict[str, HeadLayer]:
    """The heads of each block, by its name, with all parameters that they share.

    A head is scored by its rows of queries, keys and values and its columns of the
    output projection. Biases and what mechanisms say that a head owns, here and in the
    block before, go with it. Only for models that ``heads_refusal`` of
    gpt2/settings/checks.py does not refuse.
    """
    named = dict(model.named_parameters())
    specs = [MULTI_HEAD, *mechanisms()]
    own = {n: rows for spec in specs for n, rows in (spec.own_of_heads or {}).items()}
    of_next = {n: rows for spec in specs for n, rows in spec.next_heads.items()}
    found = {}
    for number, block in enumerate(model.layers()):
        width = block.attn.proj.out_features
        parts = {f"blocks.{number}.{n}": k for n, k in own.items()}
        parts |= {f"blocks.{number - 1}.{n}": k for n, k in of_next.items()}
        parts[f"blocks.{number}.attn.proj.weight"] = width  # a head's columns
        slices = {
            name: Slice(named[name], rows, is_scored=name.endswith(SCORED))
            for name, rows in parts.items()
            if name in named
        }
        found[f"blocks.{number}"] = HeadLayer(block.attn.heads, slices)
    return found


@torch.no_grad()
def without_heads(
    model: GPT, settings: Settings, kept: Sequence[Sequence[bool]]
) -> GPT:
    """A model of the kept heads alone; device, type and mode are the model's.

    kept: for each block, whether each head stays. With pruned heads at zero the
    result computes what ``model`` does, up to rounding.
    """
    small = GPT(settings, [sum(layer) for layer in kept])
    shapes = {name: tensor.shape for name, tensor in small.state_dict().items()}
    weights = dict(model.state_dict())
    for layer, keep in zip(head_layers(model).values(), kept, strict=True):
        for name, part in layer.slices.items():
            chosen = torch.tensor(keep, device=weights[name].device)
            own = part.of(weights[name], layer.heads)[:, chosen]
            weights[name] = own.reshape(shapes[name])
    small.to(model.wte.weight.device, model.wte.weight.dtype)
    small.load_state_dict(weights)
    return small.train(model.training)
