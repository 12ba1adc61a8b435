"""Choices among tiles or algorithms that compute the same, made once and then kept.

They differ in speed and, in 16-bit arithmetic, in rounding. One process chooses by
timing (``timing``) and stores its choices (``found``); every process that trains takes
those (``load``). A key without a choice gets the first option that runs. Nothing is
timed during the training, where a busy host or another process on the GPU would decide
the rounding of one run and not that of the next.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch

T = TypeVar("T", bound=int | tuple[int, ...])

_known: dict[str, Any] = {}  # made by an earlier process
_used: dict[str, Any] = {}  # by this one; its launches read nothing else
_by_default: set[str] = set()  # of these, the keys that were not timed
_is_timing = False


def choose(
    key: str,
    options: Sequence[T],
    seconds: Callable[[T], float],
    runs: Callable[[T], bool],
) -> T:
    """The option for ``key``: the one used before in this process, else the known
    one, else the fastest while ``timing``, else the first that ``runs``.

    ``options`` come in the order of preference. While a CUDA graph is captured
    nothing is tried. Raises RuntimeError if no option runs.
    """
    if key in _used:
        found: T = _used[key]
        return found
    known = next((o for o in options if o == _known.get(key)), None)
    capturing = torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
    if known is not None:
        choice = known
    elif _is_timing and not capturing:
        times = {option: seconds(option) for option in options}
        choice = min(options, key=lambda option: times[option])
        if times[choice] == float("inf"):
            raise RuntimeError(f"no kernel runs for {key}")
    else:
        able = (o for o in options if capturing or len(options) == 1 or runs(o))
        first = next(able, None)
        if first is None:
            raise RuntimeError(f"no kernel runs for {key}")
        choice = first
        _by_default.add(key)
    _used[key] = choice
    return choice


def still_open(key: str, options: Sequence[T]) -> Sequence[T]:
    """The options that ``choose`` may return for this key while ``timing``."""
    settled = _used.get(key, _known.get(key))
    return [option for option in options if option == settled] or options


@contextmanager
def timing() -> Iterator[None]:
    """Choose by timing what is not known yet."""
    global _is_timing
    before, _is_timing = _is_timing, True
    try:
        yield
    finally:
        _is_timing = before


def reconsider() -> None:
    """Drop the choices made without timing; the next use of each key chooses again."""
    for key in _by_default:
        del _used[key]
    _by_default.clear()


def load(known: Mapping[str, Any]) -> None:
    """Take these choices, as ``found`` gave them, from the next first use on."""
    _known.update({k: tuple(v) if isinstance(v, list) else v for k, v in known.items()})


def found() -> dict[str, Any]:
    """The choices that this process has made or taken so far, as plain data."""
    timed = {k: v for k, v in _used.items() if k not in _by_default}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in timed.items()}


def by_default() -> list[str]:
    """Keys that got their first option because no choice was known."""
    return sorted(_by_default)


def forget() -> None:
    """Drop every choice; the next use of each key chooses again."""
    _known.clear()
    _used.clear()
    _by_default.clear()
