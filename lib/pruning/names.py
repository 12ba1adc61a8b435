"""What pruning methods and scores there are; imports no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lib.optim.names import OPTIMIZERS, optimizer_kind

SCOPES = ("global", "layer")


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodKind:
    """One pruning method's capabilities.

    needs_state: scores come from the optimizer's moments.
    regrows: a pruned weight may come back at a later mask update.
    is_structured: prunes whole attention heads by Adam's moments; they are removed
        from the exported model.
    """

    name: str
    summary: str
    needs_state: bool = False
    regrows: bool = False
    is_structured: bool = False


METHODS: dict[str, MethodKind] = {
    kind.name: kind
    for kind in (
        MethodKind(name="none", summary="no pruning"),
        MethodKind(name="magnitude", summary="the smallest |w|"),
        MethodKind(
            name="movement",
            summary="the lowest -sum g w (Sanh et al.)",
            regrows=True,
        ),
        MethodKind(
            name="state", summary="the lowest score of Adam's state", needs_state=True
        ),
        MethodKind(
            name="heads",
            summary="whole heads, those of the lowest |m| / sqrt(v)",
            is_structured=True,
        ),
    )
}

VARIANTS: dict[str, str] = {
    "bitter0": "|w m| |w| / (sqrt(v) + eps)",
    "bitter1": "|w|",
    "bitter2": "|w|",
    "bitter3": "|w| sqrt|m|",
    "bitter4": "|w| sqrt|m|, per layer, sparsity times 0.7 + 0.6 depth",
    "bitter5": "sign(w) m / sqrt(v) + 0.1 |w|",
    "bitter6": "|w| sqrt|m| |m| / sqrt(v)",
    "bitter7": "|w| v^(1/4)",
    "bitter8": "|w| sqrt|m / (1 - beta1^t)|",
    "bitter9": "|w| sqrt|m| + 0.1 sign(w) m / sqrt(v)",
}

# Scores that rank weights alike: bitter2 is bitter1's formula, and bitter8's
# correction is one factor for all weights, since all share the count t.
SAME_RANKING = {"bitter2": "bitter1", "bitter8": "bitter3"}


def method_kind(name: str) -> MethodKind:
    """The method called `name`; ValueError names the ones there are."""
    if name not in METHODS:
        raise ValueError(
            f"pruning method: {name!r} is unknown; allowed: {', '.join(METHODS)}"
        )
    return METHODS[name]


def why_not(optimizer: str, method: str) -> str | None:
    """Why this pair cannot be run, or None if it can.

    ValueError: an unknown optimizer or method.
    """
    kind = optimizer_kind(optimizer)
    if method_kind(method).needs_state and not kind.scores_pruning:
        return f"{method} pruning scores by adamwprune's state; {optimizer} has none"
    if kind.scores_pruning and not METHODS[method].needs_state:
        return f"{optimizer} without state pruning is adamw; use adamw"
    if METHODS[method].is_structured and kind.lacks_moments:
        lacks = f"{optimizer} {kind.lacks_moments}"
        return f"{method} are scored by Adam's two moments; {lacks}"
    return None


def pairs() -> Iterator[tuple[str, str]]:
    """The (optimizer, method) pairs that can be run, without method none."""
    for optimizer in OPTIMIZERS:
        for method in METHODS:
            if method != "none" and why_not(optimizer, method) is None:
                yield optimizer, method
