"""Stable phase of LR_SCHEDULE=wsd, which runs of several lengths have in common.

Up to the decay nothing in a run depends on its length. So a run that keeps the
checkpoint of its last update before the decay (KEEP_STABLE) can be the beginning of
another one that is longer, or decays in another way (STABLE_FROM): that one takes over
checkpoint, records and manifest, and resumes from there as if it had made these updates
itself. On a CPU its weights are those of a run from the first update on, bit for bit.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2.plan.jobs import Job, identity_of
from gpt2.plan.names import STABLE_FOLDER
from gpt2.settings.shown import difference_lines
from gpt2.train import checkpoint
from gpt2.train.failures import Refused
from gpt2.train.lr_schedule import stable_until
from gpt2.train.record import ALARM, AS_TRAINED
from lib.atomic_files import (
    atomic_write_json,
    atomic_write_text,
    read_json,
    read_jsonl,
)
from lib.files import hidden_name, own_folder, refuse_link
from lib.jobs.run_files import JOB_FILE, MANIFEST_FILE, METRICS_FILE

OF_LENGTH = ("max_iters", "lr_decay_share", "lr_decay_shape")
RECORDS = ("train", "eval", "epoch", ALARM, AS_TRAINED)


def kept_at(job: Job) -> int | None:
    """Update after which a run keeps its checkpoint for others; None: it does not."""
    settings = job.settings
    return stable_until(settings.optim) if settings.resources.keep_stable else None


def keep(run_dir: Path, step: int) -> None:
    """Copy the checkpoint of a step to the folder of the stable phase, unless it is
    there. Raises OSError, lib.files.Linked."""
    name = checkpoint.folder_of(step)
    source, target = run_dir / checkpoint.FOLDER / name, run_dir / STABLE_FOLDER / name
    if target.exists():
        return
    own_folder(target.parent)
    checkpoint.remove_leftovers(target.parent)
    partial = hidden_name(target)
    shutil.copytree(source, partial)
    partial.rename(target)


def take_over(job: Job, run_dir: Path, say: Callable[[str], None]) -> None:
    """Let a run that has no checkpoint yet begin with another's stable phase.

    The checkpoint is written last, so that a run that is killed before begins again.
    Raises Refused if there is no fitting checkpoint, lib.atomic_files.DiskFull.
    """
    source = job.stable_source
    if source is None or checkpoint.finished(run_dir / checkpoint.FOLDER):
        return
    try:
        found = _load(job, source)
        step = found.stamp.step
        records = [
            record
            for record in read_jsonl(source / METRICS_FILE)
            if record.get("kind") in RECORDS and record.get("step", 0) <= step
        ]
        manifest = _manifest(job, source, found.stamp)
    except Refused:
        raise
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = repr(error) if isinstance(error, KeyError) else str(error)
        raise Refused(f"{_where(job)}: {source} cannot be used: {why}") from None
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records)
    atomic_write_text(run_dir / METRICS_FILE, text)
    atomic_write_json(run_dir / MANIFEST_FILE, manifest)
    mine = replace(
        found.stamp, hash=job.hash, identity=identity_of(job.settings, job.seed)
    )
    checkpoint.save(run_dir / checkpoint.FOLDER, mine, found.weights, found.state)
    say(f"starts from the stable phase of {source}, at update {step}")


def _where(job: Job) -> str:
    return f"STABLE_FROM={job.settings.resources.stable_from}"


def _load(job: Job, source: Path) -> checkpoint.Checkpoint:
    """The last checkpoint that is before the decay of this job.

    Raises Refused, and what reading a damaged folder raises.
    """
    folder, last = source / STABLE_FOLDER, stable_until(job.settings.optim)
    where = _where(job)
    refuse_link(folder)
    paths = checkpoint.finished(folder)
    fitting = [path for path in paths if checkpoint.step_of(path.name) <= last]
    if not paths:
        raise Refused(
            f"{where}: {folder} has no checkpoint: train that run with KEEP_STABLE=y"
        )
    if not fitting:
        raise Refused(
            f"{where}: the checkpoint in {folder} is of update "
            f"{checkpoint.step_of(paths[0].name)}, but this run is stable only until "
            f"{last}"
        )
    found = checkpoint.load(fitting[-1])
    mine = _without_length(identity_of(job.settings, job.seed))
    records = _without_length(found.stamp.identity), mine
    if lines := difference_lines(*records, "there", "here"):
        raise Refused(f"{where}: {source} is of another training:\n{lines}")
    theirs = read_json(source / JOB_FILE)["settings"]["resources"]["log_interval"]
    if theirs != (ours := job.settings.resources.log_interval):
        raise Refused(
            f"{where}: its records are {theirs} updates apart, but "
            f"GPT2_LOG_INTERVAL={ours}"
        )
    return found


def _without_length(identity: Mapping[str, Any]) -> dict[str, Any]:
    optim = {k: v for k, v in identity["optim"].items() if k not in OF_LENGTH}
    return {**identity, "optim": optim}


def _manifest(job: Job, source: Path, stamp: checkpoint.Stamp) -> dict[str, Any]:
    """The other run's manifest, which resuming keeps the beginning of."""
    theirs: dict[str, Any] = {**read_json(source / MANIFEST_FILE)}
    begun = {"run_dir": str(source), "step": stamp.step, "hash": stamp.hash}
    theirs |= {"hash": job.hash, "resumed": [], "stable_from": begun}
    theirs.pop("started", None)
    return theirs
