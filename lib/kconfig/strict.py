"""Strict loading of Kconfig configurations: files, overrides, config.py, .config.

Every assignment takes effect exactly as written, or is an error with its file, line and
reason; every value keeps its origin.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from lib.kconfig.config_py import DEFAULT, Config, Literal, Types
from lib.kconfig.dotconfig import (
    Aliases,
    fail_on,
    parse_line,
    spellings,
    symbol_for,
)
from lib.kconfig.symbols import (
    active_range,
    choice_members,
    conditions,
    deciding,
    help_of,
    menu_of,
    place_of,
    prompt_of,
)
from lib.kconfig.tree import Tree

Files = Iterable[str | Path]


@dataclass(frozen=True)
class StrictKconfig:
    """Kconfig file, with the types and short names that a project uses for its symbols.

    types: parsers of symbols whose string is of another type, such as float.
    aliases, prefixes: short names of symbols; symbol_for() knows all spellings.
    variables: names of other things that a user may mean, for suggestions.
    root: as for lib.kconfig.tree.Tree.

    The menus are parsed once, which takes longer than everything else here, and must
    not change while the object is in use.

    All methods raise lib.kconfig.config_py.ConfigError with a line for each fault,
    and OSError for a file that cannot be read.
    """

    kconfig: str | Path
    types: Types = field(default_factory=dict)
    aliases: Aliases = field(default_factory=dict)
    prefixes: Sequence[str] = ()
    root: str | Path | None = None
    variables: Sequence[str] = ()
    # Parsed trees that no call is using; several only if threads have loaded at once.
    _idle: list[Tree] = field(default_factory=list, init=False, repr=False)

    def open(self, files: Files, overrides: Iterable[str] = ()) -> Tree:
        """As load(), for the text of .config or of a defconfig as well."""
        tree = self._clean_tree()
        self._assign(tree, files, overrides)
        return tree

    def load(self, files: Files, overrides: Iterable[str] = ()) -> Config:
        """Configuration from the files, later ones overriding earlier ones, and then
        the overrides, as for override()."""
        with self._tree() as tree:
            self._assign(tree, files, overrides)
            return tree.config()

    def override(self, config: Config, overrides: Iterable[str]) -> Config:
        """``config`` with ``KEY=VALUE`` assignments from the command line applied.

        An override takes effect or is an error. A symbol that it hides falls back to
        its default; everything else stays and keeps its origin.
        """
        overrides = list(overrides)
        if not overrides:
            return config
        with self._tree(config) as tree:
            self._override(tree, overrides)
            return tree.config()

    def require_possible(self, config: Config) -> Config:
        """Resolve a config.py, with origins of values that were edited by hand; refuses
        values that no .config can have."""
        with self._tree(config) as tree:
            return tree.config()

    def render_dotconfig(self, config: Config) -> str:
        """Text of the .config for ``config``, including overrides."""
        with self._tree(config) as tree:
            return tree.dotconfig()

    @cached_property
    def kinds(self) -> dict[str, str]:
        """Kind of each symbol: "bool", "int", "hex" or "string"."""
        with self._tree() as tree:
            return tree.kinds

    def symbol_for(self, key: str) -> str:
        """Symbol for any of its spellings; ConfigError with the nearest if none."""
        return symbol_for(key, self.kinds, self.aliases, self.prefixes)

    def members_of(self, name: str) -> dict[str, str]:
        """Members of the choice that sets a derived string, by the string's value; {}
        for a symbol that no choice sets."""
        return self._members.get(name, {})

    @cached_property
    def _members(self) -> dict[str, dict[str, str]]:
        with self._tree() as tree:
            symbols = tree.symbols.values()
            return {s.name: members for s in symbols if (members := choice_members(s))}

    @contextmanager
    def _tree(self, config: Config | None = None) -> Iterator[Tree]:
        """Tree with the values of ``config``, for the block only: the next call may get
        the same one."""
        tree = self._clean_tree()
        try:
            if config is not None:
                tree.replay(config)
            yield tree
        finally:
            self._idle.append(tree)

    def _clean_tree(self) -> Tree:
        """Tree without assignments."""
        try:
            tree = self._idle.pop()
        except IndexError:
            return Tree(self.kconfig, self.types, self.root)
        tree.reset()
        return tree

    def _assign(self, tree: Tree, files: Files, overrides: Iterable[str]) -> None:
        problems = [problem for file in files for problem in tree.read(file)]
        fail_on(problems + tree.check())
        self._override(tree, overrides)

    def _override(self, tree: Tree, overrides: Iterable[str]) -> None:
        tree.override(overrides, self.aliases, self.prefixes, self.variables)

    def refresh(self, dotconfig: str | Path, previous: Config | None = None) -> Config:
        """Configuration in .config, which has every symbol, changed or not.

        Values equal to ``previous`` keep their origin; other values that are not
        defaults originate in their line of .config.
        """
        with self._tree() as tree:
            fail_on(tree.read(dotconfig) + tree.check())
            loaded, changed = tree.config(), assigned_names(tree.minimal(), tree.kinds)
            old = previous or Config({})
            for name, assignment in list(tree.asked.items()):
                here = f"{assignment.source}:"
                known = old.origins.get(name, here)
                if known == old.places.get(name):  # edited by hand, now in .config, too
                    known = here
                before, now = (c.values.get(name) for c in (old, loaded))
                same = name in old.values and before == now
                if same and not known.startswith(here):
                    tree.asked[name] = replace(assignment, origin=known)
                elif name not in changed:
                    del tree.asked[name]
            return tree.config()

    def unusable_lines(self, dotconfig: str | Path) -> dict[int, str]:
        """Lines of .config without effect, by number from 1, with the reasons.

        Refuses a file that dropping lines cannot repair.
        """
        dropped: dict[int, str] = {}
        while True:
            with self._tree() as tree:
                problems = tree.read(dotconfig, skip=dropped) + tree.check()
            if not problems:
                return dict(sorted(dropped.items()))
            fail_on(p for p in problems if not p.line)
            dropped |= {p.line: str(p) for p in problems}

    def ranges(self, config: Config) -> dict[str, tuple[int, int]]:
        """Bounds of each int symbol that has any with this configuration."""
        with self._tree(config) as tree:
            whole = [n for n, kind in tree.kinds.items() if kind == "int"]
            found = {name: active_range(tree.symbols[name]) for name in whole}
        return {n: (int(b[0]), int(b[1])) for n, b in found.items() if b}

    def changed(self, config: Config) -> dict[str, tuple[Literal, str, str]]:
        """Value, default and origin of each symbol with a prompt that is not at its
        default, in the order of the menu."""
        with self._tree(config) as tree:
            named = assigned_names(tree.minimal(), tree.kinds)
            found = {}
            for name in tree.symbols:
                if name in named and (asked := tree.asked.get(name)):
                    default = tree.default(tree.symbols[name])
                    tree.take([asked])
                    found[name] = config.values[name], default, config.origin(name)
            return found

    def explain(self, config: Config, key: str) -> str:
        """Explain one symbol, by any of its spellings: value, origin, default, prompt,
        range, conditions, help."""
        name = self.symbol_for(key)
        facts = self.facts(config, name)
        value = facts.pop("value")
        facts["also_named"] = ", ".join(facts["also_named"])
        facts["prompt"] = facts["prompt"] or without_prompt(name, self.members_of(name))
        facts["instead_of"] = ", ".join(facts["instead_of"])
        facts["follows"] = ", ".join(facts["follows"])
        facts["range"] = "{} to {}".format(*facts["range"]) if facts["range"] else ""
        facts["help"] = facts["help"].replace("\n", "\n" + 14 * " ")
        lines = [f"  {k.replace('_', ' '):<12}{v}" for k, v in facts.items() if v]
        return "\n".join([f"CONFIG_{name} = {value!r}", *lines])

    def facts(self, config: Config, key: str) -> dict[str, Any]:
        """Facts about a symbol, by any of its spellings; a text is empty where there is
        nothing.

        instead_of: the other members of its choice. follows: symbols that it is derived
        from. range: of the numbers that it takes now, None without one.
        """
        name = self.symbol_for(key)
        with self._tree(config) as tree:
            return self._facts(tree, config, name)

    def _facts(self, tree: Tree, config: Config, name: str) -> dict[str, Any]:
        kind = tree.kinds[name]
        symbol = tree.symbols[name]
        origin = config.origin(name)
        bounds = active_range(symbol)
        rivals = (
            [s.name for s in symbol.choice.syms if s != symbol] if symbol.choice else []
        )
        follows = dict.fromkeys(s.name for s in deciding(symbol))
        if origin == DEFAULT:
            origin = f"{DEFAULT} ({place_of(symbol)})"
        return {
            "value": config.values.get(name, ""),
            "origin": origin,
            "also_named": spellings(name, tree.kinds, self.aliases, self.prefixes),
            "prompt": prompt_of(symbol),
            "menu": menu_of(symbol),
            "choice": prompt_of(symbol.choice) if symbol.choice else "",
            "instead_of": rivals,
            "type": kind,
            "range": [int(bound, 0) for bound in bounds] if bounds else None,
            "follows": list(follows),
            "depends_on": "; and on ".join(map(tree.clause, conditions(symbol))),
            "defined_in": place_of(symbol),
            "default": tree.default(symbol) or "empty",
            "help": help_of(symbol),
        }


def without_prompt(name: str, members: Iterable[str]) -> str:
    """Words that say how a symbol without a prompt is set, if a choice sets it."""
    if values := " or ".join(members):
        return f"none: set by a choice, {name}={values}"
    return "none: derived, it cannot be set"


def assigned_names(text: str, kinds: Mapping[str, str]) -> set[str]:
    """Symbols assigned by the lines of a .config."""
    parsed = (parse_line(line, kinds) for line in text.split("\n"))
    return {line[0] for line in parsed if line}
