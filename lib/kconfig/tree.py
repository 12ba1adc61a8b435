"""A parsed Kconfig tree and the assignments made to it.

kconfiglib, like the C tools, drops assignments that it cannot use, with or without a
warning. Here an assignment either takes effect exactly as written or is a problem with
place and reason, and every value has an origin.
"""

from __future__ import annotations

import glob
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import kconfiglib
from kconfiglib import BOOL, HEX, INT, Choice, Symbol, expr_value

from lib.atomic_files import clear_write_errors
from lib.kconfig.config_py import DEFAULT, Config, ConfigError, Literal, Types, convert
from lib.kconfig.dotconfig import (
    COMMAND_LINE,
    Aliases,
    Assignment,
    ConfigProblem,
    fail_on,
    parse_line,
    parse_override,
    read_lines,
    symbols_named,
)
from lib.kconfig.symbols import (
    active_range,
    choice_members,
    conditions,
    deciding,
    followed,
    items,
    kind_of_symbol,
    place_of,
    prompt_of,
    prompts,
    text_of,
)
from lib.suggestions import hint


class Tree:
    """Parsed Kconfig tree and the assignments made to it.

    root: the folder that `source` and places are relative to, by default that of
    ``kconfig``.
    """

    def __init__(
        self,
        kconfig: str | Path,
        types: Types | None = None,
        root: str | Path | None = None,
    ) -> None:
        kconfig = Path(kconfig).resolve()
        self.root = kconfig.parent if root is None else Path(root).resolve()
        self.types = types or {}
        self.kconf = _parse(kconfig, self.root)
        self.asked: dict[str, Assignment] = {}
        defined = self.kconf.unique_defined_syms
        self.symbols: dict[str, Symbol] = {s.name: s for s in defined}
        self.kinds = {s.name: kind_of_symbol(s) for s in defined}

    def reset(self) -> None:
        """Drop all assignments and warnings, as in a tree that was just parsed."""
        self.kconf.unset_values()
        self.kconf._invalidate_all()  # defaults warn again, too
        self.kconf.warnings.clear()
        self.asked.clear()

    # ---- assignments ------------------------------------------------------------

    def read(self, file: str | Path, skip: Iterable[int] = ()) -> list[ConfigProblem]:
        """Apply every assignment of a file; returns problems of its lines."""
        source = self.label(file)
        problems, found = [], []
        for number, line in enumerate(read_lines(file, source), 1):
            origin = f"{source}:{number}"
            try:
                parsed = None if number in skip else parse_line(line, self.kinds)
            except ConfigError as error:
                problems.append(ConfigProblem(origin, str(error), number))
            else:
                if parsed:
                    found.append(Assignment(*parsed, origin, source, number))
        repeated = list(self._repeated(found))
        self.take(a for a in found if a.line not in {p.line for p in repeated})
        return problems + repeated

    def label(self, file: str | Path) -> str:
        """Name of a file in messages: relative to the root if it is inside."""
        path = Path(file).resolve()
        inside = path.is_relative_to(self.root)
        return str(path.relative_to(self.root) if inside else file)

    def _repeated(self, found: Sequence[Assignment]) -> Iterator[ConfigProblem]:
        """Problems: symbols set twice, and choices with two members on, in one
        source."""
        first: dict[str | Choice, Assignment] = {}
        for a in found:
            choice = self.symbols[a.name].choice
            before = first.setdefault(a.name, a)
            if before is not a:
                text = f"CONFIG_{a.name} is set twice{_at(before)}"
                yield ConfigProblem(a.origin, text, a.line)
            elif choice and a.value == "y":
                rival = first.setdefault(choice, a)
                if rival is not a:
                    text = (
                        f"CONFIG_{a.name}=y excludes CONFIG_{rival.name}=y"
                        f"{_at(rival)}: both are in the choice {prompt_of(choice)!r}"
                    )
                    yield ConfigProblem(a.origin, text, a.line)

    def take(self, assignments: Iterable[Assignment]) -> None:
        """Apply assignments; a member of a choice replaces one from another source."""
        for a in assignments:
            symbol = self.symbols[a.name]
            if symbol.choice and a.value == "y":
                for rival in symbol.choice.syms:
                    earlier = self.asked.get(rival.name)
                    if earlier and earlier.source != a.source:
                        del self.asked[rival.name]
                symbol.choice.set_value("y")
            if prompts(symbol):
                symbol.set_value(a.value)
            self.asked[a.name] = a

    # ---- checks -----------------------------------------------------------------

    def check(self) -> list[ConfigProblem]:
        """Problems: assignments that did not take effect, after evaluation of all
        symbols."""
        values = {name: symbol.str_value for name, symbol in self.symbols.items()}
        problems = [
            ConfigProblem(a.origin, self.why_not(a), a.line)
            for a in self.asked.values()
            if values[a.name] != a.value
        ]
        return problems or [ConfigProblem("Kconfig", w) for w in self.kconf.warnings]

    def why_not(self, a: Assignment) -> str:
        """Reason why ``a`` had no effect."""
        symbol = self.symbols[a.name]
        name = f"CONFIG_{a.name}"
        if not prompts(symbol):
            return (
                f"{name} has no prompt: it is derived and now {symbol.str_value!r}; "
                f"set what it follows from instead: {followed(symbol)}"
            )
        if not symbol.visibility:
            return f"{name} depends on {self._unmet(symbol)}"
        if bounds := active_range(symbol):
            return f"{name}={a.value} is outside its range, {bounds[0]} to {bounds[1]}"
        if symbol.choice:
            others = [f"CONFIG_{s.name}=y" for s in symbol.choice.syms if s != symbol]
            return (
                f"{name}={a.value} leaves the choice {prompt_of(symbol.choice)!r} "
                f"open: write one of {', '.join(others)}"
            )
        forced = [s.name for s in items(symbol.rev_dep) if s.str_value == "y"]
        by = f", selected by {', '.join(forced)}" if forced else ""
        return f"{name}={a.value} has no effect: it is {symbol.str_value}{by}"

    def _unmet(self, item: Symbol | Choice) -> str:
        """Conditions of a prompt that are not met, with their values."""
        failing = [c for c in conditions(item) if not expr_value(c)]
        return "; and on ".join(dict.fromkeys(map(self.clause, failing)))

    def clause(self, condition: Any) -> str:
        """Condition with the current values of its symbols."""
        if isinstance(condition, Symbol):
            return f"{condition.name}, which is {self._state(condition)}"
        states = [f"{s.name} is {self._state(s)}" for s in items(condition)]
        return f"{kconfiglib.expr_str(condition)}, where {', '.join(states)}"

    def _state(self, symbol: Symbol) -> str:
        asked = self.asked.get(symbol.name)
        return (symbol.str_value or "empty") + (f" ({asked.origin})" if asked else "")

    # ---- overrides --------------------------------------------------------------

    def override(
        self,
        overrides: Iterable[str],
        aliases: Aliases,
        prefixes: Sequence[str],
        variables: Sequence[str] = (),
    ) -> None:
        """Apply ``KEY=VALUE`` strings to the tree; raises ConfigError."""
        names = self.kinds, aliases, prefixes, variables
        problems, found = [], []
        for text in overrides:
            try:
                parsed = parse_override(text, *names)
                chosen = [self._chosen(*each, aliases) for each in parsed.items()]
                found += [Assignment(*c, COMMAND_LINE, COMMAND_LINE) for c in chosen]
            except ValueError as error:
                problems.append(ConfigProblem(COMMAND_LINE, f"{text}: {error}"))
        fail_on([*problems, *self._repeated(found)])
        self.take(found)
        self._drop_hidden()
        fail_on(self.check())

    def _chosen(self, name: str, value: str, aliases: Aliases) -> tuple[str, str]:
        """Symbol to set and its value. A string that follows from a choice is set by
        the member that gives it this value or has it in its name, in upper or lower
        case: COLOR=red sets COLOR_RED."""
        members = choice_members(self.symbols[name])
        if not members:
            return name, value
        value = value.strip()
        known = {text.lower(): member for text, member in members.items()}
        named, *_ = symbols_named(f"{name}_{value}", self.kinds, aliases, ()) or [""]
        if named in members.values():
            return named, "y"
        if value.lower() in known:
            return known[value.lower()], "y"
        allowed = f"must be one of {', '.join(members)}{hint(value.lower(), known)}"
        raise ConfigError(f"{name}={value} {allowed}")

    def _drop_hidden(self) -> None:
        """Drop assignments that an override has hidden: they fall back to the
        default."""
        for name, a in list(self.asked.items()):
            symbol = self.symbols[name]
            hidden = not symbol.visibility and symbol.str_value != a.value
            if hidden and a.source != COMMAND_LINE:
                symbol.unset_value()
                del self.asked[name]

    def replay(self, config: Config) -> None:
        """Set the tree to the values of ``config``, read from a config.py.

        Values with an origin are assigned again. The others should equal their
        defaults; one that does not was edited by hand, or its default has changed
        since, and originates in its line of config.py. Raises ConfigError if the values
        are not possible.
        """
        fail_on(
            ConfigProblem(_place(config, n), f"unknown symbol CONFIG_{n}")
            for n in config.values
            if n not in self.symbols
        )
        asked = [n for n in config.values if n in config.origins]
        self.take(self._recorded(config, asked))
        moved = [n for n, v in self.values().items() if config.values.get(n, v) != v]
        self.take(self._recorded(config, moved))
        now = self.values()
        fail_on(
            ConfigProblem(
                _place(config, n),
                f"CONFIG_{n} = {v!r} is not possible: Kconfig makes it {now.get(n)!r} "
                "with the other lines of this file. Change .config, from which "
                "config.py is generated",
            )
            for n, v in config.values.items()
            if now.get(n) != v
        )

    def _recorded(self, config: Config, names: Iterable[str]) -> Iterator[Assignment]:
        for name in names:
            symbol, value = self.symbols[name], config.values[name]
            if prompts(symbol) and not (symbol.choice and value is False):
                origin = config.origins.get(name) or config.places.get(name, DEFAULT)
                yield Assignment(name, text_of(symbol, value), origin, "config.py")

    # ---- results ----------------------------------------------------------------

    def values(self) -> dict[str, Literal]:
        """Typed values of all symbols, except hidden ones without a value."""
        raw: dict[str, Literal] = {}
        for name, symbol in self.symbols.items():
            numeric = symbol.orig_type in (INT, HEX) or name in self.types
            if symbol.orig_type is BOOL:
                raw[name] = symbol.tri_value == 2
            elif symbol.orig_type in (INT, HEX) and symbol.str_value:
                raw[name] = int(symbol.str_value, 0 if symbol.orig_type is HEX else 10)
            elif symbol.str_value or not numeric:
                raw[name] = symbol.str_value
            elif symbol.visibility:
                asked = self.asked.get(name)
                where = asked.origin if asked else place_of(symbol)
                raise ConfigError(f"{where}: CONFIG_{name} has no value")
        return convert(Config(raw, self.origins()), self.types).values

    def config(self) -> Config:
        """Current values and origins; ConfigError for an unreadable value."""
        values = self.values()
        origins = {n: o for n, o in self.origins().items() if n in values}
        return Config(values, origins)

    def origins(self) -> dict[str, str]:
        """Origin by symbol; a derived symbol has that of the symbol it depends on."""
        asked = {
            name: a.origin
            for name, a in self.asked.items()
            if a.origin != DEFAULT and self.symbols[name].visibility
        }
        found = {
            n: asked.get(n) or self._derived(s, asked) for n, s in self.symbols.items()
        }
        return {name: origin for name, origin in found.items() if origin}

    def _derived(
        self, symbol: Symbol, asked: Mapping[str, str], depth: int = 8
    ) -> str | None:
        """Origin of the assignment that decided a hidden symbol's value, if there is
        one."""
        if symbol.visibility or symbol.choice or not depth:
            return None
        for other in deciding(symbol):
            for member in (other, *(other.choice.syms if other.choice else ())):
                origin = asked.get(member.name)
                if origin or (origin := self._derived(member, asked, depth - 1)):
                    return origin
        return None

    def dotconfig(self) -> str:
        """Text of .config, with every symbol that is written."""
        return _written(self.kconf.write_config)

    def minimal(self) -> str:
        """Like dotconfig, without symbols that equal their default."""
        return _written(self.kconf.write_min_config)

    def default(self, symbol: Symbol) -> str:
        """Default of the symbol; drops its assignment."""
        if symbol.choice:
            symbol.choice.unset_value()
        symbol.unset_value()
        return str(symbol.str_value)


def _place(config: Config, name: str) -> str:
    return config.places.get(name, "config.py")


def _at(a: Assignment) -> str:
    return f" (first in line {a.line})" if a.line else ""


def _parse(kconfig: Path, root: Path) -> kconfiglib.Kconfig:
    """Parse a Kconfig tree; kconfiglib's warnings are errors."""
    start = str(kconfig.relative_to(root))
    try:
        with _environment(srctree=str(root), KCONFIG_WARN_UNDEF="y"), _literal(root):
            tree = kconfiglib.Kconfig(start, warn_to_stderr=False)
    except (kconfiglib.KconfigError, OSError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
    fail_on(ConfigProblem("Kconfig", warning) for warning in tree.warnings)
    return tree


@contextmanager
def _literal(root: Path) -> Iterator[None]:
    """Escape the path of the tree: kconfiglib uses it as part of the glob in
    `source`."""
    start = f"{root}{os.sep}"
    kconfiglib.iglob = lambda p: glob.iglob(glob.escape(start) + p.removeprefix(start))
    try:
        yield
    finally:
        kconfiglib.iglob = glob.iglob


@contextmanager
def _environment(**wanted: str) -> Iterator[None]:
    """Set variables that kconfiglib reads only from the environment."""
    names = (*wanted, "CONFIG_", "KCONFIG_CONFIG_HEADER")
    saved = {name: os.environ.pop(name, None) for name in names}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in saved.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


def _written(write: Callable[..., str]) -> str:
    """Text that one of kconfiglib's writers puts into a file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config")
        with clear_write_errors(path):
            write(str(path), header="")
        return path.read_text(encoding="utf-8")
