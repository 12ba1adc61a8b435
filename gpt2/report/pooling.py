"""Pooled test on the arms of a matrix."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt2.plan.lr_sweep import RATE
from gpt2.plan.sizes import SIZE
from gpt2.report.arms import Pair
from gpt2.report.evidence import Evidence, Rules
from gpt2.report.noise import Family
from lib import pooled_variance, stats
from lib.safe_json import clean


@dataclass(frozen=True, slots=True)
class Pooled:
    """Outcome of a comparison; p is None with too few seeds or arms, or if invalid.

    is_planned: with more seeds the pooled test would decide. pool: its name.
    """

    p: float | None = None
    half_width: float = 0.0  # of the simultaneous interval over all comparisons
    sd: float | None = None  # of a paired difference, over all arms of its pool
    is_planned: bool = True
    pool: str = ""


def pool(
    pairs: Sequence[Pair], evidence: Sequence[Evidence], rules: Rules
) -> list[Pooled | None]:
    """Outcome for each comparison of a family; None where another test decides.

    Comparisons over the same seeds are tested together, with the noise pooled by pool;
    p is corrected for the whole family.
    At equal time each pair is read at its own time, so a shared partner has
    several losses per seed and the arms do not form the two-way layout (arm x seed)
    that the pooled variance is estimated from.
    """
    if any(item.seconds is not None for item in evidence):
        return [None] * len(evidence)
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, item in enumerate(evidence):
        if not item.invalid and len(item.seeds) >= stats.MIN_SEEDS:
            groups.setdefault(item.seeds, []).append(index)
    arms = {id(arm) for pair in pairs for arm in pair}
    if len(arms) < pooled_variance.MIN_ARMS:
        return [None] * len(evidence)
    found: list[Pooled | None] = [Pooled()] * len(evidence)
    pools = pools_of(pairs)
    for members in groups.values():
        by_pool = sorted(members, key=pools.__getitem__)
        for index, outcome in _test(by_pool, pools, pairs, evidence, rules).items():
            found[index] = outcome
    return found


def pools_of(pairs: Sequence[Pair]) -> list[str]:
    """Name of the pool of each comparison: one for each model size (SIZES) and each
    learning rate (LR_SWEEP), since small models and high rates may be noisier.

    If arms are compared across rates, each at its own best, the rates are together.
    """
    axes = [
        axis
        for axis in (SIZE, RATE)
        if all(a.coordinates.get(axis) == b.coordinates.get(axis) for a, b in pairs)
    ]
    return [
        clean(", ".join(f"{axis}={at[axis]}" for axis in axes if axis in at))
        for at in (arm.coordinates for arm, _ in pairs)
    ]


def family_of(pairs: Sequence[Pair]) -> Family:
    """Comparisons with a corrected p, as planned with."""
    return Family(max(1, len(pairs)), pools=max(1, len(set(pools_of(pairs)))))


def _test(
    members: Sequence[int],
    pools: Sequence[str],
    pairs: Sequence[Pair],
    evidence: Sequence[Evidence],
    rules: Rules,
) -> dict[int, Pooled | None]:
    """Outcomes of comparisons over the same seeds, which are in the order of pools."""
    rows: dict[int, int] = {}
    sizes: Counter[str] = Counter()
    losses: list[tuple[float, ...]] = []
    design = []
    for index in members:
        for arm, values in zip(pairs[index], evidence[index].losses, strict=True):
            if rows.setdefault(id(arm), len(losses)) == len(losses):
                losses.append(values)
                sizes[pools[index]] += 1
        arm, partner = pairs[index]
        design.append((rows[id(arm)], rows[id(partner)]))
    result = pooled_variance.pooled_test(
        np.array(losses),
        tuple(design),
        alpha=rules.alpha_of_look,
        comparisons=len(pairs),
        rounding=max(evidence[index].rounding for index in members),
        pools=tuple(sizes.values()),
    )
    if result is None:  # only two arms have these seeds
        return dict.fromkeys(members)
    return {
        index: Pooled(float(p), float(half), float(sd), pool=pools[index])
        for index, p, half, sd in zip(
            members, result.p, result.half_width, result.sd, strict=True
        )
    }
