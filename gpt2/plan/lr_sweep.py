"""LR_SWEEP: every arm at several learning rates, and the choice of its best one.

The best rate of an arm is the one with the lowest mean loss over LR_TUNING_SEEDS. No
verdict uses these seeds: a loss that is the lowest of several on the seeds that chose
it is too low by about its noise (docs/statistics.md). Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.plan.axes import Axis, swept_name
from gpt2.plan.jobs import Job, Plan, restricted
from gpt2.settings.schema import FIELDS
from lib.atomic_files import read_json
from lib.files import links_to
from lib.jobs import run_files
from lib.safe_json import as_dict, number

if TYPE_CHECKING:
    from gpt2.settings.schema import Settings

RATE = "learning_rate"
MOST_ADDED = 4  # rates that LR_SWEEP_EXTEND adds at each end of the grid
DIGITS = 4  # significant ones of a rate that is added
SMALLEST, LARGEST = "smallest", "largest"


@dataclass(frozen=True, slots=True)
class RateChoice:
    """Best rate of an arm; None while tuning runs are missing or if all diverged.

    edge: SMALLEST or LARGEST if the best is at that end of the grid, else "". means: of
    the tuning losses by rate, infinite where a run diverged, None where one is missing.
    """

    best: float | None
    edge: str
    means: Mapping[float, float | None]


def choose(losses: Mapping[float, Sequence[float | None]]) -> RateChoice:
    """Choose the rate with the lowest mean loss, the smaller one of two equal ones.

    losses: of all tuning seeds by rate; infinite if diverged, None if not finished.
    """
    means = {rate: _mean(losses[rate]) for rate in sorted(losses)}
    known = {rate: mean for rate, mean in means.items() if mean is not None}
    finite = {rate: mean for rate, mean in known.items() if math.isfinite(mean)}
    if len(known) < len(means) or not finite:
        return RateChoice(None, "", means)
    best = min(finite, key=lambda rate: finite[rate])
    ends = {min(means): SMALLEST, max(means): LARGEST} if len(means) > 1 else {}
    return RateChoice(best, ends.get(best, ""), means)


def _mean(losses: Sequence[float | None]) -> float | None:
    known = [loss for loss in losses if loss is not None]
    if not known or len(known) < len(losses):
        return None
    return math.fsum(known) / len(known)


# ---- jobs -------------------------------------------------------------------------


def is_swept(settings: Settings) -> bool:
    return bool(settings.matrix.lr_sweep.strip())


def tuning_seeds(settings: Settings) -> tuple[int, ...]:
    """Seeds on which rates are chosen; () without LR_SWEEP."""
    return settings.matrix.lr_tuning_seeds if is_swept(settings) else ()


def without_needless(plan: Plan) -> Plan:
    """The plan without tuning runs of arms that have one rate and of controls."""
    needed = {
        job.run_dir
        for job in plan.jobs
        if not job.tuning or (RATE in job.coordinates and not job.is_control)
    }
    return restricted(plan, needed)


# ---- LR_SWEEP_EXTEND --------------------------------------------------------------


def extension(plan: Plan, configured: Axis) -> Iterator[tuple[float, str]]:
    """Rates to add to those of a plan, and why: the next one beyond each end of the
    grid at which an arm has its best, by the ratio of the grid there.

    configured: the axis as LR_SWEEP has it. Nothing is added while tuning runs are
    missing, beyond MOST_ADDED rates at an end, outside of the bounds of LEARNING_RATE,
    and below the final rate.
    """
    rates = sorted(next(a.values for a in plan.axes if a.field == RATE))
    at_edge: dict[str, list[str]] = {}
    for arm, found in choices(plan).items():
        if found.edge:
            at_edge.setdefault(found.edge, []).append(arm)
    for edge, arms in sorted(at_edge.items()):
        rate = _beyond(rates, edge, configured, _lowest(plan))
        if rate is not None:
            last = rates[0] if edge == SMALLEST else rates[-1]
            names = ", ".join(arms)
            yield rate, f"{last:g} is the {edge} rate and the best of {names}"


def _beyond(
    rates: Sequence[float], edge: str, configured: Axis, lowest: float
) -> float | None:
    last, inner = (rates[0], rates[1]) if edge == SMALLEST else (rates[-1], rates[-2])
    ends = min(configured.values), max(configured.values)
    added = [r for r in rates if (r < ends[0] if edge == SMALLEST else r > ends[1])]
    rate = float(f"{last * last / inner:.{DIGITS}g}")
    bounds = FIELDS[RATE].metadata
    possible = bounds["above"] < rate <= bounds["high"] and rate >= lowest
    return rate if possible and len(added) < MOST_ADDED else None


def _lowest(plan: Plan) -> float:
    """Final rate that is the same for all peaks, which must be above it."""
    base = plan.base
    return base.optim.min_lr if base.matrix.min_lr_ratio is None else 0.0


def choices(plan: Plan) -> dict[str, RateChoice]:
    """Choice of each arm of a plan, by its name at its other coordinates, from the runs
    in its results folder."""
    losses: dict[str, dict[float, list[float | None]]] = {}
    for job in plan.jobs:
        if job.tuning:
            rest = {f: v for f, v in job.coordinates.items() if f != RATE}
            rates = losses.setdefault(swept_name(job.arm, rest), {})
            by_rate = rates.setdefault(job.coordinates[RATE], [])
            by_rate.append(_loss(plan.output_dir, job))
    return {arm: choose(found) for arm, found in losses.items()}


def _loss(root: Path, job: Job) -> float | None:
    """Loss of a finished run of just this job, infinite if it diverged."""
    run_dir = root / job.run_dir
    try:
        if any(links_to(root, Path(job.run_dir))):
            return None
        if read_json(run_dir / run_files.JOB_FILE)["hash"] != job.hash:
            return None
        return loss_of(run_files.read_status(run_dir))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def loss_of(status: Mapping[str, Any]) -> float | None:
    """Final loss in a run's status; infinite if it diverged, None if not finished."""
    if status.get("status") == "done":
        loss = number(as_dict(status.get("result")).get("val_loss"))
        return math.inf if loss is None else loss
    return math.inf if status.get("failure") == "nan" else None
