"""From documents to train.bin and val.bin: tokenise, divide, write. No torch here.

Everything is written into a folder within that of the data set and put in place when
all of it is on disk, meta.json last: whatever kills the work leaves nothing that looks
like a data set, and the next call goes on from where it was (gpt2/data/partial.py).
Memory is bounded by some batches of documents.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from gpt2.data import split as rules
from gpt2.data.corpus import Corpus, CorpusError, Document, Item, LeftOutDocument
from gpt2.data.encode import Encoded, encode_documents, limit
from gpt2.data.partial import CURSOR_FILE, FILES, Partial
from gpt2.data.token_files import (
    META_FILE,
    PARTIAL,
    PREPARE,
    SCHEMA,
    SPLITS,
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
from gpt2.settings.schema import VOCAB_SIZES
from lib.files import remove_folder
from lib.jobs.run_files import (
    DamagedFile,
    DiskFull,
    LockHeld,
    atomic_write_json,
    fsync_directory,
    lock,
    now,
    read_json,
)

if TYPE_CHECKING:
    import tiktoken

SAVE_BYTES = 16 << 20  # of text, after which a killed preparation need not begin before
LISTED = 20  # names of documents left out that meta.json keeps
LOCK_FILE = ".lock"
SOURCES_FILE = "sources.json"  # the files of the corpus, to notice their changes
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class ProgressBar(Protocol):
    """Receives the bytes of text that were added (tqdm does it)."""

    def update(self, n: float) -> object: ...


Report = Callable[[str], object]


def existing(
    request: DataRequest, data_dir: str | Path, *, verify: bool = False
) -> dict[str, Any] | None:
    """meta.json of the data set if it is there, as asked for; None if it is not.

    verify: compare the sha256 sums even if nothing was written since. Raises
    DataError if it is damaged or was prepared to another request.
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
    """Write the data set (unless it is there, or force) and return its meta.json.

    Its folder may be a link to one on another disk, which is then written to. Raises
    CorpusError, DataError or DiskFull; what was written by then is gone on with by
    the next call, if it is worth it.
    """
    folder = dataset_folder(data_dir, request)
    require_reachable(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with _exclusive(folder, report):
        meta = None if force else existing(request, data_dir)
        if meta is not None:  # somebody else was quicker
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
    """DataError if token files behind a link are not known to be those of a data set:
    the link may lead to anything."""
    files = [
        n for n in (META_FILE, *(f"{s}.bin" for s in SPLITS)) if (folder / n).exists()
    ]
    with suppress(OSError, ValueError, KeyError, TypeError):
        if "splits" in read_json(folder / META_FILE):
            return
    if folder.is_symlink() and files:
        raise DataError(
            f"{folder} is a link to {os.readlink(folder)!r}, and what lies there is no "
            f"data set of this project, but has a {files[0]}: remove the link, or move "
            "that file away"
        )


@dataclass
class Work:
    """One preparation, in the folder PARTIAL of that of its data set."""

    folder: Path
    request: DataRequest
    corpus: Corpus
    encoding: tiktoken.Encoding
    progress: ProgressBar | None
    report: Report
    _partial: Partial | None = None

    @property
    def place(self) -> Path:
        return self.folder / PARTIAL

    def finished(self) -> dict[str, Any] | None:
        """meta.json of an earlier call that was killed while it put files in place."""
        with suppress(OSError, ValueError, KeyError, TypeError):
            meta = read_json(self.place / META_FILE)
            if meta["revision"] == self.corpus.revision():
                check_request(meta, self.request)
                return dict(meta)
        return None

    def build(self) -> dict[str, Any]:
        """Write the token files and meta.json. Raises CorpusError, OSError."""
        partial = self._partial = self._open()
        if partial.is_resumed:
            self.report(f"going on behind {partial.text_bytes / 1e6:,.1f} MB of text")
            self._advance(partial.text_bytes)
        saved = partial.text_bytes
        items = self._counted(self._usable(self.corpus.documents(partial.place)))
        for item in limit(items, self.request.max_tokens, partial.tokens):
            partial.add(item)
            if partial.text_bytes - saved >= SAVE_BYTES:
                partial.save()
                saved = partial.text_bytes
        if not partial.is_divided:
            partial.save()
            try:
                self._divide(partial)
            except CorpusError:
                (self.place / CURSOR_FILE).unlink()  # more of the same would not help
                raise
        meta = self._meta(partial)
        files = {name: list(stat) for name, stat in self.corpus.files.items()}
        atomic_write_json(self.place / SOURCES_FILE, files)
        atomic_write_json(self.place / META_FILE, meta)
        return meta

    def _open(self) -> Partial:
        """What an earlier call has left, or an empty folder."""
        if self.place.is_symlink():
            led = os.readlink(self.place)
            self.place.unlink()
            self.report(
                f"removed {self.place}, a link to {led!r}, which stays as it is"
            )
        key = {
            "request": asdict(self.request),
            "revision": self.corpus.revision(),
            "vocabulary": self.encoding.n_vocab,
            "held_out": [self.corpus.held_out, self.corpus.val_share],
        }
        share = self.corpus.val_share if self.corpus.held_out == "hash" else None
        self.place.mkdir(exist_ok=True)
        partial = None
        with suppress(DamagedFile):
            partial = Partial(self.place, key, share)
            if partial.is_resumed:
                return partial
        if partial is not None:
            partial.close()
        if strangers := remove_folder(self.place, FILES):
            raise DataError(
                f"{self.place} holds {strangers[0]}, which no preparation writes: move "
                "it away"
            )
        self.place.mkdir(exist_ok=True)
        return Partial(self.place, key, share)

    def _usable(self, items: Iterable[Item]) -> Iterator[Encoded]:
        """The documents as tokens; those that are left out are reported and noted."""
        threads = min(8, os.cpu_count() or 1)
        for item in encode_documents(items, self.encoding, threads):
            if isinstance(item, Encoded):
                yield item
            elif self._partial is not None:
                self._leave_out(item, self._partial.skipped)

    def _leave_out(self, item: LeftOutDocument, skipped: dict[str, Any]) -> None:
        skipped["documents"] += 1
        if skipped["documents"] <= LISTED:
            line = f"{item.name}: {item.reason}".encode("utf-8", "backslashreplace")
            skipped["first"].append(line.decode())
            self.report(f"left out {line.decode()}")

    def _counted(self, items: Iterable[Encoded]) -> Iterator[Encoded]:
        for item in items:
            self._advance(item.bytes)
            yield item

    def _advance(self, size: int) -> None:
        if self.progress is not None:
            self.progress.update(size)

    # ---- splits -----------------------------------------------------------------

    def _divide(self, partial: Partial) -> None:
        """Divide the documents that were collected."""
        sizes, share = partial.sizes(), self.corpus.val_share
        if len({digest for digest, _ in sizes}) < 2:
            raise CorpusError(
                f"the corpus has {len(sizes)} documents, and two different ones are "
                "needed, to train on and to validate on. Give more text, or raise "
                "GPT2_DATASET_MAX_TOKENS"
            )
        target = share * sum(size for _, size in sizes)
        if self.corpus.held_out == "tail":
            cut = rules.by_tail(sizes, target)
            partial.divide(lambda number, digest: number >= cut, "tail")
            return
        chosen = rules.by_rank(sizes, target)
        whole = sum(size for digest, size in sizes if digest in chosen)
        if not rules.meets(whole, target) and self._divide_ends(partial, sizes, target):
            return
        if not rules.meets(whole, target):
            self.report(
                f"the validation split is {whole * share / target:.1%} of the text and "
                f"not {share:.1%}: the documents are few and cannot be cut at line ends"
            )
        partial.divide(lambda number, digest: digest in chosen)

    def _divide_ends(self, partial: Partial, sizes: rules.Sizes, target: float) -> bool:
        """Hold out the ends of long documents, which are read once more; False, and
        they are as they were, if that does not come near enough to the target."""
        part = rules.end_share(sizes, target)
        left = Counter(digest for digest, _ in sizes)
        cut = 0

        def parts() -> Iterator[Item]:
            nonlocal cut
            for item in self.corpus.documents(None):
                if not isinstance(item, Document):
                    continue
                data = item.text.encode("utf-8", "surrogatepass")
                digest = hashlib.sha256(data).digest()
                if not left[digest]:
                    continue  # over the limit, or blank
                left[digest] -= 1
                at = rules.cut_end(item.text, part) if len(data) > target else 0
                cut += at > 0
                yield Document(item.name, item.text[: at or None], "train")
                if at:
                    yield Document(item.name, item.text[at:], "val")

        partial.start_splits()
        for item in limit(self._usable(parts()), self.request.max_tokens):
            partial.writers[item.place].write(item)
        if not rules.meets(partial.writers["val"].bytes, target):
            return False
        partial.keep_splits("ends")
        self.report(
            f"the validation split is the ends of {cut} long documents, cut at blank "
            "lines or else line ends: whole documents do not make up "
            f"{self.corpus.val_share:.1%}"
        )
        return True

    def _meta(self, partial: Partial) -> dict[str, Any]:
        splits = partial.finish()
        for split in SPLITS:
            if not splits[split]["documents"]:
                raise CorpusError(
                    f"the corpus left the {split} split empty: give more text"
                )
        return {
            "schema": SCHEMA,
            "dataset": self.request.dataset,
            "tokenizer": self.request.tokenizer,
            "vocab_size": VOCAB_SIZES[self.request.tokenizer],
            "eot": self.encoding.eot_token,
            "dtype": "uint16",
            "source": dict(self.corpus.source),
            "revision": self.corpus.revision(),
            "request": asdict(self.request),
            "held_out": {"by": partial.rule, "share": self.corpus.val_share},
            "skipped": partial.skipped,
            "splits": splits,
            "created": now(),
        }

    def close(self) -> None:
        """Close the files; what is not worth going on with is removed."""
        if self._partial is not None:
            self._partial.close()
            self._partial = None
            if not (self.place / CURSOR_FILE).exists():
                remove_folder(self.place, FILES)


def _put_in_place(folder: Path) -> None:
    """Move the finished files to their places, meta.json last; older ones go.

    If it is killed, the next call finds the rest of them, and meta.json among it.
    """
    partial = folder / PARTIAL
    (folder / META_FILE).unlink(missing_ok=True)
    for name in (*(f"{split}.bin" for split in SPLITS), SOURCES_FILE, META_FILE):
        if (partial / name).exists():
            os.replace(partial / name, folder / name)
    fsync_directory(folder)
    remove_folder(partial, FILES)


def recorded_files(folder: Path) -> dict[str, Any]:
    """The files that a data set was prepared from, as Corpus.files had them; {} if
    that is not known."""
    try:
        found = read_json(folder / SOURCES_FILE)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def _exclusive(folder: Path, report: Report) -> Iterator[None]:
    """Only one process prepares a data set; a second one waits for it."""
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
    what = "nothing is left of it"
    if kept.exists():
        what = f"what is done stays in {kept}, and {PREPARE} goes on with it"
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
