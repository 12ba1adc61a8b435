"""Optional packages that some settings need: `make setup EXTRAS=...` installs them."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterable


def check_installed(setting: str, packages: Iterable[str], extra: str) -> None:
    """Raise ValueError with the command to install if a package is missing.

    setting: the one that needs it. Nothing is imported, so planning may call this.
    """
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ValueError(
            f"{setting}: {', '.join(missing)} is not installed; run "
            f"`make setup EXTRAS={extra}` or leave it out"
        )
