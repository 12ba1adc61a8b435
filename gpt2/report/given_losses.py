"""Verdicts on losses that are given as numbers, such as those of another trainer."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

from gpt2.report.arms import Arm
from gpt2.report.evidence import Evidence, Rules, at_equal_steps
from gpt2.report.grades import Verdict
from gpt2.report.noise import noise_of
from gpt2.report.results import COLUMNS, Run
from gpt2.report.verdicts import grade_all

Losses = Mapping[str, Mapping[int, float]]  # nats, by arm and seed


def judge_losses(
    losses: Losses, partner: str, rules: Rules | None = None
) -> dict[str, Verdict]:
    """Grade every other arm against ``partner``, by the tests of a report.

    Only these numbers are judged: that budgets, data and batches are equal, and that
    the code computes what it should, is up to the caller. Raises ValueError if there is
    no such arm, if the arms do not have the same seeds, or for a loss that is not
    finite.
    """
    if partner not in losses:
        raise ValueError(f"there is no arm {partner!r} among {', '.join(losses)}")
    for name, by_seed in losses.items():
        if by_seed.keys() != losses[partner].keys():
            mine, theirs = sorted(by_seed), sorted(losses[partner])
            raise ValueError(
                f"{name} has the seeds {mine}, but {partner} has {theirs}: arms are "
                "paired by seed"
            )
        if not all(map(math.isfinite, by_seed.values())):
            raise ValueError(f"{name} has a loss that is not finite: {dict(by_seed)}")
    arms = {name: _arm(name, by_seed) for name, by_seed in losses.items()}
    pairs = [(arm, arms[partner]) for name, arm in arms.items() if name != partner]
    noise = noise_of([arms[partner]])
    found = grade_all(pairs, _evidence, rules or Rules(), noise)
    return {arm.name: verdict for (arm, _), verdict in zip(pairs, found, strict=True)}


def _arm(name: str, by_seed: Mapping[int, float]) -> Arm:
    known = ({"seed": s, "val_loss": x} for s, x in sorted(by_seed.items()))
    fixed = {"name": name, "status": "done"}
    rows = [dict.fromkeys(COLUMNS) | fixed | row for row in known]
    return Arm(None, name, name, tuple(Run(row) for row in rows))


def _evidence(arm: Arm, partner: Arm, rules: Rules) -> Evidence:
    """Evidence of the losses alone: no certificates are expected."""
    return dataclasses.replace(at_equal_steps(arm, partner, rules), unverified=())
