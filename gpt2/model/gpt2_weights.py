"""Step 0 as transformers' GPT-2: its configuration, and weights by its names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from gpt2.mechanisms import enabled
from gpt2.settings.schema import Settings

PREFIX = "transformer."
HEAD = "lm_head.weight"  # tied to the embeddings of tokens
NOT_WEIGHTS = (".attn.bias", ".attn.masked_bias")  # causal masks in old files
# Ours and theirs within a block. theirs are Conv1D: the transposed matrix.
MATRICES = {
    "attn.projection.qkv": "attn.c_attn",
    "attn.proj": "attn.c_proj",
    "mlp.fc": "mlp.c_fc",
    "mlp.proj": "mlp.c_proj",
}
NORMS = ("ln_1", "ln_2")


def their_names(n_layer: int) -> dict[str, str]:
    """Our name to theirs, without PREFIX, for every tensor of a model with biases."""
    found = {"wte.weight": "wte.weight", "wpe.weight": "wpe.weight"}
    modules = {"ln_f": "ln_f"}
    for layer in range(n_layer):
        inner = {**MATRICES, **{norm: norm for norm in NORMS}}
        modules |= {f"blocks.{layer}.{a}": f"h.{layer}.{b}" for a, b in inner.items()}
    for ours, theirs in modules.items():
        found |= {f"{ours}.{kind}": f"{theirs}.{kind}" for kind in ("weight", "bias")}
    return found


def is_transposed(ours: str) -> bool:
    """Whether the matrix of that name is stored transposed there."""
    return any(ours.endswith(f".{name}.weight") for name in MATRICES)


def to_gpt2(weights: Mapping[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """Their names to tensors, from those of step 0; missing biases become zeros.

    Raises ValueError if the weights are not those of plain GPT-2.
    """
    names = their_names(n_layer)
    if odd := sorted(set(weights) - set(names)):
        raise ValueError(f"GPT-2 has no {', '.join(odd[:4])}")
    found = {}
    for ours, theirs in names.items():
        tensor = weights.get(ours)
        if tensor is None:
            matrix = weights[f"{ours.removesuffix('bias')}weight"]
            tensor = matrix.new_zeros(matrix.shape[0])
        turned = tensor.T if is_transposed(ours) else tensor
        found[PREFIX + theirs] = turned.contiguous()
    return found


def from_gpt2(tensors: Mapping[str, Tensor], n_layer: int) -> dict[str, Tensor]:
    """Our names to tensors, from a GPT-2 file with or without PREFIX.

    Raises ValueError, naming tensors, if the file is not a GPT-2 of so many layers.
    """
    given = {
        name.removeprefix(PREFIX): tensor
        for name, tensor in tensors.items()
        if not name.endswith(NOT_WEIGHTS)
    }
    head = given.pop(HEAD, None)
    names = their_names(n_layer)
    if odd := sorted(set(given) ^ set(names.values())):
        raise ValueError(f"not a GPT-2 of {n_layer} layers: {', '.join(odd[:4])}")
    if head is not None and not torch.equal(head, given["wte.weight"]):
        raise ValueError(f"{HEAD} is not tied to wte.weight, as in GPT-2")
    return {
        ours: (given[theirs].T if is_transposed(ours) else given[theirs]).contiguous()
        for ours, theirs in names.items()
    }


def is_native(settings: Settings, heads: tuple[int, ...] | None) -> bool:
    """Whether the model is plain GPT-2 as transformers knows it."""
    m = settings.model
    plain = not enabled(settings)
    return plain and heads is None and m.n_head * m.head_dim == m.n_embd


def native_config(settings: Settings) -> dict[str, Any]:
    """config.json of transformers' GPT-2."""
    m = settings.model
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "vocab_size": settings.vocab_size,
        "n_positions": m.block_size,
        "n_embd": m.n_embd,
        "n_layer": m.n_layer,
        "n_head": m.n_head,
        "n_inner": m.mlp_width,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        **dict.fromkeys(("resid_pdrop", "embd_pdrop", "attn_pdrop"), m.dropout),
        "tie_word_embeddings": True,
    }
