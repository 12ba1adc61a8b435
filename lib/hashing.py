"""Canonical JSON of a value, its hash, and differences between two values."""

from __future__ import annotations

import hashlib
import json
import math
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def canonical_json(value: object) -> str:
    """JSON with one spelling per value: sorted keys, no blanks, no NaN."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), allow_nan=False, ensure_ascii=True
    )


def identity(value: object) -> str:
    """First 16 hex digits of the sha256 of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode("ascii")).hexdigest()[:16]


def file_sha256(path: Path) -> str:
    """sha256 of a file, 64 hex digits; raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def diff_fields(
    old: Mapping[str, Any], new: Mapping[str, Any], *, exact: bool = False
) -> list[tuple[str, Any, Any]]:
    """Differing fields as (dotted name, old, new); None if absent.

    Types matter: 1, 1.0 and True are three values, as in the identity. Floats that only
    rounding distinguishes are one value unless ``exact``.
    """
    before, after = _flat(old), _flat(new)
    names = sorted(before.keys() | after.keys())
    pairs = [(name, before.get(name), after.get(name)) for name in names]
    alike = _identical if exact else _are_same
    return [p for p in pairs if not alike(p[1], p[2])]


def _are_same(one: object, other: object) -> bool:
    """True if values are equal, floats except for the rounding of one operation."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=4 * sys.float_info.epsilon)
    return _identical(one, other)


def _identical(one: object, other: object) -> bool:
    return canonical_json(one) == canonical_json(other)


def _flat(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item:
            flat.update(_flat(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat
