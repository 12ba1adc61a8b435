"""Whose a run directory is: the job that stands in it, and no other."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2.plan.jobs import Job
from gpt2.settings.schema import IDENTITY_PARTS
from gpt2.train.checkpoint import FOLDER
from gpt2.train.failures import Refused
from lib.files import Linked, refuse_link
from lib.hashing import diff_fields
from lib.jobs.run_files import (
    JOB_FILE,
    LOG_FILE,
    METRICS_FILE,
    STATUS_FILE,
    atomic_write_json,
    drop_bad_lines,
    read_json,
    read_status,
    remove_leftovers,
)


def claim(job: Job, run_dir: Path) -> None:
    """Write job.json, clear half-written files away and drop damaged lines of
    metrics.jsonl, saying which; hold the lock for this.

    Raises Refused, field by field, if the directory is another run's, if it is none of
    a run's, and if a link in it would lead what is written elsewhere.
    """
    try:
        for name in (FOLDER, METRICS_FILE):
            refuse_link(run_dir / name)
    except Linked as error:
        raise Refused(str(error)) from None
    path, mine = run_dir / JOB_FILE, job.to_json()
    if strangers := _strangers(run_dir):
        raise Refused(
            f"{run_dir} is no run directory: it holds {strangers[0]}, for one, and no "
            f"{JOB_FILE}. Nothing in it was touched; use another"
        )
    theirs = _read_job(path)
    if theirs and theirs.get("hash") != job.hash:
        differences = "\n".join(
            f"  {name}: {old!r} there, {new!r} asked for"
            for name, old, new in diff_fields(_comparable(theirs), _comparable(mine))
        )
        raise Refused(
            f"{run_dir} holds another run (hash {theirs.get('hash')}, not "
            f"{job.hash}):\n{differences}\nSet these back, or use another run directory"
        )
    remove_leftovers(run_dir)
    if read_status(run_dir)["status"] != "done":
        for line in drop_bad_lines(run_dir / METRICS_FILE):
            print(f"dropped from {METRICS_FILE}, as no record: {line}", flush=True)
    if theirs != mine:
        atomic_write_json(path, mine)


def _strangers(run_dir: Path) -> list[str]:
    """What a directory holds that no run has; [] if there is anything that one has."""
    names = sorted(path.name for path in run_dir.iterdir())
    ours = {JOB_FILE, STATUS_FILE, METRICS_FILE, LOG_FILE, FOLDER}
    return [] if ours & set(names) else [n for n in names if n[:1] != "."]


def _read_job(path: Path) -> dict[str, Any]:
    """job.json as it stands; {} if there is none or it is damaged (the stamps of
    the checkpoints still tell whose they are)."""
    try:
        found = read_json(path)
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _comparable(job: Mapping[str, Any]) -> dict[str, Any]:
    """What the hash is of, from the JSON of a job."""
    settings = job.get("settings", {})
    resources = settings.get("resources", {})
    names = ("batch_size", "gradient_accumulation")
    return {
        **{part: settings.get(part) for part in IDENTITY_PARTS},
        "seed": job.get("seed"),
        "effective batch": " x ".join(str(resources.get(name)) for name in names),
        "A/A control": bool(resources.get("other_kernels")),
    }
