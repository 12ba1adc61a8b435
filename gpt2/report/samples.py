"""Samples of text that runs wrote at their end (samples.json), for the report.

They come from files that are not trusted: sizes are bounded, and characters that
control a terminal or the direction of text are left out.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from gpt2.report.arms import Arm
from gpt2.report.results import MatrixResults
from gpt2.report.verdicts import Judgement
from lib.jobs.run_files import SAMPLES_FILE
from lib.safe_json import Unusable, as_dict, read_foreign_json

MAX_BYTES = 1 << 20
MAX_TEXT = 4000
MAX_SAMPLES = 4  # per run


@dataclass(slots=True)
class Prompt:
    """Beginning of a validation document, its actual continuation, and those of the
    arms (label of the run, text)."""

    prompt: str
    actual: str
    texts: list[tuple[str, str]] = field(default_factory=list)


def sample_prompts(matrix: MatrixResults, judged: Judgement) -> list[Prompt]:
    """Prompts in the order of the runs, with one finished run of each arm."""
    found: dict[tuple[str, str], Prompt] = {}
    for arm in judged.arms:
        label, samples = _of_arm(matrix, arm)
        for prompt, actual, text in samples:
            one = found.setdefault((prompt, actual), Prompt(prompt, actual))
            one.texts.append((label, text))
    return list(found.values())


def _of_arm(matrix: MatrixResults, arm: Arm) -> tuple[str, list[tuple[str, str, str]]]:
    """Label and samples of the first finished run that has some."""
    for run in arm.done:
        path = matrix.root / run.run_dir / SAMPLES_FILE
        if not path.exists():
            continue
        try:
            samples = list(_read(read_foreign_json(path, MAX_BYTES)))
        except Unusable as error:
            matrix.leave_out(path, str(error))
            continue
        if samples:
            return f"{arm.label}, seed {run.row['seed']}", samples[:MAX_SAMPLES]
    return "", []


def _read(record: object) -> Iterator[tuple[str, str, str]]:
    """(prompt, actual continuation, the model's) of each complete sample."""
    samples = as_dict(record).get("samples")
    for sample in samples if isinstance(samples, list) else []:
        values = [as_dict(sample).get(name) for name in ("prompt", "actual", "text")]
        if all(isinstance(value, str) for value in values):
            prompt, actual, text = map(_printable, values)
            yield prompt, actual, text


def _printable(value: Any) -> str:
    return "".join(
        character
        for character in value[:MAX_TEXT]
        if character in "\n\t"
        or unicodedata.category(character) not in ("Cc", "Cf", "Cs")
    )
