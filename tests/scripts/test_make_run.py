"""Commands that `make` prints at its end, executed as printed."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scratch import clean_environment, copy_files, note_setup
from tests.tinymatrix import TINY

PARTS = ("Makefile", "Kconfig", "pyproject.toml", "gpt2", "lib", "scripts")
ODD = "a  b $HOME'"
# Blanks and quotes in a value, a setting by its short name, and a choice of jobs.
WORDS = (f"OUTPUT_DIR={ODD}", "JOBS=1", "MAX_ITERS=4", "ONLY=*/seed1")


@pytest.fixture
def tree(prepared: Path, tmp_path: Path) -> Path:
    """A checkout with a tiny matrix and its data, where only `make` is missing."""
    root = copy_files(tmp_path / "tree", PARTS)
    shutil.copytree(prepared, root, dirs_exist_ok=True)
    (root / "defconfigs").mkdir()
    tiny = TINY.replace('STEPS="0,5"', 'STEPS="0"')
    (root / "defconfigs/tiny").write_text(f"# Tiny\n{tiny}")
    note_setup(root)
    assert type_in(root, "make", "defconfig-tiny").returncode == 0
    return root


def user_environment(**more: str) -> dict[str, str]:
    words = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    return clean_environment(**more, **words)


def type_in(
    tree: Path, *command: str, **environ: str
) -> subprocess.CompletedProcess[str]:
    """A command as a user types it: one word is a line for a shell."""
    return subprocess.run(
        ["sh", "-c", *command] if len(command) == 1 else command,
        cwd=tree,
        env=user_environment(**environ),
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_make_ends_with_the_table_and_commands_that_go_on(tree: Path) -> None:
    fault = {"KABLATE_TEST_FAULTS": "crash@1"}
    failed = type_in(tree, "make", *WORDS, "SKIP_VERIFY=1", **fault)
    assert "0 of 1 jobs are done" in failed.stdout
    assert "make report" not in failed.stdout  # there is nothing to report on
    (again,) = re.findall("to continue: (.*)", failed.stderr)
    assert set(again.split(" ")) >= {"make", "JOBS=1", "MAX_ITERS=4", "SKIP_VERIFY=1"}

    done = type_in(tree, again)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"0  GPT-2 baseline +1 +\d\.\d{4} .* baseline", done.stdout)
    assert f"1 of 1 jobs are done; results in {ODD}\n" in done.stdout
    assert (tree / ODD / "step00-baseline/seed1/status.json").is_file()

    (report,) = re.findall(r"Next: (make report.*) \(plots", done.stdout)
    reported = type_in(tree, report.replace("make report", "make -n report"))
    assert "-- 'a  b $HOME'\\'''" in reported.stdout

    preview = type_in(tree, "make", "dry-run", "SKIP_VERIFY=1", *WORDS, "MAX_ITERS=5")
    assert preview.returncode == 0
    assert "step00-baseline/seed1  [done, with other settings]\n" in preview.stdout
    refused = type_in(tree, "make", *WORDS, "MAX_ITERS=5")
    (rerun,) = re.findall("`(make rerun .*)`", refused.stderr)
    assert f"`{rerun}`" in preview.stdout.replace(" SKIP_VERIFY=1", "")
    assert "MAX_ITERS=5" in rerun and "OUTPUT_DIR='a  b $HOME'" in rerun


def test_a_terminated_make_stops_its_runs_before_it_ends(tree: Path) -> None:
    """As a supervisor does it, or `docker stop`: the signal is sent to make alone."""
    with subprocess.Popen(
        ["make", "JOBS=1", "SKIP_VERIFY=1"],
        cwd=tree,
        env=user_environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.endswith(": started\n"):
                process.terminate()
                break
        rest = process.stdout.read()
    assert process.returncode == -signal.SIGTERM
    assert "stopping (SIGTERM" in rest and "to continue: make JOBS=1" in rest, rest
