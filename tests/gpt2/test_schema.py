"""gpt2/schema.py: symbols and fields, both ways, and what is refused with why."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from kconfiglib import Choice, Symbol

from gpt2.plan import make_plan
from gpt2.schema import (
    ALIASES,
    FIELD_OF,
    FIELD_TYPES,
    FIELDS,
    PART_OF,
    PARTS,
    SYMBOL_OF,
    Settings,
    check,
    parse_int_list,
    remarks,
    settings_from,
    settings_from_dict,
    symbol_types,
)
from lib.generated import Config, ConfigError, parse_config, render_config
from lib.kconfig import load_strict
from lib.kconfig_tree import Tree, prompts
from tests.gpt2.helpers import KCONFIG, PREFIXES, make_config, tiny
from tests.scratch import ROOT

# Read from config.values by name, not through the settings of a run.
READ_ELSEWHERE: dict[str, str] = {}
# Presets under which, between them, every symbol shows in the menu.
PRESETS = {
    "defaults": "",
    "ablation": "CONFIG_RA_MLA_ABLATION_MODE=y\n",
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
    "matrix": """\
CONFIG_TEST_MATRIX_MODE=y
CONFIG_TEST_MATRIX_SGD=y
CONFIG_TEST_MATRIX_ADAM=y
CONFIG_TEST_MATRIX_ADAMWADV=y
CONFIG_TEST_MATRIX_ADAMWSPAM=y
CONFIG_TEST_MATRIX_ADAMWPRUNE=y
CONFIG_TEST_MATRIX_MUON=y
CONFIG_TEST_MATRIX_PRUNING_MAGNITUDE=y
""",
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
    """A preset by name, with overrides."""
    folder = tmp_path_factory.mktemp("presets")
    for name, text in PRESETS.items():
        (folder / name).write_text(text)

    @cache
    def loaded(preset: str, *overrides: str) -> Config:
        return load_strict(KCONFIG, [folder / preset], overrides, types=symbol_types())

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


@pytest.mark.parametrize("symbol", [s for s in alone() if s not in READ_ELSEWHERE])
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
    return {"DEVICE": ("cpu", "auto")}.get(symbol) or field.get("allowed") or of_kind


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
                    assert member == "GPT2_DATASET_TEXT"  # of no use without a path
                elif member == members[0]:
                    break  # the whole choice is hidden in this preset
        possible |= set(seen)
        assert len(set(seen.values())) == len(seen), f"{preset}: two are the same"
    assert possible == set(members)


def test_symbols_read_elsewhere_are_really_read_there() -> None:
    for symbol, file in READ_ELSEWHERE.items():
        assert symbol in settable()
        assert symbol not in FIELD_OF
        assert symbol in (ROOT / file).read_text(encoding="utf-8")


def test_aliases_lead_to_symbols() -> None:
    for alias, target in ALIASES.items():
        names = [target] if isinstance(target, str) else []
        assert set(names) <= set(tree().symbols), alias
    config = make_config(
        MODEL="350m", DATASET="shakespeare", TOKENIZER="bytes", LR="1e-3"
    )
    settings = settings_from(config)
    assert settings.model.n_embd == 1024
    assert settings.data.dataset == "shakespeare"
    assert settings.data.tokenizer == "bytes"
    assert settings.optim.learning_rate == 1e-3
    assert settings_from(make_config(ACCUMULATION="3")).effective_batch == 24


def test_prefixes_may_be_left_out() -> None:
    assert settings_from(make_config(MAX_ITERS="999")).optim.max_iters == 999
    assert PREFIXES == ("GPT2_", "RA_MLA_")


# ---- values -----------------------------------------------------------------------


@pytest.mark.parametrize("preset", PRESETS)
def test_every_default_passes(preset: str, load: Callable[..., Config]) -> None:
    settings = settings_from(load(preset))
    assert settings_from_dict(settings.to_dict()) == settings


@pytest.mark.parametrize(
    ("size", "dimensions"),
    [
        ("124M", (12, 12, 768)),
        ("350M", (24, 16, 1024)),
        ("774M", (36, 20, 1280)),
        ("1558M", (48, 25, 1600)),
    ],
)
def test_sizes_are_gpt2s(size: str, dimensions: tuple[int, int, int]) -> None:
    m = settings_from(make_config(MODEL=size)).model
    assert (m.n_layer, m.n_head, m.n_embd) == dimensions
    assert m.model_size == size


FLOATS = [n for n, hint in FIELD_TYPES.items() if hint is float]


@hypothesis.settings(max_examples=40)
@given(st.sampled_from(FLOATS), st.floats(allow_nan=False, allow_infinity=False))
def test_floats_survive_config_py_and_json(name: str, value: float) -> None:
    symbol = SYMBOL_OF[name]
    config = Config({**defaults().values, symbol: repr(value)})
    read = parse_config(render_config(config, symbol_types()), "config.py")
    assert read.values[symbol] == value
    try:
        settings = settings_from(read)
    except ValueError:
        return  # out of its bounds, or of a rule's
    assert settings.flat()[name] == value
    assert settings_from_dict(json.loads(json.dumps(settings.to_dict()))) == settings


@cache
def defaults() -> Config:
    return make_config()


def test_numbers_may_be_written_as_people_write_them() -> None:
    for text in ("6e-4", "0.0006", ".0006", "6E-4"):
        settings = settings_from(make_config(LEARNING_RATE=text))
        assert settings.optim.learning_rate == 6e-4
    assert settings_from(make_config(GPT2_DROPOUT="0")).model.dropout == 0.0


HOSTILE = [
    "",
    "abc",
    "1e-3abc",
    "1,5",
    "nan",
    "inf",
    "-inf",
    "__import__('os').system('true')",
    "6e-4; import os",
    "(1.0)",
    "0x10p3",
]


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("symbol", ["LEARNING_RATE", "RA_MLA_RA_ALPHA", "WEIGHT_DECAY"])
def test_what_is_no_number_is_refused_by_name(symbol: str, text: str) -> None:
    with pytest.raises(ValueError) as error:
        settings_from(make_config(RA_MLA_ABLATION_MODE="y", **{symbol: text}))
    said = str(error.value)
    assert "command line" in said and f"CONFIG_{symbol}" in said
    assert not text or text in said


@pytest.mark.parametrize("name", FLOATS)
def test_floats_outside_their_bounds_are_refused(name: str) -> None:
    bounds, symbol = FIELDS[name].metadata, SYMBOL_OF[name]
    low = bounds["low"] if bounds["above"] < bounds["low"] else bounds["above"]
    wrong = [
        bounds["high"] * 2 + 1,
        low - 1,
        *([low] if low == bounds["above"] else []),
    ]
    for value in wrong:
        config = Config(
            {**defaults().values, symbol: float(value)}, {symbol: "defconfigs/x:12"}
        )
        with pytest.raises(ValueError) as error:
            settings_from(config)
        said = str(error.value)
        assert f"defconfigs/x:12: CONFIG_{symbol}: {float(value)!r} is not" in said
        assert f"to {bounds['high']:g}" in said


def test_every_wrong_symbol_is_named_at_once() -> None:
    values = {
        **defaults().values,
        "LEARNING_RATE": -1.0,
        "RA_MLA_ATTENTION": "gqa",
        "SEEDS": "one",
    }
    del values["BATCH_SIZE"]
    with pytest.raises(ValueError) as error:
        settings_from(Config(values, {"RA_MLA_ATTENTION": ".config:7"}))
    said = str(error.value).splitlines()
    assert len(said) == 4
    assert any("LEARNING_RATE" in s and "above 0 to 10" in s for s in said)
    assert any(".config:7" in s and "none of mha, mla, mla_rope" in s for s in said)
    assert any("SEEDS" in s and "'one' is no number" in s for s in said)
    assert "missing: CONFIG_BATCH_SIZE; run `make olddefconfig`" in said


@pytest.mark.parametrize("text", ["1_0", "nan", "inf", "1e400", "0x1", "1,5", ""])
def test_a_string_that_is_no_number_is_none(text: str) -> None:
    with pytest.raises(ConfigError, match="command line: .*(LEARNING_RATE|LR=)"):
        make_config(LR=text)


def test_a_file_that_is_no_configuration_is_told_in_a_line() -> None:
    with pytest.raises(
        ValueError, match=r"^missing: CONFIG_.* more; run `make"
    ) as error:
        settings_from(Config({}, {}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("symbol", "value"),
    [
        ("GPT2_N_LAYER", True),
        ("GPT2_N_LAYER", 2.0),
        ("GPT2_N_LAYER", "2"),
        ("GPT2_BIAS", 1),
        ("GPT2_BIAS", "y"),
        ("LEARNING_RATE", True),
        ("DEVICE", 0),
        ("SEEDS", 5),
    ],
)
def test_types_are_strict(symbol: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"CONFIG_{symbol}: .* is no"):
        settings_from(Config({**defaults().values, symbol: value}))


def test_a_hostile_string_stays_a_string() -> None:
    for text in ("a'b", 'a"b', "a\\b", "$(touch x)", "__import__('os')", "{0}%s"):
        config = Config({**defaults().values, "DATA_DIR": text})
        read = parse_config(render_config(config, symbol_types()), "config.py")
        assert settings_from(read).resources.data_dir == text


# ---- combinations that make no sense ------------------------------------------------

SENSELESS: list[tuple[dict[str, Any], str]] = [
    ({"n_embd": 10, "n_head": 4, "head_dim": 0}, "GPT2_N_EMBD=10 is no multiple"),
    ({"latent": "untied"}, "needs RA_MLA_ATTENTION_MLA=y, but attention is 'mha'"),
    ({"latent": "untied", "attention": "mla_rope"}, "attention is 'mla_rope'"),
    (
        {"latent": "per_head_scalar", "attention": "mla", "latent_dim": 3},
        "RA_MLA_LATENT_DIM=3 into one chunk a head, and there are 4 heads",
    ),
    (
        {"latent": "per_head_scalar", "attention": "mla", "mlp_width": 5},
        "an MLP of width 5 .* RA_MLA_LATENT_DIM=6 are too many",
    ),
    ({"attention": "mla_rope", "rope_dim": 5}, "RA_MLA_ROPE_DIM=5 must be even"),
    ({"mechanism_share": 0.2}, "RA_MLA_MECHANISM_SHARE=0.2 has no mechanism"),
    ({"mlp_gate": True}, "RA_MLA_MLP_GATE_DIM=0 takes its width from"),
    ({"cross_token": True}, "RA_MLA_CROSS_RANK=0 takes its width from"),
    (
        {"mlp_gate": True, "mlp_gate_dim": 2, "n_layer": 1},
        "GPT2_N_LAYER=1 leaves nothing to flow to",
    ),
    (
        {"attention": "mla", "latent": "untied", "n_layer": 1},
        "GPT2_N_LAYER=1 leaves nothing to flow to",
    ),
    ({"min_lr": 1.0}, "GPT2_MIN_LR=1 is above LEARNING_RATE=0.0006"),
    ({"prune_method": "state"}, "needs OPTIMIZER_ADAMWPRUNE=y"),
    ({"prune_method": "heads", "attention": "mla"}, "'heads': .* is 'mla', whose"),
    (
        {"prune_method": "heads", "cross_token": True, "cross_rank": 2},
        "RA_MLA_CROSS_TOKEN=y reads the mean over all heads",
    ),
    (
        {"prune_method": "heads", "ract": True, "ract_head_average": True},
        "RA_MLA_RACT_HEAD_AVERAGE=y gates by the mean over all heads",
    ),
    ({"prune_method": "heads", "optimizer": "muon"}, "muon keeps no second moment"),
    ({"dataset": "text", "text_path": ""}, "GPT2_DATASET_TEXT_PATH is empty"),
    ({"engine": "ray", "gpus": "0"}, "GPUS='0'.* Ray deals them out"),
    ({"engine": "ray", "device": "cuda:1"}, "DEVICE='cuda:1'.* Ray deals them out"),
    ({"engine": "ray", "jobs_per_gpu": 2}, "JOBS_PER_GPU=2: with ENGINE=ray"),
    ({"output_dir": "../x"}, r"OUTPUT_DIR='\.\./x' must name a folder"),
    ({"output_dir": ""}, "OUTPUT_DIR='' must name a folder"),
    ({"output_dir": "~/x"}, "OUTPUT_DIR='~/x' must name a folder"),
    ({"device": "gpu"}, "DEVICE='gpu' is none of auto, cpu, cuda"),
    ({"device": "cpu:1"}, "DEVICE='cpu:1' is none of"),
    ({"seeds": (1, 2**32)}, "SEEDS: 4294967296 is above 4294967295"),
    ({"output_dir": "a\0b"}, r"OUTPUT_DIR='a\\x00b' must name a folder"),
]


@pytest.mark.parametrize(("fields", "reason"), SENSELESS)
def test_senseless_combinations_are_refused_with_the_reason(
    fields: dict[str, Any], reason: str
) -> None:
    settings = tiny(**fields)
    with pytest.raises(ValueError, match=reason):
        check(settings)
    with pytest.raises(ValueError, match=reason):
        settings_from_dict(settings.to_dict())
    check(tiny())


def test_latent_reciprocity_without_mla_is_refused_by_kconfig_too() -> None:
    with pytest.raises(ConfigError, match="RA_MLA_ATTENTION_MLA"):
        make_config(RA_MLA_LATENT_RECIPROCITY_TIED="y")


@pytest.mark.parametrize(
    "first",
    ["OPTIMIZER_MUON", "RA_MLA_ATTENTION_MLA", "RA_MLA_CROSS_TOKEN"],
)
def test_heads_that_cannot_be_pruned_are_refused_with_the_line(tmp_path, first) -> None:
    preset = tmp_path / "preset"
    preset.write_text(f"CONFIG_{first}=y\nCONFIG_PRUNING_HEADS=y\n")
    with pytest.raises(ConfigError, match=r"preset:2: CONFIG_PRUNING_HEADS depends"):
        load_strict(KCONFIG, [preset], types=symbol_types())


def test_an_ablation_may_prune_heads_in_steps_that_own_them() -> None:
    config = make_config(RA_MLA_ABLATION_MODE="y", PRUNING_HEADS="y", STEPS="0,5,13")
    methods = {job.settings.pruning.prune_method for job in make_plan(config).jobs}
    assert methods == {"heads"}
    config = make_config(RA_MLA_ABLATION_MODE="y", PRUNING_HEADS="y", STEPS="0,8")
    with pytest.raises(ValueError, match="step 8: .*'heads': .* is 'mla'"):
        make_plan(config)


def test_it_is_said_where_the_last_head_of_a_layer_stays() -> None:
    found = remarks(tiny(prune_method="heads", prune_sparsity=0.9))
    assert found == [
        "heads pruned to 90% would be 11 of 12; 9 go, since each layer keeps one"
    ]
    assert not remarks(tiny(prune_method="heads", prune_sparsity=0.5))
    settings = settings_from(
        make_config(RA_MLA_ATTENTION_MLA="y", RA_MLA_LATENT_RECIPROCITY_TIED="y")
    )
    assert settings.mechanisms.latent == "tied_transpose"


def test_both_modes_at_once_are_refused() -> None:
    with pytest.raises(ConfigError, match="excludes"):
        make_config(RA_MLA_ABLATION_MODE="y", TEST_MATRIX_MODE="y")


# ---- Settings as data ---------------------------------------------------------------


def test_settings_of_another_version_are_refused() -> None:
    data = tiny().to_dict()
    damaged: list[Any] = [
        {**data, "extra": {}},
        {k: v for k, v in data.items() if k != "optim"},
        {**data, "optim": {**data["optim"], "new": 1}},
        {**data, "optim": {k: v for k, v in data["optim"].items() if k != "eps"}},
        {**data, "optim": {**data["optim"], "n_layer": 3}},
        {**data, "optim": 5},
        [],
    ]
    for damage in damaged:
        with pytest.raises(ValueError, match="settings of another version"):
            settings_from_dict(damage)


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


# ---- lists of integers --------------------------------------------------------------


@st.composite
def lists(draw: st.DrawFn) -> tuple[str, tuple[int, ...]]:
    """A text of numbers and ranges, with blanks, and what it means."""
    items: list[str] = []
    numbers: list[int] = []
    for _ in range(draw(st.integers(1, 5))):
        low = draw(st.integers(0, 200))
        high = low + draw(st.integers(0, 6))
        as_range = high > low or draw(st.booleans())
        blank = draw(st.sampled_from(["", " "]))
        items.append(blank + (f"{low}-{high}" if as_range else str(low)) + blank)
        numbers += range(low, high + 1)
    return ",".join(items), tuple(numbers)


@given(lists())
def test_int_lists_mean_what_they_say(case: tuple[str, tuple[int, ...]]) -> None:
    text, numbers = case
    if len(set(numbers)) != len(numbers):
        with pytest.raises(ValueError, match="twice"):
            parse_int_list(text)
    else:
        assert parse_int_list(text) == numbers


@given(st.text(max_size=12))
def test_int_lists_are_numbers_or_refused(text: str) -> None:
    try:
        numbers = parse_int_list(text)
    except ValueError:
        return
    assert numbers and all(type(n) is int and n >= 0 for n in numbers)
    assert parse_int_list(",".join(map(str, numbers))) == numbers


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "-1", "1-", "3-1", "1--2", "1-2-3", "1.0", "+1", "0-10001"]
)
def test_int_lists_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_int_list(text)
