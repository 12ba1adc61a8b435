"""Files that no crash damages: replaced as a whole, or append-only records.

A run directory is the only record of a run. So every file in it is either replaced as
a whole (written next to its target, flushed to disk, renamed) or append-only, one JSON
record per line. Readers accept an incomplete last line, left by a killed writer.
"""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from lib.files import HALF_WRITTEN, hidden_name, open_plain, open_to_append
from lib.output import FULL_DISK

BAD_JSON = (ValueError, RecursionError)  # the latter: nested too deeply


class DiskFull(OSError):
    """No space (or quota) left; the file that was to be replaced is unchanged."""

    @classmethod
    def of(cls, path: Path, rest: str) -> DiskFull:
        """The error for a path; rest: what became of the content."""
        text = f"no space left while writing {path}; {rest}"
        return cls(errno.ENOSPC, f"{text}. Free some space and start again")

    def __str__(self) -> str:
        return str(self.strerror)


class NotWritable(OSError):
    """A file or folder that cannot be written where it was asked for; the message says
    what to do."""

    def __str__(self) -> str:
        advice = "Make its folder writable, or work on a copy of it (cp -rp)"
        if self.errno in _IN_THE_WAY:
            advice = "Move what is in the way, or name another place"
        return f"cannot write {self.filename}: {self.strerror}. {advice}"


_FORBIDDEN = (errno.EROFS, errno.EACCES, errno.EPERM)
_IN_THE_WAY = (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENOTEMPTY, errno.ELOOP)


class DamagedFile(ValueError):
    """A file that kablate did not write like this; the message says where."""


def atomic_write_bytes(
    path: str | Path, data: bytes, *, make_folder: bool = True
) -> None:
    """Replace a file in one step: readers see the old content or the new.

    A link of that name is replaced, and its target left unchanged. make_folder: create
    missing parent folders. Raises DiskFull when there is no space; the old file is
    then unchanged and nothing is left next to it; NotWritable if the place does not
    allow it.
    """
    path = Path(path)
    with clear_write_errors(path):
        if make_folder:
            path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as name, open(name, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a hidden name next to a path. The file of that name, which the caller
    writes, replaces the path at the end of the block, and is removed after an error."""
    name = hidden_name(path)
    try:
        yield name
        os.replace(name, path)
    except BaseException:
        with suppress(OSError):
            name.unlink()
        raise
    fsync_directory(path.parent)


def atomic_write_text(path: str | Path, text: str, *, make_folder: bool = True) -> None:
    """As atomic_write_bytes, in UTF-8 with line ends as given."""
    atomic_write_bytes(path, text.encode("utf-8"), make_folder=make_folder)


def atomic_write_json(
    path: str | Path, value: object, *, make_folder: bool = True
) -> None:
    """As atomic_write_bytes; ValueError for NaN or infinity, which JSON lacks."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    atomic_write_text(path, text + "\n", make_folder=make_folder)


def require_json_place(path: str | Path) -> None:
    """Raise as atomic_write_bytes if a JSON file cannot be written there, and create
    missing parent folders: for commands that write after hours of work.

    Only an empty file or a JSON object with a schema, as these commands write it, may
    be replaced.
    """
    path = Path(path)
    with clear_write_errors(path):
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        refuse_other_kind(path, _is_replaceable_json)
        path.parent.mkdir(parents=True, exist_ok=True)
        name = hidden_name(path)
        open(name, "xb").close()
        name.unlink()


def refuse_other_kind(path: Path, is_ours: Callable[[Path], bool]) -> None:
    """Raise FileExistsError if a file is there that is not ours to replace; a pipe or a
    device, such as /dev/null, never is."""
    if path.exists() and not (path.is_dir() or path.is_file() and is_ours(path)):
        raise FileExistsError(errno.EEXIST, "a file of another kind is there")


def _is_replaceable_json(path: Path) -> bool:
    if not path.stat().st_size:
        return True
    try:
        found = read_json(path)
    except ValueError:
        return False
    return isinstance(found, dict) and "schema" in found


def remove_leftovers(directory: str | Path) -> None:
    """Delete half-written files of killed writers; requires the run's lock."""
    for path in Path(directory).glob(".*.tmp"):
        if HALF_WRITTEN.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)


def fsync_directory(path: str | Path) -> None:
    """Make a rename or a new name in this directory survive a power failure."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    except OSError as error:  # some network file systems have no such call
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(fd)


def read_json(path: str | Path) -> Any:
    """The value in a JSON file.

    Raises DamagedFile, with the place, if it is not JSON; OSError as open_plain.
    """
    try:
        with open_plain(path) as file:
            return json.loads(file.read().decode("utf-8"))
    except BAD_JSON as error:
        raise DamagedFile(f"{path}: not JSON ({error})") from error


@contextmanager
def clear_write_errors(path: Path) -> Iterator[None]:
    """Raise DiskFull or NotWritable, about ``path``, for errors of writing it."""
    try:
        yield
    except OSError as error:
        if error.errno in (*_FORBIDDEN, *_IN_THE_WAY):
            raise NotWritable(error.errno, error.strerror, str(path)) from None
        if error.errno not in FULL_DISK:
            if str(error.filename).endswith(".tmp"):  # a name that users do not know
                raise OSError(error.errno, error.strerror, str(path)) from None
            raise
        before = "its old content is unchanged"
        if not path.exists():
            before = "it was not there before"
        raise DiskFull.of(path, before) from None


def append_jsonl(path: str | Path, record: Mapping[str, Any]) -> None:
    """Append one record as one line. NaN and infinity become null.

    An incomplete last line of a killed writer is removed first, and DiskFull leaves no
    partial record.
    """
    text = json.dumps(finite(record), ensure_ascii=False, allow_nan=False) + "\n"
    line = text.encode("utf-8")
    with clear_write_errors(Path(path)), open_to_append(path) as file:
        end = _end_of_whole_lines(file)
        try:
            if file.write(line) != len(line):
                raise OSError(errno.ENOSPC, "short write")
        except OSError:
            with suppress(OSError):
                file.truncate(end)
            raise


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """All complete records; none without a file. An incomplete last line is ignored.

    Raises DamagedFile, with the line number, for a bad line anywhere else.
    """
    records = []
    for number, (_, record) in enumerate(lines := _read_lines(Path(path)), 1):
        if record is not None:
            records.append(record)
        elif number < len(lines):  # else a page of zeros after a power failure
            raise DamagedFile(f"{path}:{number}: not a JSON record; remove that line")
    return records


def drop_bad_lines(path: str | Path) -> list[str]:
    """Remove the lines that read_jsonl refuses, atomically; these with their numbers.

    The other records stay, byte for byte.
    """
    lines = _read_lines(Path(path))
    bad = [
        f"line {number}, {line[:60]!r}"
        for number, (line, record) in enumerate(lines, 1)
        if record is None and number < len(lines)
    ]
    if bad:
        kept = [line + b"\n" for line, record in lines if record is not None]
        atomic_write_bytes(path, b"".join(kept))
    return bad


def _read_lines(path: Path) -> list[tuple[bytes, dict[str, Any] | None]]:
    """The lines of a file, each with its record (None: not a record)."""
    try:
        with open_plain(path) as file:
            lines = file.read().split(b"\n")[:-1]  # what follows was never whole
    except FileNotFoundError:
        return []
    return [(line, record_in(line)) for line in lines]


def record_in(line: bytes) -> dict[str, Any] | None:
    """The record on a line; None if it is not a JSON object."""
    try:
        record = json.loads(line)
    except BAD_JSON:
        return None
    return record if isinstance(record, dict) else None


def truncate_metrics(path: str | Path, step: int) -> int:
    """Remove the records after update `step`, atomically; how many were removed.

    A resumed run writes them again. Records without a step stay.
    """
    path = Path(path)
    if not path.exists():
        return 0
    records = read_jsonl(path)
    kept = [record for record in records if record.get("step", step) <= step]
    text = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in kept)
    if text.encode("utf-8") != path.read_bytes():
        atomic_write_text(path, text)
    return len(records) - len(kept)


def finite(value: Any) -> Any:
    """The same value with None for NaN and infinities, which JSON lacks."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _end_of_whole_lines(file: Any) -> int:
    """Remove what follows the last newline; the remaining length in bytes."""
    end = file.seek(0, os.SEEK_END)
    if end == 0:
        return 0
    file.seek(end - 1)
    if file.read(1) == b"\n":
        return end
    file.seek(0)
    end = file.read().rfind(b"\n") + 1
    file.truncate(end)
    return end
