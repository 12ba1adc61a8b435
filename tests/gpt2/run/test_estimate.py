"""gpt2/run/estimate.py: what the disk has to hold, and what stays of a stopped
estimate."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path

import pytest

from gpt2.plan.budget import budget
from gpt2.plan.jobs import Plan
from gpt2.plan.names import ESTIMATES_FILE
from gpt2.plan.planning import make_plan
from gpt2.run import estimate
from gpt2.run.results_dir import PROBE_MARK, PROBES, STOP_FILE, ask_to_stop
from gpt2.run.runner import make_estimate
from lib import atomic_files
from lib.jobs.live_table import PlainView
from lib.jobs.options import Options
from lib.jobs.scheduler import Scheduler
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
    atomic_files.atomic_write_json(plan.output_dir / ESTIMATES_FILE, file)


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


class Stopping(PlainView):
    """`make stop` from another terminal, before the first probe has begun."""

    folder: Path

    def refresh(self, board: Scheduler) -> None:
        ask_to_stop(self.folder)


def test_a_stopped_estimate_leaves_the_one_before_and_no_request(
    tmp_path: Path,
) -> None:
    plan = dataclasses.replace(planned(tmp_path), output_dir=tmp_path / "results")
    view = Stopping(io.StringIO())
    root = view.folder = plan.output_dir
    options = Options(stop_file=root / STOP_FILE)
    assert make_estimate(plan, {}, options, view) == {}
    probed(plan)
    before = (root / ESTIMATES_FILE).read_bytes()

    (root / STOP_FILE).touch()  # a runner that was killed left these
    atomic_files.atomic_write_text(root / f"{PROBES}old" / "weights", "")
    (root / f"{PROBES}old" / PROBE_MARK).touch()
    atomic_files.atomic_write_text(root / f"{PROBES}mine" / "notes", "kept: no probe's")
    (root / f"{PROBES}link").symlink_to(root / f"{PROBES}old")
    assert make_estimate(plan, {}, options, view) == {}
    assert (root / ESTIMATES_FILE).read_bytes() == before
    left = sorted(path.name for path in root.glob(f"{PROBES}*"))
    assert left == [f"{PROBES}link", f"{PROBES}mine"], "only what probes left may go"
    assert (root / f"{PROBES}mine" / "notes").read_text() == "kept: no probe's"
    assert not (root / STOP_FILE).exists()
