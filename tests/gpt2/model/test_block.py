"""gpt2/model/block.py against its formula: one block, its context in and out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2.model.block import RA_MLA_Block
from gpt2.model.gpt import GPT
from gpt2.model.init import init_parameters
from gpt2.model.parts import AttentionSide
from gpt2.model.reference.formulas import NaiveBlock
from gpt2.settings.schema import Settings
from tests.gpt2.helpers import (
    assert_agree,
    generic,
    gradients_of,
    normal,
    randomize,
    tiny_model,
)

GATE = {"mlp_gate": True, "mlp_gate_mix": 0.6}
CROSS = {"cross_token": True, "cross_mix": 0.5}
RA = {"ra": True, "ra_alpha": 0.45}
RACT = {"ract": True, "ract_mix": 0.7}
MLA = {"attention": "mla"}
WEIGHTS = {"ract_placement": "weights"}

COMBINATIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "no-bias": {"bias": False, **RA, **RACT, **GATE, **CROSS},
    "ra-gate-cross": {**RA, **GATE, **CROSS},
    "ract-average-detached": {
        **RACT,
        "ract_statistic": "rms",
        "ract_head_average": True,
        "ract_detach": True,
    },
    "ra-ract-weights-average-on-shared-k": {
        **MLA,
        **RA,
        **RACT,
        **WEIGHTS,
        "ract_head_average": True,
        "mla_shared_k": True,
    },
    "ra-learned-ract-weights-entropy": {
        **RA,
        "ra_learned_alpha": True,
        **RACT,
        **WEIGHTS,
        "ract_statistic": "entropy",
    },
    "all-on-mla-tied": {
        **MLA,
        **RA,
        **RACT,
        **GATE,
        **CROSS,
        "latent": "tied_transpose",
        "mlp_gate_pool": "prefix_mean",
        "output_gate": True,
        "cross_select": "rms",
    },
    "all-on-mla-untied": {
        **MLA,
        **RA,
        "ra_window": 0,
        **RACT,
        **WEIGHTS,
        "ract_statistic": "max",
        **GATE,
        **CROSS,
        "latent": "untied",
        "cross_renorm": False,
        "mla_shared_v": True,
    },
    "scalars-cross-all": {
        **MLA,
        **CROSS,
        "latent": "per_head_scalar",
        "cross_select": "none",
    },
    "rope-ra-ract-gate": {"attention": "mla_rope", **RA, **RACT, **GATE},
    "output-gate-ra-whole": {"output_gate": True, **RA, "ra_window": 0},
}
# batch, heads, tokens, dtype, tolerance
SIZES = [
    (3, 1, 7, torch.float64, 1e-10),
    (1, 2, 13, torch.float64, 1e-10),
    (2, 3, 7, torch.float32, 1e-5),
]


def contexts(settings: Settings, size: tuple[Any, ...]) -> dict[str, Tensor]:
    """Leaves of what the block before would have produced."""
    b, h, t, dtype, _ = size
    found = {}
    if settings.mechanisms.mlp_gate:
        found["mlp_gate"] = normal(b, t, h, seed=5, dtype=dtype)
    if settings.mechanisms.latent != "none":
        found["mlp_latent"] = normal(
            b, t, settings.mechanisms.latent_dim, seed=6, dtype=dtype
        )
    return found


@pytest.mark.parametrize("size", SIZES, ids=["b3h1t7", "b1h2t13", "b2h3t7-fp32"])
@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_block_equals_its_formula(name: str, size: tuple[Any, ...]) -> None:
    b, h, t, dtype, tolerance = size
    settings = tiny_model(n_head=h, **COMBINATIONS[name])
    model = GPT(settings)
    init_parameters(model, 0)
    block = model.layers()[1].to(dtype)  # neither the first nor the last
    randomize(block)
    x, given = normal(b, t, 10, dtype=dtype), contexts(settings, size)
    block_formula = NaiveBlock(naive_state(block), settings, 1)
    rows = []
    for n in range(b):
        attended, mlp, made = block_formula(x[n], {k: v[n] for k, v in given.items()})
        rows.append({"out": x[n] + attended + mlp, **made})
    expected = {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
    if "rope" in name:
        tolerance = 1e-5  # its tables are fp32
    leaves = [x, *given.values(), *block.parameters()]
    slopes = gradients_of(expected.values(), leaves)
    for block.attn.backend in ("auto", "reference"):
        out, ctx = block(x, ctx=given)
        assert ctx.keys() == given.keys()
        ours = [{"out": out, **ctx}[name] for name in expected]
        theirs = list(expected.values())
        assert_agree(ours, leaves, theirs, leaves, tolerance, slopes)


def naive_state(block: RA_MLA_Block) -> dict[str, Tensor]:
    """The block's own leaves by the names they have in a model."""
    leaves: dict[str, Tensor] = dict(block.named_parameters())
    named = {**dict(block.named_buffers()), **leaves}
    return {f"blocks.1.{name}": leaf for name, leaf in named.items()}


def test_the_first_block_reads_nothing_and_the_last_gives_nothing() -> None:
    settings = tiny_model(**COMBINATIONS["all-on-mla-tied"])
    model = generic(settings)
    x = normal(2, 7, 10).detach()
    blocks = model.layers()
    through, ctx = blocks[0](x, ctx={})
    assert ctx.keys() == {"mlp_gate", "mlp_latent"}
    ignored = {"mlp_gate": torch.zeros(2, 7, 4), "mlp_latent": torch.zeros(2, 7, 6)}
    assert torch.equal(blocks[0](x, ctx=ignored)[0], through)
    assert blocks[2](x, ctx=ctx)[1] == {}


def test_each_context_reaches_the_next_block() -> None:
    model = generic(tiny_model(**COMBINATIONS["all-on-mla-untied"]))
    x = normal(2, 7, 10).detach()
    block = model.layers()[1]
    gate, latent = normal(2, 7, 4).sigmoid(), normal(2, 7, 6)
    given = {"mlp_gate": gate, "mlp_latent": latent}
    out = block(x, ctx=given)[0]
    for changed in ({"mlp_gate": gate * 0.5}, {"mlp_latent": latent + 1}):
        assert not torch.equal(block(x, ctx={**given, **changed})[0], out)
    rows = torch.zeros_like(gate)
    rows[:, 3] = 0.25
    moved = block(x, ctx={**given, "mlp_gate": gate + rows})[0] != out
    assert moved[:, 3].any() and not moved[:, :3].any(), "gates act per token"


@pytest.mark.parametrize("name", COMBINATIONS)
def test_a_block_keeps_nothing_between_calls(name: str) -> None:
    settings = tiny_model(n_head=2, **COMBINATIONS[name])
    block = generic(settings).layers()[1]
    before = {n: vars(m).copy() for n, m in block.named_modules()}
    x = normal(2, 7, 10).detach()
    given = contexts(settings, (2, 2, 7, torch.float64, 0))
    first = block(x, ctx=given)[0]
    other = contexts(settings, (3, 2, 5, torch.float64, 0))
    block(normal(3, 5, 10, seed=4), ctx=other)
    assert torch.equal(block(x, ctx=given)[0], first)
    for n, module in block.named_modules():
        assert vars(module).keys() == before[n].keys()
        assert all(vars(module)[key] is before[n][key] for key in before[n])


def test_names_of_the_parts_stay() -> None:
    # Checkpoints and the initial weights go by these names.
    block = RA_MLA_Block(tiny_model(), 1)
    assert sorted({n.rsplit(".", 1)[0] for n, _ in block.named_parameters()}) == [
        "attn.proj",
        "attn.projection.qkv",
        "ln_1",
        "ln_2",
        "mlp.fc",
        "mlp.proj",
    ]


PARTS = {
    "embedding": lambda model, x: model.embed(torch.zeros(4, 16, dtype=torch.long)),
    "attention": lambda model, x: model.layers()[0].attn(x, ctx={})[0],
    "mlp": lambda model, x: model.layers()[0].mlp(x, side=AttentionSide(None, None))[0],
}


@pytest.mark.parametrize("name", PARTS)
def test_dropout_zeroes_its_share_of_what_each_part_adds(name: str) -> None:
    model, x = generic(tiny_model(dropout=0.25)), normal(4, 16, 10).detach()
    whole = PARTS[name](model, x)
    assert (whole != 0).all()
    torch.manual_seed(0)
    dropped = PARTS[name](model.train(), x)
    share = (dropped == 0).double().mean()
    assert 0.18 < share < 0.32, share  # of 640 numbers; sd 0.017
    if name != "attention":  # whose weights are dropped as well
        left = dropped != 0
        assert torch.allclose(dropped[left], whole[left] / 0.75)
