"""Run all checks of the project, stop at the first failure and say how to fix it.

`make check` runs all of it, `make format` (`--fix`) fixes what can be fixed. The
pre-commit hook runs `--staged`: the quick checks, on the files of the commit as they
are staged, not as they are in the working tree.
Exit status: 0 all passed, otherwise that of the check that failed.
"""

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lib.house_rules import HouseRulesError, git, project_files, without_results
from lib.output import exit_code

ROOT = Path(__file__).resolve().parents[1]
PYTHON_FILES = (".py", ".pyi")
HUNK = re.compile(r"@@ -(\d+)")


def format_findings(said: str) -> str:
    """Turn what `black --check` says into its errors and one `path:line: message` for
    each file that it would change.

    With --diff, which shows the lines, black does not use its cache and formats every
    file again: so that is asked for these files alone.
    """
    errors = re.findall(r"^error: .+", said, re.M)
    names = re.findall(r"^would reformat (.+)", said, re.M)
    if names:
        command = [sys.executable, "-m", "black", "--diff", "--quiet", *names]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
        errors.append(first_change_of_each_file(done.stdout))
    return "\n".join(errors) or said


def first_change_of_each_file(diff: str) -> str:
    """Turn black's diff into one `path:line: message` per file."""
    findings, path, line = [], "", 0
    for text in diff.splitlines():
        if text.startswith("--- "):
            path = from_root(text[4:].split("\t")[0])
        elif (hunk := HUNK.match(text)) and path:
            line = int(hunk[1])
        elif path and line and text[:1] in ("-", "+") and not text.startswith("+++"):
            findings.append(f"{path}:{max(line, 1)}: not formatted as black does")
            path, line = "", 0
        elif line:
            line += 1
    return "\n".join(findings) or diff


def from_root(name: str) -> str:
    """Path in the form that the other checks print."""
    path = Path(name)
    return str(path.relative_to(ROOT) if path.is_relative_to(ROOT) else path)


def python_files() -> list[str]:
    """All files for the formatter and the linter."""
    return [name for name in project_files(ROOT) if name.endswith(PYTHON_FILES)]


@dataclass(frozen=True)
class Check:
    """A check: its command, the files it runs on, and how a user fixes its findings."""

    name: str
    command: tuple[str, ...]
    fix: str
    suffixes: tuple[str, ...] | None = None
    everything: Callable[[], Sequence[str]] = tuple
    quick: bool = True
    explain: Callable[[str], str] = str

    def arguments(self, files: Sequence[str] | None) -> list[str] | None:
        """The command on `files` (None: on everything); None if it applies to none."""
        if files is None or self.suffixes is None:
            return [*self.command, *self.everything()]
        found = [name for name in files if name.endswith(self.suffixes)]
        return [*self.command, *found] if found else None


CHECKS = (
    Check(
        "format",
        ("-m", "black", "--check"),
        "make format",
        PYTHON_FILES,
        python_files,
        explain=format_findings,
    ),
    Check(
        "whitespace",
        ("scripts/fix_whitespace_issues.py", "--check"),
        "make format, and the rest by hand",
        ("",),
    ),
    Check(
        "words",
        ("scripts/check_words.py",),
        "use the wording shown above, or another word",
        ("",),
    ),
    Check(
        "defconfigs",
        ("scripts/check_defconfigs.py",),
        "make defconfig-X savedefconfig NAME=X writes a minimal defconfigs/X",
    ),
    Check("generated text", ("scripts/generate_docs.py", "--check"), "make format"),
    Check(
        "lint",
        ("-m", "ruff", "check", "--quiet", "--output-format=concise"),
        "make format, and the rest by hand (ruff rule CODE explains a code)",
        PYTHON_FILES,
        python_files,
    ),
    Check("types", ("-m", "mypy"), "see above", quick=False),
    Check(
        "fast tests",
        (*"-m pytest -q -x -n 3 --dist worksteal -m".split(), "not slow and not gpu"),
        "see above; one test alone: python -m pytest PATH::NAME",
        quick=False,
    ),
)
NAMES = tuple(check.name for check in CHECKS)

# `make format` runs these in this order, so that black formats what ruff has moved.
# ruff runs with all rules: with fewer, it would remove `noqa` comments of the others.
PYTHON_FIXERS = (
    ("-m", "ruff", "check", "--quiet", "--fix-only"),
    ("-m", "black", "--quiet"),
)
FIXERS = (("scripts/generate_docs.py",), ("scripts/fix_whitespace_issues.py",))


def main(arguments: Sequence[str] | None = None) -> int:
    options = parse(arguments)
    try:
        return act(options)
    except HouseRulesError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def act(options: argparse.Namespace) -> int:
    """Fix or check as the options say; the exit status. HouseRulesError: git failed."""
    if options.fix:
        return fix()
    if options.staged:
        return check_staged()
    checks = [check for check in CHECKS if check.name in (options.only or NAMES)]
    if options.quick:
        checks = [check for check in checks if check.quick]
    files = without_results(ROOT, options.files) if options.files else None
    return run_all(checks, files)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    add = parser.add_argument
    add("--only", action="append", choices=NAMES, help="run this check (repeatable)")
    add("--quick", action="store_true", help="leave out types and tests")
    add("--fix", action="store_true", help="fix instead of check")
    add("--staged", action="store_true", help="quick checks of what is staged")
    add("files", nargs="*", metavar="FILES", help="only these, where a check can")
    return parser.parse_args(arguments)


def fix() -> int:
    """Run every fixer, also after one that failed; the first failure's status."""
    files = python_files()
    commands = [*((*command, *files) for command in PYTHON_FIXERS if files), *FIXERS]
    ends = [
        subprocess.run([sys.executable, *arguments], cwd=ROOT, check=False).returncode
        for arguments in commands
    ]
    return next((status for status in ends if status), 0)


def run_all(checks: Sequence[Check], files: Sequence[str] | None) -> int:
    """Run the checks in order; the exit status of the first that fails, else 0."""
    for check in checks:
        arguments = check.arguments(files)
        status = 0 if arguments is None else run_one(check, arguments)
        if status:
            print(f"check: {check.name}: failed. To fix: {check.fix}")
            return status
    print(f"check: {', '.join(check.name for check in checks)}: all passed")
    return 0


def run_one(check: Check, arguments: Sequence[str]) -> int:
    print(f"check: {check.name} ...", flush=True)
    started = time.monotonic()
    # Only output that is rewritten is captured, so that the rest appears at once.
    rewritten = check.explain is not str
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        # The processes of pytest share the cores; the user's own value wins.
        env={"OMP_NUM_THREADS": "1", **os.environ},
        stdout=subprocess.PIPE if rewritten else None,
        stderr=subprocess.STDOUT if rewritten else None,
        text=True,
        check=False,
    )
    if done.returncode and done.stdout:
        print(check.explain(done.stdout))
    print(f"check: {check.name}: {time.monotonic() - started:.1f} s", flush=True)
    return done.returncode


def check_staged() -> int:
    """Export the index to a temporary folder and run the quick checks there.

    pre-commit would stash unstaged changes instead, and so change the files under a
    matrix that is running. Single-file checks get the staged files; if there are only
    deletions, all files.
    """
    with tempfile.TemporaryDirectory(prefix="kablate-staged-") as folder:
        git(ROOT, "checkout-index", "--all", f"--prefix={folder}/")
        changed = git(ROOT, "diff", "--cached", "--name-only", "-z", "--diff-filter=d")
        environment = environment_of_index(folder)
        files = [name for name in changed.split("\0") if name]
        command = [sys.executable, "scripts/check.py", "--quick", "--", *files]
        return subprocess.run(command, cwd=folder, env=environment).returncode


def environment_of_index(folder: str) -> dict[str, str]:
    """Let git in `folder` see this repository's index, with the folder as its tree."""

    def absolute(option: Sequence[str]) -> str:
        return str((ROOT / git(ROOT, "rev-parse", *option).strip()).resolve())

    return {
        **os.environ,
        "GIT_DIR": absolute(["--git-dir"]),
        "GIT_INDEX_FILE": absolute(["--git-path", "index"]),
        "GIT_WORK_TREE": folder,
        "PYTHONDONTWRITEBYTECODE": "1",
    }


if __name__ == "__main__":
    sys.exit(exit_code(main))
