"""Base of the pruners: the order of calls, what follows an update, true zeros."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from lib.optim.groups import OptimizerLike
from lib.pruning.registry import METHODS, SCOPES
from lib.pruning.schedules import CubicSchedule


def betas_of(optimizer: OptimizerLike, weight: Tensor) -> tuple[float, float]:
    """Adam's beta1 and beta2 of a weight's parameter group."""
    beta1, beta2 = next(
        group["betas"]
        for group in optimizer.param_groups
        if any(weight is member for member in group["params"])
    )
    return beta1, beta2


def has_moments(optimizer: OptimizerLike, weight: Tensor) -> bool:
    """Whether Adam's moments of a weight contain a gradient. They do not as long as a
    loss scaler skips every update, as it may skip the first ones in fp16: the state is
    then missing or, with torch's fused optimizers, zero with a count of 0.
    """
    state = optimizer.state.get(weight)
    return float(state["step"]) > 0 if state else False


def require_no_nan(name: str, is_nan: bool) -> None:
    """FloatingPointError if a score is NaN: the order would be meaningless."""
    if is_nan:
        raise FloatingPointError(f"pruning: score of {name} is not a number")


class PrunerBase:
    """Follows a schedule update by update, and counts zeros among the weights.

    kept_in: attributes with the tensors, by name, that a checkpoint has of a pruner.
    """

    kept_in: ClassVar[tuple[str, ...]] = ("masks",)
    masks: dict[str, Tensor]

    def __init__(
        self,
        method: str,
        weights: Mapping[str, nn.Parameter],
        optimizer: OptimizerLike,
        schedule: CubicSchedule | None,
        scope: str,
    ) -> None:
        """scope: one of registry.SCOPES."""
        assert scope in SCOPES, scope
        self.method = method
        self.weights = dict(weights)
        self.optimizer = optimizer
        self.schedule = schedule
        self.scope = scope
        self.step = 0
        self._is_due = False  # a mask update waits for the optimizer's state

    @property
    def _started(self) -> bool:
        """Whether the masks have been updated; before that, nothing is pruned."""
        return self.schedule is not None and self.step >= self.schedule.start

    def _require_next(self, step: int) -> None:
        if step != self.step + 1:
            raise ValueError(
                f"pruner: update {step} follows {self.step}; each update must come once"
            )

    @torch.no_grad()
    def after_update(self, step: int) -> None:
        """After optimizer.step(): new masks if due, then exact zeros.

        Masks that are due before the optimizer has made its first update are chosen
        after that update.
        """
        self._require_next(step)
        self.step = step
        if self.schedule is None:
            return
        self._is_due |= self.schedule.is_update(step)
        if self._is_due and self._can_score():
            self._update_masks(step)
            self._is_due = False
        if self._started:
            self._zero_weights()

    def _can_score(self) -> bool:
        """Whether there is all that scores are computed from."""
        if not METHODS[self.method].reads_moments:
            return True
        return any(has_moments(self.optimizer, w) for w in self.weights.values())

    def _update_masks(self, step: int) -> None:
        raise NotImplementedError

    def _zero_weights(self) -> None:
        raise NotImplementedError

    def zeros(self) -> tuple[int, int]:
        """(weights that are exactly zero now, all weights).

        Kept weights that happen to be 0 count too, so this may exceed what is pruned.
        """
        counts = [int((weight == 0).sum()) for weight in self.weights.values()]
        return sum(counts), sum(weight.numel() for weight in self.weights.values())

    def sparsity(self) -> float:
        """The share of true zeros among the weights, 0.0 to 1.0."""
        zeros, total = self.zeros()
        return zeros / total if total else 0.0

    def _kept(self) -> dict[str, dict[str, Tensor]]:
        return {kind: getattr(self, kind) for kind in self.kept_in}

    def state_bytes(self) -> int:
        """Bytes that the pruner keeps between updates."""
        return sum(x.nbytes for held in self._kept().values() for x in held.values())

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs; loadable with weights_only."""
        kept = {kind: dict(held) for kind, held in self._kept().items()}
        return {"method": self.method, "step": self.step, **kept}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a saved state, after the optimizer has taken over its own.

        ValueError if it is of another model or method.
        """
        if state["method"] != self.method:
            raise ValueError(
                f"pruner: checkpoint of method {state['method']!r}, "
                f"this run's is {self.method!r}"
            )
        for kind, held in self._kept().items():
            shapes = [{k: v.shape for k, v in x.items()} for x in (held, state[kind])]
            if shapes[0] != shapes[1]:
                raise ValueError(
                    f"pruner: the checkpoint's {kind} are of another model"
                )
            for name, tensor in held.items():
                tensor.copy_(state[kind][name])
        self.step = state["step"]
        if self._started:
            self._is_due = not self._can_score()
            self._zero_weights()
