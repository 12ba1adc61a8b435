"""Movement pruning (Sanh et al., arXiv 2005.07683): weights that move to zero go."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lib.pruning.spec import Inputs, MethodSpec

if TYPE_CHECKING:
    from lib.pruning.spec import Array, Tensor


def score(weight: Tensor, inputs: Inputs) -> Tensor:
    """-sum g w over all updates."""
    assert inputs.sums is not None
    return inputs.sums


def accumulate(
    sums: Tensor, gradient: Tensor, weight: Tensor, aside: Tensor | None
) -> None:
    """sums <- sums - g w in place, w being the dense weight (eq. 4).

    g is the gradient of the masked forward, w the weight under the mask. Non-finite
    entries of g count as 0: under a loss scaler such an update is skipped, and a score
    that took one in would be lost for good.
    """
    assert aside is not None
    gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    sums.addcmul_(gradient, weight, value=-1.0)
    sums.addcmul_(gradient, aside, value=-1.0)


def reference(w: Array, values: Mapping[str, Any]) -> Array:
    sums: Array = values["sums"]
    return sums


def sum_reference(sums: Array, g: Array, dense: Array) -> Array:
    return sums - g * dense


SPEC = MethodSpec(
    name="movement",
    summary="the lowest -sum g w (Sanh et al.)",
    score=score,
    reference=reference,
    accumulate=accumulate,
    sum_reference=sum_reference,
    regrows=True,
    place=2,
)
