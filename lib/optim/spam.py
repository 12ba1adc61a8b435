"""AdamWSPAM: AdamW with spike-aware clipping and momentum reset.

After arXiv 2501.06842 (Huang et al., ICLR 2025) and its authors' code. Updates
are counted n = 1, 2, ...; with interval T, threshold theta and warm-up N:

- n mod T == 0: m = v = 0, before the gradient enters.
- n >= 20 and n mod T >= 20: entries with g^2 > theta v become
  sign(g) sqrt(theta v); v is the previous, un-debiased second moment.
- k = n mod T updates after a reset, k < N: the learning rate is multiplied by
  s = 1 - 0.99 (1 + cos(pi k / (N + 1))) / 2; otherwise by 1.

The rest is torch's AdamW (fused on a GPU). Three choices are ours.
The decay takes the unscaled rate, as in the authors' code, and comes before
the update, as in torch, so that before its first reset and without spikes SPAM
is AdamW bit for bit. The bias correction's counter runs on through a reset, as
in the authors' code, unless reset_counter; the first ratio m / sqrt(v) after
one is then (1 - beta1) / sqrt(1 - beta2), damped by s. An entry whose v is
still exactly 0 when clipping begins is clipped to 0: it stays where it is
until the next reset.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lib.optim.config import OptimConfig
from lib.optim.eager import AdamW, skipped_by_scaler
from lib.optim.groups import Group, fused_options
from lib.optim.optimizers.adamwspam import CLIP_AFTER

WARMUP_DEPTH = 0.99  # s starts at 1 - WARMUP_DEPTH
UPDATES = "spam_updates"  # n, kept in the parameter groups and so in state_dict


def warmup_scale(update: int, interval: int, warmup: int) -> float:
    """The factor s on the learning rate at update n (dimensionless, 0.01 to 1)."""
    since_reset = update % interval
    if update < interval or since_reset >= warmup:
        return 1.0
    cosine = math.cos(math.pi * since_reset / (warmup + 1))
    return 1.0 - WARMUP_DEPTH * (1.0 + cosine) / 2.0


class AdamWSPAM(AdamW):
    """AdamW that clips spikes and resets its moments periodically.

    Gradients are clipped in place. State per parameter is AdamW's; the phase
    is one count in each parameter group, so a resumed run is exact. Which phases
    make sense: `refuse` of lib/optim/optimizers/adamwspam.py.
    """

    def __init__(
        self,
        groups: list[Group],
        *,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        threshold: float,
        interval: int,
        warmup: int,
        reset_counter: bool,
        fused: bool | None = None,
    ) -> None:
        self.threshold = threshold
        self.interval = interval
        self.warmup = warmup
        self.reset_counter = reset_counter
        super().__init__(groups, lr=lr, betas=betas, eps=eps, fused=fused)
        skipped_by_scaler(self)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        self.param_groups[-1].setdefault(UPDATES, self.param_groups[0].get(UPDATES, 0))

    @property
    def updates(self) -> int:
        """Updates done, over the whole run."""
        return int(self.param_groups[0][UPDATES])

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update."""
        self._count()
        update = self.updates
        if update % self.interval == 0:
            self._reset_moments()
        if update % self.interval >= CLIP_AFTER:
            self._clip_spikes()
        scale = warmup_scale(update, self.interval, self.warmup)
        if scale == 1.0:
            super().step()
        else:
            with self._scaled(scale):
                super().step()

    def _count(self) -> None:
        for group in self.param_groups:
            group[UPDATES] += 1

    def _reset_moments(self) -> None:
        moments: list[Tensor] = []
        for state in self.state.values():
            moments += [state["exp_avg"], state["exp_avg_sq"]]
            if self.reset_counter:
                state["step"].zero_()
        if moments:
            torch._foreach_zero_(moments)

    def _clip_spikes(self) -> None:
        """Clamp each gradient to +-sqrt(theta v), on the gradient itself.

        g^2 > theta v is |g| > sqrt(theta v), so the rule is a clamp; in-place
        foreach calls on p.grad cannot act on a copy, as g[mask] would.
        """
        gradients, seconds = self._with_history()
        if not gradients:
            return
        bounds = torch._foreach_mul(seconds, self.threshold)
        torch._foreach_sqrt_(bounds)
        torch._foreach_clamp_max_(gradients, bounds)
        torch._foreach_neg_(bounds)
        torch._foreach_clamp_min_(gradients, bounds)

    def _with_history(self) -> tuple[list[Tensor], list[Tensor]]:
        gradients, seconds = [], []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None and self.state.get(parameter):
                    gradients.append(parameter.grad)
                    seconds.append(self.state[parameter]["exp_avg_sq"])
        return gradients, seconds

    @contextmanager
    def _scaled(self, scale: float) -> Iterator[None]:
        """Scale the rate of Adam's update but not that of the decay.

        The decay is applied here at the full rate, and torch's decay is set to 0.
        """
        asked = [(group["lr"], group["weight_decay"]) for group in self.param_groups]
        try:
            for group, (rate, decay) in zip(self.param_groups, asked, strict=True):
                decayed = [p for p in group["params"] if p.grad is not None]
                if decay and decayed:
                    torch._foreach_mul_(decayed, 1.0 - rate * decay)
                group["lr"], group["weight_decay"] = rate * scale, 0.0
            yield
        finally:
            for group, (rate, decay) in zip(self.param_groups, asked, strict=True):
                group["lr"], group["weight_decay"] = rate, decay


def from_config(groups: list[Group], config: OptimConfig) -> AdamWSPAM:
    """AdamWSPAM with the phases that `config` asks for."""
    own = config.own
    return AdamWSPAM(
        groups,
        **config.adam,
        threshold=own["spam_threshold"],
        interval=own["spam_interval"],
        warmup=own["spam_warmup"],
        reset_counter=own["spam_reset_counter"],
        **fused_options(groups),
    )
