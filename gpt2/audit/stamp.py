"""Write audit.json, the result of an audit in its run directory, and check its
validity.

Torch-free. It contains hashes of the audited files, so that an audit of another run, or
of a run that has changed since, is recognised as stale.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpt2.audit.finding import FAILED, INCOMPLETE, PASSED, AuditLine, verdict
from lib.atomic_files import atomic_write_json
from lib.hashing import file_sha256
from lib.jobs.run_files import (
    EXPORT_FILE,
    JOB_FILE,
    MANIFEST_FILE,
    METRICS_FILE,
    STATUS_FILE,
    now,
)
from lib.safe_json import Unusable, as_dict, read_foreign_json

AUDIT_FILE = "audit.json"
FILES = (JOB_FILE, MANIFEST_FILE, STATUS_FILE, METRICS_FILE, EXPORT_FILE)
SCHEMA = 1
NONE, STALE = "none", "stale"
VERDICTS = (PASSED, FAILED, INCOMPLETE)


def write_audit(run_dir: Path, findings: Sequence[AuditLine]) -> None:
    """Write audit.json, atomically. Raises lib.atomic_files.DiskFull and OSError."""
    record = {
        "schema": SCHEMA,
        "made": now(),
        "verdict": verdict(findings),
        "files": {name: _seal(run_dir / name) for name in FILES},
        "findings": [finding.to_json() for finding in findings],
    }
    atomic_write_json(run_dir / AUDIT_FILE, record, make_folder=False)


def audit_state(run_dir: Path) -> str:
    """State of the audit: one of VERDICTS, NONE without one, STALE if a file changed
    since. Weights may be absent, as they are in a bundle."""
    path = run_dir / AUDIT_FILE
    if not path.exists():
        return NONE
    try:
        found = as_dict(read_foreign_json(path))
    except Unusable:
        return STALE
    seals = as_dict(found.get("files"))
    known = found.get("schema") == SCHEMA and found.get("verdict") in VERDICTS
    files = [n for n in FILES if n != EXPORT_FILE or (run_dir / n).exists()]
    if not known or not all(_is_same(run_dir / n, seals.get(n)) for n in files):
        return STALE
    return str(found["verdict"])


def _seal(path: Path) -> dict[str, Any] | None:
    """Size, time and hash of a file; None if it does not exist."""
    if not path.is_file():
        return None
    info = path.stat()
    sums = {"sha256": file_sha256(path)}
    return {"size": info.st_size, "mtime_ns": info.st_mtime_ns, **sums}


def _is_same(path: Path, seal: object) -> bool:
    """True if a file is unchanged. The export may have gigabytes, so it is read only if
    its time has changed, as in a copy."""
    known = as_dict(seal)
    try:
        if not path.is_file():
            return seal is None
        info = path.stat()
        if known.get("size") != info.st_size:
            return False
        if path.name == EXPORT_FILE and known.get("mtime_ns") == info.st_mtime_ns:
            return True
        return bool(known.get("sha256") == file_sha256(path))
    except OSError:
        return False
