"""Pruning of whole attention heads, chosen by Adam's signal-to-noise ratio.

A head owns slices of several parameters: rows of the query, key and value projections,
columns of the output projection, perhaps weights of gates. They are pruned together, so
that the head can be removed from the trained model, which is then smaller and faster;
scattered zeros make no model faster.

Between updates pruned heads are exact zeros, and so are their gradients and the
optimizer's state of them, as with the other methods (lib/pruning/pruner.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lib.optim.groups import OptimizerLike
from lib.pruning.base import PrunerBase, betas_of, require_no_nan
from lib.pruning.schedules import CubicSchedule, head_target
from lib.pruning.spec import EPS

METHOD = "heads"


@dataclass(frozen=True, slots=True)
class Slice:
    """The heads' share of one parameter: seen as [lead, heads, rest], head h owns
    [:, h]. lead is 3 of a fused projection, the rows of the output projection, and
    else 1. is_scored: its weights make the head's score.
    """

    parameter: Tensor
    lead: int = 1
    is_scored: bool = False

    def of(self, tensor: Tensor, heads: int) -> Tensor:
        """A view, never a copy, of a tensor shaped like the parameter."""
        return tensor.view(self.lead, heads, -1)


@dataclass(frozen=True, slots=True)
class HeadLayer:
    """An attention layer: its number of heads, and the slices they own, by name."""

    heads: int
    slices: Mapping[str, Slice]


def head_scores(layer: HeadLayer, optimizer: OptimizerLike) -> list[float]:
    """Mean of |m_hat| / (sqrt(v_hat) + eps) over the weights of each head.

    m_hat and v_hat are Adam's moments with bias correction. Kingma & Ba (arXiv
    1412.6980, section 2.1) call their ratio the signal-to-noise ratio: where it is
    small, it is uncertain whether m_hat points along the true gradient. eps is
    1e-8, to the side of the root, as in all scores here.
    """
    total, count = torch.zeros(layer.heads, dtype=torch.float64), 0
    for part in layer.slices.values():
        if part.is_scored:
            ratio = part.of(_signal_to_noise(part.parameter, optimizer), layer.heads)
            total += ratio.sum((0, 2), dtype=torch.float64).cpu()
            count += part.parameter.numel() // layer.heads
    return (total / count).tolist()


def _signal_to_noise(weight: Tensor, optimizer: OptimizerLike) -> Tensor:
    state, step = optimizer.state[weight], float(optimizer.state[weight]["step"])
    beta1, beta2 = betas_of(optimizer, weight)
    first = state["exp_avg"].float().abs() / (1.0 - beta1**step)
    second = state["exp_avg_sq"].float() / (1.0 - beta2**step)
    return first / (second.sqrt() + EPS)


def keep_heads(scores: Sequence[Sequence[float]], pruned: int) -> list[list[bool]]:
    """Masks over the heads of each layer that drop the `pruned` of lowest score.

    The last head of a layer is never dropped, so fewer may go. Of equal
    scores those that come first, by layer and then by head, are dropped.
    """
    keep = [[True] * len(layer) for layer in scores]
    order = sorted(
        (s, i, h) for i, layer in enumerate(scores) for h, s in enumerate(layer)
    )
    for _, layer, head in order:
        if pruned > 0 and sum(keep[layer]) > 1:
            keep[layer][head] = False
            pruned -= 1
    return keep


class HeadPruner(PrunerBase):
    """Prunes the heads of `layers` along `schedule`; used as Pruner is.

    weights: what true zeros are counted among, as for the other methods.
    scope: "global" (all heads are ranked together) or "layer" (those of each layer).
    `masks` hold a bool [heads] for each layer, False: pruned. ValueError: layers
    in which no head could go.
    """

    def __init__(
        self,
        weights: Mapping[str, nn.Parameter],
        layers: Mapping[str, HeadLayer],
        optimizer: OptimizerLike,
        *,
        schedule: CubicSchedule,
        scope: str = "global",
    ) -> None:
        if not any(layer.heads > 1 for layer in layers.values()):
            raise ValueError("pruning heads: every layer has one head, which stays")
        super().__init__(METHOD, weights, optimizer, schedule, scope)
        self.layers = dict(layers)
        self.masks = {
            name: torch.ones(layer.heads, dtype=torch.bool, device=_device(layer))
            for name, layer in self.layers.items()
        }

    def groups(self) -> list[tuple[str, ...]]:
        """The layers that share one order of their heads."""
        if self.scope == "global":
            return [tuple(self.layers)]
        return [(name,) for name in self.layers]

    def targets(self, step: int) -> list[tuple[tuple[str, ...], int]]:
        """(layers, how many of their heads are to be pruned) after `step` updates."""
        assert self.schedule is not None, "heads are pruned on a schedule"
        sparsity = self.schedule.sparsity(step)
        return [
            (names, head_target(sparsity, [self.layers[n].heads for n in names])[1])
            for names in self.groups()
        ]

    @torch.no_grad()
    def before_update(self, step: int) -> None:
        """Call with the accumulated, unscaled gradient, before clipping."""
        self._require_next(step)
        if self._started:
            for part, heads, mask in self._slices():
                if part.parameter.grad is not None:
                    _zero(part.of(part.parameter.grad, heads), mask)

    def _slices(self) -> Iterator[tuple[Slice, int, Tensor]]:
        """Every slice with its layer's heads and mask."""
        for name, layer in self.layers.items():
            for part in layer.slices.values():
                yield part, layer.heads, self.masks[name]

    def _zero_weights(self) -> None:
        for part, heads, mask in self._slices():
            _zero(part.of(part.parameter, heads), mask)

    def _zero_state(self) -> None:
        for part, heads, mask in self._slices():
            for value in self.optimizer.state.get(part.parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == part.parameter.shape:
                    _zero(part.of(value, heads), mask)

    def _update_masks(self, step: int) -> None:
        for names, pruned in self.targets(step):
            if not pruned:  # as at the start of a ramp
                continue
            masks = keep_heads([self._ranked(name) for name in names], pruned)
            for name, mask in zip(names, masks, strict=True):
                self.masks[name].copy_(torch.tensor(mask))
        self._zero_state()

    def _ranked(self, name: str) -> list[float]:
        """Scores for the selection; -inf where pruned, which is for good."""
        scores = self._scores(name)
        require_no_nan(name, any(math.isnan(score) for score in scores))
        kept = self.masks[name].tolist()
        return [s if k else -math.inf for s, k in zip(scores, kept, strict=True)]

    def _scores(self, name: str) -> list[float]:
        return head_scores(self.layers[name], self.optimizer)

    def kept(self) -> list[list[bool]]:
        """The masks as plain data, by layer."""
        return [mask.tolist() for mask in self.masks.values()]

    def pruned(self) -> int:
        """How many heads the masks drop."""
        return sum(mask.count(False) for mask in self.kept())


def _zero(view: Tensor, mask: Tensor) -> None:
    """Zeros in [lead, heads, rest] where the mask over the heads is False."""
    view.masked_fill_(~mask[None, :, None], 0.0)


def _device(layer: HeadLayer) -> torch.device:
    return next(iter(layer.slices.values())).parameter.device
