"""Choose the rules of the verdicts: from the command, the configuration or the runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

from gpt2.report.evidence import FAMILIES, Rules
from gpt2.report.results import Run
from gpt2.settings.schema import SYMBOL_OF
from lib.kconfig.config_py import read_config
from lib.number_option import LOSS, Allowed, add_name, add_number
from lib.safe_json import number, text

T = TypeVar("T")
# As of REPORT_LOOKS: more of them share so small an error that nothing is found.
LOOKS = Allowed(int, lambda x: 1 <= x <= 20, "a whole number from 1 to 20")


def add_rule_options(parser: argparse.ArgumentParser, family: bool = True) -> None:
    """Add MARGIN, LOOKS and FAMILY, for ``asked_rules``."""
    margin = "difference in nats that does not matter; default: as configured"
    add_number(parser, "MARGIN", LOSS, help=margin)
    looks = "planned reports as seeds are added; default: as configured"
    add_number(parser, "LOOKS", LOOKS, help=looks)
    if family:
        names = f"{', '.join(FAMILIES)}; default: as configured"
        words = f"how the arms share the error: {names}"
        add_name(parser, "FAMILY", FAMILIES, help=words)


def asked_rules(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments for ``rules_for``. ValueError if they exclude each other."""
    names = ("margin", "looks", "family")
    asked = {name: getattr(options, name, None) for name in names}
    Rules(**{name: x for name, x in asked.items() if x is not None})
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
        margin = configured("report_margin", config, runs)
    if looks is None:
        found = configured("report_looks", config, runs)
        looks = None if found is None else int(found)
    if family is None:
        family = _configured("report_family", config, runs, text, FAMILIES.__contains__)
    chosen: dict[str, Any] = {"margin": margin, "looks": looks, "family": family}
    chosen |= others
    return Rules(**{name: x for name, x in chosen.items() if x is not None})


def configured(field: str, config: Path | None, runs: Iterable[Run]) -> float | None:
    """A number of config.py if it exists, else the positive one that all runs have
    recorded; None: neither."""
    return _configured(field, config, runs, number, lambda found: found > 0)


def _configured(
    field: str,
    config: Path | None,
    runs: Iterable[Run],
    read: Callable[[object], T | None],
    is_valid: Callable[[T], bool],
) -> T | None:
    """Value of config.py, else the valid one that all runs have in ``matrix``."""
    if config is not None and config.is_file():
        found = read(read_config(config).values.get(SYMBOL_OF[field]))
        if found is not None:
            return found
    recorded = {read(run.part("matrix").get(field)) for run in runs}
    found = recorded.pop() if len(recorded) == 1 else None
    return found if found is not None and is_valid(found) else None
