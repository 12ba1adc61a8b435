"""Records of settings that were written by this or an older version.

A record may lack settings that did not exist when it was written:

- inside the identity, one takes the value that its field declares as ``before``: the
  one that trains what was trained before the setting existed. At that value a setting
  is left out of the identity, so that the hash of an older run stays what it was;
- outside the identity, one takes its Kconfig default, since it changes nothing that is
  trained.

A record with a setting that does not exist here is refused. Torch-free.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from gpt2.settings.schema import (
    FIELDS,
    IDENTITY_PARTS,
    PART_OF,
    PARTS,
    SYMBOL_OF,
)

BEFORE: dict[str, Any] = {
    name: field.metadata["before"]
    for name, field in FIELDS.items()
    if field.metadata["before"] is not None and PART_OF[name] in IDENTITY_PARTS
}
OTHER = "settings of another version"


def identity_parts(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Parts of the identity, from settings as plain data, without the settings at their
    value ``before``. Parts that are missing or damaged stay as they are."""
    return {
        name: _without_before(settings[name])
        for name in IDENTITY_PARTS
        if name in settings
    }


def _without_before(part: Any) -> Any:
    if not isinstance(part, Mapping):
        return part
    return {
        name: value
        for name, value in part.items()
        if name not in BEFORE or not _is_equal(value, BEFORE[name])
    }


def _is_equal(one: Any, other: Any) -> bool:
    """Equal and of one type: 1, 1.0 and True are three values."""
    return type(one) is type(other) and bool(one == other)


def with_before(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as plain data, with those of the identity that they lack; not checked,
    for comparisons of records that may be damaged."""
    found = dict(settings)
    for name, value in BEFORE.items():
        part = found.get(PART_OF[name])
        if isinstance(part, Mapping) and name not in part:
            found[PART_OF[name]] = {**part, name: value}
    return found


def completed(data: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """All settings of a record, as plain data by part.

    Settings that do not exist here and do not belong to a run's identity, such as how
    hangs were found, say nothing about what was trained: they are left out. Raises
    ValueError if it is not a mapping of the parts, if it has any other setting that
    does not exist here, or lacks one that has no value ``before``.
    """
    if not isinstance(data, Mapping) or set(data) != set(PARTS):
        raise ValueError(f"{OTHER}: not {', '.join(PARTS)}")
    if not all(isinstance(part, Mapping) for part in data.values()):
        raise ValueError(f"{OTHER}: a part is not a mapping")
    found = {(part, name) for part, values in data.items() for name in values}
    known = {(part, name) for name, part in PART_OF.items()}
    if unknown := {pair for pair in found - known if pair[0] in IDENTITY_PARTS}:
        raise _other_version(
            unknown, "unknown here: removed since, or newer than this version"
        )
    lacking = {name for _, name in known - found}
    if lost := {n for n in lacking if _is_of_identity(n) and n not in BEFORE}:
        raise _other_version({(PART_OF[n], n) for n in lost}, "missing")
    outside = {name for name in lacking if not _is_of_identity(name)}
    new = {**BEFORE, **(_kconfig_defaults() if outside else {})}
    whole: dict[str, dict[str, Any]] = {part: {} for part in data}
    for part, name in found & known:
        whole[part][name] = data[part][name]
    for name in lacking:
        whole[PART_OF[name]][name] = new[name]
    return whole


def _is_of_identity(name: str) -> bool:
    return PART_OF[name] in IDENTITY_PARTS


def _other_version(names: set[tuple[Any, Any]], why: str) -> ValueError:
    shown = ", ".join(sorted(f"{part}.{name}" for part, name in names))
    return ValueError(
        f"{OTHER}: {shown}: {why}; use the version that wrote them (a run's "
        "manifest.json has its commit)"
    )


@functools.cache
def _kconfig_defaults() -> dict[str, Any]:
    """Kconfig's default of each field. Read only for a record that lacks some."""
    from gpt2.settings.configuration import strict_kconfig

    values = strict_kconfig().load([]).values
    return {name: values[symbol] for name, symbol in SYMBOL_OF.items()}
