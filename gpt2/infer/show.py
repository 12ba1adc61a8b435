"""Generated text on a terminal, in a pipe, or as data."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Sequence
from contextlib import suppress
from itertools import zip_longest
from typing import TYPE_CHECKING

from gpt2.infer.text import Continuation
from lib.terminal import report_console

if TYPE_CHECKING:
    from rich.table import Table


def printable(text: str) -> str:
    """Text that cannot steer a terminal: other control characters as \\x1b is."""
    return "".join(
        (
            char
            if char in "\n\t" or unicodedata.category(char) != "Cc"
            else f"\\x{ord(char):02x}"
        )
        for char in text
    )


def streaming(prompt: str, text: Continuation) -> None:
    """Print prompt and text as it comes. Ctrl-C ends the text."""
    print(prompt, end="", flush=True)
    with suppress(KeyboardInterrupt):
        for piece in text:
            print(printable(piece), end="", flush=True)
    print(flush=True)
    print(summary(text), file=sys.stderr)


def side_by_side(prompt: str, texts: Sequence[Continuation]) -> None:
    """Print a column for each text, on a terminal while they grow."""
    from rich.live import Live

    console, shown = report_console(), [prompt] * len(texts)
    if not console.is_terminal:
        shown = [prompt + printable("".join(text)) for text in texts]
        console.print(_columns(texts, shown))
        _print_summaries(texts)
        return
    with Live(console=console, auto_refresh=False) as live:
        with suppress(KeyboardInterrupt):
            for pieces in zip_longest(*texts, fillvalue=""):
                shown = [a + printable(b) for a, b in zip(shown, pieces, strict=True)]
                live.update(_columns(texts, shown), refresh=True)
    _print_summaries(texts)


def _print_summaries(texts: Sequence[Continuation]) -> None:
    for text in texts:
        print(summary(text), file=sys.stderr, flush=True)


def _columns(texts: Sequence[Continuation], shown: Sequence[str]) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, expand=True)
    for text in texts:
        table.add_column(Text(text.trained.label), ratio=1, overflow="fold")
    table.add_row(*(Text(one) for one in shown))
    return table


def to_json(prompt: str, text: Continuation) -> dict[str, object]:
    """The exact text, generated now, and how it ended."""
    return {
        "run_dir": str(text.trained.run_dir),
        "run": text.trained.label,
        "prompt": prompt,
        "text": "".join(text),
        "tokens": text.tokens,
        "seconds": text.seconds,
        "ended": text.ended,
    }


def summary(text: Continuation) -> str:
    """One line: which model, how many tokens, how fast, and why it ended."""
    rate = text.tokens / text.seconds if text.seconds else 0.0
    ended = text.ended or "interrupted"
    count = "1 token" if text.tokens == 1 else f"{text.tokens} tokens"
    return f"{text.trained.label}: {count}, {rate:.0f} per second, {ended}"
