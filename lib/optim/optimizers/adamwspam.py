"""AdamWSPAM: AdamW with spike clipping and momentum reset (lib/optim/spam.py)."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lib.optim.optimizers import adamw
from lib.optim.spec import Own

if TYPE_CHECKING:
    from lib.optim.spec import (
        Array,
        Group,
        OptimConfig,
        OptimizerLike,
        Row,
        State,
    )

CLIP_AFTER = 20  # updates of history before a ratio g^2 / v means anything


def build(
    groups: list[Group], config: OptimConfig, embeddings: Collection[str]
) -> OptimizerLike:
    """AdamWSPAM with the phases that `config` asks for."""
    from lib.optim.spam import from_config

    return from_config(groups, config)


def formula(w: Array, g: Array, state: State, n: int, s: Mapping[str, Any]) -> Array:
    """Huang et al., arXiv 2501.06842; lib/optim/spam.py says where we differ."""
    import numpy as np

    from lib.optim.reference import adam_update

    interval, warmup = s["spam_interval"], s["spam_warmup"]
    state["t"] = state.get("t", 0)
    if n % interval == 0:
        state["m"], state["v"] = np.zeros_like(w), np.zeros_like(w)
        if s["spam_reset_counter"]:
            state["t"] = 0
    if n >= 20 and n % interval >= 20:
        limit = s["spam_threshold"] * state["v"]
        g = np.where(g * g > limit, np.sign(g) * np.sqrt(limit), g)
    scale, k = 1.0, n % interval
    if n >= interval and k < warmup:
        scale = 1 - 0.99 * (1 + math.cos(math.pi * k / (warmup + 1))) / 2
    state["t"] += 1
    update = adam_update(g, state, state["t"], s)
    return w - s["lr"] * s["decay"] * w - s["lr"] * scale * update


def refuse(own: Mapping[str, Any]) -> None:
    """ValueError for phases that never act, or a learning rate that never recovers."""
    threshold, interval, warmup = (
        own[f"spam_{name}"] for name in ("threshold", "interval", "warmup")
    )
    if not threshold > 0:
        raise ValueError(f"spam_threshold={threshold!r} is out of range; allowed: > 0")
    if interval <= CLIP_AFTER:
        raise ValueError(
            f"spam_interval={interval!r} leaves clipping no update to act on, since "
            f"it waits {CLIP_AFTER} updates after a reset; allowed: > {CLIP_AFTER}"
        )
    if not 0 <= warmup < interval:
        raise ValueError(
            f"spam_warmup={warmup!r} must be less than spam_interval={interval!r}, or "
            f"the learning rate would never recover; allowed: 0 to {interval - 1}"
        )


def remark(own: Mapping[str, Any], updates: int) -> str:
    """A note where a run is too short for a reset."""
    interval = own["spam_interval"]
    if interval <= updates:
        return ""
    return (
        f"adamwspam resets its moments every {interval} updates, and a run "
        f"has {updates}: it never resets them"
    )


def certificates() -> dict[str, Row]:
    """Checks of the phases, see lib/optim/certify_spam.py."""
    from lib.optim.certify_spam import check_spam

    return check_spam()


SPEC = replace(
    adamw.SPEC,
    name="adamwspam",
    summary="AdamW with spike clipping and momentum reset",
    build=build,
    formula=formula,
    own=(
        Own(
            name="spam_threshold",
            kind=float,
            trial=5000.0,
            short=2.0,
            above=0.0,
            high=1e9,
        ),
        # Clipping begins 20 updates after a reset, so that trials are longer.
        Own(name="spam_interval", kind=int, trial=500, short=22, cap=23),
        Own(name="spam_warmup", kind=int, trial=150, short=2, cap=4),
        Own(name="spam_reset_counter", kind=bool, trial=False, short=True),
    ),
    lacks_moments="resets them, and then |m| / sqrt(v) is the same everywhere",
    scratch=1,
    refuse=refuse,
    remark=remark,
    resume_at=(560, 600),  # in the middle of a warm-up
    training_updates=24,
    certificates=certificates,
    columns=("theta 50", "clip", "resets", "warm-up"),
    place=5,
)
