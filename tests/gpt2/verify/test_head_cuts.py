"""Numbers that a head owns, as mechanisms declare them, compared with the model."""

import dataclasses
from functools import cache

import pytest

from gpt2.mechanisms.ract.spec import RACT
from gpt2.mechanisms.spec import MULTI_HEAD
from gpt2.plan.planning import plan_settings
from gpt2.train.head_removal import RemovalDiffers
from gpt2.verify.certify_steps import subjects
from gpt2.verify.head_cuts import heads
from gpt2.verify.subject import Subject
from tests.gpt2.helpers import full_size


@cache
def subject(step: int) -> Subject:
    asked = full_size().replace(mode="ablation", steps=(step,), seeds=(1,))
    (found,) = subjects(plan_settings(asked, {})).values()
    return dataclasses.replace(found, larger=None)


@pytest.mark.parametrize("step", [0, 13, 17, 19, 21, 30])
def test_cut_heads_leave_the_function(step: int) -> None:
    assert 0 < float(heads(subject(step)).figure) < 1e-5


@pytest.mark.parametrize("step", [8, 22])
def test_models_that_are_refused_are_left_out(step: int) -> None:
    assert heads(subject(step)).figure == "-"


def test_a_parameter_that_nobody_cuts_is_named(monkeypatch) -> None:
    monkeypatch.setattr(RACT, "own_of_heads", {"attn.ract.scale": 1})
    with pytest.raises(RuntimeError, match="size mismatch for blocks.0.attn.ract.bias"):
        heads(subject(13))


def test_rows_that_belong_to_other_heads_change_the_function(monkeypatch) -> None:
    wrong = {**(MULTI_HEAD.own_of_heads or {}), "attn.projection.qkv.weight": 1}
    monkeypatch.setattr(MULTI_HEAD, "own_of_heads", wrong)
    with pytest.raises(RemovalDiffers, match="logits differ"):
        heads(subject(0))
