"""The git hooks, installed in a scratch repository and run by git itself."""

import shutil
from pathlib import Path
from subprocess import CompletedProcess

import pytest

from tests.scratch import commit_all, copy_tree, git, python, run, write

INSTALLER = "scripts/install_hooks.py"
GOOD = "gpt2: fix it\n\nThe reason is given here.\n"

# A small tree in which every quick check has something to do and passes: the real
# tools, and stand-ins for the two that need the whole project.
PARTS = [
    *(
        "pyproject.toml",
        "lib/__init__.py",
        "lib/atomic_files.py",
        "lib/files.py",
        "lib/house_rules.py",
        "lib/output.py",
        "lib/suggestions.py",
    ),
    *(f"scripts/{n}.py" for n in ("__init__", "check", "check_commit", "check_words")),
    *(INSTALLER, "scripts/hooks", "scripts/fix_whitespace_issues.py"),
    "gpt2/__init__.py",
]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tree = copy_tree(tmp_path_factory.mktemp("hooks") / "tree", PARTS)
    for stand_in in ("scripts/check_defconfigs.py", "scripts/generate_docs.py"):
        write(tree, stand_in, "")
    write(tree, ".gitignore", ".ruff_cache/\n__pycache__/\n")
    commit_all(tree, "scripts: stand in for two checks\n\nThey need the whole tree.\n")
    done = python(tree, INSTALLER, "install")
    assert done.returncode == 0, done.stderr
    return tree


@pytest.fixture
def tree(pristine: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pristine, tmp_path / "tree"))


def commit(tree: Path, *arguments: str) -> CompletedProcess[str]:
    return run(tree, "git", "commit", *arguments)


def test_bad_message_is_refused(tree: Path) -> None:
    write(tree, "gpt2/new.py", "X = 1\n")
    git(tree, "add", "gpt2/new.py")
    done = commit(tree, "--message", "fix it")
    assert done.returncode != 0
    assert "COMMIT_EDITMSG:1: the subject must read" in done.stdout + done.stderr
    assert "gpt2/new.py" not in git(tree, "ls-tree", "-r", "--name-only", "HEAD")


def test_good_commit_from_an_editor_passes_both_hooks(tree: Path) -> None:
    write(tree, "gpt2/new.py", "X = 1\n")
    git(tree, "add", "gpt2/new.py")
    editor = write(tree.parent, "editor.sh", '#!/bin/sh\nprintf "$TEXT" >"$1.new"\n')
    with editor.open("a") as script:
        script.write('cat "$1" >>"$1.new"\nmv "$1.new" "$1"\n')
    editor.chmod(0o755)
    text = GOOD.replace("\n", "\\n")
    done = run(tree, "git", "commit", "--verbose", GIT_EDITOR=str(editor), TEXT=text)
    assert done.returncode == 0, done.stdout + done.stderr
    assert git(tree, "log", "-1", "--format=%s") == "gpt2: fix it\n"


# case: (file, content, words that name the fault)
FAULTS = {
    "unformatted": ("gpt2/new.py", "X = 1\ny  = 2\n", "gpt2/new.py:2: not formatted"),
    "blank": ("notes.md", "one\ntwo \n", "notes.md:2: trailing blank"),
    "assignment": ("defconfigs/new", "CONFIG_X = y\n", "defconfigs/new:1: blank"),
    "word": ("notes.md", "a compre" + "hensive text\n", "notes.md:1: banned word"),
    "lint": ("gpt2/new.py", "import os\n", "gpt2/new.py:1:8: F401"),
}


@pytest.mark.parametrize("case", FAULTS)
def test_staged_fault_is_refused_with_file_and_line(tree: Path, case: str) -> None:
    name, content, words = FAULTS[case]
    write(tree, name, content)
    git(tree, "add", name)
    done = commit(tree, "--message", GOOD)
    assert done.returncode != 0
    assert words in done.stdout + done.stderr
    assert git(tree, "diff", "--cached", "--name-only") == f"{name}\n"


def test_what_is_staged_counts_not_what_lies_in_the_tree(tree: Path) -> None:
    write(tree, "notes.md", "bad \n")
    git(tree, "add", "notes.md")
    write(tree, "notes.md", "good\n")
    assert "notes.md:1" in commit(tree, "--message", GOOD).stderr
    git(tree, "add", "notes.md")
    write(tree, "notes.md", "bad \n")
    done = commit(tree, "--message", GOOD)
    assert done.returncode == 0, done.stdout + done.stderr
    assert (tree / "notes.md").read_text() == "bad \n"


def test_commit_of_named_files_checks_those_alone(tree: Path) -> None:
    write(tree, "staged.md", "bad \n")
    write(tree, "named.md", "good\n")
    git(tree, "add", "staged.md", "named.md")
    done = commit(tree, "--message", GOOD, "--", "named.md")
    assert done.returncode == 0, done.stdout + done.stderr
    write(tree, "named.md", "bad \n")
    done = commit(tree, "--message", GOOD, "--", "named.md")
    assert done.returncode != 0
    assert "named.md:1: trailing blank" in done.stdout + done.stderr


def test_merge_commit_needs_no_body(tree: Path) -> None:
    git(tree, "switch", "--quiet", "--create", "side")
    git(tree, "commit", "--quiet", "--allow-empty", "--message", GOOD)
    git(tree, "switch", "--quiet", "main")
    done = run(tree, "git", "merge", "--no-ff", "--no-edit", "side")
    assert done.returncode == 0, done.stdout + done.stderr
    assert git(tree, "log", "-1", "--format=%s") == "Merge branch 'side'\n"


def test_linked_worktree_is_checked_too(tree: Path) -> None:
    linked = tree.parent / "linked"
    git(tree, "worktree", "add", "--quiet", "-b", "other", linked)
    write(linked, "notes.md", "bad \n")
    git(linked, "add", "notes.md")
    done = commit(linked, "--message", GOOD)
    assert done.returncode != 0
    assert "notes.md:1: trailing blank" in done.stdout + done.stderr


def hooks_path(tree: Path) -> str:
    return run(tree, "git", "config", "core.hooksPath").stdout.strip()


def test_install_twice_then_remove_leaves_nothing(tree: Path) -> None:
    assert python(tree, INSTALLER, "install").returncode == 0
    assert hooks_path(tree) == "scripts/hooks"
    for _ in range(2):
        assert python(tree, INSTALLER, "remove").returncode == 0
        assert hooks_path(tree) == ""
    write(tree, "notes.md", "bad \n")
    git(tree, "add", "notes.md")
    assert commit(tree, "--message", "anything").returncode == 0


def test_hooks_that_git_would_stop_running_are_refused(tree: Path) -> None:
    assert python(tree, INSTALLER, "remove").returncode == 0
    foreign = write(tree, ".git/hooks/pre-commit", "#!/bin/sh\nexit 0\n")
    done = python(tree, INSTALLER, "install")
    assert done.returncode == 1 and hooks_path(tree) == ""
    assert f"{foreign.parent} (pre-commit)" in done.stderr
    assert foreign.read_text() == "#!/bin/sh\nexit 0\n"


def test_the_hooks_of_an_outer_repository_stay_as_they_are(tree: Path) -> None:
    outer = tree.parent
    shutil.rmtree(tree / ".git")
    git(outer, "init", "--quiet")
    done = python(tree, INSTALLER, "install")
    assert done.returncode == 1 and hooks_path(outer) == ""
    assert f"{tree} is a folder of the repository {outer}" in done.stderr


def test_hooks_path_shared_with_other_repositories_is_refused(tree: Path) -> None:
    shared = tree.parent / "shared"
    git(tree, "config", "core.hooksPath", shared)
    for action, status in (("install", 1), ("remove", 0)):
        done = python(tree, INSTALLER, action)
        assert done.returncode == status
        assert hooks_path(tree) == str(shared)
    assert not shared.exists()


def test_branch_without_the_checks_can_still_commit(tree: Path) -> None:
    git(tree, "rm", "--quiet", "-r", "scripts")
    done = commit(tree, "--message", "anything")
    assert done.returncode == 0, done.stderr
