"""Files and values from unknown sources, read as data only.

Results may be copied, incomplete, damaged, or from a stranger. So only plain files of a
bounded size are read, nothing is executed, and a value of the wrong kind is None
instead of an exception somewhere in a report.
"""

from __future__ import annotations

import json
import stat
import unicodedata
from pathlib import Path
from typing import Any

MAX_JSON_BYTES = 32 << 20
MAX_RECORDS_BYTES = 512 << 20
MAX_TEXT = 300
LARGEST = 1e100


class Unusable(ValueError):
    """A file that cannot be used; the message is the reason, without the path."""


def read_foreign_json(path: str | Path, limit: int = MAX_JSON_BYTES) -> Any:
    """The JSON value of a plain file of at most limit bytes; raises Unusable."""
    data = read_plain(Path(path), limit)
    try:
        return json.loads(data)
    except json.JSONDecodeError as error:
        raise Unusable(f"not JSON (line {error.lineno}: {error.msg})") from None
    except (ValueError, RecursionError):
        raise Unusable("not JSON") from None


def read_records(
    path: str | Path, *, is_whole: bool = False
) -> tuple[list[dict[str, Any]], list[int]]:
    """The JSON objects of a file with one per line, and the numbers of bad lines.

    An incomplete last line is ignored, as a killed writer leaves it, unless the file
    is_whole. Raises Unusable.
    """
    lines = read_plain(Path(path), MAX_RECORDS_BYTES).split(b"\n")
    records, bad = [], []
    for place, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            record = None
        if isinstance(record, dict):
            records.append(record)
        elif is_whole or place < len(lines):
            bad.append(place)
    return records, bad


def read_plain(path: Path, limit: int) -> bytes:
    """The bytes of a plain file of at most limit bytes; raises Unusable."""
    try:
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode):
            raise Unusable("not a plain file")
        if info.st_size > limit:
            raise Unusable(f"larger than {limit >> 20} MiB")
        return path.read_bytes()
    except FileNotFoundError:
        raise Unusable("missing") from None
    except OSError as error:
        raise Unusable(error.strerror or "unreadable") from None


def clean(value: object, limit: int = MAX_TEXT) -> str:
    """As text on one line, without control characters and direction marks."""
    kept = (" " if c.isspace() else c for c in str(value)[: 4 * limit])
    printable = (c for c in kept if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))
    line = " ".join("".join(printable).split())
    return line if len(line) <= limit else line[: limit - 1] + "…"


def as_dict(value: object) -> dict[str, Any]:
    """The value if it is a dict, else an empty one."""
    return value if isinstance(value, dict) else {}


def number(value: object) -> float | int | None:
    """A finite number, or None for anything else, a bool included.

    None also for numbers so large that their sums and squares overflow.
    """
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    if isinstance(value, int):
        return value if abs(value) < 2**63 else None
    return value if abs(value) <= LARGEST else None


def whole(value: object) -> int | None:
    """An integer that fits 64 bits, or None."""
    found = number(value)
    return found if isinstance(found, int) else None


def text(value: object) -> str | None:
    """A cleaned text, or None for an empty one and for anything else."""
    return (clean(value) or None) if isinstance(value, str) else None
