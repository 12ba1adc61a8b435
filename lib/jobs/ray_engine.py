"""Attempts as tasks of a Ray cluster, for lib/jobs/scheduler.py to launch.

Ray only finds a machine with the CPUs and GPUs that a run needs, and reserves them. The
state of a run is in its run directory, on a disk that all machines share.
lib/jobs/ray_worker.py on its machine reports how an attempt ended, or settle() if that
machine is lost. The scheduler decides about retries, as for local processes.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from lib import atomic_files
from lib.jobs import run_files
from lib.jobs.outcomes import Outcome, settle, status_or_nothing
from lib.jobs.process import Patience, Task
from lib.jobs.ray_worker import read_outcome, render_order
from lib.jobs.run_log import RunProgress
from lib.output import EXIT_OK

ATTENDANT = Path(__file__).with_name("ray_worker.py")
CONNECT = 10.0  # seconds
LOOK = 1.0  # seconds between checks of slowly changing state


class Cluster:
    """Connection to a Ray cluster; a process can have only one."""

    def __init__(self, address: str) -> None:
        """address: "auto" for the cluster of this machine, "local" for a new one on
        this machine alone, or host:port.

        Raises ValueError if it cannot be reached, ImportError without Ray.
        """
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        import ray

        more = {"include_dashboard": False} if address == "local" else {}
        try:
            _require_answer(address)
            ray.init(address, log_to_driver=False, logging_level="ERROR", **more)
        except Exception as error:  # Ray raises such general exceptions
            raise ValueError(_first_line(error)) from error
        self._ray = ray
        self._need: dict[str, float] = {}
        self._attend = self._task = ray.remote(_remote_function())

    def machines(self) -> list[dict[str, float]]:
        """Resources of each machine that is up, by Ray's names: CPU, GPU."""
        return [node["Resources"] for node in self._ray.nodes() if node["Alive"]]

    def require(self, *, cpus: int, gpus: int) -> None:
        """Set the resources of each run. Raises ValueError if no machine has that many;
        Ray would wait forever."""
        self._need = {"CPU": float(cpus), "GPU": float(gpus)}
        self._task = self._attend.options(
            num_cpus=cpus, num_gpus=gpus, max_retries=0, scheduling_strategy="SPREAD"
        )
        if not self.can_hold():
            raise ValueError(
                f"a run needs {words(self._need)} on one machine, and no machine has "
                f"them. The cluster: {self.describe()}"
            )

    @property
    def gpus(self) -> float:
        """GPUs of all machines that are up."""
        return sum(machine.get("GPU", 0) for machine in self.machines())

    def can_hold(self) -> bool:
        """True if some machine, when idle, could hold a run."""
        return any(fits(machine, self._need) for machine in self.machines())

    def describe(self) -> str:
        """Machines of the cluster in words."""
        return "; ".join(sorted(map(words, self.machines()))) or "no machine"

    def launch(
        self, task: Task, slot: Mapping[str, str], patience: Patience
    ) -> RemoteAttempt:
        """Attempt that Ray starts as soon as a machine has room for it."""
        return RemoteAttempt(self, task, slot, patience)

    # ---- for RemoteAttempt ------------------------------------------------------

    def submit(self, order: str) -> Any:
        """Submit a task; returns a reference to the worker's report."""
        command = [sys.executable, str(ATTENDANT)]
        return self._task.remote(command, os.getcwd(), order)

    def result(self, ref: Any) -> Outcome | Exception | None:
        """Report of the worker, or why there is none; None while it is running."""
        if not self._ray.wait([ref], timeout=0)[0]:
            return None
        try:
            return _report_of(*self._ray.get(ref))
        except self._ray.exceptions.RayError as error:
            return error

    def cancel(self, ref: Any) -> None:
        """Remove the task from the queue, or send the worker another SIGTERM."""
        self._ray.cancel(ref)

    def is_out_of_memory(self, error: Exception) -> bool:
        """Whether Ray ended the task because its machine ran out of memory."""
        return isinstance(error, self._ray.exceptions.OutOfMemoryError)


def _require_answer(address: str) -> None:
    """Raise OSError if nothing listens at the address (Ray would try for a long time),
    ConnectionError or ValueError without an address."""
    from ray._private import services

    if address != "local":
        found = services.canonicalize_bootstrap_address_or_die(address)
        host, _, port = found.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), CONNECT).close()


def _remote_function() -> Callable[[list[str], str, str], tuple[int, str, str]]:
    """Function that Ray runs. It is sent as source, since a worker cannot import this
    module."""

    def attend(command: list[str], folder: str, order: str) -> tuple[int, str, str]:
        import os
        import socket
        import subprocess
        import time

        try:
            attendant = subprocess.Popen(
                [*command, str(os.getpid())],
                cwd=folder,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                start_new_session=True,
            )
        except OSError as error:
            return 1, "", f"on {socket.gethostname()}: {error}"
        assert attendant.stdin and attendant.stdout and attendant.stderr
        attendant.stdin.write(order)
        attendant.stdin.close()
        while True:
            try:
                while attendant.poll() is None:
                    time.sleep(0.1)
                out, err = attendant.stdout.read(), attendant.stderr.read()
                return attendant.returncode, out, err
            except KeyboardInterrupt:  # ray.cancel
                attendant.terminate()

    return attend


class RemoteAttempt:
    """Attempt in the cluster, with the interface of lib.jobs.process.Attempt."""

    begun = "handed to Ray"

    def __init__(
        self, cluster: Cluster, task: Task, slot: Mapping[str, str], patience: Patience
    ) -> None:
        """Raises OSError if nothing can be written, lib.atomic_files.DiskFull on a
        full disk."""
        self._cluster, self._run_dir, self._patience = cluster, task.run_dir, patience
        self._max_steps, self._seconds = task.max_steps, task.seconds
        if len(task.avoid) >= cluster.gpus:  # none would be left
            task = replace(task, avoid=())
        self.number = int(run_files.read_status(task.run_dir)["attempt"]) + 1
        self._render = partial(render_order, task, slot, patience)
        # Tasks that occupy the GPUs to avoid, until this attempt ends.
        self._plugs: list[Any] = []
        self._submit()
        self._is_there = False  # whether a machine has started it
        self._reason: str | None = None
        self._lost: Exception | None = None
        self._enter()

    def _submit(self) -> None:
        token = self._run_dir.absolute() / f".token.{secrets.token_hex(6)}.tmp"
        atomic_files.atomic_write_text(token, "")
        self._token = token
        self._ref = self._cluster.submit(self._render(token))

    def _enter(self) -> None:
        self.started = self._since = time.monotonic()
        self._look_again = self.started + LOOK
        self.progress = RunProgress(self._run_dir, self._max_steps, self._seconds)

    def poll(self) -> Outcome | None:
        """Outcome when the attempt has ended, with status.json updated."""
        outcome = self._poll(time.monotonic())
        if outcome is not None:
            self._unplug()
        return outcome

    def _poll(self, now: float) -> Outcome | None:
        if self._lost is None:
            found = self._cluster.result(self._ref)
            if isinstance(found, Outcome):
                return found
            if found is not None:
                self._lost, self._since = found, now
        if now < self._look_again:
            return None
        self._look_again = now + LOOK
        if self._lost is not None:
            return self._end_of_lost(self._lost, now)
        self._look_for_it(now)
        return None

    def stop(self) -> None:
        """Request a checkpoint and exit; an attempt that is still queued ends now."""
        if self._reason is None:
            self._reason = "stop"
            self._unplug()
            self._cluster.cancel(self._ref)

    def kill(self) -> None:
        """Kill the run at once."""
        self.stop()
        self._cluster.cancel(self._ref)

    def _look_for_it(self, now: float) -> None:
        """Record when the attempt has started; give up if the cluster has lost the
        machines it needs."""
        if self._is_there:
            return
        is_refused = not self._token.exists()
        if status_or_nothing(self._run_dir).get("attempt", 0) >= self.number:
            self._enter()  # time in the queue does not count as start-up time
            self._is_there = True
        elif is_refused and self._reason is None:
            self._plugs.append(self._ref)
            self._submit()
        elif self._cluster.can_hold():
            self._since = now
        elif self._patience.hang and now - self._since > self._patience.hang:
            self.stop()

    def _unplug(self) -> None:
        """Free the GPUs that this attempt was to avoid."""
        for ref in self._plugs:
            self._cluster.cancel(ref)
        self._plugs = []

    def _end_of_lost(self, error: Exception, now: float) -> Outcome | None:
        """Outcome of a run whose worker is lost. The trainer may still be running: it
        was asked to stop, is writing its checkpoint, and may even finish."""
        late = now - self._since > self._patience.stop
        if run_files.is_locked(run_files.run_lock(self._run_dir)) and not late:
            return None
        left = status_or_nothing(self._run_dir)
        begun = left.get("attempt") == self.number
        if self._reason == "stop" and not begun:
            return Outcome(status="interrupted", message="it had not begun")
        done = begun and left["status"] == "done"
        return settle(
            self._run_dir,
            self.number,
            self.progress,
            code=EXIT_OK if done else -signal.SIGKILL,
            reason=self._reason,
            starved=self._cluster.is_out_of_memory(error),
            seconds=now - self.started,
            why=f"its machine or worker was lost: {_first_line(error)}",
        )


def _report_of(code: int, out: str, err: str) -> Outcome | Exception:
    """Report of a worker, or that it was killed before it could report."""
    if code < 0:
        return RuntimeError(f"its attendant was ended by signal {-code}")
    if code == 0:
        return read_outcome(out)
    return Outcome(status="failed", failure="crash", message=err.strip()[-500:])


def fits(machine: Mapping[str, float], need: Mapping[str, float]) -> bool:
    """True if a machine with these resources could hold a run when idle."""
    return all(machine.get(name, 0) >= amount for name, amount in need.items())


def words(resources: Mapping[str, float]) -> str:
    """ "8 CPU, 2 GPU"."""
    return ", ".join(f"{resources.get(name, 0):g} {name}" for name in ("CPU", "GPU"))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
