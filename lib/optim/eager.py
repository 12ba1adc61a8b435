"""torch's optimizers without what torch.compile needs of them.

torch wraps their methods so that no trace of its compiler enters them, and to wrap
one imports that compiler: half the time that a run on a CPU takes to start. We compile
models and never an update, so the methods serve as they are inside; they compute the
same. Where a torch wraps in a way that does not show, its wrappers stay.
"""

from __future__ import annotations

from functools import cache
from inspect import signature, unwrap
from typing import Any, TypeVar

import torch
from torch.optim import Optimizer

from lib.optim.groups import Group, fused_options

T = TypeVar("T", bound=Optimizer)
# Options of torch's optimizers that choose how the device computes an update.
OF_DEVICE = ("fused", "foreach", "capturable")


class Eager(Optimizer):
    """First base of an optimizer, the methods that all of them share."""

    add_param_group = unwrap(Optimizer.add_param_group)
    zero_grad = unwrap(Optimizer.zero_grad)
    state_dict = unwrap(Optimizer.state_dict)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from a state_dict, also from one of another kind of device.

        torch would restore all options of the groups, and with ``fused`` of a CPU an
        update on a GPU takes many kernels, and its counter of updates stays on the CPU.
        """
        own = {name: self.defaults[name] for name in OF_DEVICE if name in self.defaults}
        groups = [{**group, **own} for group in state_dict["param_groups"]]
        unwrap(Optimizer.load_state_dict)(self, {**state_dict, "param_groups": groups})


class AdamW(Eager, torch.optim.AdamW):
    step = torch.no_grad()(unwrap(torch.optim.AdamW.step))


@cache
def uncompiled(name: str) -> Any:
    """The class of that name in torch.optim, with unwrapped methods."""
    if name == "AdamW":
        return AdamW
    kind = getattr(torch.optim, name)
    step = torch.no_grad()(unwrap(kind.step))
    return type(name, (Eager, kind), {"step": step})


def fused(name: str, groups: list[Group], **options: Any) -> Any:
    """torch's optimizer of that name; fused if torch can and all parameters are on a
    GPU."""
    kind = uncompiled(name)
    if "fused" in signature(kind).parameters:
        options = fused_options(groups) | options
    optimizer = kind(groups, **options)
    return optimizer if name in ("Adam", "AdamW") else skipped_by_scaler(optimizer)


def skipped_by_scaler(optimizer: T) -> T:
    """Keep fp16's loss scaler from calling step() after an overflow; the optimizer.

    With a fused optimizer torch calls step() in any case and relies on its kernels to
    skip the update. Adam's do. SGD's leave a momentum of uninitialised memory if the
    first update overflows (torch 2.13), and our own steps do not look for an overflow.
    The attribute is private: torch.amp.GradScaler.step reads it.
    """
    setattr(optimizer, "_step_supports_amp_scaling", False)  # noqa: B010
    return optimizer
