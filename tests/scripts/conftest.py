"""A tiny matrix, prepared and run once for all tests and all workers of a session."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from filelock import FileLock

from tests.gpt2.tinydata import prepare_texts
from tests.tinymatrix import run_matrix, write_config

NVIDIA_SMI = """#!/bin/sh
case "$1" in
    -L) printf 'GPU 0: Claimed (UUID: x)\\nGPU 1: Claimed (UUID: y)\\n' ;;
    *) printf '80000\\n80000\\n' ;;
esac
"""


def once(
    factory: pytest.TempPathFactory, name: str, fill: Callable[[Path], None]
) -> Path:
    """A folder that the first worker to ask for it fills; tests must not change it."""
    alone = "PYTEST_XDIST_WORKER" not in os.environ
    shared = factory.getbasetemp() if alone else factory.getbasetemp().parent
    place = shared / name
    with FileLock(shared / f"{name}.lock"):
        if not (shared / f"{name}.filled").exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            fill(place)
            (shared / f"{name}.filled").touch()
    return place


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a user stands before `make`: config.py, texts and prepared data."""

    def fill(place: Path) -> None:
        with contextlib.chdir(place):  # the data remember the path of texts as given
            prepare_texts(Path("."))
        write_config(place)

    return once(tmp_path_factory, "prepared", fill)


@pytest.fixture
def folder(prepared: Path, tmp_path: Path) -> Path:
    """A copy of ``prepared`` of one's own."""
    return Path(shutil.copytree(prepared, tmp_path / "here"))


@pytest.fixture(scope="session")
def undisturbed(
    prepared: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """The folder after a run of step 0 and 5, seed 1, without interruption. All tests
    share it: a command that may write there gets a copy, ``finished``."""

    def fill(place: Path) -> None:
        shutil.copytree(prepared, place, dirs_exist_ok=True)
        done = run_matrix(place, "--overrides", "SEEDS=1")
        assert done.returncode == 0, done.stdout + done.stderr
        assert "2 of 2 jobs are done; results in results" in done.stdout

    place = once(tmp_path_factory, "undisturbed", fill)
    before = written(place)
    yield place
    changed = sorted({path for path, _ in written(place) ^ before})
    assert not changed, "a command wrote there: let it have ``finished``"


def written(place: Path) -> set[tuple[str, int]]:
    """Files of a folder, and when each was last written."""
    return {(str(p), p.stat().st_mtime_ns) for p in place.rglob("*") if p.is_file()}


@pytest.fixture
def finished(undisturbed: Path, tmp_path: Path) -> Path:
    """A copy of ``undisturbed`` of one's own."""
    return Path(shutil.copytree(undisturbed, tmp_path / "here"))


@pytest.fixture
def claimed(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine that claims to have two GPUs."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "nvidia-smi").write_text(NVIDIA_SMI)
    (tools / "nvidia-smi").chmod(0o755)
    return {"PATH": f"{tools}{os.pathsep}{os.environ['PATH']}"}
