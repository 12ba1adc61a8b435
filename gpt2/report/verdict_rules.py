"""Choose the rules of the verdicts: from the command, the configuration or the runs."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpt2.report.evidence import Rules
from gpt2.report.results import Run
from lib.kconfig.config_py import read_config
from lib.safe_json import as_dict, number


def rules_for(
    config: Path | None,
    runs: Iterable[Run] = (),
    margin: float | None = None,
    looks: int | None = None,
    **others: Any,
) -> Rules:
    """Rules with the given margin and looks, else those of config.py if it exists, else
    those recorded by all runs, else the defaults.

    others: fields of Rules. Raises ValueError for values out of range.
    """
    runs = list(runs)
    if margin is None:
        margin = configured("REPORT_MARGIN", "report_margin", config, runs)
    if looks is None:
        found = configured("REPORT_LOOKS", "report_looks", config, runs)
        looks = None if found is None else int(found)
    chosen: dict[str, Any] = {"margin": margin, "looks": looks, **others}
    return Rules(**{name: x for name, x in chosen.items() if x is not None})


def configured(
    symbol: str, field: str, config: Path | None, runs: Iterable[Run]
) -> float | None:
    """A positive number of config.py if it exists, else the one that all runs have
    recorded in their part ``matrix``; None: neither."""
    if config is not None and config.is_file():
        configured = number(read_config(config).values.get(symbol))
        if configured is not None:
            return configured
    recorded = {_recorded(run, field) for run in runs}
    return recorded.pop() if len(recorded) == 1 else None


def _recorded(run: Run, field: str) -> float | None:
    """Value in the job of a run; None if it is not positive."""
    found = number(as_dict(run.settings.get("matrix")).get(field))
    return found if found is not None and found > 0 else None
