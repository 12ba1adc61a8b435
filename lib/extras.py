"""Packages that only some settings need: `make setup EXTRAS=...` installs them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable


def check_installed(asked: str, packages: Iterable[str], extra: str) -> None:
    """ValueError, naming what to install, if a package is not there.

    asked: the setting that needs it. Imports nothing, so planning may call it.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{asked}: {', '.join(missing)} is not installed; run "
            f"`make setup EXTRAS={extra}` or leave it out"
        )
