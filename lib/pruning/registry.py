"""All pruning methods, by name, as lib/pruning/methods/ has them. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterator

from lib.discovery import specs_in
from lib.optim.registry import OPTIMIZERS, optimizer_spec
from lib.pruning.spec import MethodSpec

SCOPES = ("global", "layer")
NONE = MethodSpec(name="none", summary="no pruning")
METHODS: dict[str, MethodSpec] = {"none": NONE, **specs_in("lib.pruning.methods")}
VARIANTS = {name: text for m in METHODS.values() for name, text in m.variants.items()}


def method_spec(name: str) -> MethodSpec:
    """The method called `name`; ValueError lists the known ones."""
    if name not in METHODS:
        raise ValueError(
            f"pruning method: {name!r} is unknown; allowed: {', '.join(METHODS)}"
        )
    return METHODS[name]


def why_not(optimizer: str, method: str) -> str | None:
    """Why this pair cannot be run, or None if it can.

    ValueError: an unknown optimizer or method.
    """
    spec, pruning = optimizer_spec(optimizer), method_spec(method)
    if pruning.needs_state and not spec.unpruned:
        able = " or ".join(n for n, s in OPTIMIZERS.items() if s.unpruned)
        return f"{method} pruning scores by {able}'s state; {optimizer} has none"
    if spec.unpruned and not pruning.needs_state:
        return (
            f"{optimizer} without state pruning is {spec.unpruned}; use {spec.unpruned}"
        )
    if pruning.reads_moments and spec.lacks_moments:
        lacks = f"{optimizer} {spec.lacks_moments}"
        return f"{method} pruning scores by Adam's two moments; {lacks}"
    return None


def pairs() -> Iterator[tuple[str, str]]:
    """The (optimizer, method) pairs that can be run, without method none."""
    for optimizer in OPTIMIZERS:
        for method in METHODS:
            if method != "none" and why_not(optimizer, method) is None:
                yield optimizer, method
