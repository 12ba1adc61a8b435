"""Pooled test on the arms of a matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from gpt2.report.arms import Pair
from gpt2.report.evidence import Evidence, Rules
from lib import pooled_variance, stats


@dataclass(frozen=True, slots=True)
class Pooled:
    """Outcome of a comparison; p is None with too few seeds or arms, or if invalid.

    is_planned: with more seeds the pooled test would decide.
    """

    p: float | None = None
    half_width: float = 0.0  # of the simultaneous interval over all comparisons
    sd: float | None = None  # of a paired difference, over all arms
    is_planned: bool = True


def pool(
    pairs: Sequence[Pair], evidence: Sequence[Evidence], rules: Rules
) -> list[Pooled | None]:
    """Outcome for each comparison of a family; None where another test decides.

    Comparisons over the same seeds are tested together, those of each size of SIZES by
    themselves, since small models may be noisier; p is corrected for the whole family.
    At equal time each pair is read at its own time, so a shared partner has
    several losses per seed and the arms do not form the two-way layout (arm x seed)
    that the pooled variance is estimated from.
    """
    if any(item.seconds is not None for item in evidence):
        return [None] * len(evidence)
    groups: dict[tuple[object, ...], list[int]] = {}
    for index, item in enumerate(evidence):
        if not item.invalid and len(item.seeds) >= stats.MIN_SEEDS:
            groups.setdefault((pairs[index][0].size, *item.seeds), []).append(index)
    arms = {id(arm) for pair in pairs for arm in pair}
    if len(arms) < pooled_variance.MIN_ARMS:
        return [None] * len(evidence)
    found: list[Pooled | None] = [Pooled()] * len(evidence)
    for members in groups.values():
        for index, outcome in _test(members, pairs, evidence, rules).items():
            found[index] = outcome
    return found


def _test(
    members: Sequence[int],
    pairs: Sequence[Pair],
    evidence: Sequence[Evidence],
    rules: Rules,
) -> dict[int, Pooled | None]:
    """Outcomes of comparisons over the same seeds."""
    rows: dict[int, int] = {}
    losses: list[tuple[float, ...]] = []
    design = []
    for index in members:
        for arm, values in zip(pairs[index], evidence[index].losses, strict=True):
            if rows.setdefault(id(arm), len(losses)) == len(losses):
                losses.append(values)
        arm, partner = pairs[index]
        design.append((rows[id(arm)], rows[id(partner)]))
    result = pooled_variance.pooled_test(
        np.array(losses),
        tuple(design),
        alpha=rules.alpha_of_look,
        comparisons=len(pairs),
        rounding=max(evidence[index].rounding for index in members),
    )
    if result is None:  # only two arms have these seeds
        return dict.fromkeys(members)
    return {
        index: Pooled(float(p), float(half), result.sd)
        for index, p, half in zip(members, result.p, result.half_width, strict=True)
    }
