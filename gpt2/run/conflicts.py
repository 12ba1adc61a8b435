"""Runs of a results folder that do not fit the plan: which, and how they differ.

Torch-free. A run is never continued with other settings than it was begun with.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gpt2.plan.jobs import Job, Plan, identity_of, identity_of_json
from gpt2.plan.names import MATRIX_FILE
from gpt2.plan.planning import step_job
from gpt2.run.last_call import last_call
from gpt2.run.results_dir import (
    MatrixError,
    begun_in,
    kept_jobs,
    read_matrix_file,
)
from gpt2.settings.rerun_commands import matrix_command
from gpt2.settings.shown import shown_name, shown_value
from lib import atomic_files
from lib.hashing import diff_fields
from lib.jobs import run_files

MOST_LINES = 40  # of the differences that a message lists


@dataclass(frozen=True, slots=True)
class Conflict:
    """A run on disk that differs from the one planned under its name."""

    run_dir: str
    reason: str
    fields: tuple[tuple[str, Any, Any], ...] = ()


def conflicts(output_dir: Path, jobs: Iterable[Job]) -> list[Conflict]:
    """Runs on disk whose settings differ from the planned ones."""
    found = (_conflict(output_dir / job.run_dir, job) for job in jobs)
    return [conflict for conflict in found if conflict is not None]


def _conflict(run_dir: Path, job: Job) -> Conflict | None:
    path = run_dir / run_files.JOB_FILE
    if run_files.only_prepared(run_dir):
        return None
    if not path.exists():
        begun = (run_dir / run_files.STATUS_FILE).exists()
        reason = f"it was begun, but its {path.name} is missing"
        return Conflict(job.run_dir, reason) if begun else None
    try:
        old = atomic_files.read_json(path)
        if old["hash"] == job.hash:
            return _other_use(old, job)
        before = identity_of_json(old)
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Conflict(job.run_dir, f"its {path.name} is damaged ({error})")
    changed = diff_fields(before, identity_of(job.settings, job.seed), exact=True)
    if not changed:
        reason = f"its {path.name} was edited: its hash is not that of its settings"
        return Conflict(job.run_dir, reason)
    return Conflict(job.run_dir, "its settings were different", tuple(changed))


def _other_use(old: Mapping[str, Any], job: Job) -> Conflict | None:
    """The same training, but compared with another step, since STEPS_FILE has changed,
    or with another use, since LR_TUNING_SEEDS has."""
    if (was := bool(old.get("tuning"))) != job.tuning:
        reason = "LR_TUNING_SEEDS: a run that chose a rate must not be in a verdict"
        return Conflict(job.run_dir, reason, (("tuning", was, job.tuning),))
    if old["parent"] == job.parent:
        return None
    reason = "it was compared with another step"
    return Conflict(job.run_dir, reason, (("parent", old["parent"], job.parent),))


def _kept_own(plan: Plan) -> Iterator[Conflict]:
    """Earlier runs, not planned now, of the user's steps that STEPS_FILE has changed or
    renamed since: the folder's copy of the file would not describe them."""
    own = plan.registry.own
    for old in kept_jobs(plan.output_dir, plan.jobs) if own else ():
        step, seed, run_dir = old.get("step"), old.get("seed"), old["run_dir"]
        if step not in own:
            continue
        job = step_job(plan.base, {}, step, plan.registry)
        if (folder := run_dir.partition("/")[0]) != job.run_dir:
            reason = f"step {step} has another name in STEPS_FILE now"
            yield Conflict(run_dir, reason, (("folder", folder, job.run_dir),))
        elif run_dir == f"{job.run_dir}/seed{seed}":
            job = replace(job, seed=int(str(seed)), run_dir=run_dir)
            yield from conflicts(plan.output_dir, [job])


def check(plan: Plan, *, replaced: bool = False) -> None:
    """Refuse a plan that earlier runs of the folder do not fit, before any starts.

    replaced: the planned runs start again, so that only the others have to fit. Raises
    MatrixError with the differing fields and what the user can do.
    """
    output_dir = plan.output_dir
    found = [] if replaced else conflicts(output_dir, plan.jobs)
    found += _kept_own(plan)
    lines = _explain(found)
    rerun = f"`{matrix_command('rerun')}`"
    if not found and kept_jobs(output_dir, plan.jobs):
        base = read_matrix_file(output_dir).get("base") or {}
        changed = diff_fields(base, identity_of(plan.base, 0))
        if changed:
            lines = [
                "the other runs in this folder have different settings",
                *_rows(changed),
            ]
            rerun += ", with STEPS, SEEDS and ONLY that include all of them"
    if lines:
        shown = "\n".join(lines[:MOST_LINES])
        if len(lines) > MOST_LINES:
            shown += f"\n    and {len(lines) - MOST_LINES} more lines"
        call = last_call(output_dir)
        last = f" (the last call there: `{call}`)" if call else ""
        raise MatrixError(
            f"{output_dir} contains runs with different settings; nothing was "
            f"started.\n{shown}\n"
            f"To continue: restore these settings{last}, choose another folder with "
            "OUTPUT_DIR=..., or replace all of these runs in one call, which keeps the "
            f"old ones aside: {rerun}"
        )


def refusal(plan: Plan) -> str:
    """The message of check(); empty if nothing was begun or all runs fit."""
    folder = plan.output_dir
    if not (folder / MATRIX_FILE).is_file() and not begun_in(folder):
        return ""
    try:
        check(plan)
    except (MatrixError, OSError) as error:
        return str(error)
    return ""


def _explain(found: Iterable[Conflict]) -> list[str]:
    """Each difference once, under the first run that has it."""
    alike: dict[str, list[Conflict]] = {}
    for conflict in found:
        alike.setdefault(f"{conflict.reason}{conflict.fields}", []).append(conflict)
    lines = []
    for first, *others in alike.values():
        more = f" and {len(others)} more" if others else ""
        lines += [f"{first.run_dir}{more}: {first.reason}", *_rows(first.fields)]
    return lines


def _rows(fields: Iterable[tuple[str, Any, Any]]) -> Iterator[str]:
    """One line per field. None, which no field that identifies a run can have as its
    value, means that the version which began the run, or this one, lacks the field."""
    version = "(continue with the commit in its manifest.json)"
    for name, old, new in fields:
        if old is None:
            change = f"is new since the run began, now {shown_value(new)} {version}"
        elif new is None:
            change = f"was {shown_value(old)}, does not exist any more {version}"
        else:
            change = f"was {shown_value(old)}, is now {shown_value(new)}"
        yield f"    {shown_name(name):<32} {change}"
