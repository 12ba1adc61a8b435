"""lib/bytecode.py: real processes that import a package without compiled modules."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lib.bytecode import DONT_WRITE, PREFIX
from tests.results_factory import write_matrix

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
import os, sys
from pathlib import Path
from lib.bytecode import keep_bytecode
keep_bytecode("package", Path(sys.argv[1]), os.environ)
import package
print(package.__cached__, os.environ.get("PYTHONPYCACHEPREFIX"))
"""


def imported(package: Path, folder: Path, **environ: str) -> tuple[str, str]:
    """Where the compiled module is looked for, and what child processes have set."""
    kept = {k: v for k, v in os.environ.items() if k not in (PREFIX, DONT_WRITE)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(folder)],
        env=kept | environ | {"PYTHONPATH": f"{ROOT}:{package.parent}"},
        capture_output=True,
        text=True,
        check=True,
    )
    cached, prefix = done.stdout.split()
    return cached, prefix


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "site" / "package"
    path.mkdir(parents=True)
    (path / "__init__.py").write_text("x = 1\n")
    return path


def test_a_package_that_gets_none_has_them_in_the_folder(package, tmp_path) -> None:
    folder = tmp_path / "kept"
    cached, prefix = imported(package, folder, **{DONT_WRITE: "1"})
    assert prefix == str(folder)
    assert Path(cached).is_relative_to(folder) and Path(cached).exists()
    assert not (package / "__pycache__").exists()


def test_what_python_does_by_itself_stays(package, tmp_path) -> None:
    folder = tmp_path / "kept"
    cached, prefix = imported(package, folder)
    assert prefix == "None" and Path(cached).parent == package / "__pycache__"
    assert Path(cached).exists()
    # They are there now, also for those that write none.
    assert imported(package, folder, **{DONT_WRITE: "1"})[1] == "None"
    assert not folder.exists()


def test_a_folder_of_the_users_stays(package, tmp_path) -> None:
    own = str(tmp_path / "own")
    environ = {DONT_WRITE: "1", PREFIX: own}
    assert imported(package, tmp_path / "kept", **environ)[1] == own


def test_a_folder_that_cannot_be_made_changes_nothing(package, tmp_path) -> None:
    (tmp_path / "file").touch()
    folder = tmp_path / "file" / "kept"
    assert imported(package, folder, **{DONT_WRITE: "1"})[1] == "None"


@pytest.mark.parametrize("command", ["sample", "eval", "attention"])
def test_commands_that_use_models_keep_those_of_torch(command, package, tmp_path):
    package.rename(package.with_name("torch"))
    stand_in = "import sys\nprint(sys.pycache_prefix)\nraise SystemExit(7)\n"
    package.with_name("torch").joinpath("__init__.py").write_text(stand_in)
    write_matrix(tmp_path / "results", (0,), (1,))
    script = ROOT / "scripts" / f"{command}.py"
    environ = {"XDG_CACHE_HOME": str(tmp_path), "PYTHONPATH": str(package.parent)}
    kept = {k: v for k, v in os.environ.items() if k != PREFIX}
    done = subprocess.run(
        [sys.executable, str(script), "0", "--results", "results"],
        cwd=tmp_path,
        env=kept | environ | {DONT_WRITE: "1"},
        input="a\n",
        capture_output=True,
        text=True,
    )
    assert done.returncode == 7, done.stderr
    assert done.stdout.strip() == str(tmp_path / "kablate" / "python")
