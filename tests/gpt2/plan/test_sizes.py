"""gpt2/plan/sizes.py: model sizes, crossed with steps, seeds and sweeps."""

from __future__ import annotations

import json
import math
import re

import pytest

from gpt2.plan.budget import budget
from gpt2.plan.jobs import Job, Plan, job_from_json, only
from gpt2.plan.planning import make_plan
from gpt2.plan.sizes import sizes_of
from gpt2.run.plan_listing import listing
from tests.gpt2.helpers import TINY, make_config

SIZELESS = {"GPT2_N_HEAD", "GPT2_N_EMBD", "GPT2_HEAD_DIM", "GPT2_N_LAYER"}
BASE = {k: v for k, v in TINY.items() if k not in SIZELESS | {"GPT2_MODEL_CUSTOM"}}

BASE_64 = {"MODEL": "CUSTOM", "N_LAYER": "7", "N_HEAD": "4", "N_EMBD": "64"}


def sized(sizes: str, steps: str = "0,5", seeds: str = "1", **more: str) -> Plan:
    words = {**BASE, "STEPS": steps, "SEEDS": seeds, "SIZES": sizes, **more}
    return make_plan(make_config(**words))


def shape(job: Job) -> tuple[int, int, int]:
    m = job.settings.model
    return m.n_layer, m.n_head, m.n_embd


def at(plan: Plan, size: str) -> list[Job]:
    return [job for job in plan.jobs if job.coordinates["size"] == size]


def test_sizes_are_crossed_with_steps_and_seeds() -> None:
    plan = sized("2x32,3x320", seeds="3,1")
    assert [job.run_dir for job in plan.jobs] == [
        f"{step}/size={size}/seed{seed}"
        for step in ("step00-baseline", "step05-ra")
        for size in ("2x32", "3x320")
        for seed in (3, 1)
    ]
    assert [shape(job) for job in plan.jobs[::2]] == [(2, 4, 32), (3, 5, 320)] * 2
    for job in plan.jobs:
        size = job.coordinates["size"]
        partner = None if job.step == 0 else f"baseline/size={size}"
        assert job.parent_name == partner
        assert job.origins["n_embd"] == job.origins["n_layer"] == "SIZES"
        assert job.settings.model.mlp_width == 4 * job.settings.model.n_embd
        assert job_from_json(json.loads(json.dumps(job.to_json()))).hash == job.hash
    one = only(plan, "*/size=2x32")
    assert {job.coordinates["size"] for job in one.jobs} == {"2x32"}


@pytest.mark.parametrize(
    ("size", "alone"),
    [
        ("3x192", {"N_LAYER": "3", "N_HEAD": "4", "N_EMBD": "192"}),
        ("3x60x3", {"N_LAYER": "3", "N_HEAD": "3", "N_EMBD": "60"}),
        ("4x384", {"N_LAYER": "4", "N_HEAD": "6", "N_EMBD": "384"}),
        ("124M", {"MODEL": "124M"}),
        ("355M", {"MODEL": "350M"}),
        ("350M", {"MODEL": "350M"}),
    ],
)
def test_a_size_trains_what_its_assignments_alone_give(
    size: str, alone: dict[str, str]
) -> None:
    custom = {} if "MODEL" in alone else {"MODEL": "CUSTOM"}
    plan = make_plan(make_config(**BASE, STEPS="5", SEEDS="1", **custom, **alone))
    found = sized(size, steps="5").jobs[0]
    assert found.hash == plan.jobs[0].hash
    assert found.coordinates["size"] == size.replace("350M", "355M")
    # Whatever size is configured, these are the sizes that are run.
    assert sized(size, steps="5", **BASE_64).jobs[0].hash == found.hash


def test_tokens_follow_the_parameters_of_the_baseline_of_each_size() -> None:
    words = {"TOKENS_PER_PARAMETER": "2.5", "BATCH_SIZE": "4", "ACCUMULATION": "1"}
    plan = sized("2x32,3x64", steps="0,5,2", **words, WARMUP_STEPS="2")
    for size in ("2x32", "3x64"):
        jobs = at(plan, size)
        parameters = budget(jobs[0].settings).parameters
        updates = {job.settings.optim.max_iters for job in jobs}
        assert updates == {math.ceil(2.5 * parameters / (4 * 16))}
        assert jobs[0].origins["max_iters"] == "TOKENS_PER_PARAMETER (command line)"
    alone = {"N_LAYER": "2", "N_HEAD": "4", "N_EMBD": "32", "MODEL": "CUSTOM"}
    one = make_plan(make_config(**BASE, **alone, STEPS="0", WARMUP_STEPS="2", **words))
    assert one.jobs[0].settings.optim == at(plan, "2x32")[0].settings.optim
    swept = sized("2x32", steps="0", SWEEP="TOKENS_PER_PARAMETER=1,2")
    assert len({job.settings.optim.max_iters for job in swept.jobs}) == 2
    assert len({job.settings.optim.max_iters for job in sized("2x32,3x64").jobs}) == 1


def test_parameters_are_matched_at_each_size() -> None:
    plan = sized("2x64,3x320", steps="0,19,31", RA_MLA_LATENT_DIM="16")
    for size in ("2x64", "3x320"):
        baseline, *others = (budget(job.settings).parameters for job in at(plan, size))
        assert all(abs(n / baseline - 1) < 0.01 for n in others)


def test_the_rate_is_the_same_or_in_inverse_proportion_to_the_width() -> None:
    words = {**BASE_64, "LEARNING_RATE": "2e-3"}
    rates = {"2x32": 4e-3, "2x64": 2e-3, "3x256": 5e-4}
    same = sized(",".join(rates), steps="0", **words)
    assert {job.settings.optim.learning_rate for job in same.jobs} == {2e-3}
    scaled = {"SIZES_SCALE_RATE": "y", "MIN_LR_RATIO": "0.1"}
    plan = sized(",".join(rates), **words, **scaled)
    for size, rate in rates.items():
        for job in at(plan, size):
            assert job.settings.optim.learning_rate == pytest.approx(rate)
            assert job.settings.optim.min_lr == pytest.approx(rate / 10)
    assert at(plan, "2x32")[0].origins["learning_rate"] == "SIZES"


def test_sizes_are_crossed_with_a_sweep_and_with_a_test_matrix() -> None:
    plan = sized("2x32,3x64", SWEEP="RA_WINDOW=1,2")
    assert list(dict.fromkeys(job.cell for job in plan.jobs)) == [
        *(f"step00-baseline/size={size}" for size in ("2x32", "3x64")),
        *(
            f"step05-ra/size={size},ra_window={window}"
            for size in ("2x32", "3x64")
            for window in (1, 2)
        ),
    ]
    assert all(len(part.jobs) == 2 for part in plan.points) and len(plan.points) == 4
    words = {k: v for k, v in BASE.items() if "ABLATION" not in k and "RA_MLA" not in k}
    words |= {"TEST_MATRIX_MODE": "y", "TEST_MATRIX_SGD": "y", "SIZES": "2x32,3x64"}
    jobs = make_plan(make_config(**words)).jobs
    assert len(jobs) == 4
    for job in jobs:
        assert job.coordinates["size"] in job.cell
        if job.parent_name:
            assert job.parent_name.endswith(f"/size={job.coordinates['size']}")


SCALE = {"SIZES_SCALE_RATE": "y"}


@pytest.mark.parametrize(
    ("sizes", "more", "message"),
    [
        ("2x32,", {}, "'' is not a size"),
        ("125M", {}, "nearest: 124M"),
        ("2x30", {}, "width of 30 is not a multiple of 4"),
        ("2x300", {}, "width of 300 is not a multiple of 64"),
        ("2x4", {}, "GPT2_N_EMBD=4 is outside its range"),
        ("2x32x3", {}, "3"),
        ("12x768,124M", {}, "12x768 and 124M are the same size"),
        ("2x32,2x32", {}, "the same size"),
        ("2x32", {"MLP_WIDTH": "64"}, "GPT2_MLP_WIDTH=64 (command line) is a width of"),
        ("2x32", {"HEAD_DIM": "8"}, "GPT2_HEAD_DIM=8 (command line) is a width of"),
        ("2x32", SCALE, "set MIN_LR_RATIO=0.1"),
        ("2x32", {"SWEEP": "N_LAYER=2,3", "MODEL": "CUSTOM"}, "SWEEP of GPT2_N_LAYER"),
        (
            "2x32",
            {**SCALE, "SWEEP": "LEARNING_RATE=1e-3,2e-3", "MIN_LR": "0"},
            "SIZES with SIZES_SCALE_RATE=y sets it, too",
        ),
        ("2x32", {"TOKENS_PER_PARAMETER": "1", "MAX_TOKENS": "9"}, "one budget"),
        ("2x32", {"TOKENS_PER_PARAMETER": "0"}, "TOKENS_PER_PARAMETER"),
        (",".join(f"{n}x32" for n in range(1, 40)), {"SWEEP": "RA_WINDOW="}, "empty"),
    ],
)
def test_impossible_sizes_are_refused(
    sizes: str, more: dict[str, str], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as refused:
        sized(sizes, **more)
    assert "command line" in str(refused.value)


def test_the_grid_of_all_axes_is_bounded() -> None:
    sizes = ",".join(f"{n}x32" for n in range(1, 42))
    windows = ",".join(map(str, range(1, 26)))
    with pytest.raises(ValueError, match="1,025 points"):
        sized(sizes, SWEEP=f"RA_WINDOW={windows}")


def test_the_listing_shows_what_each_size_costs() -> None:
    words = {"STEPS": "0,8", "SIZES": "2x32,3x64", "RA_MLA_LATENT_DIM": "16"}
    config = make_config(**{**BASE, **words})
    plan = make_plan(config)
    small, large = sizes_of(plan)
    assert (small.name, large.name, small.runs) == ("2x32", "3x64", 2)
    assert small.tokens == large.tokens and small.flops < large.flops
    jobs = at(plan, "2x32")
    flops = [float(budget(j.settings).flops_training) for j in jobs]
    tokens = jobs[0].settings.tokens_per_update * jobs[0].settings.optim.max_iters
    assert small.flops == pytest.approx(tokens * sum(flops))
    text = listing(plan, config)
    assert "4 arms (2 steps; sweep of SIZES 2x32, 3x64)" in text
    assert re.search(rf"2x32 +4 of 8 +{small.parameters:,} ", text)
    assert "RA_MLA_LATENT_DIM=16 is the same at all sizes" in text
    config = make_config(**{**BASE, **words, "LR_SWEEP": "1e-3,3e-3,2e-3"})
    assert sizes_of(make_plan(config))[0].rates == (1e-3, 2e-3, 3e-3)
    assert re.search(r"2x32 .* 0.001 to 0.003 ", listing(make_plan(config), config))
