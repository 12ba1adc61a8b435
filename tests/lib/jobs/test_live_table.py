"""lib/jobs/live_table.py: the table of real processes, on terminals of any width."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from lib.jobs.live_table import PlainView, live_table
from lib.jobs.options import Options
from lib.jobs.scheduler import Scheduler
from tests.lib.jobs.test_scheduler import QUICK, task

WIDTHS = (20, 40, 60, 80, 120)
NAMES = ("step05-ra/seed1337", "adamwspam-magnitude-50/seed1")


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[int, str]:
    """The table by width, drawn when both processes had been evaluated."""
    found: dict[int, str] = {}

    class Drawing(PlainView):
        def refresh(self, board: Scheduler) -> None:
            super().refresh(board)
            attempts = [cell.attempt.progress for cell in board.running]
            if found or len(attempts) < 2 or any(p.val_loss is None for p in attempts):
                return
            gate.touch()
            for width in WIDTHS:
                out = io.StringIO()
                Console(file=out, width=width).print(live_table(board, width))
                found[width] = out.getvalue()

    root = tmp_path_factory.mktemp("live")
    gate = root / "gate"  # they last until the table is drawn
    tasks = [task(root, name, steps=9, until=gate) for name in NAMES]
    options = Options(patience=QUICK, slots=({}, {}))
    assert Scheduler(tasks, options, Drawing(io.StringIO())).run() == 0
    return found


@pytest.mark.parametrize("width", WIDTHS)
def test_a_narrow_terminal_shows_whole_names_and_whole_numbers(drawn, width):
    text = drawn[width]
    assert max(map(len, text.splitlines())) <= width and "…" not in text
    together = "".join(text.split())
    assert all(name in together for name in NAMES)
    for heading, room in (("update", 40), ("val loss", 60), ("tokens/s", 80)):
        assert (f" {heading}" in text) == (width >= room), heading
