"""gpt2/plan/lr_sweep.py: rates for every arm, the choice of the best, more rates."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from gpt2.plan.jobs import Job, Plan, job_from_json, only
from gpt2.plan.lr_sweep import LARGEST, MOST_ADDED, SMALLEST, choose, loss_of
from gpt2.plan.planning import make_plan
from gpt2.run.conflicts import conflicts
from gpt2.run.plan_listing import listing
from gpt2.settings.shown import text_of
from lib.jobs import run_files
from tests.gpt2.helpers import TINY, make_config

RATES = "2e-3,1e-3"


def swept(**more: str) -> Plan:
    words = {**TINY, "STEPS": "0,5", "SEEDS": "1,2", "LR_SWEEP": RATES, **more}
    return make_plan(make_config(**words))


def finish(root: Path, job: Job, loss: float | None) -> None:
    """Files of a finished run; a loss of None: it failed with NaN."""
    run_dir = root / job.run_dir
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / run_files.JOB_FILE).write_text(json.dumps(job.to_json()))
    if loss is None:
        run_files.write_status(run_dir, status="failed", failure="nan")
    else:
        run_files.write_status(run_dir, status="done", result={"val_loss": loss})


def finish_all(root: Path, plan: Plan, best: float) -> None:
    """Losses that are lowest at a rate; above ten times it, runs diverge."""
    for job in plan.jobs:
        rate = job.settings.optim.learning_rate
        loss = abs(math.log(rate / best)) if rate < 10 * best else None
        finish(root, job, loss)


# ---- the plan ---------------------------------------------------------------------


def test_every_arm_has_every_rate_on_both_kinds_of_seeds() -> None:
    plan = swept(LR_TUNING_SEEDS="7,8,9")
    assert [job.run_dir for job in plan.jobs] == [
        f"{arm}/learning_rate={rate}/seed{seed}"
        for arm in ("step00-baseline", "step05-ra")
        for rate in (0.001, 0.002)
        for seed in (1, 2, 7, 8, 9)
    ]
    for job in plan.jobs:
        assert job.tuning == (job.seed in (7, 8, 9))
        assert job.settings.optim.learning_rate == job.coordinates["learning_rate"]
        assert job.origins["learning_rate"] == "LR_SWEEP"
        assert job_from_json(json.loads(json.dumps(job.to_json()))) == job
    ra = [job for job in plan.jobs if job.step == 5]
    partners = {job.parent_name for job in ra if job.seed == 1}
    assert partners == {"baseline/learning_rate=0.001", "baseline/learning_rate=0.002"}
    assert "tuning" not in plan.jobs[0].to_json()


def test_runs_are_those_of_the_same_rate_without_a_sweep() -> None:
    """A tuning run trains what any other run of its seed trains."""
    alone = make_plan(make_config(**TINY, STEPS="5", SEEDS="1,101", LR="2e-3"))
    hashes = {job.seed: job.hash for job in alone.jobs}
    for job in swept().jobs:
        if job.step == 5 and job.coordinates["learning_rate"] == 0.002:
            assert hashes.get(job.seed, job.hash) == job.hash


def test_rates_are_crossed_with_other_axes_and_follow_a_ratio() -> None:
    plan = swept(SWEEP="RA_WINDOW=1,2", MIN_LR_RATIO="0.1", STEPS="5")
    assert len(plan.jobs) == 2 * 2 * 4
    assert "step05-ra/ra_window=1,learning_rate=0.002/seed101" in {
        job.run_dir for job in plan.jobs
    }
    for job in plan.jobs:
        optim = job.settings.optim
        assert optim.min_lr == pytest.approx(0.1 * optim.learning_rate)
        assert job.origins["min_lr"] == "MIN_LR_RATIO (command line)"


def test_an_arm_that_sets_its_rate_and_a_control_are_not_tuned(tmp_path: Path) -> None:
    steps = tmp_path / "steps.toml"
    steps.write_text(
        '[[step]]\nid = 100\nname = "fixed"\ntitle = "learning_rate 0.005"\n'
        'question = "?"\nparent = 0\n[step.changes]\nLEARNING_RATE = 0.005\n'
    )
    plan = swept(STEPS="0,100", STEPS_FILE=str(steps), CONTROLS="y")
    fixed = [job for job in plan.jobs if job.step == 100]
    assert [job.run_dir for job in fixed] == [
        "step100-fixed/seed1",
        "step100-fixed/seed2",
    ]
    assert not any(job.tuning for job in plan.jobs if job.is_control)


def test_the_listing_has_grid_use_of_seeds_and_price() -> None:
    words = {**TINY, "STEPS": "0,5", "SEEDS": "1,2", "LR_SWEEP": RATES}
    config = make_config(**words)
    text = listing(make_plan(config), config)
    head = (
        "4 arms (2 steps; sweep of LEARNING_RATE 0.001, 0.002) x 2 seeds and 2 tuning"
    )
    assert text.startswith(f"{head} seeds = 16 jobs, ")
    assert text.count("(chooses the rate)") == 8
    assert "LR_SWEEP of LEARNING_RATE: GPT2_MIN_LR=6e-05 is the end of all" in text
    ratio = make_config(**{**words, "LR_SWEEP": "3e-4,6e-4"}, MIN_LR_RATIO="0.1")
    text = listing(make_plan(ratio), ratio)
    assert "GPT2_MIN_LR=" not in text
    # 0.1 x 3e-4 and 0.1 x 6e-4 are not quite 3e-05 and the configured 6e-05
    assert "6e-05 -> 3e-05" in text and "6e-05 -> " not in text.replace("-> 3e-05", "")


def test_only_selects_tuning_runs_like_others() -> None:
    jobs = only(swept(), "step05-*/learning_rate=0.001/seed101").jobs
    assert [job.seed for job in jobs] == [101] and jobs[0].tuning


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ({"LR_TUNING_SEEDS": "2,101"}, "LR_TUNING_SEEDS=2,101: of these, SEEDS has 2"),
        ({"LR_SWEEP": "1e-3"}, "CONFIG_LR_SWEEP: '1e-3' is one rate: set LEARNING"),
        ({"LR_SWEEP": "1e-3,0.001"}, "CONFIG_LR_SWEEP: .* has a value twice"),
        ({"LR_SWEEP": "1e-3,0"}, "CONFIG_LR_SWEEP: LEARNING_RATE: 0.0 is not above 0"),
        (
            {"LR_SWEEP": "1e-3,high"},
            "CONFIG_LR_SWEEP: LEARNING_RATE: 'high' is not a n",
        ),
        ({"SWEEP": "LR=1e-3,3e-3"}, "LEARNING_RATE is there twice .once in LR_SWEEP"),
        ({"LR_SWEEP": "1e-5,1e-3"}, "GPT2_MIN_LR=6e-05 is above LEARNING_RATE=1e-05"),
    ],
)
def test_what_makes_no_sense_is_refused(words: dict[str, str], why: str) -> None:
    with pytest.raises(ValueError, match=why):
        swept(**words)


def test_tuning_seeds_do_not_become_seeds_of_a_verdict(tmp_path: Path) -> None:
    plan = swept()
    tuned = next(job for job in plan.jobs if job.tuning)
    finish(tmp_path, tuned, 1.0)
    assert conflicts(tmp_path, plan.jobs) == []
    other = swept(SEEDS="1,101", LR_TUNING_SEEDS="7")
    (conflict,) = conflicts(tmp_path, other.jobs)
    assert conflict.run_dir == tuned.run_dir
    assert "must not be in a verdict" in conflict.reason


# ---- the choice -------------------------------------------------------------------


def test_the_best_rate_has_the_lowest_mean_of_all_tuning_seeds() -> None:
    found = choose({0.2: [1.0, 2.0], 0.1: [3.0, 3.0], 0.4: [0.1, math.inf]})
    assert (found.best, found.edge) == (0.2, "")
    assert list(found.means.items()) == [(0.1, 3.0), (0.2, 1.5), (0.4, math.inf)]
    assert choose({0.1: [1.0], 0.2: [1.0], 0.4: [2.0]}).best == 0.1
    assert choose({0.1: [1.0], 0.2: [2.0]}).edge == SMALLEST
    assert choose({0.1: [2.0], 0.2: [1.0]}).edge == LARGEST
    assert choose({0.1: [2.0]}).edge == ""


def test_nothing_is_chosen_while_runs_are_missing_or_if_all_diverged() -> None:
    assert choose({0.1: [1.0], 0.2: [None]}).best is None
    assert choose({0.1: [math.inf], 0.2: [math.inf]}).best is None
    assert loss_of({"status": "running", "result": {"val_loss": 1.0}}) is None
    assert loss_of({"status": "failed", "failure": "oom"}) is None
    assert loss_of({"status": "failed", "failure": "nan"}) == math.inf
    assert loss_of({"status": "done", "result": {"val_loss": None}}) == math.inf
    assert loss_of({"status": "done", "result": {"val_loss": 2}}) == 2.0


# ---- LR_SWEEP_EXTEND --------------------------------------------------------------


def rates_of(plan: Plan) -> list[str]:
    return list(map(text_of, plan.axes[-1].values))


@pytest.mark.parametrize(
    ("best", "rates"),
    [
        (0.004, ["0.001", "0.002", "0.004", "0.008"]),
        (1.0, ["0.001", *(f"{0.002 * 2**n:g}" for n in range(MOST_ADDED + 1))]),
    ],
)
def test_rates_are_added_until_the_best_is_inside_or_the_bound_is_reached(
    tmp_path: Path, best: float, rates: list[str]
) -> None:
    words = {"LR_SWEEP_EXTEND": "y", "OUTPUT_DIR": str(tmp_path), "STEPS": "0"}
    plan = swept(**words)
    assert rates_of(plan) == ["0.001", "0.002"] and not plan.added_rates
    for _ in range(MOST_ADDED + 2):
        finish_all(tmp_path, plan, best)
        wider = swept(**words)
        if len(wider.jobs) == len(plan.jobs):
            break
        assert {job.run_dir for job in plan.jobs} < {job.run_dir for job in wider.jobs}
        plan = wider
    assert rates_of(plan) == rates
    assert len(plan.added_rates) == len(rates) - 2
    assert rates_of(swept(OUTPUT_DIR=str(tmp_path))) == ["0.001", "0.002"]


def test_nothing_is_added_below_the_final_rate_or_for_runs_of_other_settings(
    tmp_path: Path,
) -> None:
    words = {"LR_SWEEP_EXTEND": "y", "OUTPUT_DIR": str(tmp_path)}
    finish_all(tmp_path, swept(**words), 3e-4)
    assert rates_of(swept(**words)) == ["0.0005", "0.001", "0.002"]
    low = swept(**words, GPT2_MIN_LR="5.5e-4")
    assert rates_of(low) == ["0.001", "0.002"]  # the runs have another final rate
    finish_all(tmp_path, low, 3e-4)
    assert rates_of(swept(**words, GPT2_MIN_LR="5.5e-4")) == ["0.001", "0.002"]


def test_one_missing_tuning_run_of_an_arm_keeps_the_grid(tmp_path: Path) -> None:
    words = {"LR_SWEEP_EXTEND": "y", "OUTPUT_DIR": str(tmp_path), "STEPS": "0"}
    plan = swept(**words)
    *others, last = [job for job in plan.jobs if job.tuning]
    for job in others:
        finish(tmp_path, job, 1.0 / job.settings.optim.learning_rate)
    assert rates_of(swept(**words)) == ["0.001", "0.002"]
    finish(tmp_path, last, 1.0 / last.settings.optim.learning_rate)
    assert rates_of(swept(**words)) == ["0.001", "0.002", "0.004"]
