"""Alarms about a whole matrix, raised by the runner and shown in the report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from gpt2.plan.axes import agreeing
from gpt2.report.arms import Arm, above_guess, group_arms, partner_of
from gpt2.report.controls import Control, controls_of, is_alarming, is_large
from gpt2.report.identical_runs import twin_alarms
from gpt2.report.read_results import read_matrix
from gpt2.report.results import MatrixResults
from gpt2.report.verdict_rules import rules_for

# Distance of a baseline's loss above every other arm that raises an alarm, as a share
# of that loss: 0.17 of 3.3 nats. With wrong gradients a baseline was 15% above.
FAR = 0.05


def matrix_alarms(root: Path) -> dict[str, str]:
    """Alarms of a results folder, keyed by the runs or arm that each is about.

    Imports no numpy, whose threads a runner that forks must not have.
    """
    matrix = read_matrix(root, curves=False)
    arms = group_arms(matrix)
    rules = rules_for(None, matrix.runs)
    found = twin_alarms(matrix)
    for control in filter(is_alarming, controls_of(arms, rules, [is_large])):
        found[control.arm.label] = control_alarm(control)
    for run in matrix.runs:
        if why := above_guess(run):
            found[run.run_dir] = f"{run.run_dir} {why}"
    for arm, text in far_baselines(arms):
        found[arm.label] = f"{arm.label}: {text}"
    return {key: f"ALARM {text}" for key, text in found.items()}


def control_alarm(control: Control) -> str:
    """Alarm text of a control that differs or measured nothing."""
    return f"{control.arm.label}: the A/A control {'; '.join(control.reasons)}"


def far_baselines(arms: Sequence[Arm]) -> list[tuple[Arm, str]]:
    """(baseline, message) for each baseline far above every other finished arm.

    Of a sweep, arms at other values do not count: a small model is above larger ones.
    """
    tested = [arm for arm in arms if not arm.is_control]
    partners = [(arm, *partner_of(arm, arms)) for arm in tested]
    found = []
    for arm, partner, note in partners:
        if partner is not None or note:
            continue
        others = [
            other
            for other in tested
            if other is not arm and agreeing(arm.coordinates, [other.coordinates])
        ]
        least = _least_gain(arm, others)
        if least is not None and least > FAR * (arm.mean("val_loss") or math.inf):
            far = f"its loss is at least {least:.2f} nats above that of every other arm"
            found.append((arm, f"{far}: was it trained correctly?"))
    return found


def _least_gain(baseline: Arm, others: Sequence[Arm]) -> float | None:
    """Least mean loss of the baseline minus an arm's, in nats; None: no seed shared."""
    mine, gains = baseline.by_seed("val_loss"), []
    for other in others:
        theirs = other.by_seed("val_loss")
        if shared := mine.keys() & theirs.keys():
            total = math.fsum(mine[seed] - theirs[seed] for seed in shared)
            gains.append(total / len(shared))
    return min(gains, default=None)


def all_alarms(matrix: MatrixResults, arms: Sequence[Arm]) -> list[str]:
    """Alarms of single runs and of baselines; controls have a separate item."""
    found = [f"{run.run_dir}: {alarm}" for run in matrix.runs for alarm in run.alarms]
    found += [f"{r.run_dir} {why}" for r in matrix.runs if (why := above_guess(r))]
    return found + [f"{arm.label}: {text}" for arm, text in far_baselines(arms)]
