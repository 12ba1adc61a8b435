"""Choose the rules of the verdicts: from the command, the configuration or the runs."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from gpt2.report.evidence import FAMILIES, Rules
from gpt2.report.results import Run
from lib.kconfig.config_py import read_config
from lib.number_option import COUNT, LOSS, add_number
from lib.safe_json import as_dict, number, text


def add_rule_options(parser: argparse.ArgumentParser, family: bool = True) -> None:
    """Add MARGIN, LOOKS and FAMILY, for ``asked_rules``."""
    margin = "difference in nats that does not matter; default: as configured"
    add_number(parser, "MARGIN", LOSS, help=margin)
    looks = "planned reports as seeds are added; default: as configured"
    add_number(parser, "LOOKS", COUNT, help=looks)
    if family:
        names = f"{', '.join(FAMILIES)}; default: as configured"
        parser.add_argument("--family", help=f"how the arms share the error: {names}")


def asked_rules(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments for ``rules_for``. ValueError for an unknown family."""
    asked = {
        name: getattr(options, name, None) for name in ("margin", "looks", "family")
    }
    if asked["family"] not in (None, *FAMILIES):
        raise ValueError(f"FAMILY={asked['family']} must be {' or '.join(FAMILIES)}")
    return asked


def rules_for(
    config: Path | None,
    runs: Iterable[Run] = (),
    margin: float | None = None,
    looks: int | None = None,
    family: str | None = None,
    **others: Any,
) -> Rules:
    """Rules with the given margin, looks and family, else those of config.py if it
    exists, else those recorded by all runs, else the defaults.

    others: fields of Rules. Raises ValueError for values out of range.
    """
    runs = list(runs)
    if margin is None:
        margin = configured("REPORT_MARGIN", "report_margin", config, runs)
    if looks is None:
        found = configured("REPORT_LOOKS", "report_looks", config, runs)
        looks = None if found is None else int(found)
    if family is None:
        family = _configured_family(config, runs)
    chosen: dict[str, Any] = {"margin": margin, "looks": looks, "family": family}
    chosen |= others
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


def _configured_family(config: Path | None, runs: Iterable[Run]) -> str | None:
    """Family of config.py if it exists, else the one that all runs have recorded."""
    if config is not None and config.is_file():
        found = read_config(config).values.get("REPORT_FAMILY")
        if isinstance(found, str):
            return found
    parts = [as_dict(run.settings.get("matrix")) for run in runs]
    recorded = {text(part.get("report_family")) for part in parts}
    found = recorded.pop() if len(recorded) == 1 else None
    return found if found in FAMILIES else None


def _recorded(run: Run, field: str) -> float | None:
    """Value in the job of a run; None if it is not positive."""
    found = number(as_dict(run.settings.get("matrix")).get(field))
    return found if found is not None and found > 0 else None
