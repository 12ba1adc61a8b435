"""The pruner: masks for named weights, with any optimizer.

One optimizer update with pruning:

    loss.backward()                 # all micro steps
    pruner.before_update(n)           # n = 1, 2, ... this update
    clip_grad_norm_(...)            # pruned weights no longer count
    optimizer.step()
    pruner.after_update(n)

Between updates the weights themselves hold exact zeros, so the model's forward
is the masked forward, its gradient is the masked forward's gradient, and
whatever is saved or exported is pruned: no hook, no wrapper, nothing for
torch.compile to notice. The device is waited for at mask updates only.

Where a method does not regrow, a pruned weight stays pruned; its gradient and its
optimizer state are zero from then on. Where it does, as movement (Sanh et al., arXiv
2005.07683), scores of all weights go on accumulating, those of pruned weights with the
value they had when they were pruned, kept aside in `shadow`. A weight whose score rises
comes back with that value. Meanwhile its gradient is masked, and its optimizer state is
left to fade, both as in the paper's masked layer. Its value does not decay.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from lib.optim.groups import OptimizerLike
from lib.pruning.base import PrunerBase, betas_of, require_no_nan
from lib.pruning.masks import keep_masks
from lib.pruning.registry import method_spec
from lib.pruning.schedules import CubicSchedule
from lib.pruning.spec import Inputs, Moments, layer_sparsity

Tensors = dict[str, Tensor]


class Pruner(PrunerBase):
    """Prunes `weights` by `method` along `schedule`.

    weights: what may be pruned, by name; leave out embeddings and a head tied
        to them, norms and biases.
    scope: "global" (one threshold) or "layer" (one for each matrix).
    variant: the score of a method that has several; one by depth is always per layer
        and needs `depth_of`, 0 (first) to 1 (last) by name.
    ValueError: an unknown method.
    """

    kept_in = ("masks", "scores", "shadow")

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        optimizer: OptimizerLike,
        *,
        method: str,
        schedule: CubicSchedule | None,
        scope: str = "global",
        variant: str | None = None,
        depth_of: Mapping[str, float] | None = None,
    ) -> None:
        schedule = None if method == "none" else schedule
        super().__init__(method, weights, optimizer, schedule, scope)
        self.kind = method_spec(method)
        self.variant = variant
        self.depth_of = depth_of
        assert not self.kind.is_structured, "heads are pruned by HeadPruner"
        assert method == "none" or schedule is not None, "a method needs a schedule"
        assert not self.kind.variants or variant in self.kind.variants, variant
        needs_depths = set(weights) if self._by_depth else set()
        assert needs_depths <= set(depth_of or ()), "each weight needs its depth"
        self.masks: Tensors = {}
        self.scores: Tensors = {}
        self.shadow: Tensors = {}
        if method != "none":
            self.masks = {
                name: torch.ones_like(weight, dtype=torch.bool)
                for name, weight in self.weights.items()
            }
        for name, weight in self.weights.items():
            if self.kind.accumulate:
                self.scores[name] = torch.zeros_like(weight, dtype=torch.float32)
            if self.kind.regrows:
                self.shadow[name] = torch.zeros_like(weight)

    @property
    def _by_depth(self) -> bool:
        return self.variant in self.kind.by_depth

    def targets(self, step: int) -> list[tuple[tuple[str, ...], int]]:
        """(names, how many of their weights are to be zero) after `step` updates.

        One entry for a global threshold, otherwise one for each matrix.
        """
        if self.schedule is None or not self.masks:
            return []
        sparsity = self.schedule.sparsity(step)
        if self.scope == "global" and not self._by_depth:
            total = sum(weight.numel() for weight in self.weights.values())
            return [(tuple(self.weights), round(sparsity * total))]
        result: list[tuple[tuple[str, ...], int]] = []
        for name, weight in self.weights.items():
            share = sparsity
            if self._by_depth:
                assert self.depth_of is not None
                share = layer_sparsity(sparsity, self.depth_of[name])
            result.append(((name,), round(share * weight.numel())))
        return result

    @torch.no_grad()
    def before_update(self, step: int) -> None:
        """Call with the accumulated, unscaled gradient, before clipping."""
        self._require_next(step)
        self._accumulate()
        if self._started:
            for name, weight in self.weights.items():
                if weight.grad is not None:
                    weight.grad.masked_fill_(~self.masks[name], 0.0)

    def _accumulate(self) -> None:
        for name, sums in self.scores.items():
            weight = self.weights[name]
            if weight.grad is not None and self.kind.accumulate:
                aside = self.shadow.get(name)
                self.kind.accumulate(sums, weight.grad, weight, aside)

    def _zero_weights(self) -> None:
        for name, weight in self.weights.items():
            weight.masked_fill_(~self.masks[name], 0.0)

    def _update_masks(self, step: int) -> None:
        for names, pruned in self.targets(step):
            scores = [self._ranked(name) for name in names]
            for name, mask in zip(names, keep_masks(scores, pruned), strict=True):
                self._adopt(name, mask)

    def _ranked(self, name: str) -> Tensor:
        """Scores for the selection; -inf where pruned is pruned for good."""
        score = self._score(name)
        require_no_nan(name, bool(torch.isnan(score).any()))
        if self.kind.regrows:
            return score
        return score.masked_fill(~self.masks[name], -math.inf)

    def _score(self, name: str) -> Tensor:
        weight = self.weights[name]
        assert self.kind.score is not None, self.kind
        inputs = Inputs(
            lambda: self._moments(weight), self.scores.get(name), self.variant or ""
        )
        return self.kind.score(weight, inputs)

    def _moments(self, weight: nn.Parameter) -> Moments:
        state = self.optimizer.state[weight]
        beta1, _ = betas_of(self.optimizer, weight)
        return Moments(
            state["exp_avg"], state["exp_avg_sq"], float(state["step"]), beta1
        )

    def _adopt(self, name: str, mask: Tensor) -> None:
        """Take over a new mask; weights, shadow and state follow it."""
        weight, old = self.weights[name], self.masks[name]
        self.masks[name] = mask
        if self.kind.regrows:
            dense = torch.where(old, weight, self.shadow[name])
            weight.copy_(dense)
            self.shadow[name] = dense.masked_fill(mask, 0.0)
            return
        for value in self.optimizer.state.get(weight, {}).values():
            if isinstance(value, Tensor) and value.shape == weight.shape:
                value.masked_fill_(~mask, 0.0)

    def pruned(self) -> int:
        """How many weights the masks drop."""
        return sum(int((~mask).sum()) for mask in self.masks.values())
