"""Imports that folders may have, and dangerous calls that no file may have.

Read from the sources by ast; what start-up really loads is seen in a subprocess. Each
rule is tried on a planted offender first, so that none can fall asleep.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from gpt2.settings.parse import ALIASES
from lib.jobs.import_gc import collector_at_rest
from tests.scratch import ROOT, project_files

# Folders of gpt2/ and lib/, lower ones first: a file imports from its own folder or
# from those before it. Files directly in lib/ may import from lib/ only what has no GPU
# in it.
ROOMS = {
    "gpt2": (
        *("mechanisms", "settings", "data", "plan", "model"),
        *("train", "verify", "audit", "report", "infer", "run"),
    ),
    "lib": ("kconfig", "jobs", "gpu", "kernels", "optim", "pruning"),
}
PRODUCT = ("gpt2", "lib", "scripts")
# Planning, listing and reporting start without torch: neither a file of these folders
# nor anything that it imports loads it. So do the small modules directly in lib/.
TORCH_FREE = (
    *("gpt2.mechanisms", "gpt2.settings", "gpt2.data", "gpt2.plan"),
    *("gpt2.report", "gpt2.run"),
    *("lib.kconfig", "lib.jobs", "scripts"),
    *("lib.optim.registry", "lib.optim.spec", "lib.optim.optimizers"),
    *("lib.pruning.registry", "lib.pruning.spec", "lib.pruning.methods"),
    "lib.pruning.schedules",
)
# Files of a mechanism's folder that gpt2/model alone imports, by the folder's name.
MODEL_CODE = ("layer", "naive")
HEAVY = ("torch", "datasets", "matplotlib", "wandb")
# Modules that start in a moment, and what they may not load.
LIGHT = {
    "gpt2.report.read_results": (*HEAVY, "numpy", "scipy"),
    "lib.gpu.monitor": HEAVY,
    "lib.kconfig.config_py": (*HEAVY, "kconfiglib"),
    "lib.optim.registry": (*HEAVY, "numpy"),
    "lib.pruning.registry": (*HEAVY, "numpy"),
    "scripts.report": (*HEAVY, "pandas", "plotly"),
}
MEASURES_TORCH = "scripts.bench"  # in its own process
# Upper-case words that are also symbols of Kconfig, but mean something else in lib/.
NOT_OURS = {
    "PYTORCH_CUDA_ALLOC_CONF": "a variable that torch reads",
    "TF32": "a number format",
}
# Within a folder, lower layers first.
LAYERS = (
    (
        ("gpt2.settings.schema",),
        ("gpt2.settings.checks",),
        ("gpt2.settings.parse",),
        ("gpt2.settings.configuration",),
    ),
    (
        ("gpt2.plan.steps", "gpt2.plan.matrix_cells", "gpt2.plan.budget"),
        ("gpt2.plan.axes", "gpt2.plan.readers"),
        ("gpt2.plan.jobs",),
        ("gpt2.plan.planning",),
        ("gpt2.plan.unused_settings",),
    ),
    (
        ("gpt2.model.context", "gpt2.model.low_rank_hidden"),
        ("gpt2.model.parts",),
        ("gpt2.model.attention", "gpt2.model.mlp"),
        ("gpt2.model.block",),
        ("gpt2.model.gpt",),
        ("gpt2.model.autotune", "gpt2.model.reference"),
    ),
)


@dataclass(frozen=True)
class Source:
    """One Python file of the project."""

    path: str
    tree: ast.Module

    @property
    def module(self) -> str:
        parts = Path(self.path).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    @property
    def package(self) -> str:
        return self.path.split("/")[0]

    @property
    def is_torch_free(self) -> bool:
        """Whether the module is in a torch-free folder, or directly in lib/."""
        small = self.package == "lib" and self.path.count("/") == 1
        free = small or any(within(self.module, part) for part in TORCH_FREE)
        return free and self.module != MEASURES_TORCH and not self.is_model_code

    @property
    def is_model_code(self) -> bool:
        """Whether it is a mechanism's layer or formula, which belong to gpt2/model."""
        parts = self.module.split(".")
        in_folder = parts[:2] == ["gpt2", "mechanisms"] and len(parts) == 4
        return in_folder and parts[3] in MODEL_CODE

    @cached_property
    def nodes(self) -> tuple[ast.AST, ...]:
        return tuple(ast.walk(self.tree))

    @cached_property
    def imports(self) -> tuple[tuple[int, str], ...]:
        """(line, dotted name) of every import, those inside functions included."""
        return tuple(imported_by(self.nodes, self.module))

    def loads(self) -> Iterator[str]:
        """Names imported together with the module: none of functions or type checks."""
        for statement in self.tree.body:
            if not isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.If)):
                nodes = tuple(ast.walk(statement))
                yield from (name for _, name in imported_by(nodes, self.module))


def for_types(nodes: Iterable[ast.AST]) -> set[ast.AST]:
    """Nodes that serve type checks alone."""
    blocks = (node for node in nodes if isinstance(node, ast.If))
    typed = (each for each in blocks if "TYPE_CHECKING" in ast.dump(each.test))
    return {node for each in typed for node in ast.walk(each)}


def imported_by(nodes: Sequence[ast.AST], module: str) -> Iterator[tuple[int, str]]:
    """(line, dotted name) of the imports among these nodes, without those that serve
    type checks alone."""
    typed = for_types(nodes)
    for part in nodes:
        if part in typed:
            continue
        if isinstance(part, ast.Import):
            yield from ((part.lineno, name.name) for name in part.names)
        elif isinstance(part, ast.ImportFrom):
            outer = module.split(".")[: -part.level] if part.level else []
            base = ".".join([*outer, *([part.module] if part.module else [])])
            yield part.lineno, base
            yield from ((part.lineno, f"{base}.{name.name}") for name in part.names)


def source(path: str, text: str) -> Source:
    return Source(path, ast.parse(text, filename=path))


@cache
def project() -> tuple[Source, ...]:
    names = [name for name in project_files() if name.endswith(".py")]
    with collector_at_rest():  # it would take most of the time
        return tuple(source(n, (ROOT / n).read_text(encoding="utf-8")) for n in names)


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def importing(this: Source, *modules: str) -> Iterator[str]:
    """`path:line: imports NAME` for every import of one of the modules."""
    for line, name in this.imports:
        if any(within(name, module) for module in modules):
            yield f"{this.path}:{line}: imports {name}"


def lib_knows_no_gpt2(this: Source) -> Iterator[str]:
    if this.package == "lib":
        yield from importing(this, "gpt2", "scripts", "tests")


def product_knows_no_tests(this: Source) -> Iterator[str]:
    if this.package in ("gpt2", "scripts"):
        yield from importing(this, "tests")


@cache
def symbols() -> frozenset[str]:
    """Names of all settings: the symbols of Kconfig, and short names for them."""
    paths = [ROOT / "Kconfig", *sorted((ROOT / "gpt2").rglob("Kconfig*"))]
    paths += sorted((ROOT / "lib").rglob("*.kconfig"))
    text = "\n".join(path.read_text(encoding="utf-8") for path in paths)
    found = re.findall(r"^\s*(?:menu)?config (\w+)", text, re.MULTILINE)
    return frozenset({*found, *ALIASES} - {*NOT_OURS})


@cache
def targets() -> frozenset[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return frozenset(re.findall(r"^([a-z][\w-]*):", text, re.MULTILINE))


def lib_knows_no_setting_or_target(this: Source) -> Iterator[str]:
    """lib/ takes values and raises errors about them; only gpt2/ and scripts/ know by
    which settings and make targets users reach them."""
    if this.package != "lib":
        return
    for node in this.nodes:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            words = set(re.findall(r"\b(?:CONFIG_)?([A-Z][A-Z0-9_]+)\b", node.value))
            made = set(re.findall(r"\bmake ([a-z][\w-]*)", node.value))
            for name in sorted((words & symbols()) | (made & targets())):
                yield f"{this.path}:{node.lineno}: names {name}"


def exit_codes_are_in_one_place(this: Source) -> Iterator[str]:
    for node in this.nodes:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            if node.id.startswith("EXIT_") and this.path != "lib/output.py":
                yield f"{this.path}:{node.lineno}: {node.id} belongs in lib/output.py"


def files_are_in_rooms(this: Source) -> Iterator[str]:
    """gpt2/ has the trainer's entry point and folders that ROOMS knows; lib/ has small
    modules besides."""
    top, *inside = this.path.split("/")
    if top not in ROOMS or inside in (["train_ra_mla.py"], ["__init__.py"]):
        return
    if len(inside) == 1 and top == "gpt2":
        yield f"{this.path}:1: belongs in a folder of gpt2/"
    if len(inside) > 1 and inside[0] not in ROOMS[top]:
        yield f"{this.path}:1: {top}/{inside[0]} is not in ROOMS"


def rooms_point_down(this: Source) -> Iterator[str]:
    top, *inside = this.path.split("/")
    rooms = ROOMS.get(top, ())
    room = "model" if this.is_model_code else inside[0] if inside else ""
    if len(inside) > 1 and room in rooms:
        above = rooms[rooms.index(room) + 1 :]
        yield from importing(this, *(f"{top}.{room}" for room in above))


def mechanisms_have_no_names(this: Source) -> Iterator[str]:
    """The rest of gpt2 knows no mechanism by name: it asks gpt2.mechanisms."""
    if this.package == "gpt2" and not within(this.module, "gpt2.mechanisms"):
        folders = {f"gpt2.mechanisms.{name}" for name in mechanism_folders()}
        yield from importing(this, *folders)


@cache
def mechanism_folders() -> tuple[str, ...]:
    return tuple(path.parent.name for path in ROOT.glob("gpt2/mechanisms/*/spec.py"))


def ends_are_not_imported(this: Source) -> Iterator[str]:
    yield from importing(this, "config", "gpt2.train_ra_mla", "train_ra_mla")
    if not this.path.startswith("tests/scripts/"):  # which may test parts of a script
        yield from importing(this, "scripts")


def few_know_kconfiglib(this: Source) -> Iterator[str]:
    doors = ("lib.kconfig.tree", "lib.kconfig.symbols")
    if this.package != "tests" and this.module not in doors:
        yield from importing(this, "kconfiglib")


def layers_point_down(this: Source) -> Iterator[str]:
    for layers in LAYERS:
        rank = {module: n for n, layer in enumerate(layers) for module in layer}
        own = next((n for m, n in rank.items() if within(this.module, m)), None)
        if own is not None:
            yield from importing(this, *(m for m, n in rank.items() if n > own))


def no_code_from_data(this: Source) -> Iterator[str]:
    """Nothing is run through a shell, and no data is ever run as code.

    A test may write a pickle, to see how large one is, but not read it.
    """
    if this.package == "tests":
        readers = ("pickle.load", "pickle.loads", "pickle.Unpickler")
        yield from importing(this, "dill", "cloudpickle", "marshal", *readers)
    else:
        yield from importing(this, "pickle", "dill", "cloudpickle", "marshal")
    for node in this.nodes:
        if isinstance(node, ast.Call):
            said = danger_of(node)
            if said:
                yield f"{this.path}:{node.lineno}: {said}"


JUDGED = ("shell", "weights_only", "allow_pickle")  # arguments


def danger_of(call: ast.Call) -> str | None:
    if not isinstance(call.func, ast.Name | ast.Attribute):
        return None
    name = ast.unparse(call.func)
    words = [word for word in call.keywords if word.arg in JUDGED]
    given = {word.arg: ast.unparse(word.value) for word in words}
    if given.get("shell", "False") != "False":
        return "shell=True"
    if name in ("eval", "exec", "builtins.eval", "builtins.exec"):
        return f"{name}()"
    if name in ("os.system", "os.popen", "subprocess.getoutput"):
        return f"{name}() runs a shell"
    if name in ("pickle.load", "pickle.loads", "pickle.Unpickler"):
        return f"{name} runs what it reads"
    if name == "torch.load" and given.get("weights_only") != "True":
        return "torch.load without weights_only=True"
    if given.get("allow_pickle", "False") != "False":
        return "allow_pickle=True"
    return None


Rule = Callable[[Source], Iterator[str]]

# rule: offenders as (path, text)
RULES: dict[Rule, list[tuple[str, str]]] = {
    lib_knows_no_gpt2: [
        ("lib/x.py", "import gpt2.plan.jobs"),
        ("lib/x.py", "from gpt2.plan import jobs as plan"),
        ("lib/x.py", "def f():\n    from gpt2.plan.jobs import Job"),
        ("lib/optim/x.py", "from ...gpt2 import plan"),
    ],
    product_knows_no_tests: [("gpt2/x.py", "from tests import scratch")],
    lib_knows_no_setting_or_target: [
        ("lib/x.py", "raise ValueError(f'GPUS={x}: there is none')"),
        ("lib/jobs/x.py", "TEXT = 'set CONFIG_LEARNING_RATE'"),
        ("lib/gpu/x.py", "raise ValueError('use `make rerun`')"),
        ("lib/gpu/x.py", "x = 'STEPS'"),
    ],
    exit_codes_are_in_one_place: [("scripts/x.py", "EXIT_OK, EXIT_USAGE = 0, 2")],
    files_are_in_rooms: [
        ("gpt2/x.py", ""),
        ("gpt2/new/x.py", ""),
        ("lib/new/x.py", ""),
    ],
    rooms_point_down: [
        ("gpt2/settings/x.py", "from gpt2.plan.jobs import Job"),
        ("gpt2/mechanisms/ra/spec.py", "from gpt2.settings.checks import check"),
        ("gpt2/mechanisms/ra/layer.py", "from gpt2.train import update"),
        ("gpt2/model/x.py", "from gpt2.train import update"),
        ("gpt2/report/x.py", "def f():\n    from gpt2.run.runner import run"),
        ("lib/jobs/x.py", "from lib.gpu.device import select_device"),
    ],
    mechanisms_have_no_names: [
        ("gpt2/plan/x.py", "from gpt2.mechanisms.ra import spec"),
        ("gpt2/model/x.py", "def f():\n    from gpt2.mechanisms.mla.layer import Up"),
    ],
    ends_are_not_imported: [
        ("gpt2/run/x.py", "import config"),
        ("scripts/x.py", "from scripts.check import main"),
        ("gpt2/x.py", "from .train_ra_mla import main"),
        ("tests/x.py", "from gpt2 import train_ra_mla"),
    ],
    few_know_kconfiglib: [("scripts/kconfig.py", "from kconfiglib import Kconfig")],
    layers_point_down: [
        ("gpt2/settings/schema.py", "from gpt2.settings.parse import symbol_types"),
        ("gpt2/model/context.py", "from gpt2.model import block"),
        ("gpt2/model/parts.py", "from gpt2.model.gpt import GPT"),
        ("gpt2/model/gpt.py", "from gpt2.model.reference.formulas import whole_loss"),
    ],
    no_code_from_data: [
        ("x.py", "subprocess.run('ls', shell=True)"),
        ("x.py", "eval(text)"),
        ("x.py", "exec(text)"),
        ("x.py", "os.system('ls')"),
        ("x.py", "import pickle"),
        ("tests/x.py", "import pickle\npickle.loads(data)"),
        ("tests/x.py", "from pickle import load"),
        ("x.py", "torch.load(path)"),
        ("x.py", "torch.load(path, weights_only=False)"),
        ("x.py", "np.load(path, allow_pickle=True)"),
    ],
}
INNOCENT = """
import ast, torch
model.eval()
ast.literal_eval(text)
torch.load(path, weights_only=True)
subprocess.run(["ls"], shell=False)
from lib.kconfig.strict import StrictKconfig
"""


def test_rules_hold_in_the_whole_project() -> None:
    """In one test, as each process that runs some would parse all files."""
    assert len(project()) > 20
    pairs = ((rule, this) for rule in RULES for this in project())
    said = [f"{rule.__name__}: {line}" for rule, this in pairs for line in rule(this)]
    assert said == []


@pytest.mark.parametrize(
    ("rule", "path", "text"),
    [(rule, *offender) for rule, offenders in RULES.items() for offender in offenders],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_rule_sees_an_offender(rule: Rule, path: str, text: str) -> None:
    said = list(rule(source(path, text)))
    assert said
    assert said[0].startswith(f"{path}:{text.count(chr(10)) + 1}: ")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_lets_the_innocent_pass(rule: Rule) -> None:
    assert list(rule(source("gpt2/model/x.py", INNOCENT))) == []


def import_order(sources: tuple[Source, ...]) -> list[str]:
    """Modules in an order of import; graphlib.CycleError where there is none."""
    modules = {this.module for this in sources}
    graph = {
        this.module: {n for n in this.loads() if n in modules and n != this.module}
        for this in sources
    }
    return list(TopologicalSorter(graph).static_order())


def test_imports_have_no_cycle() -> None:
    order = import_order(project())
    assert order.index("gpt2.settings.schema") < order.index("gpt2.plan.steps")
    circle = (source("a.py", "import b"), source("b.py", "from a import x"))
    with pytest.raises(CycleError):
        import_order(circle)


def defined_twice(sources: Iterable[Source]) -> dict[str, list[str]]:
    """Classes of the product that two modules define, with the files.

    The description of a mechanism may be named as the layer that it describes, and what
    stands in for a class in exported code as that class.
    """
    found: dict[str, list[str]] = {}
    for this in sources:
        is_spec = this.path.startswith("gpt2/mechanisms/") and "spec" in this.path
        if is_spec or this.path == "gpt2/infer/plain_settings.py":
            continue
        for node in this.tree.body:
            if this.package in PRODUCT and isinstance(node, ast.ClassDef):
                found.setdefault(node.name, []).append(this.path)
    return {name: paths for name, paths in found.items() if len(paths) > 1}


def test_a_class_name_means_one_thing() -> None:
    # Exported code has a stand-in of that name in the place of gpt2/settings.
    assert set(defined_twice(project())) <= {"Settings"}
    cells = [source(f"{top}/x.py", "class Cell: pass") for top in PRODUCT]
    assert set(defined_twice(cells)) == {"Cell"}


def test_torch_free_folders_load_no_torch() -> None:
    present = sorted(this.module for this in project() if this.is_torch_free)
    assert {"gpt2.plan.jobs", "lib.stats", "scripts.report"} <= set(present)
    checks = [([name], heavy) for name, heavy in LIGHT.items()]
    program = (
        "import importlib, os, sys\n"
        f"for names, heavy in {[*checks, (present, HEAVY)]}:\n"
        "    if os.fork():  # the other modules are not loaded yet\n"
        "        assert os.wait()[1] == 0\n"
        "        continue\n"
        "    for name in names:\n"
        "        importlib.import_module(name)\n"
        "        found = {*heavy} & {*sys.modules}\n"
        "        assert not found, f'{name} loads {found}'\n"
        "    sys.exit()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_tables_name_what_is_there() -> None:
    modules = {this.module for this in project()}
    named = [*TORCH_FREE, MEASURES_TORCH]
    named += [module for layers in LAYERS for layer in layers for module in layer]
    named += [f"{top}.{room}" for top, rooms in ROOMS.items() for room in rooms]
    assert [name for name in named if name not in modules] == []
