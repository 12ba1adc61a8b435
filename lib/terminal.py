"""The console that the reports print on."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 118  # where there is no terminal, as in a log or a pipe


def report_console() -> Console:
    """Rich's console on standard output."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)
