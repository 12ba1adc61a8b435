"""A matrix on disk: its folder, its jobs as tasks, and the run of all of them.

Torch-free. The folder is the truth: a runner can die at any moment, and the next
one reads from the folder what is done, what goes on and what comes next.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from gpt2 import estimate
from gpt2.budget import budget
from gpt2.lengths import seconds_of
from gpt2.listing import cells, tokens_of
from gpt2.plan import Job, Plan, identity_of
from gpt2.proofs.stage import Proofs
from gpt2.schema import IDENTITY_PARTS, Settings
from gpt2.sharing import at_once, share
from lib import provenance, rundir
from lib.process import Task
from lib.scheduler import EXIT_FAILED, EXIT_OK, Options, Scheduler, View
from lib.slots import find_gpus

ROOT = Path(__file__).resolve().parents[1]
TRAINER = ROOT / "gpt2" / "train_ra_mla.py"
LAUNCHER = ROOT / "lib" / "launcher.py"
MATRIX_FILE = "matrix.json"
MATRIX_LOCK = ".lock"
STOP_FILE = ".stop"
MOST_LINES = 40  # of what differs between a folder and a plan
CERTIFICATES_FILE = "certificates.json"
REPLACED = ".replaced"  # where `make rerun` keeps what it replaces


class MatrixError(ValueError):
    """The matrix cannot be run as asked; the message says why and the ways out."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """A run on disk that is not the run planned for its place."""

    run_dir: str
    reason: str
    fields: tuple[tuple[str, Any, Any], ...] = ()


# ---- the folder -----------------------------------------------------------------


def open_folder(output_dir: Path, files: Mapping[str, str]) -> None:
    """Create the results folder with these files at once, unless it is there.

    Raises MatrixError if something else has its name.
    """
    if (output_dir / MATRIX_FILE).is_file():
        return
    if output_dir.exists():
        if not output_dir.is_dir() or not _is_empty(output_dir):
            raise MatrixError(
                f"{output_dir} is there and is no results folder (it has no "
                f"{MATRIX_FILE}); nothing in it was touched. Choose another OUTPUT_DIR"
            )
        # perhaps a link or a mounted disk, which nothing can be renamed onto
        rundir.atomic_write_text(output_dir / MATRIX_FILE, files[MATRIX_FILE])
        return
    new = output_dir.parent / f".{output_dir.name}.{secrets.token_hex(6)}.tmp"
    try:
        for name, text in files.items():
            rundir.atomic_write_text(new / name, text)
        os.rename(new, output_dir)
        rundir.fsync_directory(output_dir.parent)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise  # else another runner was quicker, and its lock will say so


def _is_empty(folder: Path) -> bool:
    """But for what a killed writer of MATRIX_FILE left, or a new file system."""
    return all(
        path.match(f".{MATRIX_FILE}.*.tmp") or path.name == "lost+found"
        for path in folder.iterdir()
    )


def matrix_lock(output_dir: Path) -> Path:
    """The lock that a runner holds."""
    return output_dir / MATRIX_LOCK


def read_matrix_file(output_dir: Path) -> dict[str, Any]:
    """matrix.json; MatrixError if there is none or it is damaged."""
    path = output_dir / MATRIX_FILE
    try:
        found = rundir.read_json(path)
    except FileNotFoundError:
        raise MatrixError(f"nothing was run yet: there is no {path}") from None
    if not isinstance(found, dict) or not isinstance(found.get("jobs"), list):
        raise MatrixError(f"{path} is no list of jobs; it was written by no runner")
    return found


def render_matrix_file(
    plan: Plan, settings: Settings, kept: Sequence[Mapping[str, Any]] = ()
) -> str:
    """The text of matrix.json: planned jobs, then those kept from before."""
    base = identity_of(settings, 0)
    record = {
        "schema": rundir.SCHEMA,
        "updated": rundir.now(),
        "base": base,
        "jobs": [job.to_json() for job in plan.jobs] + [dict(job) for job in kept],
        "left_out": [{"name": x.name, "reason": x.reason} for x in plan.left_out],
        "provenance": provenance.collect(ROOT),
    }
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


# ---- what is already there ------------------------------------------------------


def conflicts(output_dir: Path, jobs: Iterable[Job]) -> list[Conflict]:
    """Runs on disk that were begun with other settings than are planned now."""
    found = (_conflict(output_dir / job.run_dir, job) for job in jobs)
    return [conflict for conflict in found if conflict is not None]


def _conflict(run_dir: Path, job: Job) -> Conflict | None:
    path = run_dir / rundir.JOB_FILE
    if not path.exists():
        begun = (run_dir / rundir.STATUS_FILE).exists()
        reason = f"it was begun, but its {path.name} is missing"
        return Conflict(job.run_dir, reason) if begun else None
    try:
        old = rundir.read_json(path)
        if old["hash"] == job.hash:
            return None
        before = identity_of_json(old)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Conflict(job.run_dir, f"its {path.name} is damaged ({error})")
    changed = rundir.diff_fields(before, identity_of(job.settings, job.seed))
    return Conflict(job.run_dir, "its settings were different", tuple(changed))


def identity_of_json(job: Mapping[str, Any]) -> dict[str, Any]:
    """gpt2.plan.identity_of for a job.json, also one of an older version."""
    settings = job["settings"]
    parts = {name: settings[name] for name in IDENTITY_PARTS if name in settings}
    place = settings["resources"]
    effective = place["batch_size"] * place["gradient_accumulation"]
    return {**parts, "seed": job["seed"], "effective_batch": effective}


def kept_jobs(output_dir: Path, jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """Jobs of matrix.json that were begun and are not planned now: a run with
    STEPS=5 does not make the other steps' results disappear."""
    planned = {job.run_dir for job in jobs}
    return [
        old
        for old in read_matrix_file(output_dir)["jobs"]
        if isinstance(old, dict)
        and old.get("run_dir") not in planned
        and _begun(output_dir, old)
    ]


def _begun(output_dir: Path, job: Mapping[str, Any]) -> bool:
    with suppress(ValueError, KeyError, TypeError):
        run_dir = rundir.safe_join(output_dir, job["run_dir"])
        return (run_dir / rundir.JOB_FILE).exists()
    return False


def check(output_dir: Path, plan: Plan, settings: Settings) -> None:
    """Stop before anything starts if old runs do not fit what is planned.

    Raises MatrixError with the field-by-field difference and the ways out.
    """
    found = conflicts(output_dir, plan.jobs)
    lines = _explain(found)
    if not found and kept_jobs(output_dir, plan.jobs):
        base = read_matrix_file(output_dir).get("base") or {}
        changed = rundir.diff_fields(base, identity_of(settings, 0))
        if changed:
            lines = [
                "the other runs in this folder had other settings",
                *_rows(changed),
            ]
    if lines:
        shown = "\n".join(lines[:MOST_LINES])
        if len(lines) > MOST_LINES:
            shown += f"\n    and {len(lines) - MOST_LINES} lines more"
        raise MatrixError(
            f"{output_dir} holds runs of other settings; nothing was started.\n"
            f"{shown}\n"
            "Ways out: set the fields back, choose another folder with "
            "OUTPUT_DIR=..., or replace these runs with `make rerun` (which keeps "
            "the old ones aside)"
        )


def _explain(found: Iterable[Conflict]) -> list[str]:
    """Each difference once, under the first of the runs that have it."""
    alike: dict[str, list[Conflict]] = {}
    for conflict in found:
        alike.setdefault(f"{conflict.reason}{conflict.fields}", []).append(conflict)
    lines = []
    for first, *others in alike.values():
        more = f" and {len(others)} more" if others else ""
        lines += [f"{first.run_dir}{more}: {first.reason}", *_rows(first.fields)]
    return lines


def _rows(fields: Iterable[tuple[str, Any, Any]]) -> list[str]:
    return [f"    {name:<32} was {old!r}, is now {new!r}" for name, old, new in fields]


def set_aside(output_dir: Path, jobs: Iterable[Job]) -> list[tuple[str, Path]]:
    """Move the jobs' run directories away, so that they start anew; (run, new place).

    Nothing is deleted or overwritten. Raises LockHeld if one is running.
    """
    moved = []
    for job in jobs:
        run_dir = rundir.safe_join(output_dir, job.run_dir)
        if not run_dir.exists():
            continue
        if rundir.is_locked(rundir.run_lock(run_dir)):
            raise rundir.lock_held(rundir.run_lock(run_dir))
        number = 1
        while (place := output_dir / REPLACED / f"{job.run_dir}.{number}").exists():
            number += 1
        place.parent.mkdir(parents=True, exist_ok=True)
        os.rename(run_dir, place)
        moved.append((job.run_dir, place))
    return moved


# ---- running --------------------------------------------------------------------


def task_of(job: Job, output_dir: Path, verified: str) -> Task:
    """The trainer's command for a job; its job.json is written when it starts.

    verified: what its manifest is to say of its certificates.
    """
    run_dir = rundir.safe_join(output_dir, job.run_dir).absolute()
    job_file = run_dir / rundir.JOB_FILE
    words = ("--job", str(job_file), "--run-dir", str(run_dir))
    text = json.dumps(job.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    return Task(
        name=job.run_dir,
        command=(sys.executable, *_launcher(job.settings), str(TRAINER), *words),
        run_dir=run_dir,
        env={"KABLATE_VERIFIED": verified},
        files={rundir.JOB_FILE: text + "\n"},
        preloads=_preloads(job.settings),
        seconds=seconds_of(job.settings.optim.time_budget),
        max_steps=0 if job.settings.optim.time_budget else job.settings.optim.max_iters,
        cost=float(budget(job.settings).flops_training * tokens_of(job.settings)),
    )


def _preloads(settings: Settings) -> bool:
    """Whether a run may be forked from a process that has imported torch. Not where
    there are GPUs: what touches one can never be forked, and seconds are nothing
    beside the time that a GPU takes to start."""
    resources = settings.resources
    if not resources.preload or resources.ddp_gpus_per_job > 1:
        return False
    return resources.device == "cpu" or not _has_gpus()


@cache
def _has_gpus() -> bool:
    """Asked for each job; some drivers take half a second to answer."""
    return find_gpus(os.environ) is not None


def _launcher(settings: Settings) -> tuple[str, ...]:
    """What starts the trainer as several ranks."""
    ranks = settings.resources.ddp_gpus_per_job
    if ranks == 1:
        return ()
    return (str(LAUNCHER), str(ranks))


def run(
    plan: Plan,
    settings: Settings,
    copies: Mapping[str, str],
    options: Options,
    view: View,
    prove: Callable[[], Proofs],
    rerun: bool = False,
) -> int:
    """Run what is missing of a plan; the runner's exit code (lib/scheduler.py).

    copies: files to put beside matrix.json (config.py, .config), name -> text.
    prove: asked once if anything is missing; jobs whose proof fails are not run.
    rerun: set runs of these jobs aside first. Raises MatrixError, and LockHeld if
    another runner is at work here.
    """
    root = plan.output_dir
    open_folder(root, {**copies, MATRIX_FILE: render_matrix_file(plan, settings)})
    with rundir.lock(matrix_lock(root)):
        for name, place in set_aside(root, plan.jobs) if rerun else ():
            view.note(f"{name}: the old run is kept in {place}")
        _write_files(plan, settings, copies)
        stop_file = root / STOP_FILE
        stop_file.unlink(missing_ok=True)
        estimate.require_space(plan, missing(plan), len(options.slots))
        proofs = prove() if missing(plan) else Proofs()
        refused = refuse(plan, proofs, view)
        _summarise(root)
        if refused and options.fail_fast:
            return EXIT_FAILED
        jobs = [job for job in plan.jobs if job not in refused]
        tasks = timed([task_of(job, root, proofs.word) for job in jobs], jobs, root)
        tasks, options = share(tasks, jobs, root, options, view)
        code = Scheduler(tasks, options, view, Watch(root, view)).run()
        stop_file.unlink(missing_ok=True)
        return code or (EXIT_FAILED if refused else EXIT_OK)


def _write_files(plan: Plan, settings: Settings, copies: Mapping[str, str]) -> None:
    """Bring the folder's own files up to the plan, if its runs fit it."""
    root = plan.output_dir
    check(root, plan, settings)
    text = render_matrix_file(plan, settings, kept_jobs(root, plan.jobs))
    for name, content in {**copies, MATRIX_FILE: text}.items():
        rundir.atomic_write_text(root / name, content)


def prepare(plan: Plan, settings: Settings, copies: Mapping[str, str]) -> None:
    """A folder with a job.json for each missing run, for others to carry out.

    Raises as run().
    """
    root = plan.output_dir
    open_folder(root, {**copies, MATRIX_FILE: render_matrix_file(plan, settings)})
    with rundir.lock(matrix_lock(root)):
        _write_files(plan, settings, copies)
        for job in missing(plan):
            path = rundir.safe_join(root, job.run_dir) / rundir.JOB_FILE
            rundir.atomic_write_json(path, job.to_json())
        _summarise(root)


def timed(tasks: list[Task], jobs: Sequence[Job], root: Path) -> list[Task]:
    """The tasks with estimated seconds as their cost, if all have been probed."""
    known = [estimate.known(root, job) for job in jobs]
    seconds = [record["seconds"] for record in known if record is not None]
    if len(seconds) < len(tasks):
        return tasks
    pairs = zip(tasks, seconds, strict=True)
    return [replace(task, cost=float(cost)) for task, cost in pairs]


def make_estimate(
    plan: Plan,
    settings: Settings,
    copies: Mapping[str, str],
    options: Options,
    view: View,
) -> dict[str, Any]:
    """Probe each cell of a plan and write down what the whole will take.

    Raises as run().
    """
    root = plan.output_dir
    open_folder(root, {**copies, MATRIX_FILE: render_matrix_file(plan, settings)})
    with rundir.lock(matrix_lock(root)), estimate.scratch(root) as name:
        check(root, plan, settings)
        folder = Path(name)
        firsts = [group[0] for group in cells(plan.jobs)]
        tasks = [task_of(estimate.probe_job(job), folder, "skipped") for job in firsts]
        tasks, options = share(tasks, firsts, root, options, view)
        records = estimate.probe(plan, tasks, options, view, folder)
        return estimate.write(root, plan, records, at_once(records, options.slots))


def missing(plan: Plan) -> list[Job]:
    """The jobs of a plan that are not done."""
    return [job for job in plan.jobs if not _is_done(plan.output_dir / job.run_dir)]


def _is_done(run_dir: Path) -> bool:
    with suppress(OSError, ValueError):
        return bool(rundir.read_status(run_dir)["status"] == "done")
    return False


def refuse(plan: Plan, proofs: Proofs, view: View) -> list[Job]:
    """Note as failed the missing jobs whose proof failed; those jobs."""
    if proofs.table is not None:
        rundir.atomic_write_json(plan.output_dir / CERTIFICATES_FILE, proofs.table)
    refused = [job for job in missing(plan) if _cell_of(job) in proofs.failed]
    for job in refused:
        why = proofs.failed[_cell_of(job)]
        view.note(f"{job.run_dir}: NOT RUN (certificate): {why}")
        run_dir = rundir.safe_join(plan.output_dir, job.run_dir)
        rundir.atomic_write_json(run_dir / rundir.JOB_FILE, job.to_json())
        rundir.write_status(
            run_dir,
            status="failed",
            failure="certificate",
            message=why,
            max_steps=job.settings.optim.max_iters,
        )
    return refused


def _cell_of(job: Job) -> str:
    return job.run_dir.rpartition("/")[0]


class Watch:
    """Whenever a run has ended: the summary, and runs that turned out the same."""

    def __init__(self, root: Path, view: View) -> None:
        self.root, self.view = root, view
        self._told: set[str] = set()

    def __call__(self, cell: object) -> None:
        _summarise(self.root)
        for alarm in alarms(self.root):
            if alarm not in self._told:
                self._told.add(alarm)
                self.view.note(alarm)


def alarms(output_dir: Path) -> list[str]:
    """What looks wrong between the finished runs of a folder."""
    from gpt2.report.results import read_matrix
    from gpt2.report.twins import twin_alarms

    return twin_alarms(read_matrix(output_dir).runs) if output_dir.is_dir() else []


def _summarise(output_dir: Path) -> None:
    from gpt2.report.results import write_summary

    write_summary(output_dir)


def ask_to_stop(output_dir: Path) -> str:
    """Ask the runner of this folder, wherever it runs, to end gracefully; what to
    tell the user."""
    path = matrix_lock(output_dir)
    if not rundir.is_locked(path):
        return f"no runner is at work in {output_dir}"
    rundir.atomic_write_text(output_dir / STOP_FILE, "")
    held = rundir.lock_held(path)
    return f"asked pid {held.pid} on {held.host} to write checkpoints and stop"
