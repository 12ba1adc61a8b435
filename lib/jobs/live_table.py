"""Display of a running matrix: a live table on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Self, TextIO

from lib.jobs.outcomes import Outcome
from lib.jobs.phases import PREPARING, WAITING
from lib.jobs.run_files import LOG_FILE
from lib.jobs.scheduler import Scheduler
from lib.jobs.task_state import TaskState
from lib.terminal import columns_that_fit

if TYPE_CHECKING:
    from rich.console import Group

UNKNOWN = "-"
REDRAW_SECONDS = 0.25  # between two drawings of the live table
# The columns of the live table, and a bar.
LIVE = ("running", "update", "loss", "val loss", "tokens/s", "left", "GPU")
BAR, BAR_WIDTH, LIVE_GAP = "", 14, 2
BY_IMPORTANCE = (
    "running",
    "update",
    "left",
    "val loss",
    "loss",
    "tokens/s",
    "GPU",
    BAR,
)


def make_view() -> PlainView | LiveView:
    """A live table where stdout is a terminal, else plain lines."""
    out = sys.stdout
    return LiveView(out) if out.isatty() else PlainView(out)


class PlainView:
    """Prints a line for each start, end and new evaluation (the newest of several),
    and about every ten seconds."""

    def __init__(self, out: TextIO, every: float = 10.0) -> None:
        self.out, self.every = out, every
        self._evals: dict[str, int | None] = {}
        self._said: dict[str, float] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None: ...

    def started(self, cell: TaskState) -> None:
        self._said[cell.task.name] = time.monotonic()
        self.note(start_line(cell))

    def ended(self, cell: TaskState, retried: bool) -> None:
        for line in end_lines(cell, retried):
            self.note(line)

    def note(self, text: str) -> None:
        print(text, file=self.out, flush=True)

    def refresh(self, board: Scheduler) -> None:
        now = time.monotonic()
        for cell in board.running:
            name, progress = cell.task.name, cell.progress
            progress.read()
            fresh = progress.val_step != self._evals.setdefault(name, None)
            if fresh or now - self._said[name] > self.every:
                self._evals[name], self._said[name] = progress.val_step, now
                left = f"matrix {summary(board)}"
                self.note(f"{name}: {progress_line(cell)} | {left}")


class LiveView:
    """Redraws a table of the running tasks; messages scroll by above it."""

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console
        from rich.live import Live

        self.console = Console(file=out, highlight=False)
        # no thread of its own: the runner forks
        self._live = Live(console=self.console, auto_refresh=False, transient=True)
        self._drawn = 0.0

    def __enter__(self) -> Self:
        self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live.__exit__(None, None, None)

    def started(self, cell: TaskState) -> None:
        self._drawn = 0.0

    def ended(self, cell: TaskState, retried: bool) -> None:
        for line in end_lines(cell, retried):
            self.note(line)
        self._drawn = 0.0

    def note(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def refresh(self, board: Scheduler) -> None:
        now = time.monotonic()
        if now - self._drawn < REDRAW_SECONDS:
            return
        self._drawn = now
        for cell in board.running:
            cell.progress.read()
        self._live.update(live_table(board, self.console.width), refresh=True)


def live_table(board: Scheduler, width: int) -> Group:
    """A summary line and a table of the running tasks.

    width: of the terminal, in characters. Long names are folded, and columns without
    room next to the names are left out.
    """
    from rich.console import Group
    from rich.progress_bar import ProgressBar
    from rich.table import Table
    from rich.text import Text

    rows = [_live_row(cell) for cell in board.running]
    widths = {key: max(map(len, (key, *(r[key] for r in rows)))) for key in LIVE}
    if not any(row["GPU"] for row in rows):
        del widths["GPU"]
    widths[BAR] = BAR_WIDTH
    needs = [(key, widths[key] + LIVE_GAP) for key in BY_IMPORTANCE if key in widths]
    shown = columns_that_fit(needs, width + LIVE_GAP)
    order = [key for key in (LIVE[0], BAR, *LIVE[1:]) if key in shown]
    table = Table(box=None, pad_edge=False)
    for key in order:
        is_text = key in (LIVE[0], BAR, "GPU")
        table.add_column(key, justify="left" if is_text else "right", overflow="fold")
    for cell, row in zip(board.running, rows, strict=True):
        p = cell.progress
        bar = ProgressBar(max(1, p.max_steps), p.step, width=BAR_WIDTH)
        table.add_row(*(bar if key == BAR else Text(row[key]) for key in order))
    title = f"{summary(board)}, elapsed {clock(time.monotonic() - board.began)}"
    return Group(Text(title), table)


def _live_row(cell: TaskState) -> dict[str, str]:
    p = cell.progress
    texts = (
        cell.task.name,
        WAITING if cell.stage == WAITING else f"{p.step}/{p.max_steps or '?'}",
        number(p.loss),
        number(p.val_loss),
        rate(p.tokens_per_s),
        clock(p.seconds_left),
        p.gpu,
    )
    return dict(zip(LIVE, texts, strict=True))


# ---- words ----------------------------------------------------------------------


def summary(board: Scheduler) -> str:
    """ "3 of 9 runs done, 1 failed, 2 running, 3 queued, 0:10:00 left"."""
    over = board.count("done", "skipped")
    parts = [f"{over} of {len(board.cells)} runs done"]
    ahead = [cell for cell in board.running if board.options.ahead and cell.is_ahead]
    found = Counter(cell.state for cell in board.cells if cell not in ahead)
    found.update(cell.stage for cell in ahead)
    order = ("failed", "locked", "interrupted", "running", PREPARING, WAITING, "queued")
    parts += [f"{found[state]} {state}" for state in order if found[state]]
    parts += [f"GPU {place} OUT OF USE" for place in board.cards.lost]
    return ", ".join(parts) + f", {clock(board.seconds_left)} left"


def progress_line(cell: TaskState) -> str:
    """Progress of one running task, on one line."""
    p = cell.progress
    if cell.stage == WAITING:
        return "ready, waiting for its turn"
    return (
        f"update {p.step}/{p.max_steps or '?'} loss {number(p.loss)} "
        f"val {number(p.val_loss)} {rate(p.tokens_per_s)} tok/s, "
        f"{clock(p.seconds_left)} left" + (f", GPU {p.gpu}" if p.gpu else "")
    )


def start_line(cell: TaskState) -> str:
    """The message when a task starts."""
    assert cell.attempt is not None
    attempt, step = cell.attempt.number, cell.attempt.progress.step
    again = f" (attempt {attempt}; update {step} was reached)" if attempt > 1 else ""
    return f"{cell.task.name}: {cell.attempt.begun}{again}"


def end_lines(cell: TaskState, retried: bool) -> list[str]:
    """The messages when a task ends; of a failure with the end of its log."""
    outcome = cell.outcome
    assert outcome is not None
    name = cell.task.name
    if cell.state == "done":
        scored = "" if outcome.val_loss is None else f", val {number(outcome.val_loss)}"
        return [f"{name}: done in {clock(outcome.seconds)}{scored}"]
    if cell.is_moved:
        return [f"{name}: ended, since its GPU is out of use; it starts again"]
    if cell.state in ("interrupted", "locked"):
        more = f" ({outcome.message})" if outcome.message else ""
        return [f"{name}: {cell.state}{more}"]
    return [_failure(name, outcome, retried), *_log(cell, outcome)]


def _failure(name: str, outcome: Outcome, retried: bool) -> str:
    why = outcome.failure or outcome.status
    more = f": {outcome.message}" if outcome.message else ""
    return f"{name}: FAILED ({why}){more}" + ("; will be tried again" * retried)


def _log(cell: TaskState, outcome: Outcome) -> list[str]:
    if not outcome.log_tail:
        return []
    where = cell.task.run_dir / LOG_FILE
    lines = [f"    | {line}" for line in outcome.log_tail]
    return [f"  the last lines of {where}:", *lines]


def clock(seconds: float | None) -> str:
    """h:mm:ss, or "-" for an unknown time."""
    if seconds is None:
        return UNKNOWN
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def number(value: object) -> str:
    """Four decimals; "-" for nothing."""
    return f"{value:.4f}" if isinstance(value, int | float) else UNKNOWN


def rate(value: object) -> str:
    """Thousands with a comma; "-" for nothing."""
    return f"{value:,.0f}" if isinstance(value, int | float) else UNKNOWN
