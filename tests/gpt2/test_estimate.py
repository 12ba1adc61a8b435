"""gpt2/estimate.py: what the disk has to hold, from recorded probes."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2 import estimate
from gpt2.budget import budget
from gpt2.plan import Plan, make_plan
from lib import rundir
from tests.tinymatrix import TINY, write_config

MIB = 2**20


def planned(tmp_path: Path, **lines: str) -> Plan:
    more = "".join(f"CONFIG_{name}={value}\n" for name, value in lines.items())
    config = write_config(tmp_path, TINY.replace('"results"', f'"{tmp_path}"') + more)
    return make_plan(config)


def probed(plan: Plan) -> None:
    """As if each cell's checkpoint took 5 MiB, and what stays of its runs 2."""
    sizes = {"checkpoint_bytes": 5 * MIB, "disk_bytes": 2 * MIB, "seconds": 1.0}
    cells = [{"hash": estimate.hash_of(job), **sizes} for job in plan.jobs[::2]]
    file = {"schema": estimate.SCHEMA, "cells": cells}
    rundir.atomic_write_json(plan.output_dir / estimate.FILE, file)


def test_the_disk_holds_what_stays_and_the_checkpoints_of_the_running(
    tmp_path: Path,
) -> None:
    plan = planned(tmp_path)
    probed(plan)
    for slots, checkpoints in ((1, 3), (2, 6), (9, 12)):  # of four jobs
        needed = estimate.disk_needed(tmp_path, plan.jobs, slots)
        assert needed - estimate.SPARE == (4 * 2 + checkpoints * 5) * MIB


def test_kept_checkpoints_take_their_place(tmp_path: Path) -> None:
    plan = planned(tmp_path, KEEP_CHECKPOINTS="y")
    probed(plan)  # two checkpoints of each are among what stays
    needed = estimate.disk_needed(tmp_path, plan.jobs, 2)
    assert needed - estimate.SPARE == (4 * 2 + 2 * 5) * MIB


@pytest.mark.parametrize(("keep", "copies"), [("n", 4 + 3), ("y", 4 * 3 + 1)])
def test_without_a_probe_the_weights_alone_count(
    tmp_path: Path, keep: str, copies: int
) -> None:
    plan = planned(tmp_path, KEEP_CHECKPOINTS=keep)
    jobs = [job for job in plan.jobs if job.step == 0] * 2
    weights = 4 * budget(jobs[0].settings).parameters
    needed = estimate.disk_needed(tmp_path, jobs, 1)
    assert needed - estimate.SPARE == copies * weights
