"""`make check` and its stages, each with a planted fault in a scratch copy."""

import os
import sys
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.scratch import (
    ROOT,
    copy_tree,
    git,
    make,
    project_files,
    python,
    run,
    write,
    write_all,
)

CHECK = "scripts/check.py"
# All that the quick checks need: everything but the torch half, the tests and docs.
PARTS = [
    "Kconfig",
    "pyproject.toml",
    "README.md",
    "docs",
    "defconfigs",
    "scripts",
    "lib",
    "gpt2",
]
# Few files, for what runs black, ruff or mypy on all of them; with what these import.
FEW = ["Makefile", "pyproject.toml", "README.md", ".gitignore", "scripts/setup_env.py"]
FEW += ["scripts/constraints.txt", "scripts/fix_whitespace_issues.py", CHECK]
FEW += ["scripts/generate_docs.py", "docs", "Kconfig", "gpt2/*Kconfig*"]
FEW += ["lib/optim/optimizers", "lib/pruning/methods"]  # found by their folders
IMPORTED = """
import sys
sys.path[:0] = [".", "scripts"]  # a script replaces the first by the root
import check, generate_docs
generate_docs.defaults()  # Kconfig's modules are imported where they are needed
print(*(m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", "")))
"""


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("check") / "tree", PARTS)


@pytest.fixture
def tree(pristine: Path, tmp_path: Path) -> Path:
    git(tmp_path, "clone", "--quiet", pristine, "tree")
    return tmp_path / "tree"


@pytest.fixture(scope="module")
def imported() -> list[str]:
    """Our own modules that the few scripts import, as paths below the root."""
    done = python(ROOT, "-c", IMPORTED)
    assert done.returncode == 0, done.stderr
    paths = map(Path, done.stdout.split())
    ours = [path.relative_to(ROOT) for path in paths if path.is_relative_to(ROOT)]
    return [str(path) for path in ours if path.parts[0] in ("lib", "gpt2")]


@pytest.fixture
def few(tmp_path: Path, imported: list[str]) -> Path:
    return copy_tree(tmp_path, FEW + imported)


def check(tree: Path, *arguments: str) -> CompletedProcess[str]:
    return python(tree, CHECK, *arguments)


def a_preset(tree: Path) -> str:
    return sorted((tree / "defconfigs").iterdir())[0].relative_to(tree).as_posix()


def append(tree: Path, name: str, text: str) -> int:
    """Append to a file; the number of the last line that results."""
    path = tree / name
    path.write_text(path.read_text() + text)
    return path.read_text().count("\n")


def refused(done: CompletedProcess[str], stage: str, words: str) -> None:
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert f"check: {stage}: failed. To fix: " in said
    assert words in said


def test_trailing_blank(tree: Path) -> None:
    line = append(tree, "README.md", "blank \n")
    refused(check(tree, "--only", "whitespace"), "whitespace", f"README.md:{line}: ")


def test_crlf(tree: Path) -> None:
    line = append(tree, "README.md", "text\r\n")
    done = check(tree, "--only", "whitespace")
    refused(done, "whitespace", f"README.md:{line}: CRLF")


def test_spaced_assignment_is_seen_twice_also_without_kconfig(tree: Path) -> None:
    preset = a_preset(tree)
    line = append(tree, preset, "CONFIG_GPT2_MAX_ITERS = 8\n")
    done = check(tree, "--only", "whitespace")
    refused(done, "whitespace", f"{preset}:{line}: ")
    refused(check(tree, "--only", "defconfigs"), "defconfigs", f"{preset}:{line}")


def test_unknown_symbol_in_a_preset(tree: Path) -> None:
    preset = a_preset(tree)
    line = append(tree, preset, "CONFIG_GPT2_MAX_ITRES=8\n")
    done = check(tree, "--only", "defconfigs")
    refused(done, "defconfigs", f"{preset}:{line}")


def test_preset_that_is_not_minimal(tree: Path) -> None:
    line = append(tree, "defconfigs/gpt2-vanilla-baseline", "CONFIG_GPT2_BIAS=y\n")
    done = check(tree, "--only", "defconfigs")
    refused(done, "defconfigs", f"defconfigs/gpt2-vanilla-baseline:{line}: not as")


def test_preset_without_a_word_about_itself(tree: Path) -> None:
    write(tree, "defconfigs/new", "CONFIG_GPT2_MAX_ITERS=8000\n")
    done = check(tree, "--only", "defconfigs")
    refused(done, "defconfigs", "defconfigs/new:1: must begin with a comment")


def test_preset_that_makes_no_sense(tree: Path) -> None:
    text = '# Final above peak learning rate.\nCONFIG_GPT2_MIN_LR="1"\n'
    write(tree, "defconfigs/new", text)
    done = check(tree, "--only", "defconfigs")
    refused(done, "defconfigs", "defconfigs/new: GPT2_MIN_LR=1")


def test_every_bad_preset_is_named(tree: Path) -> None:
    for name in ("one", "two"):
        write(tree, f"defconfigs/{name}", f"# {name}\nCONFIG_{name.upper()}=y\n")
    done = check(tree, "--only", "defconfigs")
    refused(done, "defconfigs", "defconfigs/one:2")
    refused(done, "defconfigs", "defconfigs/two:2")


def test_unformatted_python(few: Path) -> None:
    line = append(few, "lib/__init__.py", "\nX = 1\ny  = 2\n")
    for files in ([], ["lib/__init__.py"]):
        done = check(few, "--only", "format", *files)
        refused(done, "format", f"\nlib/__init__.py:{line}: not formatted")


def test_python_that_does_not_parse(tree: Path) -> None:
    write(tree, "lib/new.py", "def f(:\n")
    refused(check(tree, "--only", "format", "lib/new.py"), "format", "lib/new.py:1:")


def test_stale_table(tree: Path) -> None:
    readme = tree / "README.md"
    lines = readme.read_text().split("\n")
    planted = next(n for n, line in enumerate(lines) if line.startswith("| 5 |"))
    write(tree, "README.md", "\n".join([*lines[:planted], *lines[planted + 1 :]]))
    done = check(tree, "--only", "generated text")
    refused(done, "generated text", f"README.md:{planted + 1}: ")


BANNED = "compre" + "hensive"


@pytest.mark.parametrize(
    ("name", "text", "line"),
    [
        ("docs/new.md", f"# New\n\nA {BANNED} guide.\n", 3),
        ("lib/new.py", f'"""One.\n\n{BANNED.title()} indeed.\n"""\n', 3),
        ("lib/new.py", f'def f():\n    """A {BANNED} one."""\n', 2),
        ("gpt2/Kconfig.new", f"config A\n\thelp\n\t  {BANNED}\n", 3),
        ("defconfigs/new", f"# A {BANNED} preset.\n", 1),
    ],
)
def test_banned_word(tree: Path, name: str, text: str, line: int) -> None:
    write(tree, name, text)
    git(tree, "add", name)
    done = check(tree, "--only", "words")
    refused(done, "words", f"{name}:{line}: banned word")


def test_banned_word_outside_of_docs_is_code(tree: Path) -> None:
    write(tree, "lib/new.py", f'"""One."""\n\nWORD = "{BANNED}"  # {BANNED}\n')
    git(tree, "add", "lib/new.py")
    assert check(tree, "--only", "words").returncode == 0


def test_lint(tree: Path) -> None:
    write(tree, "lib/new.py", '"""New."""\n\nimport os\n')
    refused(check(tree, "--only", "lint"), "lint", "lib/new.py:3:8: F401")


def test_shell_and_eval_are_lint(tree: Path) -> None:
    calls = 'subprocess.run("ls", shell=True)\neval("1")\n'
    write(tree, "lib/new.py", f'"""New."""\n\nimport subprocess\n\n{calls}')
    done = check(tree, "--only", "lint", "lib/new.py")
    refused(done, "lint", "lib/new.py:5:")
    assert "lib/new.py:6:1: S307" in done.stdout


def test_types(tmp_path: Path) -> None:
    tree = copy_tree(
        tmp_path, ["pyproject.toml", CHECK, "lib/house_rules.py", "lib/output.py"]
    )
    for package in ("gpt2", "tests"):
        write(tree, f"{package}/__init__.py", "")
    write(tree, "lib/__init__.py", "def f() -> int:\n    return 'one'\n")
    done = check(tree, "--only", "types")
    refused(done, "types", "lib/__init__.py:2: error: ")
    write(tree, "lib/__init__.py", "def f(x):\n    return x\n")
    done = check(tree, "--only", "types")
    refused(done, "types", "lib/__init__.py:1: error: ")


def test_failing_test(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path, ["pyproject.toml", CHECK, "lib"])
    write(tree, "tests/test_new.py", "def test_new():\n    assert 1 == 2\n")
    # Each of four processes would import what this test has no use for.
    spared = " ".join(f"-p no:{name}" for name in ("hypothesispytest", "anyio"))
    words = (sys.executable, CHECK, "--only", "fast tests")
    done = run(tree, *words, PYTEST_ADDOPTS=spared)
    refused(done, "fast tests", "tests/test_new.py:2: ")


def test_stops_at_the_first_fault_and_make_hands_its_status_on(few: Path) -> None:
    line = append(few, "README.md", "blank \n")
    write(few, "lib/new.py", '"""New."""\n\nimport os\n')
    done = make(few, "check")
    refused(done, "whitespace", f"README.md:{line}: ")
    assert "check: format: " in done.stdout, "what comes before it has run"
    assert "check: words" not in done.stdout
    assert "F401" not in done.stdout


def test_make_format_fixes_what_can_be_fixed(few: Path) -> None:
    readme = (few / "README.md").read_text()
    stale = readme.replace("| 5 | ", "| 5 | not ", 1)
    write(few, "README.md", stale + "blank \r\n")
    write(few, "lib/new.py", '"""New."""\nimport sys\nimport os\nprint(sys,os)\n')
    git(few, "add", "--all")
    done = make(few, "format")
    assert done.returncode == 0, done.stdout + done.stderr
    stages = ("format", "whitespace", "generated text", "lint")
    done = check(few, *[f"--only={name}" for name in stages])
    assert done.returncode == 0, done.stdout + done.stderr
    assert (few / "README.md").read_text() == readme + "blank\n"
    fixed = '"""New."""\n\nimport os\nimport sys\n\nprint(sys, os)\n'
    assert (few / "lib/new.py").read_text() == fixed


NOT_MENDED = """\
\"\"\"New.\"\"\"

import sys

sys.path[0] = "."
import os  # noqa: E402, F401

exec(input())  # noqa: S102
"""
UGLY = "CONFIG_X  =  'y'\nimport os\n"


def test_make_format_leaves_excused_lines_and_what_runs_wrote(few: Path) -> None:
    write(few, "lib/new.py", NOT_MENDED)
    results = ("mine/matrix.json", "mine/config.py", "mine/step00-baseline/notes.py")
    write_all(few, [(name, UGLY) for name in (*results, "config.py")])
    git(few, "add", "mine/matrix.json", "mine/config.py")
    done = make(few, "format")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (few / "lib/new.py").read_text() == NOT_MENDED
    assert all((few / name).read_text() == UGLY for name in (*results, "config.py"))
    for words in ([], list(results[1:])):
        done = check(few, "--only=format", "--only=lint", *words)
        assert done.returncode == 0, done.stdout + done.stderr


def test_make_format_has_nothing_to_fix_in_this_tree() -> None:
    python_files = [name for name in project_files() if name.endswith(".py")]
    done = python(ROOT, "-m", "ruff", "check", "--fix-only", "--diff", *python_files)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


def test_make_format_says_what_it_cannot_fix_and_fails(few: Path) -> None:
    write(few, "defconfigs/new", "# New.\nCONFIG_X = y\n")
    write(few, "README.md", (few / "README.md").read_text() + "blank \n")
    git(few, "add", "--all")
    done = make(few, "format")
    assert done.returncode != 0
    assert "defconfigs/new:2: " in done.stdout
    assert (few / "defconfigs/new").read_text() == "# New.\nCONFIG_X = y\n"
    assert not (few / "README.md").read_text().endswith("blank \n"), "the rest is done"


def test_nothing_swallows_a_failure() -> None:
    """No recipe and no script of the project ends in `|| true` or a leading dash."""
    recipes = (ROOT / "Makefile").read_text().split("\n")
    scripts = [path for path in (ROOT / ".ci").glob("*") if os.access(path, os.X_OK)]
    lines = recipes + [
        line for path in scripts for line in path.read_text().split("\n")
    ]
    assert [line for line in lines if "|| true" in line or "|| :" in line] == []
    commands = [
        line
        for line, before in zip(recipes[1:], recipes, strict=False)
        if not before.endswith("\\")
    ]
    assert [line for line in commands if line.startswith(("\t-", "\t@-"))] == []
