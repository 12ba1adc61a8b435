"""gpt2/model/mlp.py against loops: cross-token MLP and latent reciprocity."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2.model.attention import AttentionSide
from gpt2.model.context import LayerCache
from gpt2.model.gpt import GPT
from gpt2.model.init import init_parameters
from gpt2.model.mlp import MLP, CrossToken, LatentExchange, chunk_of, keep_weights
from tests import reference as naive
from tests.gpt2.helpers import (
    assert_agree,
    deviation,
    generic,
    normal,
    randomize,
    tiny,
    tiny_model,
    tiny_step,
    tokens_of,
)
from tests.gpt2.model.test_gating import causal_weights, rows_of

KEPT = [("topk", 1), ("topk", 3), ("topk", 99), ("rms", 0), ("none", 0)]


def mean_weights(b: int, t: int) -> Tensor:
    return causal_weights(b, 3, t)[1].detach().mean(1)


# ---- tokens to tokens -------------------------------------------------------------


@pytest.mark.parametrize("renorm", [True, False])
@pytest.mark.parametrize(("select", "k"), KEPT)
@pytest.mark.parametrize("heads", [1, 3])
def test_cross_token_equals_the_loops(
    select: str, k: int, renorm: bool, heads: int
) -> None:
    fields = {"cross_select": select, "cross_topk": max(k, 1), "cross_renorm": renorm}
    settings = tiny_model(cross_token=True, cross_mix=0.6, cross_tau=0.8, **fields)
    cross = CrossToken(settings).double()
    randomize(cross)
    hidden, (logits, p) = normal(3, 7, 11), causal_weights(3, heads, 7)
    ours = cross(hidden, p.mean(1))
    theirs = naive.cross_token(
        naive.vectors_of(hidden),
        rows_of(p),
        cross.down.weight.T,
        cross.up.weight.T,
        mix=0.6,
        select=select,
        k=max(k, 1),
        tau=0.8,
        renorm=renorm,
    )
    leaves = [hidden, logits, *cross.parameters()]
    if (select, k, renorm) == ("topk", 1, True):
        del leaves[1]  # a single kept weight is 1 whatever it was
    assert_agree([ours], leaves, [naive.tensor_of(theirs)], leaves, 1e-12)


@pytest.mark.parametrize("select", ["topk", "rms", "none"])
def test_kept_weights_of_a_row_do_not_depend_on_the_length(select: str) -> None:
    p = mean_weights(2, 13)
    whole = keep_weights(p, select, 3, 0.7, True)
    for t in (1, 2, 6, 12):
        part = keep_weights(p[:, :t, :t], select, 3, 0.7, True)
        assert deviation(part, whole[:, :t, :t]) < 1e-14


def test_what_is_kept() -> None:
    row = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]])
    assert keep_weights(row, "topk", 2, 0.0, False).flatten().tolist() == pytest.approx(
        [0.5, 0.3, 0, 0]
    )
    assert keep_weights(row, "topk", 2, 0.0, True).flatten().tolist() == pytest.approx(
        [0.625, 0.375, 0, 0]
    )
    # rms of the row: 0.302; at tau 0.9 the threshold is 0.272.
    assert keep_weights(row, "rms", 0, 0.9, False).flatten().tolist() == pytest.approx(
        [0.5, 0.3, 0, 0]
    )
    assert torch.equal(keep_weights(row, "none", 1, 9.0, False), row)


def test_nothing_kept_adds_nothing() -> None:
    row = torch.tensor([[[1.0]]], requires_grad=True)
    kept = keep_weights(row, "rms", 0, 2.0, True)
    assert kept.item() == 0
    kept.sum().backward()
    assert row.grad.isfinite().all()


@pytest.mark.parametrize("select", ["topk", "rms", "none"])
def test_cross_token_goes_on_from_its_cache(select: str) -> None:
    cross = CrossToken(tiny_model(cross_token=True, cross_select=select)).double()
    randomize(cross)
    hidden, p = normal(2, 7, 11).detach(), mean_weights(2, 7)
    cache = LayerCache()
    parts = [
        cross(hidden[:, a:b], p[:, a:b, :b], cache) for a, b in ((0, 3), (3, 4), (4, 7))
    ]
    assert deviation(torch.cat(parts, 1), cross(hidden, p)) < 1e-14
    assert cache.numbers == 2 * 7 * 2, "the rank, not the width, for each token"


# ---- MLP and latent ---------------------------------------------------------------


def exchange_of(kind: str, **fields: Any) -> LatentExchange:
    settings = tiny_model(attention="mla", latent=kind, latent_mix=0.3, **fields)
    model = GPT(settings)
    init_parameters(model, 0)
    exchange = model.get_submodule("blocks.1.mlp.exchange").double()
    assert isinstance(exchange, LatentExchange)
    randomize(exchange)
    return exchange


def naive_pair(exchange: LatentExchange, kind: str) -> tuple[Tensor, Tensor]:
    """Matrices L x M and M x L of the two directions."""
    if kind == "per_head_scalar":
        latent = exchange.basis.shape[1]
        up = naive.chunk_scales(exchange.up_scale, latent)
        down = naive.chunk_scales(exchange.down_scale, latent)
        return torch.diag(up) @ exchange.basis.T, exchange.basis @ torch.diag(down)
    up = exchange.up.weight.T
    return up, up.T if kind == "tied_transpose" else exchange.down.weight.T


@pytest.mark.parametrize("heads", [1, 3, 4])
@pytest.mark.parametrize("kind", ["tied_transpose", "untied", "per_head_scalar"])
def test_latent_exchange_equals_the_loops(kind: str, heads: int) -> None:
    exchange = exchange_of(kind, n_head=heads)
    hidden, latent = normal(3, 7, 11), normal(3, 7, 6, seed=1)
    ours = exchange.add(hidden, latent)
    assert isinstance(ours, Tensor)
    up, down = naive_pair(exchange, kind)
    read = naive.each(naive.vectors_of(latent), up)
    theirs = naive.added(naive.vectors_of(hidden), read, 0.3)
    given = exchange.give(ours)
    assert given is not None
    leaves = [hidden, latent, *exchange.parameters()]
    assert_agree(
        [ours, given],
        leaves,
        [naive.tensor_of(theirs), naive.tensor_of(naive.each(theirs, down))],
        leaves,
        1e-12,
    )


def test_the_tied_matrix_is_one_parameter_and_the_untied_are_two() -> None:
    names = {
        kind: [name for name, _ in exchange_of(kind).named_parameters()]
        for kind in ("tied_transpose", "untied", "per_head_scalar")
    }
    assert names == {
        "tied_transpose": ["up.weight"],
        "untied": ["up.weight", "down.weight"],
        "per_head_scalar": ["up_scale", "down_scale"],
    }


@pytest.mark.parametrize(("width", "heads"), [(6, 4), (128, 12), (12, 12), (7, 1)])
def test_chunks_are_contiguous_and_even(width: int, heads: int) -> None:
    chunks = chunk_of(width, heads)
    assert len(chunks) == width
    assert chunks == sorted(chunks)
    sizes = [chunks.count(head) for head in range(heads)]
    assert max(sizes) - min(sizes) <= 1
    assert min(sizes) >= 1
    scales = torch.arange(heads, dtype=torch.float64)
    assert naive.chunk_scales(scales, width).tolist() == chunks


def test_the_last_block_gives_nothing() -> None:
    settings = tiny_model(attention="mla", latent="untied", mlp_gate=True)
    last = MLP(settings, produces=False)
    side = AttentionSide(normal(2, 5, 6, dtype=torch.float32), None)
    result = last(normal(2, 5, 10, dtype=torch.float32), side=side)
    assert result.ctx.mlp_gate is None
    assert result.ctx.mlp_latent is None
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
