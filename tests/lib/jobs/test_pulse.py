"""lib/jobs/pulse.py: which runs count as hung, and which never do."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path

import pytest

from lib.atomic_files import append_jsonl
from lib.jobs import pulse
from lib.jobs.pulse import LEAST, MEASURED, PULSE_FILE, Pulse, Watchdog
from lib.jobs.run_files import METRICS_FILE
from tests.lib.jobs.test_scheduler import QUICK, run, status_of, task


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        patch.setattr(pulse.time, "monotonic", lambda: self.now)

    def look(self, watch: Watchdog, seconds: float) -> str:
        """Look each second; the first reason to call it hung."""
        end = self.now + seconds
        while self.now < end:
            self.now += 1.0
            if found := watch.hung():
                return found
        return ""


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def updates(run: Pulse, clock: Clock, count: int, seconds: float) -> None:
    for _ in range(count):
        clock.now += seconds
        run.measure()
        run.beat()


def test_the_limit_follows_the_longest_update(tmp_path: Path, clock: Clock) -> None:
    watch, run = Watchdog(tmp_path, 0.0), Pulse(tmp_path / PULSE_FILE, 20.0)
    updates(run, clock, MEASURED - 1, 1.0)
    assert clock.look(watch, 2 * LEAST) == "", "too early to say"

    watch, run = Watchdog(tmp_path, 0.0), Pulse(tmp_path / PULSE_FILE, 20.0)
    updates(run, clock, MEASURED + 1, 1.0)
    assert clock.look(watch, LEAST) == ""
    assert "no update for 300 s" in clock.look(watch, 2.0)
    run.beat()
    assert watch.hung() == ""

    watch, run = Watchdog(tmp_path, 0.0), Pulse(tmp_path / PULSE_FILE, 20.0)
    updates(run, clock, MEASURED + 1, 40.0)
    assert clock.look(watch, 20 * 40.0) == ""
    assert "no update for 800 s" in clock.look(watch, 2.0)


def test_a_host_that_runs_ahead_waits_for_its_device(
    tmp_path: Path, clock: Clock
) -> None:
    """Ten updates of 40 s are queued at once, and waited for together."""
    watch, run = Watchdog(tmp_path, 0.0), Pulse(tmp_path / PULSE_FILE, 20.0)
    for _ in range(MEASURED + 1):
        for _ in range(10):
            run.beat()
        assert clock.look(watch, 10 * 40.0) == ""
        run.measure()
    run.beat()
    assert clock.look(watch, 20 * 400.0) == "" != clock.look(watch, 2.0)


def test_slow_records_are_a_sign(tmp_path: Path, clock: Clock) -> None:
    metrics = tmp_path / METRICS_FILE
    watch = Watchdog(tmp_path, 1800.0)
    for step in range(5):
        assert clock.look(watch, 1000.0) == ""
        append_jsonl(metrics, {"kind": "train", "step": step})
    assert "no progress for 1800 s" in clock.look(watch, 1802.0)


def test_updates_between_two_records_are_a_sign(tmp_path: Path, clock: Clock) -> None:
    watch, run = Watchdog(tmp_path, 1800.0), Pulse(tmp_path / PULSE_FILE, 20.0)
    for _ in range(20):
        run.beat()
        assert clock.look(watch, 1000.0) == ""
    assert "no progress for 1800 s" in clock.look(watch, 1802.0)


def test_what_is_no_update_has_no_limit(tmp_path: Path, clock: Clock) -> None:
    watch, run = Watchdog(tmp_path, 0.0), Pulse(tmp_path / PULSE_FILE, 20.0)
    updates(run, clock, MEASURED + 1, 1.0)
    with run.paused():
        assert clock.look(watch, 2 * LEAST) == ""
    updates(run, clock, 1, 1.0)
    assert "300 s" in clock.look(watch, LEAST + 2.0), "the pause counted as an update"
    with contextlib.suppress(MemoryError), run.closing():
        updates(run, clock, 1, 1.0)
        raise MemoryError
    assert clock.look(watch, 2 * LEAST) == "", "it prepares once more"


def test_without_a_setting_or_a_path_nothing_is_stated(tmp_path: Path) -> None:
    for silent in (Pulse(tmp_path / PULSE_FILE, 0.0), Pulse(None, 20.0)):
        for _ in range(10):
            silent.beat()
    assert not list(tmp_path.iterdir())


def test_an_earlier_attempt_states_nothing(tmp_path: Path, clock: Clock) -> None:
    updates(Pulse(tmp_path / PULSE_FILE, 20.0), clock, MEASURED + 1, 1.0)
    assert clock.look(Watchdog(tmp_path, 0.0), 2 * LEAST) == ""


def test_a_runner_that_was_stopped_calls_nothing_hung(
    tmp_path: Path, clock: Clock
) -> None:
    watch, run = Watchdog(tmp_path, 1800.0), Pulse(tmp_path / PULSE_FILE, 20.0)
    updates(run, clock, MEASURED + 1, 1.0)
    assert watch.hung() == ""
    clock.now += 1e6
    assert watch.hung() == ""
    assert "no update" in clock.look(watch, LEAST + 2.0)


def test_an_update_that_never_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run sleeps for ever, one is stopped by a signal that no handler sees; a third
    evaluates for longer than its limit, until both are tried again."""
    hangs = {"steps": 8, "at": MEASURED + 1, "first": 1, "pulse": 30.0}
    tried = ":".join(str(tmp_path / n / "train.1.log") for n in ("asleep", "stopped"))
    tasks = [
        task(tmp_path, "asleep", fail="hang", **hangs),
        task(tmp_path, "stopped", fail="stopped", **hangs),
        task(tmp_path, "fine", pulse=30.0, evaluates=MEASURED, until=tried),
    ]
    patience = dataclasses.replace(QUICK, hung_end=2.0)
    code, said, _ = run(tasks, hurry=monkeypatch, slots=({},) * 3, patience=patience)
    assert code == 0, said
    for name in ("asleep", "stopped"):
        assert f"{name}: FAILED (hang): no update for 30 s" in said
        assert status_of(tmp_path, name) == ("done", None, 2)
    assert "in wait_for_ever" in (tmp_path / "asleep" / "train.1.log").read_text()
    assert status_of(tmp_path, "fine") == ("done", None, 1)
