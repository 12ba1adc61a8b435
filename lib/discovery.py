"""Discover plug-ins in a package: each module describes itself in SPEC."""

from __future__ import annotations

import importlib
import pkgutil
from pathlib import Path
from typing import Any


def specs_in(package: str) -> dict[str, Any]:
    """SPEC of each module in a package, by name, ordered by `place` and name.

    Raises ValueError for a module without SPEC, or with one of another name, or without
    its menu, NAME.kconfig next to NAME.py; and for a menu without its module.
    """
    folders = importlib.import_module(package).__path__
    names = {module.name for module in pkgutil.iter_modules(folders)}
    menus = {path.stem for f in folders for path in Path(f).glob("*.kconfig")}
    found = []
    for name in sorted(names | menus):
        path = f"{package.replace('.', '/')}/{name}"
        if name not in names & menus:
            missing = "kconfig" if name in names else "py"
            raise ValueError(f"{path}.{missing} is missing: each name needs both files")
        spec: Any = getattr(importlib.import_module(f"{package}.{name}"), "SPEC", None)
        if getattr(spec, "name", None) != name:
            raise ValueError(f"{path}.py must define SPEC with name={name!r}")
        found.append(spec)
    return {s.name: s for s in sorted(found, key=lambda s: (s.place, s.name))}
