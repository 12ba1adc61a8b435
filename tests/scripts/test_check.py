"""`make check` and its stages, each with a planted fault in a scratch copy."""

import os
import shutil
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
# What the checks read and run, with what that imports; few files, as black, ruff and
# mypy look at all of them.
PARTS = ["Makefile", "pyproject.toml", "README.md", ".gitignore", "docs", "defconfigs"]
PARTS += ["Kconfig", "gpt2/*Kconfig*", "lib/optim/optimizers", "lib/pruning/methods"]
PARTS += ["scripts/setup_env.py", "scripts/constraints.txt", "lib/pip.py", CHECK]
TOOLS = ("check_defconfigs", "check_words", "fix_whitespace_issues", "generate_docs")
IMPORTED = f"""
import sys
sys.path[:0] = [".", "scripts"]
import check, {", ".join(TOOLS)}
generate_docs.defaults()  # Kconfig's modules are imported where they are needed
print(*(m.__file__ for m in list(sys.modules.values()) if getattr(m, "__file__", "")))
"""
BANNED = "compre" + "hensive"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    done = python(ROOT, "-c", IMPORTED)
    assert done.returncode == 0, done.stderr
    paths = map(Path, done.stdout.split())
    ours = [path.relative_to(ROOT) for path in paths if path.is_relative_to(ROOT)]
    imported = [str(x) for x in ours if x.parts[0] in ("lib", "gpt2", "scripts")]
    return copy_tree(tmp_path_factory.mktemp("check") / "tree", PARTS + imported)


@pytest.fixture
def tree(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tree"))


def check(tree: Path, *arguments: str) -> CompletedProcess[str]:
    return python(tree, CHECK, *arguments)


def append(tree: Path, name: str, text: str) -> int:
    """Write to the end of a file; the number of the last line that results."""
    path = tree / name
    path.parent.mkdir(exist_ok=True)
    with path.open("a") as file:
        file.write(text)
    return path.read_text().count("\n")


def refused(done: CompletedProcess[str], stage: str, *words: str) -> None:
    said = done.stdout + done.stderr
    assert done.returncode != 0, said
    assert f"check: {stage}: failed. To fix: " in said
    assert [text for text in words if text not in said] == [], said


# Stage, and the faults of it: a file, what is written to its end, and what is reported
# with the number of the last line in the place of N. None hides another.
SPACED = "CONFIG_GPT2_MAX_ITERS = 8\n"
FAULTS = {
    "whitespace": [
        ("README.md", "blank \n", "README.md:N: trailing blank"),
        ("CONTRIBUTING.md", "text\r\n", "CONTRIBUTING.md:N: CRLF"),
        ("defconfigs/gpt2-quickstart", SPACED, "defconfigs/gpt2-quickstart:N: "),
    ],
    "defconfigs": [
        ("defconfigs/gpt2-quickstart", SPACED, "defconfigs/gpt2-quickstart:N"),
        ("defconfigs/one", "# One\nCONFIG_GPT2_MAX_ITRES=8\n", "defconfigs/one:N"),
        ("defconfigs/two", "# Two\nCONFIG_GPT2_BIAS=y\n", "defconfigs/two:N: not as"),
        (
            "defconfigs/mute",
            "CONFIG_GPT2_MAX_ITERS=8000\n",
            "defconfigs/mute:1: must begin with a comment",
        ),
        (
            "defconfigs/rates",
            '# Final above peak learning rate.\nCONFIG_GPT2_MIN_LR="1"\n',
            "defconfigs/rates: GPT2_MIN_LR=1",
        ),
    ],
    "words": [
        ("docs/new.md", f"# New\n\nA {BANNED} guide.\n", "docs/new.md:N: banned word"),
        (
            "lib/one.py",
            f'"""One.\n\n{BANNED.title()} indeed.\n"""\n',
            "lib/one.py:3: banned word",
        ),
        (
            "lib/two.py",
            f'def f():\n    """A {BANNED} one."""\n',
            "lib/two.py:N: banned word",
        ),
        (
            "gpt2/Kconfig.new",
            f"config A\n\thelp\n\t  {BANNED}\n",
            "gpt2/Kconfig.new:N: banned word",
        ),
        (
            "defconfigs/new",
            f"# A {BANNED} preset.\n",
            "defconfigs/new:1: banned word",
        ),
    ],
    "lint": [
        ("lib/unused.py", '"""New."""\n\nimport os\n', "lib/unused.py:3:8: F401"),
        (
            "lib/shell.py",
            'import subprocess\n\nsubprocess.run("ls", shell=True)\n',
            "lib/shell.py:3:",
        ),
        ("lib/run.py", 'eval("1")\n', "lib/run.py:1:1: S307"),
    ],
}


@pytest.mark.parametrize("stage", FAULTS)
def test_every_fault_of_a_stage_is_named(tree: Path, stage: str) -> None:
    named = []
    for name, text, words in FAULTS[stage]:
        named.append(words.replace(":N", f":{append(tree, name, text)}"))
    code = f'"""One."""\n\nWORD = "{BANNED}"  # {BANNED}\n'
    write(tree, "lib/code.py", code)  # which a banned word may be in
    git(tree, "add", "--all")
    done = check(tree, "--only", stage)
    refused(done, stage, *named)
    assert "lib/code.py" not in done.stdout


def test_stale_table(tree: Path) -> None:
    readme = tree / "README.md"
    lines = readme.read_text().split("\n")
    planted = next(n for n, line in enumerate(lines) if line.startswith("| 5 |"))
    write(tree, "README.md", "\n".join([*lines[:planted], *lines[planted + 1 :]]))
    done = check(tree, "--only", "generated text")
    refused(done, "generated text", f"README.md:{planted + 1}: ")


def test_types(tmp_path: Path) -> None:
    parts = ["pyproject.toml", CHECK, "lib/house_rules.py", "lib/output.py"]
    tree = copy_tree(tmp_path, parts)
    for package in ("gpt2", "tests"):
        write(tree, f"{package}/__init__.py", "")
    write(tree, "lib/__init__.py", "def f() -> int:\n    return 'one'\n")
    write(tree, "lib/untyped.py", "def f(x):\n    return x\n")
    places = ("lib/__init__.py:2: error: ", "lib/untyped.py:1: error: ")
    refused(check(tree, "--only", "types"), "types", *places)


def test_failing_test(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path, ["pyproject.toml", CHECK, "lib"])
    write(tree, "tests/test_new.py", "def test_new():\n    assert 1 == 2\n")
    # Each of four processes would import what this test has no use for.
    spared = " ".join(f"-p no:{name}" for name in ("hypothesispytest", "anyio"))
    words = (sys.executable, CHECK, "--only", "fast tests")
    done = run(tree, *words, PYTEST_ADDOPTS=spared)
    refused(done, "fast tests", "tests/test_new.py:2: ")


def test_stops_at_the_first_fault_and_make_hands_its_status_on(tree: Path) -> None:
    append(tree, "README.md", "blank \n")
    write(tree, "lib/ugly.py", "import os\n\nX = 1\ny  = 2\n")
    write(tree, "lib/broken.py", "def f(:\n")
    done = make(tree, "check")
    faults = "\nlib/ugly.py:4: not formatted", "lib/broken.py:1:"
    refused(done, "format", *faults)
    assert "check: whitespace" not in done.stdout and "F401" not in done.stdout


NOT_FIXED = """\
\"\"\"New.\"\"\"

import sys

sys.path[0] = "."
import os  # noqa: E402, F401

exec(input())  # noqa: S102
"""
UGLY = "CONFIG_X  =  'y'\nimport os\n"


def test_make_format_fixes_what_can_be_fixed_and_nothing_else(tree: Path) -> None:
    """It leaves excused lines and what runs wrote, and fails if something is left."""
    readme = (tree / "README.md").read_text()
    stale = readme.replace("| 5 | ", "| 5 | not ", 1)
    write(tree, "README.md", stale + "blank \r\n")
    write(tree, "lib/new.py", '"""New."""\nimport sys\nimport os\nprint(sys,os)\n')
    write(tree, "lib/excused.py", NOT_FIXED)
    write(tree, "defconfigs/new", "# New.\nCONFIG_X = y\n")
    results = ("mine/matrix.json", "mine/config.py", "mine/step00-baseline/notes.py")
    write_all(tree, [(name, UGLY) for name in (*results, "config.py")])
    git(tree, "add", "--all")
    git(tree, "add", "mine/matrix.json", "mine/config.py")

    done = make(tree, "format")
    assert done.returncode != 0 and "defconfigs/new:2: " in done.stdout
    assert (tree / "defconfigs/new").read_text() == "# New.\nCONFIG_X = y\n"
    assert (tree / "README.md").read_text() == readme + "blank\n", "the rest is done"
    fixed = '"""New."""\n\nimport os\nimport sys\n\nprint(sys, os)\n'
    assert (tree / "lib/new.py").read_text() == fixed
    assert (tree / "lib/excused.py").read_text() == NOT_FIXED
    assert all((tree / name).read_text() == UGLY for name in (*results, "config.py"))

    (tree / "defconfigs/new").unlink()
    done = make(tree, "format")
    assert done.returncode == 0, done.stdout + done.stderr
    stages = [f"--only={name}" for name in ("format", "whitespace", "lint")]
    for words in ([], list(results[1:])):
        done = check(tree, *stages, *words)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "check: format, whitespace, lint: all passed" in done.stdout


def test_make_format_has_nothing_to_fix_in_this_tree() -> None:
    python_files = [name for name in project_files() if name.endswith(".py")]
    done = python(ROOT, "-m", "ruff", "check", "--fix-only", "--diff", *python_files)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


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
