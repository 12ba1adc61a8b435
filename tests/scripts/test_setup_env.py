"""scripts/setup_env.py with real environments, real pip, and wheels made here."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tests.scratch import ROOT, SETUP_PARTS, copy_files

PYPROJECT = """\
[project]
name = "tree"
dependencies = ["torch>=2.11", "demo>=1"]
[project.optional-dependencies]
more = ["extra-demo"]
[dependency-groups]
dev = ["tool"]
[tool.kablate]
data-packages = ["files"]
"""
PINS = "# pins\ntorch==2.13.0\ndemo==1.0\ntool==1.0\nextra-demo==1.0\nfiles==1.0\n"


def wheel(folder: Path, name: str, version: str, *needs: str) -> None:
    module = name.replace("-", "_")
    info = f"{module}-{version}.dist-info"
    meta = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    meta += "".join(f"Requires-Dist: {need}\n" for need in needs)
    files = {
        f"{module}/__init__.py": f"__version__ = {version!r}\n",
        f"{info}/METADATA": meta,
        f"{info}/WHEEL": "Wheel-Version: 1.0\nTag: py3-none-any\n",
    }
    record = "".join(f"{path},,\n" for path in [*files, f"{info}/RECORD"])
    file = folder / f"{module}-{version}-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for path, text in (*files.items(), (f"{info}/RECORD", record)):
            archive.writestr(path, text)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    for version in ("2.13.0", "2.14.0", "2.5.0"):
        wheel(folder, "torch", version)
    for name in ("demo", "tool", "extra-demo"):
        for version in ("1.0", "2.0"):
            wheel(folder, name, version)
    wheel(folder, "files", "1.0", "not-to-be-found")
    (folder / "rocm").mkdir()
    wheel(folder / "rocm", "torch", "2.13.0+rocm6.4")
    return folder


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = copy_files(tmp_path / "a tree", SETUP_PARTS)
    (root / "scripts/constraints.txt").write_text(PINS)
    (root / "pyproject.toml").write_text(PYPROJECT)
    return root


def setup(
    tree: Path, wheels: Path, *words: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    drop = ("PIP_", "VIRTUAL_ENV", "CONDA_PREFIX", "PYTHON")
    kept = {k: v for k, v in os.environ.items() if not k.startswith(drop)}
    offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    return subprocess.run(
        [sys.executable, "scripts/setup_env.py", *words],
        cwd=tree,
        env={**kept, **offline, "PIP_CONFIG_FILE": os.devnull, **environ},
        capture_output=True,
        text=True,
    )


def done(tree: Path, wheels: Path, *words: str, **environ: str) -> str:
    ended = setup(tree, wheels, *words, **environ)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def installed(python: Path) -> dict[str, str]:
    code = (
        "import json; from importlib.metadata import distributions; "
        "print(json.dumps({d.metadata['Name']: d.version for d in distributions()}))"
    )
    said = subprocess.check_output([python, "-I", "-c", code], text=True)
    found: dict[str, str] = json.loads(said)
    return {n: v for n, v in found.items() if n not in ("pip", "setuptools")}


def environment(folder: Path, pip: bool = False) -> Path:
    """A virtual environment; its pip is a copy of ours, for speed."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    site = next(folder.glob("lib/python3*/site-packages"))
    if pip:
        found = importlib.util.find_spec("pip")
        assert found and found.origin
        for source in Path(found.origin).parents[1].glob("pip*"):
            if source.name == "pip" or source.name.startswith("pip-"):
                shutil.copytree(source, site / source.name)
    return folder / "bin/python"


def give(python: Path, wheels: Path, *names: str) -> None:
    """The packages of these wheels, put in place without pip."""
    site = next(python.parents[1].glob("lib/python3*/site-packages"))
    for name in names:
        zipfile.ZipFile(wheels / f"{name}-py3-none-any.whl").extractall(site)


def test_from_nothing_to_an_environment_and_back(tree: Path, wheels: Path) -> None:
    nowhere = tree / "no wheels"
    ended = setup(tree, nowhere)
    assert ended.returncode == 1
    assert "pip could not install" in ended.stderr and "PIP_FIND_LINKS" in ended.stderr
    python = tree / ".venv/bin/python"

    said = done(tree, wheels)
    assert said.startswith("Setting up .venv/bin/python")
    timed = [line.split(" s: ")[1] for line in said.splitlines() if " s: " in line]
    packages = [step for step in timed if step.startswith("installing ")]
    assert packages == ["installing 3 packages", "installing 1 package"]  # not "files"
    assert timed[-1] == ".venv/bin/python is ready"
    pinned = {"torch": "2.13.0", "demo": "1.0", "tool": "1.0", "files": "1.0"}
    assert installed(python) == pinned
    assert done(tree, wheels, "--print-python") == ".venv/bin/python\n"

    # Nothing to do: not even pip's sources are looked at.
    assert done(tree, nowhere) == ""
    assert "is up to date" in done(tree, nowhere, "--say")

    # Extras are added, and remembered when the pins change.
    done(tree, wheels, "--extras", "more")
    assert installed(python) == pinned | {"extra-demo": "1.0"}
    (tree / "scripts/constraints.txt").write_text(PINS.replace("demo==1", "demo==2"))
    done(tree, wheels)
    assert installed(python) == pinned | {"demo": "2.0", "extra-demo": "2.0"}
    assert done(tree, nowhere) == ""
    unknown = setup(tree, wheels, "--extras", "less")
    assert (
        unknown.returncode == 1 and "there is no less; there are more" in unknown.stderr
    )

    assert "removed .venv" in done(tree, wheels, "--remove")
    assert not (tree / ".venv").exists()
    assert (tree / "pyproject.toml").exists()


def test_an_active_environment_with_torch_is_used_and_keeps_it(
    tree: Path, wheels: Path, tmp_path: Path
) -> None:
    active = tmp_path / "active"
    python = environment(active, pip=True)
    give(python, wheels, "rocm/torch-2.13.0+rocm6.4", "tool-2.0")
    said = done(tree, wheels, VIRTUAL_ENV=str(active))
    assert "Keeping torch 2.13.0+rocm6.4" in said and "VIRTUAL_ENV" in said
    assert installed(python) == {
        "torch": "2.13.0+rocm6.4",
        "demo": "1.0",
        "tool": "2.0",  # good enough, so left alone
        "files": "1.0",
    }
    assert not (tree / ".venv").exists()
    assert done(tree, wheels, VIRTUAL_ENV=str(active)) == ""
    done(tree, wheels, "--remove")
    assert python.exists()

    for path in active.glob("lib/python3*/site-packages/torch*"):
        shutil.rmtree(path)
    give(python, wheels, "torch-2.5.0")
    old = setup(tree, wheels, VIRTUAL_ENV=str(active))
    assert old.returncode == 1 and "torch 2.5.0 is too old" in old.stderr
    assert installed(python)["torch"] == "2.5.0"


def test_which_interpreter_is_chosen(tree: Path, wheels: Path, tmp_path: Path) -> None:
    def chosen(**environ: str) -> str:
        return done(tree, wheels, "--print-python", **environ).strip()

    own = ".venv/bin/python"  # as make calls it, wherever the tree lies
    bare = tmp_path / "bare"
    python = str(environment(bare))
    assert chosen() == own
    assert chosen(VIRTUAL_ENV=str(bare)) == own  # it has no torch
    assert chosen(CONDA_PREFIX=str(tmp_path / "gone")) == own
    assert chosen(PYTHON=python) == python
    assert chosen(PYTHON=python, VIRTUAL_ENV=sys.prefix) == python
    unknown = setup(tree, wheels, PYTHON="python-that-is-missing")
    assert unknown.returncode == 1
    assert "PYTHON=python-that-is-missing: there is no such program" in unknown.stderr

    odd = setup(tree, wheels, PYTHON="/bin/ls")
    assert odd.returncode == 1 and "/bin/ls is not a working Python" in odd.stderr

    # An interpreter once given is used until PYTHON=.venv.
    give(Path(python), wheels, "torch-2.13.0", "demo-1.0", "tool-1.0", "files-1.0")
    done(tree, wheels, PYTHON=python)
    assert chosen() == python
    assert chosen(PYTHON=".venv") == own


def test_a_venv_that_was_not_made_here_is_never_removed(
    tree: Path, wheels: Path
) -> None:
    environment(tree / ".venv")
    broken = setup(tree, wheels)  # it has no pip
    assert broken.returncode == 1 and "remove it" in broken.stderr
    assert "kept .venv" in done(tree, wheels, "--remove")
    assert (tree / ".venv/bin/python").exists()


def test_where_nothing_can_be_written_it_says_so(tree: Path, wheels: Path) -> None:
    (tree / ".kablate").write_text("in the way")
    ended = setup(tree, wheels)
    assert ended.returncode == 1
    said = f"setup: {tree}/.kablate: File exists, and .venv/bin/python lacks packages"
    assert ended.stderr.startswith(said) and "PYTHON=" in ended.stderr
    assert not (tree / ".venv").exists()


def test_an_environment_that_serves_needs_nothing_written(
    tree: Path, wheels: Path, tmp_path: Path
) -> None:
    """As of a checkout of others, or one that is mounted read-only elsewhere."""
    python = environment(tree / ".venv")
    give(python, wheels, "torch-2.14.0", "demo-1.0", "tool-1.0", "files-1.0")
    (tree / ".kablate/setup.lock").mkdir(parents=True)  # refuses root as well
    assert done(tree, wheels) == ""
    assert "is up to date" in done(tree, wheels, "--say")
    more = setup(tree, wheels, "--extras", "more")
    assert more.returncode == 1
    assert "setup.lock: Is a directory, and .venv/bin/python lacks" in more.stderr

    active = tmp_path / "active"
    other = environment(active, pip=True)
    give(other, wheels, "torch-2.13.0", "demo-2.0", "tool-1.0")
    lacking = setup(tree, wheels, VIRTUAL_ENV=str(active))
    assert lacking.returncode == 1 and f"{other} lacks packages" in lacking.stderr
    give(other, wheels, "files-1.0")
    assert done(tree, wheels, VIRTUAL_ENV=str(active)) == ""
    (tree / "pyproject.toml").write_text(PYPROJECT.replace("demo>=1", "demo>=3"))
    assert setup(tree, wheels, VIRTUAL_ENV=str(active)).returncode == 1
    assert "demo" in installed(other) and not (tree / ".kablate/setup.json").exists()


def test_the_record_serves_at_another_path_and_if_it_cannot_be_kept(
    tree: Path, wheels: Path, tmp_path: Path
) -> None:
    python = environment(tree / ".venv", pip=True)
    give(python, wheels, "torch-2.13.0", "demo-1.0", "tool-1.0", "files-1.0")
    (tree / ".kablate/setup.json").mkdir(parents=True)
    for _ in range(2):
        assert done(tree, wheels).startswith("Setting up")
    (tree / ".kablate/setup.json").rmdir()
    done(tree, wheels)
    shutil.move(tree, tmp_path / "moved")
    (tmp_path / "moved/.kablate/setup.lock").unlink()
    assert done(tmp_path / "moved", wheels) == ""
    assert not (tmp_path / "moved/.kablate/setup.lock").exists()


@pytest.mark.slow
def test_an_interrupted_set_up_is_taken_up_again(tree: Path, wheels: Path) -> None:
    """As if killed while the environment was being made: it is ours, and broken."""
    setup(tree, tree / "no wheels")
    for path in (tree / ".venv").glob("lib/python3*/site-packages/pip*"):
        shutil.rmtree(path)
    assert "Setting up" in done(tree, wheels)
    assert installed(tree / ".venv/bin/python")["demo"] == "1.0"


def test_every_requirement_has_a_pin() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"].values()
    names = [
        *project["project"]["dependencies"],
        *project["dependency-groups"]["dev"],
        *project["tool"]["kablate"]["data-packages"],
        *(name for extra in extras for name in extra),
    ]
    pins = (ROOT / "scripts/constraints.txt").read_text().splitlines()
    pinned = {line.split("==")[0] for line in pins if "==" in line}
    assert {name.split(">")[0] for name in names} <= pinned
