"""The cells of the test matrix: which there are, what each sets, what is left out."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest

from gpt2.plan.jobs import Job, Plan, job_from_json
from gpt2.plan.matrix_cells import BASELINE
from gpt2.plan.planning import make_plan
from gpt2.settings.configuration import strict_kconfig
from gpt2.settings.schema import Matrix
from lib.kconfig.config_py import ConfigError
from lib.optim.registry import OPTIMIZERS
from lib.pruning.registry import METHODS, VARIANTS, why_not
from tests.gpt2.helpers import make_config
from tests.scratch import ROOT

PRESETS = sorted((ROOT / "defconfigs").glob("*"))
ALL = {
    **{f"TEST_MATRIX_{name.upper()}": "y" for name in OPTIMIZERS},
    "TEST_MATRIX_PRUNING_MAGNITUDE": "y",
    "TEST_MATRIX_PRUNING_MOVEMENT": "y",
    "TEST_MATRIX_PRUNING_HEADS": "y",
    **{f"TEST_MATRIX_{name.upper()}": "y" for name in VARIANTS},
}


def plan(**symbols: str) -> Plan:
    return make_plan(make_config(TEST_MATRIX_MODE="y", **symbols))


def names(found: Plan) -> list[str]:
    return list(dict.fromkeys(job.name for job in found.jobs))


def by_name(found: Plan) -> dict[str, Job]:
    return {job.name: job for job in found.jobs}


def reasons(found: Plan) -> dict[str, str]:
    return {cell.name: cell.reason for cell in found.left_out}


@pytest.fixture(scope="module")
def everything() -> Plan:
    return plan(**ALL, SPARSITIES="0.5,0.875", SEEDS="1,2")


def test_the_sets_have_a_switch_for_each_name():
    switches = {f.name for f in fields(Matrix) if f.name.startswith("with_")}
    wanted = [*OPTIMIZERS, *METHODS, *VARIANTS]
    assert switches == {f"with_{name}" for name in wanted}
    rates = {f.name for f in fields(Matrix) if f.name.startswith("rate_")}
    assert rates == {f"rate_{name}" for name in OPTIMIZERS}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_menu_offers_the_methods_that_are_possible(optimizer: str) -> None:
    """Those that score by moments depend on an optimizer that keeps them."""
    for method in METHODS:
        asked = {symbol_of("OPTIMIZER", optimizer): "y"}
        asked |= {symbol_of("PRUNING", method): "y"}
        is_hidden = METHODS[method].reads_moments and why_not(optimizer, method)
        try:
            values = make_config(**asked).values
        except ConfigError as error:
            assert is_hidden and "OPTIMIZER_" in str(error)
        else:
            assert not is_hidden, (optimizer, method)
            assert (values["OPTIMIZER"], values["PRUNING_METHOD"]) == (
                optimizer,
                method,
            )


def symbol_of(choice: str, name: str) -> str:
    return f"{choice}_{name.upper()}"


def test_by_default_there_is_the_baseline_alone():
    found = plan()
    assert names(found) == [BASELINE]
    assert found.left_out == ()


def test_cells_are_named_after_what_they_are(everything):
    found = names(everything)
    assert found[0] == BASELINE
    wanted = {
        "sgd-none",
        "adamwspam-magnitude-50",
        "muon-movement-87.5",
        "adamwprune-bitter7-state-50",
        "adamwprune-bitter4-state-87.5",
    }
    assert wanted <= set(found)
    folders = {job.run_dir for job in everything.jobs}
    assert {"adamw-none/seed1", "muon-movement-87.5/seed2"} <= folders
    assert len(folders) == len(everything.jobs) == 2 * len(found)


def test_all_cells_are_runs_of_their_own(everything):
    assert len({job.hash for job in everything.jobs}) == len(everything.jobs)


def test_every_possible_cell_is_there_or_left_out_with_a_reason(everything):
    others = OPTIMIZERS.keys() - {"adamwprune"}
    lacking = {name for name in others if OPTIMIZERS[name].lacks_moments}
    assert others - lacking >= {"adam", "adamw", "adamwadv"}
    pairs = len(others) * (1 + 2 * 2)  # none, two methods at two sparsities
    state = (10 - 3) * 2  # scores but those that repeat others
    heads = len(others - lacking) * 2
    assert len(names(everything)) == pairs + state + heads
    left_out = reasons(everything)
    impossible = {f"{name}-state" for name in others}
    impossible |= {f"{name}-heads" for name in lacking}
    impossible |= {f"adamwprune-{name}" for name in METHODS if name != "state"}
    repeated = {
        f"adamwprune-{score}-state-{share}"
        for score in ("bitter1", "bitter2", "bitter8")
        for share in ("50", "87.5")
    }
    assert set(left_out) == impossible | repeated
    assert "adamwprune's state; sgd has none" in left_out["sgd-state"]
    assert "is adamw" in left_out["adamwprune-magnitude"]
    assert "moments; sgd does not keep them" in left_out["sgd-heads"]
    assert "of hidden matrices" in left_out["muon-heads"]
    assert "adamwspam resets them" in left_out["adamwspam-heads"]
    same = left_out["adamwprune-bitter2-state-50"]
    assert "adamw-magnitude-50" in same
    assert "bitter3" in left_out["adamwprune-bitter8-state-50"]


def test_a_repeated_cell_is_run_where_the_other_one_is_not():
    scores = {"TEST_MATRIX_BITTER0": "n", "TEST_MATRIX_BITTER8": "y"}
    found = plan(
        TEST_MATRIX_ADAMWPRUNE="y", TEST_MATRIX_BITTER1="y", **scores, SEEDS="1"
    )
    assert set(names(found)) == {
        BASELINE,
        "adamwprune-bitter1-state-50",
        "adamwprune-bitter8-state-50",
    }


def test_a_rate_of_its_own_tells_bitter1_from_magnitude():
    sets = {"TEST_MATRIX_ADAMWPRUNE": "y", "TEST_MATRIX_PRUNING_MAGNITUDE": "y"}
    scores = {"TEST_MATRIX_BITTER0": "n", "TEST_MATRIX_BITTER1": "y"}
    same = plan(**sets, **scores)
    assert "adamwprune-bitter1-state-50" in reasons(same)
    other = plan(**sets, **scores, TEST_MATRIX_ADAMWPRUNE_LEARNING_RATE="1e-3")
    assert "adamwprune-bitter1-state-50" in names(other)


def test_a_cell_sets_its_fields_and_says_so(everything):
    cell = by_name(everything)["adamwprune-bitter7-state-87.5"]
    optim, pruning = cell.settings.optim, cell.settings.pruning
    assert (optim.optimizer, optim.adamwprune_variant) == ("adamwprune", "bitter7")
    assert (pruning.prune_method, pruning.prune_sparsity) == ("state", 0.875)
    mine = f"cell {cell.name}"
    set_by = {field for field, origin in cell.origins.items() if origin == mine}
    assert set_by == {
        "optimizer",
        "adamwprune_variant",
        "prune_method",
        "prune_sparsity",
    }
    assert cell.origins["seeds"] == "command line"


def test_cells_differ_in_what_they_are_about_and_in_nothing_else(everything):
    allowed = {"optimizer", "prune_method", "prune_sparsity", "adamwprune_variant"}
    first = everything.jobs[0].settings.flat()
    for job in everything.jobs:
        flat = job.settings.flat()
        assert {name for name in flat if flat[name] != first[name]} <= allowed


def test_a_rate_of_its_own_keeps_the_shape_of_the_schedule():
    found = plan(TEST_MATRIX_SGD="y", TEST_MATRIX_SGD_LEARNING_RATE="0.06")
    sgd = by_name(found)["sgd-none"]
    assert sgd.settings.optim.learning_rate == 0.06
    assert sgd.settings.optim.min_lr == pytest.approx(6e-3)  # as 6e-5 to 6e-4
    assert sgd.origins["learning_rate"] == sgd.origins["min_lr"] == "cell sgd-none"
    adamw = by_name(found)[BASELINE]
    assert adamw.settings.optim.learning_rate == 6e-4
    assert adamw.origins["learning_rate"] == "default"


PARTNERS = {
    BASELINE: None,
    "sgd-none": BASELINE,
    "adamw-magnitude-50": BASELINE,
    "adamwspam-magnitude-50": "adamwspam-none",
    "adamwspam-movement-87.5": "adamwspam-magnitude-87.5",
    "adamwprune-bitter7-state-50": "adamw-magnitude-50",
    "adamw-heads-50": BASELINE,
    "adam-heads-87.5": "adam-none",
}


@pytest.mark.parametrize("name", PARTNERS)
def test_a_cell_is_held_to_what_it_differs_from_in_one_thing(everything, name):
    assert by_name(everything)[name].parent_name == PARTNERS[name]


def test_partners_that_are_not_there_are_replaced():
    found = plan(
        TEST_MATRIX_ADAMW="n",
        TEST_MATRIX_ADAM="y",
        TEST_MATRIX_ADAMWPRUNE="y",
        TEST_MATRIX_PRUNING_MAGNITUDE="y",
    )
    partners = {job.name: job.parent_name for job in found.jobs}
    assert partners == {
        "adam-none": None,
        "adam-magnitude-50": "adam-none",
        "adamwprune-bitter0-state-50": "adam-none",
    }


def test_mechanisms_may_be_carried_through_the_matrix():
    found = plan(RA_MLA_RA="y", TEST_MATRIX_SGD="y")
    assert all(job.settings.mechanisms.ra for job in found.jobs)
    assert all(job.origins["ra"] == "command line" for job in found.jobs)


def test_a_job_survives_its_file(everything):
    for job in everything.jobs[::7]:
        again = job_from_json(job.to_json())
        assert again.settings == job.settings and again.hash == job.hash


@pytest.mark.parametrize(
    ("symbols", "words"),
    [
        ({"TEST_MATRIX_PRUNING_STATE": "y"}, ["no prompt", "TEST_MATRIX_ADAMWPRUNE"]),
        ({"OPTIMIZER_SGD": "y"}, ["OPTIMIZER_SGD", "TEST_MATRIX_MODE"]),
        ({"TEST_MATRIX_SGD_LEARNING_RATE": "1"}, ["TEST_MATRIX_SGD, which is n"]),
        ({"TEST_MATRIX_BITTER7": "y"}, ["TEST_MATRIX_ADAMWPRUNE, which is n"]),
        ({"TEST_MATRIX_ADAMW": "n"}, ["no optimizer", "TEST_MATRIX_MUON"]),
        ({"TEST_MATRIX_PRUNING_NONE": "n"}, ["no pruning method", "PRUNING_NONE"]),
        (
            {"TEST_MATRIX_ADAMWPRUNE": "y", "TEST_MATRIX_BITTER0": "n"},
            ["no score", "TEST_MATRIX_BITTER9"],
        ),
        (
            {
                "TEST_MATRIX_ADAMWPRUNE": "y",
                "TEST_MATRIX_ADAMW": "n",
                "TEST_MATRIX_PRUNING_NONE": "y",
                "TEST_MATRIX_BITTER0": "n",
            },
            ["no score"],
        ),
        (
            {"TEST_MATRIX_PRUNING_MAGNITUDE": "y", "SPARSITIES": "0.5,1.0"},
            ["TEST_MATRIX_SPARSITIES", "1.0", "0.99"],
        ),
        (
            {"TEST_MATRIX_PRUNING_MAGNITUDE": "y", "SPARSITIES": "0.5,0.5"},
            ["twice"],
        ),
        (
            {"TEST_MATRIX_PRUNING_MAGNITUDE": "y", "SPARSITIES": "0.5,0.50000001"},
            ["apart", "adamw-magnitude-50"],
        ),
        (
            {"TEST_MATRIX_PRUNING_MAGNITUDE": "y", "MAX_ITERS": "250"},
            ["adamw-magnitude-50", "PRUNING_WARMUP_STEPS=200", "no mask update"],
        ),
        (
            {"TEST_MATRIX_PRUNING_MAGNITUDE": "y", "TIME_BUDGET": "1h"},
            ["adamw-magnitude-50", "TIME_BUDGET=1h", "magnitude pruning"],
        ),
        (
            {"TEST_MATRIX_PRUNING_HEADS": "y", "SPARSITIES": "0.001"},
            ["adamw-heads-0.1", "GPT2_N_HEAD=12 heads in 12 layers", "none would be"],
        ),
        (
            {"TEST_MATRIX_PRUNING_HEADS": "y", "RA_MLA_ATTENTION_MLA": "y"},
            ["TEST_MATRIX_PRUNING_HEADS", "command line", "RA_MLA_ATTENTION_MLA is y"],
        ),
        (
            {"TEST_MATRIX_ADAMWSPAM": "y", "SPAM_WARMUP": "500"},
            ["SPAM_WARMUP=500", "SPAM_INTERVAL=500"],
        ),
        (
            {"TEST_MATRIX_SGD": "y", "TEST_MATRIX_SGD_LEARNING_RATE": "0"},
            ["TEST_MATRIX_SGD_LEARNING_RATE", "above 0"],
        ),
    ],
)
def test_sets_that_make_no_sense_are_refused(symbols: dict[str, Any], words):
    with pytest.raises((ConfigError, ValueError)) as error:
        plan(**symbols)
    for word in words:
        assert word in str(error.value)


def test_a_step_whose_pruning_could_not_act_is_refused():
    """Step 1 prunes, whatever the mode of the preset is made for."""
    short = {"RA_MLA_ABLATION_MODE": "y", "MAX_ITERS": "200"}
    assert len(make_plan(make_config(**short, STEPS="0,2")).jobs) == 2
    with pytest.raises(ValueError, match="step01.*PRUNING_WARMUP_STEPS=200"):
        make_plan(make_config(**short, STEPS="0,1"))


@pytest.mark.parametrize("preset", PRESETS, ids=lambda path: path.name)
def test_every_preset_can_be_planned(preset):
    # The folder with GPT-2 is the user's to bring: tests/scripts/test_init_from_run.py.
    found = make_plan(strict_kconfig().load([preset], ["INIT_FROM="]))
    assert found.jobs and len({job.hash for job in found.jobs}) == len(found.jobs)
    if found.base.matrix.mode == "matrix":
        assert found.jobs[0].name == BASELINE
        others = {job.parent_name for job in found.jobs[1:] if job.name != BASELINE}
        assert others <= {job.name for job in found.jobs}
