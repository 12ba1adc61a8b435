"""Items of an evaluation, read as data: documents and multiple-choice questions.

Torch-free.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.data.corpus import CorpusError, LeftOutDocument
from gpt2.data.text_files import text_corpus
from lib.safe_json import Unusable, read_records

MOST_CHOICES = 64


@dataclass(frozen=True, slots=True)
class Choice:
    """A text, continuations of it, and the place of the right one."""

    context: str
    choices: tuple[str, ...]
    answer: int


def read_texts(path: str, count: int, notes: list[str]) -> list[str]:
    """The first ``count`` documents of a folder, a glob or a file that are not blank.

    notes gets how many before them cannot be read, and the first. Raises ValueError if
    there are no documents.
    """
    found: list[str] = []
    left_out: list[str] = []
    try:
        for item in text_corpus(path, 0.1, must_divide=False).documents(None):
            if isinstance(item, LeftOutDocument):
                left_out.append(f"{item.name}: {item.reason}")
            elif item.text.strip():
                found.append(item.text)
            if len(found) == count:
                break
    except CorpusError as error:
        said = str(error).replace("GPT2_DATASET_TEXT_PATH", "TEXT")
        raise ValueError(said) from None
    if not found:
        raise ValueError(f"TEXT={path!r} has no documents with text in them")
    if left_out:
        notes.append(f"{path}: {len(left_out)} left out, the first {left_out[0]}")
    return found


def read_choices(path: str, count: int) -> list[Choice]:
    """The first ``count`` questions of a JSONL file.

    Each line is an object with "context", "choices" (texts that continue it as they
    are, so mostly with a blank in front) and "answer" (the place of the right one, from
    0). Raises ValueError, naming the line, for any other.
    """
    try:
        records, bad = read_records(Path(path), is_whole=True)
    except Unusable as error:
        raise ValueError(f"CHOICES={path}: {error}") from None
    if bad:
        raise ValueError(f"CHOICES={path}: line {bad[0]} is not a JSON object")
    if not records:
        raise ValueError(f"CHOICES={path}: no questions in it")
    found = []
    for number, record in enumerate(records[:count], 1):
        try:
            found.append(_choice(record))
        except ValueError as error:
            raise ValueError(f"CHOICES={path}: question {number}: {error}") from None
    return found


def _choice(record: dict[str, Any]) -> Choice:
    context, choices = record.get("context"), record.get("choices")
    answer = record.get("answer")
    if not isinstance(context, str):
        raise ValueError('"context" must be a text')
    texts = choices if isinstance(choices, list) else []
    are_texts = all(isinstance(text, str) and text for text in texts)
    if not are_texts or not 2 <= len(texts) <= MOST_CHOICES:
        raise ValueError(f'"choices" must be 2 to {MOST_CHOICES} texts')
    if type(answer) is not int or not 0 <= answer < len(texts):
        raise ValueError(f'"answer" must be a place from 0 to {len(texts) - 1}')
    return Choice(context, tuple(texts), answer)
