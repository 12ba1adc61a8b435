"""Parameter groups, learning rate and memory of every optimizer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

Group = dict[str, Any]


class OptimizerLike(Protocol):
    """Interface of an optimizer as the trainer and the pruner use it."""

    @property
    def param_groups(self) -> list[Group]: ...

    @property
    def state(self) -> Mapping[Tensor, dict[str, Any]]: ...

    def step(self) -> Any: ...

    def zero_grad(self, set_to_none: bool = True) -> None: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state_dict: dict[str, Any]) -> None: ...


def decay_groups(
    named_parameters: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[Group]:
    """Two groups: matrices (ndim >= 2) with decay, all else without.

    Embeddings count as matrices, as in GPT-2's public re-implementations.
    A tied parameter is taken once, under its first name; frozen ones are left
    out. Each group holds `params`, `param_names` (torch's own key, and so in
    its state_dict) and `weight_decay`. An empty group is dropped.
    ValueError: nothing to train.
    """
    seen: set[int] = set()
    decayed: list[tuple[str, nn.Parameter]] = []
    plain: list[tuple[str, nn.Parameter]] = []
    for name, parameter in named_parameters:
        if id(parameter) in seen or not parameter.requires_grad:
            continue
        seen.add(id(parameter))
        (decayed if parameter.ndim >= 2 else plain).append((name, parameter))
    groups = [make_group(decayed, weight_decay), make_group(plain, 0.0)]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ValueError("parameters: none is trainable; nothing to optimize")
    return groups


def make_group(members: Sequence[tuple[str, Tensor]], decay: float) -> Group:
    """A parameter group of named `members` with weight decay `decay`."""
    return {
        "params": [parameter for _, parameter in members],
        "param_names": [name for name, _ in members],
        "weight_decay": decay,
    }


def copied(groups: Iterable[Group]) -> list[Group]:
    """Copies of groups, since torch writes into the ones it is given.

    ValueError: a group without weight_decay, for which torch would silently
    use its default.
    """
    result = []
    for group in groups:
        if "weight_decay" not in group:
            raise ValueError("weight_decay: a parameter group has none; set it")
        result.append({**group, "params": list(group["params"])})
    return result


def fused_options(groups: Iterable[Group]) -> dict[str, Any]:
    """{"fused": True} where every parameter lies on a GPU, else torch's choice."""
    devices = {p.device.type for group in groups for p in group["params"]}
    return {"fused": True} if devices == {"cuda"} else {}


def set_learning_rate(optimizer: OptimizerLike, learning_rate: float) -> None:
    """Give every group the rate of this update; SPAM scales it further inside."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate


def state_bytes(optimizer: OptimizerLike) -> int:
    """Bytes held by the optimizer's state tensors (moments, buffers, steps)."""
    tensors = (
        value
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    )
    return sum(tensor.nbytes for tensor in tensors)
