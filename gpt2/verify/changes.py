"""Comparison of models, and certificate that each change of a step has an effect.

Two models are the same if they have the same named weights, give the same logits and
gradients for the same weights and tokens, start at the same weights and are trained by
the same updates. These are compared in this order, up to the first difference, so that
no list has to say which of them a field changes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import combinations
from math import inf
from typing import Any

import torch
from torch import Tensor

from gpt2.model.reference.measures import deviation, generic_sum
from gpt2.plan.planning import SOLVED_FIELDS, step_settings
from gpt2.plan.registry import Registry, Step
from gpt2.plan.run_length import seconds_of
from gpt2.plan.steps import SHIPPED
from gpt2.settings.checks import check
from gpt2.settings.schema import LARGEST_ARM, NO_WIDTH_REQUESTS, PART_OF, Settings
from gpt2.settings.shown import shown_name, shown_value
from gpt2.verify.subject import EXACT, LENGTHS, Finding, Subject, scramble

BATCH = ("batch_size", "gradient_accumulation")
MIXED = 1e-6  # bf16 against bf16: of the largest weight
Tensors = Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class Difference:
    """The first kind of difference between two models.

    size: relative to the largest number that was compared; infinite for shapes.
    """

    kind: str
    size: float


class Behaviour:
    """Shapes, function and initial weights of a subject, computed when first read."""

    def __init__(self, subject: Subject) -> None:
        self.subject = subject

    @cached_property
    def shapes(self) -> dict[str, torch.Size]:
        """Shapes of the parameters at certificate size."""
        return self.subject.shapes(self.subject.settings)

    @cached_property
    def full_shapes(self) -> dict[str, torch.Size]:
        return self.subject.shapes(self.subject.full)

    @cached_property
    def function(self) -> dict[str, Tensors]:
        return self.function_with()

    def function_with(self, **changes: Any) -> dict[str, Tensors]:
        """Logits of random tokens and the gradients of a generic sum of them."""
        subject = replace(
            self.subject, settings=self.subject.settings.replace(**changes)
        )
        model = subject.model()
        scramble(model, subject.seed, centre=1.0)  # whatever it would start from
        logits = model.double().logits(subject.tokens("function", 2))
        named = dict(model.named_parameters())
        slopes = torch.autograd.grad(
            generic_sum(logits), list(named.values()), materialize_grads=True
        )
        gradients = dict(zip(named, slopes, strict=True))
        return {"logits": {"logits": logits.detach()}, "gradients": gradients}

    @cached_property
    def start(self) -> dict[str, Tensor]:
        """The initial weights."""
        model = self.subject.model(generic=False)
        return {name: p.detach() for name, p in model.named_parameters()}


def difference(one: Behaviour, other: Behaviour) -> Difference | None:
    """The first difference between two models; None if they are the same."""
    for kind, look in KINDS.items():
        if size := look(one, other):
            return Difference(kind, size)
    return None


def _reshaped(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Infinite if a parameter that both have is of another shape, else 0."""
    common = one.keys() & other.keys()
    return inf if any(one[name] != other[name] for name in common) else 0.0


def _by_length(one: Behaviour, other: Behaviour) -> float:
    """Deviation at a length at which what tiny sizes cut off acts as in the run."""
    numbers = [
        {name: behaviour.subject.full.flat()[name] for name in LENGTHS}
        for behaviour in (one, other)
    ]
    if numbers[0] == numbers[1]:
        return 0.0
    reach = 2 + max(value for each in numbers for value in each.values())
    length = min(reach, one.subject.full.model.block_size)
    first, second = (
        behaviour.function_with(block_size=length, **each)
        for behaviour, each in zip((one, other), numbers, strict=True)
    )
    return _between(first, second)


def _between(one: Mapping[str, Tensors], other: Mapping[str, Tensors]) -> float:
    return max(_distance(one[name], other[name], EXACT) for name in one)


def _distance(one: Tensors, other: Tensors, least: float) -> float:
    """Largest difference between tensors that both have, relative to the largest
    number in them; 0 up to ``least``, which is rounding."""
    both = one.keys() & other.keys()
    if not both:
        return 0.0
    scale = max(max(one[n].abs().max(), other[n].abs().max()).item() for n in both)
    if any(one[name].shape != other[name].shape for name in both):
        return inf
    found = max(deviation(one[name], other[name]) for name in both)
    # What is not finite shows no difference, as a training that crashes shows none.
    return found / scale if least * scale < found < inf else 0.0


def _by_training(one: Behaviour, other: Behaviour) -> float:
    """After a few updates in float64, or, if those are the same, in bf16."""
    # Seldom needed, and it imports the trainer.
    from gpt2.verify.short_training import UPDATES, brought_down, trained

    pair = brought_down(*_as_trained(one.subject, other.subject))
    budgets = [seconds_of(s.optim.time_budget) for s in pair]
    pace = min((b for b in budgets if b), default=1.0) / UPDATES
    exact = [s.replace(mixed_precision="fp32") for s in pair]
    for attempt, least in ((exact, EXACT), (pair, MIXED)):
        first, second = (
            trained(b.subject, s, pace)
            for b, s in zip((one, other), attempt, strict=True)
        )
        if found := _distance(first, second, least):
            return found
        if exact == list(pair):
            break
    return 0.0


def _as_trained(one: Subject, other: Subject) -> tuple[Settings, Settings]:
    """Both at certificate size, with what that size sets aside and training reads.

    Of the resources, which are not part of a run's identity, only the batch differs:
    another kernel's rounding makes no other model.
    """
    tiny = [
        s.settings.replace(
            dropout=s.full.model.dropout, mixed_precision=s.full.optim.mixed_precision
        )
        for s in (one, other)
    ]
    batch = {name: tiny[1].flat()[name] for name in BATCH}
    return tiny[0], replace(tiny[1], resources=tiny[0].resources).replace(**batch)


KINDS: dict[str, Callable[[Behaviour, Behaviour], float]] = {
    "shapes": lambda a, b: _reshaped(a.shapes, b.shapes),
    "function": lambda a, b: _between(a.function, b.function),
    "shapes at full size": lambda a, b: _reshaped(a.full_shapes, b.full_shapes),
    "function at length": _by_length,
    "initial weights": lambda a, b: _distance(a.start, b.start, 0.0),
    "updates": _by_training,
}


# ---- the changes of a step --------------------------------------------------------


def changes(
    step: Step,
    subject: Subject,
    parent: Subject,
    base: Settings,
    registry: Registry = SHIPPED,
) -> Finding:
    """Each field in which a step differs from its parent makes a difference. That they
    differ in nothing else is the business of gpt2/verify/pairing.py.

    base: settings at real size over which both are laid.
    """
    mine, theirs = subject.full.flat(), parent.full.flat()
    changed = [name for name in step.changes if mine[name] != theirs[name]]
    problems: list[str] = []
    if not changed:
        same = ", ".join(
            f"{shown_name(n)} is {shown_value(theirs[n])} there already"
            for n in step.changes
        )
        problems.append(f"the same as step {step.parent} as configured: {same}")
    known = {s: Behaviour(s) for s in (subject, parent)}
    for name in changed:
        if name in NO_WIDTH_REQUESTS:
            acts = moves_widths(name, step, base, registry)
        else:
            acts = any(
                difference(*(known.get(s) or Behaviour(s) for s in pair))
                for pair in _with_and_without(name, changed, subject, parent)
            )
        if not acts:
            why = OF_DATA if PART_OF[name] == "data" else UNMOVED
            problems.append(f"{shown_name(name)}={shown_value(mine[name])} {why}")
    return Finding(not problems, f"{len(changed)} act", "; ".join(problems))


UNMOVED = (
    "changes nothing: logits, gradients, widths, initial weights and updates are the "
    "same without it"
)
OF_DATA = (
    "changes no model: all steps of a matrix train and are scored on the same data"
)


def _with_and_without(
    name: str, changed: Sequence[str], subject: Subject, parent: Subject
) -> Iterator[tuple[Subject, Subject]]:
    """The step with and without one change. Where the rules refuse that, since another
    change needs it: the parent with and without it, then the step without it and as
    few others as possible."""
    if alone := _with_fields_of(parent, (name,), subject):
        yield subject, alone
        return
    if added := _with_fields_of(subject, (name,), parent):
        yield added, parent
    others = [each for each in changed if each != name]
    for size in range(1, len(others)):
        for more in combinations(others, size):
            if fewer := _with_fields_of(parent, (name, *more), subject):
                yield subject, fewer
                return
    yield subject, parent


def _with_fields_of(
    source: Subject, names: Sequence[str], target: Subject
) -> Subject | None:
    """``target`` with fields of ``source``; None if the rules refuse that.

    Widths stay as they were solved; the requests that they were solved for are taken
    back, since those may need the field.
    """
    found = []
    for take, give in ((source.settings, target.settings), (source.full, target.full)):
        values = take.flat()
        fields = {name: values[name] for name in names}
        settings = give.replace(**{**NO_WIDTH_REQUESTS, **fields})
        try:
            check(settings)
        except ValueError:
            return None
        found.append(settings)
    return replace(target, settings=found[0], full=found[1])


def moves_widths(
    name: str, step: Step, base: Settings, registry: Registry = SHIPPED
) -> bool:
    """Whether the widths that are solved for a step follow a request for them.

    The parent's widths may meet it already, so other requests are tried too.
    """
    settings = partial(step_settings, base, registry=registry)
    asked = settings(step.id)
    value = asked.flat()[name]
    tried: list[Any] = [value / 2] if isinstance(value, float) else [LARGEST_ARM, "0"]
    if step.parent is not None:
        tried.insert(0, settings(step.parent).flat()[name])
    for other in tried:
        with suppress(ValueError):  # a combination that makes no sense shows nothing
            if _widths(settings(step.id, **{name: other})) != _widths(asked):
                return True
    return False


def _widths(settings: Settings) -> tuple[Any, ...]:
    values = settings.flat()
    return tuple(values[name] for name in SOLVED_FIELDS)


# ---- steps that are the same ------------------------------------------------------


def distinct(subjects: Mapping[str, Subject]) -> dict[str, Finding]:
    """No cell is the same model, trained in the same way, as one before it.

    The figure is the distance of logits and gradients from those of the cell that has
    the same parameters and comes nearest.
    """
    found = {cell: Behaviour(subject) for cell, subject in subjects.items()}
    nearest = dict.fromkeys(found, inf)
    problems: dict[str, list[str]] = {cell: [] for cell in found}
    for one, two in combinations(found, 2):
        if not _comparable(found[one], found[two]):
            continue
        try:
            differs = difference(found[one], found[two])
        except Exception as error:  # both run: what fails is their training
            problems[two].append(f"not compared with {one}: {error}")
            continue
        if differs is None:
            problems[two].append(f"is the same model as {one}")
        for cell in (one, two):
            nearest[cell] = min(nearest[cell], differs.size if differs else 0.0)
    return {
        cell: Finding(
            not problems[cell],
            "-" if nearest[cell] == inf else f"{nearest[cell]:.1e}",
            "; ".join(problems[cell]),
        )
        for cell in found
    }


def _comparable(one: Behaviour, other: Behaviour) -> bool:
    """Whether two models have the same parameters; not if one cannot be run, which
    other certificates report."""
    try:
        same = one.shapes == other.shapes and one.full_shapes == other.full_shapes
        return same and bool(one.function and other.function)
    except Exception:  # a step that crashes is what certificates are for
        return False
