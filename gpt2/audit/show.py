"""Print audits on a terminal. Torch-free."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt2.audit.finding import DIFFERS, OK, STATES, AuditLine, Value, verdict
from lib import human
from lib.folding import fold

WIDE = 100  # columns for reasons next to the figures; else they are below
COLOURS = {OK: "green", DIFFERS: "bold red"}


def show_audit(
    console: Console, run_dir: Path, findings: Sequence[AuditLine], *, whole: bool
) -> None:
    """Print a line with the verdict of a run, and its findings.

    whole: print all findings; otherwise those that are neither ok nor left out.
    """
    console.print(Text(f"{run_dir}: {summary(findings)}"))
    shown = [f for f in findings if whole or f.state not in (OK, STATES[-1])]
    if not shown:
        return
    with_reasons = console.width >= WIDE
    console.print(table_of(shown, with_reasons))
    for finding in shown if not with_reasons else ():
        if why := _why(finding):
            text = fold(f"  {finding.figure}: {why}", console.width)
            console.print(Text(text), soft_wrap=True)


def summary(findings: Sequence[AuditLine]) -> str:
    """Verdict with the number of findings in each state."""
    counts = Counter(finding.state for finding in findings)
    parts = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f"{verdict(findings)} ({parts})"


def table_of(findings: Sequence[AuditLine], with_reasons: bool = True) -> Table:
    """A row for each finding; figures are those of the run's result where they have
    the name of one.

    with_reasons: with tolerance and reason, which need a wide terminal.
    """
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heads = ("figure", "reported", "recomputed", "", "tolerance, reason")
    for head in heads if with_reasons else heads[:-1]:
        least = 24 if head == "figure" else None
        table.add_column(head, overflow="fold", min_width=least)
    for finding in findings:
        state = Text(finding.state, style=COLOURS.get(finding.state, ""))
        cells = [finding.figure, _shown(finding.reported), _shown(finding.recomputed)]
        why = [Text(_why(finding))] if with_reasons else []
        table.add_row(*map(Text, cells), state, *why)
    return table


def _why(finding: AuditLine) -> str:
    return "; ".join(part for part in (finding.tolerance, finding.reason) if part)


def _shown(value: Value) -> str:
    if value is None:
        return human.NONE
    return f"{value:.9g}" if isinstance(value, float) else str(value)
