"""Axis of model sizes: SIZES=4x256,6x384,124M, crossed with steps and seeds.

A size is layers x width (x heads), or one of GPT-2's. What follows from it:

heads       one per HEAD_WIDTH units of width as in GPT-2, at least FEWEST_HEADS
updates     the same for all, or TOKENS_PER_PARAMETER times the baseline's parameters
rate        the same for all, or in inverse proportion to the width (SIZES_SCALE_RATE)
widths      MLP and mechanisms as for one size: derived from the width, except those
            with a setting of their own

Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt2.mechanisms import enabled
from gpt2.plan.axes import Axis, refusing, require_few
from gpt2.plan.budget import budget
from gpt2.settings.configuration import override, strict_kconfig
from gpt2.settings.schema import SYMBOL_OF
from lib.kconfig.config_py import Config, ConfigError
from lib.kconfig.dotconfig import COMMAND_LINE
from lib.suggestions import hint

if TYPE_CHECKING:
    from gpt2.plan.jobs import Job, Plan

SIZE, SIZES, SCALED = "size", "SIZES", "SIZES_SCALE_RATE"
HEAD_WIDTH, FEWEST_HEADS = 64, 4
DIMENSIONS = ("n_layer", "n_head", "n_embd")
SHAPE = ("model_size", *DIMENSIONS)
ONE_WIDTH = ("head_dim", "mlp_width")  # of one size; 0 is derived from the width
RATE_DIGITS = 6
OTHER_NAMES = {"350M": "355M"}  # GPT-2 medium, before its parameters were recounted
CUSTOM = re.compile(r"([0-9]+)x([0-9]+)(?:x([0-9]+))?")


def size_axis(config: Config) -> tuple[Axis, ...]:
    """The axis in CONFIG_SIZES; () if it is empty.

    Raises ValueError with the origin of the symbol for an unknown size, one that is
    there twice, one without a whole number of heads, and settings that fix for all
    sizes what follows from the size.
    """
    text = str(config.values.get(SIZES, "")).strip()
    if not text:
        return ()
    with refusing(config, SIZES):
        _require_derived(config)
        return (_axis([name.strip() for name in text.split(",")], config),)


def _axis(names: list[str], config: Config) -> Axis:
    models = strict_kconfig().members_of(SYMBOL_OF["model_size"])
    known = {OTHER_NAMES.get(name, name): symbol for name, symbol in models.items()}
    known.pop("custom", None)
    words: dict[str, str] = {}
    shapes: dict[tuple[Any, ...], str] = {}
    for given in names:
        name, assigned = _size(OTHER_NAMES.get(given, given), known)
        there = _at(config, name, assigned)
        shape = tuple(there.values[SYMBOL_OF[field]] for field in DIMENSIONS)
        if shape in shapes:
            raise ValueError(f"{shapes[shape]} and {given} are the same size")
        shapes[shape] = given
        words[name] = " ".join([*assigned, *_rate(config, there)])
    sets = (*SHAPE, "learning_rate") if config.values.get(SCALED) else SHAPE
    return Axis(SIZE, tuple(words), tuple(words.values()), SIZES, sets, True)


def _size(given: str, known: dict[str, str]) -> tuple[str, list[str]]:
    """Name of a size and the assignments that set it."""
    if given in known:
        return given, [f"{known[given]}=y"]
    found = CUSTOM.fullmatch(given)
    if not found:
        near = hint(given, known)
        raise ValueError(
            f"{given!r} is not a size{near}: write layers x width as in 4x256, with "
            f"heads as in 4x256x8, or one of {', '.join(known)}"
        )
    layers, width = int(found[1]), int(found[2])
    heads = _heads(width, given) if found[3] is None else int(found[3])
    by_rule = "" if found[3] is None else f"x{heads}"
    numbers = zip(DIMENSIONS, (layers, heads, width), strict=True)
    words = [f"{SYMBOL_OF[field]}={number}" for field, number in numbers]
    return f"{layers}x{width}{by_rule}", ["GPT2_MODEL_CUSTOM=y", *words]


def _heads(width: int, given: str) -> int:
    unit = HEAD_WIDTH if width > HEAD_WIDTH * FEWEST_HEADS else FEWEST_HEADS
    if width % unit:
        raise ValueError(
            f"{given}: a width of {width} is not a multiple of {unit}: choose one that "
            "is, or name the heads as in 4x256x8"
        )
    return max(FEWEST_HEADS, width // HEAD_WIDTH)


def _at(config: Config, name: str, words: list[str]) -> Config:
    try:
        return override(config, "", words)
    except ConfigError as error:
        raise ValueError(f"{name}: {error}".replace(f"{COMMAND_LINE}: ", "")) from error


def _rate(config: Config, there: Config) -> list[str]:
    """Assignment of the scaled learning rate; [] without SIZES_SCALE_RATE."""
    if not config.values.get(SCALED):
        return []
    before, after = (c.values[SYMBOL_OF["n_embd"]] for c in (config, there))
    symbol = SYMBOL_OF["learning_rate"]
    rate = float(str(config.values[symbol])) * int(str(before)) / int(str(after))
    return [f"{symbol}={rate:.{RATE_DIGITS}g}"]


def _require_derived(config: Config) -> None:
    """Raise ValueError where a setting fixes what follows from the size."""
    for symbol in (SYMBOL_OF[field] for field in ONE_WIDTH):
        if value := config.values.get(symbol):
            raise ValueError(
                f"{symbol}={value} ({config.origin(symbol)}) is a width of one size: "
                f"with {SIZES} it must be 0"
            )
    if not config.values.get(SCALED):
        return
    ratio, final = (SYMBOL_OF[field] for field in ("min_lr_ratio", "min_lr"))
    if not config.values.get(ratio) and float(str(config.values[final])):
        raise ValueError(
            f"{SCALED}=y scales the peak of the learning rate, and {final}="
            f"{config.values[final]} is the end of all schedules: set {ratio}=0.1"
        )


def with_sizes(config: Config, axes: Sequence[Axis]) -> tuple[Axis, ...]:
    """The axis of sizes, if there is one, and the others.

    Raises ValueError for an invalid one, if another axis sets what follows from the
    size, and for more points than MOST_POINTS.
    """
    sizes = size_axis(config)
    fixed = {field for axis in sizes for field in (*axis.sets, *ONE_WIDTH)}
    for axis in axes:
        if axis.field in fixed:
            also = f" with {SCALED}=y" if axis.field == "learning_rate" else ""
            raise ValueError(
                f"{axis.source} of {axis.symbol}: {SIZES}{also} sets it, too; leave "
                "one out"
            )
    require_few((*sizes, *axes))
    return (*sizes, *axes)


# ---- what a plan has of it --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Size:
    """A size of a plan: its first arm with its parameters; of all runs the distinct
    numbers of updates and peak learning rates, ascending, tokens and training FLOPs."""

    name: str
    first: Job
    parameters: int
    updates: tuple[int, ...]
    rates: tuple[float, ...]
    runs: int
    tokens: int
    flops: float

    def to_json(self) -> dict[str, Any]:
        s = self.first.settings
        return {
            "size": self.name,
            **{field: getattr(s.model, field) for field in DIMENSIONS},
            "parameters": self.parameters,
            "learning_rates": list(self.rates),
            "updates": list(self.updates),
            "runs": self.runs,
            "tokens": self.tokens,
            "flops": self.flops,
        }


def sizes_of(plan: Plan) -> list[Size]:
    """The sizes of a plan with their costs; [] without SIZES."""
    by_size: dict[str, list[Job]] = {}
    for job in plan.jobs:
        if SIZE in job.coordinates:
            by_size.setdefault(job.coordinates[SIZE], []).append(job)
    return [_costs(name, jobs) for name, jobs in by_size.items()]


def _costs(name: str, jobs: list[Job]) -> Size:
    tokens = [j.settings.tokens_per_update * j.settings.optim.max_iters for j in jobs]
    flops = [budget(job.settings).flops_training for job in jobs]
    parameters = budget(jobs[0].settings).parameters
    updates = sorted({job.settings.optim.max_iters for job in jobs})
    rates = sorted({job.settings.optim.learning_rate for job in jobs})
    work = sum(float(n) * each for n, each in zip(tokens, flops, strict=True))
    numbers = parameters, tuple(updates), tuple(rates)
    return Size(name, jobs[0], *numbers, len(jobs), sum(tokens), work)


def same_widths(plan: Plan) -> Iterator[str]:
    """A note for each width of a mechanism that does not follow the size."""
    if all(axis.field != SIZE for axis in plan.axes):
        return
    found: dict[str, set[int]] = {}
    for job in plan.jobs:
        for mechanism in enabled(job.settings):
            for name in mechanism.widths:
                found.setdefault(name, set()).add(job.settings.flat()[name])
    for name, values in found.items():
        if len(values) == 1:
            yield f"{SYMBOL_OF[name]}={min(values)} is the same at all sizes"
