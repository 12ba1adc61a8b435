"""gpt2/plan/axes.py and sweep.py: values of settings, crossed with steps and seeds."""

from __future__ import annotations

import re
from typing import Any

import pytest

from gpt2.plan.axes import SWEPT_BESIDES, SWEPT_PARTS, split_names
from gpt2.plan.jobs import Job, Plan, job_from_json, only
from gpt2.plan.planning import make_plan
from gpt2.plan.unused_settings import unused_settings
from gpt2.report.results import COLUMNS
from gpt2.run.plan_listing import budget_table, listing
from gpt2.settings.schema import PART_OF, SYMBOL_OF
from gpt2.verify.certify_steps import subjects
from gpt2.verify.pairing import undeclared
from tests.gpt2.helpers import TINY, make_config

GRID = "RA_WINDOW=1,2,3 RA_ALPHA=0.1,0.3"


def swept(sweep: str, steps: str = "0,5", seeds: str = "1", **more: str) -> Plan:
    words = {**TINY, "STEPS": steps, "SEEDS": seeds, "SWEEP": sweep, **more}
    return make_plan(make_config(**words))


def cells(plan: Plan) -> list[str]:
    return list(dict.fromkeys(job.cell for job in plan.jobs))


def partners(plan: Plan) -> dict[str, tuple[int | None, str | None]]:
    return {job.cell: (job.parent, job.parent_name) for job in plan.jobs}


# ---- which cells ------------------------------------------------------------------


def test_a_sweep_is_crossed_with_steps_and_seeds() -> None:
    plan = swept(GRID, seeds="3,1")
    points = [(w, a) for w in (1, 2, 3) for a in (0.1, 0.3)]
    assert [job.run_dir for job in plan.jobs] == [
        *("step00-baseline/seed3", "step00-baseline/seed1"),
        *(
            f"step05-ra/ra_window={w},ra_alpha={a}/seed{seed}"
            for w, a in points
            for seed in (3, 1)
        ),
    ]
    for job, (window, alpha) in zip(plan.jobs[2::2], points, strict=True):
        x = job.settings.mechanisms
        assert (x.ra_window, x.ra_alpha) == (window, alpha)
        assert job.coordinates == {"ra_window": window, "ra_alpha": alpha}
        assert job.name == f"ra/ra_window={window},ra_alpha={alpha}"
        assert job.origins["ra_window"] == job.origins["ra_alpha"] == "SWEEP"
        assert (job.parent, job.parent_name) == (0, "baseline")
    assert len({job.hash for job in plan.jobs}) == len(plan.jobs)


def test_each_cell_is_what_its_values_on_the_command_line_give() -> None:
    plan = swept("RA_WINDOW=1,3 LEARNING_RATE=1e-3,2e-3", steps="0,5,20")
    for job in plan.jobs:
        words = {SYMBOL_OF[f]: str(v) for f, v in job.coordinates.items()}
        alone = swept("", steps=str(job.step), **words).jobs[0]
        assert job.hash == alone.hash
    assert len(plan.jobs) == 2 + 4 + 2


def test_without_a_sweep_nothing_changes() -> None:
    plan = swept("", steps="0,5,29")
    assert cells(plan) == ["step00-baseline", "step05-ra", "step29-ra-whole"]
    assert plan.points == (plan,)
    assert "coordinates" not in plan.jobs[1].to_json()
    # A cell without coordinates is the same run with and without a sweep.
    assert swept("RA_WINDOW=1,3", steps="0").jobs[0].hash == plan.jobs[0].hash


def test_a_setting_that_a_step_does_not_read_does_not_multiply_it() -> None:
    plan = swept("RA_WINDOW=1,3 RA_ALPHA=0.1,0.2", steps="0,5,8,29,30")
    count = dict.fromkeys(dict.fromkeys(job.arm for job in plan.jobs), 0)
    for cell in cells(plan):
        count[cell.partition("/")[0]] += 1
    assert count == {
        "step00-baseline": 1,
        "step05-ra": 4,
        "step08-mla": 1,
        "step29-ra-whole": 2,  # sets the window itself
        "step30-ra-learned": 2,  # sets alpha itself
    }


def test_a_setting_that_is_read_with_some_values_of_another_multiplies_only_these() -> (
    None
):
    plan = swept("OPTIMIZER=adamw,sgd SGD_MOMENTUM=0.8,0.9", steps="0")
    assert cells(plan) == [
        "step00-baseline/optimizer=adamw",
        "step00-baseline/optimizer=sgd,momentum=0.8",
        "step00-baseline/optimizer=sgd,momentum=0.9",
    ]


def test_a_width_that_the_control_is_matched_to_multiplies_the_control() -> None:
    words = {"RA_MLA_ABLATION_MODE": "y", "STEPS": "0,20", "SWEEP": "LATENT_DIM=64,512"}
    plan = make_plan(make_config(**words))
    assert cells(plan) == [
        "step00-baseline",
        "step20-wide/latent_dim=64",
        "step20-wide/latent_dim=512",
    ]
    _, small, large = (job.settings.model.mlp_width for job in plan.jobs)
    assert small < large


def test_cells_of_two_steps_that_train_the_same_are_one_run() -> None:
    plan = swept("RA_WINDOW=0,3", steps="0,5,29,6")
    (left,) = plan.left_out
    assert left.name == "step29-ra-whole"
    assert left.reason == "trains the same as step05-ra/ra_window=0"
    plan = swept("RA_WINDOW=0,3", steps="29,5,6")
    (left,) = plan.left_out
    assert left.name == "step05-ra/ra_window=0"
    # The one that is left out is the partner of step 6 there, under its other name.
    assert partners(plan) == {
        "step29-ra-whole": (5, "ra/ra_window=3"),
        "step05-ra/ra_window=3": (0, "baseline"),
        "step06-ra-r25/ra_window=0": (29, "ra-whole"),
        "step06-ra-r25/ra_window=3": (5, "ra/ra_window=3"),
    }


# ---- partners ---------------------------------------------------------------------


def test_the_partner_is_the_parents_cell_at_equal_coordinates() -> None:
    plan = swept("RA_WINDOW=1,3 LEARNING_RATE=1e-3,2e-3", steps="0,5,6")
    for job in plan.jobs:
        if job.step == 5:
            rate = job.coordinates["learning_rate"]
            assert (job.parent, job.parent_name) == (
                0,
                f"baseline/learning_rate={rate}",
            )
        if job.step == 6:
            own = job.name.partition("/")[2]
            assert (job.parent, job.parent_name) == (5, f"ra/{own}")


def test_on_an_axis_that_only_the_partner_has_the_configured_value_counts() -> None:
    names = partners(swept("RA_ALPHA=0.1,0.3,0.4", steps="0,5,30"))
    assert names["step30-ra-learned"] == (5, "ra/ra_alpha=0.3")
    names = partners(swept("RA_ALPHA=0.1,0.4", steps="0,5,30"))
    assert names["step30-ra-learned"] == (5, "ra/ra_alpha=0.1")


def test_a_control_has_the_coordinates_of_its_baseline() -> None:
    plan = swept("LEARNING_RATE=1e-3,2e-3", CONTROLS="y")
    assert partners(plan)["step00-baseline-aa/learning_rate=0.002"] == (
        0,
        "baseline/learning_rate=0.002",
    )
    assert sum(job.is_control for job in plan.jobs) == 2


def test_the_cells_of_a_test_matrix_are_swept_too() -> None:
    matrix = {"TEST_MATRIX_MODE": "y", "TEST_MATRIX_SGD": "y", "SEEDS": "1"}
    config = make_config(**matrix, SWEEP="ADAM_BETA1=0.8,0.9", DEVICE="cpu")
    plan = make_plan(config)
    assert partners(plan) == {
        "adamw-none/beta1=0.8": (None, None),
        "adamw-none/beta1=0.9": (None, None),
        "sgd-none": (None, "adamw-none/beta1=0.9"),
    }
    assert not [text for p in plan.points for j in p.jobs for text in undeclared(j, p)]


# ---- learning rates ---------------------------------------------------------------


def test_a_final_rate_in_shares_keeps_the_shape_of_the_schedule() -> None:
    plan = swept("LEARNING_RATE=1e-3,1e-6", MIN_LR_RATIO="0.1")
    rates = {
        (j.settings.optim.learning_rate, j.settings.optim.min_lr) for j in plan.jobs
    }
    assert rates == {(1e-3, 1e-4), (1e-6, 1e-7)}
    assert plan.jobs[0].origins["min_lr"] == "MIN_LR_RATIO (command line)"
    # Only the rate is part of the identity: given in two ways, it is one run.
    given = swept("", LEARNING_RATE="1e-3", GPT2_MIN_LR="1e-4")
    assert given.jobs[0].hash == plan.jobs[0].hash
    for peak, end in (("3e-4", "3e-5"), ("1.2e-3", "0.00012"), ("6e-4", "6e-5")):
        share = swept("", LEARNING_RATE=peak, MIN_LR_RATIO="0.1")
        given = swept("", LEARNING_RATE=peak, GPT2_MIN_LR=end)
        assert share.jobs[0].hash == given.jobs[0].hash
    whole = swept("", LEARNING_RATE="0.00012345678901234567", MIN_LR_RATIO="1")
    assert whole.jobs[0].settings.optim.min_lr == 0.00012345678901234567


def test_a_final_rate_is_given_once() -> None:
    with pytest.raises(ValueError, match="GPT2_MIN_LR=0.0001 was given, but MIN_LR_RA"):
        swept("", MIN_LR_RATIO="0.1", GPT2_MIN_LR="1e-4")
    with pytest.raises(ValueError, match="MIN_LR_RATIO: 1.5 is not from 0 to 1"):
        swept("", MIN_LR_RATIO="1.5")


@pytest.mark.parametrize(
    ("words", "is_noted"),
    [
        ({}, True),
        ({"MIN_LR_RATIO": "0.1"}, False),
        ({"GPT2_MIN_LR": "0"}, False),
        ({"SWEEP": "WEIGHT_DECAY=0.1,0.2"}, False),
        ({"SWEEP": "LR=1e-3,2e-3 MIN_LR_RATIO=0,0.1"}, False),
    ],
)
def test_a_sweep_of_rates_that_share_their_end_is_noted(
    words: dict[str, str], is_noted: bool
) -> None:
    config = make_config(**{**TINY, "STEPS": "0", "SWEEP": "LR=1e-3,2e-3", **words})
    text = " ".join(listing(make_plan(config), config).split())
    assert ("is the end of all schedules" in text) == is_noted


def test_remarks_are_on_what_each_cell_trains_with() -> None:
    def said(**words: str) -> str:
        config = make_config(**{**TINY, "STEPS": "0,5", "SEEDS": "1", **words})
        return " ".join(listing(make_plan(config), config).split())

    late = "note: the warm-up (20 updates) takes the whole run (10)"
    length = {"MAX_ITERS": "10", "WARMUP_STEPS": "2", "LR": "1e-3"}
    assert late in said(**{**length, "WARMUP_STEPS": "20"})
    cell = "note: baseline/warmup_steps=20, ra/warmup_steps=20: the warm-up (20"
    assert cell in said(**length, SWEEP="WARMUP_STEPS=2,20")
    # The length that a run has, and not the one that another unit replaces.
    assert "the warm-up (20 updates) takes the whole run (1):" in said(
        WARMUP_STEPS="20", MAX_TOKENS="100"
    )


# ---- refusals ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        ("RA_WINDOW", "'RA_WINDOW' is not of the form"),
        ("RA_WINDO=1,2", "there is no setting RA_WINDO; nearest: RA_WINDOW"),
        ("RA_WINDOW=1,999999", "RA_WINDOW=999999 is outside its range, 0 to 131072"),
        ("RA_WINDOW=1,2,01", "RA_WINDOW=1,2,01 has a value twice"),
        ("RA_ALPHA=0.1,0.10", "RA_ALPHA=0.1,0.10 has a value twice"),
        ("RA_WINDOW=1, 2", "empty value: values are separated by commas alone"),
        ("RA_WINDOW=1,", "RA_MLA_RA_WINDOW has an empty value"),
        ("RA_WINDOW=1.5", "'1.5' is not a whole number"),
        ("RA_ALPHA=5", "RA_MLA_RA_ALPHA: 5.0 is not from -4 to 4"),
        ("RA_ALPHA=x", "'x' is not a number"),
        ("RA_WINDOW=1,2 ra_window=3", "RA_MLA_RA_WINDOW is there twice: list all"),
        ("BATCH_SIZE=1,2", "BATCH_SIZE cannot be swept: .* not what they train"),
        ("DATA_DIR=a,b", "DATA_DIR cannot be swept"),
        ("DATASET_MAX_TOKENS=1,2", "cannot be swept: all runs .* have the same data"),
        ("SEEDS=1,2", "SEEDS cannot be swept: it selects the runs"),
        ("TIME=1m,2m", "TIME_BUDGET cannot be swept: it is a text"),
        ("OPTIMIZER=adamw,lion", "OPTIMIZER='lion' must be one of adam, adamw, "),
        ("OPTIMIZER_SGD=y", "OPTIMIZER_SGD is not a setting of a run; sweep OPTIMIZER"),
        ("RA_LEARNED_ALPHA=y,n", "depends on RA_MLA_RA, which is n"),
        (
            "LEARNING_RATE=1e-3,1e-6",
            "at learning_rate=1e-06: GPT2_MIN_LR=6e-05 is abov",
        ),
        (f"RA_WINDOW={','.join(map(str, range(1001)))}", "1,001 points; at most 1,000"),
    ],
)
def test_a_sweep_is_as_strict_as_any_setting(sweep: str, said: str) -> None:
    with pytest.raises(ValueError, match=said) as refused:
        swept(sweep)
    assert "SWEEP" in str(refused.value)


@pytest.mark.parametrize(
    ("sweep", "values"),
    [
        ("RESIDUAL_FP32=y,n", [True, False]),
        ("RACT_STATISTIC=max,topk", ["max", "topk"]),
        ("MODEL=124M,custom", ["124M", "custom"]),
        ("ACCUMULATION=1,2", [1, 2]),
        ("ra_window=1", [1]),
    ],
)
def test_numbers_choices_and_switches_can_be_swept(
    sweep: str, values: list[Any]
) -> None:
    symbols = {"RA_MLA_ABLATION_MODE": "y", "DEVICE": "cpu", "SWEEP": sweep}
    (axis,) = make_plan(make_config(**symbols, STEPS="0,5,13")).axes
    assert list(axis.values) == values


def test_a_single_run_is_not_swept() -> None:
    with pytest.raises(ValueError, match="SWEEP depends on .*SINGLE_RUN_MODE"):
        make_config(SINGLE_RUN_MODE="y", SWEEP="LEARNING_RATE=1e-3,2e-3")


def test_a_sweep_that_changes_nothing_is_reported() -> None:
    config = make_config(**TINY, STEPS="0,8", SWEEP="RA_WINDOW=1,3")
    (line,) = [
        text for text in unused_settings(make_plan(config), config) if "SWEEP" in text
    ]
    assert re.match(
        r"SWEEP of RA_MLA_RA_WINDOW \(command line\) has no effect: none of", line
    )


def test_no_setting_that_can_be_swept_has_the_name_of_a_column() -> None:
    fields = {f for f, part in PART_OF.items() if part in SWEPT_PARTS}
    assert not (fields | {*SWEPT_BESIDES}) & {*COLUMNS}


# ---- what else works on a plan ----------------------------------------------------


def test_only_selects_cells_of_a_sweep() -> None:
    plan = swept(GRID, seeds="1,2")
    (one,) = only(plan, "step05-ra/ra_window=1,ra_alpha=0.3/seed2").jobs
    assert one.run_dir == "step05-ra/ra_window=1,ra_alpha=0.3/seed2"
    two = only(plan, "step05-ra/ra_window=1,ra_alpha=0.3,step00-*/seed1")
    assert [(job.step, job.seed) for job in two.jobs] == [(0, 1), (5, 1), (5, 2)]
    assert len(only(plan, "*ra_window=2*").jobs) == 4
    points = only(plan, "*ra_window=2*").points
    assert [cell for point in points for cell in cells(point)] == [
        f"step05-ra/ra_window=2,ra_alpha={a}" for a in (0.1, 0.3)
    ]


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("adamw-*, */seed1", ["adamw-*", "*/seed1"]),
        ("ra/ra_window=16,ra_alpha=0.1", ["ra/ra_window=16,ra_alpha=0.1"]),
        ("5,ra/ra_window=1,ra_alpha=0.1,0", ["5", "ra/ra_window=1,ra_alpha=0.1", "0"]),
        (" , ", []),
    ],
)
def test_commas_between_coordinates_do_not_separate_names(
    text: str, names: list[str]
) -> None:
    assert split_names(text) == names


def test_a_job_of_a_sweep_is_read_back() -> None:
    job = swept(GRID).jobs[-1]
    again = job_from_json(job.to_json())
    assert isinstance(again, Job) and again == job
    assert again.coordinates == {"ra_window": 3, "ra_alpha": 0.3}


def test_every_cell_is_certified_at_its_own_values() -> None:
    plan = swept(GRID, steps="0,5,6")
    found = subjects(plan)
    assert {*found} == {*cells(plan)}
    for job in plan.jobs:
        if job.coordinates:
            tiny, full = found[job.cell].settings, found[job.cell].full
            assert full is not None
            for settings in (tiny, full):
                assert settings.mechanisms.ra_alpha == job.coordinates["ra_alpha"]
            assert full.mechanisms.ra_window == job.coordinates["ra_window"]
    assert not [text for p in plan.points for j in p.jobs for text in undeclared(j, p)]


def test_the_listing_shows_the_grid_and_its_price() -> None:
    words = {**TINY, "STEPS": "0,5", "SEEDS": "1,2", "SWEEP": GRID}
    config = make_config(**words)
    plan = make_plan(config)
    text = listing(plan, config)
    assert text.startswith(
        "7 arms (2 steps; sweep of RA_MLA_RA_WINDOW 1, 2, 3; RA_MLA_RA_ALPHA 0.1, 0.3) "
        "x 2 seeds = 14 jobs, "
    )
    assert "step 5  ra/ra_window=1,ra_alpha=0.1\n" in text
    assert re.search(r"RA_MLA_RA_WINDOW +2 -> 1 +SWEEP\n", text)
    assert "ra/ra_window=3,ra_alpha=0.3" in budget_table(plan)
