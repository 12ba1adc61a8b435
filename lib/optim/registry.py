"""All optimizers, by name, as lib/optim/optimizers/ has them. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

from lib.discovery import specs_in
from lib.optim.spec import OptimizerSpec

if TYPE_CHECKING:
    from lib.optim.config import OptimConfig
    from lib.optim.groups import Group, OptimizerLike

OPTIMIZERS: dict[str, OptimizerSpec] = specs_in("lib.optim.optimizers")


def optimizer_spec(name: str) -> OptimizerSpec:
    """The optimizer called `name`; ValueError lists the known ones."""
    if name not in OPTIMIZERS:
        raise ValueError(
            f"optimizer: {name!r} is unknown; allowed: {', '.join(OPTIMIZERS)}"
        )
    return OPTIMIZERS[name]


def build(
    name: str,
    groups: list[Group],
    config: OptimConfig,
    *,
    embeddings: Collection[str] = (),
) -> OptimizerLike:
    """The optimizer `name` over `groups` (see groups.decay_groups).

    Every group brings its own weight_decay. `embeddings`: names of embedding and head
    weights. The caller sets group["lr"] before each update. ValueError: unknown name,
    a group without decay, values that the optimizer cannot honour.
    """
    from lib.optim.groups import copied

    spec = optimizer_spec(name)
    spec.refuse(config.own)
    return spec.build(copied(groups), config, embeddings)
