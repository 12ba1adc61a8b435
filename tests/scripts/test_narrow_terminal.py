"""Commands on a terminal of 80 columns: no line is too long and no word is cut."""

import sys

import pytest
from rich.console import Console

from gpt2.audit.finding import DIFFERS, AuditLine
from gpt2.audit.show import show_audit
from tests.scratch import ROOT
from tests.scripts.inprocess import run_script
from tests.terminal import run_in_terminal

WIDTH = 80
SHORT = "5,0 --batches 1 --prompt_tokens 4 --new_tokens 4 --repeats 1 --peers ,".split()
LONG = "questions_with_a_name_that_fills_columns.jsonl"
COMMANDS = {  # and whether the last line says what to do next
    "status": (True, "run_test_matrix.py", "--status"),
    "budget": (True, "run_test_matrix.py", "--budget"),
    "list": (False, "run_test_matrix.py", "--list", "--overrides", "OUTPUT_DIR=other"),
    "report": (True, "report.py", "results", "--no-plots", "--no-html"),
    "explain": (True, "kconfig.py", "explain", ""),
    "eval": (True, "eval.py", "5,0", "--no-write", "--choices", LONG),
    "inference-bench": (True, "inference_bench.py", *SHORT, "--out", LONG),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_words_stay_whole_in_80_columns(finished, tmp_path, name):
    has_next, script, *words = COMMANDS[name]
    if "--out" not in words:
        question = '{"context": "a", "choices": ["b", "c"], "answer": 0}'
        (tmp_path / LONG).write_text(question)
    words = [tmp_path / LONG if word == LONG else word for word in words]
    command = [str(ROOT / "scripts" / str(script)), *map(str, words)]
    shown = run_in_terminal(finished, *command, columns=WIDTH)
    done = run_script(script, *words, cwd=finished)
    assert done.returncode == 0, done.stderr
    for line in map(str.strip, shown.splitlines()):
        is_command = line.startswith(sys.executable)  # to be copied as a whole
        assert len(line) <= WIDTH or is_command or " " not in line, line
    cut = [word for word in shown.split() if word.endswith("…")]
    assert not cut, "a number that is cut off would be another number"
    # A table may leave columns out, but paths and commands are there as a whole.
    long = {w for w in (done.stdout + done.stderr).split() if len(w) > 18 and "/" in w}
    assert long <= {*shown.split()}
    last = done.stdout.rstrip().splitlines()[-1]
    assert last.startswith("Next: ") == has_next, last


@pytest.mark.parametrize("mode", ["--status", "--budget"])
def test_tables_leave_columns_out_in_40_columns(undisturbed, monkeypatch, mode):
    monkeypatch.setenv("COLUMNS", "40")
    shown = run_script("run_test_matrix.py", mode, cwd=undisturbed).stdout
    table, found, _ = shown.partition("(not shown in this narrow terminal: ")
    assert found and max(map(len, table.splitlines())) <= 40 and "ra" in table


def test_reasons_of_an_audit_are_below_its_figures_where_there_is_no_room(capsys):
    run_dir = ROOT / "test_matrix_results_quickstart/step05-ra/seed1"
    reason = f"{run_dir}/job.json: does not match its settings"
    line = AuditLine("parameters", DIFFERS, 1, 2, reason=reason)
    for width in (WIDTH, 300):
        show_audit(Console(width=width), run_dir, [line], whole=True)
        said = capsys.readouterr().out
        assert f"{run_dir}/job.json:" in said.split()
        assert ("tolerance, reason" in said) == (width > WIDTH)
