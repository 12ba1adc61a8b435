"""Links and deletion: nothing is written or deleted elsewhere than its name says.

A results folder may come from a stranger, and a link in it may lead anywhere. So:

    a file that is written replaces a link of its name (lib/jobs/run_files.py renames it
    to there), and the file that the link led to keeps its content; a file that is
    appended to, or a folder that is written into, is refused as a link; a folder is
    deleted if it is a real one and holds nothing but plain files with names that this
    project gives; otherwise nothing of it is.
"""

from __future__ import annotations

import errno
import os
import re
import secrets
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO

HALF_WRITTEN = re.compile(r"\..+\.[0-9a-f]{12}\.tmp")  # names of hidden_name()


class Linked(ValueError):
    """A symbolic link where a real file or folder has to be; with the way out."""

    def __init__(self, path: Path) -> None:
        super().__init__(
            f"{path} is a link to {os.readlink(path)!r}: nothing is written or deleted "
            "behind a link. Put what it leads to in its place, or remove the link"
        )


def hidden_name(path: Path) -> Path:
    """A new name beside a path, for what is half written or about to go."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}.tmp")


def refuse_link(path: Path) -> Path:
    """The path as it is given; raises Linked if a link is there."""
    if path.is_symlink():
        raise Linked(path)
    return path


def safe_join(root: str | Path, name: str | Path) -> Path:
    """root/name; ValueError if that is not inside root, symbolic links followed."""
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
    """The links among the folders between root and root/name, if name is plain."""
    if not name.is_absolute() and ".." not in name.parts and "\0" not in str(name):
        for depth in range(1, len(name.parts) + 1):
            path = root.joinpath(*name.parts[:depth])
            if path.is_symlink():
                yield path


def own_folder(path: Path) -> Path:
    """The folder, made if it is missing (its parent has to be there).

    Raises Linked for a link, OSError if it cannot be made.
    """
    refuse_link(path).mkdir(exist_ok=True)
    return path


def open_to_append(path: str | Path) -> IO[bytes]:
    """A file open for reading and appending, unbuffered; made if it is missing.

    Raises Linked for a link, OSError if it cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        return open(os.open(path, flags, 0o666), "a+b", buffering=0)
    except OSError as error:
        if error.errno == errno.ELOOP and Path(path).is_symlink():
            raise Linked(Path(path)) from None
        raise


def strangers(folder: Path, ours: re.Pattern[str]) -> list[str]:
    """What a folder holds besides plain files with paths in it (as "a/b") like ours.

    A link is a stranger too, and so is the folder itself if it is one.
    """
    if folder.is_symlink() or not folder.is_dir():
        return [folder.name]
    return sorted(
        name
        for path, name in _entries(folder)
        if path.is_symlink() or not path.is_file() or not ours.fullmatch(name)
    )


def remove_folder(folder: Path, ours: re.Pattern[str]) -> list[str]:
    """Delete a folder that holds files of ours alone; it goes by one rename.

    Returns strangers(); if there are any, nothing is touched. What cannot be deleted
    stays under a hidden name, and so does a file that was put there meanwhile.
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
    """Files and links below a folder, with their paths in it; links lead nowhere."""
    for base, folders, files in os.walk(folder):
        for name in [*files, *(n for n in folders if Path(base, n).is_symlink())]:
            path = Path(base, name)
            yield path, path.relative_to(folder).as_posix()
