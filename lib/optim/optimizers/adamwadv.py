"""AdamW with AMSGrad (Reddi et al.): the denominator never shrinks; torch's own.

The cosine schedule and the clip at 1.0 that belong to it are in the trainer, for all
arms.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lib.optim.optimizers import adamw
from lib.optim.spec import from_torch

if TYPE_CHECKING:
    from lib.optim.spec import Array, State


def formula(w: Array, g: Array, state: State, n: int, s: Mapping[str, Any]) -> Array:
    """Reddi et al., arXiv 1904.09237."""
    return adamw.formula(w, g, state, n, {**s, "amsgrad": True})


SPEC = replace(
    adamw.SPEC,
    name="adamwadv",
    summary="AdamW with AMSGrad",
    build=from_torch("AdamW", "betas", "eps", amsgrad=True),
    formula=formula,
    kept=3,
    place=4,
)
