"""Description of a pruning method (MethodSpec). Imports no torch.

Each method is one file in lib/pruning/methods/: SPEC, score, and the same score naively
in float64. What needs torch or numpy is imported inside its functions, so that plans
and listings start without them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lib.optim.groups import Tensor
    from lib.pruning.reference import Array

EPS = 1e-8  # keeps m / sqrt(v) finite where no gradient has come yet
LAYER_CAP = 0.95  # a layer keeps at least 5% of its weights where depth counts


@dataclass(frozen=True, slots=True)
class Moments:
    """Adam's state of one weight: m, v (raw), the count t, and beta1."""

    first: Tensor
    second: Tensor
    step: float
    beta1: float


@dataclass(frozen=True, slots=True)
class Inputs:
    """Inputs of a score, in addition to the weight.

    moments: called where the optimizer's are needed.
    sums: what `accumulate` has summed up so far, float32; None without it.
    """

    moments: Callable[[], Moments]
    sums: Tensor | None = None
    variant: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodSpec:
    """A pruning method: its score, and what the rest of the project must know.

    score: (weight, Inputs) -> a float32 score of each entry; the lowest are pruned.
    reference: the same in numpy from (weight, values): m, v, n and beta1 where it reads
        moments, sums where it accumulates, variant.
    accumulate: (sums, gradient, weight, aside) adds to the sums in place, before each
        update. The weight is 0 where pruned; aside has the pruned weights that may
        come back, and is 0 elsewhere (None where none comes back).
    sum_reference: (sums, gradient, weight with what is aside) -> sums, in numpy.
    reads_moments: scores by Adam's m and v, so that the optimizer must keep them.
    needs_state: only with an optimizer that is made for it (`unpruned`).
    regrows: a pruned weight may come back at a later mask update.
    is_structured: prunes whole attention heads, which are removed from the exported
        model; has a separate pruner, and no score of single weights.
    variants: if it has several scores, their names and formulas.
    same_ranking: variants that rank all weights as another one does.
    by_depth: variants whose sparsity grows with a layer's depth.
    against: the method that its cells are compared with, of the same optimizer.
    place: position in listings; equal ones are sorted by name.
    """

    name: str
    summary: str
    score: Callable[[Tensor, Inputs], Tensor] | None = None
    reference: Callable[[Array, Mapping[str, Any]], Array] | None = None
    accumulate: Callable[[Tensor, Tensor, Tensor, Tensor | None], None] | None = None
    sum_reference: Callable[[Array, Array, Array], Array] | None = None
    reads_moments: bool = False
    needs_state: bool = False
    regrows: bool = False
    is_structured: bool = False
    variants: Mapping[str, str] = field(default_factory=dict)
    same_ranking: Mapping[str, str] = field(default_factory=dict)
    by_depth: tuple[str, ...] = ()
    against: str = "magnitude"
    place: int = 100


def layer_sparsity(sparsity: float, depth: float) -> float:
    """The share for a layer at `depth` in 0 (first) to 1 (last), where depth counts."""
    return min(LAYER_CAP, sparsity * (0.7 + 0.6 * depth))
