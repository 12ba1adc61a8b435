"""Ablation steps, and the registry in which they are looked up by number or name.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from lib.suggestions import hint


@dataclass(frozen=True, slots=True)
class Times:
    """A change relative to the parent: its value times a ratio, rounded."""

    ratio: Fraction

    def of(self, value: int) -> int:
        return max(1, round(value * self.ratio))

    def __str__(self) -> str:
        return f"{self.ratio} of the parent's"


@dataclass(frozen=True, slots=True)
class Step:
    """One arm: ``changes`` maps schema fields to values, relative to ``parent``.

    ``parent`` is also the comparison partner in the report.
    """

    id: int
    name: str
    title: str
    question: str
    parent: int | None
    changes: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Registry:
    """Steps by id: those of gpt2/plan/steps.py, and a user's own.

    own: ids of the latter (gpt2/plan/steps_file.py). text: content of their file, which
    is kept with the results.
    """

    steps: Mapping[int, Step]
    own: tuple[int, ...] = ()
    text: str = ""

    def __getitem__(self, step_id: int) -> Step:
        return self.steps[step_id]

    def lineage(self, step_id: int) -> Iterator[Step]:
        """Ancestors of a step from the root down to itself; KeyError if unknown."""
        step = self.steps[step_id]
        if step.parent is not None:
            yield from self.lineage(step.parent)
        yield step

    def changes_of(self, step_id: int) -> dict[str, tuple[Any, int]]:
        """Fields with (value, id of the step that set it), over the whole lineage."""
        merged: dict[str, tuple[Any, int]] = {}
        for step in self.lineage(step_id):
            merged |= {name: (value, step.id) for name, value in step.changes.items()}
        return merged

    def ids(self, wanted: Iterable[int | str]) -> tuple[int, ...]:
        """Ids of steps given by id or name. ValueError: unknown, or given twice."""
        names: dict[int | str, int] = {s.name: s.id for s in self.steps.values()}
        asked = list(wanted)
        found = [names.get(each, each) for each in map(as_id, asked)]
        if unknown := [str(each) for each in found if each not in self.steps]:
            own = ", ".join(f"{step} ({self.steps[step].name})" for step in self.own)
            texts = [each for each in unknown if not each.isdecimal()]
            known = [step.name for step in self.steps.values()]
            near = hint(texts[0], known) if texts else ""
            raise ValueError(
                f"there is no step {', '.join(sorted(unknown))}{near}; steps are 0 to "
                f"{max(self.steps.keys() - {*self.own})}"
                + (f", and of STEPS_FILE {own}" if own else "")
            )
        if len(set(found)) != len(found):
            raise ValueError(f"{','.join(map(str, asked))} has a step twice")
        return tuple(int(each) for each in found)


def as_id(which: int | str) -> int | str:
    """Id of a step that is written as one; a name as it is."""
    return int(which) if isinstance(which, str) and which.isdecimal() else which
