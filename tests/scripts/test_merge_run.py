"""`make report RESULTS=a,b` of real runs: the parts give the report of the whole."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from lib.atomic_files import read_json
from tests.scratch import ROOT
from tests.scripts.inprocess import run_script


def test_parts_of_a_study_give_the_verdicts_of_the_whole(
    undisturbed: Path, tmp_path: Path
) -> None:
    whole = Path(shutil.copytree(undisturbed / "results", tmp_path / "whole"))
    for name, other in (("here", "step05-ra"), ("there", "step00-baseline")):
        shutil.copytree(whole, tmp_path / name)
        shutil.rmtree(tmp_path / name / other)
    bare = ("--no-plots", "--no-html", "--quiet")
    for made in (("report.py", "whole", *bare), ("report.py", "there", *bare)):
        assert run_script(*made, cwd=tmp_path).returncode == 0
    assert run_script("bundle.py", "there", cwd=tmp_path).returncode == 0
    shutil.rmtree(tmp_path / "there")
    command = [sys.executable, str(ROOT / "scripts" / "report.py"), *bare[:2]]
    done = subprocess.run(
        [*command, "here,there.zip", "--out", "both"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "Merged runs: 1 of here, 1 of there.zip" in done.stdout
    assert "different" not in done.stdout
    both = tmp_path / "both"
    assert (both / "results.csv").read_text() == (whole / "results.csv").read_text()
    verdicts = [read_json(x / "summary.json")["verdicts"] for x in (both, whole)]
    assert verdicts[0] == verdicts[1]
    assert not list(both.rglob("ckpt")) and not list(both.rglob("*.safetensors"))
    refused = run_script("report.py", "here", "--out", "x", cwd=tmp_path)
    assert refused.returncode == 2 and "RESULTS=a,b" in refused.stderr
