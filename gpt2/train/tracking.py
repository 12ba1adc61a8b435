"""Send the records of a run to its trackers.

Torch-free. metrics.jsonl is written first and stays the record.
"""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

from gpt2.plan.jobs import Job
from gpt2.settings.schema import Resources
from gpt2.train.record import Recorder
from lib.atomic_files import atomic_write_json, read_jsonl
from lib.hashing import identity
from lib.safe_json import Unusable, as_dict, read_foreign_json
from lib.trackers import CLOSE_SECONDS, Record, TrackedRun, open_trackers

NAME = "trackers"
TRACKED = ("train", "eval", "epoch")  # kinds of records
RUN_FILE = "tracker_run.json"
CUT_SHORT_SECONDS = 3.0  # for trackers to finish where a run did not
FOLDER = "test_matrix_results"  # results folders of presets begin with it


def project_of(resources: Resources) -> str:
    """TRACKER_PROJECT, or "kablate-quickstart" for test_matrix_results_quickstart."""
    if resources.tracker_project:
        return resources.tracker_project
    folder = PurePath(resources.output_dir).name.removeprefix(FOLDER)
    words = re.findall(r"[A-Za-z0-9]+", folder)
    return "-".join(["kablate", *words])


@contextmanager
def tracking(job: Job, recorder: Recorder) -> Iterator[dict[str, Any]]:
    """Send each record to the configured trackers and, at the end, the values of the
    dictionary that is yielded. Raises lib.atomic_files.DiskFull."""
    result: dict[str, Any] = {}
    names = job.settings.resources.trackers
    if not names:
        yield result
        return
    run = tracked_run(job, recorder.run_dir)
    trackers = open_trackers(names, run, lambda: _tracked(recorder), recorder.say)

    def listen(kind: str, record: Mapping[str, Any]) -> None:
        trackers.log(*_as_tracked(kind, record))

    recorder.listeners[NAME] = listen
    try:
        yield result
    finally:
        del recorder.listeners[NAME]
        numbers = {k: v for k, v in result.items() if isinstance(v, int | float)}
        trackers.finish(numbers, CLOSE_SECONDS if result else CUT_SHORT_SECONDS)


def _tracked(recorder: Recorder) -> list[Record]:
    """All tracked records, of this attempt and earlier ones."""
    found = read_jsonl(recorder.metrics)
    return [_as_tracked(r["kind"], r) for r in found if r["kind"] in TRACKED]


def _as_tracked(kind: str, record: Mapping[str, Any]) -> Record:
    values = {name: value for name, value in record.items() if name != "step"}
    return kind, record["step"], values


def tracked_run(job: Job, run_dir: Path) -> TrackedRun:
    """The run as trackers know it: a directory keeps its id and its project."""
    path = run_dir / RUN_FILE
    resources = job.settings.resources
    known = {"project": project_of(resources), "run_id": _new_id(job)}
    try:
        found = as_dict(read_foreign_json(path))
    except Unusable:
        found = {}
    if all(isinstance(found.get(name), str) for name in known):
        known = {name: found[name] for name in known}
    else:
        atomic_write_json(path, known)
    names = ("step", "name", "title", "seed", "hash")
    about = {name: getattr(job, name) for name in names}
    return TrackedRun(
        **known,
        name=job.run_dir,
        directory=run_dir,
        group=PurePath(job.run_dir).parent.as_posix(),
        config={**about, **job.settings.flat()},
        online=resources.wandb_online,
    )


def _new_id(job: Job) -> str:
    """From job, seed and chance: a run that is started over gets a new id."""
    return identity([job.hash, job.seed, secrets.token_hex(8)])
