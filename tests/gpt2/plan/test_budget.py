"""gpt2/plan/budget.py: analytic costs against the models that are really built."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from gpt2.mechanisms.needs import WHOLE_CONTEXT
from gpt2.mechanisms.ra.spec import band
from gpt2.model.gpt import GPT
from gpt2.plan.budget import attention_weights, budget
from gpt2.plan.planning import step_settings
from gpt2.plan.steps import STEPS
from gpt2.settings.schema import Settings
from tests.gpt2.helpers import full_size, tiny, tiny_model, tiny_step, tokens_of
from tests.gpt2.model.test_block import COMBINATIONS

# Section "The step registry" of the design: MLP widths at E=768, H=12, D=64.
WIDTHS = {
    **dict.fromkeys((0, 1, 4, 5, 7, 8, 13, 17, 18, 23, 24, 29, 30), 3072),
    **dict.fromkeys((2, 6), 3840),
    3: 3264,
    **dict.fromkeys((9, 11, 14, 15, 27), 2560),
    **dict.fromkeys((10, 12, 16), 2048),
    31: 2304,
    32: 2816,
    33: 3456,
}
# Steps that are to have the parameters of another one.
MATCHED = {
    **dict.fromkeys((3, 4), 2),
    **dict.fromkeys((7,), 6),
    **dict.fromkeys((19, 21, 22, 31, 32, 33), 0),
    **dict.fromkeys((10, 25, 26, 27), 9),
    **dict.fromkeys((12,), 11),
    **dict.fromkeys((28,), 8),
}


@cache
def full_step(number: int) -> Settings:
    """A step at 124M."""
    return step_settings(full_size(), number)


def counted(settings: Settings) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in GPT(settings).parameters())


def flops(
    settings: Settings,
    tokens: Tensor,
    backward: bool = False,
    heads: list[int] | None = None,
) -> float:
    """Of the reference path, a token, as torch counts them."""
    model = GPT(settings.replace(attention_backend="reference"), heads)
    with FlopCounterMode(display=False) as counter:
        logits = model.logits(tokens)
        if backward:
            logits.sum().backward()
    return counter.get_total_flops() / tokens.numel()


# ---- parameters -------------------------------------------------------------------


@pytest.mark.parametrize("number", STEPS)
def test_parameters_equal_the_counted(number: int) -> None:
    for settings in (
        full_step(number),
        tiny_step(number),
        tiny_step(number, bias=False),
    ):
        assert budget(settings).parameters == counted(settings)


@pytest.mark.parametrize("name", COMBINATIONS)
def test_parameters_of_combinations_equal_the_counted(name: str) -> None:
    for heads in (1, 2, 5):
        settings = tiny_model(n_head=heads, **COMBINATIONS[name])
        assert budget(settings).parameters == counted(settings)


def test_gpt2_has_its_124_million() -> None:
    costs = budget(full_step(0))
    assert costs.parameters == 124_439_808  # of transformers' "gpt2", head tied
    embeddings = (50257 + 1024) * 768
    assert costs.parameters_without_embeddings == 124_439_808 - embeddings
    assert costs.ratio == 2.0


@pytest.mark.parametrize("number", STEPS)
def test_the_ratio_is_that_of_the_weights(number: int) -> None:
    settings = tiny_step(number)
    with torch.device("meta"):
        model = GPT(settings)
    mlp = sum(m.weight.numel() for b in model.layers() for m in (b.mlp.fc, b.mlp.proj))
    attention = sum(
        p.numel()
        for b in model.layers()
        for n, p in b.attn.named_parameters()
        if p.ndim == 2 and not n.startswith("output_gate")
    )
    costs = budget(settings)
    assert (costs.mlp, costs.attention) == (mlp, attention)
    assert costs.ratio == pytest.approx(mlp / attention)


# ---- widths -----------------------------------------------------------------------


def test_widths_at_124m_are_those_of_the_table() -> None:
    assert {n: full_step(n).model.mlp_width for n in WIDTHS} == WIDTHS


def test_heads_at_124m_are_those_of_the_table() -> None:
    heads = {n: full_step(n).model.n_head for n in (*WIDTHS, 19, 20, 21, 22)}
    assert {n: h for n, h in heads.items() if h != 12} == {31: 18, 32: 14, 33: 9}
    assert {full_step(n).model.head_dim for n in STEPS} == {64}


@pytest.mark.parametrize(
    ("number", "ratio"),
    [(2, 2.5), (6, 2.5), (8, 3.0), (9, 2.5), (31, 1.0), (32, 1.6), (33, 3.0)],
)
def test_ratios_at_124m(number: int, ratio: float) -> None:
    assert budget(full_step(number)).ratio == pytest.approx(ratio, abs=0.03)


@pytest.mark.parametrize("number", MATCHED)
def test_matched_steps_have_the_parameters_of_their_partner(number: int) -> None:
    mine = budget(full_step(number)).parameters
    partner = budget(full_step(MATCHED[number])).parameters
    assert abs(mine / partner - 1) < 0.005


def test_the_largest_arms_control_is_the_largest() -> None:
    sizes = {n: budget(full_step(n)).parameters for n in STEPS}
    wide = sizes.pop(20)
    assert max(sizes.values()) < wide < max(sizes.values()) * 1.005


def test_mechanisms_get_the_share_that_was_stated() -> None:
    share = 2 * 768 * 12  # weights of all MLPs for one unit of width
    for number, base, parts in ((3, 3840, (0.15, 0)), (4, 3840, (0.1, 0.1))):
        settings = full_step(number)
        x, width = settings.mechanisms, settings.model.mlp_width
        gate = 11 * x.mlp_gate_dim * (width + 12) if x.mlp_gate else 0
        cross = 12 * 2 * width * x.cross_rank if x.cross_token else 0
        assert gate / (share * base) == pytest.approx(parts[0], rel=0.03)
        assert cross / (share * base) == pytest.approx(parts[1], rel=0.06)
        assert width == round((1 - sum(parts)) * base)


@pytest.mark.parametrize("number", STEPS)
def test_widths_at_124m_are_good_for_matrix_units(number: int) -> None:
    settings = full_step(number)
    assert settings.model.mlp_width % 32 == 0
    assert settings.mechanisms.mlp_gate_dim % 8 == 0
    assert settings.mechanisms.cross_rank % 8 == 0


def test_widths_that_were_set_are_not_solved() -> None:
    settings = tiny_step(4, mlp_gate_dim=2, cross_rank=3)
    assert settings.mechanisms.mlp_gate_dim == 2
    assert settings.mechanisms.cross_rank == 3


@pytest.mark.parametrize("embd", [8, 24, 64, 192])
def test_solved_widths_exist_at_every_size(embd: int) -> None:
    base = {"n_embd": embd, "head_dim": 0, "latent_dim": embd}
    for number in STEPS:
        settings = tiny_step(number, **base)
        x = settings.mechanisms
        assert settings.model.mlp_width >= 1
        assert x.mlp_gate_dim >= 1 or not x.mlp_gate
        assert x.cross_rank >= 1 or not x.cross_token


# ---- FLOPs ------------------------------------------------------------------------


@pytest.mark.parametrize("number", STEPS)
def test_flops_equal_the_counted(number: int) -> None:
    # The reference path computes a band as the whole T x T and masks it.
    settings = tiny_step(number, n_layer=2).replace(ra_window=WHOLE_CONTEXT)
    expected = budget(settings)
    tokens = tokens_of(settings, 1, settings.model.block_size)
    assert flops(settings, tokens) == pytest.approx(expected.flops_forward, rel=0.01)
    assert flops(settings, tokens, backward=True) == pytest.approx(
        expected.flops_training, rel=0.01
    )


@pytest.mark.parametrize("name", COMBINATIONS)
def test_flops_of_combinations_equal_the_counted(name: str) -> None:
    settings = tiny_model(n_head=2, **COMBINATIONS[name])
    settings = settings.replace(ra_window=WHOLE_CONTEXT)
    tokens = tokens_of(settings, 2, settings.model.block_size)
    expected = budget(settings)
    assert flops(settings, tokens) == pytest.approx(expected.flops_forward, rel=0.01)
    assert flops(settings, tokens, backward=True) == pytest.approx(
        expected.flops_training, rel=0.01
    )


def test_what_is_detached_costs_no_backward() -> None:
    weights = {"ract": True, "ract_placement": "weights", "ra": True, "ra_window": 0}
    for detach in (False, True):
        settings = tiny_model(**weights, ract_detach=detach)
        expected = budget(settings)
        tokens = tokens_of(settings, 1, settings.model.block_size)
        assert flops(settings, tokens, backward=True) == expected.flops_training
        assert (expected.flops_training < 3 * expected.flops_forward) is detach


def test_flops_of_a_band_are_those_of_its_width() -> None:
    costs = {
        window: budget(full_step(5).replace(ra_window=window)).flops_forward
        for window in (1, 64, 1023, WHOLE_CONTEXT)
    }
    plain = budget(full_step(0)).flops_forward
    one_key = 2 * 12 * 768  # a multiply-add a layer and inner dimension
    assert costs[1] - plain == 2 * one_key
    assert costs[64] - plain == 65 * one_key
    assert costs[WHOLE_CONTEXT] == costs[1023] == plain + 1024 * one_key
    assert band(full_step(5)) == 65


def test_gpt2s_flops_are_those_known_of_it() -> None:
    # 2 FLOPs per weight that multiplies, and 2 T E per layer for scores and sums each.
    weights = 12 * 12 * 768**2 + 50257 * 768
    attention = 12 * 2 * 1024 * 768
    assert budget(full_step(0)).flops_forward == 2 * (weights + attention)


# ---- cache ------------------------------------------------------------------------


def test_latent_caches_are_as_small_as_promised() -> None:
    numbers = {n: budget(full_step(n)).cache_per_token / 12 for n in (0, 5, 8, 28, 29)}
    assert numbers == {0: 1536, 5: 1536, 8: 256, 28: 288, 29: 2304}
    constant = {n: budget(full_step(n)).cache_constant for n in (0, 5, 8)}
    assert constant == {0: 0, 5: 12 * 65 * 768, 8: 0}


def test_attention_weights_of_each_kind() -> None:
    shared = {"mla_shared_k": True, "mla_shared_v": True}
    assert attention_weights(tiny_model()) == 4 * 10 * 12
    assert attention_weights(tiny_model(attention="mla")) == (
        2 * 10 * 12 + 2 * 10 * 6 + 2 * 6 * 12
    )
    assert attention_weights(tiny_model(attention="mla", **shared)) == (
        2 * 10 * 12 + 2 * 10 * 6 + 2 * 6 * 3
    )
    assert attention_weights(tiny(attention="mla_rope", mlp_width=1)) == (
        2 * 10 * 12 + 5 * 4 * 10 + 7 * 10 + 2 * 7 * 12
    )
