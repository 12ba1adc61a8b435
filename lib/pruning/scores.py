"""Scores of weights: the lowest are pruned. Elementwise, in float32."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

EPS = 1e-8  # keeps m / sqrt(v) finite where no gradient has come yet
LAYER_CAP = 0.95  # bitter4 leaves every layer at least 5% of its weights


@dataclass(frozen=True, slots=True)
class Moments:
    """Adam's state of one weight: m, v (raw), the count t, and beta1."""

    first: Tensor
    second: Tensor
    step: float
    beta1: float


def magnitude(weight: Tensor) -> Tensor:
    """|w|."""
    return weight.abs().float()


def _grad_magnitude(weight: Tensor, first: Tensor) -> Tensor:
    return weight.abs() * first.abs().sqrt()


def _signed_ratio(weight: Tensor, state: Moments) -> Tensor:
    return weight.sign() * state.first / (state.second.sqrt() + EPS)


def _bitter0(weight: Tensor, state: Moments) -> Tensor:
    stability = weight.abs() / (state.second.sqrt() + EPS)
    return (weight * state.first).abs() * stability


def _bitter1(weight: Tensor, state: Moments) -> Tensor:
    return weight.abs()


def _bitter3(weight: Tensor, state: Moments) -> Tensor:
    return _grad_magnitude(weight, state.first)


def _bitter5(weight: Tensor, state: Moments) -> Tensor:
    return _signed_ratio(weight, state) + 0.1 * weight.abs()


def _bitter6(weight: Tensor, state: Moments) -> Tensor:
    coherence = state.first.abs() / (state.second.sqrt() + EPS)
    return _grad_magnitude(weight, state.first) * coherence


def _bitter7(weight: Tensor, state: Moments) -> Tensor:
    return weight.abs() * state.second.sqrt().sqrt()


def _bitter8(weight: Tensor, state: Moments) -> Tensor:
    return _grad_magnitude(weight, state.first / (1.0 - state.beta1**state.step))


def _bitter9(weight: Tensor, state: Moments) -> Tensor:
    ratio = _signed_ratio(weight, state)
    return _grad_magnitude(weight, state.first) + 0.1 * ratio


_STATE_SCORES: dict[str, Callable[[Tensor, Moments], Tensor]] = {
    "bitter0": _bitter0,
    "bitter1": _bitter1,
    "bitter2": _bitter1,
    "bitter3": _bitter3,
    "bitter4": _bitter3,
    "bitter5": _bitter5,
    "bitter6": _bitter6,
    "bitter7": _bitter7,
    "bitter8": _bitter8,
    "bitter9": _bitter9,
}


def state_score(variant: str, weight: Tensor, state: Moments) -> Tensor:
    """AdamWPrune's score `variant` (formulas: names.VARIANTS), shape of `weight`.

    bitter5 and bitter9 keep what sign(w) m is large for. m is a gradient, so
    these are the weights that descent moves towards zero: the formula is the
    lineage's and is kept as it stands. ValueError: unknown variant.
    """
    if variant not in _STATE_SCORES:
        raise ValueError(
            f"adamwprune variant: {variant!r} is unknown; "
            f"allowed: {', '.join(_STATE_SCORES)}"
        )
    return _STATE_SCORES[variant](weight, state).float()


def accumulate_movement(
    score: Tensor, gradient: Tensor, weight: Tensor, shadow: Tensor
) -> None:
    """score <- score - g * w in place, w being the dense weight.

    Sanh et al. (arXiv 2005.07683, eq. 4): g is the gradient of the masked
    forward, w the weight beneath the mask. weight holds w where it is kept and
    0 where pruned, shadow the other way round. Non-finite entries of g count
    as 0: under a loss scaler such an update is skipped, and a score that took
    one in would be lost for good.
    """
    gradient = gradient.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0)
    score.addcmul_(gradient, weight, value=-1.0)
    score.addcmul_(gradient, shadow, value=-1.0)


def layer_sparsity(sparsity: float, depth: float) -> float:
    """bitter4's share for a layer at `depth` in 0 (first) to 1 (last)."""
    return min(LAYER_CAP, sparsity * (0.7 + 0.6 * depth))


def require_no_nan(name: str, score: Tensor) -> None:
    """FloatingPointError if a score is NaN: the order would be meaningless."""
    if bool(torch.isnan(score).any()):
        raise FloatingPointError(f"pruning: score of {name} is not a number")
