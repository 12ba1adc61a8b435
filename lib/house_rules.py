"""Common parts of the checking tools: findings, tracked files, rules in pyproject."""

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
WORDS_TABLE = "tool.kablate.words"
WORDS_KEYS = ("habits", "exempt")


class HouseRulesError(ValueError):
    """The rules cannot be read or git cannot answer."""


@dataclass(frozen=True, order=True)
class Violation:
    """Finding, printed as `path:line: message` so that editors can jump to it."""

    path: str
    line: int
    message: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.message}"


@dataclass(frozen=True)
class Habit:
    """A wording to avoid, and what to write instead."""

    pattern: re.Pattern[str]
    instead: str


@dataclass(frozen=True)
class WordRules:
    """Table [tool.kablate.words] of pyproject.toml; exempt: files that quote them."""

    habits: tuple[Habit, ...] = ()
    exempt: tuple[str, ...] = ()


@dataclass(frozen=True)
class CommitRules:
    """Table [tool.kablate.commit] of pyproject.toml, and the rules about words."""

    required_trailers: tuple[str, ...] = ()
    forbidden_patterns: tuple[re.Pattern[str], ...] = ()
    banned_words: tuple[str, ...] = ()
    words: WordRules = WordRules()


def git(root: Path, *arguments: str) -> str:
    """Standard output of git in `root`; HouseRulesError with git's error message."""
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
    """Tracked files, and new files that are not ignored."""
    return _listed(root, "--cached", "--others", "--exclude-standard")


def _listed(root: Path, *which: str) -> list[str]:
    names = {name for name in git(root, "ls-files", "-z", *which).split("\0") if name}
    return without_results(root, sorted(n for n in names if _is_regular(root / n)))


def without_results(root: Path, names: Iterable[str]) -> list[str]:
    """Names outside of results folders: a run's files are data, and the config.py among
    them must not be formatted."""

    @cache
    def holds_results(folder: PurePath) -> bool:
        if folder == folder.parent:  # the root of relative or absolute names
            return False
        marked = (root / folder / RESULTS_MARK).is_file()
        return marked or holds_results(folder.parent)

    return [name for name in names if not holds_results(PurePath(name).parent)]


def _is_regular(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def shown(path: Path) -> str:
    """Path relative to the current folder if it is inside, else absolute."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)


def docstring_spans(text: str) -> Iterator[tuple[int, int]]:
    """First and last line of each docstring; none if the text does not parse, which the
    formatter and the linter report.
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
    """Read the rules of the tree at `root`; HouseRulesError names a wrong key."""
    path = root / "pyproject.toml"
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise HouseRulesError(f"{path}: {error}") from error
    tables = document.get("tool", {}).get("kablate", {})
    table = _known(tables.get("commit", {}), TABLE, KEYS)
    return CommitRules(
        required_trailers=tuple(
            name.rstrip(": ") for name in _strings(table, "required_trailers")
        ),
        forbidden_patterns=tuple(
            _compiled(pattern, TABLE, "forbidden_patterns")
            for pattern in _strings(table, "forbidden_patterns")
        ),
        banned_words=_strings(table, "banned_words"),
        words=_word_rules(_known(tables.get("words", {}), WORDS_TABLE, WORDS_KEYS)),
    )


def _known(table: dict[str, Any], name: str, keys: Sequence[str]) -> dict[str, Any]:
    """The table; HouseRulesError if it has another key."""
    if unknown := sorted(set(table) - set(keys)):
        allowed = ", ".join(keys)
        raise HouseRulesError(f"[{name}] has no key '{unknown[0]}'; keys: {allowed}")
    return table


def _word_rules(table: Mapping[str, Any]) -> WordRules:
    pairs = table.get("habits", [])
    if not all(isinstance(p, list) and list(map(type, p)) == [str, str] for p in pairs):
        raise HouseRulesError(
            f"[{WORDS_TABLE}] habits: must be a list of [pattern, instead] pairs"
        )
    flags = re.IGNORECASE | re.MULTILINE
    return WordRules(
        habits=tuple(
            Habit(_compiled(pattern, WORDS_TABLE, "habits", flags), instead)
            for pattern, instead in pairs
        ),
        exempt=_strings(table, "exempt", WORDS_TABLE),
    )


def _strings(table: Mapping[str, Any], key: str, name: str = TABLE) -> tuple[str, ...]:
    value = table.get(key, [])
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise HouseRulesError(f"[{name}] {key} = {value!r}: must be a list of strings")
    if any(not v.strip() for v in value):
        raise HouseRulesError(f"[{name}] {key} has an empty string; remove it")
    return tuple(value)


def _compiled(pattern: str, table: str, key: str, flags: int = 0) -> re.Pattern[str]:
    try:
        return re.compile(pattern, flags)
    except re.error as error:
        raise HouseRulesError(
            f"[{table}] {key}: {pattern!r} is not a regular expression: {error}"
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
        Violation(path, number, f"banned word '{found.group()}'; use another word")
        for number, line in numbered
        for found in any_word.finditer(line)
    ]


def habits_in(path: str, first: int, text: str, rules: WordRules) -> list[Violation]:
    """Every habit in a text whose first line has the given number."""
    return [
        Violation(
            path,
            first + text.count("\n", 0, found.start()),
            f"{found.group()!r}: {habit.instead}",
        )
        for habit in rules.habits
        for found in habit.pattern.finditer(text)
    ]
