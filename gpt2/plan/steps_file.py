"""Read STEPS_FILE: a user's own ablation steps, as TOML.

Each ``[[step]]`` is a row like those of gpt2/plan/steps.py. The file is data: values
are checked against the types and ranges of the settings, and every fault is reported
with its line. Torch-free.
"""

from __future__ import annotations

import re
import tomllib
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

from gpt2.plan.registry import Registry, Step, Times, as_id
from gpt2.plan.steps import SHIPPED, STEPS
from gpt2.settings.configuration import strict_kconfig
from gpt2.settings.parse import PREFIXES, SPELLINGS, STEP_NAME, convert
from gpt2.settings.schema import FIELD_TYPES, LARGEST_ARM, PART_OF, SYMBOL_OF, Settings
from gpt2.settings.schema import PARTS as SETTINGS_PARTS
from lib.kconfig.config_py import Config, ConfigError
from lib.kconfig.dotconfig import symbol_for
from lib.suggestions import hint

LARGEST_FILE = 1 << 20  # bytes
IDS = range(100, 1000)  # that a user gives
NAMED_IDS = range(1000, 10_000)  # derived from names
KEYS = ("id", "name", "title", "question", "parent", "changes")
PARTS = ("model", "mechanisms", "optim", "pruning")
EQUAL_TOKENS = "all steps of a study train on the same tokens: set it for all of them"
NOT_OF_A_STEP = {
    "block_size": EQUAL_TOKENS,
    "max_iters": EQUAL_TOKENS,
    "time_budget": EQUAL_TOKENS,
    "model_size": "it only names a preset of n_layer, n_head and n_embd: set those",
}
CHANGEABLE = {
    SYMBOL_OF[name]: name
    for name, part in PART_OF.items()
    if part in PARTS and name not in NOT_OF_A_STEP
}
FIELD_OF = {symbol: name for name, symbol in SYMBOL_OF.items()}
SYMBOLS = dict.fromkeys(FIELD_OF, "")
TIMES = re.compile(r"[1-9][0-9]{0,3}(/[1-9][0-9]{0,3})?")

Ranges = Mapping[str, tuple[int, int]]


def registry_of(config: Config, settings: Settings) -> Registry:
    """The shipped steps and those of STEPS_FILE.

    Raises ValueError with a line for each fault of the file, and its place.
    """
    path = settings.matrix.steps_file
    if not path:
        return SHIPPED
    ranges = strict_kconfig().ranges(config)
    return read_steps(_content(Path(path)), path, ranges)


def _content(path: Path) -> bytes:
    where = f"STEPS_FILE={str(path)!r}"
    if not path.is_file():
        raise ValueError(f"{where}: there is no such file")
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ValueError(f"{where}: {error.strerror}") from None
    if len(data) > LARGEST_FILE:
        raise ValueError(f"{where} has more than {LARGEST_FILE:,} bytes")
    return data


def read_steps(data: bytes, name: str, ranges: Ranges) -> Registry:
    """Registry with the steps of a file.

    name: of the file, in messages. ranges: of integers, by symbol. Raises ValueError.
    """
    text, tables = _parsed(data, name)
    lines = _Lines(text)
    rows = [_Row(table, n) for n, table in enumerate(tables)]
    problems = [(row, problem) for row in rows for problem in row.read(ranges)]
    if problems := problems or list(_conflicts(rows)):
        found = sorted(
            (lines.of(row.number, problem.key), f"{row.label}: {problem.text}")
            for row, problem in problems
        )
        raise ValueError("\n".join(f"{name}:{n}: {why}" for n, why in found))
    own = {row.id: row.step(_ids(rows)) for row in rows}
    return Registry({**STEPS, **own}, tuple(own), text)


def _parsed(data: bytes, name: str) -> tuple[str, list[dict[str, Any]]]:
    """Text of a file and its ``[[step]]`` tables."""
    try:
        text = data.decode()
        found = tomllib.loads(text)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ValueError(f"{name}:{line}: is not UTF-8 text") from None
    except tomllib.TOMLDecodeError as error:
        place = re.search(r" \(at line (\d+), column \d+\)$", str(error))
        line = int(place[1]) if place else text.count("\n") + 1
        why = str(error)[: place.start()] if place else str(error)
        raise ValueError(f"{name}:{line}: {why}") from None
    except RecursionError:
        raise ValueError(f"{name}: is nested too deeply") from None
    tables = found.pop("step", None)
    if found:
        odd = next(iter(found))
        line = _line_of_key(text.splitlines(), odd)
        raise ValueError(f"{name}:{line}: {odd!r} is not known: only [[step]] is")
    if not isinstance(tables, list) or not all(isinstance(t, dict) for t in tables):
        raise ValueError(f"{name}:1: has no [[step]] table")
    return text, tables


# ---- one row ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Problem:
    """Fault of a row: key ("" for the table itself) and reason."""

    key: str
    text: str


@dataclass(slots=True)
class _Row:
    """``[[step]]`` table of a file; number: its place, from 0."""

    table: dict[str, Any]
    number: int
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        name = self.table.get("name")
        return f"step {name!r}" if isinstance(name, str) else "step"

    @property
    def id(self) -> int:
        """Id as given, or derived from the name, so that it never changes."""
        given = self.table.get("id")
        if given is not None:
            return int(given)
        return NAMED_IDS[zlib.crc32(self.table["name"].encode()) % len(NAMED_IDS)]

    def step(self, ids: Mapping[str, int]) -> Step:
        parent = self.table["parent"]
        changes = dict(self.changes)
        if (match := changes.get("match_step")) in ids:
            changes["match_step"] = str(ids[str(match)])
        return Step(
            self.id,
            self.table["name"],
            self.table["title"],
            self.table["question"],
            ids.get(parent, parent),
            changes,
        )

    def read(self, ranges: Ranges) -> Iterator[_Problem]:
        """Faults of the row alone; its changes are read."""
        for key in self.table.keys() - {*KEYS}:
            yield _Problem(key, f"{key!r} is not known{hint(key, KEYS)}")
        for key in KEYS[1:]:
            if key not in self.table:
                yield _Problem("", f"{key} is missing")
        for key, (is_good, allowed) in _CHECKS.items():
            if key in self.table and not is_good(self.table[key]):
                yield _Problem(key, f"{key} = {self.table[key]!r}: {allowed}")
        changes = self.table.get("changes")
        if isinstance(changes, dict):
            yield from self._read_changes(changes, ranges)

    def _read_changes(
        self, changes: Mapping[str, Any], ranges: Ranges
    ) -> Iterator[_Problem]:
        for key, value in _settings(changes):
            try:
                name = _field(key)
                if name in self.changes:
                    raise ValueError(f"is {name}, which is set twice")
                self.changes[name] = _value(name, value, ranges)
            except ValueError as error:
                yield _Problem(key, f"{key}: {error}")


def _is_line(value: Any) -> bool:
    is_text = isinstance(value, str) and value.isprintable()
    return is_text and bool(value.strip()) and len(value) <= 200


_IDS = f"must be a whole number from {IDS[0]} to {IDS[-1]}"
_NAME = "a name begins with a letter and has up to 40 of a-z, 0-9, '-', '.' and '_'"
_LINE = (_is_line, "must be one line of text, up to 200")
_STEP = "must be the id or the name of a step"
_TABLE = "must be a table with at least one setting"
_CHECKS: dict[str, tuple[Callable[[Any], object], str]] = {  # condition, what it asks
    "id": (lambda x: type(x) is int and x in IDS, _IDS),
    "name": (lambda x: isinstance(x, str) and STEP_NAME.fullmatch(x), _NAME),
    "title": _LINE,
    "question": _LINE,
    "parent": (lambda x: isinstance(x, str) or type(x) is int, _STEP),
    "changes": (lambda x: isinstance(x, dict) and x, _TABLE),
}


def _settings(changes: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Names and values; ``mechanisms.ra_window = 8`` is a table within a table."""
    for key, value in changes.items():
        if key in SETTINGS_PARTS and isinstance(value, dict):
            yield from ((f"{key}.{name}", inner) for name, inner in value.items())
        else:
            yield key, value


def _field(key: str) -> str:
    """Field of a name in ``changes``, which may be any spelling of the setting."""
    try:
        name = FIELD_OF[symbol_for(key, SYMBOLS, SPELLINGS, PREFIXES)]
    except ConfigError:
        near = hint(key, CHANGEABLE if key.isupper() else CHANGEABLE.values())
        raise ValueError(f"is not a setting{near}") from None
    if why := NOT_OF_A_STEP.get(name):
        raise ValueError(why)
    if PART_OF[name] not in PARTS:
        raise ValueError(
            f"is a setting of {PART_OF[name]}, which all steps of a study share"
        )
    return name


def _value(name: str, value: Any, ranges: Ranges) -> Any:
    """Value for a field: of its type, within its range; ``{ times = "3/2" }`` is a
    whole number relative to the parent's."""
    if isinstance(value, dict):
        ratio = value.get("times")
        if {*value} != {"times"} or FIELD_TYPES[name] is not int:
            raise ValueError(f"{value!r}: only a whole number has {{ times = '3/2' }}")
        if not isinstance(ratio, str) or not TIMES.fullmatch(ratio):
            raise ValueError(f"times = {ratio!r} must be a ratio such as '3/2'")
        return Times(Fraction(ratio))
    if isinstance(value, str) and FIELD_TYPES[name] is not str:
        raise ValueError(f"{value!r} is a text: write it without quotes")
    found = convert(name, value)
    low, high = ranges.get(SYMBOL_OF[name], (found, found))
    if not low <= found <= high:
        raise ValueError(f"{value!r} is outside its range, {low} to {high}")
    return found


# ---- rows together ----------------------------------------------------------------


def _ids(rows: list[_Row]) -> dict[str, int]:
    """Ids by name, of all steps."""
    shipped = {step.name: step.id for step in STEPS.values()}
    return {**shipped, **{row.table["name"]: row.id for row in rows}}


def _conflicts(rows: list[_Row]) -> Iterator[tuple[_Row, _Problem]]:
    """Ids and names that are used twice; parents that do not exist or form a cycle."""
    ids = {step: f"step {step}" for step in STEPS}
    names = {step.name: f"step {step.id}" for step in STEPS.values()}
    for row in rows:
        name = row.table["name"]
        if other := names.get(name):
            yield row, _Problem("name", f"its name is that of {other}")
        elif other := ids.get(row.id):
            given = "id" in row.table
            derived = "" if given else ", derived from its name: give it one"
            yield row, _Problem("id", f"its id {row.id}{derived} is that of {other}")
        names.setdefault(name, row.label)
        ids.setdefault(row.id, row.label)
    needs: dict[int, list[int]] = {}
    for row in rows:
        for key, which in _needed(row):
            found = _ids(rows).get(str(which), as_id(which))
            if found not in ids:
                known = [*map(str, ids), *names]
                text = f"{key}: there is no step {which!r}{hint(str(which), known)}"
                yield row, _Problem(key, text)
            else:
                needs.setdefault(row.id, []).append(int(found))
    for row in rows:
        if row.id in _reached(row.id, needs):
            why = "it depends on itself, over parents and match_step"
            yield row, _Problem("parent", why)


def _needed(row: _Row) -> Iterator[tuple[str, Any]]:
    """Steps that a row refers to, with the key."""
    yield "parent", row.table["parent"]
    match = row.changes.get("match_step", "")
    if match not in ("", LARGEST_ARM):
        yield "match_step", match


def _reached(start: int, needs: Mapping[int, list[int]]) -> set[int]:
    found: set[int] = set()
    open_ends = list(needs.get(start, []))
    while open_ends:
        step = open_ends.pop()
        if step not in found:
            found.add(step)
            open_ends += needs.get(step, [])
    return found


# ---- lines ------------------------------------------------------------------------


class _Lines:
    """Line numbers of tables and keys, which tomllib does not give."""

    def __init__(self, text: str) -> None:
        self.lines = text.split("\n")
        self.starts = [
            n
            for n, line in enumerate(self.lines)
            if re.match(r"\s*\[\[\s*([\"']?)step\1\s*\]\]", line) and self._is_code(n)
        ]

    def _is_code(self, n: int) -> bool:
        """False for a line within a text of several lines, which does not parse."""
        try:
            tomllib.loads("\n".join(self.lines[:n]))
        except tomllib.TOMLDecodeError:
            return False
        return True

    def of(self, table: int, key: str) -> int:
        """Line, from 1, of a key of a table, or of the table itself."""
        if table >= len(self.starts):  # written as step = [{...}]
            return 1
        first = self.starts[table]
        end = self.starts[table + 1] if table + 1 < len(self.starts) else None
        within = _line_of_key(self.lines[first:end], key) if key else 1
        return first + within


def _line_of_key(lines: list[str], key: str) -> int:
    """Line, from 1, of the first that assigns a key or begins its table."""
    name = rf"[\"']?{re.escape(key)}[\"']?"
    for pattern in (
        rf"\s*{name}\s*[=.]",
        rf"\s*\[+[^\]]*{name}\s*\]",
        rf".*{name}\s*=",
    ):
        for n, line in enumerate(lines, 1):
            if re.match(pattern, line):
                return n
    return 1
