"""Corpora of text files: a folder, a glob, one file, Python's own source code.

Files and folders that cannot be read are named, not silently skipped.
"""

from __future__ import annotations

import fnmatch
import glob
import hashlib
import json
import os
import platform
import re
import sysconfig
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.data.corpus import (
    Corpus,
    CorpusError,
    Document,
    Item,
    LeftOutDocument,
    Stat,
    one_text_corpus,
)
from gpt2.data.token_files import expand

NOT_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test"}
NOT_SOURCE = re.compile(r"_sysconfigdata_")  # paths and flags of this Python build


@dataclass(frozen=True)
class Found:
    """Files by document name, and folders that could not be read."""

    files: Sequence[tuple[str, Path]]
    left_out: Sequence[LeftOutDocument] = ()


def stdlib_corpus() -> Corpus:
    """Source code of the running Python's standard library, without its tests."""
    root = Path(sysconfig.get_paths()["stdlib"])
    found = _walk(root, lambda parts: parts[-1] not in NOT_LIBRARY, links=False)
    sources = [
        (name, path)
        for name, path in found.files
        # some distributions have links to their own files
        if name.endswith(".py")
        and not NOT_SOURCE.match(path.name)
        and not path.is_symlink()
    ]
    if not sources:
        raise CorpusError(
            f"this Python's standard library has no sources in {root}: use another "
            "Python, or GPT2_DATASET_TEXT_PATH with a folder of text"
        )
    found = Found(sources, found.left_out)
    return files_corpus(found, {"python": platform.python_version()}, 0.05)


def text_corpus(path: str, val_share: float, must_divide: bool = True) -> Corpus:
    """Files of a folder or a glob, each of which is a document, or one file.

    An existing file or folder of exactly that name takes precedence over a glob, also
    for the first parts of a path. A single file is cut into passages, see
    one_text_corpus, also for must_divide. Hidden files are left out. Raises CorpusError
    if there are no files.
    """
    symbol = "GPT2_DATASET_TEXT_PATH"
    found = _text_files(expand(path, symbol)) if path else Found([])
    if not found.files:
        reasons = "".join(f"; {x.name}: {x.reason}" for x in found.left_out[:3])
        raise CorpusError(
            f"{symbol}={path!r} matches no files{reasons}: give a folder, a file "
            "or a glob such as 'books/**/*.txt' (relative to the current folder)"
        )
    if len(found.files) == 1:
        ((name, file),) = found.files
        survey = _survey(found.files)
        return one_text_corpus(
            lambda: _only_text(name, file),
            {"path": path},
            lambda: _digest(survey),
            files=survey,
            left_out=found.left_out,
            must_divide=must_divide,
        )
    return files_corpus(found, {"path": path}, val_share)


def _text_files(path: Path) -> Found:
    if path.is_dir():
        return _walk(path, lambda parts: True)
    if path.is_file():  # even if its name has glob characters
        return Found([(path.name, path)])
    # The folder above the first part of the glob that does not exist literally.
    root = next(folder for folder in path.parents if folder.exists())
    pattern = path.relative_to(root)
    names = glob.iglob(str(pattern), root_dir=root, recursive=True)
    found = (root / name for name in set(names))
    named = [(file.relative_to(root), file) for file in found if file.is_file()]
    shown = (pair for pair in named if "." not in {part[0] for part in pair[0].parts})
    files = [(name.as_posix(), file) for name, file in shown]
    # glob silently skips what it cannot open
    looked = _walk(root, lambda parts: _leads_to(parts, pattern.parts), links=False)
    return Found(files, looked.left_out)


def _walk(
    root: Path, enters: Callable[[tuple[str, ...]], bool], links: bool = True
) -> Found:
    """Files below a folder that are not hidden.

    enters: whether to enter a folder, given the parts of its path below root.
    links: whether to report links to folders, which are not followed.
    """
    files: list[tuple[str, Path]] = []
    left_out: list[LeftOutDocument] = []

    def refuse(error: OSError) -> None:
        name = Path(error.filename).relative_to(root).as_posix()
        left_out.append(LeftOutDocument(f"{name}/", error.strerror or str(error), 0))

    for base, below, names in os.walk(root, onerror=refuse):
        parts = Path(base).relative_to(root).parts
        entered = [n for n in below if n[0] != "." and enters((*parts, n))]
        linked = {n for n in entered if Path(base, n).is_symlink()}
        below[:] = [n for n in entered if n not in linked]
        files += [
            ("/".join((*parts, name)), Path(base, name))
            for name in names
            if name[0] != "." and Path(base, name).is_file()
        ]
        for name in sorted(linked) if links else ():
            reason = "links to folders are not followed"
            left_out.append(LeftOutDocument("/".join((*parts, name)), reason, 0))
    return Found(files, left_out)


def _leads_to(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """True if a folder may contain matches of a glob; both as path parts."""
    for part, wanted in zip(parts, pattern[:-1], strict=False):
        if wanted == "**":
            return True
        if not fnmatch.fnmatchcase(part, wanted):
            return False
    return len(parts) < len(pattern)


def _survey(files: Sequence[tuple[str, Path]]) -> dict[str, Stat]:
    found = {}
    for name, path in files:
        try:
            info = path.stat()
        except OSError:  # removed meanwhile; reported when it is read
            continue
        valid = name.encode("utf-8", "backslashreplace").decode()
        found[valid] = (info.st_size, info.st_mtime_ns)
    return found


def _digest(survey: Mapping[str, Stat]) -> str:
    return hashlib.sha256(json.dumps(sorted(survey.items())).encode()).hexdigest()


def changes(before: Mapping[str, Sequence[int]], corpus: Corpus) -> str:
    """Changes of a corpus's files since ``before``, in words; "" for none.

    before: Corpus.files at that time.
    """
    now = corpus.files
    kinds = {
        "added": [name for name in now if name not in before],
        "removed": [name for name in before if name not in now],
        "changed": [n for n in now if n in before and list(now[n]) != list(before[n])],
    }
    return ", ".join(
        f"{len(names)} {kind} ({', '.join(sorted(names)[:3])}"
        f"{', ...' if len(names) > 3 else ''})"
        for kind, names in kinds.items()
        if names
    )


def files_corpus(found: Found, source: Mapping[str, Any], val_share: float) -> Corpus:
    """Corpus with a document per file, in the order of the hashes of their names.

    That order is the same on every machine, and makes a limit on tokens take a random
    sample instead of the beginning of the alphabet.
    """
    ordered = sorted(
        found.files, key=lambda f: hashlib.sha256(os.fsencode(f[0])).digest()
    )
    survey = _survey(ordered)

    def documents(place: Any) -> Iterator[Item]:
        if place is None:
            yield from found.left_out
        first = place or 0
        for number, (name, path) in enumerate(ordered[first:], first + 1):
            try:
                yield Document(name, _decode(path.read_bytes()), number)
            except (OSError, ValueError) as error:
                yield LeftOutDocument(name, _reason(error), number)

    return Corpus(
        documents, dict(source), val_share, lambda: _digest(survey), files=survey
    )


def _decode(data: bytes) -> str:
    """Decode strict UTF-8, keeping line ends; ValueError otherwise."""
    text = data.decode("utf-8")
    if "\0" in text:
        raise ValueError("contains zero bytes: not text")
    return text


def _reason(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return f"not UTF-8 at byte {error.start}"
    return str(error)


def _only_text(name: str, path: Path) -> str:
    try:
        return _decode(path.read_bytes())
    except (OSError, ValueError) as error:
        raise CorpusError(
            f"{name}: {_reason(error)}; there is nothing else to read"
        ) from None
