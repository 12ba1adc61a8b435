"""What optimizers there are and what each can do; imports no torch.

The menus, the plan and the report ask here, so that an impossible pair is
left out with a reason before anything is started.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimizerKind:
    """One optimizer's capabilities.

    decay: "decoupled" multiplies the weights by 1 - lr * decay at each
        update; "l2" adds decay * w to the gradient, which the optimizer then
        treats like any other gradient.
    scores_pruning: its state may serve as the score of method "state".
    lacks_moments: why its state is not Adam's m and v of every weight at all times;
        empty if it is.
    """

    name: str
    summary: str
    decay: str
    scores_pruning: bool = False
    lacks_moments: str = "does not keep them"


OPTIMIZERS: dict[str, OptimizerKind] = {
    kind.name: kind
    for kind in (
        OptimizerKind(name="sgd", summary="SGD with momentum", decay="l2"),
        OptimizerKind(
            name="adam", summary="Adam with L2 penalty", decay="l2", lacks_moments=""
        ),
        OptimizerKind(
            name="adamw", summary="AdamW", decay="decoupled", lacks_moments=""
        ),
        OptimizerKind(
            name="adamwadv",
            summary="AdamW with AMSGrad",
            decay="decoupled",
            lacks_moments="",
        ),
        OptimizerKind(
            name="adamwspam",
            summary="AdamW with spike clipping and momentum reset",
            decay="decoupled",
            lacks_moments="resets them, and then |m| / sqrt(v) is the same everywhere",
        ),
        OptimizerKind(
            name="adamwprune",
            summary="AdamW whose state scores the weights to prune",
            decay="decoupled",
            scores_pruning=True,
            lacks_moments="",
        ),
        OptimizerKind(
            name="muon",
            summary="Muon for hidden matrices, AdamW for the rest",
            decay="decoupled",
            lacks_moments="keeps no second moment of hidden matrices",
        ),
    )
}


def optimizer_kind(name: str) -> OptimizerKind:
    """The optimizer called `name`; ValueError names the ones there are."""
    if name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer: {name!r} is unknown; allowed: {', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[name]
