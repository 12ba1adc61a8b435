"""State of an unfinished preparation: token files that grow, and a cursor.

    cursor.json       valid length of each file, and the place in the corpus
    documents.bin     digest, bytes and tokens of each document without a split yet
    collected.bin     their tokens
    train.bin, val.bin

The cursor is written atomically after the data that it counts is on disk. After any
kind of crash the work continues from the last cursor, and later data is cut off.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from gpt2.data.encode import Encoded, Tokens
from gpt2.data.split import MANY_BYTES, MANY_DOCUMENTS, Sizes, is_held_out
from gpt2.data.token_files import SPLITS, TOKEN_BYTES, split_file
from lib.atomic_files import DamagedFile, atomic_write_json, read_json
from lib.hashing import file_sha256

SCHEMA = 1
CURSOR_FILE = "cursor.json"
INDEX_FILE = "documents.bin"
COLLECTED_FILE = "collected.bin"
FILES = re.compile(
    r"(documents|collected|train|val)\.bin"
    r"|(\.?)(cursor|meta|sources)\.json(\.[0-9a-f]{12}\.tmp)?"
)
_ROW = np.dtype([("digest", "u1", 32), ("bytes", "<u8"), ("tokens", "<u8")])

Counts = Mapping[str, int]
NOTHING: Counts = {"tokens": 0, "documents": 0, "bytes": 0}


class TokenWriter:
    """Appends documents to a token file, after the part that is already counted."""

    def __init__(self, path: Path, counts: Counts = NOTHING) -> None:
        """Raises DamagedFile if the file is shorter than was counted."""
        self.tokens, self.documents = counts["tokens"], counts["documents"]
        self.bytes = counts["bytes"]
        self._file = open_at(path, self.tokens * TOKEN_BYTES)

    def write(self, item: Encoded) -> None:
        self._file.write(item.tokens.tobytes())
        self.tokens += item.tokens.size
        self.documents += 1
        self.bytes += item.bytes

    def flush(self) -> dict[str, int]:
        """Sync to disk and return the counts."""
        _flush(self._file)
        return {"tokens": self.tokens, "documents": self.documents, "bytes": self.bytes}

    def close(self) -> None:
        with suppress(OSError):  # the disk may be full
            self._file.close()


def open_at(path: Path, size: int) -> Any:
    """Open a file for writing after its first ``size`` bytes; the rest is cut off.

    Raises DamagedFile if it is smaller, or a link, which might lead anywhere.
    """
    if path.is_symlink():
        raise DamagedFile(f"{path} is a link")
    file = open(path, "r+b" if path.exists() else "w+b")
    if file.seek(0, os.SEEK_END) < size:
        file.close()
        raise DamagedFile(f"{path} is shorter than its preparation left it")
    file.truncate(size)
    file.seek(size)
    return file


def _flush(file: Any) -> None:
    file.flush()
    os.fsync(file.fileno())


class Partial:
    """Data written so far. Documents are collected and split once there are many of
    them; few documents are split at the end, when all their sizes are known."""

    def __init__(
        self, folder: Path, key: Mapping[str, Any], share: float | None
    ) -> None:
        """key: plain data that identifies the preparation; one with another key is not
        resumed. share: for validation, None to split only at the end.

        Raises DamagedFile if the files do not match the cursor.
        """
        self.folder, self._key, self._share = folder, dict(key), share
        cursor = self._read_cursor()
        self.place: Any = cursor.get("place")
        self.skipped: dict[str, Any] = cursor.get(
            "skipped", {"documents": 0, "first": []}
        )
        self.is_resumed = bool(cursor)
        self.rule = str(cursor.get("rule", "hash"))  # by which documents were split
        self._collected: TokenWriter | None = None
        self._index: Any = None
        self.writers: dict[str, TokenWriter] = {}
        try:
            self._open(cursor.get("files", {"collected": NOTHING}))
        except (KeyError, TypeError, AttributeError) as error:
            self.close()
            raise DamagedFile(f"{folder / CURSOR_FILE}: {error!r}") from error
        except BaseException:
            self.close()
            raise

    def _read_cursor(self) -> dict[str, Any]:
        try:
            found = read_json(self.folder / CURSOR_FILE)
            fits = found["schema"] == SCHEMA and found["key"] == self._key
            return dict(found) if fits else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    def _open(self, files: Mapping[str, Counts]) -> None:
        if "collected" in files:
            counts = files["collected"]
            self._collected = TokenWriter(self.folder / COLLECTED_FILE, counts)
            size = counts["documents"] * _ROW.itemsize
            self._index = open_at(self.folder / INDEX_FILE, size)
        else:
            self._open_splits(files)

    def _open_splits(self, files: Mapping[str, Counts]) -> None:
        for split in SPLITS:
            if split in self.writers:
                self.writers[split].close()
            counts = files.get(split, NOTHING)
            self.writers[split] = TokenWriter(split_file(self.folder, split), counts)

    @property
    def _files(self) -> list[TokenWriter]:
        return [self._collected] if self._collected else list(self.writers.values())

    @property
    def is_divided(self) -> bool:
        return self._collected is None

    @property
    def tokens(self) -> int:
        """Tokens of all documents so far."""
        return sum(writer.tokens for writer in self._files)

    @property
    def text_bytes(self) -> int:
        """Bytes of the text of all documents so far."""
        return sum(writer.bytes for writer in self._files)

    def add(self, item: Encoded) -> None:
        """Append a document. save() records the place of the last one."""
        self.place = item.place
        if self._collected is None:
            assert self._share is not None
            split = "val" if is_held_out(item.digest, self._share) else "train"
            self.writers[split].write(item)
            return
        self._collected.write(item)
        row = np.zeros((), _ROW)
        row["digest"] = np.frombuffer(item.digest, "u1")
        row["bytes"], row["tokens"] = item.bytes, item.tokens.size
        self._index.write(row.tobytes())
        many = self._collected.documents > MANY_DOCUMENTS
        if self._share is not None and many and self._collected.bytes > MANY_BYTES:
            held_out = {d for d, _ in self.sizes() if is_held_out(d, self._share)}
            self.divide(lambda number, digest: digest in held_out)

    def save(self) -> None:
        """Write the cursor after all data that it counts is on disk."""
        if self._collected is not None:
            _flush(self._index)
            files = {"collected": self._collected.flush()}
        else:
            files = {split: writer.flush() for split, writer in self.writers.items()}
        cursor = {"schema": SCHEMA, "key": self._key, "place": self.place}
        more = {"files": files, "skipped": self.skipped, "rule": self.rule}
        atomic_write_json(self.folder / CURSOR_FILE, {**cursor, **more})

    def sizes(self) -> Sizes:
        """Digest and bytes of each collected document."""
        return [(bytes(r["digest"].tobytes()), int(r["bytes"])) for r in self._rows()]

    def _rows(self) -> npt.NDArray[Any]:
        self._index.flush()
        return np.fromfile(self.folder / INDEX_FILE, _ROW)

    def divide(self, is_val: Callable[[int, bytes], bool], rule: str = "hash") -> None:
        """Assign each collected document to a split with is_val(number, digest)."""
        self._open_splits({})
        for number, item in enumerate(self._collected_documents()):
            split = "val" if is_val(number, item.digest) else "train"
            self.writers[split].write(item)
        self.keep_splits(rule)

    def start_splits(self) -> None:
        """Empty token files, for what is not divided as it was collected."""
        self._open_splits({})

    def _collected_documents(self) -> Iterator[Encoded]:
        assert self._collected is not None
        self._collected.flush()
        start = 0
        tokens: Tokens = np.memmap(self.folder / COLLECTED_FILE, dtype="<u2", mode="r")
        for row in self._rows():
            end = start + int(row["tokens"])
            yield Encoded(row["digest"].tobytes(), int(row["bytes"]), tokens[start:end])
            start = end

    def keep_splits(self, rule: str) -> None:
        """Finish collecting: from here on documents go directly to their split.

        rule: description of the split for meta.json.
        """
        assert self._collected is not None
        self.rule = rule
        self._collected.close()
        self._index.close()
        self._collected = self._index = None
        self.save()
        for name in (COLLECTED_FILE, INDEX_FILE):
            (self.folder / name).unlink()

    def finish(self) -> dict[str, Any]:
        """Sync the files and return the record of each split."""
        records = {split: writer.flush() for split, writer in self.writers.items()}
        self.close()
        return {
            split: {**record, "sha256": file_sha256(split_file(self.folder, split))}
            for split, record in records.items()
        }

    def close(self) -> None:
        for writer in (self._collected, *self.writers.values()):
            if writer is not None:
                writer.close()
        if self._index is not None:
            with suppress(OSError):
                self._index.close()
