"""Tiny runs for audits, and what to look for in their findings."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from gpt2.audit.finding import DIFFERS, AuditLine
from gpt2.audit.options import AuditOptions
from gpt2.audit.run import Audit, audit_run
from gpt2.plan.jobs import Job
from lib.atomic_files import atomic_write_json, read_json, read_jsonl
from tests.gpt2.tinytraining import tiny_job


def audited_job(data_dir: Path, step: int | None = None, **fields: Any) -> Job:
    """Twelve updates in records of five, five and two; at this learning rate the best
    evaluation is not the last one."""
    mine = {"dropout": 0.0, "log_interval": 5, "eval_samples": 4, "eval_interval": 2}
    mine |= {"learning_rate": 0.06, "min_lr": 0.05}
    return tiny_job(data_dir, step, **{**mine, **fields})


def audit(run_dir: Path, **options: Any) -> Audit:
    return audit_run(run_dir, AuditOptions(**options))


def differing(findings: Iterable[AuditLine]) -> set[str]:
    """The figures that differ."""
    return {finding.figure for finding in findings if finding.state == DIFFERS}


def problems(found: Audit) -> str:
    """All that is not in order, for the message of a failing test."""
    return "\n".join(
        str(f) for f in found.findings if f.state not in ("ok", "left out")
    )


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the object in a JSON file."""
    found = read_json(path)
    change(found)
    atomic_write_json(path, found)


def edit_result(run_dir: Path, **values: Any) -> None:
    edit(run_dir / "status.json", lambda status: status["result"].update(values))


def edit_records(run_dir: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change each record of metrics.jsonl."""
    path = run_dir / "metrics.jsonl"
    records = read_jsonl(path)
    for record in records:
        change(record)
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
