"""Which margin the verdicts are given by: asked for, configured, or recorded."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from gpt2.report.evidence import Rules
from gpt2.report.results import Run
from lib.generated import read_config
from lib.untrusted import as_dict, number


def margin_for(
    asked: float | None, config: Path | None, runs: Iterable[Run] = ()
) -> float:
    """The margin in nats: the one asked for, else that of config.py if one is given
    and there, else the one that all runs were configured with, else the default."""
    if asked is not None:
        return asked
    if config is not None and config.is_file():
        configured = number(read_config(config).values.get("REPORT_MARGIN"))
        if configured is not None:
            return configured
    recorded = {_recorded(run) for run in runs}
    only = recorded.pop() if len(recorded) == 1 else None
    return Rules().margin if only is None else only


def _recorded(run: Run) -> float | None:
    """What the job of a run says; None where it is no margin."""
    found = number(as_dict(run.settings.get("matrix")).get("report_margin"))
    return found if found is not None and found > 0 else None
