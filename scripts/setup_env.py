"""Make the Python environment that everything else runs in: ``make setup``.

Standard library only, as nothing is installed yet. Takes PYTHON=... if given, now or
earlier (PYTHON=.venv ends that), else an active environment that has torch already,
else .venv, which it makes. A torch that is there is kept.
"""

from __future__ import annotations

import sys

if sys.version_info < (3, 11):
    sys.exit("kablate needs Python 3.11 or newer; try PYTHON=python3.12, or another")

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import tomllib
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from lib import pip
from lib.output import exit_code, print_exact
from lib.pip import are_pinned, name_of, pins_in, report, succeeds

ROOT = Path(__file__).resolve().parents[1]
MIN_PYTHON = (3, 11)
MIN_TORCH = (2, 11)
STATE = ".kablate/setup.json"
PROBE = """
import json, sys
from importlib.metadata import distributions
found = {d.metadata["Name"]: d.version for d in distributions() if d.metadata["Name"]}
if "torch" not in found:
    try:
        from torch import __version__
        found["torch"] = str(__version__)
    except ImportError:
        pass
print(json.dumps([list(sys.version_info[:3]), found]))
"""


class SetupError(Exception):
    """The environment cannot be made; the message says what to do."""


@dataclass(frozen=True)
class Environment:
    """An interpreter and why it was chosen; ``ours`` is the .venv of this tree."""

    python: Path
    why: str
    ours: bool = False
    given: bool = False


@dataclass(frozen=True)
class Wanted:
    """Packages that pyproject.toml and the constraints require."""

    requirements: tuple[str, ...]
    data_packages: tuple[str, ...]  # installed without their dependencies
    constraints: str
    extras: tuple[str, ...]

    @property
    def packages(self) -> tuple[str, ...]:
        return *self.requirements, *self.data_packages


def choose(root: Path, environ: Mapping[str, str]) -> Environment:
    """The environment to use; SetupError if PYTHON names none."""
    state = read_state(root)
    given = environ.get("PYTHON") or state["given"]
    if given and given != ".venv":
        found = shutil.which(given)
        if found is None:
            raise SetupError(
                f"PYTHON={given}: there is no such program; PYTHON=.venv goes back to "
                "the environment of this tree"
            )
        return Environment(real_path(Path(found)), f"PYTHON={given}", given=True)
    for variable in () if given else ("VIRTUAL_ENV", "CONDA_PREFIX"):
        python = Path(environ.get(variable) or "/nonexistent", "bin", "python")
        known = _shown(root, python) in state["done"]  # whatever has changed since
        if python.is_file() and (known or "torch" in probe(python)[1]):
            return Environment(python, f"the active environment ({variable}) has torch")
    return Environment(root / ".venv/bin/python", "the environment of this tree", True)


def real_path(python: Path) -> Path:
    """The interpreter behind a shim; a virtual environment's own one stays itself."""
    if python.parent.parent.joinpath("pyvenv.cfg").is_file():
        return python.absolute()
    return Path(_output_of(python, "import sys; print(sys.executable)").strip())


def probe(python: Path) -> tuple[tuple[int, ...], dict[str, str]]:
    """Version of an interpreter, and version by name of what is installed there."""
    version, found = json.loads(_output_of(python, PROBE).splitlines()[-1])
    return tuple(version), {name_of(name): text for name, text in found.items()}


def _output_of(python: Path, code: str) -> str:
    done = subprocess.run([python, "-c", code], capture_output=True, text=True)
    if done.returncode:
        raise SetupError(f"{python} is not a working Python:\n{done.stderr.strip()}")
    return done.stdout


# ---- what is wanted, and whether it is there ------------------------------------


def wanted(root: Path, extras: Sequence[str]) -> Wanted:
    """Requirements with the development group and ``extras``; SetupError if unknown."""
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    offered = project["project"].get("optional-dependencies", {})
    if unknown := sorted(set(extras) - set(offered)):
        raise SetupError(
            f"EXTRAS: there is no {', '.join(unknown)}; there are {', '.join(offered)}"
        )
    chosen = [name for extra in sorted(extras) for name in offered[extra]]
    dev = project.get("dependency-groups", {}).get("dev", [])
    data = project.get("tool", {}).get("kablate", {}).get("data-packages", [])
    return Wanted(
        requirements=(*project["project"]["dependencies"], *dev, *chosen),
        data_packages=tuple(data),
        constraints=(root / "scripts/constraints.txt").read_text(encoding="utf-8"),
        extras=tuple(sorted(extras)),
    )


def fingerprint(want: Wanted, python: Path) -> str:
    """Changes with the requirements, the pins and the interpreter."""
    environment = python.parents[1]
    marks = [environment / "pyvenv.cfg", environment / "conda-meta", python.resolve()]
    mark = next(path for path in marks if path.exists()).stat()
    facts = [
        sorted({*want.packages}),
        want.constraints,
        str(python.resolve()),
        [mark.st_ino, mark.st_mtime_ns],
    ]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def read_state(root: Path) -> dict[str, Any]:
    """State left by earlier runs: ``made`` our .venv, ``given`` an interpreter, and the
    record of each environment that is set up."""
    try:
        state = json.loads((root / STATE).read_text(encoding="utf-8"))
        known = {"made": bool, "given": str, "done": dict}
        found = {name: kind(state[name]) for name, kind in known.items()}
        # Relative to the tree, which may be moved, or mounted at another path.
        done = {_shown(root, Path(name)): it for name, it in found["done"].items()}
        return {**found, "done": done}
    except (OSError, ValueError, KeyError, TypeError):
        return {"made": False, "given": "", "done": {}}


def write_state(root: Path, state: dict[str, Any]) -> None:
    temporary = root / f"{STATE}.tmp"
    temporary.unlink(missing_ok=True)  # a link would lead elsewhere
    temporary.write_text(json.dumps(state, indent=1) + "\n", encoding="utf-8")
    temporary.replace(root / STATE)


def missing(root: Path, python: Path, extras: Sequence[str]) -> Wanted | None:
    """Packages still to be installed, or None; extras once installed stay."""
    record = read_state(root)["done"].get(_shown(root, python), {})
    known = record.get("extras", [])
    want = wanted(root, sorted({*extras, *known}))
    done = python.is_file() and record.get("fingerprint") == fingerprint(want, python)
    return None if done and set(extras) <= set(known) else want


# ---- installing -----------------------------------------------------------------


def set_up(root: Path, env: Environment, extras: Sequence[str]) -> bool:
    """Bring the environment up to date; whether there was anything to do."""
    if (want := missing(root, env.python, extras)) is None:
        return False
    try:
        lock = _lock(root)
    except OSError as error:
        if serves(env, want):  # and this tree is for reading only
            return False
        raise SetupError(
            f"{error.filename or root}: {error.strerror}, and "
            f"{_shown(root, env.python)} lacks packages: make it writable, or use an "
            "environment that has them (activate it, or PYTHON=its interpreter)"
        ) from None
    with lock:
        if (want := missing(root, env.python, extras)) is None:
            return False
        print(f"Setting up {_shown(root, env.python)} ({env.why})", flush=True)
        if env.ours:
            _make_venv(root, env.python)
        install(env, want)
        report(f"{_shown(root, env.python)} is ready")
        with suppress(OSError):  # the next command then looks once more
            _record(root, env, want)
    return True


def _record(root: Path, env: Environment, want: Wanted) -> None:
    state = read_state(root)
    mark = fingerprint(want, env.python)
    record = {"fingerprint": mark, "extras": list(want.extras)}
    state["done"][_shown(root, env.python)] = record
    write_state(root, {**state, "given": str(env.python) if env.given else ""})


def serves(env: Environment, want: Wanted) -> bool:
    """Whether all that is wanted is installed, whatever the record says.

    In .venv the versions must be the pinned ones, elsewhere those that are required;
    a torch may be any that is new enough. Only reads.
    """
    if not env.python.is_file():
        return False
    version, there = probe(env.python)
    if version < MIN_PYTHON or _is_old(there.get("torch", "0.0")):
        return False
    names = [name for name in want.packages if name_of(name) != "torch"]
    if are_pinned(names, want.constraints, there):
        return True
    # Without an index or a folder of wheels, pip succeeds if it has nothing to do.
    look = "-m pip --isolated install --no-index --no-deps --dry-run".split()
    return not env.ours and succeeds(env.python, *look, *names)


def _make_venv(root: Path, python: Path) -> None:
    state = read_state(root)
    if python.is_file() and succeeds(python, "-m", "pip", "--version"):
        return
    environment = root / ".venv"
    if environment.is_symlink() or (environment.exists() and not state["made"]):
        raise SetupError(".venv is there but has no working pip: remove it")
    report("making .venv")
    write_state(root, {**state, "made": True})  # before: it may be interrupted
    base = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    maker = base if base.is_file() else Path(sys.executable)
    if not succeeds(maker, "-m", "venv", "--clear", root / ".venv", show=True):
        raise SetupError(
            f"{maker} cannot make a virtual environment: install its venv module "
            "(Debian, Ubuntu: apt-get install python3-venv), or give PYTHON=..."
        )


def install(env: Environment, want: Wanted) -> None:
    """Install what is wanted; a torch that is there stays, whatever its build, as it is
    not ours to replace. Raises SetupError if it is too old, or if pip fails."""
    version, there = probe(env.python)
    if version < MIN_PYTHON:
        raise SetupError(f"{env.python} is Python {_dotted(version)}; 3.11 is needed")
    torch = there.get("torch")
    if torch:
        print(f"Keeping torch {torch}, which is there already", flush=True)
        if _is_old(torch):
            raise SetupError(
                f"torch {torch} is too old, {_dotted(MIN_TORCH)} is needed: upgrade "
                "it, or use another environment (PYTHON=.venv makes one here)"
            )
    pins = pins_for(env, want.constraints, there)
    needed = [r for r in want.requirements if not (torch and name_of(r) == "torch")]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "constraints.txt")
        file.write_text("".join(f"{n}=={v}\n" for n, v in pins.items()), "utf-8")
        for names, options in ((needed, []), (want.data_packages, ["--no-deps"])):
            if not are_pinned(names, want.constraints, there):
                report("looking up packages, which pip then downloads and installs")
                options = ["--constraint", str(file), *options]
                if not pip.install(env.python, *options, *names):
                    raise SetupError(
                        "pip could not install the packages: what it says is above. "
                        "Without a network, point PIP_FIND_LINKS at a folder of "
                        "wheels. A system Python may refuse: PYTHON=.venv makes an "
                        "environment here instead."
                    )
    now = probe(env.python)[1].get("torch")
    if torch not in (None, now):
        raise SetupError(f"torch {torch} became {now}: put it back, and please report")


def _is_old(torch: str) -> bool:
    return tuple(int(part) for part in torch.split(".")[:2]) < MIN_TORCH


def pins_for(
    env: Environment, constraints: str, there: Mapping[str, str]
) -> dict[str, str]:
    """Exact versions by name; in an environment that is not ours, of the rest only."""
    keep = there.keys() & {"torch"} if env.ours else there.keys()
    pins = {n: v for n, v in pins_in(constraints).items() if n not in keep}
    return pins | ({"torch": there["torch"]} if "torch" in there else {})


def _dotted(version: Sequence[int]) -> str:
    return ".".join(map(str, version))


def _shown(root: Path, path: Path) -> str:
    return str(path.relative_to(root) if path.is_relative_to(root) else path)


def _lock(root: Path) -> TextIO:
    """One set-up at a time in one tree; released when closed or the process ends."""
    path = root / STATE
    path.parent.mkdir(exist_ok=True)
    file = open(path.with_suffix(".lock"), "a")
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


def remove(root: Path) -> None:
    """Delete the .venv that was made here, and the record; nothing else."""
    if (root / ".venv").is_symlink():
        print("kept .venv: it is a link, and what it leads to may be used elsewhere")
    elif read_state(root)["made"]:
        shutil.rmtree(root / ".venv", ignore_errors=True)
        print("removed .venv")
    elif (root / ".venv").exists():
        print("kept .venv: it was not made by `make setup`")
    (root / STATE).unlink(missing_ok=True)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--extras", default="", help="such as trackers,ray")
    only = parser.add_mutually_exclusive_group()
    only.add_argument("--print-python", action="store_true", help="print, do nothing")
    only.add_argument("--remove", action="store_true", help="undo what was made here")
    only.add_argument("--say", action="store_true", help="a line if nothing is to do")
    given = parser.parse_args(arguments)
    try:
        if given.remove:
            remove(ROOT)
            return 0
        env = choose(ROOT, os.environ)
        if given.print_python:
            print_exact(f"{_shown(ROOT, env.python)}\n")  # a tree may be at any path
            return 0
        extras = [e for e in given.extras.replace(",", " ").split() if e]
        if not set_up(ROOT, env, extras) and given.say:
            print(f"{_shown(ROOT, env.python)} is up to date ({env.why})")
        return 0
    except SetupError as error:
        said = str(error)
    except OSError as error:  # a full disk, a folder that is read-only
        said = f"{error.filename or ROOT}: {error.strerror}"
    print(f"setup: {said}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(exit_code(main))
