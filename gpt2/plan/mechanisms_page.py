"""docs/mechanisms.md: formula, settings and costs of each mechanism, from its spec.

Torch-free.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from gpt2.mechanisms import mechanisms
from gpt2.mechanisms.spec import (
    MULTI_HEAD,
    Cost,
    Mechanism,
    annotated,
    sum_of,
    times,
)
from gpt2.plan.budget import budget
from gpt2.plan.planning import step_settings
from gpt2.plan.settings_page import (
    allowed,
    default,
    kind,
    member_of,
    name_of,
    plain,
    shown,
    wrapped,
)
from gpt2.plan.steps import STEPS
from gpt2.settings.schema import SYMBOL_OF, Settings
from lib.kconfig.symbols import Item, is_choice, prompt_of
from lib.kconfig.tree import Tree

Rows = Iterable[tuple[str, ...]]
Items = Mapping[str, Item]  # by the name of the setting
Sizes = Mapping[int, Settings]  # by step


def mechanism_lines(tree: Tree, base: Settings) -> list[str]:
    """Markdown of all mechanisms.

    tree: freshly parsed Kconfig. base: its defaults as settings, at whose size the
    costs are given.
    """
    sizes = {step: step_settings(base, step) for step in STEPS}
    items = {name_of(item): item for found in shown(tree).values() for item in found}
    lines = ["", *overview(sizes), *about(MULTI_HEAD), *baseline(sizes[0])]
    for mechanism in mechanisms():
        lines += [*about(mechanism), *settings_table(mechanism, items)]
        lines += [*rules(mechanism, items), *costs_table(mechanism, sizes)]
        lines += literature(mechanism)
    return lines


def overview(sizes: Sizes) -> list[str]:
    """Table of the mechanisms and the steps that have them."""
    rows = []
    for mechanism in mechanisms():
        title, steps = mechanism.title, map(str, steps_with(mechanism, sizes))
        anchor = slug(title)
        rows.append((f"[{title}](#{anchor})", mechanism.short, ", ".join(steps)))
    return [*table(("mechanism", "called", "steps"), rows), ""]


def baseline(settings: Settings) -> list[str]:
    """Costs of step 0."""
    costs = budget(settings)
    text = (
        f"Step 0 has {costs.parameters:,} parameters, costs "
        f"{costs.flops_forward / 1e6:.1f} MFLOPs per token in a forward pass, and its "
        f"decode cache has {costs.cache_per_token:,} numbers per token."
    )
    return [*wrapped(text), ""]


def steps_with(mechanism: Mechanism, sizes: Sizes) -> list[int]:
    """Steps that have a mechanism."""
    return [step for step, s in sizes.items() if mechanism.is_on(s.mechanisms)]


def slug(heading: str) -> str:
    """Anchor of a heading, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def about(mechanism: Mechanism) -> list[str]:
    """Title, formula and shapes."""
    shapes = [line for shape in mechanism.shapes for line in wrapped(f"- {shape}")]
    formula = ["```text", *mechanism.formula.split("\n"), "```"]
    return [f"## {mechanism.title}", "", *formula, "", *shapes, *[""] * bool(shapes)]


def settings_table(mechanism: Mechanism, items: Items) -> list[str]:
    """Symbols with defaults and ranges, linked to docs/settings.md."""
    fields = [*mechanism.off, *(name for name, _, _ in annotated(mechanism.Fields))]
    rows = []
    for symbol in dict.fromkeys(SYMBOL_OF[field] for field in fields):
        item = items[symbol]
        if is_choice(item):
            values = ", ".join(f"`{member.name}`" for member in item.syms)
        else:
            values = allowed(item) or kind(item)
        link = f"[{symbol}](settings.md#{symbol.lower()})"
        rows.append((link, plain(prompt_of(item)), default(item), values))
    return [*table(("setting", "what", "default", "allowed"), rows), ""]


def rules(mechanism: Mechanism, items: Items) -> list[str]:
    """When it is on, when it has no effect, and what it needs."""
    texts = [f"Off with {assigned(mechanism.off, items)}."]
    learned = mechanism.neutral_weights.items()
    neutral = [assigned(mechanism.neutral, items)] * bool(mechanism.neutral)
    neutral += [f"with the parameter `{name}` at {x:g}" for name, x in learned]
    if neutral:
        texts.append(
            f"Neutral with {' or '.join(neutral)}: equals the model without it."
        )
    elif not mechanism.replaces:
        texts.append("It has no neutral value.")
    if mechanism.needs:
        texts.append(f"Needs {assigned(mechanism.needs, items)}.")
    if mechanism.hands_on:
        texts.append("Acts from one block on the next: it needs two layers or more.")
    return [*wrapped(" ".join(texts)), ""]


def assigned(values: Mapping[str, Any], items: Items) -> str:
    """Settings as they are written on the command line."""
    found = ((SYMBOL_OF[name], value) for name, value in values.items())
    return " and ".join(
        f"`{written(items[symbol], symbol, value)}`" for symbol, value in found
    )


def written(item: Item, symbol: str, value: Any) -> str:
    if is_choice(item):
        return f"{member_of(item, value)}=y"
    if isinstance(value, bool):
        return f"{symbol}={'y' if value else 'n'}"
    return f"{symbol}={value:g}"


def costs_table(mechanism: Mechanism, sizes: Sizes) -> list[str]:
    """Costs of each step that has it: of the model, and in brackets its own part."""
    rows = []
    for step in steps_with(mechanism, sizes):
        settings = sizes[step]
        whole, own = budget(settings), own_cost(mechanism, settings)
        length = settings.model.block_size
        cached = own.cache + own.cache_constant / length
        rows.append(
            (
                f"{step}",
                plain(STEPS[step].title),
                f"{whole.parameters:,} ({own.parameters:,})",
                f"{whole.flops_forward / 1e6:.1f} ({2 * own.multiply_adds / 1e6:.1f})",
                f"{whole.cache_per_token + whole.cache_constant / length:,.0f} "
                f"({cached:,.0f})",
            )
        )
    heads = ("step", "what", "parameters", "MFLOPs per token", "cache per token")
    return [*table(heads, rows), ""]


def own_cost(mechanism: Mechanism, settings: Settings) -> Cost:
    """Cost over all layers of a mechanism; the last block produces nothing."""
    layers = settings.model.n_layer
    return sum_of(
        times(layers, mechanism.cost(settings)),
        times(layers - 1, mechanism.producer_cost(settings)),
    )


def literature(mechanism: Mechanism) -> Iterator[str]:
    known = [mechanism.known] if mechanism.known else []
    if mechanism.sources:
        known.append(f"Sources: {'; '.join(mechanism.sources)}.")
    code = f"Code: `gpt2/mechanisms/{mechanism.name}/`."
    yield from (*wrapped(" ".join([*known, code])), "")


def table(heads: tuple[str, ...], rows: Rows) -> list[str]:
    """Markdown table."""
    cells = [heads, ("---",) * len(heads), *rows]
    escaped = ([cell.replace("|", r"\|") for cell in row] for row in cells)
    return [f"| {' | '.join(row)} |" for row in escaped]
