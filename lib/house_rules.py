"""What the checking tools share: findings, tracked files, the rules in pyproject."""

import ast
import os
import re
import subprocess
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePath
from typing import Any

TABLE = "tool.kablate.commit"
RESULTS_MARK = "matrix.json"  # in a folder that runs write to
KEYS = ("required_trailers", "forbidden_patterns", "banned_words")


class HouseRulesError(ValueError):
    """The rules cannot be read or git cannot answer."""


@dataclass(frozen=True, order=True)
class Violation:
    """One fault, printed as `path:line: message` so that editors can jump to it."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class CommitRules:
    """The table [tool.kablate.commit] of pyproject.toml."""

    required_trailers: tuple[str, ...] = ()
    forbidden_patterns: tuple[re.Pattern[str], ...] = ()
    banned_words: tuple[str, ...] = ()


def git(root: Path, *arguments: str) -> str:
    """Standard output of git run in `root`; HouseRulesError with git's own words."""
    try:
        done = subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, check=False
        )
    except FileNotFoundError as error:
        raise HouseRulesError("git is not installed; these checks need it") from error
    if done.returncode:
        said = os.fsdecode(done.stderr).strip() or f"exit status {done.returncode}"
        raise HouseRulesError(f"git {arguments[0]}: {said}")
    return os.fsdecode(done.stdout)


def tracked_files(root: Path) -> list[str]:
    """Tracked regular files below `root`, without symbolic links, missing files and
    results."""
    return _listed(root, "--cached")


def project_files(root: Path) -> list[str]:
    """As tracked_files, with the files that are new and not ignored."""
    return _listed(root, "--cached", "--others", "--exclude-standard")


def _listed(root: Path, *which: str) -> list[str]:
    names = {name for name in git(root, "ls-files", "-z", *which).split("\0") if name}
    return without_results(root, sorted(n for n in names if _is_regular(root / n)))


def without_results(root: Path, names: Iterable[str]) -> list[str]:
    """The names that lie in no results folder: what a run wrote is data, and a
    config.py that was kept with it is not to be formatted."""

    @cache
    def holds_results(folder: PurePath) -> bool:
        if folder == folder.parent:  # the root of names that are relative, or not
            return False
        marked = (root / folder / RESULTS_MARK).is_file()
        return marked or holds_results(folder.parent)

    return [name for name in names if not holds_results(PurePath(name).parent)]


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def shown(path: Path) -> str:
    """The path as a user would type it: from the current folder where it lies there."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def docstring_spans(text: str) -> Iterator[tuple[int, int]]:
    """First and last line of each docstring; none where the text does not parse.

    Python that does not parse is for the formatter and the linter to refuse.
    """
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError):
        return
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for node in ast.walk(tree):
        if (
            isinstance(node, owners)
            and ast.get_docstring(node, clean=False) is not None
        ):
            docstring = node.body[0]
            yield docstring.lineno, docstring.end_lineno or docstring.lineno


def read_rules(root: Path) -> CommitRules:
    """Rules of the tree at `root`; HouseRulesError names the key that is wrong."""
    path = root / "pyproject.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise HouseRulesError(f"{path}: {error}") from error
    table = document.get("tool", {}).get("kablate", {}).get("commit", {})
    unknown = sorted(set(table) - set(KEYS))
    if unknown:
        allowed = ", ".join(KEYS)
        raise HouseRulesError(f"[{TABLE}] has no key '{unknown[0]}'; keys: {allowed}")
    return CommitRules(
        required_trailers=tuple(
            name.rstrip(": ") for name in _strings(table, "required_trailers")
        ),
        forbidden_patterns=tuple(
            _compiled(pattern) for pattern in _strings(table, "forbidden_patterns")
        ),
        banned_words=_strings(table, "banned_words"),
    )


def _strings(table: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise HouseRulesError(f"[{TABLE}] {key} = {value!r}: must be a list of strings")
    if any(not v.strip() for v in value):
        raise HouseRulesError(f"[{TABLE}] {key} holds an empty string; remove it")
    return tuple(value)


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except re.error as error:
        raise HouseRulesError(
            f"[{TABLE}] forbidden_patterns: {pattern!r} is no regular expression: "
            f"{error}"
        ) from error


def banned_in(
    path: str, numbered: Iterable[tuple[int, str]], words: Sequence[str]
) -> list[Violation]:
    """Every banned word in (line, text) pairs, matched whole and in any case."""
    if not words:
        return []
    any_word = re.compile(
        r"(?<!\w)(?:" + "|".join(re.escape(word) for word in words) + r")(?!\w)",
        re.IGNORECASE,
    )
    return [
        Violation(path, number, f"banned word '{found.group()}'; say it otherwise")
        for number, line in numbered
        for found in any_word.finditer(line)
    ]
