"""Check that the arms of a plan are paired, before the first run starts.

Arms of a seed have to train on the same batches, from the same initial weights as far
as they have them in common, over the same number of tokens, and be scored on the same
windows; and each may differ from its parent in nothing but what its row declares.
Batches, windows and weights come from the code that trains, batches and windows from
the prepared text if it is there, weights at certificate size.
"""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from gpt2.data.token_files import DataError, MissingData
from gpt2.mechanisms.needs import WHOLE_CONTEXT
from gpt2.model import init
from gpt2.plan.jobs import Job, Plan
from gpt2.plan.matrix_cells import cell_changes, cells_of
from gpt2.plan.planning import SOLVED_FIELDS, step_settings
from gpt2.plan.registry import Step, Times
from gpt2.settings.schema import PART_OF, Settings
from gpt2.settings.shown import shown_name, shown_value
from gpt2.train.batch_split import split_batch
from gpt2.train.batches import TokenSplit, load_data
from gpt2.train.evaluate import Evaluator
from gpt2.train.fingerprints import fingerprint, windows_sum
from gpt2.train.run_context import RunContext
from gpt2.verify.certify_steps import Findings, subjects
from gpt2.verify.random_tokens import stand_in
from gpt2.verify.subject import Finding
from lib.gpu.device import select_device

NAME = "paired"
TRAINING = ("optim", "pruning", "data")  # parts: a title has to name changes in them
PERCENT = ("mechanism_share", "prune_sparsity")
SPARE = 1000  # random tokens beyond the windows that are scored

WeightKey = tuple[int, str, tuple[int, ...]]


@dataclass(slots=True)
class Pairing:
    """Result of the comparison: its extent, and problems by cell.

    text: what the tokens are of. batches: fingerprints by seed, of the updates.
    windows: of validation. weights: how many are common to several arms of a seed.
    """

    arms: int
    seeds: list[int]
    updates: list[int]
    text: str = ""
    batches: dict[int, list[str]] = field(default_factory=dict)
    validation: str = ""
    windows: int = 0
    weights: int = 0
    problems: dict[str, list[str]] = field(default_factory=dict)

    def add(self, cell: str, problem: str) -> None:
        """Note a problem of a cell, once for all seeds."""
        known = self.problems.setdefault(cell, [])
        if problem not in known:
            known.append(problem)

    def line(self) -> str:
        """Result in words."""
        if self.problems:
            return f"pairing: FAILED for {', '.join(self.problems)}"
        if self.arms == 1:
            return "pairing: one arm, so that there is nothing to compare"
        updates = ", ".join(map(str, self.updates))
        return (
            f"pairing: {self.arms} arms, seeds {', '.join(map(str, self.seeds))}: the "
            f"batches of updates {updates} and {self.windows} validation windows "
            f"({self.text}) and {self.weights} shared initial weights are the same"
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def lines(pairings: Iterable[Pairing]) -> list[str]:
    """Results in words, each once: those of the points of a sweep are often alike."""
    return list(dict.fromkeys(found.line() for found in pairings))


def with_pairing(
    cells: Sequence[Findings], pairings: Iterable[Pairing]
) -> list[Findings]:
    """Findings on cells, extended by whether each is paired with the others."""
    problems = {k: v[:4] for found in pairings for k, v in found.problems.items()}
    return [cell.extended(NAME, problems.get(cell.name, ())) for cell in cells]


def check_pairing(plan: Plan) -> Pairing:
    """Compare the arms of each seed with the first one of it, and with what their
    rows declare."""
    last = plan.jobs[0].settings.optim.max_iters
    found = Pairing(
        arms=len({job.cell for job in plan.jobs}),
        seeds=sorted({job.seed for job in plan.jobs}),
        updates=sorted({1, (last + 1) // 2, last}),
    )
    _compare_tokens(plan, found)
    _compare_weights(plan, found)
    for job in plan.jobs:
        for problem in undeclared(job, plan):
            found.add(job.cell, problem)
    return found


# ---- batches and validation windows ---------------------------------------------


def _compare_tokens(plan: Plan, found: Pairing) -> None:
    with _tokens(plan) as (found.text, splits):
        reader = _Reader(found.updates, splits)
        firsts: dict[int, tuple[Job, dict[str, Any]]] = {}
        for job in plan.jobs:
            try:
                mine = reader.read(job)
            except Exception as error:  # of this arm alone: the others are compared
                found.add(job.cell, Finding.of_crash(error).detail)
                continue
            first, theirs = firsts.setdefault(job.seed, (job, mine))
            for what in mine:
                if mine[what] != theirs[what]:
                    found.add(job.cell, f"{what} differ from those of {first.cell}")
        for seed, (_, read) in firsts.items():
            found.batches[seed] = [read[reader.batch_name(n)] for n in found.updates]
            found.validation = read["validation windows"]
    found.windows = plan.jobs[0].settings.data.eval_samples


@contextmanager
def _tokens(plan: Plan) -> Iterator[tuple[str, tuple[TokenSplit, TokenSplit] | None]]:
    """Origin of the tokens, and the splits; None if each job reads its own."""
    settings = plan.jobs[0].settings
    try:
        load_data(settings)
    except (MissingData, DataError):
        block = settings.model.block_size
        most = max(job.settings.data.eval_samples for job in plan.jobs)
        with tempfile.TemporaryDirectory() as folder:
            count = block + most + SPARE
            vocab = settings.vocab_size
            yield "random tokens, as no text is prepared", stand_in(
                Path(folder), train=count, val=count, vocab=vocab
            )
        return
    yield "prepared text", None


class _Reader:
    """Reads the batches and windows of a job with the code that trains."""

    def __init__(
        self, updates: Sequence[int], splits: tuple[TokenSplit, TokenSplit] | None
    ) -> None:
        self.updates, self._splits = updates, splits
        self._known: dict[object, str] = {}

    @staticmethod
    def batch_name(update: int) -> str:
        return f"the batches of update {update}"

    def read(self, job: Job) -> dict[str, Any]:
        """Fingerprints and lengths by what they are of."""
        settings = job.settings.replace(num_workers=0)
        train, val = self._splits or load_data(settings)
        split = split_batch(settings.effective_batch, settings.resources.batch_size)
        context = RunContext(
            device=select_device("cpu"), split=split, train=train, val=val
        )
        own = replace(job, settings=settings)
        return {
            **{self.batch_name(n): self._batch(context, own, n) for n in self.updates},
            "validation windows": self._validation(context, settings),
            "sequences per update": settings.effective_batch,
            "tokens per update": settings.tokens_per_update,
            "updates": (settings.optim.max_iters, settings.optim.time_budget),
        }

    def _batch(self, context: RunContext, job: Job, update: int) -> str:
        """Equal files and plans give equal batches, which are read once."""
        batches = context.batches(job, update - 1)
        key = (batches.source, update)
        if key not in self._known:
            count = context.split.accumulation
            pairs = (torch.stack(pair) for pair in islice(batches, count))
            self._known[key] = fingerprint(windows_sum(pair) for pair in pairs)
        return self._known[key]

    def _validation(self, context: RunContext, settings: Settings) -> str:
        batch = context.split.micro_batch
        evaluator = Evaluator(context.val, settings, context.device, batch)
        key = (context.val.path, settings.model.block_size, bytes(evaluator.offsets))
        if key not in self._known:
            self._known[key] = evaluator.fingerprint()
        return self._known[key]


# ---- initial weights ------------------------------------------------------------


def _compare_weights(plan: Plan, found: Pairing) -> None:
    """Weights of one name and shape, among models of equal depth, which they are
    scaled by, have to be equal bit for bit."""
    small = {cell: subject.settings for cell, subject in subjects(plan).items()}
    owners: dict[tuple[int, WeightKey], tuple[str, str]] = {}
    common: dict[int, set[WeightKey]] = {}
    for job in plan.jobs:
        try:
            weights = _weights(job, small[job.cell])
        except Exception as error:
            found.add(job.cell, Finding.of_crash(error).detail)
            continue
        for key, digest in weights.items():
            owner, wanted = owners.setdefault((job.seed, key), (job.cell, digest))
            if owner != job.cell:
                common.setdefault(job.seed, set()).add(key)
            if digest != wanted:
                name = key[1]
                found.add(job.cell, f"the initial {name} is not that of {owner}")
    found.weights = max(map(len, common.values()), default=0)


def _weights(job: Job, settings: Settings) -> dict[WeightKey, str]:
    model = init.initial_model(job, settings)
    return {
        (settings.model.n_layer, name, tuple(weight.shape)): hashlib.sha256(
            weight.detach().numpy().tobytes()
        ).hexdigest()
        for name, weight in model.state_dict().items()
    }


# ---- what a row declares --------------------------------------------------------


def undeclared(job: Job, plan: Plan) -> list[str]:
    """Differences of a job's settings from its parent's that its row, or its cell of a
    test matrix, does not declare."""
    mode = plan.base.matrix.mode
    if job.is_control:
        return _of_control(job, plan)
    if mode == "ablation" and job.step is not None:
        *above, step = plan.registry.lineage(job.step)
        rows = [problem for row in (*above, step) for problem in unnamed(row)]
        return [*_of_step(job, step, plan), *rows]
    return _of_cell(job, plan) if mode == "matrix" else []


def _of_step(job: Job, step: Step, plan: Plan) -> list[str]:
    if step.parent is None:
        return []
    theirs = _settings_of(step.parent, plan).flat()
    wanted = {
        name: value.of(theirs[name]) if isinstance(value, Times) else value
        for name, value in step.changes.items()
    }
    return _differences(job, theirs, wanted, f"step {step.parent}", SOLVED_FIELDS)


def _settings_of(step: int, plan: Plan) -> Settings:
    """Those of its job, if the plan has one."""
    jobs = (job for job in plan.jobs if not job.is_control)
    there = (job.settings for job in jobs if job.step == step)
    return next(there, None) or step_settings(plan.base, step, plan.registry)


def _of_control(job: Job, plan: Plan) -> list[str]:
    """An A/A control is its baseline with other kernels."""
    found = (other for other in plan.jobs if other.name == job.parent_name)
    baseline = next(found, None)
    if baseline is None:  # it was not asked for
        return []
    theirs = baseline.settings.flat()
    return _differences(job, theirs, {"other_kernels": True}, baseline.cell, ())


def _of_cell(job: Job, plan: Plan) -> list[str]:
    """Cells are laid over one configuration, which the first of them shows."""
    first = next(other for other in plan.jobs if not other.is_control)
    declared = {c.name: cell_changes(c, plan.base) for c in cells_of(plan.base)[0]}
    free = tuple(declared[first.arm])
    theirs = first.settings.flat()
    return _differences(job, theirs, declared[job.arm], first.cell, free)


def _differences(
    job: Job,
    theirs: Mapping[str, Any],
    wanted: Mapping[str, Any],
    other: str,
    free: Sequence[str],
) -> list[str]:
    """Fields that are neither as wanted nor, unless free, as theirs."""
    mine = job.settings.flat()
    problems = [
        f"{shown_name(name)} is {shown_value(mine[name])}, "
        f"declared {shown_value(value)}"
        for name, value in wanted.items()
        if mine[name] != value
    ]
    return problems + [
        f"{shown_name(name)} is {shown_value(mine[name])} and "
        f"{shown_value(theirs[name])} in {other}, undeclared"
        for name in mine
        if mine[name] != theirs[name] and name not in wanted and name not in free
    ]


def unnamed(step: Step) -> list[str]:
    """Values of a row that its title does not name.

    A reader knows an arm by its title, so that numbers in it, and whatever it changes
    in optimizer, schedule, pruning or data, must not say one thing and run another.
    """
    return [
        f"the row of step {step.id} sets {shown_name(name)} to {text}, which its title "
        "does not say"
        for name, value in step.changes.items()
        if (text := _spelled(step, name, value)) and not _says(step.title, text)
    ]


def _spelled(step: Step, name: str, value: Any) -> str:
    """Form of a value in a title; "" if the title need not name it."""
    if isinstance(value, Times):
        return str(value.ratio)
    if name == "ra_window" and value == WHOLE_CONTEXT:
        return "whole context"
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if PART_OF[name] not in TRAINING and (step.parent is None or not is_number):
        return ""
    if name in PERCENT:
        return f"{100 * value:g}%"
    return f"{value:g}" if is_number else str(value)


def _says(title: str, text: str) -> bool:
    pattern = rf"(?<![\w.]){re.escape(text)}(?!\w|\.\d)"
    return re.search(pattern, title, re.IGNORECASE) is not None
