"""lib/provenance.py: git state of real repositories, versions, no secrets."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lib import provenance
from tests.scratch import ROOT, run


def git(where: Path, *words: str) -> str:
    done = run(where, "git", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    git(tmp_path, "init", "-q")
    (tmp_path / "lib").mkdir()
    for name in ("lib/a.py", "README.md"):
        (tmp_path / name).write_text("x = 1\n")
        git(tmp_path, "add", name)
    git(tmp_path, "commit", "-q", "-m", "one")
    return tmp_path


def test_a_clean_tree(repository: Path) -> None:
    state = provenance.git_state(repository)
    assert state["sha"] == git(repository, "rev-parse", "HEAD").strip()
    assert state["dirty"] is False and state["diff"] == ""
    assert state["diff_sha256"] is None and state["note"] == ""


def test_a_dirty_tree_keeps_the_diff_and_its_sum(repository: Path) -> None:
    (repository / "lib/a.py").write_text("x = 2\n")
    (repository / "lib/new.py").write_text("secret = 1\n")
    state = provenance.git_state(repository)
    assert state["dirty"] is True and state["untracked"] == ["lib/new.py"]
    assert "-x = 1\n+x = 2\n" in state["diff"] and "secret" not in state["diff"]
    whole = hashlib.sha256(state["diff"].encode()).hexdigest()
    assert state["diff_sha256"] == whole


def test_what_no_number_depends_on_is_no_change(repository: Path) -> None:
    for name in ("mine/step00/job.json", "mine/config.py", "texts/a.txt", "notes.md"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_text("x")
    (repository / "README.md").write_text("changed\n")
    state = provenance.git_state(repository)
    assert (state["dirty"], state["diff"], state["untracked"]) == (False, "", [])


def test_a_huge_diff_is_cut_and_said(repository: Path) -> None:
    (repository / "lib/a.py").write_text("x = 2\n" * 100_000)
    state = provenance.git_state(repository)
    assert len(state["diff"]) == provenance.DIFF_LIMIT
    assert "diff cut" in state["note"]


def test_no_work_tree_of_its_own(repository: Path, tmp_path_factory) -> None:
    inside = repository / "sub"
    inside.mkdir()
    for place in (inside, tmp_path_factory.mktemp("bare")):
        state = provenance.git_state(place)
        assert state["sha"] is None and state["note"]


def test_collect_is_plain_data_without_secrets() -> None:
    environ = {"OMP_NUM_THREADS": "1", "WANDB_API_KEY": "s3cret", "HF_TOKEN": "s3cret"}
    found = provenance.collect(ROOT, environ)
    text = json.dumps(found, allow_nan=False)
    assert "s3cret" not in text
    assert found["environment"] == {"OMP_NUM_THREADS": "1"}
    assert found["packages"]["numpy"] and found["packages"]["torch"]
    assert found["cpu"]["cores"] >= 1 and found["host"] and found["date"]


def test_cpu_of_a_recorded_machine(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_text("processor : 0\nmodel name\t: AMD EPYC 7R32\n")
    (tmp_path / "meminfo").write_text("MemTotal:       1024 kB\nMemFree: 1 kB\n")
    found = provenance.cpu(tmp_path)
    assert found["model"] == "AMD EPYC 7R32" and found["memory_bytes"] == 2**20
    assert provenance.cpu(tmp_path / "none")["memory_bytes"] is None


def test_torch_is_not_imported_for_its_version() -> None:
    code = (
        "import sys; from lib import provenance; provenance.collect('.');"
        "print([m for m in ('torch', 'numpy') if m in sys.modules])"
    )
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
