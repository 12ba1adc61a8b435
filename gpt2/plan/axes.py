"""Axes of a sweep: SWEEP="RA_WINDOW=16,32,64 RA_ALPHA=0.1,0.3".

An axis is a setting and its values. A point of the grid has one value per axis, and is
the configuration with these values given on the command line, so that all rules of
settings hold for them. Torch-free.
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt2.settings.configuration import override, strict_kconfig
from gpt2.settings.parse import convert
from gpt2.settings.schema import FIELD_TYPES, PART_OF, SYMBOL_OF
from gpt2.settings.shown import text_of
from lib.kconfig.config_py import Config, ConfigError
from lib.kconfig.dotconfig import COMMAND_LINE

if TYPE_CHECKING:
    from lib.kconfig.strict import StrictKconfig

SWEEP, LR_SWEEP = "SWEEP", "LR_SWEEP"
MOST_POINTS = 1_000
# Settings outside of these parts do not change what is trained, with exceptions.
SWEPT_PARTS = ("model", "mechanisms", "optim", "pruning")
SWEPT_BESIDES = (
    "gradient_accumulation",
    "train_tokens",
    "train_epochs",
    "tokens_per_parameter",
    "min_lr_ratio",
)
WHY_NOT = {
    "data": "all runs of a results folder have the same data and evaluation",
    "resources": "it says where and how runs are executed, not what they train",
    "matrix": "it selects the runs and rules of the plan",
}
BETWEEN = re.compile(r",(?!\s*[a-z0-9_]+=)")

Point = Mapping[str, Any]  # value by field; some or all axes of a grid


@dataclass(frozen=True, slots=True)
class Axis:
    """A swept setting. values: of its field; words: assignments for each of them,
    separated by blanks; source: the symbol that has them; sets: other fields that the
    words assign; is_in_all: a coordinate even where it does not matter, so that names
    stay when values are added."""

    field: str
    values: tuple[Any, ...]
    words: tuple[str, ...]
    source: str = SWEEP
    sets: tuple[str, ...] = ()
    is_in_all: bool = False

    @property
    def symbol(self) -> str:
        return SYMBOL_OF.get(self.field, self.source)

    def __str__(self) -> str:
        return f"{self.symbol} {', '.join(map(text_of, self.values))}"


def axes_of(config: Config) -> tuple[Axis, ...]:
    """Axes in CONFIG_SWEEP and CONFIG_LR_SWEEP; () if both are empty.

    Raises ValueError with the origin of the symbol for an unknown or repeated setting,
    one that cannot be swept, and a value that is repeated or of the wrong type.
    """
    words = str(config.values.get(SWEEP, "")).split()
    rates = str(config.values.get(LR_SWEEP, "")).strip()
    if not (words or rates):
        return ()
    kconfig = strict_kconfig()
    with refusing(config, LR_SWEEP):
        last = (_rates(rates, kconfig),) if rates else ()
    with refusing(config, SWEEP):
        axes = (*(_axis(word, kconfig) for word in words), *last)
        fields = [axis.field for axis in axes]
        if double := {axis.symbol for axis in axes if fields.count(axis.field) > 1}:
            also = f" (once in {LR_SWEEP})" if last else ""
            once = "list all values of a setting once, separated by commas"
            names = ", ".join(sorted(double))
            raise ValueError(f"{names} is there twice{also}: {once}")
        require_few(axes)
    return axes


def require_few(axes: Iterable[Axis]) -> None:
    """Raise ValueError for a grid of more than MOST_POINTS."""
    points = math.prod(len(axis.values) for axis in axes)
    if points > MOST_POINTS:
        raise ValueError(f"{points:,} points; at most {MOST_POINTS:,} are allowed")


@contextmanager
def refusing(config: Config, symbol: str) -> Iterator[None]:
    """Add a symbol and its origin to a ValueError about its value."""
    try:
        yield
    except ValueError as error:
        where = config.origin(symbol)
        raise ValueError(f"{where}: CONFIG_{symbol}: {error}") from error


def _rates(text: str, kconfig: StrictKconfig) -> Axis:
    """Axis of LR_SWEEP, ascending. ValueError with fewer than two rates."""
    axis = _axis("LEARNING_RATE=" + "".join(text.split()), kconfig)
    if len(axis.values) < 2:
        raise ValueError(f"{text!r} is one rate: set LEARNING_RATE for that")
    return with_rates(axis, axis.values)


def with_rates(axis: Axis, rates: Iterable[float]) -> Axis:
    """The axis of learning rates with these, in ascending order."""
    values = tuple(sorted(rates))
    words = tuple(f"{axis.symbol}={text_of(rate)}" for rate in values)
    return Axis(axis.field, values, words, LR_SWEEP)


def _axis(word: str, kconfig: StrictKconfig) -> Axis:
    key, equals, texts = word.partition("=")
    if not equals:
        raise ValueError(f"{word!r} is not of the form RA_WINDOW=16,32,64")
    field = _field(key, kconfig)
    members = kconfig.members_of(SYMBOL_OF[field])
    pairs = [_value(field, text.strip(), members) for text in texts.split(",")]
    values = tuple(value for value, _ in pairs)
    if len(set(values)) != len(values):
        raise ValueError(f"{word} has a value twice: list each once")
    return Axis(field, values, tuple(assignment for _, assignment in pairs))


def _field(key: str, kconfig: StrictKconfig) -> str:
    """Field of a setting that can be swept, by any spelling of its name."""
    symbol = kconfig.symbol_for(key)
    field = next((f for f, s in SYMBOL_OF.items() if s == symbol), None)
    if field is None:
        chosen = [
            s for s in SYMBOL_OF.values() if symbol in kconfig.members_of(s).values()
        ]
        instead = f"; sweep {chosen[0]}" if chosen else ""
        raise ValueError(f"{symbol} is not a setting of a run{instead}")
    part, hint = PART_OF[field], FIELD_TYPES[field]
    if part not in SWEPT_PARTS and field not in SWEPT_BESIDES:
        raise ValueError(f"{symbol} cannot be swept: {WHY_NOT[part]}")
    if hint is str and not kconfig.members_of(symbol):
        raise ValueError(
            f"{symbol} cannot be swept: it is a text, not a number, choice or switch"
        )
    return field


def _value(field: str, text: str, members: Mapping[str, str]) -> tuple[Any, str]:
    """Value of a field and the assignment that sets it. ValueError if impossible."""
    symbol, hint = SYMBOL_OF[field], FIELD_TYPES[field]
    if not text:
        raise ValueError(
            f"{symbol} has an empty value: values are separated by commas alone, "
            "settings by blanks"
        )
    if members:
        if text not in members:
            raise ValueError(f"{symbol}={text!r} must be one of {', '.join(members)}")
        return text, f"{members[text]}=y"
    try:
        if hint is bool and text in ("y", "n"):
            return text == "y", f"{symbol}={text}"
        whole = hint is int and re.fullmatch(r"-?[0-9]+", text)
        value = convert(field, int(text) if whole else text)
    except ValueError as error:
        raise ValueError(f"{symbol}: {error}") from None
    return value, f"{symbol}={text}"


# ---- points -----------------------------------------------------------------------


def grid(axes: Iterable[Axis]) -> Iterator[dict[str, Any]]:
    """All points; the last axis varies fastest."""
    axes = list(axes)
    for values in itertools.product(*(axis.values for axis in axes)):
        yield {axis.field: v for axis, v in zip(axes, values, strict=True)}


def config_at(config: Config, axes: Sequence[Axis], point: Point) -> Config:
    """Configuration at a point. Raises ValueError if Kconfig does not allow it."""
    words = [
        word
        for axis in axes
        if axis.field in point
        for word in axis.words[axis.values.index(point[axis.field])].split()
    ]
    try:
        return override(config, "", words)
    except ConfigError as error:
        why = str(error).replace(f"{COMMAND_LINE}: ", "")
        tried = (a.source for a in axes if a.field in point and not a.sets)
        source = next(tried, SWEEP)  # a size is possible by itself
        with refusing(config, source):
            raise ValueError(why) from error


def set_by(before: Config, after: Config, point: Point) -> set[str]:
    """Fields with a value that follows from the values at a point."""
    return {
        field
        for field, symbol in SYMBOL_OF.items()
        if field in point
        or (
            after.origin(symbol) == COMMAND_LINE
            and (
                before.origin(symbol) != COMMAND_LINE
                or before.values.get(symbol) != after.values.get(symbol)
            )
        )
    }


def label(point: Point) -> str:
    """Name of a point: ``ra_window=16,ra_alpha=0.1``."""
    return ",".join(f"{field}={text_of(value)}" for field, value in point.items())


def titled(title: str, point: Point) -> str:
    """Title of an arm at a point: ``RA (ra_window=16, ra_alpha=0.1)``."""
    return f"{title} ({label(point).replace(',', ', ')})" if point else title


def swept_name(name: str, point: Point) -> str:
    """Name of a cell at a point: ``ra/ra_window=16``."""
    return f"{name}/{label(point)}" if point else name


def split_names(text: str) -> list[str]:
    """Names or patterns separated by commas. Those between coordinates, as in
    ``ra/ra_window=16,ra_alpha=0.1``, do not separate."""
    return [name for name in map(str.strip, BETWEEN.split(text)) if name]


def agreeing(mine: Point, theirs: Iterable[Point]) -> list[Point]:
    """Points that have the values of ``mine`` on the axes that both have."""
    return [
        other
        for other in theirs
        if all(other[field] == mine[field] for field in other.keys() & mine.keys())
    ]


def nearest(mine: Point, theirs: Iterable[Point], usual: Point) -> Point | None:
    """Point of the partner for a cell at ``mine``: equal on the axes that both have;
    on other axes it has the usual values if possible, else the first ones."""

    def fit(other: Point) -> tuple[int, int]:
        rest = other.keys() - mine.keys()
        return len(other.keys() & mine.keys()), sum(
            other[field] == usual.get(field) for field in rest
        )

    return max(agreeing(mine, theirs), key=fit, default=None)
