"""Who may import whom, and which dangerous calls may stand nowhere.

Read from the sources by ast; what start-up really loads is seen in a subprocess. Each
rule is tried on a planted offender first, so that none can fall asleep.
"""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from tests.scratch import ROOT, project_files

# Planning, listing and reporting start without torch, also indirectly.
TORCH_FREE = {
    *("lib.kconfig", "lib.kconfig_tree", "lib.kconfig_symbols"),
    *("lib.dotconfig", "lib.generated"),
    *(
        "lib.rundir",
        "lib.provenance",
        "lib.scheduler",
        "lib.cells",
        "lib.process",
        "lib.progress",
    ),
    *("lib.runlog", "lib.stats", "lib.house_rules", "lib.untrusted", "lib.spelling"),
    *("lib.gpu_monitor", "lib.gpu_sources"),
    *("gpt2.schema", "gpt2.rules", "gpt2.reading"),
    *(
        "gpt2.mechanism_specs",
        "gpt2.ablation",
        "gpt2.plan",
        "gpt2.budget",
        "gpt2.matrix",
    ),
    *("gpt2.memory", "gpt2.folder"),
    *(
        "gpt2.listing",
        "gpt2.report.results",
        "gpt2.report.summary",
        "gpt2.report.verdicts",
        "gpt2.corpora.tokenfiles",
    ),
    *("gpt2.audit.finding", "gpt2.audit.evidence", "gpt2.audit.records"),
    *("gpt2.audit.times", "gpt2.audit.costs", "gpt2.audit.tables", "gpt2.audit.stamp"),
    *("gpt2.audit.choice", "gpt2.audit.options", "gpt2.audit.show"),
    *("gpt2.audit.corpus", "scripts.audit"),
    *("gpt2.proofs.stage", "gpt2.estimate", "gpt2.lengths", "gpt2.configuration"),
    *("lib.kernel", "lib.slots", "lib.preload", "scripts.print_sbatch"),
    *("gpt2.sharing", "gpt2.report.estimates"),
    *("lib.attendant", "lib.ending", "lib.engine_ray", "lib.extras"),
    "lib.retype",
    *("scripts.kconfig", "scripts.run_test_matrix", "scripts.report"),
}
# Lower layers first: a module imports from its own layer or from those before it.
LAYERS = (
    (
        ("gpt2.schema",),
        ("gpt2.mechanism_specs",),
        ("gpt2.rules", "gpt2.ablation"),
        ("gpt2.reading",),
        ("gpt2.plan",),
    ),
    (
        ("gpt2.context", "gpt2.gating", "gpt2.reciprocal"),
        ("gpt2.attention", "gpt2.mla", "gpt2.mlp"),
        ("gpt2.block",),
        ("gpt2.model",),
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

    def imports(self) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of every import, those inside functions included."""
        yield from imported_by(self.tree, self.module)

    def loads(self) -> Iterator[str]:
        """Names imported together with the module: none of functions or type checks."""
        for statement in self.tree.body:
            if not isinstance(statement, (ast.FunctionDef, ast.ClassDef, ast.If)):
                yield from (name for _, name in imported_by(statement, self.module))


def imported_by(node: ast.AST, module: str) -> Iterator[tuple[int, str]]:
    for part in ast.walk(node):
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
    return tuple(source(n, (ROOT / n).read_text(encoding="utf-8")) for n in names)


def within(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def importing(this: Source, *modules: str) -> Iterator[str]:
    """`path:line: imports NAME` for every import of one of the modules."""
    for line, name in this.imports():
        if any(within(name, module) for module in modules):
            yield f"{this.path}:{line}: imports {name}"


def lib_knows_no_gpt2(this: Source) -> Iterator[str]:
    if this.package == "lib":
        yield from importing(this, "gpt2", "scripts", "tests")


def product_knows_no_tests(this: Source) -> Iterator[str]:
    if this.package in ("gpt2", "scripts"):
        yield from importing(this, "tests")


def torch_free_half(this: Source) -> Iterator[str]:
    if this.module in TORCH_FREE:
        yield from importing(this, "torch")


def ends_are_not_imported(this: Source) -> Iterator[str]:
    yield from importing(this, "config", "scripts", "gpt2.train_ra_mla", "train_ra_mla")


def few_know_kconfiglib(this: Source) -> Iterator[str]:
    doors = ("lib.kconfig_tree", "lib.kconfig_symbols")
    if this.package != "tests" and this.module not in doors:
        yield from importing(this, "kconfiglib")


def layers_point_down(this: Source) -> Iterator[str]:
    for layers in LAYERS:
        rank = {module: n for n, layer in enumerate(layers) for module in layer}
        own = rank.get(this.module)
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
    for node in ast.walk(this.tree):
        if isinstance(node, ast.Call):
            said = danger_of(node)
            if said:
                yield f"{this.path}:{node.lineno}: {said}"


def danger_of(call: ast.Call) -> str | None:
    name = ast.unparse(call.func)
    given = {word.arg: ast.unparse(word.value) for word in call.keywords}
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
        ("lib/x.py", "import gpt2.plan"),
        ("lib/x.py", "from gpt2 import plan"),
        ("lib/x.py", "def f():\n    from gpt2.plan import Job"),
        ("lib/optim/x.py", "from ...gpt2 import plan"),
    ],
    product_knows_no_tests: [("gpt2/x.py", "from tests import scratch")],
    torch_free_half: [
        ("gpt2/schema.py", "import torch"),
        ("lib/stats.py", "def f():\n    from torch.nn import functional"),
    ],
    ends_are_not_imported: [
        ("gpt2/x.py", "import config"),
        ("scripts/x.py", "from scripts.check import main"),
        ("gpt2/x.py", "from .train_ra_mla import main"),
        ("tests/x.py", "from gpt2 import train_ra_mla"),
    ],
    few_know_kconfiglib: [("scripts/kconfig.py", "from kconfiglib import Kconfig")],
    layers_point_down: [
        ("gpt2/schema.py", "from gpt2.ablation import STEPS"),
        ("gpt2/context.py", "from gpt2 import block"),
        ("gpt2/mla.py", "from gpt2.model import GPT"),
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
from lib.kconfig import load_strict
"""


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds_in_the_whole_project(rule: Rule) -> None:
    assert len(project()) > 20
    assert [said for this in project() for said in rule(this)] == []


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
    assert list(rule(source("gpt2/model.py", INNOCENT))) == []


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
    assert order.index("gpt2.schema") < order.index("gpt2.ablation")
    circle = (source("a.py", "import b"), source("b.py", "from a import x"))
    with pytest.raises(CycleError):
        import_order(circle)


def test_torch_free_half_loads_no_torch() -> None:
    present = sorted(TORCH_FREE & {this.module for this in project()})
    assert {"gpt2.plan", "lib.rundir", "scripts.run_test_matrix"} <= set(present)
    program = (
        "import importlib, sys\n"
        f"for name in {present}:\n"
        "    importlib.import_module(name)\n"
        "    heavy = {'torch', 'datasets', 'matplotlib', 'wandb'} & set(sys.modules)\n"
        "    assert not heavy, f'{name} loads {heavy}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
