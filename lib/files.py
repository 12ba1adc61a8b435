"""Safe writing and deletion where symbolic links may lead elsewhere.

A results folder may come from somebody else, and a link in it may lead anywhere. So:

    a written file replaces a link of its name (lib/atomic_files.py renames it into
    place), and the target of the link is unchanged; links are refused for files that
    are appended to and folders that are written into; a folder is deleted only if it is
    not a link and holds only plain files with names that this project uses, otherwise
    nothing in it is deleted.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

HALF_WRITTEN = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")  # names of hidden_name()


class Linked(ValueError):
    """A symbolic link where a real file or folder is required; says what to do."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is a link to {os.readlink(path)!r}: nothing is written or deleted "
            "through a link. Move its target to its place, or remove the link"
        )


def hidden_name(path: Path) -> Path:
    """A temporary name next to a path, for files being written or deleted."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def is_hidden_name(name: Path, path: Path) -> bool:
    """Whether ``name`` is one that hidden_name makes of ``path``."""
    pattern = rf"\.{re.escape(path.name)}\.[0-9a-f]{{12}}\.tmp"
    return re.fullmatch(pattern, name.name) is not None


def refuse_link(path: Path) -> Path:
    """The same path; raises Linked if it is a link."""
    if path.is_symlink():
        raise Linked(path)
    return path


def safe_join(root: str | Path, name: str | Path) -> Path:
    """root/name; ValueError if it is outside root after following symbolic links."""
    base = Path(root).resolve()
    path = Path(root) / name
    if "\0" not in str(name) and path.resolve().is_relative_to(base):
        return path
    reason = f"path {str(name)!r} leads out of {base}"
    for link in links_to(Path(root), Path(name)):
        raise ValueError(
            f"{reason}: {Linked(link)}. "
            f"Or move the whole folder, and make {root} a link"
        )
    raise ValueError(f"{reason}; use a plain name")


def links_to(root: Path, name: Path) -> Iterator[Path]:
    """Links among the folders between root and root/name, if name is plain."""
    if not name.is_absolute() and ".." not in name.parts and "\0" not in str(name):
        for depth in range(1, len(name.parts) + 1):
            path = root.joinpath(*name.parts[:depth])
            if path.is_symlink():
                yield path


def own_folder(path: Path) -> Path:
    """The folder, created if it is missing (its parent must exist).

    Raises Linked for a link, OSError if it cannot be created.
    """
    refuse_link(path).mkdir(exist_ok=True)
    return path


def open_to_append(path: str | Path) -> IO[bytes]:
    """A file open for reading and appending, unbuffered; created if missing.

    Raises Linked for a link, OSError if it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return open(os.open(path, flags, 0o666), "a+b", buffering=0)
    except OSError as error:
        if error.errno == errno.ELOOP and Path(path).is_symlink():
            raise Linked(Path(path)) from None
        raise


def open_plain(path: str | Path) -> IO[bytes]:
    """A file open for reading.

    Raises OSError if it cannot be opened, or is a pipe or a device, as a stranger's
    folder may have: reading it could wait forever, or never end.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(fd).st_mode
    if stat.S_ISREG(mode):
        return open(fd, "rb")
    os.close(fd)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    raise OSError(errno.EINVAL, "Not a plain file", str(path))


def text_or_empty(path: str | Path) -> str:
    """Text of a file of the system, as in /proc or /sys; "" if it cannot be read."""
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def strangers(folder: Path, ours: re.Pattern[str]) -> list[str]:
    """Entries of a folder other than plain files whose relative path matches ``ours``.

    Links count as strangers, the folder itself included.
    """
    if folder.is_symlink() or not folder.is_dir():
        return [folder.name]
    return sorted(
        name
        for path, name in _entries(folder)
        if path.is_symlink() or not path.is_file() or not ours.fullmatch(name)
    )


def remove_folder(folder: Path, ours: re.Pattern[str]) -> list[str]:
    """Delete a folder that holds only files of ours; it disappears by one rename.

    Returns strangers(); if there are any, nothing is changed. What cannot be deleted,
    or was added meanwhile, stays under a hidden name.
    """
    found = strangers(folder, ours)
    if not found:
        with suppress(OSError):
            going = hidden_name(folder)
            folder.rename(going)
            for path, _ in list(_entries(going)):
                path.unlink()
            for base, _, _ in os.walk(going, topdown=False):
                os.rmdir(base)
    return found


def _entries(folder: Path) -> Iterator[tuple[Path, str]]:
    """Files and links below a folder, with relative paths; links are not followed."""
    for base, folders, files in os.walk(folder):
        for name in [*files, *(n for n in folders if Path(base, n).is_symlink())]:
            path = Path(base, name)
            yield path, path.relative_to(folder).as_posix()
