"""One setting, several spellings: every command knows all of them."""

import pytest

from gpt2.plan.axes import axes_of
from gpt2.plan.steps_file import read_steps
from gpt2.settings.configuration import override, strict_kconfig
from gpt2.settings.parse import SPELLINGS
from gpt2.settings.schema import FIELD_TYPES, PART_OF, SYMBOL_OF

SPELLED = (
    *("ra_window", "RA_WINDOW", "RA_MLA_RA_WINDOW", "mechanisms.ra_window"),
    *("CONFIG_RA_MLA_RA_WINDOW", "ra_mla_ra_window"),
)
ROW = """
[[step]]
name = "own"
title = "window 9"
question = "?"
parent = "ra"
[step.changes]
"""


@pytest.fixture(scope="module")
def config():
    return strict_kconfig().load([], ["RA_MLA_ABLATION_MODE=y"])


@pytest.mark.parametrize("name", SPELLED)
def test_overrides_sweeps_and_explain_know_each(config, name):
    kconfig = strict_kconfig()
    assert override(config, f"{name}=9").values["RA_MLA_RA_WINDOW"] == 9
    (axis,) = axes_of(override(config, f"SWEEP={name}=9,8"))
    assert (axis.symbol, axis.values) == ("RA_MLA_RA_WINDOW", (9, 8))
    said = kconfig.explain(config, name)
    assert said.startswith("CONFIG_RA_MLA_RA_WINDOW = 64\n")
    assert "also named  RA_WINDOW, ra_window, mechanisms.ra_window\n" in said


@pytest.mark.parametrize("name", [*SPELLED, '"mechanisms.ra_window"'])
def test_steps_of_a_file_know_each(name):
    registry = read_steps(f"{ROW}{name} = 9\n".encode(), "own.toml", {})
    (step,) = (registry[number] for number in registry.own)
    assert step.changes == {"ra_window": 9}


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("ra_windo", "there is no setting ra_windo; nearest: RA_WINDOW"),
        ("model.ra_window", "there is no setting model.ra_window; nearest: RA_WINDOW"),
        ("TRACKER", "stands for ENABLE_TRACKIO, ENABLE_WANDB"),
    ],
)
def test_another_is_refused_with_the_nearest(config, name, why):
    with pytest.raises(ValueError, match=why):
        strict_kconfig().explain(config, name)
    with pytest.raises(ValueError, match=why):
        axes_of(override(config, f"SWEEP={name}=9"))


def test_every_field_has_its_symbol_under_all_names():
    kconfig = strict_kconfig()
    for field, symbol in SYMBOL_OF.items():
        for name in (field, f"{PART_OF[field]}.{field}", symbol, f"CONFIG_{symbol}"):
            assert kconfig.symbol_for(name) == symbol, name


@pytest.mark.parametrize(
    ("word", "member"),
    [
        ("optimizer=Muon", "OPTIMIZER_MUON"),
        ("OPTIMIZER=muon", "OPTIMIZER_MUON"),
        ("ract_statistic=max", "RA_MLA_RACT_MAX"),
        ("DATASET=TEXT", "GPT2_DATASET_TEXT"),
        ("'DATASET= text '", "GPT2_DATASET_TEXT"),
        ("data.tokenizer=bytes", "GPT2_TOKENIZER_BYTES"),
        ("ENGINE=ray", "ENGINE_RAY"),
        ("MODEL=350M", "GPT2_MODEL_350M"),
        ("MODEL=355m", "GPT2_MODEL_350M"),
        ("COMPILE_MODEL=y COMPILE_MODE=max_autotune", "COMPILE_MODE_MAX_AUTOTUNE"),
    ],
)
def test_a_choice_is_set_by_the_value_of_its_setting(config, word, member):
    assert override(config, word).values[member] is True


def test_a_value_that_no_member_of_a_choice_has_is_refused(config):
    with pytest.raises(ValueError, match="OPTIMIZER=muonn must be one of adam, adamw"):
        override(config, "optimizer=muonn")


def test_no_alias_is_the_name_of_a_field_of_another_symbol():
    named = {name: symbol for name, symbol in SPELLINGS.items() if name in FIELD_TYPES}
    assert named == SYMBOL_OF
