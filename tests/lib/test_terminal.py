"""lib/terminal.py: the width of tables, and text that fits a page."""

import subprocess
import sys

import pytest

from lib.terminal import PAGE, WIDTH, aligned, paragraph, say_doing
from tests.scratch import ROOT
from tests.terminal import run_in_terminal

WIDTHS = "from lib.terminal import *; print(width_of_output(), report_console().width)"


@pytest.mark.parametrize(
    ("columns", "widths"),
    [("60", "60 60"), (None, f"None {WIDTH}"), ("0", f"None {WIDTH}")],
)
def test_a_pipe_is_as_wide_as_columns_says(monkeypatch, columns, widths):
    monkeypatch.delenv("COLUMNS", raising=False)
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    command = [sys.executable, "-c", WIDTHS]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split("\n")[0] == widths, done.stderr


def test_a_terminal_is_as_wide_as_it_is():
    assert run_in_terminal(ROOT, "-c", WIDTHS, columns=93).strip() == "93 93"


def test_paragraphs_are_broken_between_words():
    path = "a/path-with-hyphens/" + "x" * PAGE
    lines = paragraph(f"note: {'update-1 ' * 20}{path}").split("\n")
    assert len(lines) == 4 and max(map(len, lines[:3])) <= PAGE
    assert all(line.split()[-1] == "update-1" for line in lines[:3])
    assert lines[3] == f"  {path}"


def test_a_last_cell_without_room_ends_a_second_line():
    rows = [("ONE", "1", "default"), ("TWO", "v" * 30, f"defconfigs/{'x' * 40}")]
    one, last = aligned(rows, (8, 10), indent=2)
    two, origin = last.split("\n")
    assert one == "  ONE  1           default"
    assert two == f"  TWO  {'v' * 30}"
    assert origin.endswith("x") and len(origin) == PAGE


@pytest.mark.parametrize(("columns", "width"), [("40", 40), ("200", PAGE)])
def test_last_cells_end_where_a_narrow_terminal_does(monkeypatch, columns, width):
    monkeypatch.setenv("COLUMNS", columns)
    (line,) = aligned([("GPT2_N_LAYER", "4" * 50, "defconfigs/one:7")], (26, 16))
    assert [len(part) for part in line.split("\n")] == [64, width]


def test_what_takes_a_while_is_said_on_a_terminal_alone(capsys):
    say_doing("scoring")
    assert capsys.readouterr() == ("", "")
    code = "from lib.terminal import say_doing; say_doing('scoring')"
    assert run_in_terminal(ROOT, "-c", code, columns=93).strip() == "scoring ..."
