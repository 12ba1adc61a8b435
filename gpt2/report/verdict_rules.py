"""Rules that the verdicts are given by: asked for, configured, or recorded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpt2.report.evidence import Rules
from gpt2.report.read_results import Run
from lib.kconfig.config_py import read_config
from lib.safe_json import as_dict, number


def rules_for(
    config: Path | None,
    runs: Iterable[Run] = (),
    margin: float | None = None,
    looks: int | None = None,
    **others: Any,
) -> Rules:
    """Rules with the margin and the looks asked for, else those of config.py if one is
    given and there, else those that all runs were configured with, else the default.

    others: fields of Rules. ValueError for rules that make no sense.
    """
    runs = list(runs)
    if margin is None:
        margin = _found("REPORT_MARGIN", "report_margin", config, runs)
    if looks is None:
        found = _found("REPORT_LOOKS", "report_looks", config, runs)
        looks = None if found is None else int(found)
    chosen: dict[str, Any] = {"margin": margin, "looks": looks, **others}
    return Rules(**{name: x for name, x in chosen.items() if x is not None})


def _found(
    symbol: str, field: str, config: Path | None, runs: Iterable[Run]
) -> float | None:
    if config is not None and config.is_file():
        configured = number(read_config(config).values.get(symbol))
        if configured is not None:
            return configured
    recorded = {_recorded(run, field) for run in runs}
    return recorded.pop() if len(recorded) == 1 else None


def _recorded(run: Run, field: str) -> float | None:
    """Value in the job of a run; None where it is not positive."""
    found = number(as_dict(run.settings.get("matrix")).get(field))
    return found if found is not None and found > 0 else None
