"""Encode documents to tokens, in parallel and in order. Torch-free."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from gpt2.data.corpus import Document, Item, LeftOutDocument

if TYPE_CHECKING:
    import tiktoken

Tokens = npt.NDArray[np.uint16]

BATCH_CHARACTERS = 4 << 20  # of text encoded at once
MISFITS = 32  # consecutive documents over the limit, after which it counts as reached
RUST_PANIC = "PanicException"
LONG_RUN = 1 << 16  # minimum length of white space that bypasses the pattern
# \s in tiktoken's regular expressions, which does not include \x1c to \x1f.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


@dataclass(frozen=True)
class Encoded:
    """Document as tokens, including end-of-text; digest: of its UTF-8."""

    digest: bytes
    bytes: int
    tokens: Tokens
    place: Any = None


def encode_documents(
    items: Iterable[Item], encoding: tiktoken.Encoding, threads: int
) -> Iterator[Encoded | LeftOutDocument]:
    """Encode in parallel, keeping the order; blank documents are skipped.

    A document on which the tokenizer fails is left out and named.
    """
    with ThreadPoolExecutor(threads) as pool:
        for batch in _batches(items):
            yield from pool.map(lambda item: _encode_item(encoding, item), batch)


def _batches(items: Iterable[Item]) -> Iterator[list[Item]]:
    batch: list[Item] = []
    size = 0
    for item in items:
        if isinstance(item, Document):
            if not item.text.strip():
                continue
            size += len(item.text)
        batch.append(item)
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encode_item(encoding: tiktoken.Encoding, item: Item) -> Encoded | LeftOutDocument:
    if isinstance(item, LeftOutDocument):
        return item
    try:
        return encode_document(encoding, item)
    except UnicodeEncodeError as error:
        reason = f"not Unicode at character {error.start:,}"
    except BaseException as error:  # as panics of tiktoken's Rust code are
        if not isinstance(error, ValueError) and type(error).__name__ != RUST_PANIC:
            raise
        reason = f"the {encoding.name} tokenizer fails on it ({error})"
    size = f"{len(item.text):,} characters"
    return LeftOutDocument(item.name, f"{reason}; {size}", item.place)


def encode_document(encoding: tiktoken.Encoding, document: Document) -> Encoded:
    """Tokens of the text and one end-of-text; special tokens in it are plain text."""
    data = document.text.encode("utf-8")
    tokens = encode_text(encoding, document.text)
    ended = np.append(tokens, encoding.eot_token).astype("<u2")
    return Encoded(hashlib.sha256(data).digest(), len(data), ended, document.place)


def encode_text(
    encoding: tiktoken.Encoding, text: str, long_run: int = LONG_RUN
) -> npt.NDArray[np.uint32]:
    """Tokens of a text, the same for every long_run >= 2.

    tiktoken's pattern backtracks over a run of white space character by character, with
    a stack entry for each: from about 400,000 characters on the stack overflows. The
    pattern makes one piece of such a run except for its last character, which may
    belong to the following word. So this piece is passed to the byte-pair merges
    without the pattern, and the text before and after it is encoded separately.
    """
    parts, start = [], 0
    has_pieces = encoding.name == "gpt2" and len(text) >= long_run
    runs = re.finditer(f"[{_SPACE}]{{{long_run},}}", text) if has_pieces else ()
    for run in runs:
        end = run.end() - (run.end() < len(text))
        parts.append(_by_pattern(encoding, text[start : run.start()]))
        piece = encoding._encode_single_piece(text[run.start() : end])
        parts.append(np.array(piece, dtype=np.uint32))
        start = end
    return np.concatenate([*parts, _by_pattern(encoding, text[start:])])


def _by_pattern(encoding: tiktoken.Encoding, text: str) -> npt.NDArray[np.uint32]:
    return encoding.encode_to_numpy(text, disallowed_special=())


def limit(
    items: Iterable[Encoded], max_tokens: int, taken: int = 0
) -> Iterator[Encoded]:
    """Whole documents with at most max_tokens in total (0: no limit).

    taken: tokens of documents before these. A document that does not fit is left out;
    after MISFITS consecutive ones the rest is not read.
    """
    total, misfits = taken, 0
    if max_tokens and total >= max_tokens:
        return
    for item in items:
        if not max_tokens or total + item.tokens.size <= max_tokens:
            total, misfits = total + item.tokens.size, 0
            yield item
        elif (misfits := misfits + 1) == MISFITS:
            break
        if max_tokens and total >= max_tokens:
            break
