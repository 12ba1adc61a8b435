"""The whitespace tool on real files in a scratch repository."""

import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.scratch import copy_tree, git, python, write

TOOL = "scripts/fix_whitespace_issues.py"
MODULES = ("__init__", "atomic_files", "files", "house_rules", "output")
PARTS = [TOOL, *(f"lib/{name}.py" for name in MODULES)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    return copy_tree(tmp_path, PARTS)


def fix(tree: Path, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return python(tree, TOOL, *arguments)


# (file, planted content, line named, words of the finding, content once fixed)
FIXABLE = {
    "trailing blank": ("a.md", b"one\ntwo \t\n", 2, "trailing blank", b"one\ntwo\n"),
    "CRLF": ("a.md", b"one\ntwo\r\nthree\r\n", 2, "CRLF", b"one\ntwo\nthree\n"),
    "no newline": ("a.txt", b"one\ntwo", 2, "no newline", b"one\ntwo\n"),
    "extra newline": ("a.txt", b"one\n\n\n", 2, "extra blank line", b"one\n"),
    "blank lines with blanks": ("a.txt", b"one\n  \n", 2, "trailing blank", b"one\n"),
    "tab in YAML": ("a.yml", b"a:\n\tb: 1\n", 2, "tab", b"a:\n    b: 1\n"),
    "tab in Python": (
        "a.py",
        b"if 1:\n\tx = 1  # one\n",
        2,
        "tab",
        b"if 1:\n        x = 1  # one\n",
    ),
    "blank in a docstring": (
        "a.py",
        b'"""One. \n\nTwo.\n"""\n',
        1,
        "trailing blank",
        b'"""One.\n\nTwo.\n"""\n',
    ),
    "blank after implicitly joined strings": (
        "a.py",
        b'x = (\n    "a" \n    "b"\n)\n',
        2,
        "trailing blank",
        b'x = (\n    "a"\n    "b"\n)\n',
    ),
    "only blank lines": ("a.txt", b"\n\n", 1, "extra blank line", b""),
    "blank in a Makefile": ("Makefile", b"a:\n\ttrue \n", 2, "blank", b"a:\n\ttrue\n"),
    "blank in a defconfig": (
        "defconfigs/a",
        b"CONFIG_A=y \n",
        1,
        "trailing blank",
        b"CONFIG_A=y\n",
    ),
}


CLEAN = {
    "Makefile keeps tabs": ("Makefile", b"all:\n\ttrue\n"),
    "Kconfig keeps tabs": ("gpt2/Kconfig.extra", b"config A\n\tbool\n"),
    "shell keeps tabs": ("run.sh", b"cat <<-X\n\ta\n\tX\n"),
    "patch keeps blanks": ("a.patch", b" \n-x\n"),
    "empty file": ("a.py", b""),
    "defconfig": ("defconfigs/a", b'CONFIG_A=y\nCONFIG_B="a = b"\n# CONFIG_C = y\n'),
}


# (file, content, line, words): named, refused, and never rewritten.
BY_HAND = {
    "spaced assignment": (
        "defconfigs/a",
        b"CONFIG_A=y\nCONFIG_X = y\n",
        2,
        "CONFIG_X=y",
    ),
    "blank after =": ("defconfigs/a", b"CONFIG_X= 8\n", 1, "CONFIG_X=8"),
    "blank before name": ("defconfigs/a", b" CONFIG_X=8\n", 1, "CONFIG_X=8"),
    "tab before =": ("defconfigs/a", b"CONFIG_X\t=8\n", 1, "CONFIG_X=8"),
    "string with a blank": ("a.py", b'x = """a \nb"""\n', 1, "inside a string"),
    "f-string with a blank": ("a.py", b'x = f"""{1} \nb"""\n', 1, "inside a string"),
    "string with a tab": ("a.py", b'x = "a\tb"\n', 1, "tab"),
    "not Python": ("a.py", b'x = """a \n', 1, "not Python"),
}


@dataclass
class Treated:
    """Output of --check on all cases at once, and of two runs of the tool."""

    checked: subprocess.CompletedProcess[str]
    after_check: dict[str, bytes]
    fixed: subprocess.CompletedProcess[str]
    after_fix: dict[str, bytes]
    again: subprocess.CompletedProcess[str]
    after_again: dict[str, bytes]


# Name and content of every case's file.
CASES: dict[str, tuple[str, bytes]] = {
    **{case: planted[:2] for case, planted in FIXABLE.items()},
    **CLEAN,
    **{case: planted[:2] for case, planted in BY_HAND.items()},
}


def place(case: str) -> str:
    """Each file lies in a folder of its own."""
    return f"cases/{case.replace(' ', '-')}/{CASES[case][0]}"


def planted() -> dict[str, bytes]:
    return {place(case): content for case, (_, content) in CASES.items()}


@pytest.fixture(scope="module")
def treated(tmp_path_factory: pytest.TempPathFactory) -> Treated:
    tree = copy_tree(tmp_path_factory.mktemp("cases"), PARTS)
    for name, content in planted().items():
        write(tree, name, content)
    git(tree, "add", "--all")

    def state() -> dict[str, bytes]:
        return {name: (tree / name).read_bytes() for name in planted()}

    checked, after_check = fix(tree, "--check"), state()
    fixed, after_fix = fix(tree), state()
    again, after_again = fix(tree), state()
    return Treated(checked, after_check, fixed, after_fix, again, after_again)


def findings(said: str, case: str) -> list[str]:
    """The findings about one case, without the folder they are in."""
    name = place(case)
    own = [line for line in said.splitlines() if line.startswith(f"{name}:")]
    return [line.removeprefix(f"{name}:") for line in own]


def test_check_refuses_and_writes_nothing(treated: Treated) -> None:
    assert treated.checked.returncode == 1
    assert treated.after_check == planted()


def test_second_run_changes_nothing(treated: Treated) -> None:
    assert treated.after_again == treated.after_fix
    assert "fixed" not in treated.again.stdout


@pytest.mark.parametrize("case", FIXABLE)
def test_fault_is_named_then_fixed(treated: Treated, case: str) -> None:
    _, _, line, words, fixed = FIXABLE[case]
    said = findings(treated.checked.stdout, case)
    assert any(text.startswith(f"{line}: ") and words in text for text in said), said
    assert treated.after_fix[place(case)] == fixed
    assert findings(treated.again.stdout, case) == []


@pytest.mark.parametrize("case", CLEAN)
def test_clean_files_are_left_alone(treated: Treated, case: str) -> None:
    assert findings(treated.checked.stdout, case) == []
    assert treated.after_fix[place(case)] == CLEAN[case][1]


@pytest.mark.parametrize("case", BY_HAND)
def test_what_carries_meaning_is_named_and_kept(treated: Treated, case: str) -> None:
    _, content, line, words = BY_HAND[case]
    for done in (treated.checked, treated.fixed):
        said = findings(done.stdout, case)
        assert said, done.stdout
        assert said[0].startswith(f"{line}: ")
        assert words in said[0]
        assert done.returncode == 1
    assert treated.after_fix[place(case)] == content


def test_all_fixed_is_success(tree: Path) -> None:
    path = write(tree, "a.md", b"one \r\n")
    git(tree, "add", "a.md")
    done = fix(tree)
    assert (done.returncode, done.stdout) == (0, "a.md: fixed\n")
    assert path.read_bytes() == b"one\n"
    done = fix(tree, "--check")
    assert (done.returncode, done.stdout) == (0, "")


def test_dot_config_is_checked_when_named(tree: Path) -> None:
    write(tree, ".config", "CONFIG_X = y\n")
    done = fix(tree, "--check", ".config")
    assert done.returncode == 1
    assert ".config:1: " in done.stdout


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"caf\xe9 \r\n", "not UTF-8 (line 1)"), (b"a \n\0b", "binary")],
)
def test_undecodable_and_binary_are_untouched_and_named(
    tree: Path, content: bytes, reason: str
) -> None:
    path = write(tree, "a.md", content)
    git(tree, "add", "a.md")
    for arguments in (["--check"], []):
        done = fix(tree, *arguments)
        assert done.returncode == 0
        assert f"a.md: left unchanged: {reason}" in done.stderr
        assert path.read_bytes() == content


def test_file_mode_is_kept_and_nothing_is_left_beside(tree: Path) -> None:
    path = write(tree, "bin/tool.sh", "#!/bin/sh \n")
    path.chmod(0o751)
    assert fix(tree, path).returncode == 0
    assert path.read_bytes() == b"#!/bin/sh\n"
    assert path.stat().st_mode & 0o777 == 0o751
    assert [entry.name for entry in path.parent.iterdir()] == ["tool.sh"]


def test_symbolic_link_is_not_replaced_by_a_file(tree: Path) -> None:
    target = write(tree, "target.md", "one \n")
    link = tree / "link.md"
    link.symlink_to("target.md")
    done = fix(tree, "link.md")
    assert "link.md: left unchanged" in done.stderr
    assert link.is_symlink()
    assert target.read_bytes() == b"one \n"


def test_only_tracked_files_by_default_and_only_named_ones_otherwise(
    tree: Path,
) -> None:
    tracked = write(tree, "tracked.md", "one \n")
    git(tree, "add", "tracked.md")
    loose = write(tree, "loose.md", "one \n")
    done = fix(tree, "--check")
    assert "tracked.md:1" in done.stdout
    assert "loose.md" not in done.stdout
    assert fix(tree, "loose.md").returncode == 0
    assert loose.read_bytes() == b"one\n"
    assert tracked.read_bytes() == b"one \n"


def test_folder_stands_for_its_tracked_files(tree: Path) -> None:
    write(tree, "docs/a.md", "one \n")
    write(tree, "b.md", "one \n")
    git(tree, "add", "docs", "b.md")
    done = fix(tree, "--check", "docs")
    assert "docs/a.md:1" in done.stdout
    assert "b.md:1: trailing" not in done.stdout.replace("docs/a.md", "")


def test_missing_file_is_bad_usage(tree: Path) -> None:
    done = fix(tree, "--check", "nowhere.md")
    assert done.returncode == 2
    assert "nowhere.md: no such file" in done.stderr


def test_works_from_any_folder_and_with_odd_names(tree: Path) -> None:
    write(tree, "docs/with blank é.md", "one \n")
    git(tree, "add", "--all")
    done = python(tree / "docs", f"../{TOOL}", "--check")
    assert done.returncode == 1
    assert "with blank é.md:1: trailing blank" in done.stdout
