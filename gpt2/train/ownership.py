"""Check that a run directory belongs to this job, before anything is written to it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2.plan.jobs import Job
from gpt2.settings.records import identity_parts
from gpt2.settings.shown import difference_lines
from gpt2.train.checkpoint import FOLDER
from gpt2.train.failures import Refused
from lib.atomic_files import (
    atomic_write_json,
    drop_bad_lines,
    read_json,
    remove_leftovers,
)
from lib.files import Linked, refuse_link
from lib.jobs.run_files import (
    JOB_FILE,
    LOG_FILE,
    METRICS_FILE,
    STATUS_FILE,
    read_status,
)


def claim(job: Job, run_dir: Path) -> None:
    """Write job.json, remove half-written files and damaged lines of metrics.jsonl,
    printing which. The caller holds the run's lock.

    Raises Refused if the directory is of another run (with the fields that differ), is
    not a run directory, or contains a link that would lead a file elsewhere.
    """
    try:
        for name in (FOLDER, METRICS_FILE):
            refuse_link(run_dir / name)
    except Linked as error:
        raise Refused(str(error)) from None
    path, mine = run_dir / JOB_FILE, job.to_json()
    if strangers := _strangers(run_dir):
        raise Refused(
            f"{run_dir} is not a run directory: it contains {strangers[0]}, and no "
            f"{JOB_FILE}. Nothing in it was changed; use another directory"
        )
    theirs = _read_job(path)
    if theirs and theirs.get("hash") != job.hash:
        records = _comparable(theirs), _comparable(mine)
        differences = difference_lines(*records, "there", "configured")
        raise Refused(
            f"{run_dir} contains another run (hash {theirs.get('hash')}, not "
            f"{job.hash}):\n{differences}\nRestore these settings, or use "
            "another run directory"
        )
    remove_leftovers(run_dir)
    if read_status(run_dir)["status"] != "done":
        for line in drop_bad_lines(run_dir / METRICS_FILE):
            print(f"removed from {METRICS_FILE}, not a record: {line}", flush=True)
    if theirs != mine:
        atomic_write_json(path, mine)


def _strangers(run_dir: Path) -> list[str]:
    """Names of files in a directory that has none of a run's files; [] otherwise."""
    names = sorted(path.name for path in run_dir.iterdir())
    ours = {JOB_FILE, STATUS_FILE, METRICS_FILE, LOG_FILE, FOLDER}
    return [] if ours & set(names) else [n for n in names if n[:1] != "."]


def _read_job(path: Path) -> dict[str, Any]:
    """The content of job.json; {} if it is missing or damaged (the checkpoints also say
    which run they belong to)."""
    try:
        found = read_json(path)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _comparable(job: Mapping[str, Any]) -> dict[str, Any]:
    """The fields behind the hash, from the JSON of a job."""
    settings = job.get("settings", {})
    resources = settings.get("resources", {})
    names = ("batch_size", "gradient_accumulation")
    return {
        **identity_parts(settings),
        "seed": job.get("seed"),
        "effective batch": " x ".join(str(resources.get(name)) for name in names),
        "A/A control": bool(resources.get("other_kernels")),
    }
