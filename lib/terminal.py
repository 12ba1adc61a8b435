"""Console of the reports, and tables that fit narrow terminals."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 118  # where there is no terminal, as in a log or a pipe


def report_console() -> Console:
    """Rich's console on standard output."""
    from rich.console import Console

    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=WIDTH)


def width_of_output() -> int | None:
    """Columns of the terminal on standard output; None where there is none."""
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError, AttributeError):  # a pipe, a file, a test
        return None


def columns_that_fit(needs: Iterable[tuple[str, int]], room: int) -> set[str]:
    """The columns to show in `room` characters, the first of `needs` in any case.

    needs: columns and their widths with the gap, most important first. A column without
    room is left out: a number that is cut off would be another number.
    """
    (first, width), *others = needs
    shown, left = {first}, room - width
    for name, width in others:
        if width <= left:
            shown.add(name)
            left -= width
    return shown
