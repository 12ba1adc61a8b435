"""Read the files of a finished run as data, for an audit.

Torch-free. A missing or damaged file becomes a finding that names it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2.audit.finding import DIFFERS, SAME, AuditLine, compare, holds, not_checked
from gpt2.plan.jobs import Job, job_from_json
from gpt2.settings.schema import Settings
from lib.jobs.run_files import JOB_FILE, MANIFEST_FILE, METRICS_FILE, STATUS_FILE
from lib.safe_json import (
    Unusable,
    as_dict,
    clean,
    number,
    read_foreign_json,
    read_records,
    whole,
)

Record = dict[str, Any]
KINDS = ("train", "eval", "epoch", "alarm", "as_trained")


class NothingToAudit(ValueError):
    """The run is unfinished, or its directory does not say which run it is."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFiles:
    """Contents of the files of a run. Records are in the order of the file."""

    run_dir: Path
    job: Job
    manifest: dict[str, Any]
    status: dict[str, Any]
    trains: list[Record]
    evals: list[Record]
    epochs: list[Record]
    alarms: list[Record]
    comparisons: list[Record]  # comparisons of gradients with the formulas, as trained
    problems: list[AuditLine] = field(default_factory=list)

    @property
    def settings(self) -> Settings:
        return self.job.settings

    @property
    def result(self) -> dict[str, Any]:
        return as_dict(self.status.get("result"))

    @property
    def updates(self) -> int:
        """Number of updates, from the last record of the training loss."""
        return whole(self.trains[-1].get("step")) or 0 if self.trains else 0

    @property
    def resumed_at(self) -> set[int | None]:
        """Updates after which the run was resumed."""
        found = self.manifest.get("resumed")
        attempts = found if isinstance(found, list) else []
        return {whole(as_dict(attempt).get("step")) for attempt in attempts}

    @property
    def ranks(self) -> int:
        return whole(self.manifest.get("world_size")) or 1


def read_evidence(run_dir: Path) -> RunFiles:
    """Read the files of a finished run.

    Raises NothingToAudit if the run is not done, or its job cannot be read.
    """
    status = _read(run_dir / STATUS_FILE)
    if isinstance(status, str):
        raise NothingToAudit(f"{run_dir / STATUS_FILE}: {status}")
    if status.get("status") != "done":
        state = clean(status.get("status", "planned"), 40)
        raise NothingToAudit(f"{run_dir} is not finished: its status is {state!r}")
    job = _job(run_dir / JOB_FILE)
    manifest, problems = _read(run_dir / MANIFEST_FILE), []
    if isinstance(manifest, str):
        problems.append(not_checked(MANIFEST_FILE, manifest))
        manifest = {}
    records, bad = _records(run_dir / METRICS_FILE)
    kinds: dict[str, list[Record]] = {kind: [] for kind in KINDS}
    for record in records:
        kinds.get(str(record.get("kind")), []).append(record)
    return RunFiles(
        run_dir=run_dir,
        job=job,
        manifest=manifest,
        status=status,
        trains=kinds["train"],
        evals=kinds["eval"],
        epochs=kinds["epoch"],
        alarms=kinds["alarm"],
        comparisons=kinds["as_trained"],
        problems=[*problems, *bad],
    )


def _read(path: Path) -> dict[str, Any] | str:
    """Object in a JSON file, or the reason why there is none."""
    try:
        found = read_foreign_json(path)
    except Unusable as error:
        return str(error)
    return found if isinstance(found, dict) else "not a JSON object"


def _job(path: Path) -> Job:
    found = _read(path)
    if isinstance(found, str):
        raise NothingToAudit(f"{path}: {found}")
    try:
        job = job_from_json(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise NothingToAudit(f"{path}: {clean(error)}") from None
    if whole(job.seed) is None:
        raise NothingToAudit(f"{path}: its seed is not an integer")
    return job


def _records(path: Path) -> tuple[list[Record], list[AuditLine]]:
    """Records of metrics.jsonl, and findings about the file."""
    try:
        records, bad = read_records(path)
    except Unusable as error:
        missing = str(error) == "missing"
        finding = AuditLine(METRICS_FILE, DIFFERS, reason=str(error))
        return [], [not_checked(METRICS_FILE, str(error)) if missing else finding]
    if bad:
        reason = f"{len(bad)} damaged lines, the first is line {bad[0]}"
        return records, [AuditLine(METRICS_FILE, DIFFERS, reason=reason)]
    return records, []


def origin_findings(evidence: RunFiles) -> Iterator[AuditLine]:
    """Check that job, manifest and status belong to one run with one batch split."""
    job, manifest = evidence.job, evidence.manifest
    yield compare("status step", evidence.status.get("step"), evidence.updates, SAME)
    yield compare("max_steps", evidence.status.get("max_steps"), evidence.updates, SAME)
    if not manifest:
        return
    yield compare("manifest hash", manifest.get("hash"), job.hash)
    yield compare("manifest seed", manifest.get("seed"), job.seed, SAME)
    batch = job.settings.resources.batch_size * (
        job.settings.resources.gradient_accumulation
    )
    yield compare("effective_batch", manifest.get("effective_batch"), batch, SAME)
    names = ("micro_batch", "accumulation", "world_size")
    split = [whole(manifest.get(name)) for name in names]
    shown = " x ".join(map(str, split))
    product = None if None in split else split[0] * split[1] * split[2]  # type: ignore
    reason = f"{shown} sequences"
    yield compare("micro batch x accumulation x ranks", product, batch, SAME, reason)


def alarm_findings(evidence: RunFiles) -> Iterator[AuditLine]:
    """Check that status.json has the recorded alarms."""
    shown = evidence.status.get("alarms")
    shown = shown if isinstance(shown, list) else []
    mine = [{k: v for k, v in a.items() if k != "kind"} for a in evidence.alarms]
    count = f"{len(shown)} in {STATUS_FILE}"
    yield holds("alarms", shown == mine, count, f"{len(mine)} recorded")


def value(record: Record, name: str) -> float | None:
    """Number in a record, or None."""
    return number(record.get(name))
