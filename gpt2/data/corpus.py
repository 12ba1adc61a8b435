"""A corpus: documents in an order that depends only on their content and names.

Torch-free. Reading a corpus twice gives the same documents, and reading can start after
any of them, which is how an interrupted preparation resumes.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

PASSAGE = 8192  # minimum characters of a passage of a one-file corpus
ONE_TEXT_SHARE = 0.1  # as in nanoGPT's tiny Shakespeare
PARAGRAPH_END = re.compile(r"\n[ \t\r]*\n")
LINE_END = re.compile(r"\n")
BOUNDARIES = (PARAGRAPH_END, LINE_END)  # places to cut a text, in order of preference

Stat = tuple[int, int]  # bytes, and time of the last change in ns


class CorpusError(RuntimeError):
    """The documents cannot be read; the message says how to fix it."""


@dataclass(frozen=True)
class Document:
    """One text with a name for messages.

    place: plain data; reading a corpus from there continues after this document.
    """

    name: str
    text: str
    place: Any = None


@dataclass(frozen=True)
class LeftOutDocument:
    """Unusable document or folder with the reason; ``place`` as in Document."""

    name: str
    reason: str
    place: Any = None


Item = Document | LeftOutDocument


@dataclass(frozen=True)
class Corpus:
    """Source of documents and how it is split.

    documents: all of them, or those after a place (None: from the beginning).
    held_out: "hash" holds out documents by the hash of their text; "tail" holds out
    the last ones, for one text cut into passages, where the neighbours of a training
    passage would leak its continuation.
    revision: a string that changes if the documents do. files: the files it consists
    of.
    """

    documents: Callable[[Any], Iterator[Item]]
    source: Mapping[str, Any]
    val_share: float
    revision: Callable[[], str]
    held_out: Literal["hash", "tail"] = "hash"
    files: Mapping[str, Stat] = field(default_factory=dict)

    @property
    def total_bytes(self) -> int | None:
        """Bytes of all documents; None if unknown."""
        return sum(size for size, _ in self.files.values()) or None


# ---- one long text --------------------------------------------------------------


def one_text_corpus(
    read: Callable[[], str],
    source: Mapping[str, Any],
    revision: Callable[[], str],
    files: Mapping[str, Stat] | None = None,
    left_out: Sequence[LeftOutDocument] = (),
    must_divide: bool = True,
) -> Corpus:
    """Corpus of one text, cut at blank lines into passages, which are the documents.

    The validation split is the end of the text, as is usual for tiny Shakespeare:
    passages from its middle would have their context in training. must_divide: raise
    CorpusError where documents() finds a text that is a single passage.
    """

    def documents(place: Any) -> Iterator[Item]:
        if place is None:
            yield from left_out
        parts = passages(read())
        if must_divide and len(parts) < 2:
            what = (
                "of one line, which has no place to divide it into documents"
                if parts[0].strip()
                else "without text"
            )
            raise CorpusError(
                f"the text is one file {what}: give at least two files, or a text with "
                "line ends"
            )
        for number, passage in enumerate(parts):
            if number >= (place or 0):
                yield Document(f"passage {number}", passage, number + 1)

    return Corpus(
        documents, dict(source), ONE_TEXT_SHARE, revision, "tail", dict(files or {})
    )


def passages(text: str, size: int = PASSAGE) -> list[str]:
    """Cut a text at blank lines, or else at line ends; joined parts give the text
    again. A text that cannot be cut is one part.

    size: minimum characters of a passage; smaller for a text of under 20 passages.
    """
    size = min(size, max(1, len(text) // 20))
    for boundary in BOUNDARIES:
        parts = _cut(text, boundary, size)
        if len(parts) > 1:
            return parts
    return [text]


def _cut(text: str, boundary: re.Pattern[str], size: int) -> list[str]:
    parts, start = [], 0
    for match in boundary.finditer(text):
        if match.end() - start >= size and text[match.end() :].strip():
            parts.append(text[start : match.end()])
            start = match.end()
    return [*parts, text[start:]]
