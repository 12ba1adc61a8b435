"""The step table and the step help follow the registry, and staleness is seen."""

import re
from pathlib import Path

import pytest

from gpt2.plan.steps import STEPS
from tests.scratch import copy_tree, python, write

TOOL = "scripts/generate_docs.py"
PARTS = [TOOL, "lib", "gpt2", "README.md"]
FILES = ("README.md", "gpt2/Kconfig.ablation")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    tree = copy_tree(tmp_path, PARTS)
    assert python(tree, TOOL).returncode == 0
    return tree


def test_every_step_is_told_with_its_partner(tree: Path) -> None:
    table = (tree / "README.md").read_text()
    menu = (tree / "gpt2/Kconfig.ablation").read_text()
    for step in STEPS.values():
        partner = "-" if step.parent is None else step.parent
        assert f"| {step.id} | {step.title} | {partner} | {step.question} |" in table
        assert re.search(rf"^\s+{step.id}  {re.escape(step.title)}", menu, re.MULTILINE)


@pytest.mark.parametrize("name", FILES)
def test_stale_line_is_named_and_fixed_once(tree: Path, name: str) -> None:
    current = (tree / name).read_text()
    lines = current.split("\n")
    planted = next(n for n, line in enumerate(lines) if STEPS[5].title in line)
    lines[planted] = lines[planted].replace(STEPS[5].title, "something else")
    write(tree, name, "\n".join(lines))

    checked = python(tree, TOOL, "--check")
    assert checked.returncode == 1
    assert checked.stdout.startswith(f"{name}:{planted + 1}: ")
    assert (tree / name).read_text() == "\n".join(lines), "--check must not write"

    assert python(tree, TOOL).returncode == 0
    assert (tree / name).read_text() == current
    assert python(tree, TOOL, "--check").returncode == 0


@pytest.mark.parametrize("cut", [-2, 1])
def test_missing_or_doubled_last_row_is_stale(tree: Path, cut: int) -> None:
    current = (tree / "README.md").read_text()
    rows = [line for line in current.split("\n") if line.startswith("|")]
    edited = "" if cut < 0 else f"{rows[-1]}\n{rows[-1]}\n"
    write(tree, "README.md", current.replace(rows[-1] + "\n", edited))
    done = python(tree, TOOL, "--check")
    assert done.returncode == 1
    assert done.stdout.startswith("README.md:")


def test_changed_registry_makes_both_stale(tree: Path) -> None:
    registry = tree / "gpt2/plan/steps.py"
    text = registry.read_text()
    assert STEPS[5].title in text
    registry.write_text(text.replace(STEPS[5].title, "a new title", 1))
    done = python(tree, TOOL, "--check")
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(FILES)


@pytest.mark.parametrize("name", FILES)
def test_text_around_the_block_is_kept(tree: Path, name: str) -> None:
    text = (tree / name).read_text()
    write(tree, name, f"# before\n{text}# after\n")
    assert python(tree, TOOL).returncode == 0
    assert (tree / name).read_text() == f"# before\n{text}# after\n"


@pytest.mark.parametrize("name", FILES)
def test_lost_marker_is_an_error_that_names_it(tree: Path, name: str) -> None:
    text = (tree / name).read_text()
    write(tree, name, text.replace("/steps", "/stops"))
    done = python(tree, TOOL)
    assert done.returncode == 1
    assert f"{name}: needs one line" in done.stderr
