"""The results folder of a matrix: its files, its lock, runs kept or moved aside.

Torch-free. All state is in the folder: a runner can die at any moment, and the next
one reads from it what is done and what is missing.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2.plan.jobs import Job, Plan, identity_of, run_dir_in
from gpt2.plan.names import KERNELS_FILE, MATRIX_FILE, STEPS_COPY
from gpt2.plan.planning import make_plan
from gpt2.settings.rerun_commands import matrix_command
from lib import atomic_files, provenance
from lib.files import links_to, refuse_link, safe_join
from lib.jobs import run_files
from lib.kconfig.config_py import Config, read_config

ROOT = Path(__file__).resolve().parents[2]
MATRIX_LOCK = ".lock"
STOP_FILE = ".stop"
GATE_FILE = ".verified"  # while the runs of a runner may train (lib/jobs/turn.py)
PROBES = ".probe-"  # begins the names of folders that probes run in
PROBE_MARK = ".kablate-probe"  # a file in them
REPLACED = ".replaced"  # where `make rerun` keeps what it replaces
CONFIG_FILE = "config.py"  # the configuration of the last call
_ANOTHER = "Its runs stay as they are; choose another OUTPUT_DIR"


class MatrixError(ValueError):
    """The matrix cannot be run as asked; the message says why and what to do."""


# ---- the folder -----------------------------------------------------------------


def open_folder(output_dir: Path, files: Mapping[str, str]) -> None:
    """Create the results folder with these files at once, unless it is there.

    Raises MatrixError if something else has its name, or if it cannot be made.
    """
    try:
        _open_folder(output_dir, files)
    except atomic_files.DiskFull:
        raise
    except OSError as error:
        raise _unusable(output_dir, error) from None


def _unusable(output_dir: Path, error: OSError) -> MatrixError:
    return MatrixError(
        f"OUTPUT_DIR={output_dir}: results cannot be kept there: {error.strerror}. "
        "Choose another OUTPUT_DIR, as in OUTPUT_DIR=other_results"
    )


def _open_folder(output_dir: Path, files: Mapping[str, str]) -> None:
    if output_dir.exists():  # asked first: one that another runner makes has its files
        refuse_foreign(output_dir)
        if not _is_results_dir(output_dir):
            # perhaps a link or a mounted disk, which nothing can be renamed onto
            text = files[MATRIX_FILE]
            atomic_files.atomic_write_text(output_dir / MATRIX_FILE, text)
        return
    new = _unfinished(output_dir)
    try:
        for name, text in files.items():
            atomic_files.atomic_write_text(new / name, text)
        os.rename(new, output_dir)
        atomic_files.fsync_directory(output_dir.parent)
    except OSError as error:
        shutil.rmtree(new, ignore_errors=True)
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise  # else another runner was quicker, and its lock will say so


def _unfinished(output_dir: Path) -> Path:
    """A temporary name next to a results folder, while it is being created."""
    return output_dir.parent / f".{output_dir.name}.{secrets.token_hex(6)}.tmp"


def _is_results_dir(output_dir: Path) -> bool:
    if (output_dir / MATRIX_FILE).is_file():
        return True
    return any(run_dir_in(path) is not None for path in begun_in(output_dir))


def refuse_foreign(output_dir: Path) -> None:
    """Raise MatrixError for a file, or a folder that holds something else."""
    if not output_dir.exists() or _is_results_dir(output_dir):
        return
    if not output_dir.is_dir() or not _is_empty(output_dir):
        what = f"a folder without {MATRIX_FILE}" if output_dir.is_dir() else "a file"
        raise MatrixError(
            f"OUTPUT_DIR={output_dir} is {what}, not a results folder; nothing was "
            "changed. Choose another OUTPUT_DIR"
        )


def require_usable(output_dir: Path) -> None:
    """Raise MatrixError where open_folder or the runner's lock would fail.

    Creates nothing: writing is tested with an unnamed temporary file in the folder, or
    in the nearest parent that exists.
    """
    try:
        refuse_foreign(output_dir)
        place = output_dir
        if not place.exists():
            if place.is_symlink():  # which leads nowhere; no folder can replace it
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            with suppress(FileNotFoundError):
                os.lstat(_unfinished(place))  # its name may be too long
            place = next(p for p in place.absolute().parents if p.exists())
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as error:
        raise _unusable(output_dir, error) from None


def _is_empty(folder: Path) -> bool:
    """Whether it is empty, or holds only leftovers of a killed writer or lost+found."""
    return all(
        path.match(f".{MATRIX_FILE}.*.tmp") or path.name == "lost+found"
        for path in folder.iterdir()
    )


def matrix_lock(output_dir: Path) -> Path:
    """The lock file of the runner."""
    return output_dir / MATRIX_LOCK


@contextmanager
def held(plan: Plan, copies: Mapping[str, str]) -> Iterator[Path]:
    """The folder of a plan, created unless it is there, under its runner's lock.

    copies: files to put next to matrix.json (config.py, .config), name -> text.
    Raises MatrixError, and LockHeld if another runner is active here.
    """
    root = plan.output_dir
    open_folder(root, _files(plan, copies, render_matrix_file(plan)))
    with ExitStack() as stack:
        try:
            stack.enter_context(run_files.lock(matrix_lock(root)))
        except atomic_files.DiskFull:
            raise
        except OSError as error:
            raise _unusable(root, error) from None
        _clear(root)
        try:
            yield root
        finally:
            _clear_files(root)


def _clear(root: Path) -> None:
    """Remove what a killed runner has left: its files, runs that it had not let train,
    and probe folders."""
    _clear_files(root)
    for path in _job_files(root):
        run_dir = path.parent
        is_linked = any(links_to(root, run_dir.relative_to(root)))
        is_ours = run_dir_in(path) is not None and not is_linked
        if is_ours and run_files.only_prepared(run_dir):
            run_files.remove_run(run_dir)
    for mark in root.glob(f"{PROBES}*/{PROBE_MARK}"):
        if not (mark.is_symlink() or mark.parent.is_symlink()):
            shutil.rmtree(mark.parent, ignore_errors=True)


def _clear_files(root: Path) -> None:
    for name in (STOP_FILE, GATE_FILE):
        (root / name).unlink(missing_ok=True)


@contextmanager
def scratch(root: Path) -> Iterator[Path]:
    """A temporary folder for probes on the disk of the results. Kernels that probes
    choose are kept for the runs. A marker file identifies folders that a killed runner
    left."""
    with tempfile.TemporaryDirectory(prefix=PROBES, dir=root) as name:
        folder = Path(name)
        (folder / PROBE_MARK).touch()
        if (root / KERNELS_FILE).is_file():
            shutil.copyfile(root / KERNELS_FILE, folder / KERNELS_FILE)
        yield folder
        if (folder / KERNELS_FILE).is_file():
            text = (folder / KERNELS_FILE).read_text()
            atomic_files.atomic_write_text(root / KERNELS_FILE, text)


def read_matrix_file(output_dir: Path) -> dict[str, Any]:
    """Content of matrix.json; if it was removed, rebuilt from the runs and config.py.

    Raises MatrixError if nothing was run, or if it is damaged, with what to do.
    """
    path = output_dir / MATRIX_FILE
    try:
        found = atomic_files.read_json(path)
    except FileNotFoundError:
        if begun_in(output_dir):
            return _without_matrix_file(output_dir)
        raise MatrixError(f"nothing was run yet: there is no {path}") from None
    except NotADirectoryError as error:
        raise _unusable(output_dir, error) from None
    except atomic_files.DamagedFile as error:
        raise MatrixError(f"{error}. {_way_out(output_dir)}") from None
    except OSError as error:
        why = f"{path} cannot be read: {error.strerror}"
        raise MatrixError(f"{why}. {_way_out(output_dir)}") from None
    if not _lists_jobs(found):
        why = "is not a list of jobs written by kablate"
        raise MatrixError(f"{path} {why}. {_way_out(output_dir)}")
    return dict(found)


def _lists_jobs(found: Any) -> bool:
    jobs = found.get("jobs") if isinstance(found, dict) else None
    return isinstance(jobs, list) and all(
        isinstance(job, dict) and isinstance(job.get("run_dir"), str) for job in jobs
    )


def begun_in(output_dir: Path) -> list[Path]:
    """The job.json of each run that was begun, listed in matrix.json or not."""
    found = _job_files(output_dir)
    return [path for path in found if not run_files.only_prepared(path.parent)]


def _job_files(output_dir: Path) -> list[Path]:
    """Those of runs of this folder, and not of a results folder within it, for which
    the folder of a checkout is not one itself."""
    depths = ("*", "*/*")  # without and with the coordinates of a sweep
    return sorted(
        path
        for depth in depths
        for path in output_dir.glob(f"{depth}/seed*/{run_files.JOB_FILE}")
        if not path.parent.relative_to(output_dir)
        .as_posix()
        .endswith(f"/{run_dir_in(path)}")
    )


def _without_matrix_file(output_dir: Path) -> dict[str, Any]:
    """The content of matrix.json, rebuilt from the runs' own files and config.py.

    Raises MatrixError if that configuration cannot be read.
    """
    path = output_dir / CONFIG_FILE
    try:
        base = make_plan(_as_copied(read_config(path), output_dir)).base
    except (OSError, ValueError) as error:
        raise MatrixError(
            f"{output_dir} has no {MATRIX_FILE}, and {path.name} does not tell what "
            f"its runs are: {error}. {_ANOTHER}"
        ) from None
    jobs = []
    for path in begun_in(output_dir):
        with suppress(OSError, ValueError, TypeError):
            run_dir = path.parent.relative_to(output_dir).as_posix()
            jobs.append({**atomic_files.read_json(path), "run_dir": run_dir})
    return {"base": identity_of(base, 0), "jobs": jobs}


def _as_copied(config: Config, output_dir: Path) -> Config:
    """A folder's configuration, with its own copy of STEPS_FILE."""
    if not config.values.get("STEPS_FILE"):
        return config
    place = {"STEPS_FILE": str(output_dir / STEPS_COPY)}
    return replace(config, values={**config.values, **place})


def _way_out(output_dir: Path) -> str:
    """Advice for the user about a damaged matrix.json."""
    if not begun_in(output_dir):
        return (
            f"No run was begun there: move {output_dir} away and type "
            f"`{matrix_command()}` again"
        )
    try:
        _without_matrix_file(output_dir)
    except MatrixError:
        return _ANOTHER
    return (
        f"Remove it and type `{matrix_command()}`, which writes it again from "
        f"{CONFIG_FILE} and the runs in the folder: no run is lost"
    )


def _files(plan: Plan, copies: Mapping[str, str], matrix: str) -> dict[str, str]:
    """The folder's own files, name -> text."""
    own = {STEPS_COPY: plan.registry.text} if plan.registry.own else {}
    return {**copies, **own, MATRIX_FILE: matrix}


def render_matrix_file(plan: Plan, kept: Sequence[Mapping[str, Any]] = ()) -> str:
    """The text of matrix.json: planned jobs, then earlier ones that are kept."""
    record = {
        "schema": run_files.SCHEMA,
        "updated": run_files.now(),
        "base": identity_of(plan.base, 0),
        "jobs": [job.to_json() for job in plan.jobs] + [dict(job) for job in kept],
        "left_out": [{"name": x.name, "reason": x.reason} for x in plan.left_out],
        "provenance": provenance.collect(ROOT),
    }
    return json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


# ---- what is already there ------------------------------------------------------


def kept_jobs(output_dir: Path, jobs: Iterable[Job]) -> list[dict[str, Any]]:
    """Jobs of matrix.json that were begun and are not planned now: a call with
    STEPS=5 keeps the results of the other steps."""
    planned = {job.run_dir for job in jobs}
    return [
        old
        for old in read_matrix_file(output_dir)["jobs"]
        if old["run_dir"] not in planned and _begun(output_dir, old)
    ]


def _begun(output_dir: Path, job: Mapping[str, Any]) -> bool:
    with suppress(ValueError):
        run_dir = safe_join(output_dir, job["run_dir"])
        is_there = (run_dir / run_files.JOB_FILE).exists()
        return is_there and not run_files.only_prepared(run_dir)
    return False


def update(plan: Plan, copies: Mapping[str, str]) -> None:
    """Write the folder's own files for a plan that check() has accepted."""
    root = plan.output_dir
    text = render_matrix_file(plan, kept_jobs(root, plan.jobs))
    for name, content in _files(plan, copies, text).items():
        atomic_files.atomic_write_text(root / name, content)


def set_aside(output_dir: Path, jobs: Iterable[Job]) -> list[tuple[str, Path]]:
    """Move the jobs' run directories away, so that they start again; (run, new place).

    Nothing is deleted or overwritten. Raises LockHeld, and moves none, if one is
    running; lib.files.Linked if they would be moved behind a link.
    """
    refuse_link(output_dir / REPLACED)
    there = [job.run_dir for job in jobs if (output_dir / job.run_dir).exists()]
    for run in there:
        lock = run_files.run_lock(safe_join(output_dir, run))
        if run_files.is_locked(lock):
            raise run_files.lock_held(lock)
    return [(run, _set_aside(output_dir, run)) for run in there]


def _set_aside(output_dir: Path, run: str) -> Path:
    number = 1
    while os.path.lexists(place := output_dir / REPLACED / f"{run}.{number}"):
        number += 1
    refuse_link(place.parent)
    place.parent.mkdir(parents=True, exist_ok=True)
    os.rename(output_dir / run, place)
    return place


def missing(output_dir: Path, jobs: Iterable[Job]) -> list[Job]:
    """The jobs that are not done, by the present state of their folders."""
    return [job for job in jobs if not _is_done(output_dir / job.run_dir)]


def _is_done(run_dir: Path) -> bool:
    with suppress(OSError, ValueError):
        return bool(run_files.read_status(run_dir)["status"] == "done")
    return False


# ---- stopping -------------------------------------------------------------------


def ask_to_stop(output_dir: Path) -> str:
    """Ask the runner of this folder, on any machine, to stop gracefully; a message
    for the user."""
    path = matrix_lock(output_dir)
    if not run_files.is_locked(path):
        return f"nothing is running in {output_dir}"
    atomic_files.atomic_write_text(output_dir / STOP_FILE, "")
    runner = run_files.lock_held(path)
    return f"asked pid {runner.pid} on {runner.host} to write checkpoints and stop"
