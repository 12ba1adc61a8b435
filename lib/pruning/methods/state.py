"""State pruning: AdamWPrune's scores of a weight w by Adam's moments m and v.

The formulas and their names are those of earlier systems, kept as they are: bitter5 and
bitter9 keep what sign(w) m is large for, and as m is a gradient, these are the weights
that descent moves towards zero.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from lib.pruning.spec import EPS, Inputs, MethodSpec, Moments

if TYPE_CHECKING:
    from lib.pruning.spec import Array, Tensor

VARIANTS = {
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


def score(weight: Tensor, inputs: Inputs) -> Tensor:
    return variant_score(inputs.variant, weight, inputs.moments())


def variant_score(variant: str, weight: Tensor, state: Moments) -> Tensor:
    """The score `variant` in float32, shape of `weight`; KeyError: unknown variant."""
    size, first, root = weight.abs(), state.first, state.second.sqrt()

    def by_mean(mean: Tensor) -> Tensor:
        return size * mean.abs().sqrt()

    def towards() -> Tensor:
        return weight.sign() * first / (root + EPS)

    scores = {
        "bitter0": lambda: (weight * first).abs() * (size / (root + EPS)),
        "bitter1": lambda: size,
        "bitter2": lambda: size,
        "bitter3": lambda: by_mean(first),
        "bitter4": lambda: by_mean(first),
        "bitter5": lambda: towards() + 0.1 * size,
        "bitter6": lambda: by_mean(first) * (first.abs() / (root + EPS)),
        "bitter7": lambda: size * root.sqrt(),
        "bitter8": lambda: by_mean(first / (1.0 - state.beta1**state.step)),
        "bitter9": lambda: by_mean(first) + 0.1 * towards(),
    }
    return scores[variant]().float()


def reference(w: Array, values: Mapping[str, Any]) -> Array:
    """The scores bitter0 to bitter9 (eps 1e-8 added to each sqrt(v))."""
    import numpy as np

    m, v, t, beta1 = (values[name] for name in ("m", "v", "n", "beta1"))
    size, root, eps = np.abs(w), np.sqrt(v), 1e-8
    towards = np.sign(w) * m / (root + eps)
    return {
        "bitter0": size * np.abs(m) * size / (root + eps),
        "bitter1": size,
        "bitter2": size,
        "bitter3": size * np.sqrt(np.abs(m)),
        "bitter4": size * np.sqrt(np.abs(m)),
        "bitter5": towards + 0.1 * size,
        "bitter6": size * np.sqrt(np.abs(m)) * np.abs(m) / (root + eps),
        "bitter7": size * v**0.25,
        "bitter8": size * np.sqrt(np.abs(m / (1 - beta1**t))),
        "bitter9": size * np.sqrt(np.abs(m)) + 0.1 * towards,
    }[values["variant"]]


SPEC = MethodSpec(
    name="state",
    summary="the lowest score of Adam's state",
    score=score,
    reference=reference,
    reads_moments=True,
    needs_state=True,
    variants=VARIANTS,
    # bitter2 is bitter1's formula, and bitter8's correction is one factor for all
    # weights, since all share the count t.
    same_ranking={"bitter2": "bitter1", "bitter8": "bitter3"},
    by_depth=("bitter4",),
    place=3,
)
