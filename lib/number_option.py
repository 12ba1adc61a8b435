"""Options that users type as a variable, as in DELTA=0.003: numbers and names.

argparse would answer a wrong value with its usage and the option's own name, neither
of which a user of the variable has seen.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Allowed:
    """Numbers that an option takes; words: how a message calls them."""

    kind: Callable[[str], float]
    accepts: Callable[[float], bool]
    words: str


LARGEST = 2**63 - 1  # of the whole numbers that torch and numpy take
LOSS = Allowed(
    float, lambda x: x > 0 and math.isfinite(x), "a positive loss in nats, as in 0.003"
)
SHARE = Allowed(float, lambda x: 0 < x < 1, "a number between 0 and 1, as in 0.8")
COUNT = Allowed(int, lambda x: x >= 1, "a whole number of at least 1")
COUNT_OR_0 = Allowed(int, lambda x: x >= 0, "a whole number of at least 0")


def add_number(
    parser: argparse.ArgumentParser, name: str, allowed: Allowed, **words: Any
) -> None:
    """Add the option for a variable, as --delta for DELTA.

    words: as for add_argument. Parsing raises ValueError, naming variable, value and
    what is allowed, for any other value.
    """
    _add(parser, name, lambda text: number(name, text, allowed), words)


def add_name(
    parser: argparse.ArgumentParser, name: str, allowed: Sequence[str], **words: Any
) -> None:
    """Add the option for a variable that is one of a few names, as add_number does."""
    _add(parser, name, lambda text: one_of(name, text, allowed), words)


def one_of(name: str, text: str, allowed: Sequence[str]) -> str:
    """The text. Raises ValueError if it is not one of those allowed."""
    if text not in allowed:
        raise ValueError(f"{name}={text} must be {' or '.join(allowed)}")
    return text


def _add(
    parser: argparse.ArgumentParser,
    name: str,
    read: Callable[[str], object],
    words: dict[str, Any],
) -> None:
    class Option(argparse.Action):
        def __call__(
            self,
            parser: argparse.ArgumentParser,
            namespace: argparse.Namespace,
            values: Any,
            option_string: str | None = None,
        ) -> None:
            setattr(namespace, self.dest, read(values))

    parser.add_argument(f"--{name.lower()}", action=Option, **words)


def number(name: str, text: str, allowed: Allowed) -> float:
    """The number in a text.

    Raises ValueError if there is none, or one that is not allowed or above LARGEST.
    """
    try:
        value = allowed.kind(text)
    except ValueError:
        value = math.nan
    if not allowed.accepts(value):
        raise ValueError(f"{name}={text} must be {allowed.words}")
    if isinstance(value, int) and value > LARGEST:
        raise ValueError(f"{name}={text} is too large: at most {LARGEST}")
    return value
