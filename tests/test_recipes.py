"""CONTRIBUTING.md's recipes, followed to the letter in a copy of the tree."""

import re
import textwrap
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.scratch import ROOT, copy_tree, git, make, python, write

PARTS = ["Makefile", "Kconfig", "pyproject.toml", "README.md", "defconfigs", "scripts"]
PARTS += ["lib", "gpt2", "tests", ".gitignore"]
# What a step passes through: its own cases, and all of the tests about the registry.
TESTS_OF_STEPS = [
    "tests/gpt2/plan/test_steps.py",
    "tests/gpt2/plan/test_jobs.py",
    "tests/gpt2/plan/test_budget.py",
    "tests/gpt2/plan/test_memory.py",
    "tests/gpt2/model/test_gpt.py",
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("recipes") / "tree", PARTS)


@pytest.fixture
def tree(pristine: Path, tmp_path: Path) -> Path:
    git(tmp_path, "clone", "--quiet", pristine, "tree")
    return tmp_path / "tree"


def succeed(done: CompletedProcess[str]) -> str:
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def jobs(tree: Path, *arguments: str) -> str:
    """What the matrix would run, listed without proving it."""
    return succeed(python(tree, "scripts/run_test_matrix.py", "--list", *arguments))


def recipe(heading: str, language: str) -> str:
    """The first block in `language` under a heading of CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text.split(f"\n## {heading}\n")[1], flags=re.M)[0]
    found = re.search(rf"^```{language}\n(.*?)^```$", section, re.M | re.S)
    assert found, f"no {language} under {heading!r}"
    return found[1]


def changed(tree: Path) -> set[str]:
    listed = git(tree, "status", "--porcelain", "--untracked-files=all")
    return {line[3:] for line in listed.splitlines()}


def replace_once(tree: Path, name: str, old: str, new: str) -> None:
    text = (tree / name).read_text(encoding="utf-8")
    assert text.count(old) == 1, f"{name}: {text.count(old)} x {old!r}"
    write(tree, name, text.replace(old, new))


def test_adding_a_step_is_one_row_in_one_file(tree: Path) -> None:
    row = recipe("Add an ablation step over existing mechanisms", "python")
    registry = (tree / "gpt2/plan/steps.py").read_text()
    head, end, tail = registry.partition("\n    )\n}\n")
    assert end, "the end of STEPS"
    write(
        tree,
        "gpt2/plan/steps.py",
        f"{head}\n{textwrap.indent(row, ' ' * 8).rstrip()}{end}{tail}",
    )
    assert changed(tree) == {"gpt2/plan/steps.py"}, "one file edited by hand"

    stale = python(tree, "scripts/check.py", "--only", "generated text")
    assert stale.returncode != 0
    # A part of `make format`, which needs no words here: test_check.py has it.
    succeed(python(tree, "scripts/generate_docs.py"))
    generated = {"README.md", "gpt2/Kconfig.ablation"}
    assert changed(tree) == {"gpt2/plan/steps.py"} | generated
    title = "RA with the SDPA output gate"
    for name in generated:
        assert title in (tree / name).read_text()
    succeed(python(tree, "scripts/check.py", "--quick", *changed(tree)))

    succeed(make(tree, "defconfig-gpt2-quickstart"))
    done = python(
        *(tree, "scripts/run_test_matrix.py", "--dry-run"),
        *("--overrides", "STEPS=0,5,34"),
    )
    assert title in succeed(done), "and it is no other step under this preset"
    assert "\nstep34-ra-output-gate " in done.stdout
    words = ("-q", "-x", "-k", "34 or test_steps or test_jobs", *TESTS_OF_STEPS)
    told = succeed(python(tree, "-m", "pytest", "-p", "no:cacheprovider", *words))
    assert re.search(r"^\d{3} passed", told, re.M), told


def test_adding_a_preset_is_one_file(tree: Path) -> None:
    succeed(make(tree, "defconfig-gpt2-quickstart"))
    config = tree / ".config"
    text = config.read_text()
    changed_text, times = re.subn(r"(?m)^(CONFIG_GPT2_MAX_ITERS)=\d+$", r"\1=77", text)
    assert times == 1
    config.write_text(changed_text)
    succeed(make(tree, "savedefconfig", "NAME=gpt2-mine"))
    assert changed(tree) == {"defconfigs/gpt2-mine"}
    preset = tree / "defconfigs/gpt2-mine"
    preset.write_text(re.sub("^# .*", "# A preset of my own.", preset.read_text()))

    assert "A preset of my own." in succeed(make(tree, "list-defconfigs"))
    succeed(make(tree, "mrproper"))
    assert not config.exists()
    succeed(make(tree, "defconfig-gpt2-mine"))
    assert "CONFIG_GPT2_MAX_ITERS=77\n" in config.read_text()
    assert "defconfigs/gpt2-mine" in jobs(tree), "the origin of what it sets"
    git(tree, "add", "defconfigs/gpt2-mine")
    succeed(python(tree, "scripts/check.py", "--quick", "defconfigs/gpt2-mine"))


LION = ("lib/optim/optimizers/lion", "Add an optimizer")
AGREEMENT = ("lib/pruning/methods/agreement", "Add a pruning method")


def add_both_files(tree: Path, where: tuple[str, str], wrong: str = "") -> list[str]:
    """The two files that a recipe gives; wrong: what is left out of the Python one."""
    path, heading = where
    python_text = recipe(heading, "python")
    assert wrong in python_text
    write(tree, f"{path}.py", python_text.replace(wrong, "") if wrong else python_text)
    write(tree, f"{path}.kconfig", recipe(heading, "kconfig"))
    return [f"{path}.kconfig", f"{path}.py"]


TRY_BOTH = """
import dataclasses
from gpt2.plan.jobs import make_plan
from gpt2.plan.unused_settings import idle
from gpt2.settings.configuration import strict_kconfig
overrides = ["TEST_MATRIX_MODE=y", "TEST_MATRIX_LION=y", "SGD_MOMENTUM=0.5"]
overrides += ["TEST_MATRIX_PRUNING_AGREEMENT=y", "TEST_MATRIX_LION_LEARNING_RATE=1e-4"]
config = strict_kconfig().load([], overrides)
plan = make_plan(config)
for job in plan.jobs:
    print(job.name, job.parent_name, job.settings.optim.learning_rate)
print(*[f"{cell.name}: {cell.reason}" for cell in plan.left_out], *idle(plan, config))
from lib.optim.certify import certify_optimizer, check_reference
from lib.optim.registry import OPTIMIZERS
from lib.pruning.certify import certify_pruning, check_masks
from lib.pruning.registry import METHODS
from lib.pruning.watched import Case
rows = certify_optimizer("lion") | certify_pruning(Case("adamw", "agreement"))
print("failed:", [row for row in rows.values() if not row.passed])
lion, agreement = OPTIMIZERS["lion"], METHODS["agreement"]
other = lambda w, g, state, n, s: lion.formula(w, g, state, n, {**s, "beta1": 0.8})
OPTIMIZERS["lion"] = dataclasses.replace(lion, formula=other)
other = lambda w, values: agreement.reference(w, {**values, "m": 1.0})
METHODS["agreement"] = dataclasses.replace(agreement, reference=other)
wrong = [check_reference("lion"), check_masks(Case("adamw", "agreement"))]
print("wrong:", [row.passed for row in wrong])
"""


def test_an_optimizer_and_a_pruning_method_are_two_files_each(tree: Path) -> None:
    files = add_both_files(tree, LION) + add_both_files(tree, AGREEMENT)
    assert changed(tree) == set(files)
    said = succeed(python(tree, "-c", TRY_BOTH)).splitlines()
    assert said[:3] == [
        "adamw-none None 0.0006",
        "adamw-agreement-50 adamw-none 0.0006",
        "lion-none adamw-none 0.0001",
    ]
    assert "lion-agreement: agreement pruning scores by Adam's two moments" in said[3]
    assert "SGD_MOMENTUM=0.5 (command line) changes nothing: no job uses one" in said[3]
    assert said[4:] == ["failed: []", "wrong: [False, False]"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("where", "asked", "wrong", "column"),
    [
        (LION, ["OPTIMIZER_LION=y"], ' * s["decay"]', "reference"),
        (AGREEMENT, ["PRUNING_AGREEMENT=y"], ".abs()", "masks"),
    ],
)
def test_what_was_added_is_explained_verified_trained_and_refused_if_wrong(
    tree: Path, where: tuple[str, str], asked: list[str], wrong: str, column: str
) -> None:
    files = add_both_files(tree, where)
    git(tree, "add", *files)
    succeed(python(tree, "scripts/check.py", "--quick", *files))
    succeed(python(tree, "-m", "mypy", files[1]))
    succeed(make(tree, "defconfig-gpt2-cpu-smoke"))
    short = [*asked, "MAX_ITERS=20", "PRUNING_WARMUP_STEPS=5", "PRUNING_INTERVAL=5"]
    short += ["SINGLE_RUN_MODE=y", "SEEDS=1", "WARMUP_STEPS=5"]
    name = asked[0].removesuffix("=y")
    said = succeed(make(tree, "explain", f"SYMBOL={name}"))
    assert f"{files[0]}:3" in said
    assert files[1].split("/")[-1][:-3] in succeed(make(tree, "dry-run", *short))
    for target in (["data"], []):
        succeed(make(tree, *target, *short))
    assert re.search(r"\bdone\b.* 20\b", succeed(make(tree, "status", *short)))
    add_both_files(tree, where, wrong)
    refused = make(tree, "dry-run", *short)
    assert refused.returncode != 0 and column in refused.stdout + refused.stderr


def test_commands_of_the_document_exist() -> None:
    """Every make target and script that CONTRIBUTING.md names is there."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    # In code only: at the start of a shell line, or of a span in backquotes.
    targets = set(re.findall(r"(?:^|`|&& )make ([a-z][a-z0-9-]*)", text, re.M))
    assert {"setup", "check", "format", "verify"} <= targets
    for target in targets:
        stem = "defconfig-%" if target.startswith("defconfig-") else target
        assert re.search(rf"^{re.escape(stem)}( [^:=]*)?:", makefile, re.M), target
    paths = re.findall(r"`?((?:scripts|tests|gpt2|lib)/[\w./]+\w)", text)
    assert [path for path in paths if not (ROOT / path).exists()] == []
