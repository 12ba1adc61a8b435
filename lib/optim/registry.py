"""From an optimizer's name to the optimizer."""

from __future__ import annotations

from collections.abc import Collection

from lib.optim.adam import adam, adamw, adamwadv
from lib.optim.config import OptimConfig
from lib.optim.groups import Group, OptimizerLike, copied
from lib.optim.muon import muon
from lib.optim.names import optimizer_kind
from lib.optim.sgd import sgd
from lib.optim.spam import adamwspam

_BUILDERS = {
    "sgd": sgd,
    "adam": adam,
    "adamw": adamw,
    "adamwadv": adamwadv,
    "adamwspam": adamwspam,
    "adamwprune": adamw,
}


def build(
    name: str,
    groups: list[Group],
    config: OptimConfig,
    *,
    embeddings: Collection[str] = (),
) -> OptimizerLike:
    """The optimizer `name` over `groups` (see groups.decay_groups).

    Every group brings its own weight_decay. `embeddings`: names of embedding
    and head weights; only Muon asks. The caller sets group["lr"] before each
    update. ValueError: unknown name, a group without decay, values that the
    optimizer cannot honour.
    """
    kind = optimizer_kind(name)
    own = copied(groups)
    if kind.name == "muon":
        return muon(own, config, embeddings)
    return _BUILDERS[kind.name](own, config)
