"""Throw-away copies of this tree, as git repositories, for planting faults; waiting."""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache
from importlib.util import cache_from_source
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[1]
STATE = ".kablate/setup.json"
SETUP = (sys.executable, "scripts/setup_env.py")
# Seconds to wait for what takes one or two: only what hangs is to be ended by it, on a
# machine however busy, before the time limit of a test is.
PATIENT = 600.0
SETUP_PARTS = (
    *("pyproject.toml", "scripts", "lib/__init__.py"),
    *("lib/output.py", "lib/pip.py"),
)


def until(true: Callable[[], object], seconds: float = PATIENT) -> None:
    """Wait for something to become true; fail after so many seconds."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


class Gate:
    """A file that runs wait for at chosen places (tests/faults), however long a busy
    machine takes to look at them there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def holds(self, *places: str) -> dict[str, str]:
        """The environment of runs that wait, as at "hold@5", before update 5."""
        faults = ",".join(places)
        return {"KABLATE_TEST_FAULTS": faults, "KABLATE_TEST_GATE": str(self.path)}

    def is_reached(self) -> bool:
        return Path(f"{self.path}.held").exists()

    def open(self) -> None:
        self.path.touch()

    def close(self) -> None:
        """For the next place, when the runs have passed the one before."""
        self.path.unlink()
        Path(f"{self.path}.held").unlink()


def is_alive(pid: int | str) -> bool:
    """Whether a process runs. A zombie has ended, and waits for its parent to ask."""
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def without_git() -> dict[str, str]:
    """The environment without GIT_DIR and its like.

    Inside a hook they point at the real repository, which tests must not touch.
    """
    return {k: v for k, v in os.environ.items() if not k.startswith("GIT_")}


def clean_environment(**extra: str) -> dict[str, str]:
    """The environment for scratch repositories: an author, no settings of the user."""
    person = {"NAME": "A. Tester", "EMAIL": "tester@example.org"}
    who = {
        f"GIT_{r}_{k}": v for r in ("AUTHOR", "COMMITTER") for k, v in person.items()
    }
    alone = {"GIT_CONFIG_GLOBAL": os.devnull, "GIT_CONFIG_NOSYSTEM": "1"}
    # Found by make as python3, where a shim would look for one each time.
    places = [str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]
    tools = {"PATH": os.pathsep.join(places), "PYTHONDONTWRITEBYTECODE": "1"}
    return {**without_git(), **who, **alone, **tools, **extra}


def run(
    folder: Path, *command: str | Path, **extra: str
) -> subprocess.CompletedProcess[str]:
    """Run a command in `folder`; never raises, the caller looks at the status."""
    return subprocess.run(
        [str(part) for part in command],
        cwd=folder,
        env=clean_environment(**extra),
        capture_output=True,
        text=True,
        check=False,
    )


def make(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run make in a copy of the tree with this interpreter, as far as it is set up."""
    if not (folder / ".kablate").exists():
        note_setup(folder)
    return run(folder, "make", *arguments, f"PYTHON={sys.executable}")


def note_setup(folder: Path) -> None:
    """Let a copy of the tree know what `make setup` found out: its requirements and
    Python are the same, and to look at each package takes a second."""
    write(folder, STATE, _setup_record())


@cache
def _setup_record() -> bytes:
    noted = ROOT / STATE
    if noted.is_file():
        return noted.read_bytes()
    with tempfile.TemporaryDirectory() as name:
        folder = copy_files(Path(name), SETUP_PARTS)
        done = run(folder, *SETUP, PYTHON=sys.executable)
        assert done.returncode == 0, done.stderr
        return (folder / STATE).read_bytes()


def python(folder: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return run(folder, sys.executable, *arguments)


def git(folder: Path, *arguments: str | Path) -> str:
    done = run(folder, "git", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def project_files(under: Sequence[str] = ()) -> list[str]:
    """Files of the project (tracked or new, never ignored) that exist."""
    command = "git ls-files -z --cached --others --exclude-standard --".split()
    listed = subprocess.run(
        [*command, *under],
        cwd=ROOT,
        env=without_git(),
        stdout=subprocess.PIPE,
        check=True,
    )
    return sorted(
        {
            n
            for n in os.fsdecode(listed.stdout).split("\0")
            if n and (ROOT / n).is_file()
        }
    )


def copy_files(folder: Path, under: Sequence[str] = ()) -> Path:
    """Copy the project, or only the paths `under`, with what Python compiled of them:
    it is valid by the time of its source. A script comes with its first import."""
    if any(part.startswith("scripts/") for part in under):
        under = [*under, "scripts/_bootstrap.py"]
    for name in project_files(under):
        found = [name]
        if name.endswith(".py"):
            found.append(os.path.relpath(cache_from_source(ROOT / name), ROOT))
        for path in found:
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            with suppress(FileNotFoundError):  # not compiled yet
                shutil.copy2(ROOT / path, folder / path)
    return folder


def copy_tree(folder: Path, under: Sequence[str] = ()) -> Path:
    """As copy_files, into a new repository, committed."""
    copy_files(folder, under)
    git(folder, "init", "--quiet", "--initial-branch=main")
    write(folder, ".git/info/exclude", "__pycache__/\n")
    commit_all(folder, "scripts: copy the tree\n\nTests plant their faults in it.\n")
    return folder


def commit_all(folder: Path, message: str) -> None:
    git(folder, "-c", "core.compression=0", "add", "--all")  # hundreds of files
    git(folder, "commit", "--quiet", "--no-verify", "--message", message)


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def write_all(folder: Path, files: Iterable[tuple[str, str | bytes]]) -> None:
    for name, content in files:
        write(folder, name, content)
