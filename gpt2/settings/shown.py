"""Names and values of settings as messages and reports show them.

A setting has one name there, its Kconfig symbol, however it is spelled in files, JSON
and folders; `make explain SYMBOL=...` accepts all spellings. Torch-free.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from gpt2.settings.schema import PART_OF, SYMBOL_OF
from lib.hashing import diff_fields


def shown_name(name: str) -> str:
    """Symbol of a setting given as ``ra_window`` or ``mechanisms.ra_window``; any other
    name as it is."""
    part, _, field = name.rpartition(".")
    is_setting = field in SYMBOL_OF and part in ("", PART_OF[field])
    return SYMBOL_OF[field] if is_setting else name


def text_of(value: Any) -> str:
    """Value as in Kconfig and in names of cells: y, 16, 0.0003."""
    if isinstance(value, bool):
        return "y" if value else "n"
    return repr(value) if isinstance(value, float) else str(value)


def shown_value(value: Any) -> str:
    """Value as text that is never empty."""
    return text_of(value) or "''"


def difference_lines(
    old: Mapping[str, Any], new: Mapping[str, Any], there: str, here: str
) -> str:
    """One line for each setting that differs between two records, nested alike."""
    return "\n".join(
        f"  {shown_name(name)}: {shown_value(was)} {there}, {shown_value(now)} {here}"
        for name, was, now in diff_fields(old, new)
    )
