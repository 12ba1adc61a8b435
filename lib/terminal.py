"""Console of the reports, and tables that fit narrow terminals."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Sequence
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


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    left: Sequence[int] = (),
    spare: Sequence[str] = (),
) -> str:
    """Columns as wide as they need, right-aligned but for those in `left`.

    spare: columns that a narrow terminal leaves out, the least important first; the
    last line names them.
    """
    columns = dict(zip(head, zip(head, *rows, strict=True), strict=True))
    texts = [head[i] for i in left]
    room, gone = width_of_output(), []
    widths = {name: max(map(len, cells)) for name, cells in columns.items()}
    for name in spare:
        if room is None or sum(widths.values()) + 2 * (len(widths) - 1) <= room:
            break
        gone.append(name)
        del widths[name]
    lines = [
        "  ".join(
            text.ljust(width) if name in texts else text.rjust(width)
            for name, width in widths.items()
            for text in (columns[name][number],)
        ).rstrip()
        for number in range(len(rows) + 1)
    ]
    if gone:
        lines.append(f"(not shown in this narrow terminal: {', '.join(gone)})")
    return "\n".join(lines) + "\n"
