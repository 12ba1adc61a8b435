"""The console that the reports print on."""

from __future__ import annotations

import codecs
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 118  # where there is no terminal, as in a log or a pipe

# Signs that carry a meaning, where the terminal's encoding has none for them.
PLAIN = {
    "−": "-",
    "±": "+-",
    "–": "-",
    "≠": "!",
    "▲": "^",
    "▼": "v",
    "✕": "x",
    "…": "~",
}


def _plainly(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    lost = error.object[error.start : error.end]
    return "".join(PLAIN.get(sign, "?") for sign in lost), error.end


codecs.register_error("plain", _plainly)


def report_console() -> Console:
    """Rich's console on standard output; what it cannot encode is written plainly."""
    from rich.console import Console

    if hasattr(sys.stdout, "reconfigure"):
        sys.stdout.reconfigure(errors="plain")
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)
