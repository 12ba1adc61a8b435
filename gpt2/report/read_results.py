"""Read the run directories of a matrix as data: rows, curves, and unusable files.

Nothing in them is trusted or executed: results may be copied, unfinished, damaged or
another person's. An unusable file is listed in ``left_out``; the row of its run stays,
with the status "unreadable" if the run's own status is lost. Paths are those found on
disk, relative to the matrix, so a copied directory reads the same.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from gpt2.plan.jobs import was_edited
from gpt2.plan.names import ESTIMATES_FILE, MATRIX_FILE
from gpt2.report.estimates import score
from gpt2.report.evaluations import (
    EVAL_FILE,
    PREFIX,
    named_by_items,
    read_evaluation,
)
from gpt2.report.generation import (
    INFERENCE_FILE,
    common_conditions,
    read_generation,
)
from gpt2.report.results import (
    NUMBERS,
    LeftOutRun,
    MatrixResults,
    Row,
    Run,
    coordinates_of,
    extra_columns,
)
from lib.jobs.run_files import (
    JOB_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    STATUS_FILE,
    STATUSES,
    effective_status,
    only_prepared,
)
from lib.safe_json import (
    Unusable,
    as_dict,
    clean,
    number,
    read_foreign_json,
    read_records,
    text,
    whole,
)

UNREADABLE = "unreadable"
MERGED_FILE = "merged.json"  # of folders merged by gpt2/report/merge.py
RUN_FILES = (JOB_FILE, STATUS_FILE, MANIFEST_FILE, METRICS_FILE)
MAX_DEPTH = 3  # maximum depth of run directories below the matrix

RUN_FIRST = "run `make` first, or name a results folder by RESULTS="
MAX_ALARMS = 10  # per run; a trainer raises each kind once
MAX_EVALUATIONS = 100_000  # per run that are checked one by one
LOSS_OF = {"eval": "val_loss", "train": "loss"}
T = TypeVar("T")


def read_matrix(root: str | Path, *, curves: bool = True) -> MatrixResults:
    """Read everything usable below a results directory (or a single run directory).

    Runs that matrix.json lists and that have no directory get a row, too. curves: also
    read metrics.jsonl. Raises ValueError only if root is not a directory.
    """
    root = Path(root)
    if not root.is_dir():
        why = "it is not a folder" if root.exists() else "it does not exist"
        raise ValueError(f"there are no results at {root}: {why}; {RUN_FIRST}")
    matrix = MatrixResults(root)
    planned = _planned(matrix)
    found = {}
    for directory in _run_directories(matrix):
        run = _read_run(matrix, directory, planned, curves)
        if run is not None:
            found[run.run_dir] = run
    for run_dir, job in planned.items():
        if run_dir not in found:
            found[run_dir] = Run(_row(job, {}, {}, run_dir), job, on_disk=False)
    _drop_copies(matrix, found)
    order = {run_dir: place for place, run_dir in enumerate(planned)}
    matrix.runs = sorted(found.values(), key=lambda run: _place(run, order))
    _add_measurements(matrix)
    estimate = _load(matrix, root / ESTIMATES_FILE)
    matrix.estimates = score(as_dict(estimate), matrix.rows)
    merged = as_dict(_load(matrix, root / MERGED_FILE)).get("notes")
    matrix.merged = [clean(x, 2000) for x in merged] if isinstance(merged, list) else []
    return matrix


# ---- finding and reading --------------------------------------------------------


def _run_directories(matrix: MatrixResults) -> Iterator[Path]:
    """Directories that contain a file of a run; links are not followed."""
    for base, directories, files in os.walk(matrix.root, followlinks=False):
        path = Path(base)
        if any(name in files for name in RUN_FILES):
            yield path
            directories.clear()
        if len(path.relative_to(matrix.root).parts) >= MAX_DEPTH:
            directories.clear()
        directories[:] = sorted(
            name for name in directories if not name.startswith(".") and name != "plots"
        )
        for name in directories:
            if (path / name).is_symlink():
                matrix.leave_out(path / name, "links are not followed")


def _planned(matrix: MatrixResults) -> dict[str, dict[str, Any]]:
    """Jobs that matrix.json lists, by run directory; its settings, and the cells that
    it leaves out, are recorded."""
    listed = as_dict(_load(matrix, matrix.root / MATRIX_FILE))
    matrix.base = as_dict(listed.get("base"))
    for cell in _dicts(listed.get("left_out")):
        name, reason = text(cell.get("name")), text(cell.get("reason"))
        if name and reason:
            matrix.left_out.append(LeftOutRun(name, reason))
    return {
        Path(run_dir).as_posix(): job
        for job in _dicts(listed.get("jobs"))
        if isinstance(run_dir := job.get("run_dir"), str) and _is_inside(run_dir)
    }


def _dicts(values: object) -> list[dict[str, Any]]:
    return [as_dict(value) for value in values] if isinstance(values, list) else []


def _is_inside(run_dir: str) -> bool:
    path = Path(run_dir)
    return not path.is_absolute() and ".." not in path.parts and "\0" not in run_dir


def _read_run(
    matrix: MatrixResults, directory: Path, planned: Mapping[str, dict], curves: bool
) -> Run | None:
    run_dir = directory.relative_to(matrix.root).as_posix()
    job = _load(matrix, directory / JOB_FILE)
    if not _is_job(job):
        if job is not None:
            matrix.leave_out(directory / JOB_FILE, "does not describe a run")
        job = planned.get(run_dir)
        if job is None:
            matrix.leave_out(directory, "has no readable job.json")
            return None
    status = _load_status(matrix, directory)
    manifest = as_dict(_load(matrix, directory / MANIFEST_FILE))
    theirs = manifest.get("hash")
    if theirs is not None and theirs != job.get("hash"):
        matrix.leave_out(
            directory / MANIFEST_FILE, "belongs to another run (its hash differs)"
        )
        status, manifest = {"status": UNREADABLE, "message": "manifest differs"}, {}
    if was_edited(job):
        reason = "its settings do not have its hash: edited, or of another version"
        matrix.leave_out(directory / JOB_FILE, reason)
    row, run_hash = _row(job, status, manifest, run_dir), text(job.get("hash"))
    path = directory / EVAL_FILE
    evaluation = _load_measured(matrix, path, run_hash, read_evaluation) or {}
    path = directory / INFERENCE_FILE
    generation = _load_measured(matrix, path, run_hash, read_generation)
    run = Run(row, job, manifest, evaluation=evaluation, generation=generation)
    if curves:
        read_curves(matrix, run)
    return run


def _is_job(job: object) -> bool:
    if not isinstance(job, dict) or not isinstance(job.get("name"), str):
        return False
    step = job.get("step")
    return whole(job.get("seed")) is not None and (
        step is None or whole(step) is not None
    )


def _load_status(matrix: MatrixResults, directory: Path) -> dict[str, Any]:
    path = directory / STATUS_FILE
    if not path.exists():
        return {"status": "planned"}
    status = _load(matrix, path)
    if isinstance(status, dict) and status.get("status") in STATUSES:
        # In a folder of another person lock and process may be anything.
        with suppress(OSError, ValueError, TypeError, OverflowError):
            if only_prepared(directory):
                return {"status": "planned"}
            if status["status"] == "running":
                status["status"] = effective_status(directory)
        return status
    if status is not None:
        matrix.leave_out(path, "has no known status")
    return {"status": UNREADABLE, "message": "damaged status.json"}


def _load_measured(
    matrix: MatrixResults,
    path: Path,
    run_hash: str | None,
    read: Callable[[Any, str | None], T],
) -> T | None:
    """Measurements that a later command left next to a run; None without any."""
    found = _load(matrix, path)
    try:
        return None if found is None else read(found, run_hash)
    except Unusable as error:
        matrix.leave_out(path, str(error))
        return None


def _add_measurements(matrix: MatrixResults) -> None:
    """Columns of what later commands measured, where it can be compared."""
    named = named_by_items([run.evaluation for run in matrix.runs])
    timed = [run.generation for run in matrix.runs if run.generation is not None]
    common = common_conditions(timed)
    for run, evaluation in zip(matrix.runs, named, strict=True):
        run.evaluation.clear()
        run.evaluation.update(evaluation)
        run.row.update({f"{PREFIX}{name}": x.mean for name, x in evaluation.items()})
        if run.generation is None or not run.generation.figures:
            continue
        if run.generation.conditions == common:
            run.row.update(run.generation.figures)
            continue
        reason = f"measured with {run.generation.conditions}, but others with {common}"
        matrix.leave_out(matrix.root / run.run_dir / INFERENCE_FILE, reason)


def _load(matrix: MatrixResults, path: Path) -> Any:
    """JSON value of a file; None if it is missing, or with the reason in left_out."""
    if not path.exists():
        return None
    try:
        value = read_foreign_json(path)
        if value is None:
            raise Unusable("is empty (null)")
        return value
    except Unusable as error:
        matrix.leave_out(path, str(error))
        return None


def _row(job: dict, status: dict, manifest: dict, run_dir: str) -> Row:
    result = as_dict(status.get("result"))
    row: Row = {
        "step": whole(job.get("step")),
        "name": text(job.get("name")) or "?",
        "title": text(job.get("title")),
        "parent": whole(job.get("parent")),
        "seed": whole(job.get("seed")),
        "status": status.get("status", "planned"),
        "failure": text(status.get("failure")),
        "message": text(status.get("message")),
        **{name: number(result.get(name)) for name in NUMBERS},
        "updates": whole(status.get("step")),
        "max_updates": whole(status.get("max_steps")),
        "effective_batch": number(manifest.get("effective_batch")),
        "verified": text(manifest.get("verified")),
        "hash": text(job.get("hash")),
        "run_dir": run_dir,
    }
    if (loss := row["val_loss"]) is not None:  # else two numbers could disagree
        row["val_perplexity"] = number(math.exp(min(loss, 700.0)))
    if row["parameters"] is None:
        row["parameters"] = number(manifest.get("parameters"))
    extra = extra_columns(result, row)
    tuning = {"tuning": True} if job.get("tuning") is True else {}
    return {**row, **extra, **coordinates_of(job), **tuning}


def _drop_copies(matrix: MatrixResults, found: dict[str, Run]) -> None:
    """Drop duplicates of a run: the one in its planned directory is kept."""
    owners: dict[tuple, Run] = {}
    for run in list(found.values()):
        key = (run.row["step"], run.row["name"], run.seed)
        other = owners.setdefault(key, run)
        if other is run:
            continue
        at_home = run.job.get("run_dir") == run.run_dir
        is_better = run.on_disk and (at_home or not other.on_disk)
        owners[key], loser = (run, other) if is_better else (other, run)
        del found[loser.run_dir]
        if loser.on_disk:
            matrix.leave_out(loser.run_dir, f"duplicate of {owners[key].run_dir}")


def _place(run: Run, order: Mapping[str, int]) -> tuple:
    """Sort key: steps by number; other cells as planned, unplanned ones last."""
    row = run.row
    place = order.get(run.run_dir, len(order))
    if row["step"] is not None:
        points = [(isinstance(v, str), v) for v in run.coordinates.values()]
        name = row["name"].partition("/")[0]
        return (0, row["step"], 0, name, points, row["seed"], row["run_dir"])
    return (1, 0, place, row["name"], row["seed"] or 0, row["run_dir"])


# ---- records, one per line ------------------------------------------------------


def read_curves(matrix: MatrixResults, run: Run) -> None:
    """Read evaluations and training records; of repeated updates the last one
    counts, and different values of one update are noted."""
    evals: dict[int, dict[str, float]] = {}
    trains: dict[int, dict[str, float]] = {}
    noted = len(matrix.left_out)
    path = matrix.root / run.run_dir / METRICS_FILE
    for record in records_of(matrix, path):
        step, kind = whole(record.get("step")), record.get("kind")
        loss = LOSS_OF.get(str(kind))
        if loss is not None and step is not None:
            curve = evals if kind == "eval" else trains
            values = {k: v for k, v in record.items() if number(v) is not None}
            if curve.get(step, values).get(loss) != values.get(loss):
                reason = f"several values of {loss} at update {step}: the last counts"
                matrix.leave_out(path, reason)
            curve[step] = values
        elif kind == "alarm" and len(run.alarms) < MAX_ALARMS:
            run.alarms.append(f"update {step}: {text(record.get('message'))}")
    if run.row["status"] == "done" and len(matrix.left_out) == noted:
        _note_missing(matrix, run, [x for x in evals if "val_loss" in evals[x]])
    _check_result(matrix, run, evals)
    run.evals.extend(evals[step] for step in sorted(evals))
    run.trains.extend(trains[step] for step in sorted(trains))


def _check_result(
    matrix: MatrixResults, run: Run, evals: Mapping[int, dict[str, float]]
) -> None:
    """Make a run unreadable if its result is not what its records end with: one of the
    two files is of another run, or was changed."""
    stated = run.row["val_loss"]
    found = evals.get(run.row["updates"] or 0, {}).get("val_loss")
    if run.row["status"] != "done" or stated is None or found is None:
        return
    if not math.isclose(stated, found, rel_tol=1e-9):
        reason = f"val_loss is {stated:.6g}, but {found:.6g} in {METRICS_FILE}"
        matrix.leave_out(matrix.root / run.run_dir / STATUS_FILE, reason)
        run.row.update(status=UNREADABLE, message=reason)


def _note_missing(matrix: MatrixResults, run: Run, found: Collection[int]) -> None:
    """Record evaluations that are missing from the metrics of a finished run."""
    last = run.row["updates"] or 0
    interval = whole(run.part("data").get("eval_interval")) or 0
    if not 0 < last <= interval * MAX_EVALUATIONS:
        interval = max(last, 1)  # not plausible: check only the first and the last
    expected = {*range(0, last, interval), last}
    if missing := sorted(expected.difference(found)):
        matrix.leave_out(
            matrix.root / run.run_dir / METRICS_FILE,
            f"{len(missing)} of {len(expected)} evaluations of a finished run are "
            f"missing, the first at update {missing[0]}: its curve is incomplete",
        )


def records_of(matrix: MatrixResults, path: Path) -> list[dict[str, Any]]:
    """Complete records of a file, [] if it does not exist; bad lines are noted."""
    if not path.exists():
        return []
    try:
        records, bad = read_records(path)
    except Unusable as error:
        matrix.leave_out(path, str(error))
        return []
    if bad:
        matrix.leave_out(path, f"{len(bad)} bad lines were skipped, first {bad[0]}")
    return records
