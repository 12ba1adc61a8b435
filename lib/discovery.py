"""Discover plug-ins in a package: each module describes itself in SPEC."""

from __future__ import annotations

import importlib
import pkgutil
from typing import Any


def specs_in(package: str) -> dict[str, Any]:
    """SPEC of each module in a package, by name, ordered by `place` and name.

    Raises ValueError for a module without SPEC, or with one of another name.
    """
    found = []
    for module in pkgutil.iter_modules(importlib.import_module(package).__path__):
        path = f"{package}.{module.name}"
        spec = getattr(importlib.import_module(path), "SPEC", None)
        if spec is None or spec.name != module.name:
            has = "has none" if spec is None else f"is named {spec.name!r}"
            raise ValueError(f"{path} must define SPEC of name {module.name!r}: {has}")
        found.append(spec)
    return {s.name: s for s in sorted(found, key=lambda s: (s.place, s.name))}
