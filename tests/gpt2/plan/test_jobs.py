"""gpt2/plan/jobs.py: identity of jobs, and job.json."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from typing import Any

import pytest

from gpt2.plan.jobs import Job, job_from_json
from gpt2.plan.planning import make_plan
from gpt2.plan.steps import STEPS
from gpt2.settings.schema import FIELDS, IDENTITY_PARTS, PART_OF
from tests.gpt2.helpers import make_config
from tests.gpt2.helpers import tiny_job as job
from tests.gpt2.helpers import tiny_plan as plan
from tests.scratch import ROOT

NEXT = len(STEPS)  # the id of a step that may be added
EVERY = f"0-{NEXT - 1}"


def with_settings(base: Job, **fields: Any) -> Job:
    return dataclasses.replace(base, settings=base.settings.replace(**fields))


def test_all_steps_have_hashes_of_their_own() -> None:
    hashes = [each.hash for each in plan(STEPS=EVERY, SEEDS="1,2").jobs]
    assert len(set(hashes)) == 2 * len(STEPS)
    full = make_plan(make_config(RA_MLA_ABLATION_MODE="y", STEPS=EVERY)).jobs
    assert len({each.hash for each in full} - set(hashes)) == len(STEPS)


def test_resources_are_no_part_of_the_identity() -> None:
    base = job()
    for fields in (
        {"batch_size": 4, "gradient_accumulation": 16},
        {"batch_size": 64, "gradient_accumulation": 1},
        {"device": "cuda:1"},
        {"num_workers": 3, "prefetch_factor": 7, "persistent_workers": False},
        {"attention_backend": "reference"},
        {"compile_model": True},
        {"threads": 5},
        {"pin_memory": False},
        {"log_interval": 3, "checkpoint_interval": 4},
        {"data_dir": "elsewhere", "output_dir": "there"},
    ):
        assert with_settings(base, **fields).hash == base.hash, fields


def test_the_effective_batch_and_the_seed_are_part_of_the_identity() -> None:
    base = job()
    assert with_settings(base, batch_size=4).hash != base.hash
    assert with_settings(base, gradient_accumulation=9).hash != base.hash
    assert job(SEEDS="2").hash != base.hash


def other(value: Any, field: str) -> Any:
    """Another value of the same type, sensible or not."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, (int, float)):
        return value + 2
    allowed = FIELDS[field].metadata["allowed"] or (f"{value}x",)
    return next(a for a in allowed if a != value)


@pytest.mark.parametrize(
    "field", [f for f, part in PART_OF.items() if part in IDENTITY_PARTS]
)
def test_everything_else_changes_the_identity(field: str) -> None:
    base = job()
    value = base.settings.flat()[field]
    changed = with_settings(base, **{field: other(value, field)})
    assert changed.hash != base.hash


def test_which_arms_are_run_is_no_part_of_an_arms_identity() -> None:
    alone = job(STEPS="16", SEEDS="1")
    among = next(j for j in plan(STEPS="0,16", SEEDS="1,2").jobs if j.step == 16)
    assert among.hash == alone.hash


def test_a_hash_does_not_depend_on_the_process() -> None:
    code = (
        "import json, sys; from gpt2.plan.jobs import job_from_json; "
        "print(job_from_json(json.load(sys.stdin)).hash)"
    )
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            cwd=ROOT,
            env={**os.environ, "PYTHONHASHSEED": seed},
            input=json.dumps(job().to_json()),
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() == job().hash


@pytest.mark.parametrize("number", [0, 1, 16, 28, 31])
def test_a_job_survives_its_file(number: int) -> None:
    before = job(STEPS=str(number))
    after = job_from_json(json.loads(json.dumps(before.to_json())))
    assert after == before
    assert after.hash == before.hash


def edited(path: str, value: Any) -> dict[str, Any]:
    data: dict[str, Any] = json.loads(json.dumps(job().to_json()))
    *folders, last = path.split(".")
    inner = data
    for folder in folders:
        inner = inner[folder]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "reason"),
    [
        ("settings.optim.learning_rate", 1.0, "hash does not match"),
        ("settings.mechanisms.ra", False, "hash does not match"),
        ("settings.resources.batch_size", 9, "hash does not match"),
        ("seed", 7, "hash does not match"),
        ("hash", "0" * 16, "hash does not match"),
        ("hash", None, "job without hash"),
        ("origins", None, "job without origins"),
        ("schema", 2, "schema 2, not 1"),
        ("schema", None, "schema None"),
        ("settings.optim.learning_rate", None, "learning_rate"),
        ("settings.optim.extra", 1, "extra"),
        ("settings.optim.max_iters", True, "True is not a whole number"),
        ("settings.optim.learning_rate", float("nan"), "not finite|nan"),
        ("settings.mechanisms.attention", "gqa", "one of mha, mla, mla_rope"),
        ("settings.model", None, "model"),
        ("settings.model", 5, "a part is not a mapping"),
        ("settings", [], "settings of another version"),
    ],
)
def test_a_job_that_was_tampered_with_is_refused(
    path: str, value: Any, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        job_from_json(edited(path, value))


def test_resources_of_a_job_may_be_changed_by_hand() -> None:
    changed = job_from_json(edited("settings.resources.device", "cuda:0"))
    assert changed.settings.resources.device == "cuda:0"
