"""Parse lines of .config and defconfigs, and KEY=VALUE overrides.

Knows the names and kinds of the symbols ("bool", "int", "hex", "string"), but not their
dependencies, which lib/kconfig/strict.py checks. Lines that kconfiglib would drop
silently or with a warning are refused here with the reason and a remedy.
"""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from lib.kconfig.config_py import ConfigError, not_text
from lib.suggestions import hint

Kinds = Mapping[str, str]
Aliases = Mapping[str, str | Callable[[str], dict[str, str]]]

COMMAND_LINE = "command line"
# Of an earlier command, in .config since: `make defconfig-x SEEDS=1`.
SAVED = "saved from the command line"

_STRING = r'"(?:[^"\\]|\\.)*"'
_ASSIGNED = re.compile(rf"CONFIG_([A-Z0-9_]+)=(y|n|-?[0-9]+|0x[0-9a-fA-F]+|{_STRING})")
_UNSET = re.compile(r"# CONFIG_([A-Z0-9_]+) is not set")
_ALMOST_ASSIGNED = re.compile(r"\s*(\w+)\s*=\s*(.*?)\s*")
_ALMOST_UNSET = re.compile(r"\s*#+\s*(CONFIG_)?\w+\s+is\s+not\s+set\b.*")
_COMMENTED = re.compile(rf'({_STRING}|[^"#]*?)\s*#.*')
_VALUES = {
    "bool": (re.compile(r"[yn]"), "y or n"),
    "int": (re.compile(r"-?[0-9]+"), "a whole number"),
    "hex": (re.compile(r"0x[0-9a-fA-F]+"), "a hexadecimal number such as 0x1f"),
}
_SWITCHES = {"1": "y", "0": "n"}  # as in FAIL_FAST=1
_NOT_TEXT = ("Cc", "Cs", "Zl", "Zp")  # control characters, surrogates, line ends


@dataclass(frozen=True)
class Assignment:
    """``name`` (without CONFIG_) is to be ``value``, the text that Kconfig holds."""

    name: str
    value: str
    origin: str  # "defconfigs/x:12", "command line"
    source: str  # a file or the command line; each may set a symbol once
    line: int = 0


@dataclass(frozen=True)
class ConfigProblem:
    """Reason why something cannot be used, and its place (line 0: no line)."""

    origin: str
    text: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.origin}: {self.text}"


def fail_on(problems: Iterable[ConfigProblem]) -> None:
    """Raise ConfigError with all ``problems`` in file order, if there are any."""
    found = list(problems)
    files = list(dict.fromkeys(p.origin.partition(":")[0] for p in found))
    found.sort(key=lambda p: (files.index(p.origin.partition(":")[0]), p.line))
    if found:
        raise ConfigError(*dict.fromkeys(map(str, found)))


def read_lines(file: str | Path, label: str) -> list[str]:
    """Lines of a file (``label`` in messages); ConfigError if it is not text, OSError
    if unreadable."""
    try:
        return Path(file).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise not_text(label, error) from error


def parse_line(line: str, kinds: Kinds) -> tuple[str, str] | None:
    """Symbol and value assigned by a line; None for a comment or an empty line.

    Raises ConfigError with the reason for any other line.
    """
    if unset := _UNSET.fullmatch(line):
        if kind_of(unset[1], kinds) != "bool":
            raise ConfigError(
                f"CONFIG_{unset[1]} is not a bool but of type {kinds[unset[1]]}: "
                "only a bool can be 'not set'"
            )
        return unset[1], "n"
    if assigned := _ASSIGNED.fullmatch(line):
        return assigned[1], literal_of(assigned[1], assigned[2], kinds)
    if not line or (line.startswith("#") and not _ALMOST_UNSET.fullmatch(line)):
        return None
    raise ConfigError(_malformed(line, kinds))


def _malformed(line: str, kinds: Kinds) -> str:
    if _ALMOST_UNSET.fullmatch(line):
        return f"write exactly `# CONFIG_NAME is not set`, not {line!r}"
    match = _ALMOST_ASSIGNED.fullmatch(line)
    if match is None:
        return f"neither an assignment nor a comment: {line!r}"
    name, value = match[1].removeprefix("CONFIG_"), match[2]
    kind_of(name, kinds)
    if not match[1].startswith("CONFIG_"):
        return f"the prefix CONFIG_ is missing: write CONFIG_{name}={value}"
    if commented := _COMMENTED.fullmatch(value):
        start = f"CONFIG_{name}={commented[1]}"
        return f"a comment needs a line of its own: end the line after {start}"
    literal_of(name, value, kinds)
    return f"blanks around the parts: write CONFIG_{name}={value}"


def leading_comments(lines: Iterable[str]) -> list[str]:
    """Comment lines at the top of a preset; `# X is not set` does not count."""

    def is_comment(line: str) -> bool:
        return line.startswith("#") and not line.endswith(" is not set")

    return list(takewhile(is_comment, lines))


def kind_of(name: str, kinds: Kinds) -> str:
    """Kind of a symbol; ConfigError with the nearest names if it does not exist."""
    if name not in kinds:
        nearest = hint(name, kinds, "CONFIG_")
        raise ConfigError(f"unknown symbol CONFIG_{name}{nearest}")
    return kinds[name]


def literal_of(name: str, text: str, kinds: Kinds, *, quoted: bool = True) -> str:
    """Value of a symbol from ``text``: strings unquoted, everything else checked.

    Without ``quoted``, as on the command line, a string may be unquoted, a bool 1 or 0,
    and blanks are allowed around all but strings. Raises ConfigError if it does not fit
    the symbol's kind.
    """
    kind = kind_of(name, kinds)
    if kind in _VALUES and not quoted:
        text = text.strip()
    if kind == "bool" and not quoted:
        text = _SWITCHES.get(text, text)
    if kind in _VALUES:
        pattern, wanted = _VALUES[kind]
        if not pattern.fullmatch(text):
            raise ConfigError(f"CONFIG_{name} must be {wanted}, not {text}")
        return text
    if re.fullmatch(_STRING, text):
        text = re.sub(r"\\(.)", r"\1", text[1:-1])
    elif quoted:
        inner = text.strip('"')
        raise ConfigError(f'CONFIG_{name} is a string: write CONFIG_{name}="{inner}"')
    if any(unicodedata.category(c) in _NOT_TEXT for c in text):
        raise ConfigError(f"CONFIG_{name}: {text!r} has control characters")
    return text


def split_overrides(text: str) -> list[str]:
    """Split ``"A=1 B='x y'"`` into assignments, quoted as for a shell."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise ConfigError(f"{COMMAND_LINE}: {text}: {error}") from error


def parse_override(
    text: str,
    kinds: Kinds,
    aliases: Aliases,
    prefixes: Sequence[str],
    variables: Sequence[str] = (),
) -> dict[str, str]:
    """Symbols assigned by ``KEY=VALUE``; ConfigError with the reason if there are none.

    KEY is one of the spellings of symbol_for, or an alias for several symbols.
    variables: as for symbol_for.
    """
    key, equals, value = text.partition("=")
    if not equals:
        raise ConfigError("not of the form KEY=VALUE")
    alias = aliases.get(key)
    if callable(alias):
        wanted = alias(value.strip())
    else:
        wanted = {symbol_for(key, kinds, aliases, prefixes, variables): value}
    return {n: literal_of(n, v, kinds, quoted=False) for n, v in wanted.items()}


def symbol_for(
    key: str,
    kinds: Kinds,
    aliases: Aliases,
    prefixes: Sequence[str],
    variables: Sequence[str] = (),
) -> str:
    """Symbol for one of its spellings: an alias, or its name in upper or lower case,
    with or without CONFIG_ and one of the ``prefixes``.

    variables: other names that the user may have meant. Raises ConfigError with the
    nearest names if there is none.
    """
    found = symbols_named(key, kinds, aliases, prefixes)
    if len(found) == 1:
        return found[0]
    if found:
        raise ConfigError(f"{key} is ambiguous: write {' or '.join(found)}")
    if callable(expand := aliases.get(key)):
        raise ConfigError(f"{key} stands for {', '.join(expand(''))}: name one of them")
    short = [n.removeprefix(p) for n in kinds for p in prefixes if n.startswith(p)]
    name = key.removeprefix("CONFIG_").rpartition(".")[2].upper()
    nearest = hint(name, dict.fromkeys([*variables, *aliases, *short, *kinds]))
    raise ConfigError(f"there is no setting {key}{nearest}")


def symbols_named(
    key: str, kinds: Kinds, aliases: Aliases, prefixes: Sequence[str]
) -> list[str]:
    """Symbols that a spelling may stand for; [] for none, or for an alias of several
    symbols."""
    name = key.removeprefix("CONFIG_").upper()
    alias = aliases.get(key) or aliases.get(name)
    if alias is not None:
        return [alias] if isinstance(alias, str) else []
    if name in kinds:
        return [name]
    return [prefix + name for prefix in prefixes if prefix + name in kinds]


def spellings(
    symbol: str, kinds: Kinds, aliases: Aliases, prefixes: Sequence[str]
) -> list[str]:
    """Other names of a symbol that symbol_for knows: short names, then aliases."""
    short = [symbol.removeprefix(p) for p in prefixes if symbol.startswith(p)]
    short = [s for s in short if symbols_named(s, kinds, aliases, prefixes) == [symbol]]
    return [*short, *(alias for alias, target in aliases.items() if target == symbol)]
