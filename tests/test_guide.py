"""docs/guide.md: every command is run in order; those of all documents are valid."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2.settings.configuration import DEFCONFIGS, load_preset
from tests.documents import MakeCommand, blocks, commands
from tests.scratch import ROOT, clean_environment, copy_tree, note_setup, project_files

GUIDE = ROOT / "docs" / "guide.md"
# The recipes of the other one, tests/test_recipes.py follows to the letter.
DOCUMENTS = {n for n in project_files() if n.endswith(".md")} - {"CONTRIBUTING.md"}
# The same study with a twentieth of the updates.
SHORT = {
    "MAX_ITERS=400": "MAX_ITERS=20",
    "WARMUP_STEPS=40": "WARMUP_STEPS=5",
    "EVAL_INTERVAL=200": "EVAL_INTERVAL=10",
    "EVAL_SAMPLES=256": "EVAL_SAMPLES=8",
}


def calls_of_make(name: str) -> list[MakeCommand]:
    found = map(MakeCommand.of, commands(ROOT / name))
    return [call for call in found if call is not None]


def own_variables() -> set[str]:
    """Variables of the Makefile; all others are settings."""
    words = ("make", "-npq", "help", f"PYTHON={sys.executable}")
    listed = subprocess.run(words, cwd=ROOT, capture_output=True, text=True).stdout
    found = re.search(r"^OWN := (.*)$", listed, re.M)
    assert found
    text = re.sub(r"\$\((\w+)\)", lambda m: variable(listed, m[1]), found[1])
    return set(text.split())


def variable(listed: str, name: str) -> str:
    found = re.search(rf"^{name} := (.*)$", listed, re.M)
    assert found, name
    return found[1]


@pytest.mark.parametrize(
    "name", [name for name in sorted(DOCUMENTS) if calls_of_make(name)]
)
def test_commands_of_the_documents_are_valid(name: str) -> None:
    """Each goal is a target, and each setting is one, with a value that it can have."""
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.M))
    own, preset = own_variables(), "gpt2-quickstart"
    saved = {call.variables.get("NAME"): preset for call in calls_of_make(name)}
    for call in calls_of_make(name):
        for goal in call.goals:
            loaded = goal.removeprefix("defconfig-")
            if loaded == goal:
                assert goal in targets, f"make {goal}"
            elif loaded not in saved:
                assert (DEFCONFIGS / loaded).is_file(), goal
                preset = loaded
        given = {k: v for k, v in call.variables.items() if k not in own}
        given.pop("INIT_FROM", None)  # names a folder that the reader has
        load_preset(preset, " ".join(f"{k}={shlex.quote(v)}" for k, v in given.items()))


@pytest.mark.parametrize("name", sorted(DOCUMENTS))
def test_targets_named_in_sentences_are_there(name: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.M))
    named = re.findall(r"`make ([a-z][a-z0-9-]*)", (ROOT / name).read_text())
    presets = {f"defconfig-{path.name}" for path in DEFCONFIGS.iterdir()}
    assert {*named} - {"defconfig-"} <= targets | presets


def test_the_guide_has_the_commands_of_a_study() -> None:
    goals = [goal for call in calls_of_make("docs/guide.md") for goal in call.goals]
    wanted = ["data", "dry-run", "report", "plan", "audit", "bundle", "export"]
    assert [goal for goal in dict.fromkeys(goals) if goal in wanted] == wanted


def typed(tree: Path, command: str) -> str:
    """A command as typed into a shell, which must succeed; what it prints."""
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=tree,
        env=clean_environment(PYTHON=sys.executable),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_guide_from_start_to_end(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path / "tree")
    note_setup(tree)
    (steps,) = blocks(GUIDE, "toml")
    (tree / "my_steps.toml").write_text(steps)
    used = set()
    for command in commands(GUIDE):
        for long, short in SHORT.items():
            if long in command:
                used.add(long)
                command = command.replace(long, short)
        said = typed(tree, command)
        if command.startswith("make plan"):
            assert "paired differences in these results (4 df)" in said
    assert used == set(SHORT)
    report = (tree / "results_code/REPORT.md").read_text()
    assert "baseline + RA, alpha 0.1" in report and "21 of 21 runs" in report
    assert (tree / "ra-model/config.json").is_file()
    assert "gpt2-code-study" in {path.name for path in (tree / "defconfigs").iterdir()}
    shutil.rmtree(tree)
