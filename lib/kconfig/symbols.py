"""Properties of a symbol or choice in a parsed Kconfig tree, whatever its value."""

from __future__ import annotations

from typing import Any, TypeAlias

import kconfiglib
from kconfiglib import BOOL, HEX, INT, STRING, Choice, Symbol, expr_value

from lib.kconfig.config_py import ConfigError, Literal

KINDS = {BOOL: "bool", INT: "int", HEX: "hex", STRING: "string"}


Item: TypeAlias = Symbol | Choice


def prompts(item: Item) -> list[Any]:
    """Menu nodes that show a symbol or choice to the user."""
    return [node for node in item.nodes if node.prompt]


def prompt_of(item: Item) -> str:
    """Prompt of a symbol or choice; "" if it has none."""
    return next((node.prompt[0] for node in prompts(item)), "")


def help_of(item: Item) -> str:
    """Help text; a member of a choice without help has its choice's."""
    texts = [node.help.strip() for node in item.nodes if node.help]
    choice = item.choice if isinstance(item, Symbol) else None
    return texts[0] if texts else help_of(choice) if choice else ""


def menu_of(symbol: Item) -> str:
    """Menus that contain a symbol, outermost first."""
    names, node = [], symbol.nodes[0].parent
    while node.parent:
        if node.item == kconfiglib.MENU:
            names.append(node.prompt[0])
        node = node.parent
    return " > ".join(reversed(names))


def place_of(symbol: Symbol) -> str:
    """``file:line`` of a symbol's definition."""
    return f"{symbol.nodes[0].filename}:{symbol.nodes[0].linenr}"


def kind_of_symbol(symbol: Symbol) -> str:
    """ "bool", "int", "hex" or "string"; ConfigError for what we do not use."""
    if symbol.orig_type not in KINDS:
        raise ConfigError(
            f"{place_of(symbol)}: {symbol.name} has no type, or is a tristate"
        )
    return KINDS[symbol.orig_type]


def conditions(item: Item) -> list[Any]:
    """Conditions under which a symbol's prompt is shown, including its choice's."""
    found: list[Any] = []
    for node in prompts(item):
        for clause in kconfiglib.split_expr(node.prompt[1], kconfiglib.AND):
            if isinstance(clause, Choice):
                found += conditions(clause)
            elif items(clause):
                found.append(clause)
    return list(dict.fromkeys(found))


def deciding(symbol: Symbol) -> list[Symbol]:
    """Symbols that a derived value depends on, the deciding one first."""
    groups = [items(symbol.rev_dep)]
    for value, condition in symbol.defaults:
        groups.append(items(condition) + items(value))
        if expr_value(condition):
            break
    return [found for group in reversed(groups) for found in group]


def choice_members(symbol: Symbol) -> dict[str, str]:
    """Members of a choice by the value that they give to a string without a prompt,
    as in ``default "topk" if STATISTIC_TOPK``; {} for other symbols.

    A default without a condition stands for the one member that is not named.
    """
    if symbol.orig_type is not STRING or prompts(symbol):
        return {}
    found, rest = {}, ""
    for value, condition in symbol.defaults:
        if isinstance(condition, Symbol) and condition.choice:
            found[value.str_value] = condition.name
            others = {s.name for s in condition.choice.syms} - {*found.values()}
            rest = others.pop() if len(others) == 1 else ""
        elif condition is symbol.kconfig.y and rest and value.str_value not in found:
            found[value.str_value] = rest
    return found


def active_range(symbol: Symbol) -> tuple[str, str] | None:
    """Currently active bounds, or None."""
    for low, high, condition in symbol.ranges:
        if expr_value(condition):
            return low.str_value, high.str_value
    return None


def items(expression: Any) -> list[Symbol]:
    """Defined symbols in an expression, ordered by name."""
    found = kconfiglib.expr_items(expression)
    symbols = [s for s in found if isinstance(s, Symbol) and s.nodes]
    return sorted(symbols, key=lambda s: s.name)


def text_of(symbol: Symbol, value: Literal) -> str:
    """Typed value as Kconfig text."""
    if isinstance(value, bool):
        return "y" if value else "n"
    if symbol.orig_type is HEX and isinstance(value, int):
        return hex(value)
    return str(value)


def followed(symbol: Symbol) -> str:
    """Names of the symbols that decide the value of one without a prompt."""
    found = [s.name for _, when in symbol.defaults for s in items(when)]
    return ", ".join(dict.fromkeys(found)) or "nothing does"


def is_choice(item: Item) -> bool:
    return isinstance(item, Choice)


def shown_by_menu(kconf: kconfiglib.Kconfig) -> dict[str, list[Item]]:
    """Choices, and symbols outside of choices, that have a prompt, by menu."""
    found: dict[str, list[Item]] = {}
    for node in kconf.node_iter():
        item = node.item
        if not isinstance(item, Item) or not prompts(item):
            continue
        listed = found.setdefault(menu_of(item), [])
        if item not in listed and (is_choice(item) or item.choice is None):
            listed.append(item)
    return found


def derived_from(choice: Choice) -> list[Symbol]:
    """Strings without a prompt that get their value from a choice."""
    names = {member.name for member in choice.syms}
    symbols = choice.kconfig.unique_defined_syms
    return [s for s in symbols if names & {*choice_members(s).values()}]


def defaults_of(item: Item) -> list[tuple[str, list[str]]]:
    """Defaults, each with the conditions that it has besides the item's own; the first
    whose conditions hold counts."""
    own = {*clauses(item.direct_dep)}
    return [
        (value.name, [c for c in clauses(condition) if c not in {*own, "y"}])
        for value, condition in item.defaults
    ]


def shown_if(item: Item) -> list[str]:
    """Conditions of a prompt, as text."""
    return [kconfiglib.expr_str(condition) for condition in conditions(item)]


def clauses(expression: Any) -> list[str]:
    """Expressions that an expression requires together, as text."""
    parts = kconfiglib.split_expr(expression, kconfiglib.AND)
    return [kconfiglib.expr_str(part) for part in parts]
