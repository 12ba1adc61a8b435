"""Documents to tokens, several at a time, in their order. No torch here."""

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

BATCH_CHARACTERS = 4 << 20  # of text tokenised at once
MISFITS = 32  # documents over the limit in a row, after which it counts as reached
RUST_PANIC = "PanicException"
LONG_RUN = 1 << 16  # characters of white space, from which on they are cut out
# As \s of tiktoken's regular expressions, which has none of \x1c to \x1f.
_SPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


@dataclass(frozen=True)
class Encoded:
    """A document as tokens, the end-of-text token included; digest: of its UTF-8."""

    digest: bytes
    bytes: int
    tokens: Tokens
    place: Any = None


def encode_documents(
    items: Iterable[Item], encoding: tiktoken.Encoding, threads: int
) -> Iterator[Encoded | LeftOutDocument]:
    """Encode in order, in parallel; blank documents are passed over.

    A document that the tokenizer fails on is left out by name.
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
    except (
        BaseException
    ) as error:  # a panic in tiktoken's Rust code is not an Exception
        if not isinstance(error, ValueError) and type(error).__name__ != RUST_PANIC:
            raise
        reason = f"the {encoding.name} tokenizer fails on it ({error})"
    size = f"{len(item.text):,} characters"
    return LeftOutDocument(item.name, f"{reason}; {size}", item.place)


def encode_document(encoding: tiktoken.Encoding, document: Document) -> Encoded:
    """Tokens of the text and one end-of-text; what looks like one is plain text."""
    data = document.text.encode("utf-8")
    tokens = encode_text(encoding, document.text)
    ended = np.append(tokens, encoding.eot_token).astype("<u2")
    return Encoded(hashlib.sha256(data).digest(), len(data), ended, document.place)


def encode_text(
    encoding: tiktoken.Encoding, text: str, long_run: int = LONG_RUN
) -> npt.NDArray[np.uint32]:
    """Tokens of a text, the same for every long_run, which is 2 or more.

    Within its pattern tiktoken goes back over a run of white space by one character,
    and keeps a place on its stack for each: from some 400,000 on that is full. The
    pattern makes one piece of such a run, but for the last character, which may
    belong to the word that follows. So this piece is taken to the byte-pair merges
    without the pattern, and what is before and behind it is encoded by itself.
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
    """Whole documents of at most max_tokens in all (0: no limit).

    taken: tokens of documents before these. A document that does not fit any more is
    left out; after MISFITS in a row the rest is not looked at.
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
