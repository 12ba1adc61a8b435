"""An optimizer update: gradients over the effective batch, pruning, clip, step."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from gpt2.model.by_block import CompiledGPT
from gpt2.model.gpt import GPT
from gpt2.settings.schema import Settings
from gpt2.train.batches import Batch
from gpt2.train.build_optimizer import make_optimizer, make_pruner
from gpt2.train.micro_step import Forward, MicroStep, Recorded, record
from gpt2.train.run_context import RunContext
from lib.gpu import device as devices
from lib.optim.groups import set_learning_rate

LOWEST_SCALE = 1e-4  # a loss scale below this says that fp16 cannot hold the loss


class Updater:
    """Updater of a model's weights: optimizer, pruner, loss scaler, micro step."""

    def __init__(self, model: GPT, settings: Settings, context: RunContext) -> None:
        """model: initialised, on the device; its parameters are trained.

        Raises ValueError for what optimizer or pruner cannot honour.
        """
        self.device, self.ranks = context.device, context.ranks
        self.accumulation = context.split.accumulation
        self.limit = settings.optim.grad_clip or math.inf
        self.parameters = list(model.parameters())
        self.optimizer = make_optimizer(model, settings.optim)
        self.pruner = make_pruner(model, self.optimizer, settings)
        precision, resources = settings.optim.mixed_precision, settings.resources
        self.scaler = devices.grad_scaler(self.device, precision)
        # Counted on the device, which is waited for only in take_skipped().
        self._skipped = torch.tensor(0, device=self.device.torch_device)
        self.compiled: CompiledGPT | None = None
        if resources.compile_model:
            self.compiled = CompiledGPT(model, resources.compile_mode)
        forward: Forward = self.compiled or model
        self.plain_step = MicroStep(
            forward,
            self.device,
            precision,
            share=1 / (self.accumulation * self.ranks.world_size),
            scale=lambda loss: self.scaler.scale(loss),
        )
        self.micro_step: MicroStep | Recorded = self.plain_step

    def __call__(
        self, data: Iterator[Batch], update: int, rate: float
    ) -> tuple[Tensor, Tensor]:
        """Update number ``update``, counted from 1, at this learning rate.

        Returns the mean loss over all its tokens, and the gradient's norm before
        the clip.
        """
        set_learning_rate(self.optimizer, rate)
        loss = self.accumulate(data)
        return loss, self._apply(update)

    def accumulate(self, data: Iterator[Batch]) -> Tensor:
        """Gradients of the mean loss over all tokens of the update, from as many micro
        batches as it takes; that loss, a scalar."""
        total = torch.zeros((), device=self.device.torch_device)
        for _ in range(self.accumulation):
            total += self.micro_step(*next(data))
        self.ranks.sum_gradients(self.parameters)
        return self.ranks.sum(total)

    def _apply(self, update: int) -> Tensor:
        """Prune, clip, step; the gradient's norm before the clip."""
        optimizer = cast(torch.optim.Optimizer, self.optimizer)
        self.scaler.unscale_(optimizer)
        if self.scaler.is_enabled():
            self._drop_overflow()
        self.pruner.before_update(update)
        norm = nn.utils.clip_grad_norm_(self.parameters, self.limit)
        self.scaler.step(optimizer)
        self.scaler.update()
        self.pruner.after_update(update)
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def _drop_overflow(self) -> None:
        """fp16: the scaler has noted an overflow and will leave this update out;
        scores of pruning and sums of norms must not see it either."""
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        finite = torch.stack([torch.isfinite(gradient).all() for gradient in gradients])
        is_whole = finite.all()
        self._skipped += ~is_whole
        for gradient in gradients:
            gradient.nan_to_num_(nan=0.0, posinf=0.0, neginf=0.0)  # 0 x inf is NaN
            gradient.mul_(is_whole)

    def take_skipped(self) -> int:
        """Number of updates left out since the last call; waits for the device."""
        if not self.scaler.is_enabled():
            return 0
        skipped = int(self._skipped)
        self._skipped.zero_()
        return skipped

    def always_overflows(self) -> bool:
        """Whether no loss scale was small enough for fp16; waits for the device."""
        return self.scaler.is_enabled() and self.scaler.get_scale() < LOWEST_SCALE

    def has_finite_weights(self) -> bool:
        """Whether no weight is NaN or infinite; waits for the device."""
        finite = [torch.isfinite(p.detach()).all() for p in self.parameters]
        return bool(torch.stack(finite).all())

    # ---- before the first -------------------------------------------------------

    def warm_up(self, tokens: Tensor, targets: Tensor, times: int) -> None:
        """Forward and backward of a micro batch so many times, to no effect.

        tokens, targets [micro batch, T], on the device.
        """
        for _ in range(times):
            self.micro_step(tokens, targets)
            self.optimizer.zero_grad(set_to_none=True)
        devices.synchronize(self.device)

    def record(self, tokens: Tensor, targets: Tensor) -> str:
        """Replay recorded micro steps from now on, if they can be recorded: whether
        they are, or why not. All micro batches have to be of this one's shape."""
        assert self.micro_step is self.plain_step, "recorded twice"
        repeats = self.accumulation > 1
        self.micro_step, why = record(
            self.plain_step, self.parameters, tokens, targets, repeats=repeats
        )
        return f"not recorded: {why}" if why else "recorded"

    # ---- for a checkpoint -------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Everything but the weights: plain data and tensors."""
        return {
            "optimizer": self.optimizer.state_dict(),
            "pruner": self.pruner.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what state_dict gave; its other keys are not looked at."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.pruner.load_state_dict(state["pruner"])
        if state["scaler"]:
            self.scaler.load_state_dict(state["scaler"])
