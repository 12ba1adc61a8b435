"""`make audit` as a user types it, on a matrix that was really run."""

import json
import shutil
from pathlib import Path

import pytest

from gpt2.audit.finding import PASSED
from gpt2.audit.stamp import audit_state
from lib.atomic_files import atomic_write_json, read_json
from tests.scripts.inprocess import run_script

RUN, OTHER = "results/step00-baseline/seed1", "results/step05-ra/seed1"


@pytest.fixture
def folder(finished):
    """A copy of the matrix of step 0 and 5, seed 1, to change."""
    return finished


def audit(folder, *words, code=0):
    done = run_script("audit.py", *words, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def answer(folder, *words, code=0):
    """The JSON document, without what else is said."""
    done = run_script("audit.py", "--json", *words, cwd=folder)
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def change_loss(folder, run, by=1.1):
    path = folder / run / "status.json"
    status = read_json(path)
    status["result"]["best_val_loss"] *= by
    atomic_write_json(path, status)


def test_all_runs_of_the_results_are_audited_and_the_report_says_so(folder):
    said = audit(folder)
    for run in (RUN, OTHER):
        assert f"{run}: passed (" in said
        assert audit_state(folder / run) == PASSED
    assert "differs" not in said and "not checked" not in said
    run_script("report.py", "--no-plots", "--no-html", "--quiet", cwd=folder)
    assert "- [x] audit: passed" in (folder / "results/REPORT.md").read_text()
    change_loss(folder, RUN)
    run_script("report.py", "--no-plots", "--no-html", "--quiet", cwd=folder)
    line = "- [ ] audit: stale (1 run); passed (1 run)"
    assert line in (folder / "results/REPORT.md").read_text()


def test_the_report_of_the_folder_that_was_audited_is_next(folder, monkeypatch):
    monkeypatch.setenv("KABLATE_SETTINGS", "")  # as under make
    (folder / "results").rename(folder / "others")
    said = audit(folder, "5", "--results", "others")
    assert "Next: make report RESULTS=others (its checklist" in said
    said = audit(folder, "others/step05-ra/seed1")  # not of the configured results
    assert "Next: make report RESULTS=others (its checklist" in said
    (folder / "others").rename(folder / "results")
    assert "Next: make report (its checklist" in audit(folder, "5")
    assert "make report" not in audit(folder, "5", "--no-write")  # it has no news


@pytest.mark.parametrize(
    ("name", "runs"),
    [
        (RUN, [RUN]),
        ("results/step05-ra", [OTHER]),
        ("5", [OTHER]),
        ("baseline:1", [RUN]),
        ("results/*/seed1", [RUN, OTHER]),
        ("step0*", [RUN, OTHER]),
        ("5,baseline:1,ra", [RUN, OTHER]),
    ],
)
def test_a_run_is_named_by_folder_glob_or_step(folder, name, runs):
    """A copy without text: choosing is what counts here, and takes no computation."""
    shutil.rmtree(folder / "data")
    found = answer(folder, "--no-write", name, code=3)
    assert sorted(Path(run["run_dir"]) for run in found["runs"]) == [
        Path(run) for run in runs
    ]
    assert not (folder / RUN / "audit.json").exists()


def test_what_differs_is_shown_with_both_numbers_and_a_code(folder):
    change_loss(folder, RUN, by=2)
    best = read_json(folder / RUN / "status.json")["result"]["best_val_loss"]
    said = audit(folder, "--results", "results", code=1)
    assert f"{OTHER}: passed (" in said
    (line,) = (row for row in said.splitlines() if "best_val_loss" in row[:20])
    assert f"{best:.9g}" in line and f"{best / 2:.9g}" in line and "differs" in line
    assert audit_state(folder / RUN) == "differs"
    found = answer(folder, RUN, code=1)
    (run,) = found["runs"]
    states = {f["figure"]: f["state"] for f in run["findings"]}
    assert (run["verdict"], states["best_val_loss"]) == ("differs", "differs")


def test_text_that_is_elsewhere_is_named_or_found(folder):
    (folder / "data").rename(folder / "moved")
    (run,) = answer(folder, RUN, code=3)["runs"]
    reasons = {f["reason"] for f in run["findings"] if f["state"] == "not checked"}
    assert run["verdict"] == "incomplete"
    assert all("no prepared text in data" in reason for reason in reasons) and reasons
    assert "passed (" in audit(folder, RUN, "--overrides", "DATA_DIR=moved DEVICE=cpu")


def test_runs_that_are_not_done_are_left_out_or_refused(folder):
    path = folder / OTHER / "status.json"
    atomic_write_json(path, {**read_json(path), "status": "interrupted"})
    shutil.rmtree(folder / "data")
    said = audit(folder, code=3)
    assert f"not audited: {OTHER} is not finished (interrupted)" in said
    said = audit(folder, "5", code=2)
    assert "none of these runs is finished" in said and "interrupted" in said


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (
            ("nowhere",),
            "is neither a folder nor a run of results: it has 0 baseline, 5 ra",
        ),
        (("no*where",), "matches no folder"),
        (("5:7",), "RUN='5:7': 5 ra has no run with seed 7 in results, but with 1"),
        (("data",), "no runs in data"),
        (("--config", "none.py"), "make defconfig-NAME"),
        (("0", "--results", "gone"), "to look it up in: gone is not a folder"),
        (("--overrides", "DEVICE=cuda:77"), "DEVICE"),
    ],
)
def test_what_is_no_run_is_refused_with_what_there_is(folder, words, hint):
    said = " ".join(audit(folder, *words, code=2).split())
    assert said.startswith("audit: ") and hint in said
