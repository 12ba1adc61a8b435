"""Prepare a data set: encode documents, split them, write train.bin and val.bin.

Torch-free. Everything is written to a subfolder of the data set and moved into place
when all of it is on disk, meta.json last: a crash leaves nothing that looks like a data
set, and the next call resumes (gpt2/data/partial.py). Memory is bounded by a few
batches of documents.
"""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.data.corpus import Corpus
from gpt2.data.partial import FILES as PARTIAL_FILES
from gpt2.data.preparation import SOURCES_FILE, ProgressBar, Report, Work
from gpt2.data.token_files import (
    FILES,
    META_FILE,
    PARTIAL,
    PREPARE,
    DataError,
    DataRequest,
    MissingData,
    check_hashes,
    check_request,
    check_untouched,
    dataset_folder,
    read_meta,
    require_reachable,
)
from lib.atomic_files import DiskFull, fsync_directory, read_json
from lib.files import remove_folder
from lib.jobs.run_files import LockHeld, lock

if TYPE_CHECKING:
    import tiktoken

LOCK_FILE = ".lock"
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def existing(
    request: DataRequest, data_dir: str | Path, *, verify: bool = False
) -> dict[str, Any] | None:
    """meta.json of the data set if it exists as requested, else None.

    verify: compare the sha256 hashes even if nothing was written since. Raises
    DataError if it is damaged or was prepared for another request.
    """
    try:
        meta = read_meta(data_dir, request)
    except MissingData:
        return None
    check_request(meta, request)
    folder = dataset_folder(data_dir, request)
    (check_hashes if verify else check_untouched)(folder, meta)
    return meta


def prepare(
    request: DataRequest,
    data_dir: str | Path,
    corpus: Corpus,
    encoding: tiktoken.Encoding,
    *,
    force: bool = False,
    progress: ProgressBar | None = None,
    report: Report = print,
) -> dict[str, Any]:
    """Write the data set (unless it exists and force is not set), return its meta.json.

    Its folder may be a link to another disk, which is then written to. Raises
    CorpusError, DataError or DiskFull; the next call resumes from the data written so
    far.
    """
    folder = dataset_folder(data_dir, request)
    require_reachable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder, report):
        meta = None if force else existing(request, data_dir)
        if meta is not None:  # another process has finished it meanwhile
            return meta
        _require_ours(folder)
        work = Work(folder, request, corpus, encoding, progress, report)
        try:
            meta = work.finished() or work.build()
            _put_in_place(folder)
        except OSError as error:
            if error.errno in FULL:
                work.close()
                raise _disk_full(folder, error) from None
            raise
        finally:
            work.close()
    return meta


def _require_ours(folder: Path) -> None:
    """Raise DataError if a link leads to token files that are not known to belong to a
    data set: it may lead anywhere."""
    files = [name for name in FILES if (folder / name).exists()]
    with suppress(OSError, ValueError, KeyError, TypeError):
        if "splits" in read_json(folder / META_FILE):
            return
    if folder.is_symlink() and files:
        raise DataError(
            f"{folder} is a link to {os.readlink(folder)!r}, which is not a kablate "
            f"data set, but has a {files[0]}: remove the link, or move that file away"
        )


def _put_in_place(folder: Path) -> None:
    """Move the finished files into place, replacing older ones, meta.json last.

    If this is killed, the next call finds the remaining files, including meta.json.
    """
    partial = folder / PARTIAL
    (folder / META_FILE).unlink(missing_ok=True)
    for name in (SOURCES_FILE, *FILES):
        if (partial / name).exists():
            os.replace(partial / name, folder / name)
    fsync_directory(folder)
    remove_folder(partial, PARTIAL_FILES)


def recorded_files(folder: Path) -> dict[str, Any]:
    """Source files of a data set, in the format of Corpus.files; {} if unknown."""
    try:
        found = read_json(folder / SOURCES_FILE)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _exclusive(folder: Path, report: Report) -> Iterator[None]:
    """Let only one process prepare a data set; others wait for it."""
    path = folder / LOCK_FILE
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(path))
        except LockHeld as error:
            report(f"waiting: {error}")
            stack.enter_context(lock(path, timeout=-1))
        yield


def _disk_full(folder: Path, error: OSError) -> DiskFull:
    free = shutil.disk_usage(folder).free
    kept = folder / PARTIAL
    what = "the unfinished files were removed"
    if kept.exists():
        what = f"the finished part stays in {kept}, and {PREPARE} resumes from it"
    return DiskFull(
        error.errno,
        f"no space left for {folder} ({os.strerror(error.errno or 0)}; "
        f"{free / 1e6:,.0f} MB free; {what}). Free some space, set DATA_DIR to another "
        "disk, or set GPT2_DATASET_MAX_TOKENS",
    )


def summary(meta: dict[str, Any]) -> str:
    """One line per split: tokens, documents, bytes per token."""
    lines = [
        f"  {split}: {s['tokens']:,} tokens in {s['documents']:,} documents "
        f"({s['bytes'] / s['tokens']:.2f} bytes per token)"
        for split, s in meta["splits"].items()
    ]
    return "\n".join(lines)
