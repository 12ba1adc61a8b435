"""`make bundle` and `make report RESULTS=bundle.zip` as a user types them."""

import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from gpt2.audit.stamp import audit_state
from gpt2.report.bundle import ALLOWED
from tests.results_factory import pass_audits, write_matrix
from tests.scripts.inprocess import run_script


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_matrix(tmp_path / "out", (0, 5), (1, 2, 3))
    return tmp_path


def call(folder, name, *words, code=0):
    done = run_script(name, *words, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def report(folder, *words):
    return call(folder, "report.py", "--no-plots", "--quiet", *words)


def test_a_bundle_holds_the_report_and_gives_the_same_one(folder):
    weights = folder / "out/step05-ra/seed1/model.safetensors"
    weights.write_bytes(b"weights")
    (folder / "out/step05-ra/seed1/ckpt").mkdir()
    (folder / "out/step05-ra/seed1/ckpt/state.pt").write_bytes(b"state")
    (folder / "out/config.py").write_text("CONFIG = 1\n")
    sample = {"prompt": "Once", "actual": " upon", "text": " more"}
    samples = folder / "out/step05-ra/seed1/samples.json"
    samples.write_text(json.dumps({"samples": [sample]}))
    report(folder, "out")
    said = call(folder, "bundle.py", "out")
    assert said.startswith("out.zip: ") and "Next: make report RESULTS=out.zip" in said
    names = set(zipfile.ZipFile(folder / "out.zip").namelist())
    assert {"REPORT.md", "report.html", "results.csv", "SHA256SUMS"} <= names
    assert "step05-ra/seed1/metrics.jsonl" in names
    assert "step05-ra/seed1/samples.json" in names
    assert not [n for n in names if n.endswith((".safetensors", ".pt", ".py"))]
    (folder / "there").mkdir()
    shutil.copy(folder / "out.zip", folder / "there/out.zip")
    for _ in range(2):  # made again, by what was unpacked
        said = report(folder, "there/out.zip")
        assert "there/out.zip is unpacked in there/out\n" in said
        for name in ("REPORT.md", "report.html", "summary.json", "results.csv"):
            ours, theirs = (folder / f / "out" / name for f in (".", "there"))
            assert ours.read_bytes() == theirs.read_bytes(), name


def test_audits_are_as_good_as_before_without_weights(folder):
    weights = folder / "out/step05-ra/seed1/model.safetensors"
    weights.write_bytes(b"weights")
    pass_audits(folder / "out")
    run = "out/step05-ra/seed1"
    report(folder, "out")
    assert audit_state(folder / run) == "passed"
    call(folder, "bundle.py", "out", "--out", "b.zip")
    report(folder, "b.zip")
    assert audit_state(folder / "b/step05-ra/seed1") == "passed"
    (folder / "b/step05-ra/seed1/status.json").write_text("{}")
    assert audit_state(folder / "b/step05-ra/seed1") == "stale"


def test_a_bundle_is_of_a_report_of_the_runs_as_they_are(folder):
    said = call(folder, "bundle.py", "out", code=2)
    assert "there is no REPORT.md" in said and "make report RESULTS=out" in said
    report(folder, "out")
    later = (folder / "out/REPORT.md").stat().st_mtime + 10
    os.utime(folder / "out/step05-ra/seed2/status.json", (later, later))
    said = call(folder, "bundle.py", "out", code=2)
    assert "step05-ra/seed2 has changed since its report" in said
    assert not (folder / "out.zip").exists()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["nowhere"], "nowhere"),
        ([], "name a results folder, by RESULTS=folder"),
        (["out", "--out", "x.tar"], "OUT=x.tar: the name of a bundle ends in .zip"),
    ],
)
def test_what_makes_no_sense_is_refused(folder, words, hint):
    assert hint in call(folder, "bundle.py", *words, code=2)


def test_a_place_that_takes_no_bundle_is_refused(folder):
    report(folder, "out")
    (folder / "x.zip").mkdir()
    said = call(folder, "bundle.py", "out", "--out", "x.zip", code=2)
    assert said.startswith("bundle: cannot write x.zip: Is a directory. Move what is")


def test_a_zip_of_something_else_is_refused(folder):
    with zipfile.ZipFile(folder / "x.zip", "w") as made:
        made.writestr("../job.json", "{}")
    said = call(folder, "report.py", "x.zip", code=2)
    assert said.startswith("report: x.zip: '../job.json' is nothing that belongs")
    (folder / "y.zip").write_text("text")
    assert "is not a readable zip" in call(folder, "report.py", "y.zip", code=2)


@pytest.mark.parametrize("name", ["adamwprune-bitter4-s0.5/seed1/job.json", "job.json"])
def test_runs_of_every_kind_of_matrix_are_allowed(name):
    assert bool(ALLOWED.fullmatch(name)) == ("/" in name)
