"""The tables of `make verify`: marks, worst figures and thresholds in 80 columns."""

import pytest

from gpt2.plan.steps import STEPS
from gpt2.verify.certify_steps import COLUMNS, Findings
from gpt2.verify.certify_training import KINDS, everything
from gpt2.verify.subject import Finding
from gpt2.verify.table import (
    FAILED,
    MEANINGS,
    NONE,
    PASSED,
    closing,
    heading,
    legend,
    row,
)
from lib.terminal import PAGE

TABLES = {"step": COLUMNS, **KINDS}
GOOD = Finding(True, "1.5e-11")


@pytest.mark.parametrize("kind", TABLES)
def test_every_line_fits_and_every_column_has_a_meaning(kind: str) -> None:
    columns = TABLES[kind]
    assert {*columns} <= {*MEANINGS[kind]}
    longest = [f"step{step.id:02d}-{step.name}" for step in STEPS.values()]
    longest += [subject.name for subject in everything()]
    cell = max(longest, key=len)
    found = Findings(cell, dict.fromkeys(columns, GOOD))
    lines = [heading(kind, columns), row(found, columns)]
    lines += legend(kind, [found], columns)
    assert max(map(len, lines)) <= PAGE, max(lines, key=len)
    assert len(lines) == 3 + len(columns)
    assert lines[1].startswith(f"{cell}  ")


def test_marks_and_the_worst_figure_of_a_column() -> None:
    columns = ("causal", "alive", "heads", "distinct")
    one = {"causal": GOOD, "alive": Finding(True, "2e-3")}
    other = {"causal": Finding(True, "3e-10"), "alive": Finding(False, "0.0e+00")}
    cells = [Findings("one", one), Findings("other", other)]
    assert row(cells[0], columns).split() == ["one", PASSED, PASSED, NONE, NONE]
    assert row(cells[1], columns).split() == ["other", PASSED, FAILED, NONE, NONE]
    causal, alive = [*legend("step", cells, columns)][1:]
    assert causal.split()[:5] == ["1", "causal", "3e-10", "<=", "1e-09"]
    assert alive.split()[:5] == ["2", "alive", "0.0e+00", ">", "0"]


def test_a_long_name_leaves_the_marks_in_their_columns() -> None:
    columns = ("causal", "alive")
    findings = dict.fromkeys(columns, GOOD)
    short = row(Findings("one", findings), columns)
    name, marks = row(Findings("x" * 60, findings), columns).split("\n")
    assert name == "x" * 60 and marks == short.replace("one", "   ")


def test_last_line_says_what_was_checked() -> None:
    assert closing({"step": 4, "optimizer": 1, "pruning": 0}, 0) == (
        "All certificates passed (4 steps, 1 optimizer)"
    )
    assert closing({"step": 2, "optimizer": 1}, 1).startswith("1 of 3 failed (2 steps")
