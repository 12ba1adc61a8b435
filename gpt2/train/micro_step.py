"""A micro step: forward and backward of a micro batch, on a GPU as one graph.

A GPU computes a small micro batch faster than a host can launch its hundreds of
kernels. Recorded as a CUDA (or HIP) graph they are launched at once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from gpt2.train.failures import is_out_of_memory
from lib.gpu import device as devices
from lib.gpu.device import DeviceInfo
from lib.gpu.recording import record_graph, stream_restored, warm

Forward = Callable[[Tensor, Tensor], Tensor]


class MicroStep:
    """Adds the gradients of ``share`` x mean loss to .grad; returns that product."""

    def __init__(
        self,
        forward: Forward,
        device: DeviceInfo,
        precision: str,
        share: float = 1.0,
        scale: Callable[[Tensor], Tensor] = lambda loss: loss,
    ) -> None:
        """scale: of the loss before its gradients are taken, for fp16."""
        self.forward, self.device, self.precision = forward, device, precision
        self.share, self.scale = share, scale

    def __call__(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """tokens, targets [micro batch, T] -> a scalar without gradient."""
        with devices.autocast(self.device, self.precision):
            loss = self.forward(tokens, targets) * self.share
        self.scale(loss).backward()
        return loss.detach()


class Recorded:
    """A micro step as graphs: the first of an update makes the gradients, later
    ones add to them. All of it lies in memory of its own, which is used again by
    each replay: the loss is overwritten by the next."""

    def __init__(
        self,
        step: MicroStep,
        parameters: Sequence[nn.Parameter],
        tokens: Tensor,
        targets: Tensor,
        *,
        repeats: bool,
    ) -> None:
        """Record with a pair of the shape that all others will have; repeats:
        whether an update has more than one micro step. Leaves no gradient.

        Raises RuntimeError if something in the step cannot be recorded.
        """
        self.parameters = list(parameters)
        self.pair = tokens.clone(), targets.clone()
        self._drop()
        warm(lambda: step(*self.pair), tokens.device)
        self._drop()
        self.first, self.first_loss = record_graph(lambda: step(*self.pair))
        self.gradients = [p.grad for p in self.parameters]
        self.later, self.later_loss = self.first, self.first_loss
        if repeats:
            self.later, self.later_loss = record_graph(
                lambda: step(*self.pair), self.first.pool()
            )
        self._drop()

    def __call__(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """As MicroStep's, for a pair of the recorded shape."""
        for place, new in zip(self.pair, (tokens, targets), strict=True):
            place.copy_(new, non_blocking=True)
        if self.parameters[0].grad is not None:
            self.later.replay()
            return self.later_loss
        self.first.replay()
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        return self.first_loss

    def _drop(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None


def record(
    step: MicroStep,
    parameters: Sequence[nn.Parameter],
    tokens: Tensor,
    targets: Tensor,
    *,
    repeats: bool,
) -> tuple[MicroStep | Recorded, str]:
    """The step recorded, or as it is where that fails, with the reason."""
    try:
        with stream_restored(tokens.device):
            return Recorded(step, parameters, tokens, targets, repeats=repeats), ""
    except RuntimeError as error:
        if is_out_of_memory(error):
            raise
        for parameter in parameters:
            parameter.grad = None
        return step, str(error).splitlines()[0]
