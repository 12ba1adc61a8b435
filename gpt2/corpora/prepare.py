"""From documents to train.bin and val.bin: tokenise, divide, write. No torch here.

The folder appears by one rename when all of it is on disk, so that whatever kills
the work leaves nothing that looks like a data set. Memory is bounded: some
batches of documents, and the tokens of a small corpus while it is divided.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from gpt2.corpora.corpus import Corpus, CorpusError, Document
from gpt2.corpora.tokenfiles import (
    META_FILE,
    SCHEMA,
    SPLITS,
    Request,
    check_hashes,
    check_request,
    check_untouched,
    dataset_folder,
    read_meta,
    split_file,
)
from gpt2.schema import VOCAB_SIZES
from lib.rundir import (
    DiskFull,
    LockHeld,
    atomic_write_json,
    fsync_directory,
    lock,
    now,
)

if TYPE_CHECKING:
    import tiktoken

Tokens = npt.NDArray[np.uint16]

BATCH_CHARACTERS = 4 << 20  # of text tokenised at once
BUFFER_BYTES = 32 << 20  # of text of a corpus that is divided by exact share
MISFITS = 32  # documents over the limit in a row, after which it counts as reached
LISTED = 20  # names of skipped documents kept in meta.json
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Encoded:
    """A document as tokens, the end-of-text token included."""

    digest: bytes
    bytes: int
    tokens: Tokens


class Progress(Protocol):
    """What prepare tells of its advance (tqdm does it)."""

    def update(self, n: float) -> object: ...


@dataclass
class Skipped:
    """Documents that were left out: how many, and the first few with reasons."""

    report: Callable[[str], object]
    count: int = 0
    first: list[str] = field(default_factory=list)

    def __call__(self, name: str, reason: str) -> None:
        self.count += 1
        if self.count <= LISTED:
            line = f"{name}: {reason}".encode("utf-8", "backslashreplace").decode()
            self.first.append(line)
            self.report(f"left out {line}")


# ---- tokens ---------------------------------------------------------------------


def encode_document(encoding: tiktoken.Encoding, document: Document) -> Encoded:
    """Tokens of the text and one end-of-text; what looks like one is plain text."""
    data = document.text.encode("utf-8")
    tokens = encoding.encode_to_numpy(document.text, disallowed_special=())
    ended = np.append(tokens, encoding.eot_token).astype("<u2")
    return Encoded(hashlib.sha256(data).digest(), len(data), ended)


def encode_documents(
    documents: Iterable[Document], encoding: tiktoken.Encoding, threads: int
) -> Iterator[Encoded]:
    """Encode in order, in parallel; blank documents are left out."""
    with ThreadPoolExecutor(threads) as pool:
        for batch in _batches(documents):
            yield from pool.map(lambda d: encode_document(encoding, d), batch)


def _batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    batch: list[Document] = []
    size = 0
    for document in documents:
        if not document.text.strip():
            continue
        batch.append(document)
        size += len(document.text)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _counted(items: Iterable[Encoded], progress: Progress | None) -> Iterator[Encoded]:
    for item in items:
        if progress is not None:
            progress.update(item.bytes)
        yield item


def limit(items: Iterable[Encoded], max_tokens: int) -> Iterator[Encoded]:
    """Whole documents of at most max_tokens in all (0: no limit).

    A document that does not fit any more is left out; after MISFITS in a row the
    rest is not looked at.
    """
    total = misfits = 0
    for item in items:
        if not max_tokens or total + item.tokens.size <= max_tokens:
            total, misfits = total + item.tokens.size, 0
            yield item
        elif (misfits := misfits + 1) == MISFITS:
            break
        if max_tokens and total >= max_tokens:
            break


# ---- splits ---------------------------------------------------------------------


def divide(
    items: Iterator[Encoded], share: float, held_out: str
) -> Iterator[tuple[str, Encoded]]:
    """Give each document its split, in order; equal texts get the same one.

    share: of the bytes of text, for validation, so that every tokenizer holds out
    the same documents. A corpus of up to BUFFER_BYTES meets it as closely as whole
    documents can; a larger one is never held whole, so there each document's own
    hash decides. Raises CorpusError for fewer than two different documents.
    """
    head: list[Encoded] = []
    size = 0
    for item in items:
        head.append(item)
        size += item.bytes
        if held_out == "hash" and size > BUFFER_BYTES:
            yield from _by_hash(chain(head, items), share)
            return
    if len({item.digest for item in head}) < 2:
        raise CorpusError(
            f"the corpus has {len(head)} documents, and two different ones are "
            "needed, to train on and to validate on. Give more text, or raise "
            "GPT2_DATASET_MAX_TOKENS"
        )
    chosen = _tail if held_out == "tail" else _by_rank
    yield from chosen(head, share * size)


def _by_hash(items: Iterable[Encoded], share: float) -> Iterator[tuple[str, Encoded]]:
    for item in items:
        fraction = int.from_bytes(item.digest[:8], "big") / 2**64
        yield "val" if fraction < share else "train", item


def _by_rank(items: list[Encoded], target: float) -> Iterator[tuple[str, Encoded]]:
    """Validation: by rank of hash, each document that still fits the target."""
    sizes: Counter[bytes] = Counter()
    for item in items:
        sizes[item.digest] += item.bytes
    chosen: set[bytes] = set()
    size = 0
    for digest in sorted(sizes):
        if size + sizes[digest] <= target:
            chosen.add(digest)
            size += sizes[digest]
    chosen = chosen or {min(sizes, key=lambda d: (sizes[d], d))}
    for item in items:
        yield "val" if item.digest in chosen else "train", item


def _tail(items: list[Encoded], target: float) -> Iterator[tuple[str, Encoded]]:
    """Validation: the last documents that fit the target, at least one."""
    size, cut = 0, len(items) - 1
    for index in range(len(items) - 1, 0, -1):
        size += items[index].bytes
        if size > target:
            break
        cut = index
    for index, item in enumerate(items):
        yield "train" if index < cut else "val", item


# ---- files ----------------------------------------------------------------------


class SplitWriter:
    """Appends documents to a token file and keeps its record for meta.json."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "wb")
        self._sum = hashlib.sha256()
        self.tokens = self.documents = self.bytes = 0

    def write(self, item: Encoded) -> None:
        data = item.tokens.tobytes()
        self._file.write(data)
        self._sum.update(data)
        self.tokens += item.tokens.size
        self.documents += 1
        self.bytes += item.bytes

    def close(self) -> None:
        with self._file:
            self._file.flush()
            os.fsync(self._file.fileno())

    def abandon(self) -> None:
        with suppress(OSError):  # the buffer may not fit the disk
            self._file.close()

    def record(self) -> dict[str, Any]:
        return {
            "tokens": self.tokens,
            "documents": self.documents,
            "bytes": self.bytes,
            "sha256": self._sum.hexdigest(),
        }


def write_splits(folder: Path, items: Iterable[tuple[str, Encoded]]) -> dict[str, Any]:
    """Write the token files, flushed to disk; the record of each split."""
    with ExitStack() as stack:
        writers = {s: SplitWriter(split_file(folder, s)) for s in SPLITS}
        for writer in writers.values():
            stack.callback(writer.abandon)
        for split, item in items:
            writers[split].write(item)
        for writer in writers.values():
            writer.close()
    return {split: writer.record() for split, writer in writers.items()}


def existing(
    request: Request, data_dir: str | Path, *, verify: bool = False
) -> dict[str, Any] | None:
    """meta.json of the data set if it is there, as asked for; None if it is not.

    verify: compare the sha256 sums even if nothing was written since. Raises
    DataError if it is damaged or was prepared to another request.
    """
    folder = dataset_folder(data_dir, request.dataset, request.tokenizer)
    if not folder.exists():
        return None
    meta = read_meta(data_dir, request.dataset, request.tokenizer)
    check_request(meta, request)
    (check_hashes if verify else check_untouched)(folder, meta)
    return meta


def prepare(
    request: Request,
    data_dir: str | Path,
    corpus: Corpus,
    encoding: tiktoken.Encoding,
    *,
    force: bool = False,
    progress: Progress | None = None,
    report: Callable[[str], object] = print,
) -> dict[str, Any]:
    """Write the data set (unless it is there, or force) and return its meta.json.

    Raises CorpusError, DataError, or DiskFull after removing what was written.
    """
    folder = dataset_folder(data_dir, request.dataset, request.tokenizer)
    partial = folder.with_name(f".{folder.name}.partial")
    with _exclusive(folder, report):
        meta = None if force else existing(request, data_dir)
        if meta is not None:  # somebody else was quicker
            return meta
        _remove(partial)
        try:
            partial.mkdir()
            meta = _build(partial, request, corpus, encoding, progress, report)
            _replace(folder, partial)
        except OSError as error:
            if error.errno in FULL:
                _remove(partial)
                raise _disk_full(folder, error) from None
            raise
        finally:
            _remove(partial)
    return meta


def _build(
    folder: Path,
    request: Request,
    corpus: Corpus,
    encoding: tiktoken.Encoding,
    progress: Progress | None,
    report: Callable[[str], object],
) -> dict[str, Any]:
    skipped = Skipped(report)
    threads = min(8, os.cpu_count() or 1)
    items = encode_documents(corpus.documents(skipped), encoding, threads)
    items = limit(_counted(items, progress), request.max_tokens)
    parts = divide(items, corpus.val_share, corpus.held_out)
    splits = write_splits(folder, parts)
    empty = [split for split in SPLITS if not splits[split]["documents"]]
    if empty:
        raise CorpusError(f"the corpus left the {empty[0]} split empty: give more text")
    meta = {
        "schema": SCHEMA,
        "dataset": request.dataset,
        "tokenizer": request.tokenizer,
        "vocab_size": VOCAB_SIZES[request.tokenizer],
        "eot": encoding.eot_token,
        "dtype": "uint16",
        "source": dict(corpus.source),
        "request": asdict(request),
        "held_out": {"by": corpus.held_out, "share": corpus.val_share},
        "skipped": {"documents": skipped.count, "first": skipped.first},
        "splits": splits,
        "created": now(),
    }
    atomic_write_json(folder / META_FILE, meta)
    return meta


def _replace(folder: Path, finished: Path) -> None:
    """Put the finished folder in its place; an older one there goes."""
    old = folder.with_name(f".{folder.name}.old")
    _remove(old)
    if folder.exists():
        os.rename(folder, old)
    os.rename(finished, folder)
    fsync_directory(folder.parent)
    _remove(old)


def _remove(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)


@contextmanager
def _exclusive(folder: Path, report: Callable[[str], object]) -> Iterator[None]:
    """Only one process prepares a data set; a second one waits for it."""
    path = folder.with_name(f".{folder.name}.lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(lock(path))
        except LockHeld as error:
            report(f"waiting: {error}")
            stack.enter_context(lock(path, timeout=-1))
        yield


def _disk_full(folder: Path, error: OSError) -> DiskFull:
    free = shutil.disk_usage(folder.parent).free
    return DiskFull(
        error.errno,
        f"no space left for {folder} ({os.strerror(error.errno or 0)}; "
        f"{free / 1e6:,.0f} MB free now that the part written is removed). Free "
        "some space, set DATA_DIR to another disk, or set GPT2_DATASET_MAX_TOKENS",
    )


def summary(meta: dict[str, Any]) -> str:
    """One line a split: tokens, documents, bytes a token."""
    lines = [
        f"  {split}: {s['tokens']:,} tokens in {s['documents']:,} documents "
        f"({s['bytes'] / s['tokens']:.2f} bytes a token)"
        for split, s in meta["splits"].items()
    ]
    return "\n".join(lines)
