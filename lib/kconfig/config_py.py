"""Write config.py from .config, and read it as data that is never executed.

One ``CONFIG_NAME = literal`` per line, then ``ORIGINS``, which has the origin and value
of each symbol that is not a default: a value that differs from it was edited by hand in
config.py. A config.py may come from untrusted results, so reading it parses literals
and executes nothing.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lib.files import open_plain

Literal = bool | int | float | str
Types = Mapping[str, Callable[[str], Literal]]

DEFAULT = "default"
HEADER = '"""Generated from .config; do not edit."""\n'
_NAME = re.compile(r"CONFIG_[A-Z0-9_]+")


class ConfigError(ValueError):
    """Unusable configuration; ``problems`` has one line for each fault."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("\n".join(problems))


@dataclass(frozen=True)
class Config:
    """Values by symbol (without CONFIG_), and origins of those that are not defaults.

    places: line of config.py with a value, if it was read from there.
    """

    values: dict[str, Literal]
    origins: dict[str, str] = field(default_factory=dict)
    places: dict[str, str] = field(default_factory=dict, compare=False, repr=False)

    def origin(self, symbol: str) -> str:
        """Origin of the value of ``symbol``: "defconfigs/x:12", "default"..."""
        return self.origins.get(symbol, DEFAULT)

    def located(self, text: str) -> str:
        """``text`` with the places where the symbols that it names were set, unless its
        lines begin with the places that are wrong."""
        places = tuple(f"{origin}: " for origin in self.origins.values())
        if all(line.startswith(places) for line in text.split("\n")):
            return text
        named = dict.fromkeys(re.findall(r"[A-Z][A-Z0-9_]+", text))
        found = {name: self.origins[name] for name in named if name in self.origins}
        more = [f"{name}: {o}" for name, o in found.items() if o not in text]
        return f"{text}\n({'; '.join(more)})" if more else text


def not_text(file: str, error: UnicodeDecodeError) -> ConfigError:
    """The error for a file that is not UTF-8, with the line of the first bad byte."""
    line = error.object[: error.start].count(b"\n") + 1
    return ConfigError(f"{file}:{line}: not UTF-8 text ({error.reason})")


def is_enabled(value: object) -> bool:
    """True if a bool is on: True and "y" are on, False, "n" and "" off.

    Raises ValueError for anything else, so that ``"True"`` or 1 cannot pass for off.
    """
    if value is True or value == "y":
        return True
    if value is False or value is None or value in ("n", ""):
        return False
    raise ValueError(f"{value!r} is neither on (True, 'y') nor off (False, 'n')")


def render_config(config: Config, types: Types | None = None) -> str:
    """Contents of config.py.

    ``types`` maps symbols whose Kconfig string is of another type to the function that
    parses it, for example ``{"RATE": float}``. Raises ConfigError if that fails or if a
    value cannot be written as a literal.
    """
    typed = convert(config, types or {})
    lines = [f"CONFIG_{name} = {value!r}\n" for name, value in typed.values.items()]
    noted = {n: (o, typed.values.get(n, "")) for n, o in typed.origins.items()}
    origins = [f"    {name!r}: {entry!r},\n" for name, entry in noted.items()]
    text = "".join([HEADER, "\n", *lines, "\nORIGINS = {\n", *origins, "}\n"])
    if parse_config(text, "config.py") != typed:
        raise ConfigError("config.py: a value has no literal that reads back equal")
    return text


def convert(config: Config, types: Types) -> Config:
    """``config`` with the strings in ``types`` parsed; ConfigError names all bad
    ones."""
    values, problems = dict(config.values), []
    for name, value in values.items():
        if isinstance(value, str) and name in types:
            try:
                values[name] = types[name](value)
            except ValueError as error:
                origin = config.origin(name)
                problems.append(f"{origin}: CONFIG_{name}={value!r}: {error}")
    if problems:
        raise ConfigError(*problems)
    return Config(values, dict(config.origins))


def read_config(path: str | Path, name: str = "") -> Config:
    """Read config.py as data; messages call it ``name``, or else by its path.

    Raises ConfigError with file and line for anything but assignments of bools,
    numbers and strings; OSError if the file cannot be read.
    """
    try:
        with open_plain(path) as file:
            text = file.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise not_text(name or str(path), error) from error
    return parse_config(text, name or str(path))


def parse_config(text: str, name: str) -> Config:
    """Like read_config, from a string; messages call it ``name``."""
    found: dict[str, tuple[int, object]] = {}
    for line, target, value in _assignments(text, name):
        if target in found:
            raise ConfigError(f"{name}:{line}: {target} is set twice")
        if target != "ORIGINS" and not _NAME.fullmatch(target):
            raise ConfigError(f"{name}:{line}: {target} is not a CONFIG_NAME")
        found[target] = line, value
    line, origins = found.pop("ORIGINS", (0, {}))
    values = {
        target.removeprefix("CONFIG_"): _checked_value(value, f"{name}:{at}: {target}")
        for target, (at, value) in found.items()
    }
    places = {n.removeprefix("CONFIG_"): f"{name}:{at}" for n, (at, _) in found.items()}
    written = _checked_origins(origins, f"{name}:{line}")
    asked = {n: origin for n, (origin, *_) in written.items()}
    edited = [n for n, (_, *old) in written.items() if old and _differ(values, n, *old)]
    return Config(values, {**asked, **{n: places[n] for n in edited}}, places)


def _differ(values: Mapping[str, Literal], name: str, old: object) -> bool:
    """True if a symbol has another value than in ORIGINS; 1 is not True."""
    return name in values and repr(values[name]) != repr(old)


def _assignments(text: str, name: str) -> Iterator[tuple[int, str, object]]:
    """Line, name and value of each statement; only plain literals are allowed."""
    try:
        body = ast.parse(text).body
    except SyntaxError as error:
        raise ConfigError(f"{name}:{error.lineno or 1}: {error.msg}") from error
    except (ValueError, RecursionError, MemoryError) as error:
        raise ConfigError(f"{name}: not a generated config.py ({error})") from error
    for number, node in enumerate(body):
        if number == 0 and isinstance(node, ast.Expr) and _is_text(node.value):
            continue  # the header
        where = f"{name}:{node.lineno}"
        if not isinstance(node, ast.Assign) or len(node.targets) != 1:
            raise ConfigError(f"{where}: only `CONFIG_NAME = literal` is allowed here")
        target = node.targets[0]
        if not isinstance(target, ast.Name):
            raise ConfigError(f"{where}: only `CONFIG_NAME = literal` is allowed here")
        try:
            value = ast.literal_eval(node.value)
        except (ValueError, TypeError, RecursionError, MemoryError) as error:
            raise ConfigError(f"{where}: {target.id} is not a literal") from error
        yield node.lineno, target.id, value


def _is_text(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def _checked_value(value: object, where: str) -> Literal:
    if isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    raise ConfigError(f"{where} must be a bool, a finite number or a string")


def _checked_origins(value: object, where: str) -> dict[str, tuple[Any, ...]]:
    """(origin, value when written) by symbol; older files have only the origin."""
    refusal = ConfigError(f"{where}: ORIGINS must map symbols to strings")
    if not isinstance(value, dict):
        raise refusal
    checked: dict[str, tuple[Any, ...]] = {}
    for name, entry in value.items():
        noted = entry if isinstance(entry, tuple) else (entry,)
        if len(noted) not in (1, 2) or not isinstance(noted[0], str):
            raise refusal
        if not isinstance(name, str):
            raise refusal
        checked[name] = noted
    return checked
