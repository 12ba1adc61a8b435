"""gpt2/plan/planning.py: jobs of each mode, refusals, and origins of values."""

from __future__ import annotations

import json
import re
from pathlib import PurePosixPath

import pytest

from gpt2.plan.budget import budget
from gpt2.plan.jobs import Job, Plan, job_from_json
from gpt2.plan.planning import make_plan, step_settings
from gpt2.plan.steps import STEPS
from gpt2.settings.configuration import load_defaults
from gpt2.settings.schema import FIELDS, Settings
from lib.hashing import diff_fields
from tests.gpt2.helpers import TINY, make_config, tiny
from tests.gpt2.helpers import tiny_job as job
from tests.gpt2.helpers import tiny_plan as plan
from tests.scratch import ROOT

NEXT = len(STEPS)  # the id of a step that may be added
EVERY = f"0-{NEXT - 1}"


def single(**symbols: str) -> Plan:
    kept = {k: v for k, v in TINY.items() if k != "RA_MLA_ABLATION_MODE"}
    hidden = ("RA_MLA_LATENT", "RA_MLA_JOINT", "RA_MLA_ROPE", "RA_MLA_RA")
    kept = {k: v for k, v in kept.items() if not k.startswith((*hidden, "RA_MLA_CR"))}
    return make_plan(make_config(**{**kept, **symbols}))


def test_commands_of_the_readme_can_be_planned() -> None:
    text = (ROOT / "README.md").read_text()
    found = re.findall(r"^make (?:dry-run )?((?:[A-Z_]+=\S+ ?)+)$", text, re.M)
    assert len(found) >= 3, "a study, a sweep and a fine-tuning"
    for settings in found:
        without = re.sub(r"INIT_FROM=\S+", "", settings)  # there is no such folder
        assert make_plan(load_defaults(without, ["RA_MLA_ABLATION_MODE=y"])).jobs


# ---- which jobs -------------------------------------------------------------------


def test_an_ablation_is_steps_times_seeds() -> None:
    jobs = plan(STEPS="0,5,29-30", SEEDS="3,1").jobs
    assert [(j.step, j.seed) for j in jobs] == [
        (step, seed) for step in (0, 5, 29, 30) for seed in (3, 1)
    ]
    assert jobs[2].run_dir == "step05-ra/seed3"
    assert jobs[2].name == "ra"
    assert (jobs[2].parent, jobs[2].parent_name) == (0, "baseline")
    assert (jobs[0].parent, jobs[0].parent_name) == (None, None)
    assert len({j.run_dir for j in jobs}) == len(jobs)


def test_every_step_has_a_folder_of_its_own_that_stays_inside() -> None:
    jobs = plan(STEPS=EVERY, SEEDS="1").jobs
    for each in jobs:
        path = PurePosixPath(each.run_dir)
        assert not path.is_absolute() and ".." not in path.parts
        assert path.parts[0].startswith(f"step{each.step:02d}-")
    assert len({j.run_dir for j in jobs}) == len(STEPS)


def test_the_steps_are_resolved() -> None:
    for each in plan(STEPS=EVERY, SEEDS="1").jobs:
        assert each.settings == step_settings(tiny_matrix_of(each), each.step)
        assert each.settings.model.mlp_width > 0
        assert each.settings.model.head_dim > 0


def tiny_matrix_of(each: Job) -> Settings:
    return tiny(steps=each.settings.matrix.steps, seeds=each.settings.matrix.seeds)


def test_a_single_run_is_the_model_as_configured() -> None:
    jobs = single(RA_MLA_RA="y", RA_MLA_RA_WINDOW="5", SEEDS="1-3").jobs
    assert [j.seed for j in jobs] == [1, 2, 3]
    assert [j.run_dir for j in jobs] == [f"single/seed{n}" for n in (1, 2, 3)]
    x = jobs[0].settings.mechanisms
    assert (x.ra, x.ra_window, jobs[0].step) == (True, 5, None)
    assert jobs[0].settings.model.mlp_width == 40


def test_a_single_run_solves_its_widths() -> None:
    matched = single(RA_MLA_MATCH_STEP="2", RA_MLA_RA="y").jobs[0]
    assert matched.settings.model.mlp_width == 60
    assert matched.origins["mlp_width"] == "solved"
    ratio = single(RA_MLA_MLP_RATIO="1.5").jobs[0]
    assert ratio.settings.model.mlp_width == 36


@pytest.mark.parametrize("value", [str(NEXT), "0,999", "smallest", "-1"])
def test_a_step_to_match_must_exist(value: str) -> None:
    assert single(RA_MLA_MATCH_STEP="largest").jobs
    with pytest.raises(
        ValueError, match=f"RA_MLA_MATCH_STEP='{value}' is neither a step"
    ):
        single(RA_MLA_MATCH_STEP=value)


def test_an_arm_that_is_impossible_here_does_not_stop_the_largest_arms_control() -> (
    None
):
    narrow = {"RA_MLA_LATENT_DIM": "60"}  # wider than the MLP: no step 27
    with pytest.raises(ValueError, match="step 27: per_head_scalar"):
        plan(STEPS="20,27", SEEDS="1", **narrow)
    control, *others = plan(STEPS="20,0-19,21-26,28-33", SEEDS="1", **narrow).jobs
    sizes = [budget(each.settings).parameters for each in others]
    assert budget(control.settings).parameters > max(sizes)
    with pytest.raises(ValueError, match="step 3: MLP to attention gate"):
        plan(STEPS="3", SEEDS="1", GPT2_N_LAYER="1")
    assert plan(STEPS="20", SEEDS="1", GPT2_N_LAYER="1").jobs


def test_an_unknown_step_is_refused_by_name() -> None:
    with pytest.raises(
        ValueError,
        match=f"command line: CONFIG_RA_MLA_ABLATION_STEPS: there is no step {NEXT}, "
        f"{NEXT + 6}; steps are 0 to {NEXT - 1}",
    ):
        plan(STEPS=f"0,{NEXT},{NEXT + 6}")
    with pytest.raises(ValueError, match="there is no step mlaa; nearest: mla"):
        plan(STEPS="0,mlaa")


@pytest.mark.parametrize(
    ("symbol", "value", "reason"),
    [
        ("SEEDS", "", "neither a number"),
        ("SEEDS", "1,1", "has a number twice"),
        ("SEEDS", "1,x", "'x' is neither a number"),
        ("SEEDS", "1-99999", "a range of 99,999 numbers; at most 10,001"),
        ("RA_MLA_ABLATION_STEPS", "", "neither a number"),
        ("RA_MLA_ABLATION_STEPS", "0,5,3-6", "has a step twice"),
        ("RA_MLA_ABLATION_STEPS", "6-3", "not an ascending range"),
    ],
)
def test_lists_that_make_no_sense_are_refused(
    symbol: str, value: str, reason: str
) -> None:
    with pytest.raises(ValueError, match=f"command line: CONFIG_{symbol}: .*{reason}"):
        plan(**{symbol: value})


# ---- the A/A control --------------------------------------------------------------


def test_a_control_is_the_baseline_through_other_kernels() -> None:
    without, jobs = (
        plan(STEPS="0,5", SEEDS="1,2", CONTROLS=x).jobs for x in ("n", "y")
    )
    control = [each for each in jobs if each.is_control]
    assert [j.run_dir for j in jobs[:5:2]] == [
        "step00-baseline/seed1",
        "step00-baseline-aa/seed1",
        "step05-ra/seed1",
    ]
    assert [(j.parent, j.parent_name, j.seed) for j in control] == [
        (0, "baseline", seed) for seed in (1, 2)
    ]
    changed = diff_fields(jobs[0].settings.to_dict(), control[0].settings.to_dict())
    assert changed == [("resources.other_kernels", False, True)]
    rest = [(j.run_dir, j.hash) for j in jobs if not j.is_control]
    assert rest == [(j.run_dir, j.hash) for j in without]  # old folders go on
    assert len({j.hash for j in jobs}) == len(jobs)
    assert job_from_json(json.loads(json.dumps(control[0].to_json()))) == control[0]


@pytest.mark.parametrize(
    ("symbols", "why"),
    [
        ({"STEPS": "5"}, "its baseline, step 0, is not among RA_MLA_ABLATION_STEPS"),
        ({"TIME": "5m"}, "with TIME_BUDGET slower kernels make fewer updates"),
        ({"GPT2_DROPOUT": "0.1"}, "with GPT2_DROPOUT other kernels drop other weights"),
    ],
)
def test_a_control_that_could_say_nothing_is_left_out(
    symbols: dict[str, str], why: str
) -> None:
    found = plan(**{"STEPS": "0,5", "CONTROLS": "y", **symbols})
    assert not any(each.is_control for each in found.jobs)
    (left_out,) = found.left_out
    assert (left_out.name, left_out.reason) == ("A/A control", f"CONTROLS=y, but {why}")


def test_a_test_matrix_has_a_control_of_its_baseline() -> None:
    preset = {"TEST_MATRIX_MODE": "y", "TEST_MATRIX_MUON": "y", "SEEDS": "1"}
    jobs = make_plan(make_config(**preset, CONTROLS="y")).jobs
    assert [(j.run_dir, j.parent_name) for j in jobs] == [
        ("adamw-none/seed1", None),
        ("adamw-none-aa/seed1", "adamw-none"),
        ("muon-none/seed1", "adamw-none"),
    ]


def test_every_preset_for_gpus_has_a_control_but_single_runs() -> None:
    for path in sorted((ROOT / "defconfigs").iterdir()):
        lines = path.read_text().splitlines()
        on_gpu = any(line.startswith("CONFIG_GPU_MEMORY_GB=") for line in lines)
        single = not {
            f"CONFIG_{m}_MODE=y" for m in ("RA_MLA_ABLATION", "TEST_MATRIX")
        } & {*lines}
        assert ("CONFIG_CONTROLS=y" in lines) == (on_gpu and not single), path


def test_a_single_run_has_no_control() -> None:
    with pytest.raises(ValueError, match="CONTROLS"):
        single(CONTROLS="y")


def test_only_the_plan_asks_for_other_kernels() -> None:
    with pytest.raises(ValueError, match="OTHER_KERNELS"):
        plan(OTHER_KERNELS="y")


# ---- refusals ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("symbols", "said"),
    [
        ({"TIME": "banana"}, "TIME_BUDGET='banana' is not a time"),
        ({"GPT2_MIN_LR": "1"}, "GPT2_MIN_LR=1 is above LEARNING_RATE"),
        (
            {"STEPS": f"0,{NEXT}"},
            "command line: CONFIG_RA_MLA_ABLATION_STEPS: there is no",
        ),
    ],
)
def test_a_refusal_says_once_where_the_setting_is_from(
    symbols: dict[str, str], said: str
) -> None:
    with pytest.raises(ValueError) as error:
        plan(**symbols)
    assert str(error.value).startswith(said)
    assert str(error.value).count("command line") == 1


# ---- origins ----------------------------------------------------------------------


def test_origins_say_who_set_a_field() -> None:
    ours = job(STEPS="12", MAX_ITERS="300", WARMUP_STEPS="10").origins
    assert set(ours) == set(FIELDS)
    assert ours["max_iters"] == "command line"
    assert ours["steps"] == "command line"
    assert ours["learning_rate"] == "default"
    assert ours["attention"] == "step 8"
    assert ours["ra"] == "step 11"
    assert ours["mlp_ratio"] == "step 9"
    assert ours["cross_token"] == "step 12"
    assert ours["output_gate"] == "step 0"
    assert {f for f, origin in ours.items() if origin == "solved"} == {
        "mlp_width",
        "mlp_gate_dim",
        "cross_rank",
    }
    # A derived symbol has the origin of what it was derived from.
    assert ours["tokenizer"] == "command line"


def test_a_width_that_was_asked_for_is_not_called_solved() -> None:
    ours = job(STEPS="3", RA_MLA_MLP_GATE_DIM="2")
    assert ours.settings.mechanisms.mlp_gate_dim == 2
    assert ours.origins["mlp_gate_dim"] == "command line"
