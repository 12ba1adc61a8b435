"""Preparation of a data set: encode documents, hold some out, write token files."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
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
    SCHEMA,
    SPLITS,
    DataError,
    DataRequest,
    check_request,
)
from gpt2.settings.schema import VOCAB_SIZES
from lib.atomic_files import DamagedFile, atomic_write_json, read_json
from lib.cpus import usable_cores
from lib.files import remove_folder
from lib.jobs.run_files import now

if TYPE_CHECKING:
    import tiktoken

SAVE_BYTES = 16 << 20  # of text between two saved states of a preparation
LISTED = 20  # maximum names of left-out documents in meta.json
SOURCES_FILE = "sources.json"  # the files of the corpus, to detect changes


class ProgressBar(Protocol):
    """Progress bar in bytes of text, such as tqdm."""

    def update(self, n: float) -> object: ...


Report = Callable[[str], object]


@dataclass
class Work:
    """One preparation, in the subfolder PARTIAL of its data set."""

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
        """meta.json of a call that was killed while moving files into place."""
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
            self.report(f"resuming after {partial.text_bytes / 1e6:,.1f} MB of text")
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
                # Resuming would not help: the documents are the same.
                (self.place / CURSOR_FILE).unlink()
                raise
        meta = self._meta(partial)
        files = {name: list(stat) for name, stat in self.corpus.files.items()}
        atomic_write_json(self.place / SOURCES_FILE, files)
        atomic_write_json(self.place / META_FILE, meta)
        return meta

    def _open(self) -> Partial:
        """Open the data of an earlier call, or an empty folder."""
        if self.place.is_symlink():
            led = os.readlink(self.place)
            self.place.unlink()
            self.report(
                f"removed {self.place}, a link to {led!r}; the target is unchanged"
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
                f"{self.place} contains {strangers[0]}, which kablate did not write: "
                "move it away"
            )
        self.place.mkdir(exist_ok=True)
        return Partial(self.place, key, share)

    def _usable(self, items: Iterable[Item]) -> Iterator[Encoded]:
        """Usable documents as tokens; those left out are reported and recorded."""
        threads = min(8, usable_cores())
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
        """Split the collected documents."""
        sizes, share = partial.sizes(), self.corpus.val_share
        if len({digest for digest, _ in sizes}) < 2:
            more = "more text"
            if self.request.max_tokens:
                more += ", or raise GPT2_DATASET_MAX_TOKENS"
            raise CorpusError(
                f"the corpus has {len(sizes)} documents; at least two different ones "
                f"are needed, for training and validation. Give {more}"
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
                f"the validation split is {whole * share / target:.1%} of the text "
                f"instead of {share:.1%}: there are few documents, without line ends"
            )
        partial.divide(lambda number, digest: digest in chosen)

    def _divide_ends(self, partial: Partial, sizes: rules.Sizes, target: float) -> bool:
        """Hold out the ends of long documents, which are read a second time. Returns
        False, without any change, if the result is too far from the target."""
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
            f"the validation split consists of the ends of {cut} long documents, cut "
            "at blank lines or else line ends: whole documents do not add up to "
            f"{self.corpus.val_share:.1%}"
        )
        return True

    def _meta(self, partial: Partial) -> dict[str, Any]:
        splits = partial.finish()
        for split in SPLITS:
            if not splits[split]["documents"]:
                raise CorpusError(f"the {split} split is empty: give more text")
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
        """Close the files; remove them if there is nothing worth resuming."""
        if self._partial is not None:
            self._partial.close()
            self._partial = None
            if not (self.place / CURSOR_FILE).exists():
                remove_folder(self.place, FILES)
