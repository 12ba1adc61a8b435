"""lib/jobs/linux_processes.py: on the real machine, and on a fake tree of what Linux
shows."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lib.jobs import linux_processes
from tests.scratch import until, write

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="no /proc")


def test_kills_for_memory_are_counted_in_our_own_group_first(tmp_path: Path) -> None:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"

    def count() -> int:
        return linux_processes.oom_kills(proc, groups)

    assert count() == 0
    write(proc, "vmstat", "pgfault 12\noom_kill 7\n")
    assert count() == 7
    write(proc, "self/cgroup", "8:cpu:/x\n4:memory:/jobs/one\n")
    assert count() == 7  # the group tells nothing
    write(groups, "memory/jobs/one/memory.oom_control", "under_oom 0\noom_kill 3\n")
    assert count() == 3
    write(proc, "self/cgroup", "0::/user/x\n")
    write(groups, "user/x/memory.events", "low 0\nmax 5\noom 2\noom_kill 1\n")
    assert count() == 1


@linux
def test_helpers_are_found_whatever_their_session() -> None:
    code = (
        "import subprocess, sys, time\n"
        "sleep = [sys.executable, '-c', 'import time; time.sleep(1000)']\n"
        "quiet = {'stdout': subprocess.DEVNULL, 'start_new_session': True}\n"
        "print(subprocess.Popen(sleep, **quiet).pid, flush=True)\n"
    )
    value = f"test-{os.getpid()}"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "KABLATE_TEST_MARK": value},
        stdout=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    helper = int(done.stdout)
    assert linux_processes.marked("KABLATE_TEST_MARK", value) == [helper]
    assert linux_processes.marked("KABLATE_TEST_MARK", "other") == []
    os.kill(helper, signal.SIGKILL)
    until(lambda: not linux_processes.marked("KABLATE_TEST_MARK", value))


@linux
def test_a_handler_is_seen(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGUSR2, lambda number, frame: None)
    try:
        assert linux_processes.catches(os.getpid(), signal.SIGUSR2)
    finally:
        signal.signal(signal.SIGUSR2, before)
    assert not linux_processes.catches(os.getpid(), signal.SIGUSR2)
    assert not linux_processes.catches(2**22 + 1, signal.SIGUSR2)
