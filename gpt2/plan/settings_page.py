"""docs/settings.md: every setting with a prompt, from Kconfig and the schema.

Torch-free.
"""

from __future__ import annotations

import math
import re
import textwrap
from collections.abc import Iterable, Iterator
from typing import Any

from gpt2.plan.readers import READERS
from gpt2.plan.steps import STEPS
from gpt2.settings.parse import ALIASES, PREFIXES
from gpt2.settings.schema import FIELD_TYPES, FIELDS, SYMBOL_OF
from lib.kconfig.dotconfig import spellings as other_names
from lib.kconfig.symbols import (
    Item,
    choice_members,
    defaults_of,
    derived_from,
    help_of,
    is_choice,
    kind_of_symbol,
    prompt_of,
    shown_by_menu,
    shown_if,
)
from lib.kconfig.tree import Tree

WIDTH = 92
FIELD_OF = {symbol: name for name, symbol in SYMBOL_OF.items()}
KINDS: dict[Any, str] = {
    bool: "y or n",
    int: "whole number",
    float: "number",
    float | None: "number, or empty",
    str: "text",
    tuple[int, ...]: "list of whole numbers, as in `1,2,8-12`",
    tuple[int | str, ...]: "list of numbers or names, as in `1,2,8-12,mine`",
    tuple[float, ...]: "list of numbers, as in `0.5,0.9`",
}
TOP = "Experiment"  # heading of what is in no menu
GENERATED = re.compile(r"Steps of the registry:.*_docs\.py\)", re.DOTALL)
STEPS_LIST = "README.md lists the steps."
# Markdown that would begin in a plain text, and at the start of a wrapped line.
MARKUP = re.compile(r"(\*|<(?=[a-zA-Z/!])|_(?=\W)|(?<!\w)_)")
LINE_START = re.compile(r"^(?=[-+#>] |#|\d+[.)] )")


def settings_lines(tree: Tree) -> list[str]:
    """Markdown of all settings of a freshly parsed tree, grouped by menu."""
    found = shown(tree)
    lines = ["", *(line for menu in found for line in contents(menu, found[menu]))]
    for menu, menu_items in found.items():
        lines += ["", f"## {menu}", ""]
        for item in menu_items:
            lines += [f"### {name_of(item)}", "", *entry(item)]
        lines.pop()
    return [*lines, ""]


def contents(menu: str, found: Iterable[Item]) -> list[str]:
    """Links to the settings of a menu, as an item of a list."""
    links = (f"[{name}](#{name.lower()})" for name in map(name_of, found))
    return wrapped(f"- **{menu}**: {', '.join(links)}")


def shown(tree: Tree) -> dict[str, list[Item]]:
    """Choices, and symbols outside of choices, that have a prompt, by heading."""
    found = shown_by_menu(tree.kconf).items()
    return {menu.replace(" > ", ": ") or TOP: items for menu, items in found if items}


def name_of(item: Item) -> str:
    """Symbol of an item; of a choice, the one that follows from it."""
    return str(setting_of(item).name) if is_choice(item) else str(item.name)


def setting_of(choice: Item) -> Item:
    """Setting that Kconfig derives from a choice."""
    (found,) = (s for s in derived_from(choice) if s.name in FIELD_OF)
    return found


def member_of(choice: Item, value: str) -> str:
    """Symbol of the member of a choice that gives its setting this value."""
    return choice_members(setting_of(choice))[value]


def entry(item: Item) -> list[str]:
    """Lines of one setting, with an empty one at the end."""
    text = GENERATED.sub(STEPS_LIST, help_of(item))
    texts = [facts(item), *map(plain, text.split("\n\n")), readers(name_of(item))]
    paragraphs = [line for text in texts if text for line in (*wrapped(text), "")]
    listed = [line for text in members(item) for line in wrapped(text)]
    return [*paragraphs, *listed, *[""] * bool(listed)]


def wrapped(text: str) -> list[str]:
    """Lines of a paragraph or of an item of a list."""
    indent = "  " if text.startswith("- ") else ""
    lines = textwrap.wrap(
        " ".join(text.split()),
        WIDTH,
        subsequent_indent=indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
    rest = (indent + LINE_START.sub(r"\\", line[len(indent) :]) for line in lines[1:])
    return [*lines[:1], *rest]


def facts(item: Item) -> str:
    """Prompt, short names, type, default, range and condition."""
    parts = [f"**{plain(prompt_of(item))}**"]
    if is_choice(item):
        parts.append("one of those below")
    else:
        parts += [spellings(item.name), kind(item), allowed(item)]
    parts.append(f"default {default(item)}")
    parts.append(condition(item))
    return "; ".join(part for part in parts if part) + "."


def condition(item: Item) -> str:
    """When it can be set; "" if always."""
    found = [f"`{clause}`" for clause in shown_if(item)]
    return f"shown if {' and '.join(found)}" if found else ""


def kind(symbol: Item) -> str:
    name = FIELD_OF.get(symbol.name)
    if name is not None:
        return KINDS[FIELD_TYPES[name]]
    return KINDS[{"bool": bool, "int": int}.get(kind_of_symbol(symbol), str)]


def allowed(symbol: Item) -> str:
    """Range or values, of Kconfig or of the schema."""
    for low, high, _ in symbol.ranges:
        return f"{low.name} to {high.name}"
    if symbol.name not in FIELD_OF:
        return ""
    bounds = FIELDS[FIELD_OF[symbol.name]].metadata
    if bounds["allowed"]:
        return ", ".join(f"`{value}`" for value in bounds["allowed"])
    if bounds["high"] == math.inf:
        return ""
    above = bounds["above"] > -math.inf
    low = f"above {bounds['above']:g}" if above else f"{bounds['low']:g}"
    return f"{low} to {bounds['high']:.10g}"


def default(item: Item) -> str:
    """Default, with its conditions where it depends on other settings."""
    found = []
    for value, needed in defaults_of(item):
        text = f"`{value}`" if value else "empty"
        conditions = " and ".join(f"`{clause}`" for clause in needed)
        found.append(f"{text} if {conditions}" if needed else text)
        if not needed:
            return ", else ".join(found)
    is_switch = not is_choice(item) and kind_of_symbol(item) == "bool"
    return ", else ".join([*found, "`n`" if is_switch else "empty"])


def spellings(name: str, value: str = "") -> str:
    """Short names of a symbol on the command line."""
    found = other_names(name, {name: ""}, ALIASES, PREFIXES)
    return " or ".join(f"`{each}{value}`" for each in found)


def assignment(member: Item) -> str:
    """Assignment that selects a member of a choice, as short as possible."""
    setting = setting_of(member.choice)
    values = {name: text for text, name in choice_members(setting).items()}
    if member.name not in values:
        return spellings(member.name, "=y")
    short = spellings(setting.name, f"={values[member.name]}")
    return short or f"`{setting.name}={values[member.name]}`"


def members(item: Item) -> Iterator[str]:
    """Values of a choice."""
    for member in item.syms if is_choice(item) else ():
        outer = shown_if(item)
        extra = [f"`{clause}`" for clause in shown_if(member) if clause not in outer]
        needs = f" Needs {' and '.join(extra)}." if extra else ""
        short = assignment(member)
        names = f"`{member.name}`" + (f", {short}" if short else "")
        text = help_of(member).replace("\n\n", " ")
        yield f"- {names}: {plain(prompt_of(member))}. {plain(text)}{needs}"


def readers(symbol: str) -> str:
    """Readers of a setting, if not every job reads it, and the steps that set it."""
    name = FIELD_OF.get(symbol)
    found = [reader.what for reader in READERS if name in reader.fields]
    steps = [str(step.id) for step in STEPS.values() if name in step.changes]
    texts = [f"Read only where a job {what}." for what in found]
    if steps:
        texts.append(f"Set by step{'s' * (len(steps) > 1)} {', '.join(steps)}.")
    return " ".join(texts)


def plain(text: str) -> str:
    """Text without characters that Markdown would take for markup."""
    return MARKUP.sub(r"\\\1", text)
