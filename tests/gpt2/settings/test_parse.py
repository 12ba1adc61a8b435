"""gpt2/settings/parse.py: short names, what is parsed, and what is refused with why."""

from __future__ import annotations

import json
import re
from functools import cache
from typing import Any

import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2.settings.parse import (
    ALIASES,
    PREFIXES,
    parse_int_list,
    settings_from,
    settings_from_dict,
    symbol_types,
)
from gpt2.settings.schema import FIELD_TYPES, FIELDS, SYMBOL_OF
from lib.kconfig.config_py import Config, ConfigError, parse_config, render_config
from lib.kconfig.tree import Tree
from tests.gpt2.helpers import KCONFIG, make_config, tiny

# ---- names on the command line ------------------------------------------------------


def test_aliases_lead_to_symbols() -> None:
    known = set(Tree(KCONFIG).symbols)
    for alias, target in ALIASES.items():
        names = [target] if isinstance(target, str) else []
        assert set(names) <= known, alias
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
    assert any(".config:7" in s and "one of mha, mla, mla_rope" in s for s in said)
    assert any("SEEDS" in s and "'one' is neither a number" in s for s in said)
    assert "missing: CONFIG_BATCH_SIZE; run `make olddefconfig`" in said


@pytest.mark.parametrize("text", ["abc", "1_0", "nan", "1e400", "0x1", "1,5"])
def test_a_string_that_is_not_a_number_is_refused_with_what_is_allowed(text: str):
    why = "is not (a number|finite); allowed are numbers above 0 to 10"
    with pytest.raises(
        ConfigError, match=f"command line: CONFIG_LEARNING_RATE='{text}': .* {why}"
    ):
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
    with pytest.raises(ValueError, match=f"CONFIG_{symbol}: .* is not"):
        settings_from(Config({**defaults().values, symbol: value}))


def test_a_hostile_string_stays_a_string() -> None:
    for text in ("a'b", 'a"b', "a\\b", "$(touch x)", "__import__('os')", "{0}%s"):
        config = Config({**defaults().values, "DATA_DIR": text})
        read = parse_config(render_config(config, symbol_types()), "config.py")
        assert settings_from(read).resources.data_dir == text


# ---- records ------------------------------------------------------------------------


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


@given(st.text(max_size=12) | st.text("0123456789,- ", max_size=5))
def test_int_lists_are_numbers_or_refused(text: str) -> None:
    try:
        numbers = parse_int_list(text)
    except ValueError:
        assert not re.fullmatch(r"[0-9]+", text)
        return
    assert numbers and all(type(n) is int and n >= 0 for n in numbers)
    assert parse_int_list(",".join(map(str, numbers))) == numbers


@pytest.mark.parametrize(
    "text", ["", ",", "1,", "-1", "1-", "3-1", "1--2", "1-2-3", "1.0", "+1", "0-10001"]
)
def test_int_lists_that_are_none(text: str) -> None:
    with pytest.raises(ValueError):
        parse_int_list(text)
