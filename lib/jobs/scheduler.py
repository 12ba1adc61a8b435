"""Run many tasks in a few slots: skip those done, resume, retry, report.

The state of each task is in its run directory; this loop reads it, starts attempts and
reacts. An attempt is a process of its own (lib/jobs/process.py) or a task of a Ray
cluster (lib/jobs/ray_engine.py), which makes no difference here. There is one thread,
so that children can be set to end with it.
"""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from lib import atomic_files
from lib.jobs import run_files
from lib.jobs.cards import blames_card, out_of_use_line
from lib.jobs.occupancy import Occupancy
from lib.jobs.options import Options, View
from lib.jobs.outcomes import Outcome, never_started
from lib.jobs.phases import PREPARING
from lib.jobs.process import Patience, Task
from lib.jobs.retries import may_retry
from lib.jobs.signals import handled
from lib.jobs.task_state import Running, TaskState, seconds_left
from lib.jobs.turn import GATE, RANK
from lib.output import (
    EXIT_DEVICE,
    EXIT_DISK,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
)

_DOUBLE_SIGNAL = 1.0  # seconds; `timeout` and make send the same signal twice


class Scheduler:
    """Runs tasks: call run() once, in the main thread.

    begin() starts the first tasks earlier, to prepare; withdraw() ends them if run()
    will not be called.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        options: Options,
        view: View,
        after: Callable[[TaskState], None] = lambda cell: None,
    ) -> None:
        """after: called whenever an attempt has ended, to write a summary; what it
        raises ends the matrix."""
        if not options.slots:
            raise ValueError("no slot to run anything in; give at least one")
        if len({task.run_dir for task in tasks}) != len(tasks):
            raise ValueError("two tasks share a run directory")
        self.cells = [TaskState(task=task) for task in tasks]
        self.options, self.view, self.after = options, view, after
        self.cards = options.cards
        self.began = time.monotonic()
        by_cost = list(self.cells)
        if options.longest_first:
            by_cost.sort(key=lambda cell: -cell.task.cost)
        order = sorted(by_cost, key=lambda cell: cell.task.round)
        self._ranks = {cell.task.run_dir: rank for rank, cell in enumerate(order)}
        # What prepares ahead trains in this order, but is started with tasks of one
        # code next to each other, as the first compiles for the others.
        self._queue = by_cost if options.ahead else order
        self.occupancy = Occupancy(options)
        self._signals: list[tuple[float, int]] = []
        self._stopping = False
        self._killed = False
        self._gate: Path | None = None  # while it is closed

    # ---- for views --------------------------------------------------------------

    def count(self, *states: str) -> int:
        """How many tasks are in one of these states."""
        return sum(cell.state in states for cell in self.cells)

    @property
    def running(self) -> list[TaskState]:
        return [cell for cell in self.cells if cell.state == "running"]

    @property
    def _attempts(self) -> list[Running]:
        return [cell.attempt for cell in self.running if cell.attempt is not None]

    @property
    def seconds_left(self) -> float | None:
        """Time left for all tasks, None while unknown."""
        return seconds_left(self.cells, self._queue, len(self.options.slots))

    # ---- ahead of run() ---------------------------------------------------------

    def begin(self, gate: Path) -> None:
        """Start one task in each slot. They prepare, and train when run() has created
        the file ``gate``. Nothing is started if a task has a run directory already:
        withdraw() could not restore what an earlier attempt has left there.

        Raises KeyboardInterrupt.
        """
        self._read_states()
        if any(cell.task.run_dir.exists() for cell in self._queue):
            return
        self._gate = gate
        with self._listening():
            self._fill(len(self.options.slots))
        if self._signals:
            raise KeyboardInterrupt

    def withdraw(self) -> None:
        """Kill what begin() has started and remove the run directories that it made.
        Does nothing once run() was called."""
        if self._gate is None:
            return
        begun = [c for c in self.cells if c.state not in ("queued", "skipped")]
        with self._listening():  # a second Ctrl-C would leave some
            for attempt in self._attempts:
                attempt.kill()
            self._abandon()
        self._gate = None
        for cell in begun:
            run_files.remove_run(cell.task.run_dir)

    def _open_gate(self) -> None:
        if self._gate is not None:
            atomic_files.atomic_write_text(self._gate, "")
            self._gate = None
            for cell in self.running:
                self.view.started(cell)

    # ---- running ----------------------------------------------------------------

    def run(self) -> int:
        """Run all tasks. 0: all done; 1: some failed; 3: stopped before; 6: the disk is
        full; 8: all done that could be, but a GPU is out of use.

        No child is left running, whatever is raised.
        """
        self.began = time.monotonic()
        self._read_states()
        with self._listening():
            try:
                self._open_gate()
                while self._round():
                    time.sleep(self.options.poll)
            except BaseException:
                self._abandon()
                raise
        return self._exit_code()

    def _exit_code(self) -> int:
        lost = self.cards.lines()
        for line in lost:
            self.view.note(line)
        outcomes = [cell.outcome for cell in self.cells]
        if any(one is not None and one.failure == "disk" for one in outcomes):
            return EXIT_DISK
        if self.count("failed", "locked"):
            return EXIT_FAILED
        if self.count("interrupted", "queued") and self.occupancy.usable:
            return EXIT_INTERRUPTED
        return EXIT_DEVICE if lost else EXIT_OK

    def _read_states(self) -> None:
        """Find which tasks are done, and how far the others are."""
        for cell in list(self._queue):
            try:
                status = run_files.read_status(cell.task.run_dir)
            except (OSError, ValueError):
                continue  # reported when it is about to start
            if status["status"] == "done":
                self._queue.remove(cell)
                cell.state = "skipped"
            elif cell.task.max_steps:
                cell.share_done = min(1.0, status["step"] / cell.task.max_steps)

    def _round(self) -> bool:
        """Look at every task once; whether there is anything left to wait for."""
        self._obey()
        for cell in self.running:
            assert cell.attempt is not None
            progress, outcome = cell.attempt.progress, cell.attempt.poll()
            if self.options.ahead:
                progress.read()  # whether it has let the next one train
            cell.preparation = max(cell.preparation, progress.preparation)
            for alarm in progress.take_alarms():
                self.view.note(f"ALARM {cell.task.name} {alarm}")
            if outcome is not None:
                self._finish(cell, outcome)
        if self._queue and not self.running and not self.occupancy.usable:
            self.stop("every GPU is out of use")
        if not self._stopping:
            self._fill()
        self.view.refresh(self)
        return bool(self.running or (self._queue and not self._stopping))

    def stop(self, why: str) -> None:
        """Start nothing more; ask the running to write a checkpoint and end."""
        if self._stopping:
            return
        self._stopping = True
        names = ", ".join(cell.task.name for cell in self.running)
        what = f": saving checkpoints of {names}" if names else ""
        self.view.note(f"stopping ({why}){what}")
        for cell in self.running:
            assert cell.attempt is not None
            cell.attempt.progress.read()
            # Compiling, it could not end before a minute, and has nothing to lose.
            if self.options.ahead and cell.stage == PREPARING:
                cell.attempt.kill()
            else:
                cell.attempt.stop()

    # ---- starting ---------------------------------------------------------------

    def _fill(self, most: int = sys.maxsize) -> None:
        """Start tasks that there is room for, until ``most`` of them run."""
        doubtful = self.cards.is_doubtful
        for cell in sorted(self._queue, key=lambda cell: doubtful(cell.task)):
            free = self.occupancy.free()
            if not free or self._stopping or len(self.running) >= most:
                return
            slot = self.occupancy.slot_for(cell, free, self._queue)
            if slot is not None and time.monotonic() >= cell.look_again:
                self._consider(cell, slot)

    def _consider(self, cell: TaskState, slot: int) -> None:
        """Start a queued task, unless it is done or another process runs it."""
        run_dir = cell.task.run_dir
        try:
            if run_files.is_locked(run_files.run_lock(run_dir)):
                self._wait_for_lock(cell)
                return
            if run_files.read_status(run_dir)["status"] == "done":
                self._queue.remove(cell)
                cell.state = "skipped"
                return
            self._start(cell, slot)
        except (OSError, ValueError) as error:
            self._queue.remove(cell)
            self._conclude(cell, "failed", never_started(error))

    def _start(self, cell: TaskState, slot: int) -> None:
        atomic_files.remove_leftovers(cell.task.run_dir)
        options = self.options
        avoid = tuple(cell.failed_at | self.cards.lost.keys())
        task = replace(cell.task, avoid=avoid)
        environ = {**options.slots[slot], RANK: str(self._ranks[task.run_dir])}
        if self._gate is not None:
            environ[GATE] = str(self._gate)
            task = replace(task, files={run_files.EARLY_FILE: "", **task.files})
        cell.attempt = options.launch(task, environ, self._patience())
        self._queue.remove(cell)
        self.occupancy.put(cell, slot)
        cell.state = "running"
        if self._gate is None:
            self.view.started(cell)

    def _patience(self) -> Patience:
        """The configured one, with a limit for preparing by earlier preparations."""
        patience = self.options.patience
        longest = max(cell.preparation for cell in self.cells)
        if not longest or not patience.factor:
            return patience
        limit = max(patience.preparing_least, patience.factor * longest)
        return replace(patience, preparing=limit)

    def _wait_for_lock(self, cell: TaskState) -> None:
        now = time.monotonic()
        cell.look_again = now + 0.5
        held = run_files.lock_held(run_files.run_lock(cell.task.run_dir))
        if not cell.lock_deadline:
            cell.lock_deadline = now + self.options.lock_wait
            self.view.note(f"waiting up to {self.options.lock_wait:g} s: {held}")
        elif now >= cell.lock_deadline:
            self._queue.remove(cell)
            self._conclude(cell, "locked", Outcome(status="failed", message=str(held)))

    # ---- ending -----------------------------------------------------------------

    def _finish(self, cell: TaskState, outcome: Outcome) -> None:
        assert cell.attempt is not None
        began, place = cell.attempt.started, self.occupancy.take(cell)
        cell.attempt, cell.outcome = None, outcome
        cell.is_moved &= outcome.status == "interrupted"
        self._note_card(cell, outcome.place or place, outcome, began)
        if not self._stopping and may_retry(cell, outcome, self.options.retries):
            cell.failures[str(outcome.failure)] += 1
            cell.state = "queued"
            self._queue.append(cell)
            self.view.ended(cell, retried=True)
            cell.is_moved = False
            self.after(cell)
            return
        state = "failed" if outcome.status == "oom" else outcome.status
        self._conclude(cell, state, outcome)

    def _note_card(
        self, cell: TaskState, place: str, outcome: Outcome, began: float
    ) -> None:
        """Count failures that a GPU may have caused. If a process does not end there,
        runs that prepare on it would wait for ever: they start again elsewhere."""
        was_in_use = self.cards.in_use(place)
        self.cards.note(place, cell.task, outcome, began, time.monotonic())
        if place and blames_card(outcome):
            cell.failed_at.add(place)
        if was_in_use and not self.cards.in_use(place):
            self.view.note(out_of_use_line(place, self.cards.lost[place]))
        for other in self.occupancy.at(place) if place and outcome.is_stuck else ():
            assert other.attempt is not None
            other.is_moved = True
            other.attempt.kill()

    def _conclude(self, cell: TaskState, state: str, outcome: Outcome) -> None:
        cell.state, cell.outcome = state, outcome
        self.view.ended(cell, retried=False)
        self.after(cell)
        if state == "failed" and self.options.fail_fast:
            self.stop(f"{cell.task.name} failed, and the first failure is to stop all")
        elif outcome.failure == "disk":
            self.stop("no space left on the disk")

    def _abandon(self) -> None:
        """Stop the children after an exception, however long that takes."""
        self._stopping = True
        for attempt in self._attempts:
            attempt.stop()
        while self.running:
            for cell in self.running:
                assert cell.attempt is not None
                try:
                    ended = cell.attempt.poll() is not None
                except (OSError, ValueError):
                    ended = True  # the process is gone; its status cannot be written
                if ended:
                    cell.state = "interrupted"
            if len(self._signals) > 1:
                self._obey()
            time.sleep(self.options.poll)

    # ---- signals ----------------------------------------------------------------

    def _listening(self) -> AbstractContextManager[None]:
        numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        return handled(numbers, lambda n: self._signals.append((time.monotonic(), n)))

    def _obey(self) -> None:
        """Stop if a signal or the stop file asks for it; a later signal kills."""
        stop_file = self.options.stop_file
        if stop_file is not None and not self._stopping and stop_file.exists():
            self.stop("asked to stop")
        if not self._signals:
            return
        first, number = self._signals[0]
        self.stop(f"{signal.Signals(number).name}; a second one kills the runs")
        late = [at for at, _ in self._signals if at - first > _DOUBLE_SIGNAL]
        if late and not self._killed:
            self._killed = True
            self.view.note("killing what still runs")
            for attempt in self._attempts:
                attempt.kill()
