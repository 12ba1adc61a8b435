"""Calls in forked processes: results as here, and no process that outlives its use."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing import active_children
from pathlib import Path

import pytest

from lib.forked import forked
from tests.scratch import ROOT, is_alive, until

PROGRAM = """
import sys, time
from functools import partial
from lib.forked import forked

try:
    with forked(2) as begin:
        calls = [begin(partial(time.sleep, 60)) for _ in range(2)]
        print("begun", flush=True)
        calls[0]()
except KeyboardInterrupt:
    print("stopped")
"""


@pytest.mark.parametrize("processes", [0, 1, 2])
def test_results_and_errors_are_those_of_the_call(processes: int) -> None:
    with forked(processes) as begin:
        results = [begin(partial(divmod, 7, by)) for by in (2, 0, 3)]
        own = begin(os.getpid)() == os.getpid()
        assert own == (processes < 2)
        with pytest.raises(ZeroDivisionError):
            results[1]()
        assert [results[0](), results[2]()] == [(3, 1), (2, 1)]
    assert active_children() == []


def test_calls_are_made_here_where_no_process_can_be_forked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse() -> int:
        raise BlockingIOError("Resource temporarily unavailable")

    monkeypatch.setattr(os, "fork", refuse)
    with forked(2) as begin:
        assert begin(os.getpid)() == os.getpid()


def test_no_process_outlives_a_block_that_fails() -> None:
    with pytest.raises(KeyError), forked(2) as begin:
        begin(partial(time.sleep, 60))
        assert len(active_children()) == 2
        raise KeyError
    assert active_children() == []


def test_processes_that_end_as_they_start_print_nothing() -> None:
    program = """
import os, signal, time
from lib.forked import forked

signal.signal(signal.SIGTERM, signal.default_int_handler)
os.register_at_fork(after_in_child=lambda: time.sleep(0.3))
with forked(2):
    pass
"""
    words = [sys.executable, "-c", program]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_process_that_is_killed_is_an_error() -> None:
    with forked(2) as begin:
        result = begin(partial(time.sleep, 60))
        active_children()[0].kill()
        with pytest.raises(BrokenProcessPool):
            result()


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_they_end_with_the_process_that_forked_them(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    listed = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text()
    assert len(listed.split()) == 2
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.kill()
    said, _ = process.communicate(timeout=60)  # they hold this pipe as well
    assert said == ("stopped\n" if number == signal.SIGINT else "")
    until(lambda: not any(map(is_alive, listed.split())))
