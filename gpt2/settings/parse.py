"""Parse Settings from config.py, JSON records and the command line.

Numbers and lists arrive as text, which is parsed here and checked against the bounds in
gpt2/settings/schema.py. Torch-free.
"""

from __future__ import annotations

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from gpt2.settings.checks import check
from gpt2.settings.records import completed
from gpt2.settings.schema import (
    FIELD_TYPES,
    FIELDS,
    PART_OF,
    PARTS,
    SYMBOL_OF,
    Settings,
)
from lib.kconfig.config_py import Config, ConfigError
from lib.trackers import BACKENDS, parse_trackers

STEP_NAME = re.compile(r"[a-z][a-z0-9._-]{0,39}")
MOST_IN_RANGE = 10_001  # 0-10000; each number is a job


def parse_int_list(text: str) -> tuple[int, ...]:
    """Parse ``"0,5,8-12"`` to (0, 5, 8, 9, 10, 11, 12), in order, without repeats."""
    numbers: list[int] = []
    for item in text.split(","):
        first, dash, last = item.strip().partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise ValueError(
                f"{item.strip()!r} is neither a number nor a range such as 8-12"
            )
        low, high = int(first), int(last or first)
        if high < low:
            raise ValueError(f"{item.strip()!r} is not an ascending range")
        if high - low >= MOST_IN_RANGE:
            raise ValueError(
                f"{item.strip()!r} is a range of {high - low + 1:,} numbers; at most "
                f"{MOST_IN_RANGE:,} are allowed"
            )
        numbers.extend(range(low, high + 1))
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"{text!r} has a number twice")
    return tuple(numbers)


def parse_steps(text: str) -> tuple[int | str, ...]:
    """Parse ``"0,8-10,mine"`` to (0, 8, 9, 10, "mine"): ids, ranges and names of steps;
    the order is kept, no repeats."""
    found: list[int | str] = []
    for item in map(str.strip, text.split(",")):
        found += [item] if STEP_NAME.fullmatch(item) else parse_int_list(item)
    if len(set(found)) != len(found):
        raise ValueError(f"{text!r} has a step twice")
    return tuple(found)


def _parse_float(text: str) -> float:
    try:
        if "_" in text:  # which Python ignores, but 1_0 is rather meant as 1.0
            raise ValueError
        value = float(text)
    except ValueError:
        raise ValueError(f"{text!r} is not a number") from None
    if not math.isfinite(value):
        raise ValueError(f"{text!r} is not finite")
    return value


def _parse_floats(text: str) -> tuple[float, ...]:
    """Parse ``"0.5, 0.9"`` to (0.5, 0.9); the order is kept, no repeats."""
    numbers = tuple(_parse_float(item) for item in text.split(","))
    if len(set(numbers)) != len(numbers):
        raise ValueError(f"{text!r} has a number twice")
    return numbers


def symbol_types() -> dict[str, Callable[[str], Any]]:
    """Types of string symbols in config.py: only floats change their type."""
    return {
        SYMBOL_OF[name]: partial(_parse_field, name)
        for name, hint in FIELD_TYPES.items()
        if hint is float
    }


def _parse_field(name: str, text: str) -> float:
    """Parse the number of a field; ValueError with its range if there is none."""
    try:
        return _parse_float(text)
    except ValueError as error:
        allowed = f"allowed are numbers {_range(FIELDS[name].metadata)}"
        raise ValueError(f"{error}; {allowed}") from None


def convert(name: str, value: Any) -> Any:
    """Convert ``value`` to the type of field ``name``; ValueError if that fails."""
    hint, bounds = FIELD_TYPES[name], FIELDS[name].metadata
    if hint == float | None:
        if value is None or value == "":
            return None
        hint = float
    if hint is float and isinstance(value, (str, int)) and not isinstance(value, bool):
        value = _parse_float(str(value))
    elif hint in _PARSERS and isinstance(value, str):
        value = _PARSERS[hint](value)
    elif hint in _PARSERS and isinstance(value, list):
        value = tuple(value)
    expected = tuple if isinstance(hint, types.GenericAlias) else hint
    if type(value) is not expected:
        raise ValueError(f"{value!r} is not {_KINDS[expected]}")
    if bounds["allowed"] and value not in bounds["allowed"]:
        raise ValueError(f"{value!r} must be one of {', '.join(bounds['allowed'])}")
    for number in value if expected is tuple else ():
        kind, *_ = typing.get_args(hint)
        if type(number) not in (typing.get_args(kind) or (kind,)):
            raise ValueError(f"{value!r} has {number!r}, which is not a number here")
    if float in (hint, *typing.get_args(hint)):
        for number in value if expected is tuple else (value,):
            _require_within(number, bounds)
    return value


_KINDS = {
    bool: "y or n",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list such as '1,2'",
}
_PARSERS: dict[Any, Callable[[str], tuple[Any, ...]]] = {
    tuple[int, ...]: parse_int_list,
    tuple[int | str, ...]: parse_steps,
    tuple[float, ...]: _parse_floats,
}


def _require_within(value: float, bounds: Mapping[str, Any]) -> None:
    if bounds["low"] <= value <= bounds["high"] and value > bounds["above"]:
        return
    raise ValueError(f"{value!r} is not {_range(bounds)}")


def _range(bounds: Mapping[str, Any]) -> str:
    """ "above 0 to 10"."""
    low = f"above {bounds['above']:g}" if bounds["above"] > -math.inf else None
    return f"{low or 'from ' + format(bounds['low'], 'g')} to {bounds['high']:g}"


def settings_from(config: Config) -> Settings:
    """Settings of a loaded configuration.

    Raises ValueError with the symbol, its value, its origin and the allowed values, for
    every wrong symbol and not only the first.
    """
    values, problems, missing = {}, [], []
    for name, symbol in SYMBOL_OF.items():
        origin = config.origins.get(symbol, "default")
        try:
            values[name] = convert(name, config.values[symbol])
        except KeyError:
            missing.append(f"CONFIG_{symbol}")
        except ValueError as error:
            problems.append(f"{origin}: CONFIG_{symbol}: {error}")
    if missing:
        more = f" and {len(missing) - 3} more" * (len(missing) > 3)
        names = ", ".join(missing[:3])
        problems.append(f"missing: {names}{more}; run `make olddefconfig`")
    if problems:
        raise ValueError("\n".join(problems))
    settings = _assemble(values)
    check(settings)
    return settings


def settings_from_dict(data: Mapping[str, Mapping[str, Any]]) -> Settings:
    """Inverse of ``Settings.to_dict``; strict about parts, names and types.

    Settings that are newer than the record are added (gpt2/settings/records.py). Raises
    ValueError, also if data is not a mapping of mappings.
    """
    given = {
        name: value for part in completed(data).values() for name, value in part.items()
    }
    settings = _assemble({n: convert(n, v) for n, v in given.items()})
    check(settings)
    return settings


def _assemble(values: Mapping[str, Any]) -> Settings:
    parts = {
        name: cls(**{f.name: values[f.name] for f in dataclasses.fields(cls)})
        for name, cls in PARTS.items()
    }
    return Settings(**parts)


# Prefixes that may be omitted on the command line.
PREFIXES = ("GPT2_", "RA_MLA_")


def _tracker_symbols(value: str) -> dict[str, str]:
    """Expand TRACKER=trackio,wandb: these trackers on, all others off."""
    try:
        wanted = parse_trackers(value)
    except ValueError as error:
        raise ConfigError(f"TRACKER: {error}") from error
    return {
        f"ENABLE_{name.upper()}": "y" if name in wanted else "n" for name in BACKENDS
    }


# Other short names of settings.
ALIASES: dict[str, str | Callable[[str], dict[str, str]]] = {
    "STEPS": "RA_MLA_ABLATION_STEPS",
    "SPARSITIES": "TEST_MATRIX_SPARSITIES",
    "JOBS": "PARALLEL_JOBS",
    "ENGINE": "RUN_ENGINE",
    "TIME": "TIME_BUDGET",
    "LR": "LEARNING_RATE",
    "ACCUMULATION": "GPT2_GRADIENT_ACCUMULATION",
    "GPT2_MODEL_355M": "GPT2_MODEL_350M",  # both are names of GPT-2 medium
    "TRACKER": _tracker_symbols,
}
# All names besides the symbols themselves: also ra_window and mechanisms.ra_window, as
# in listings and in STEPS_FILE.
SPELLINGS = ALIASES | {
    spelling: symbol
    for field, symbol in SYMBOL_OF.items()
    for spelling in (field, f"{PART_OF[field]}.{field}")
}
