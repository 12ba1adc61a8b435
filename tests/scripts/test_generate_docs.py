"""Generated text follows registry, specs and Kconfig, and staleness is seen."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from gpt2.model.gpt import GPT
from gpt2.plan.planning import step_settings
from gpt2.plan.steps import STEPS
from gpt2.settings.configuration import strict_kconfig
from gpt2.settings.parse import settings_from
from lib.kconfig.symbols import prompts
from tests.scratch import ROOT, copy_files, python, write

TOOL = "scripts/generate_docs.py"
PARTS = [TOOL, "lib", "gpt2", "Kconfig", "README.md", "docs"]
FILES = ("README.md", "gpt2/Kconfig.ablation", "docs/mechanisms.md")


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = copy_files(tmp_path_factory.mktemp("docs") / "tree", PARTS)
    assert python(tree, TOOL).returncode == 0
    return tree


@pytest.fixture
def tree(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tree"))


def test_every_step_is_told_with_its_partner(tree: Path) -> None:
    table = (tree / "README.md").read_text()
    menu = (tree / "gpt2/Kconfig.ablation").read_text()
    for step in STEPS.values():
        partner = "-" if step.parent is None else step.parent
        assert f"| {step.id} | {step.title} | {partner} | {step.question} |" in table
        assert re.search(rf"^\s+{step.id}  {re.escape(step.title)}", menu, re.MULTILINE)


def test_stale_lines_and_headings_are_named_and_fixed_once(tree: Path) -> None:
    """A step's title in each file that has it, a menu with another heading, and one
    without."""
    ours = 'comment "Reciprocal attention (steps 5-7, 11, 12, 15, 16, 29, 30)"\n\n'
    heading = re.compile(r'comment ".*\(steps .*\n\n')
    menus = [f"gpt2/mechanisms/{name}/Kconfig" for name in ("ra", "ract")]
    names = sorted({*FILES, *menus})
    current = {name: (tree / name).read_text() for name in names}
    assert current[menus[0]].startswith(ours) and heading.match(current[menus[1]])
    stale = {
        name: text.replace(STEPS[5].title, "something else", 1)
        for name, text in current.items()
    }
    stale[menus[0]] = current[menus[0]].replace(ours, 'comment "RA (steps 5, 6)"\n\n')
    stale[menus[1]] = heading.sub("", current[menus[1]], count=1)
    for name, text in stale.items():
        write(tree, name, text)

    checked = python(tree, TOOL, "--check")
    assert checked.returncode == 1
    for name in names:
        lines = zip(current[name].split("\n"), stale[name].split("\n"), strict=False)
        first = next(n for n, (a, b) in enumerate(lines, 1) if a != b)
        found = [x for x in checked.stdout.splitlines() if x.startswith(f"{name}:")]
        assert len(found) == 1 and found[0].startswith(f"{name}:{first}: ")
        assert (tree / name).read_text() == stale[name], "--check must not write"

    assert python(tree, TOOL).returncode == 0
    assert {name: (tree / name).read_text() for name in names} == current
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


def test_changed_registry_makes_all_stale(tree: Path) -> None:
    registry = tree / "gpt2/plan/steps.py"
    text = registry.read_text()
    assert STEPS[5].title in text
    registry.write_text(text.replace(STEPS[5].title, "a new title", 1))
    done = python(tree, TOOL, "--check")
    assert done.returncode == 1
    assert [line.split(":")[0] for line in done.stdout.splitlines()] == list(FILES)


def test_text_around_the_blocks_is_kept(tree: Path) -> None:
    mine = {name: f"# before\n{(tree / name).read_text()}# after\n" for name in FILES}
    for name, text in mine.items():
        write(tree, name, text)
    assert python(tree, TOOL).returncode == 0
    assert {name: (tree / name).read_text() for name in FILES} == mine


@pytest.mark.parametrize("name", FILES)
def test_lost_marker_is_an_error_that_names_it(tree: Path, name: str) -> None:
    text = (tree / name).read_text()
    ends = r"<!-- /\w+ -->$|\(from gpt2/plan/steps.py, .*\)$"
    write(tree, name, re.sub(ends, "no end", text, flags=re.M))
    done = python(tree, TOOL)
    assert done.returncode == 1
    assert f"{name}: needs one line" in done.stderr


def test_every_setting_is_described_with_what_it_takes(tree: Path) -> None:
    page = (tree / "docs/settings.md").read_text()
    described = set(re.findall(r"^### (\w+)$|^- `(\w+)`", page, re.MULTILINE))
    names = {name for pair in described for name in pair if name}
    kconfig = strict_kconfig().open([])
    assert {n for n, symbol in kconfig.symbols.items() if prompts(symbol)} <= names
    window = page.split("### RA_MLA_RA_WINDOW\n")[1].split("\n### ")[0]
    for part in ("`RA_WINDOW`", "0 to 131072", "default `64`", "has RA", "step 29"):
        assert part in " ".join(window.split()), part
    assert "`GPT2_MODEL_774M`, `MODEL=774M`" in page


def test_changed_sources_make_pages_stale(tree: Path) -> None:
    """Each edit shows in the lines that a new run writes."""
    for source, old, new in (
        ("gpt2/mechanisms/ra/Kconfig", "default 64", "default 32"),
        ("gpt2/mechanisms/ra/spec.py", "high=4.0", "high=5.0"),
        ("gpt2/mechanisms/ra/spec.py", "q_j.k_i) /", "q_j.k_j) /"),
        ("gpt2/plan/readers.py", '"runs on a GPU"', '"runs on a card"'),
    ):
        text = (tree / source).read_text()
        assert text.count(old) == 1, old
        write(tree, source, text.replace(old, new))
    checked = python(tree, TOOL, "--check")
    assert checked.returncode == 1
    stale = [line.split(":")[0] for line in checked.stdout.splitlines()]
    assert stale == ["docs/mechanisms.md", "docs/settings.md"]

    assert python(tree, TOOL).returncode == 0
    mechanisms = (tree / "docs/mechanisms.md").read_text()
    settings = (tree / "docs/settings.md").read_text()
    assert "alpha [i-j <= W] q_j.k_j) / sqrt(D)" in mechanisms
    assert "whole context) | `32` | 0 to 131072 |" in mechanisms
    assert "-4 to 5" in mechanisms and "-4 to 5" in settings
    assert "Read only where a job runs on a card." in settings


def test_costs_are_those_of_the_model_that_is_built() -> None:
    """Parameters on the page are those of torch's modules."""
    page = (ROOT / "docs/mechanisms.md").read_text()
    counts = {
        int(step): int(number.replace(",", ""))
        for step, number in re.findall(r"^\| (\d+) \| .*? \| ([\d,]+) \(", page, re.M)
    }
    base = settings_from(strict_kconfig().load([]))
    for step in (8, 21, 28):
        with torch.device("meta"):
            model = GPT(step_settings(base, step))
        assert counts[step] == sum(p.numel() for p in model.parameters())
