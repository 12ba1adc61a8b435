"""Strict loading of Kconfig configurations: files, overrides, config.py, .config.

Every assignment takes effect exactly as written or is an error with its file, line
and reason; every value keeps the place where it was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from lib.kconfig.config_py import DEFAULT, Config, Types
from lib.kconfig.dotconfig import Aliases, fail_on, kind_of, parse_line
from lib.kconfig.symbols import (
    active_range,
    conditions,
    deciding,
    help_of,
    menu_of,
    place_of,
    prompt_of,
)
from lib.kconfig.tree import Tree


def open_strict(
    kconfig: str | Path,
    files: Iterable[str | Path],
    overrides: Iterable[str] = (),
    *,
    types: Types | None = None,
    aliases: Aliases | None = None,
    prefixes: Sequence[str] = (),
) -> Tree:
    """As load_strict, for one who also wants the text of .config or a defconfig."""
    tree = Tree(kconfig, types)
    problems = [problem for file in files for problem in tree.read(file)]
    fail_on(problems + tree.check())
    tree.override(overrides, aliases or {}, prefixes)
    return tree


def load_strict(
    kconfig: str | Path,
    files: Iterable[str | Path],
    overrides: Iterable[str] = (),
    *,
    types: Types | None = None,
    aliases: Aliases | None = None,
    prefixes: Sequence[str] = (),
) -> Config:
    """The configuration that ``files`` ask for; a later file overrules an earlier one.

    ``overrides`` as in apply_overrides, after the files. Raises ConfigError with a
    line for each fault of the files, OSError if one cannot be read.
    """
    return open_strict(
        kconfig, files, overrides, types=types, aliases=aliases, prefixes=prefixes
    ).config()


def apply_overrides(
    kconfig: str | Path,
    config: Config,
    overrides: Iterable[str],
    *,
    types: Types | None = None,
    aliases: Aliases | None = None,
    prefixes: Sequence[str] = (),
) -> Config:
    """``config`` with ``KEY=VALUE`` assignments from the command line applied.

    KEY is a name in ``aliases``, a symbol, or one without a prefix in ``prefixes``.
    An override takes effect or is an error; a symbol that it hides falls back to its
    default, and everything else stays and keeps its origin. Raises ConfigError.
    """
    overrides = list(overrides)
    if not overrides:
        return config
    tree = Tree(kconfig, types)
    tree.replay(config)
    tree.override(overrides, aliases or {}, prefixes)
    return tree.config()


def require_possible(
    kconfig: str | Path, config: Config, *, types: Types | None = None
) -> Config:
    """A config.py with the origins of values that were edited by hand.

    Raises ConfigError for values that no .config leads to.
    """
    tree = Tree(kconfig, types)
    tree.replay(config)
    return tree.config()


def refresh(
    kconfig: str | Path,
    dotconfig: str | Path,
    previous: Config | None = None,
    *,
    types: Types | None = None,
) -> Config:
    """The configuration in .config, which names every symbol, asked for or not.

    What equals ``previous`` keeps its origin there; of the rest, what is not default
    originates in its line of .config. Raises ConfigError as load_strict.
    """
    tree = Tree(kconfig, types)
    fail_on(tree.read(dotconfig) + tree.check())
    loaded, changed = tree.config(), assigned_names(tree.minimal(), tree.kinds)
    old = previous or Config({})
    for name, assignment in list(tree.asked.items()):
        known = old.origins.get(name, f"{assignment.source}:")
        if known == old.places.get(name):  # edited by hand, and so in .config now
            known = f"{assignment.source}:"
        same = name in old.values and old.values[name] == loaded.values.get(name)
        if same and not known.startswith(f"{assignment.source}:"):
            tree.asked[name] = replace(assignment, origin=known)
        elif name not in changed:
            del tree.asked[name]
    return tree.config()


def assigned_names(text: str, kinds: Mapping[str, str]) -> set[str]:
    """The symbols that the lines of a .config assign."""
    parsed = (parse_line(line, kinds) for line in text.split("\n"))
    return {line[0] for line in parsed if line}


def unusable_lines(kconfig: str | Path, dotconfig: str | Path) -> dict[int, str]:
    """The lines of .config that have no effect, by number from 1, each with why.

    Raises ConfigError for what no dropped line can mend, OSError if unreadable.
    """
    dropped: dict[int, str] = {}
    while True:
        tree = Tree(kconfig)
        problems = tree.read(dotconfig, skip=dropped) + tree.check()
        if not problems:
            return dict(sorted(dropped.items()))
        fail_on(p for p in problems if not p.line)
        dropped |= {p.line: str(p) for p in problems}


def render_dotconfig(
    kconfig: str | Path, config: Config, *, types: Types | None = None
) -> str:
    """The text of the .config that ``config`` stands for, overrides included."""
    tree = Tree(kconfig, types)
    tree.replay(config)
    return tree.dotconfig()


def explain(
    kconfig: str | Path, config: Config, name: str, *, types: Types | None = None
) -> str:
    """All about one symbol: value, origin, default, prompt, range, conditions, help.

    Raises ConfigError, with the nearest name, for an unknown symbol.
    """
    tree = Tree(kconfig, types)
    kind = kind_of(name, tree.kinds)
    tree.replay(config)
    symbol = tree.symbols[name]
    origin = config.origin(name)
    bounds = active_range(symbol)
    rivals = (
        [s.name for s in symbol.choice.syms if s != symbol] if symbol.choice else []
    )
    follows = dict.fromkeys(s.name for s in deciding(symbol))
    facts = {
        "origin": f"{DEFAULT} ({place_of(symbol)})" if origin == DEFAULT else origin,
        "prompt": prompt_of(symbol) or "none: derived, it cannot be set",
        "menu": menu_of(symbol),
        "choice": prompt_of(symbol.choice) if symbol.choice else "",
        "instead of": ", ".join(rivals),
        "type": kind,
        "range": f"{bounds[0]} to {bounds[1]}" if bounds else "",
        "follows": ", ".join(follows),
        "depends on": "; and on ".join(map(tree.clause, conditions(symbol))),
        "defined in": place_of(symbol),
        "default": tree.default(symbol) or "empty",
        "help": help_of(symbol).replace("\n", "\n" + 14 * " "),
    }
    value = config.values.get(name, "")
    lines = [f"  {label:<12}{fact}" for label, fact in facts.items() if fact]
    return "\n".join([f"CONFIG_{name} = {value!r}", *lines])
