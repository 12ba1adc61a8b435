"""Comparison of arms, each at its own best learning rate (LR_SWEEP).

The best rate of an arm is chosen on tuning runs, and compared on the others. Noise may
choose different rates for two arms that are equal, and these rates do differ: more
seeds would show that difference and not one between the arms. An arm is therefore
better than its partner only if, at its best rate, it is better than the partner at
every rate of the grid, one of which is the partner's true best; and worse only if the
partner at its best is better than the arm at every rate. Each of these comparisons is
tested at the level of the verdicts, corrected for the number of arms, and the largest p
counts: an intersection-union test (Berger 1982), which needs no correction for the
number of rates. NEUTRAL is about the two chosen rates.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gpt2.plan.lr_sweep import RATE, RateChoice, choose, loss_of
from gpt2.report.arms import Arm, NotedPair, Pair, has_diverged
from gpt2.report.evidence import worse_than_guess
from gpt2.report.results import Run
from lib.atomic_files import finite
from lib.safe_json import number

if TYPE_CHECKING:
    from gpt2.report.grades import Verdict

Grade = Callable[[Sequence[Pair]], Sequence["Verdict"]]

UNKNOWN = "the best rates are not known"
UNTUNED = (
    f"{UNKNOWN}: LR_SWEEP is set, but there are no runs of its tuning seeds (ONLY may "
    "have left them out)"
)


@dataclass(frozen=True, slots=True)
class SweptArm:
    """An arm over the rates, at equal other coordinates.

    arms: its runs by rate, without tuning runs. losses, seeds: of the tuning runs;
    losses has all rates of the grid, those without a tuning run as ().
    """

    name: str
    arms: Mapping[float, Arm]
    losses: Mapping[float, Sequence[float | None]]
    seeds: Sequence[int] = ()

    @property
    def choice(self) -> RateChoice:
        return choose(self.losses)

    @property
    def at_best(self) -> Arm | None:
        best = self.choice.best
        return None if best is None else self.arms.get(best)

    def all_losses(self, rate: float) -> list[float]:
        """Finite losses of all seeds at a rate."""
        cell = self.arms.get(rate)
        found = [*self.losses.get(rate, ()), *(cell.values("val_loss") if cell else ())]
        return [loss for loss in found if loss is not None and math.isfinite(loss)]

    @property
    def untuned(self) -> list[float]:
        """Rates without a tuning run, as ONLY or a merge may leave them."""
        return [rate for rate, found in self.losses.items() if not found]

    @property
    def missing(self) -> int:
        """Tuning runs that have not finished."""
        return sum(loss is None for found in self.losses.values() for loss in found)


@dataclass(frozen=True, slots=True)
class BestComparison:
    """An arm at its own best rate and its partner at its own."""

    arm: Arm
    partner: Arm
    note: str
    verdict: Verdict


@dataclass(frozen=True, slots=True)
class OwnBest:
    """Arms over the rates, and their comparisons at their own best.

    pending: why there are no comparisons yet, or "".
    """

    arms: Sequence[SweptArm] = ()
    comparisons: Sequence[BestComparison] = ()
    pending: str = ""

    def __bool__(self) -> bool:
        """Whether LR_SWEEP was set."""
        return bool(self.arms or self.pending)

    def to_json(self) -> dict[str, Any]:
        """Plain data, as under "verdicts" in summary.json."""
        rates = [
            {
                "arm": arm.name,
                "best": arm.choice.best,
                "edge": arm.choice.edge,
                "tuning_seeds": list(arm.seeds),
                "tuning_losses": [
                    [rate, mean] for rate, mean in arm.choice.means.items()
                ],
            }
            for arm in self.arms
        ]
        comparisons = [
            {
                **c.arm.key,
                "partner": c.partner.key,
                "note": c.note,
                "at_equal_steps": c.verdict.to_json(),
            }
            for c in self.comparisons
        ]
        found: dict[str, Any] = finite(
            {"pending": self.pending, "rates": rates, "comparisons": comparisons}
        )
        return found


def swept_arms(arms: Iterable[Arm], tuning: Iterable[Arm]) -> list[SweptArm]:
    """Arms over the rates of all tuning runs; none without tuning runs."""
    losses: dict[str, dict[float, list[float | None]]] = {}
    seeds: dict[str, set[int]] = {}
    for arm in tuning:
        rate = number(arm.coordinates.get(RATE))
        if rate is not None:
            found = losses.setdefault(arm.name_without(RATE), {}).setdefault(rate, [])
            found += [_loss(run.row) for run in arm.runs]
            seeds.setdefault(arm.name_without(RATE), set()).update(arm.seeds)
    grid = sorted({rate for by_rate in losses.values() for rate in by_rate})
    cells: dict[str, dict[float, Arm]] = {}
    for arm in arms:
        rate = number(arm.coordinates.get(RATE))
        if rate is not None and not arm.is_control:
            cells.setdefault(arm.name_without(RATE), {})[rate] = arm
    return [
        SweptArm(
            name,
            cells.get(name, {}),
            {rate: losses.get(name, {}).get(rate, ()) for rate in grid},
            sorted(seeds.get(name, ())),
        )
        for name in dict.fromkeys([*losses, *cells])
        if grid
    ]


def _loss(row: Mapping[str, object]) -> float | None:
    return loss_of({**row, "result": {"val_loss": row["val_loss"]}})


def own_best(
    swept: Sequence[SweptArm], pairs: Sequence[NotedPair], grade: Grade, alpha: float
) -> OwnBest:
    """Compare each arm with its partner, each at its own best rate.

    pairs: of all cells, at equal rates. grade: of comparisons as one family.
    """
    missing = sum(arm.missing for arm in swept)
    if missing:
        total = sum(len(x) for arm in swept for x in arm.losses.values())
        why = f"{total - missing} of {total} tuning runs have finished"
        return OwnBest(swept, pending=f"{UNKNOWN} yet: {why}")
    by_cell = {id(cell): arm for arm in swept for cell in arm.arms.values()}
    found = list(_at_best(pairs, by_cell))
    rivals = [
        [_rivals(cell, by_cell) for cell in (arm, partner)] for arm, partner, _ in found
    ]
    verdicts = grade([(arm, partner) for arm, partner, _ in found])
    sides = [v.mean is not None and v.mean < 0 for v in verdicts]  # True: better
    # The largest p of each over the rivals so far, and the rival that has it.
    worst: list[tuple[float, Arm | None]] = [
        (_p_of(verdict, side), None)
        for verdict, side in zip(verdicts, sides, strict=True)
    ]
    for at in range(max((len(r) for both in rivals for r in both), default=0)):
        # One rival of each comparison at a time: all families have the same size.
        against = []
        for (arm, partner, _), both, is_better in zip(
            found, rivals, sides, strict=True
        ):
            rival = next(iter(both[is_better][at:]), partner if is_better else arm)
            against.append((arm, rival) if is_better else (rival, partner))
        for i, verdict in enumerate(grade(against)):
            if (p := _p_of(verdict, sides[i])) > worst[i][0]:
                worst[i] = p, against[i][sides[i]]
    comparisons = [
        BestComparison(arm, partner, note, _guarded(verdict, *guard, alpha, is_better))
        for (arm, partner, note), verdict, guard, is_better in zip(
            found, verdicts, worst, sides, strict=True
        )
    ]
    return OwnBest(swept, comparisons)


def untuned(runs: Iterable[Run]) -> OwnBest:
    """Result without tuning runs: it says so if LR_SWEEP was set."""
    was_set = any(run.part("matrix").get("lr_sweep") for run in runs)
    return OwnBest(pending=UNTUNED if was_set else "")


def _at_best(
    pairs: Sequence[NotedPair], by_cell: Mapping[int, SweptArm]
) -> Iterator[NotedPair]:
    """Each arm at its best rate and its partner at its own, once."""
    seen = set()
    for arm, partner, note in pairs:
        ends = [_best(cell, by_cell) for cell in (arm, partner)]
        if ends[0] is None or ends[1] is None or (id(ends[0]), id(ends[1])) in seen:
            continue
        seen.add((id(ends[0]), id(ends[1])))
        yield ends[0], ends[1], note


def _best(cell: Arm, by_cell: Mapping[int, SweptArm]) -> Arm | None:
    swept = by_cell.get(id(cell))
    return cell if swept is None else swept.at_best


def _rivals(cell: Arm, by_cell: Mapping[int, SweptArm]) -> list[Arm]:
    """Cells of the same arm at its other rates that may be its true best: those at
    which no run has diverged."""
    swept = by_cell.get(id(cell))
    others = [] if swept is None else swept.arms.values()
    return [
        other
        for other in others
        if other is not cell
        and not any(has_diverged(run) for run in other.runs)
        and not worse_than_guess(other)
    ]


def _p_of(verdict: Verdict, is_better: bool) -> float:
    """p of a difference on this side; 1 if it is on the other one."""
    is_there = verdict.mean is not None and (verdict.mean < 0) == is_better
    return verdict.p_deciding if is_there and verdict.p_deciding is not None else 1.0


def _guarded(
    verdict: Verdict, p: float, rival: Arm | None, alpha: float, better: bool
) -> Verdict:
    """The verdict with p over all rivals; INCONCLUSIVE if that is not significant.

    rival: the one that has this p; None: the partner itself.
    """
    if verdict.p_deciding is None or rival is None:
        return verdict
    of_test: Any = {"p_holm" if verdict.p_pooled is None else "p_pooled": p}
    verdict = dataclasses.replace(verdict, **of_test)
    if verdict.grade not in ("SUPPORTED", "HARMFUL") or p < alpha:
        return verdict
    rate = rival.coordinates[RATE]
    whose, way = ("its partner's", "better") if better else ("its", "worse")
    why = (
        f"{way} at the two chosen rates, but {rate} may be {whose} best rate, and "
        f"there the difference is not shown (p {p:.3f})"
    )
    return dataclasses.replace(
        verdict, grade="INCONCLUSIVE", reasons=(why, *verdict.reasons)
    )


def deciding(bases: Sequence[Arm], swept: Sequence[SweptArm]) -> list[Arm]:
    """Baselines without those at another rate than their best: a rate that is too high
    says nothing about the noise and the validity of a matrix."""
    others = {
        id(cell)
        for arm in swept
        for cell in arm.arms.values()
        if cell is not arm.at_best and not arm.untuned
    }
    return [arm for arm in bases if id(arm) not in others]
