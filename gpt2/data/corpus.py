"""A corpus: documents in an order that depends only on their content and names.

No torch here. Reading a corpus twice gives the same documents, and it can be read from
any of them on: that is how a preparation that was killed goes on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

PASSAGE = 8192  # characters, at least, of a passage of a one-file corpus
ONE_TEXT_SHARE = 0.1  # as nanoGPT's tiny Shakespeare
PARAGRAPH_END = re.compile(r"\n[ \t\r]*\n")
LINE_END = re.compile(r"\n")
BOUNDARIES = (PARAGRAPH_END, LINE_END)  # where a text is cut, the better one first

Stat = tuple[int, int]  # bytes, and time of the last change in ns


class CorpusError(RuntimeError):
    """The documents cannot be had; the message names the ways out."""


@dataclass(frozen=True)
class Document:
    """One text with a name for messages.

    place: plain data; a corpus that is read from there goes on behind this document.
    """

    name: str
    text: str
    place: Any = None


@dataclass(frozen=True)
class LeftOutDocument:
    """A document or folder that cannot be used, and why; ``place`` as in Document."""

    name: str
    reason: str
    place: Any = None


Item = Document | LeftOutDocument


@dataclass(frozen=True)
class Corpus:
    """A source of documents and how it is divided.

    documents: all of them, or those behind a place (None: from the beginning).
    held_out: "hash" holds out documents by the hash of their text; "tail" holds
    out the last ones, for one text cut into passages, where neighbours of a
    training passage would give its continuation away.
    revision: a text that changes if the documents do. files: those it consists of.
    """

    documents: Callable[[Any], Iterator[Item]]
    source: Mapping[str, Any]
    val_share: float
    revision: Callable[[], str]
    held_out: Literal["hash", "tail"] = "hash"
    files: Mapping[str, Stat] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int | None:
        """Bytes of all documents, None while unknown."""
        return sum(size for size, _ in self.files.values()) or None


# ---- one long text --------------------------------------------------------------


def one_text_corpus(
    read: Callable[[], str],
    source: Mapping[str, Any],
    revision: Callable[[], str],
    files: Mapping[str, Stat] | None = None,
    left_out: Sequence[LeftOutDocument] = (),
) -> Corpus:
    """One text cut at its blank lines into passages, which are the documents.

    The validation split is the end of the text, as is usual for tiny
    Shakespeare: passages taken from its middle have their context in training.
    """

    def documents(place: Any) -> Iterator[Item]:
        if place is None:
            yield from left_out
        for number, passage in enumerate(passages(read())):
            if number >= (place or 0):
                yield Document(f"passage {number}", passage, number + 1)

    return Corpus(
        documents, dict(source), ONE_TEXT_SHARE, revision, "tail", dict(files or {})
    )


def passages(text: str, size: int = PASSAGE) -> list[str]:
    """Cut a text at blank lines, failing that at line ends; the parts join to it.

    size: characters a passage has at least, less for a text under 20 passages.
    Raises CorpusError for a text that cannot be cut.
    """
    size = min(size, max(1, len(text) // 20))
    for boundary in BOUNDARIES:
        parts = _cut(text, boundary, size)
        if len(parts) > 1:
            return parts
    raise CorpusError(
        "the corpus is one text of one line: it cannot be divided into training "
        "and validation. Give at least two files, or a text with line ends"
    )


def _cut(text: str, boundary: re.Pattern[str], size: int) -> list[str]:
    parts, start = [], 0
    for match in boundary.finditer(text):
        if match.end() - start >= size and text[match.end() :].strip():
            parts.append(text[start : match.end()])
            start = match.end()
    return [*parts, text[start:]]
