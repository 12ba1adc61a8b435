"""Console of the reports, and tables that fit narrow terminals."""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDTH = 118  # of tables without a terminal and without COLUMNS, as in a log
PAGE = 80  # of paragraphs and of lists of settings


def report_console() -> Console:
    """Rich's console on standard output."""
    from rich.console import Console

    return Console(highlight=False, width=width_of_output() or WIDTH)


def say_doing(text: str) -> None:
    """Print what takes a while, on a terminal only: a log would be full of it."""
    if sys.stderr.isatty():
        print(f"{text} ...", file=sys.stderr, flush=True)


def width_of_output() -> int | None:
    """COLUMNS, or the width of the terminal on standard output; None without both."""
    return shutil.get_terminal_size((0, 0)).columns or None


def paragraph(text: str, width: int = PAGE, indent: int = 2) -> str:
    """Text as lines that are broken between words, indented from the second on."""
    rules = {"break_long_words": False, "break_on_hyphens": False}
    return textwrap.fill(text, width, subsequent_indent=" " * indent, **rules)  # type: ignore[arg-type]


def aligned(
    rows: Sequence[Sequence[str]], most: Iterable[int], indent: int = 0
) -> Iterator[str]:
    """Rows as lines with columns of at most these widths; the last one has none. A cell
    that is too long pushes the rest to the right, and a last one without room on the
    page ends a second line."""
    page = min(PAGE, width_of_output() or PAGE)
    longest = [max(map(len, cells)) for cells in zip(*rows, strict=True)]
    widths = [min(pair) for pair in zip(longest, most, strict=False)]
    for *cells, last in rows:
        columns = (f"{cell:<{n}}" for cell, n in zip(cells, widths, strict=True))
        start = " " * indent + "  ".join(columns)
        if len(start) + len(last) + 2 <= page:
            yield f"{start}  {last}"
        else:
            yield f"{start.rstrip()}\n{last:>{page}}"


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
