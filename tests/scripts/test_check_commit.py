"""Commit messages, good and bad, in a scratch repository."""

import contextlib
import io
import re
import subprocess
from pathlib import Path

import pytest

from scripts import check_commit
from tests.scratch import ROOT, commit_all, copy_tree, git, python, write

TOOL = "scripts/check_commit.py"
PARTS = [
    *(
        TOOL,
        "scripts/__init__.py",
        "lib/__init__.py",
        "lib/house_rules.py",
        "lib/output.py",
    ),
    *(
        "lib/suggestions.py",
        "pyproject.toml",
        "gpt2/__init__.py",
        "gpt2/settings/schema.py",
    ),
]
BANNED = "compre" + "hensive"  # in two parts: this file is searched for it as well

GOOD = """gpt2/settings/schema.py: say what a field is for

The names alone did not tell a reader which unit a field has.
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("commit"), PARTS)


def check(tree: Path, message: str) -> subprocess.CompletedProcess[str]:
    """The command in this process; test_hooks.py has git start it."""
    write(tree, "MESSAGE", message)
    out, err = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.chdir(tree),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        patch.setattr(check_commit, "ROOT", tree)
        status = check_commit.main(["MESSAGE"])
    return subprocess.CompletedProcess([], status, out.getvalue(), err.getvalue())


ACCEPTED = {
    "a path": GOOD,
    "a folder": GOOD.replace("gpt2/settings/schema.py", "gpt2"),
    "a folder with slash": GOOD.replace("gpt2/settings/schema.py", "gpt2/"),
    "a file name": GOOD.replace("gpt2/settings/schema.py", "schema.py"),
    "a stem": GOOD.replace("gpt2/settings/schema.py", "schema"),
    "two paths": GOOD.replace(
        "gpt2/settings/schema.py", "gpt2/settings/schema.py, lib"
    ),
    "comments of the editor": GOOD + "# Please enter the message\n# - a list\n",
    "comments first": "# a comment\n" + GOOD,
    "scissors": GOOD
    + "# ------------------------ >8 ------------------------\n"
    + f"+ - {BANNED} {'x' * 90}\n",
    "long URL": GOOD + f"\nSee https://example.org/{'x' * 80} for more.\n",
    "quoted output": GOOD + f"\n> {'x' * 90}\n\n    - {'y' * 90}\n\nSo it was.\n",
    "revert": f'Revert "{GOOD.splitlines()[0]}"\n\nThis reverts commit {"a" * 40}.\n',
    "fixup": "fixup! gpt2/settings/schema.py: say what a field is for\n",
    "72 columns": "gpt2: ".ljust(72, "x") + "\n\n" + "y" * 72 + "\n",
    "dash inside prose": GOOD + "\nThe step - a control - is paired by seed.\n",
    "a person's co-author line": GOOD + "\nCo-authored-by: B. <b@example.org>\n",
    "a person named as a tool": GOOD + "\nCo-authored-by: Claude B. <b@example.org>\n",
    "a year at the start of a line": GOOD + "\nIt has been so since\n2024. Not now.\n",
}


@pytest.mark.parametrize("case", ACCEPTED)
def test_accepted(tree: Path, case: str) -> None:
    done = check(tree, ACCEPTED[case])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


BODY = "\n\nThe reason is given here.\n"
# case: (message, line named, words of the finding)
REFUSED = {
    "no path": ("say what a field is for" + BODY, 1, "'path: what changed'"),
    "no such path": (
        "gpt2/settings/shema.py: fix it" + BODY,
        1,
        "nearest: gpt2/settings/schema.py",
    ),
    "a kind of change": ("fix: fix it" + BODY, 1, "'fix' is neither a path"),
    "one of two paths": ("gpt2, nowhere: fix" + BODY, 1, "'nowhere' is neither a path"),
    "path outside": ("../gpt2: fix it" + BODY, 1, "'../gpt2' is neither a path"),
    "untracked path": ("MESSAGE: fix it" + BODY, 1, "'MESSAGE' is neither a path"),
    "no description": ("gpt2:" + BODY, 1, "'path: what changed'"),
    "no blank after colon": ("gpt2:fix" + BODY, 1, "'path: what changed'"),
    "long subject": ("gpt2: ".ljust(73, "x") + BODY, 1, "has 73 columns"),
    "no empty line": ("gpt2: fix it\nThe reason is here.\n", 2, "an empty line"),
    "subject only": ("gpt2: fix it\n", 1, "no body"),
    "only trailers": ("gpt2: fix it\n\nSigned-off-by: A <a@b>\n", 3, "no body"),
    "only quoted output": ("gpt2: fix it\n\n> all passed\n", 3, "no body"),
    "bullets": (GOOD + "\n- one\n", 5, "a list"),
    "stars": (GOOD + "\n * one\n", 5, "a list"),
    "numbers": (GOOD + "\n1. one\n", 5, "a list"),
    "letters": (GOOD + "\na) one\n", 5, "a list"),
    "round bullets": (GOOD + "\n\u2022 one\n", 5, "a list"),
    "long line": (GOOD + "\n" + "word " * 15 + "\n", 5, "74 columns"),
    "long line next to a URL": (
        GOOD + "\nhttps://example.org " + "word " * 15 + "\n",
        5,
        "at most 72",
    ),
    "banned word": (GOOD + f"\nA {BANNED} rewrite.\n", 5, f"banned word '{BANNED}'"),
    "banned in subject": (f"gpt2: a {BANNED.title()} fix" + BODY, 1, "banned word"),
    "emoji": (GOOD + "\n\U0001f916 Generated with a tool\n", 5, "forbidden here"),
    "a tool's co-author line": (
        GOOD + "\nCo-Authored-By: Some Assistant <noreply@example.com>\n",
        5,
        "forbidden here",
    ),
    "a bot's co-author line": (
        GOOD + "\nco-authored-by: helper[bot] <1+helper@example.com>\n",
        5,
        "forbidden here",
    ),
    "a tool's co-author line without its address": (
        GOOD + "\nCo-Authored-By: Codex\n",
        5,
        "forbidden here",
    ),
    "banned word in a fixup": (f"fixup! gpt2: {BANNED}\n", 1, "banned word"),
    "revert of nothing here": ('Revert "fix: it"' + BODY, 1, "'fix' is neither a path"),
    "empty": ("# only a comment\n", 1, "empty message"),
    "comment above shifts lines": ("# one\n# two\nfix it" + BODY, 3, "path: what"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_with_file_and_line(tree: Path, case: str) -> None:
    message, line, words = REFUSED[case]
    done = check(tree, message)
    assert done.returncode == 1
    assert any(
        said.startswith(f"MESSAGE:{line}: ") and words in said
        for said in done.stdout.splitlines()
    ), done.stdout


def configured(tmp_path: Path, table: str) -> Path:
    tree = copy_tree(tmp_path, PARTS)
    write(tree, "pyproject.toml", f"[tool.kablate.commit]\n{table}\n")
    return tree


def test_required_trailers_when_configured(tmp_path: Path) -> None:
    tree = configured(
        tmp_path, 'required_trailers = ["Signed-off-by", "Generated-by:"]'
    )
    signed = GOOD + "\nGenerated-by: none\n"
    done = check(tree, signed)
    assert done.returncode == 1
    assert "MESSAGE:5: the trailer 'Signed-off-by:' is missing" in done.stdout
    assert "Generated-by" not in done.stdout

    signed += "Signed-off-by: A. Tester <tester@example.org>\n"
    assert check(tree, signed).returncode == 0
    done = check(tree, signed + "\nAfterthought in a last paragraph.\n")
    assert "'Signed-off-by:' is missing" in done.stdout, "not in the last paragraph"
    assert check(tree, GOOD + "\nGenerated-by:\nSigned-off-by: A <a@b>\n").returncode


def test_trailers_as_the_readme_shows_them(tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    shown = re.search(
        r"```toml\n\[tool\.kablate\.commit\]\n(.*?)```", readme, re.DOTALL
    )
    assert shown
    done = check(configured(tmp_path, shown[1]), GOOD)
    assert "'Generated-by:' is missing" in done.stdout
    assert "'Signed-off-by:' is missing" in done.stdout


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("banned_word = ['x']", "no key 'banned_word'"),
        ("banned_words = 'x'", "must be a list of strings"),
        ("banned_words = ['']", "empty string"),
        ("forbidden_patterns = ['(']", "not a regular expression"),
        ("forbidden_patterns = [", "pyproject.toml"),
    ],
)
def test_bad_configuration_is_an_error(tmp_path: Path, table: str, words: str) -> None:
    done = check(configured(tmp_path, table), GOOD)
    assert done.returncode == 2
    assert words in done.stderr


def test_configured_words_and_patterns(tmp_path: Path) -> None:
    tree = configured(
        tmp_path, "banned_words = ['robust']\nforbidden_patterns = ['WIP']"
    )
    assert check(tree, GOOD + f"\nA {BANNED}, robustness change.\n").returncode == 0
    assert "banned word 'Robust'" in check(tree, GOOD + "\nRobust.\n").stdout
    assert "forbidden here: 'WIP'" in check(tree, GOOD + "\nStill WIP.\n").stdout


def test_range_names_each_bad_commit_and_its_line(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path, PARTS)
    first = git(tree, "rev-parse", "HEAD").strip()
    write(tree, "gpt2/new.py", "")
    commit_all(tree, "gpt2/new.py: add it\n\nThe range is to hold a good one.\n")
    assert python(tree, TOOL, "--range", f"{first}..HEAD").returncode == 0

    write(tree, "gpt2/other.py", "")
    commit_all(tree, "gpt2/other.py: add it\n\n- a list\n")
    bad = git(tree, "rev-parse", "HEAD").strip()[:12]
    done = python(tree, TOOL, "--range", f"{first}..HEAD")
    assert done.returncode == 1
    assert f"{bad}:3: a list" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_range_judges_paths_by_each_commits_own_tree(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path, PARTS)
    first = git(tree, "rev-parse", "HEAD").strip()
    write(tree, "gpt2/passing.py", "")
    commit_all(tree, "gpt2/passing.py: add it\n\nIt will be deleted again.\n")
    git(tree, "rm", "--quiet", "gpt2/passing.py")
    commit_all(tree, "gpt2/passing.py: delete it\n\nNo program needs it.\n")
    done = python(tree, TOOL, "--range", f"{first}..HEAD")
    assert done.returncode == 0, done.stdout
    write(tree, "lib/later.py", "")
    commit_all(tree, "gpt2/passing.py: name what is long gone\n\nNot there now.\n")
    assert "'gpt2/passing.py' is neither a path" in (
        python(tree, TOOL, "--range", f"{first}..HEAD").stdout
    )


def test_range_lets_merges_pass_and_stops_fixups(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path, PARTS)
    first = git(tree, "rev-parse", "HEAD").strip()
    git(tree, "switch", "--quiet", "--create", "side")
    write(tree, "lib/side.py", "")
    commit_all(tree, "lib/side.py: add it\n\nFor a merge.\n")
    git(tree, "switch", "--quiet", "main")
    git(tree, "merge", "--quiet", "--no-ff", "side", "--message", "Merge branch 'side'")
    assert python(tree, TOOL, "--range", f"{first}..HEAD").returncode == 0

    git(tree, "commit", "--quiet", "--allow-empty", "--fixup", "HEAD^2")
    done = python(tree, TOOL, "--range", f"{first}..HEAD")
    assert done.returncode == 1
    assert "autosquash" in done.stdout


def test_bad_usage(tree: Path) -> None:
    for arguments in ([], ["--range", "a..b", "MESSAGE"], ["NOWHERE"]):
        assert python(tree, TOOL, *arguments).returncode == 2
    done = python(tree, TOOL, "--range", "nosuch..HEAD")
    assert done.returncode == 2
    assert "nosuch" in done.stderr
