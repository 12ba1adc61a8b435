"""gpt2/model/mlp.py: the places of mechanisms, and both ways to compute GELU."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from gpt2.mechanisms.mlp_gate.layer import MlpGate
from gpt2.model.autotune.mlp import unsupported
from gpt2.model.mlp import MLP
from gpt2.model.parts import AttentionSide
from tests.gpt2.helpers import (
    deviation,
    generic,
    normal,
    randomize,
    tiny,
    tiny_model,
    tiny_step,
    tokens_of,
)
from tests.gpt2.mechanisms.test_cross_token import mean_weights


def test_the_last_block_gives_nothing() -> None:
    settings = tiny_model(attention="mla", latent="untied", mlp_gate=True)
    last = MLP(settings, produces=False)
    side = AttentionSide(normal(2, 5, 6, dtype=torch.float32), None)
    result = last(normal(2, 5, 10, dtype=torch.float32), side=side)
    assert result.ctx == {}
    names = [name for name, _ in last.named_parameters()]
    assert not [n for n in names if n.startswith("gate") or ".down" in n]


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"attention": "mla", "latent": "untied"}, "reads the key latent"),
        ({"cross_token": True}, "reads the mean attention weights"),
    ],
)
def test_a_consumer_names_its_missing_producer(
    fields: dict[str, Any], text: str
) -> None:
    mlp = MLP(tiny_model(**fields), produces=True)
    with pytest.raises(AssertionError, match=f"{text}, which this block's attention"):
        mlp(torch.zeros(1, 3, 10), side=AttentionSide(None, None))


@pytest.mark.parametrize(
    "fields",
    [
        {"cross_token": True, "cross_mix": 0.0},
        {"attention": "mla", "latent": "tied_transpose", "latent_mix": 0.0},
        {"attention": "mla", "latent": "untied", "latent_mix": 0.0},
        {"attention": "mla", "latent": "per_head_scalar", "latent_mix": 0.0},
    ],
)
def test_mix_zero_is_the_plain_mlp_bit_for_bit(fields: dict[str, Any]) -> None:
    mixed = MLP(tiny_model(**fields), produces=True).double()
    plain = MLP(tiny_model(), produces=True).double()
    randomize(mixed)
    plain.load_state_dict(mixed.state_dict(), strict=False)
    x, p = normal(2, 7, 10).detach(), mean_weights(2, 7)
    side = AttentionSide(normal(2, 7, 6, seed=2).detach(), p)
    nothing = AttentionSide(None, None)
    assert torch.equal(mixed(x, side=side).output, plain(x, side=nothing).output)


def test_the_width_is_the_settings() -> None:
    assert MLP(tiny(mlp_width=13), produces=True).fc.out_features == 13


# ---- by the operators with GELU inside ----------------------------------------------


@pytest.mark.parametrize("number", [0, 3, 4, 15, 16])
def test_a_model_by_either_path_is_the_same(number: int) -> None:
    settings = tiny_step(number)
    tokens, targets = (tokens_of(settings, 2, 9, seed=n) for n in range(2))
    found = []
    for backend in ("torch", "cublaslt"):
        model = generic(settings.replace(mlp_backend=backend))
        loss = model(tokens, targets)
        found.append((loss, *torch.autograd.grad(loss, list(model.parameters()))))
    for a, b in zip(*found, strict=True):
        assert deviation(a, b) < 1e-10


def test_a_mechanism_may_need_the_hidden_state_itself(monkeypatch) -> None:
    settings = tiny_model(mlp_gate=True, mlp_backend="cublaslt")
    x = normal(2, 5, 10, dtype=torch.float32)
    assert not isinstance(MLP(settings, produces=True)._hidden(x, None), torch.Tensor)
    monkeypatch.setattr(MlpGate, "factored", False)
    assert isinstance(MLP(settings, produces=True)._hidden(x, None), torch.Tensor)
    assert "the hidden state itself" in unsupported(settings, torch.device("cuda"))
