"""Models that transformers' own GPT-2 can hold, and its configuration of them."""

from __future__ import annotations

from typing import Any

from gpt2.mechanisms import enabled
from gpt2.settings.schema import Settings


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
