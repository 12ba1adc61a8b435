"""What each attention head owns of a model, and the model without some heads."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from gpt2.model.attention import MultiHead
from gpt2.model.gpt import GPT
from gpt2.settings.schema import Settings
from lib.pruning.heads import HeadLayer, Slice


def head_layers(model: GPT) -> dict[str, HeadLayer]:
    """The heads of each block, by its name, with all parameters that they share.

    A head is scored by its rows of queries, keys and values and its columns of the
    output projection. Biases, RA's alphas, RA-CT's gates, the output gate and the
    rows of the block before that make its MLP gate go with it. Only for models that
    ``rules.heads_refusal`` does not refuse.
    """
    names = {id(p): name for name, p in model.named_parameters()}
    found = {}
    for number, block in enumerate(model.layers()):
        attention, projection = block.attn, block.attn.projection
        assert isinstance(projection, MultiHead), "heads that share a latent"
        parts = [
            Slice(projection.qkv.weight, 3, is_scored=True),
            Slice(attention.proj.weight, attention.proj.out_features, is_scored=True),
        ]
        if projection.qkv.bias is not None:
            parts.append(Slice(projection.qkv.bias, 3))
        if (
            attention.reciprocity is not None
            and attention.reciprocity.alpha is not None
        ):
            parts.append(Slice(attention.reciprocity.alpha))
        if attention.ract is not None:
            parts += [Slice(attention.ract.scale), Slice(attention.ract.bias)]
        if attention.output_gate is not None:
            parts.append(Slice(attention.output_gate.gate.weight))
        gate = model.layers()[number - 1].mlp.gate if number else None
        if gate is not None:
            parts += [Slice(gate.up.weight), Slice(gate.bias)]
        slices = {names[id(part.parameter)]: part for part in parts}
        found[f"blocks.{number}"] = HeadLayer(attention.heads, slices)
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
