"""lib/folding.py, and its use by every command on a terminal."""

import pytest

from lib.folding import fold, fold_text
from tests.terminal import run_in_terminal

PATH = "test_matrix_results_quickstart/step05-ra/seed1/model.safetensors"


@pytest.mark.parametrize(
    ("line", "folded"),
    [
        ("short", "short"),
        ("  one two three four five", "  one two\n    three four\n    five"),
        (f"see {PATH}", f"see\n  {PATH}"),
        (PATH, PATH),
        ("so type `make rerun A=1 B=2` now", "so type\n  `make rerun A=1 B=2`\n  now"),
        ("to go on: make STEPS=0,5 ONLY=x", "to go on:\n  make STEPS=0,5 ONLY=x"),
        ("Next: make A=1 B=2 (it runs)", "Next:\n  make A=1 B=2\n  (it runs)"),
        ('{"a": "one two three four"}', '{"a": "one two three four"}'),
        ("a row    of a table    that is wide", "a row    of a table    that is wide"),
    ],
)
def test_lines_break_between_words_only(line, folded):
    assert fold(line, 14) == folded
    assert "".join(folded.split()) == "".join(line.split())


def test_text_that_moves_the_cursor_is_left_alone():
    drawn = "\x1b[1A" + 40 * "word "
    assert (
        fold_text(drawn, 20) == drawn and fold_text(f"a\r{drawn}", 20) == f"a\r{drawn}"
    )
    assert fold_text("one two three four five six\nseven", 21) == (
        "one two three four\n  five six\nseven"
    )


SCRIPT = """
import sys
sys.path.insert(0, {root!r})
from lib.output import begin
begin()
long = "word " * 30
print(long)
print("a", end=" ")
print(long, file=sys.stderr)
sys.stdout.write("streamed ")
sys.stdout.write(long + "\\n")
"""


def test_a_command_folds_on_a_terminal_and_nowhere_else(tmp_path):
    from tests.scratch import ROOT, python

    (tmp_path / "command.py").write_text(SCRIPT.format(root=str(ROOT)))
    lines = run_in_terminal(tmp_path, "command.py", columns=60).splitlines()
    assert lines[0] == " ".join(["word"] * 12)
    assert lines[1] == "  " + " ".join(["word"] * 11)
    # Text that comes in pieces is written as it is.
    assert lines[-1] == "streamed " + "word " * 30
    piped = python(tmp_path, "command.py").stdout
    assert piped.splitlines()[0] == "word " * 30
