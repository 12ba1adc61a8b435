"""A mechanism that exists in settings, menu and registry and in no code is refused.

Planted in a copy of the tree and met by real commands, as its author would.
"""

from __future__ import annotations

from pathlib import Path
from subprocess import CompletedProcess

import pytest

from gpt2.verify.table import FAILED
from tests.scratch import copy_files, python, write

PARTS = ["Kconfig", "defconfigs", "pyproject.toml", "scripts", "lib", "gpt2"]
REFUSED = "step34-sharper: changes: RA_MLA_SHARPER=y changes nothing: "
EDITS = (
    (
        "gpt2/mechanisms/output_gate/spec.py",
        '        output_gate: bool = setting("RA_MLA_OUTPUT_GATE")\n',
        '        sharper: bool = setting("RA_MLA_SHARPER")\n',
    ),
    (
        "gpt2/plan/steps.py",
        "            _heads(9, 12),\n        ),\n",
        '        Step(34, "sharper", "Sharper", "?", 0, {"sharper": True}),\n',
    ),
)
ENTRY = 'config RA_MLA_SHARPER\n\tbool "Sharper attention"\n'
MENU = f"\n{ENTRY}\thelp\n\t  No code reads it.\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = copy_files(tmp_path_factory.mktemp("dead") / "tree", PARTS)
    for name, before, new in EDITS:
        text = (folder / name).read_text()
        assert text.count(before) == 1
        write(folder, name, text.replace(before, before + new))
    with (folder / "gpt2" / "Kconfig.mechanisms").open("a") as menu:
        menu.write(MENU)
    return folder


def refused(done: CompletedProcess[str]) -> None:
    """By the name of the field, and by no other certificate."""
    assert done.returncode == 1, done.stdout + done.stderr
    assert REFUSED in done.stdout + done.stderr
    rows = {line.split()[0]: line.split() for line in done.stdout.splitlines() if line}
    assert rows["step34-sharper"].count(FAILED) == 1
    assert FAILED not in rows["step05-ra"]


def test_the_first_stage_of_a_dry_run_refuses_its_step(tree: Path) -> None:
    made = python(tree, "scripts/kconfig.py", "defconfig", "gpt2-cpu-smoke")
    assert made.returncode == 0, made.stderr
    words = ("--dry-run", "--overrides", "STEPS=5,34")
    refused(python(tree, "scripts/run_test_matrix.py", "--config", "config.py", *words))


@pytest.mark.slow
def test_verify_refuses_its_step(tree: Path) -> None:
    refused(python(tree, "scripts/verify.py", "--overrides", "STEPS=5,34"))
