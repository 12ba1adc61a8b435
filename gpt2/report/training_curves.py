"""Learning rate and gradient norm of every run over its updates, for the charts."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt2.report.arms import Arm
from gpt2.report.plots import places
from gpt2.report.results import Run
from gpt2.report.verdicts import Judgement
from lib.safe_json import number

PANELS = (("grad_norm", "gradient norm"), ("lr", "learning rate"))
MAX_POINTS = 200  # per run


def training_curves(judged: Judgement) -> list[dict[str, Any]]:
    """Arms in the order of the palette, with the curves of each of their runs."""
    place = places(judged)
    ordered = sorted(judged.arms, key=lambda arm: place[arm.label])
    return [
        {"label": arm.label, "place": place[arm.label], "runs": runs}
        for arm in ordered
        if (runs := _runs(arm))
    ]


def _runs(arm: Arm) -> list[dict[str, Any]]:
    found = ({"seed": run.seed, **_curves(run)} for run in arm.runs)
    return [curves for curves in found if curves["x"]]


def _curves(run: Run) -> dict[str, list[float | None]]:
    """Updates, and the values of each panel there, at most MAX_POINTS.

    A point of a long run represents several records, by the largest of their gradient
    norms, so that no spike is left out, and the last of their rates.
    """
    records = [r for r in run.trains if number(r.get("step")) is not None]
    parts = np.array_split(np.arange(len(records)), min(MAX_POINTS, len(records) or 1))
    found: dict[str, list[float | None]] = {"x": [], **{key: [] for key, _ in PANELS}}
    for part in parts:
        chosen = [records[index] for index in part]
        if not chosen:
            continue
        norms = [x for r in chosen if (x := number(r.get("grad_norm"))) is not None]
        found["x"].append(chosen[-1]["step"])
        found["grad_norm"].append(_short(max(norms, default=None)))
        found["lr"].append(_short(number(chosen[-1].get("lr"))))
    return found


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
