"""Muon for the hidden matrices, AdamW for everything else.

torch.optim.Muon takes two-dimensional parameters only, and Muon's authors keep
it off embeddings and the head; so the groups are split and both optimizers act
as one. One learning rate and one decay serve both: Muon's update is scaled by
0.2 sqrt(max(rows, columns)), which gives it AdamW's root mean square (Liu et
al., arXiv 2502.16982; torch's adjust_lr_fn="match_rms_adamw").
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from torch import Tensor

from lib.optim.config import OptimConfig
from lib.optim.eager import fused, uncompiled
from lib.optim.groups import Group, OptimizerLike, make_group


class MuonAdamW:
    """Two torch optimizers with the interface of one.

    `param_groups` lists the groups of both, so a learning rate set there is
    seen by both; `state` is the union of both.
    """

    def __init__(self, muon: OptimizerLike, adamw: OptimizerLike) -> None:
        self.muon = muon
        self.adamw = adamw

    @property
    def param_groups(self) -> list[Group]:
        return [*self.muon.param_groups, *self.adamw.param_groups]

    @property
    def state(self) -> Mapping[Tensor, dict[str, Any]]:
        return {**self.muon.state, **self.adamw.state}

    def step(self) -> None:
        self.muon.step()
        self.adamw.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.muon.zero_grad(set_to_none)
        self.adamw.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        return {"muon": self.muon.state_dict(), "adamw": self.adamw.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.muon.load_state_dict(state_dict["muon"])
        self.adamw.load_state_dict(state_dict["adamw"])


def split_matrices(
    groups: list[Group], embeddings: Collection[str]
) -> tuple[list[Group], list[Group]]:
    """Groups of Muon's matrices and groups of the rest, each with its decay.

    `embeddings` holds the names of embedding and head weights. ValueError: a
    name in it that no group has, groups without names, or nothing for one of
    the two optimizers to do.
    """
    if any("param_names" not in group for group in groups):
        raise ValueError("muon: parameter groups need param_names to find embeddings")
    known = {name for group in groups for name in group["param_names"]}
    if unknown := sorted(set(embeddings) - known):
        raise ValueError(f"muon: embeddings {unknown} are in no parameter group")
    hidden: list[Group] = []
    rest: list[Group] = []
    for group in groups:
        matrices: list[tuple[str, Tensor]] = []
        others: list[tuple[str, Tensor]] = []
        for name, p in zip(group["param_names"], group["params"], strict=True):
            is_hidden = p.ndim == 2 and name not in embeddings
            (matrices if is_hidden else others).append((name, p))
        for into, chosen in ((hidden, matrices), (rest, others)):
            if chosen:
                into.append({**group, **make_group(chosen, group["weight_decay"])})
    if not hidden or not rest:
        lacking = "hidden matrices" if not hidden else "embeddings or vectors"
        raise ValueError(f"muon: found no {lacking}; use adamw instead")
    return hidden, rest


def muon_adamw(
    groups: list[Group], config: OptimConfig, embeddings: Collection[str]
) -> MuonAdamW:
    """The pair over `groups`; ValueError as split_matrices."""
    hidden, rest = split_matrices(groups, embeddings)
    muon = uncompiled("Muon")(
        hidden,
        lr=config.learning_rate,
        momentum=config.momentum,
        adjust_lr_fn="match_rms_adamw",
    )
    return MuonAdamW(muon, fused("AdamW", rest, **config.adam))
