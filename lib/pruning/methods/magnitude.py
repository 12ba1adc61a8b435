"""Magnitude pruning: the smallest weights go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lib.pruning.spec import Inputs, MethodSpec

if TYPE_CHECKING:
    from lib.pruning.spec import Array, Tensor


def score(weight: Tensor, inputs: Inputs) -> Tensor:
    """|w|."""
    return weight.abs().float()


def reference(w: Array, values: Mapping[str, Any]) -> Array:
    return abs(w)


SPEC = MethodSpec(
    name="magnitude",
    summary="the smallest |w|",
    score=score,
    reference=reference,
    against="none",
    place=1,
)
