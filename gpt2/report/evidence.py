"""Evidence for a verdict: whether two arms are comparable, and their differences."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

from gpt2.plan.run_length import seconds_of
from gpt2.report.arms import (
    Arm,
    above_guess,
    changes_between,
    has_diverged,
    is_done,
    losses_over_time,
    update_seconds,
)
from gpt2.report.between_evals import Reading, read
from gpt2.report.pairing import unpaired
from gpt2.report.results import Run, seeds_of
from lib.alarms import are_identical
from lib.atomic_files import finite
from lib.hashing import identity
from lib.rounded_losses import resolution, rounding_variance
from lib.safe_json import as_dict, clean, number, text

ACTING = ("model.", "mechanisms.", "optim.", "pruning.")  # must have an effect
TOGETHER, SEQUENTIAL, FDR = "together", "sequential", "sequential-fdr"
FAMILIES = (TOGETHER, SEQUENTIAL, FDR)


@dataclass(frozen=True, slots=True)
class Rules:
    """Parameters of the grading; recorded with the grades."""

    alpha: float = 0.05  # family-wise error, or share of false findings with FDR
    family: str = TOGETHER  # how the comparisons share alpha: one of FAMILIES
    looks: int = 1  # planned reports as seeds are added, which share alpha
    margin: float = 0.003  # nats; Kconfig's default, for results without one
    power: float = 0.8  # for the number of seeds needed
    tolerance: float = 0.01  # largest relative difference of equal budgets

    def __post_init__(self) -> None:
        for name in ("alpha", "power", "tolerance"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must lie in (0, 1)")
        if self.looks < 1:
            raise ValueError(f"looks={self.looks} must be at least 1")
        if self.family not in FAMILIES:
            names = ", ".join(FAMILIES)
            raise ValueError(f"family={self.family!r} must be one of {names}")
        if self.is_sequential and self.looks > 1:
            raise ValueError(
                f"looks={self.looks} with family={self.family}: a look after more "
                "seeds is a further test of the series, so REPORT_LOOKS must be 1"
            )
        if not (self.margin > 0 and math.isfinite(self.margin)):
            raise ValueError(f"margin={self.margin} must be a positive loss in nats")

    @property
    def is_sequential(self) -> bool:
        return self.family != TOGETHER

    @property
    def alpha_of_look(self) -> float:
        """Level of the tests of one report (Bonferroni over the looks)."""
        return self.alpha / self.looks


Losses = tuple[dict[int, float], dict[int, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """Reasons against a verdict, strongest first; differences arm - partner."""

    invalid: tuple[str, ...] = ()
    unmatched: tuple[str, ...] = ()
    unverified: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()
    differences: tuple[float, ...] = ()
    losses: tuple[tuple[float, ...], tuple[float, ...]] = ((), ())  # by those seeds
    resolution: float = 0.0  # step of which the losses are multiples, nats
    rounding: float = 0.0  # variance that this adds to a difference
    reading: float = 0.0  # and that reading between evaluations adds to their mean
    seconds: float | None = None

    @property
    def error(self) -> float:
        """Variance of the mean difference that more seeds do not lower."""
        return self.rounding + self.reading


def at_equal_steps(arm: Arm, partner: Arm, rules: Rules) -> Evidence:
    """Compare final losses, after the same number of updates on the same tokens or, of
    runs with a time budget, after the same time on the same hardware."""
    losses = arm.by_seed("val_loss"), partner.by_seed("val_loss")
    widths = [resolution(a.values("val_loss")) for a in (arm, partner)]
    limits = {"parameters": rules.tolerance, "effective_batch": 0.0}
    if time_budget(arm, partner) is None:
        unmatched = _unlike(arm, partner, {**limits, "tokens": rules.tolerance})
    else:
        unmatched = _unlike(arm, partner, limits)
        unmatched += _other_hardware((*arm.done, *partner.done))
    return _evidence(arm, partner, losses, unmatched, None, widths)


def time_budget(arm: Arm, partner: Arm) -> float | None:
    """Seconds of training that each run of both arms has (TIME_BUDGET); None if they
    differ, or if runs end after a number of updates."""
    optims = [run.part("optim") for run in (*arm.runs, *partner.runs)]
    given = {text(optim.get("time_budget")) or "" for optim in optims}
    with suppress(ValueError, OverflowError):
        found = set(map(seconds_of, given))  # "2h" is "120m"
        return found.pop() or None if len(found) == 1 else None
    return None


def at_equal_time(arm: Arm, partner: Arm, rules: Rules) -> Evidence:
    """Compare the losses when the first of all these runs ended, read between
    evaluations; each arm at its usual speed (update_seconds).

    The slower arm is then still in the middle of its learning-rate schedule, with a
    high learning rate, which is a disadvantage for it. Runs with a time budget end at
    equal time, and are compared there.
    """
    if (seconds := time_budget(arm, partner)) is not None:
        return replace(at_equal_steps(arm, partner, rules), seconds=seconds)
    shared = set(arm.by_seed("val_loss")) & set(partner.by_seed("val_loss"))
    arms = arm, partner
    speeds = [update_seconds(a) for a in arms]
    if None in speeds:
        speeds = [None, None]  # both by the runs' own clocks
    runs = [r for a in arms for r in a.done if r.seed in shared]
    curves = [
        {r.seed: losses_over_time(r, speed) for r in a.done}
        for a, speed in zip(arms, speeds, strict=True)
    ]
    found = [curve[seed] for curve in curves for seed in shared]
    if not all(found) or not found:
        lost = "no evaluations over time" if found else _no_common_seed(arm, partner)
        return _evidence(arm, partner, ({}, {}), (), None, (), lost)
    budget = min(curve[-1][0] for curve in found)
    ours, theirs = (_read(curve, budget) for curve in curves)
    widths = [
        resolution([r["val_loss"] for x in a.done for r in x.evals if "val_loss" in r])
        for a in arms
    ]
    unmatched = _unlike(arm, partner, {"parameters": rules.tolerance})
    unmatched += _other_hardware(runs)
    losses = _losses(ours), _losses(theirs)
    evidence = _evidence(arm, partner, losses, unmatched, budget, widths)
    # An arm's curves have one shape, so their errors do not cancel over the seeds.
    errors = [ours[s].variance + theirs[s].variance for s in evidence.seeds]
    return replace(evidence, reading=statistics.fmean(errors) if errors else 0.0)


def _read(
    curves: Mapping[int, list[tuple[float, float]]], seconds: float
) -> dict[int, Reading]:
    found = {seed: read(curve, seconds) for seed, curve in curves.items()}
    return {seed: one for seed, one in found.items() if one is not None}


def _losses(readings: Mapping[int, Reading]) -> dict[int, float]:
    return {seed: reading.loss for seed, reading in readings.items()}


def _evidence(
    arm: Arm,
    partner: Arm,
    losses: Losses,
    unmatched: tuple[str, ...],
    seconds: float | None,
    widths: Sequence[float],
    lost: str = "",
) -> Evidence:
    invalid = _faults(arm, "") + _faults(partner, f"{partner.label}: ")
    seeds = tuple(sorted(losses[0].keys() & losses[1].keys()))
    if not seeds and not invalid:
        invalid = (lost or _no_common_seed(arm, partner),)
    invalid += not_paired(arm, partner) + _does_nothing(arm, partner)
    return Evidence(
        invalid=invalid,
        unmatched=unmatched + _unlike_data(arm, partner),
        unverified=_unverified(arm, "") + _unverified(partner, f"{partner.label}: "),
        seeds=seeds,
        differences=tuple(losses[0][s] - losses[1][s] for s in seeds),
        losses=(
            tuple(losses[0][s] for s in seeds),
            tuple(losses[1][s] for s in seeds),
        ),
        resolution=max(widths, default=0.0),
        rounding=rounding_variance(*widths),
        seconds=seconds,
    )


def _no_common_seed(arm: Arm, partner: Arm) -> str:
    """Reason with the finished seeds of both arms."""
    mine, theirs = (seeds_of(a.done) or "none" for a in (arm, partner))
    return (
        f"no common seed is finished (seeds {mine} of {arm.label}, {theirs} of "
        f"{partner.label})"
    )


def _faults(arm: Arm, prefix: str) -> tuple[str, ...]:
    """Reasons why the runs of an arm are invalid, with their seeds."""
    found = []
    if missing := [run for run in arm.runs if not is_done(run)]:
        states = ", ".join(f"seed {r.row['seed']} {_state(r)}" for r in missing)
        whole = f"{len(arm.done)} of {len(arm.runs)} seeds finished"
        found.append(f"{prefix}{whole} ({states})")
    if any(run.row["verified"] == "failed" for run in arm.runs):
        found.append(f"{prefix}a certificate failed")
    found += [f"{prefix}{why}" for why in worse_than_guess(arm)]
    losses = arm.values("val_loss")
    if len(losses) > 1 and min(losses) == max(losses):
        found.append(f"{prefix}all seeds have the same loss, so they are not replicas")
    return tuple(found)


def worse_than_guess(arm: Arm) -> list[str]:
    """Messages about runs of an arm that ended above a uniform guess."""
    found = ((run.seed, above_guess(run)) for run in arm.runs)
    return [f"seed {seed} {why}" for seed, why in found if why]


def not_paired(arm: Arm, partner: Arm) -> tuple[str, ...]:
    """Reasons why runs of one seed are not paired: batches, windows, weights."""
    theirs = partner.done_by_seed
    found: dict[str, list[Run]] = {}
    for run in arm.done:
        if other := theirs.get(run.seed):
            for reason in unpaired(run, other):
                found.setdefault(reason, []).append(run)
    return tuple(
        f"not paired with {partner.label}: {reason} (seeds {seeds_of(runs)})"
        for reason, runs in found.items()
    )


def _does_nothing(arm: Arm, partner: Arm) -> tuple[str, ...]:
    """Reason if the settings differ from the partner's, but not the losses."""
    if not any(name.startswith(ACTING) for name, _, _ in changes_between(partner, arm)):
        return ()
    pairs = [(run, partner.done_by_seed.get(run.seed)) for run in arm.done]
    if not pairs or not all(
        other and are_identical(curve_of(run), curve_of(other)) for run, other in pairs
    ):
        return ()
    return ("its losses are identical to its partner's: its changes have no effect",)


def curve_of(run: Run) -> list[tuple[int, float]]:
    """Every evaluated loss, including the one in the result."""
    records = (r for r in run.evals if "val_loss" in r)
    found = {int(r["step"]): r["val_loss"] for r in records}
    return [*found.items(), (1 + max(found, default=0), run.row["val_loss"])]


def _state(run: Run) -> str:
    status, failure = run.row["status"], run.row["failure"]
    if has_diverged(run):
        return "diverged or without a loss"
    return f"{status}: {failure}" if failure and failure != status else str(status)


def _unverified(arm: Arm, prefix: str) -> tuple[str, ...]:
    found: tuple[str, ...] = ()
    if not all(run.row["verified"] in ("passed", "failed") for run in arm.done):
        found += (f"{prefix}certificates were not run",)
    if any(run.row["as_trained"] is None for run in arm.done):
        found += (f"{prefix}gradients were not compared with the formulas",)
    return found


def _unlike(arm: Arm, partner: Arm, limits: Mapping[str, float]) -> tuple[str, ...]:
    """Reasons if the known means of a column differ by more than its relative limit."""
    found: tuple[str, ...] = ()
    for column, limit in limits.items():
        mine, theirs = arm.mean(column), partner.mean(column)
        if mine is None or theirs is None:
            continue
        if abs(mine - theirs) > limit * max(abs(mine), abs(theirs)):
            name = column.replace("_", " ")
            why = f"{name} differ"
            if theirs:
                why = f"{name} differ by {100 * (mine / theirs - 1):+.1f}%"
            found += (why,)
    return found


def _unlike_data(arm: Arm, partner: Arm) -> tuple[str, ...]:
    prints = {
        identity(finite(run.manifest["data_fingerprint"]))
        for run in (*arm.done, *partner.done)
        if run.manifest.get("data_fingerprint") is not None
    }
    return ("trained on different data",) if len(prints) > 1 else ()


def _other_hardware(runs: Iterable[Run]) -> tuple[str, ...]:
    machines = {_machine(run) for run in runs}
    return ("run on different hardware",) if len(machines) > 1 else ()


def _machine(run: Run) -> str:
    device = as_dict(run.manifest.get("device"))
    name = device.get("name") or as_dict(run.manifest.get("device_info")).get("name")
    world = number(run.manifest.get("world_size"))
    return f"{clean(name or 'unknown')} x {world or 1}"
