"""Certificates of what trains the cells of a plan: optimizers and pruning methods."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from gpt2.plan.jobs import Plan
from gpt2.settings.schema import Settings
from gpt2.verify.certify_heads import certify_heads
from gpt2.verify.certify_steps import Findings, FindingsCache
from gpt2.verify.subject import Finding
from gpt2.verify.trainer_updates import certify_updates
from lib.forked import Begin, on_demand
from lib.optim.certify import Row, certify_optimizer
from lib.optim.registry import OPTIMIZERS
from lib.pruning.certify import certify_pruning
from lib.pruning.registry import METHODS, pairs
from lib.pruning.watched import ANY_SCORE, Case

OPTIMIZER_COLUMNS = (
    "groups",
    "reference",
    "decay",
    "resume",
    "state",
    "settings",
    *(name for spec in OPTIMIZERS.values() for name in spec.columns),
    "updates",
    "export",
)
PRUNING_COLUMNS = (
    "schedule",
    "gradients",
    "for good",
    "masks",
    "resume",
    "selection",
    "scores",
    "updates",
    "export",
)
HEAD_COLUMNS = tuple(name for name in PRUNING_COLUMNS if name != "masks")
KINDS = {  # of tables, with their columns
    "optimizer": OPTIMIZER_COLUMNS,
    "pruning": PRUNING_COLUMNS,
    "head pruning": HEAD_COLUMNS,
}


@dataclass(frozen=True, slots=True)
class Trained:
    """An optimizer (method "none"), or pruning with one.

    variant: the score of a method that has several, else empty. schedule: the shape of
    the decay if it is trained with LR_SCHEDULE=wsd, else empty.
    """

    optimizer: str
    method: str = "none"
    variant: str = ""
    schedule: str = ""

    @property
    def name(self) -> str:
        if self.method == "none":
            return self.optimizer + f", wsd {self.schedule}" * bool(self.schedule)
        return f"{self.optimizer} + {self.variant or self.method}"

    @property
    def kind(self) -> str:
        """Name of its table, one of KINDS."""
        if METHODS[self.method].is_structured:
            return "head pruning"
        return "optimizer" if self.method == "none" else "pruning"

    @property
    def columns(self) -> tuple[str, ...]:
        return KINDS[self.kind]

    def certify(self) -> dict[str, Row]:
        """Rows of the method by itself and as the trainer uses it; of two rows of one
        name, as of the export, the one that failed, if one did."""
        rows = self._alone()
        for name, row in certify_updates(
            self.optimizer, self.method, self.variant, self.schedule
        ).items():
            if name not in rows or rows[name].passed:
                rows[name] = row
        return rows

    def _alone(self) -> dict[str, Row]:
        if self.method == "none":
            return certify_optimizer(self.optimizer)
        if METHODS[self.method].is_structured:
            return certify_heads(self.optimizer)
        case = Case(self.optimizer, self.method, variant=self.variant or ANY_SCORE)
        return certify_pruning(case)


def trained_by(settings: Settings) -> list[Trained]:
    """Subject of the certificates of one cell's training."""
    optimizer, method = settings.optim.optimizer, settings.pruning.prune_method
    shape = settings.optim.lr_decay_shape
    schedule = shape if settings.optim.lr_schedule == "wsd" else ""
    alone = [Trained(optimizer, schedule=schedule)]
    if method == "none":
        return alone
    return [*alone, Trained(optimizer, method, settings.score_variant)]


def at_hand(plans: Iterable[Plan]) -> list[Trained]:
    """Optimizers, then pairs, that the jobs of these plans train with."""
    found = {
        subject: None
        for plan in plans
        for job in plan.jobs
        for subject in trained_by(job.settings)
    }
    return sorted(found, key=lambda subject: [*KINDS].index(subject.kind))


def everything() -> list[Trained]:
    """Every optimizer, and every pair that can be run."""
    found = [Trained(name) for name in OPTIMIZERS]
    for optimizer, method in pairs():
        scores = METHODS[method].variants or ("",)
        found += [Trained(optimizer, method, score) for score in scores]
    return sorted(found, key=lambda subject: [*KINDS].index(subject.kind))


def certify_each(
    subjects: Iterable[Trained], cache: Path | None = None, begin: Begin = on_demand
) -> Iterator[Findings]:
    """Check the certificates of each subject; its findings as it is done. cache and
    begin: as of gpt2.verify.certify_steps.certify_plan, with the same file."""
    known = FindingsCache(cache, begin)
    begun = {
        subject.name: known.begin(
            ["training", dataclasses.asdict(subject)], partial(_findings, subject)
        )
        for subject in subjects
    }
    for name, result in begun.items():
        yield Findings(name, result())


def _findings(subject: Trained) -> dict[str, Finding]:
    try:
        rows = subject.certify()
    except Exception as error:  # as of a step that does not train
        return {subject.columns[0]: Finding.of_crash(error)}
    return {
        name: Finding(row.passed, f"{row.figure:.2g}", f"{row.name}: {row.detail}")
        for name, row in rows.items()
    }


def with_training(
    steps: Sequence[Findings], plans: Iterable[Plan], trained: Sequence[Findings]
) -> list[Findings]:
    """Findings on steps, extended by whether their training is certified."""
    failed = {cell.name: cell for cell in trained if not cell.ok}
    settings: Mapping[str, Settings] = {
        job.cell: job.settings for plan in plans for job in plan.jobs
    }
    found = []
    for step in steps:
        names = [subject.name for subject in trained_by(settings[step.name])]
        wrong = [f"{n}: {failed[n].message}" for n in names if n in failed]
        found.append(step.extended("training", wrong))
    return found
