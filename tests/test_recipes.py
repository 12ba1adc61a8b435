"""CONTRIBUTING.md's recipes, followed to the letter in a copy of the tree."""

import contextlib
import re
import textwrap
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from safetensors import safe_open

from tests.gpt2.tinydata import prepare_texts
from tests.scratch import ROOT, copy_tree, git, make, python, write
from tests.tinymatrix import TINY

PARTS = [
    "Makefile",
    "Kconfig",
    "pyproject.toml",
    "README.md",
    "docs",
    "defconfigs",
    "scripts",
]
PARTS += ["lib", "gpt2", "tests", ".gitignore", "LICENSE"]
# What a step passes through: its own cases, and all of the tests about the registry.
TESTS_OF_STEPS = [
    "tests/gpt2/plan/test_steps.py",
    "tests/gpt2/plan/test_jobs.py",
    "tests/gpt2/plan/test_planning.py",
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
    """List of the jobs of the matrix, without verification."""
    return succeed(python(tree, "scripts/run_test_matrix.py", "--list", *arguments))


def recipe(heading: str, language: str, begin: str = "") -> str:
    """The first block in `language`, beginning as given, under a heading of
    CONTRIBUTING.md."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text.split(f"\n## {heading}\n")[1], flags=re.M)[0]
    found = re.search(
        rf"^```{language}\n({re.escape(begin)}.*?)^```$", section, re.M | re.S
    )
    assert found, f"no {language} under {heading!r}"
    return found[1]


def changed(tree: Path) -> set[str]:
    listed = git(tree, "status", "--porcelain", "--untracked-files=all")
    return {line[3:] for line in listed.splitlines()}


def test_adding_a_step_is_one_row_in_one_file(tree: Path) -> None:
    row = recipe("Add an ablation step over existing mechanisms", "python")
    add_row(tree, row)
    assert changed(tree) == {"gpt2/plan/steps.py"}, "one file edited by hand"

    stale = python(tree, "scripts/check.py", "--only", "generated text")
    assert stale.returncode != 0
    # A part of `make format`, which needs no words here: test_check.py has it.
    succeed(python(tree, "scripts/generate_docs.py"))
    generated = {"README.md", "gpt2/Kconfig.ablation", "docs/mechanisms.md"}
    menus = {f"gpt2/mechanisms/{name}/Kconfig" for name in ("ra", "output_gate")}
    wanted = {"gpt2/plan/steps.py", "docs/settings.md", *generated, *menus}
    assert changed(tree) == wanted
    title = "RA with the SDPA output gate"
    for name in generated:
        assert title in (tree / name).read_text()
    succeed(python(tree, "scripts/check.py", "--quick", *changed(tree)))

    succeed(make(tree, "defconfig-gpt2-quickstart"))
    done = python(
        *(tree, "scripts/run_test_matrix.py", "--dry-run"),
        *("--overrides", "STEPS=0,5,34"),
    )
    assert title in succeed(done), "and it is not another step under this preset"
    assert "\nstep34-ra-output-gate " in done.stdout
    words = (
        "-q",
        "-x",
        "-k",
        "34 or test_steps or test_jobs and not identity or test_planning",
        *TESTS_OF_STEPS,
    )
    output = succeed(python(tree, "-m", "pytest", "-p", "no:cacheprovider", *words))
    assert re.search(r"^\d{3} passed", output, re.M), output


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
from gpt2.plan.planning import make_plan
from gpt2.plan.unused_settings import unused_settings
from gpt2.settings.configuration import strict_kconfig
overrides = ["TEST_MATRIX_MODE=y", "TEST_MATRIX_LION=y", "SGD_MOMENTUM=0.5"]
overrides += ["TEST_MATRIX_PRUNING_AGREEMENT=y", "TEST_MATRIX_LION_LEARNING_RATE=1e-4"]
config = strict_kconfig().load([], overrides)
plan = make_plan(config)
for job in plan.jobs:
    print(job.name, job.parent_name, job.settings.optim.learning_rate)
left_out = [f"{cell.name}: {cell.reason}" for cell in plan.left_out]
print(*left_out, *unused_settings(plan, config))
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
    assert "SGD_MOMENTUM=0.5 (command line) has no effect: no job uses one" in said[3]
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
    succeed(python(tree, "scripts/generate_docs.py"))  # a part of `make format`
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


# ---- a mechanism --------------------------------------------------------------------

HIDDEN_SCALE = {
    "spec.py": '''
"""Settings and costs of a learned scale of each hidden unit of the MLP."""

from gpt2.mechanisms.spec import Cost, Mechanism, setting


class HiddenScaleSpec(Mechanism):
    title = "Scale of hidden units"
    short = "scaled hidden units"
    formula = "h <- h * s"

    class Fields:
        hidden_scale: bool = setting("RA_MLA_HIDDEN_SCALE")

    off = {"hidden_scale": False}
    neutral_weights = {"mlp.hidden_scale.scale": 1.0}

    def cost(self, s) -> Cost:
        return Cost(vectors=s.model.mlp_width)


SPEC = HiddenScaleSpec()
''',
    "layer.py": '''
"""A learned scale of each hidden unit."""

import torch
from torch import nn

from gpt2.model.parts import MlpPart


class HiddenScale(MlpPart):
    def __init__(self, settings, produces) -> None:
        super().__init__(settings, produces)
        self.scale = nn.Parameter(torch.full((settings.model.mlp_width,), 1.25))

    def update(self, hidden, side, cache):
        return hidden * self.scale.to(hidden.dtype)


MLP = {"hidden_scale": HiddenScale}
''',
    "naive.py": '''
"""Formula of the scale."""

from gpt2.model.reference.formula import BlockFormula


class HiddenScaleFormula(BlockFormula):
    def hidden(self, h, weights, key_latent):
        return h * self.get("mlp.hidden_scale.scale")


FORMULA = HiddenScaleFormula
''',
    "Kconfig": "config RA_MLA_HIDDEN_SCALE\n"
    '\tbool "Scale of hidden units" if !RA_MLA_ABLATION_MODE\n\tdefault n\n'
    "\thelp\n\t  Multiplies each hidden unit of the MLP by a parameter.\n",
}
SCALE_ROW = (
    'Step(35, "hidden-scale", "scaled hidden units", "?", 0, {"hidden_scale": True}),'
)
MECHANISM = "Add a mechanism"
# Each fault, and the certificate that has to refuse it.
PROVE = """
import dataclasses
import sys
import torch
from gpt2.mechanisms import mechanisms, module_of
from gpt2.mechanisms.spec import Cost
from gpt2.plan.planning import plan_settings
from gpt2.plan.steps import STEPS
from gpt2.settings import configuration
from gpt2.settings.checks import check
from gpt2.settings.parse import settings_from
from gpt2.verify.certificates import certify
from gpt2.verify.certify_steps import subjects

torch.set_num_threads(1)
base = settings_from(configuration.load_defaults("RA_MLA_ABLATION_MODE=y STEPS=34,35"))
proven = dict(zip((34, 35), subjects(plan_settings(base, {})).values(), strict=True))
specs = {m.name: m for m in mechanisms()}


def failed(step):
    subject = dataclasses.replace(proven[step], larger=None)
    return [name for name, found in certify(subject).items() if not found.passed]


def planted(step, place, name, wrong):
    true = getattr(place, name)
    setattr(place, name, wrong)
    print(step, *failed(step))
    setattr(place, name, true)


for step, mechanism, part, effect in (
    (34, "temperature", module_of("temperature", "layer").Temperature, "heads"),
    (35, "hidden_scale", module_of("hidden_scale", "layer").HiddenScale, "update"),
):
    spec = specs[mechanism]
    print(step, *failed(step))
    planted(step, part, effect, lambda self, given, *rest: given)
    wrong = dict.fromkeys(spec.neutral_weights, 1.01)
    planted(step, spec, "neutral_weights", wrong)
    planted(step, spec, "cost", lambda s: Cost(vectors=1))
planted(34, specs["temperature"], "own_of_heads", {})
try:
    check(proven[35].settings.replace(prune_method="heads"))
except ValueError as refused:
    print(refused)
check(proven[34].settings.replace(prune_method="heads"))
"""


def parts_of(heading: str) -> dict[str, str]:
    """Text of each file that a section describes: the block after a paragraph that
    begins with the file's name in backquotes."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    section = re.split(r"^## ", text.split(f"\n## {heading}\n")[1], flags=re.M)[0]
    block = r"^`([\w.]+)` has .*?^```\w+\n(.*?)^```$"
    return dict(re.findall(block, section, re.M | re.S))


def add_row(tree: Path, row: str) -> None:
    """A row at the end of STEPS."""
    registry = (tree / "gpt2/plan/steps.py").read_text()
    head, end, tail = registry.partition("\n    )\n}\n")
    assert end, "the end of STEPS"
    row = textwrap.indent(row, " " * 8).rstrip()
    write(tree, "gpt2/plan/steps.py", f"{head}\n{row}{end}{tail}")


def add_mechanism(tree: Path, name: str, files: dict[str, str], row: str) -> None:
    for file, text in {"__init__.py": "", **files}.items():
        write(tree, f"gpt2/mechanisms/{name}/{file}", text.lstrip("\n"))
    add_row(tree, row)


@pytest.fixture
def with_mechanisms(tree: Path) -> Path:
    """The document's temperature on the scores, and a scale of the MLP's hidden units:
    two places of a block."""
    files = parts_of(MECHANISM)
    assert files.keys() == {"naive.py", "spec.py", "layer.py", "Kconfig"}
    row = recipe(MECHANISM, "python", "Step(")
    assert sum(text.count("\n") for text in (*files.values(), row)) <= 120
    add_mechanism(tree, "temperature", files, row)
    add_mechanism(tree, "hidden_scale", HIDDEN_SCALE, SCALE_ROW)
    folders = {name.rpartition("/")[0] for name in changed(tree)}
    own = {f"gpt2/mechanisms/{name}" for name in ("temperature", "hidden_scale")}
    assert folders == {*own, "gpt2/plan"}
    return tree


def test_a_mechanism_is_one_folder_and_one_row(with_mechanisms: Path) -> None:
    """Proven as it is; and refused, each time by the certificate that should, without
    its effect, with a wrong neutral value, a wrong cost and heads cut wrongly."""
    assert succeed(python(with_mechanisms, "-c", PROVE)).splitlines() == [
        *("34", "34 alive acting formula", "34 identity", "34 budget"),
        *("35", "35 alive acting formula", "35 identity", "35 budget", "34 heads"),
        "PRUNING_METHOD 'heads': heads cannot be removed: hidden_scale does not say "
        "which of its numbers a head owns",
    ]


def test_steps_of_a_new_mechanism_train_and_are_reported(with_mechanisms: Path) -> None:
    tree = with_mechanisms
    write(tree, "defconfigs/tiny", f"# Tiny.\n{TINY}")
    succeed(python(tree, "scripts/kconfig.py", "defconfig", "tiny"))
    with contextlib.chdir(tree):
        prepare_texts(Path("."))
    words = ("--overrides", "STEPS=0,34,35 SEEDS=1 MAX_ITERS=20")
    table = succeed(python(tree, "scripts/run_test_matrix.py", *words))
    summary = (tree / "results" / "summary.json").read_text()
    for step in ("step34-temperature", "step35-hidden-scale"):
        assert f"{step}/seed1" in table and step in summary
    for step, name, start in (
        ("34-temperature", "attn.temperature.factor", 1.5),
        ("35-hidden-scale", "mlp.hidden_scale.scale", 1.25),
    ):
        export = tree / "results" / f"step{step}" / "seed1" / "model.safetensors"
        with safe_open(export, framework="pt") as weights:
            learned = weights.get_tensor(f"blocks.1.{name}")
        assert 0 < (learned - start).abs().max() < 0.5


@pytest.mark.slow
def test_every_command_knows_a_new_mechanism(with_mechanisms: Path) -> None:
    tree = with_mechanisms
    succeed(python(tree, "scripts/generate_docs.py"))
    git(tree, "add", "--all")
    temperature = [n for n in changed(tree) if "hidden_scale" not in n]
    succeed(python(tree, "scripts/check.py", "--quick", *temperature))
    succeed(python(tree, "-m", "mypy", "gpt2/mechanisms/temperature"))
    succeed(make(tree, "defconfig-gpt2-cpu-smoke"))
    said = succeed(make(tree, "explain", "SYMBOL=RA_MLA_TEMPERATURE_START"))
    assert "Initial temperature" in said
    steps = "STEPS=0,34,35"
    assert "temperature" in succeed(make(tree, "budget", steps))
    assert "step34-temperature" in succeed(make(tree, "dry-run", steps))
    assert "step35-hidden-scale" in succeed(make(tree, "verify", "STEPS=34,35"))
    for target in ("data", "all", "as-trained"):
        succeed(make(tree, target, steps, "SEEDS=1"))
    assert "34" in succeed(make(tree, "export", "RUN=34:1", "OUT=exported"))
    succeed(make(tree, "report"))
    report = (tree / "test_matrix_results_cpu_smoke" / "REPORT.md").read_text()
    assert "learned temperature per head" in report and "scaled hidden units" in report


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
