"""STEPS_FILE with the real runner: the step that CONTRIBUTING.md writes down."""

from __future__ import annotations

import re
from pathlib import Path

from lib.atomic_files import read_json
from tests.scratch import ROOT
from tests.scripts.inprocess import run_script
from tests.tinymatrix import prove_and_run, run_matrix

HEADING = "## Add an ablation step over existing mechanisms"
RUN = "step100-ra-output-gate-spam/seed1"
OTHER = """
[[step]]
name = "wider-band"
title = "RA in a band of 8"
question = "Does it reach far enough?"
parent = 5
changes = { ra_window = 8 }
"""


def test_own_steps_are_verified_run_reported_and_kept(finished: Path) -> None:
    here = finished
    guide = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.search(r"```toml\n(.*?)```", guide.split(HEADING)[1], re.S)
    assert found
    own, file = found[1], here / "my_steps.toml"
    file.write_text(own)
    words = (
        "--overrides",
        "STEPS_FILE=my_steps.toml STEPS=100 SEEDS=1",
    )
    done = prove_and_run(here, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    marks = re.search(r"^step100-ra-output-gate-spam +(.*)", done.stdout, re.M)
    assert marks and marks[1].split()[10] == "✓", "each of its changes acts"
    assert "1 of 1 jobs are done" in done.stdout
    assert f"{RUN}: started" in done.stdout
    results = here / "results"
    assert (results / "steps.toml").read_text() == own
    job = read_json(results / RUN / "job.json")
    assert (job["parent"], job["ancestors"]) == (5, [5, 0])
    assert job["settings"]["optim"]["optimizer"] == "adamwspam"
    assert "100  RA with the SDPA output" in done.stdout

    # Other steps may come and go; one that was run must stay as it is.
    file.write_text(OTHER + own)
    same = run_matrix(here, *words)
    assert same.returncode == 0 and f"{RUN}: started" not in same.stdout, same.stderr
    assert (results / "steps.toml").read_text() == OTHER + own
    for old, new, message in (
        ("0.001\n", "0.002\n", r"LEARNING_RATE +was 0.001, is now 0.002"),
        ('"ra"', "8", r"RA_MLA_ATTENTION +was mha, is now mla"),
        (
            'name = "ra-',
            'name = "x-',
            r"folder +was step100-ra-output.*, is now step100-x-",
        ),
    ):
        file.write_text(own.replace(old, new))
        refused = run_script("run_test_matrix.py", "--list", *words, cwd=here)
        assert "would refuse to start" in refused.stdout
        assert re.search(message, refused.stdout), refused.stdout
        others = ("--overrides", words[1].replace("=100", "=0"))
        kept = run_script("run_test_matrix.py", "--list", *others, cwd=here)
        assert re.search(message, kept.stdout), "also if it is not among STEPS"
    file.unlink()
    reported = run_script("report.py", "results", "--no-plots", "--no-html", cwd=here)
    assert "100 ra-output-gate-spam" in reported.stdout, reported.stderr
