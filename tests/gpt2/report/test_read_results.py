"""Reading results directories: whole, half finished, damaged, foreign, copied."""

import csv
import json
import math
import os
import shutil
from pathlib import Path

import jsonschema
import pytest

from gpt2.report.read_results import read_matrix
from gpt2.report.results import COLUMNS
from gpt2.report.summary import to_csv, write_summary
from gpt2.report.verdicts import judge
from gpt2.run.progress import run_states, status_table
from lib.jobs.run_files import lock, run_lock
from tests.results_factory import UPDATES, settings, write_matrix, write_run

ROOT = Path(__file__).resolve().parents[3]
OLDER_JOB = ROOT / "tests" / "gpt2" / "settings" / "job_of_a5b7cfa.json"
SCHEMA = json.loads((ROOT / "gpt2" / "report" / "summary.schema.json").read_text())


def summary_of(root, verdicts=None):
    write_summary(read_matrix(root, curves=False), verdicts)
    summary = json.loads((root / "summary.json").read_text())
    jsonschema.validate(summary, SCHEMA)
    return summary


def reasons(matrix):
    return {item.path: item.reason for item in matrix.left_out}


def test_a_finished_matrix_has_a_row_a_run(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2))
    summary = summary_of(tmp_path)
    assert summary["schema"] == 4 and summary["left_out"] == []
    found = [(r["step"], r["name"], r["seed"], r["status"]) for r in summary["runs"]]
    assert found == [
        (0, "baseline", 1, "done"),
        (0, "baseline", 2, "done"),
        (5, "ra", 1, "done"),
        (5, "ra", 2, "done"),
    ]
    row = summary["runs"][2]
    assert set(COLUMNS) == set(row)
    assert row["parent"] == 0 and row["parameters"] == 124_000_000
    assert row["updates"] == row["max_updates"] == UPDATES
    assert (tmp_path / row["run_dir"] / "job.json").is_file()


def test_csv_has_the_same_columns_and_values(tmp_path):
    write_matrix(tmp_path, (0,), (1, 2), result={"hellaswag": 0.25})
    summary = summary_of(tmp_path)
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [list(row) for row in rows] == [[*COLUMNS, "hellaswag"]] * 2
    for row, want in zip(rows, summary["runs"], strict=True):
        expected = {k: "" if v is None else str(v) for k, v in want.items()}
        assert row == expected


def test_summary_with_verdicts_fits_the_schema(tmp_path):
    write_matrix(tmp_path, (0, 2, 5), (1, 2, 3))
    judged = judge(read_matrix(tmp_path))
    summary = summary_of(tmp_path, judged.to_json())
    assert len(summary["verdicts"]["comparisons"]) == 2
    assert summary_of(tmp_path)["verdicts"] is None  # none outlives its runs


@pytest.mark.parametrize(
    ("place", "value"),
    [(("schema",), 1), (("runs", 0, "status"), "finished"), (("runs", 0, "seed"), "1")],
)
def test_the_schema_refuses_what_is_wrong(tmp_path, place, value):
    write_matrix(tmp_path, (0,), (1,))
    summary = summary_of(tmp_path)
    part = summary
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(summary, SCHEMA)


def test_runs_of_every_status_keep_their_row(tmp_path):
    write_run(tmp_path, 0, 1)
    write_run(tmp_path, 0, 2, status="failed", failure="crash", updates=60)
    write_run(tmp_path, 0, 3, status="oom", failure="oom", updates=20)
    write_run(tmp_path, 0, 4, status="running", updates=100)
    write_run(tmp_path, 0, 5, status="interrupted", updates=100)
    write_run(tmp_path, 0, 6, status="planned")
    with lock(run_lock(tmp_path / "step00-baseline" / "seed4")):
        runs = summary_of(tmp_path)["runs"]
    assert [run["status"] for run in runs] == [
        "done", "failed", "oom", "running", "interrupted", "planned",
    ]  # fmt: skip
    assert [run["val_loss"] is None for run in runs] == [False] + [True] * 5
    assert runs[1]["failure"] == "crash" and runs[1]["message"]
    assert runs[3]["updates"] == 100


def test_matrix_json_tells_what_is_planned_and_left_out(tmp_path):
    write_run(tmp_path, 0, 1)
    job = json.loads((tmp_path / "step00-baseline/seed1/job.json").read_text())
    absent = {**job, "seed": 2, "run_dir": "step00-baseline/seed2"}
    evil = {**job, "seed": 3, "run_dir": "../elsewhere"}
    left = [{"name": "step 3", "reason": "not yet available"}]
    listed = {"schema": 1, "jobs": [job, absent, evil, "junk"], "left_out": left}
    (tmp_path / "matrix.json").write_text(json.dumps(listed))
    matrix = read_matrix(tmp_path)
    rows = [(row["seed"], row["status"]) for row in matrix.rows]
    assert rows == [(1, "done"), (2, "planned")]
    assert reasons(matrix) == {"step 3": "not yet available"}


def test_cells_of_a_test_matrix_keep_the_order_of_the_plan(tmp_path):
    for name in ("zeta", "alpha"):
        write_run(tmp_path, 0, 1, job={"step": None, "name": name, "parent": None})
    jobs = [
        json.loads((tmp_path / name / "seed1/job.json").read_text())
        for name in ("zeta", "alpha")
    ]
    (tmp_path / "matrix.json").write_text(json.dumps({"jobs": jobs}))
    assert [run.row["name"] for run in read_matrix(tmp_path).runs] == ["zeta", "alpha"]


def spoil(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content)


DAMAGE = ["", "{", "[]", "null", '"x"', "[" * 100_000, b"\xff\xfe\x00", '{"status": 7}']


@pytest.mark.parametrize("content", DAMAGE)
def test_a_damaged_status_is_named_and_the_row_stays(tmp_path, content):
    write_matrix(tmp_path, (0,), (1, 2))
    spoil(tmp_path / "step00-baseline/seed2/status.json", content)
    matrix = read_matrix(tmp_path)
    assert [run.row["status"] for run in matrix.runs] == ["done", "unreadable"]
    assert list(reasons(matrix)) == ["step00-baseline/seed2/status.json"]
    summary_of(tmp_path)


@pytest.mark.parametrize("content", [*DAMAGE, '{"name": "x", "seed": true}'])
def test_a_damaged_job_is_named_and_left_out(tmp_path, content):
    write_matrix(tmp_path, (0,), (1, 2))
    spoil(tmp_path / "step00-baseline/seed2/job.json", content)
    matrix = read_matrix(tmp_path)
    assert [run.row["seed"] for run in matrix.runs] == [1]
    assert "step00-baseline/seed2" in reasons(matrix)


@pytest.mark.parametrize("content", DAMAGE)
def test_a_damaged_manifest_costs_only_what_it_told(tmp_path, content):
    write_matrix(tmp_path, (0,), (1,))
    spoil(tmp_path / "step00-baseline/seed1/manifest.json", content)
    row = read_matrix(tmp_path).runs[0].row
    assert row["status"] == "done" and row["val_loss"] is not None
    assert row["verified"] is None and row["effective_batch"] is None


def test_bad_lines_of_metrics_are_counted_and_a_torn_last_one_is_not(tmp_path):
    write_matrix(tmp_path, (0,), (1, 2))
    whole = read_matrix(tmp_path).runs[0].evals
    one, two = (tmp_path / f"step00-baseline/seed{s}/metrics.jsonl" for s in (1, 2))
    one.write_text(one.read_text() + '{"kind": "eval", "st')
    two.write_text("nonsense\n[1]\n" + two.read_text())
    matrix = read_matrix(tmp_path)
    assert [len(run.evals) for run in matrix.runs] == [len(whole)] * 2
    why = reasons(matrix)
    assert why == {
        "step00-baseline/seed2/metrics.jsonl": "2 bad lines were skipped, first 1"
    }


def test_a_step_written_again_after_a_resume_counts_once(tmp_path):
    directory = write_run(tmp_path, 0, 1)
    again = {"kind": "eval", "step": 100, "tokens": 1, "val_loss": 9.0, "seconds": 1.0}
    with (directory / "metrics.jsonl").open("a") as file:
        file.write(json.dumps(again) + "\n")
    evals = read_matrix(tmp_path).runs[0].evals
    steps = [record["step"] for record in evals]
    assert steps == sorted(set(steps))
    assert next(r for r in evals if r["step"] == 100)["val_loss"] == 9.0


def test_a_manifest_of_another_run_makes_the_row_unreadable(tmp_path):
    write_run(tmp_path, 0, 1, manifest={"hash": "f" * 16})
    matrix = read_matrix(tmp_path)
    assert matrix.runs[0].row["status"] == "unreadable"
    assert matrix.runs[0].row["val_loss"] is None
    assert "another run" in reasons(matrix)["step00-baseline/seed1/manifest.json"]


def test_a_job_with_edited_settings_is_noted(tmp_path):
    job = json.loads(OLDER_JOB.read_text())
    directory = write_run(tmp_path, 0, 1)
    (directory / "manifest.json").unlink()
    for value, found in ((job["settings"]["optim"]["max_iters"], False), (7, True)):
        job["settings"]["optim"]["max_iters"] = value
        (directory / "job.json").write_text(json.dumps(job))
        noted = reasons(read_matrix(tmp_path)).get("step00-baseline/seed1/job.json", "")
        assert ("do not have its hash" in noted) == found


def test_perplexity_is_that_of_the_loss(tmp_path):
    write_run(tmp_path, 0, 1, result={"val_perplexity": 2.0})
    row = read_matrix(tmp_path).runs[0].row
    assert row["val_perplexity"] == pytest.approx(math.exp(row["val_loss"]))


def test_a_copied_run_directory_is_not_counted_twice(tmp_path):
    write_matrix(tmp_path, (0,), (1, 2))
    shutil.copytree(tmp_path / "step00-baseline/seed1", tmp_path / "a-copy")
    matrix = read_matrix(tmp_path)
    assert [run.run_dir for run in matrix.runs] == [
        "step00-baseline/seed1", "step00-baseline/seed2",
    ]  # fmt: skip
    assert "duplicate of step00-baseline/seed1" in reasons(matrix)["a-copy"]


def test_links_and_special_files_are_not_followed(tmp_path):
    write_matrix(tmp_path / "here", (0,), (1,))
    write_matrix(tmp_path / "there", (5,), (1,))
    here = tmp_path / "here"
    (here / "step05-ra").symlink_to(tmp_path / "there" / "step05-ra")
    os.mkfifo(here / "step00-baseline/seed1/gpu.jsonl")
    metrics = here / "step00-baseline/seed1/metrics.jsonl"
    metrics.unlink()
    metrics.symlink_to("/dev/zero")
    matrix = read_matrix(here)
    assert [run.row["step"] for run in matrix.runs] == [0]
    assert reasons(matrix) == {
        "step05-ra": "links are not followed",
        "step00-baseline/seed1/metrics.jsonl": "not a plain file",
    }


def test_values_that_are_no_numbers_are_absent_not_a_crash(tmp_path):
    bad = {"val_loss": "low", "tokens": True, "seconds": [1], "mfu": float("inf")}
    huge = {"peak_memory_bytes": 1.7e308, "parameters": 10**400}
    write_run(tmp_path, 0, 1, result={**bad, **huge})
    write_run(tmp_path, 0, 2, result=huge)  # whose sum would overflow
    judge(read_matrix(tmp_path)).arms[0].mean("peak_memory_bytes")
    row = summary_of(tmp_path)["runs"][0]
    assert row["status"] == "done"
    assert all(row[name] is None for name in bad)
    assert row["parameters"] == 124_000_000  # the manifest's


def test_texts_are_cleaned_of_control_and_direction_marks(tmp_path):
    title = "\x1b[31mred\x07 \u202egpj.exe\n" + "x" * 1000
    write_run(tmp_path, 0, 1, job={"title": title})
    row = read_matrix(tmp_path).runs[0].row
    assert row["title"].startswith("[31mred gpj.exe xxx") and len(row["title"]) == 300


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "\n=", "\uff1d"])
def test_texts_are_not_spreadsheet_formulas(start):
    row = {"title": f"{start}HYPERLINK(1)", "loss_change": -0.25, f"{start}A": True}
    names, cells = csv.reader(to_csv([row]).splitlines(keepends=True))
    found = dict(zip(names, cells, strict=True))
    start = start.replace("\r", "\n")
    assert found["title"] == f"'{start}HYPERLINK(1)" and found["loss_change"] == "-0.25"
    assert f"'{start}A" in names and f"{start}A" not in names


def test_further_plain_values_of_a_result_become_columns(tmp_path):
    more = {"hellaswag": 0.3, "exported": True, "UPPER": 1, "deep": {"a": 1}}
    write_run(tmp_path, 0, 1, result=more)
    row = summary_of(tmp_path)["runs"][0]
    assert row["hellaswag"] == 0.3 and row["exported"] is True
    assert not {"UPPER", "deep"} & set(row)


def test_a_copied_directory_reads_the_same(tmp_path):
    write_matrix(tmp_path / "a", (0, 5), (1, 2))
    first = summary_of(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "deep" / "b")
    shutil.rmtree(tmp_path / "a")
    assert summary_of(tmp_path / "deep" / "b") == first


def test_a_copy_of_a_running_matrix_is_interrupted_as_make_status_says(tmp_path):
    running, copy = tmp_path / "running", tmp_path / "copy"
    write_run(running, 0, 1, status="running", updates=100)
    with lock(run_lock(running / "step00-baseline" / "seed1")):
        shutil.copytree(running, copy)
        # It has not recorded a phase yet, so that it is still preparing.
        for root, status, shown in (
            (running, "running", "preparing"),
            (copy, "interrupted", "interrupted"),
        ):
            (run,) = read_matrix(root).rows
            assert run["status"] == status
            assert f"  {shown}  " in status_table(run_states(root, [run["run_dir"]]))


def test_a_strangers_lock_is_no_reason_to_wait(tmp_path):
    write_run(tmp_path, 0, 1, status="running", updates=100)
    os.mkfifo(run_lock(tmp_path / "step00-baseline" / "seed1"))
    assert [run["status"] for run in read_matrix(tmp_path).rows] == ["interrupted"]


def test_nothing_in_a_results_directory_is_executed(tmp_path):
    evil = f"__import__('os').mkdir({str(tmp_path / 'owned')!r})"
    write_run(tmp_path, 0, 1, job={"title": evil, "settings": settings(0, ra=evil)})
    (tmp_path / "config.py").write_text(evil)
    (tmp_path / "step00-baseline/seed1/sitecustomize.py").write_text(evil)
    summary_of(tmp_path)
    assert not (tmp_path / "owned").exists()


def test_a_missing_directory_says_what_to_do(tmp_path):
    with pytest.raises(ValueError, match="run `make` first"):
        read_matrix(tmp_path / "absent")


def test_a_result_that_is_not_what_the_records_end_with_does_not_count(tmp_path):
    """One of two runs that were mixed up, or numbers that were edited."""
    write_run(tmp_path, 0, 1)
    mixed, path = write_run(tmp_path, 0, 2), "step00-baseline/seed2/status.json"
    status = json.loads((mixed / "status.json").read_text())
    ended, status["result"]["val_loss"] = status["result"]["val_loss"], 2.5
    (mixed / "status.json").write_text(json.dumps(status))
    matrix = read_matrix(tmp_path)
    assert reasons(matrix)[path] == f"val_loss is 2.5, but {ended:.6g} in metrics.jsonl"
    assert [run.row["status"] for run in matrix.runs] == ["done", "unreadable"]


def test_evaluations_of_two_writers_and_without_a_loss_are_noted(tmp_path):
    one = write_run(tmp_path, 0, 1) / "metrics.jsonl"
    lines = one.read_text().splitlines(keepends=True)
    other = json.dumps({"kind": "eval", "step": 0, "val_loss": 9.0}) + "\n"
    one.write_text("".join([*lines, lines[0], other]))
    two = write_run(tmp_path, 0, 2) / "metrics.jsonl"
    two.write_text(
        two.read_text().replace('"val_loss": ', '"val_loss": 1e400, "x": ', 1)
    )
    found = reasons(read_matrix(tmp_path))
    assert found == {
        "step00-baseline/seed1/metrics.jsonl": "several values of val_loss at update "
        "0: the last counts",
        "step00-baseline/seed2/metrics.jsonl": "1 of 2 evaluations of a finished run "
        "are missing, the first at update 0: its curve is incomplete",
    }
