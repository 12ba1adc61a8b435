"""gpt2/settings/schema.py: symbols and fields, both ways, and settings as data."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pytest
from kconfiglib import Choice, Symbol

from gpt2.settings.configuration import strict_kconfig
from gpt2.settings.parse import settings_from, settings_from_dict
from gpt2.settings.schema import (
    FIELD_TYPES,
    FIELDS,
    PART_OF,
    PARTS,
    SYMBOL_OF,
    Settings,
)
from lib.kconfig.config_py import Config
from lib.kconfig.symbols import prompts
from lib.kconfig.tree import Tree
from lib.optim.registry import OPTIMIZERS
from tests.gpt2.helpers import KCONFIG, tiny

FIELD_OF = {symbol: name for name, symbol in SYMBOL_OF.items()}
# Presets under which, between them, every symbol shows in the menu.
PRESETS = {
    "defaults": "",
    "ablation": 'CONFIG_RA_MLA_ABLATION_MODE=y\nCONFIG_SIZES="2x64,4x128"\n',
    "rates": """\
CONFIG_RA_MLA_ABLATION_MODE=y
CONFIG_LR_SWEEP="1e-4,1e-3"
CONFIG_LR_SCHEDULE_WSD=y
""",
    "all on": """\
CONFIG_GPT2_MODEL_CUSTOM=y
CONFIG_RA_MLA_ATTENTION_MLA=y
CONFIG_RA_MLA_RA=y
CONFIG_RA_MLA_RACT=y
CONFIG_RA_MLA_MLP_GATE=y
CONFIG_COMPILE_MODEL=y
CONFIG_PROFILE=y
CONFIG_RA_MLA_MLP_GATE_DIM=4
CONFIG_RA_MLA_CROSS_TOKEN=y
CONFIG_RA_MLA_CROSS_RANK=4
CONFIG_RA_MLA_METRICS=y
CONFIG_OPTIMIZER_ADAMWPRUNE=y
CONFIG_GPT2_DATASET_TEXT=y
CONFIG_GPT2_DATASET_TEXT_PATH="texts"
CONFIG_ENABLE_WANDB=y
CONFIG_ENGINE_RAY=y
""",
    "matrix": "CONFIG_TEST_MATRIX_MODE=y\nCONFIG_TEST_MATRIX_PRUNING_MAGNITUDE=y\n"
    + "".join(f"CONFIG_TEST_MATRIX_{name.upper()}=y\n" for name in OPTIMIZERS),
}
VALUES = {
    "bool": ("y", "n"),
    "int": ("2", "8", "16", "24", "1000"),
    "string": ("0.25", "0.125", "1e-5", "7", "elsewhere"),
}


@cache
def tree() -> Tree:
    return Tree(KCONFIG)


def settable() -> list[str]:
    return [name for name, symbol in tree().symbols.items() if prompts(symbol)]


def alone() -> list[str]:
    return [name for name in settable() if not tree().symbols[name].choice]


@pytest.fixture(scope="module")
def load(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Config]:
    """A preset by name, with overrides; each loaded once."""
    folder = tmp_path_factory.mktemp("presets")
    for name, text in PRESETS.items():
        (folder / name).write_text(text)

    @cache
    def loaded(preset: str, *overrides: str) -> Config:
        return strict_kconfig().load([folder / preset], overrides)

    return loaded


# ---- both ways --------------------------------------------------------------------


def test_every_field_has_a_symbol_of_its_own() -> None:
    assert set(SYMBOL_OF.values()) <= set(tree().symbols)
    assert len(FIELD_OF) == len(SYMBOL_OF) == len(FIELDS)
    assert set(FIELDS) == set(FIELD_TYPES) == set(PART_OF)


def test_every_prompt_has_help() -> None:
    """Members of a choice too: what a menu explains is what the cursor is on."""
    asked = [node for node in tree().kconf.node_iter() if node.prompt]
    asked = [node for node in asked if isinstance(node.item, Symbol | Choice)]
    assert {n.item.name for n in asked} >= {*settable(), "ADAMWPRUNE_BITTER9"}
    silent = [
        f"{node.filename}:{node.linenr}: {node.prompt[0]}"
        for node in asked
        if len((node.help or "").split()) < 3
    ]
    assert not silent


def test_kinds_fit_the_types() -> None:
    kinds = {bool: {"bool"}, int: {"int"}}
    for name, symbol in SYMBOL_OF.items():
        expected = kinds.get(FIELD_TYPES[name], {"string"})
        assert tree().kinds[symbol] in expected, f"{name} <- {symbol}"


@pytest.mark.parametrize("symbol", alone())
def test_a_symbol_that_can_be_set_changes_the_settings(
    symbol: str, load: Callable[..., Config]
) -> None:
    refused = []
    for preset in PRESETS:
        before = load(preset)
        for value in values_for(symbol):
            try:
                after = load(preset, f"{symbol}={value}")
                after_settings = settings_from(after)
            except ValueError as error:
                refused.append(f"{preset}, {value}: {error}")
                if "depends on" in str(error):
                    break  # hidden in this preset, whatever the value
                continue
            if after.values[symbol] != before.values[symbol]:
                assert after_settings.flat() != settings_from(before).flat(), "unread"
                return
    pytest.fail("\n".join([f"CONFIG_{symbol} cannot be set", *refused]))


def values_for(symbol: str) -> tuple[str, ...]:
    field = FIELDS[FIELD_OF[symbol]].metadata if symbol in FIELD_OF else {}
    of_kind = VALUES[tree().kinds[symbol]]
    special = {
        "DEVICE": ("cpu", "auto"),
        "PYTORCH_CUDA_ALLOC_CONF": ("expandable_segments:False",),
    }
    return special.get(symbol) or field.get("allowed") or of_kind


def choices() -> list[list[str]]:
    found = dict.fromkeys(s.choice for s in tree().symbols.values() if s.choice)
    return [[s.name for s in choice.syms] for choice in found]


@pytest.mark.parametrize("members", choices(), ids=lambda names: names[0])
def test_members_of_a_choice_differ_in_the_settings(
    members: list[str], load: Callable[..., Config]
) -> None:
    possible: set[str] = set()  # some members exclude each other's preset
    for preset in PRESETS:
        seen = {}
        for member in members:
            try:
                seen[member] = repr(settings_from(load(preset, f"{member}=y")))
            except ValueError as error:
                if "depends on" not in str(error):
                    # of no use without a path; no series with several rates
                    assert member == "GPT2_DATASET_TEXT" or "LR_SWEEP" in str(error)
                elif member == members[0]:
                    break  # the whole choice is hidden in this preset
        possible |= set(seen)
        assert len(set(seen.values())) == len(seen), f"{preset}: two are the same"
    assert possible == set(members)


@pytest.mark.parametrize("preset", PRESETS)
def test_every_default_passes(preset: str, load: Callable[..., Config]) -> None:
    settings = settings_from(load(preset))
    assert settings_from_dict(settings.to_dict()) == settings


# ---- Settings as data ---------------------------------------------------------------


def test_replace_knows_its_fields() -> None:
    changed = tiny().replace(n_layer=5, eps=1e-3, seeds=(4,))
    assert changed.model.n_layer == 5
    assert changed.optim.eps == 1e-3
    assert changed.matrix.seeds == (4,)
    assert tiny().model.n_layer == 3
    with pytest.raises(KeyError, match="no such setting: colour"):
        tiny().replace(colour=1)


def test_settings_cannot_be_changed_in_place() -> None:
    settings: Any = tiny()
    with pytest.raises((AttributeError, TypeError)):
        settings.model.n_layer = 7
    with pytest.raises((AttributeError, TypeError)):
        settings.model = None


def test_flat_holds_every_field_once() -> None:
    flat = tiny().flat()
    assert set(flat) == set(FIELDS)
    nested = tiny().to_dict()
    assert set(nested) == set(PARTS)
    assert sum(len(part) for part in nested.values()) == len(flat)
    assert isinstance(tiny(), Settings)
