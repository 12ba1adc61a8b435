"""Processes forked from one that has imported what all of them need.

To import torch and what its optimizers want takes seconds, which many short runs need
not spend each. A template does it once. For a task it forks twice, so that the task
becomes a child of the runner (its subreaper, Linux only) as if the runner had started
it: in a session of its own, with its own environment and log, and told when the runner
dies. Where any of this does not work out, the task's command is started as usual.

A script takes part by calling serve() when its first argument is FLAG.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

FLAG = "--preload"
EXIT_NO_RUNNER = 3  # as of a run that was interrupted
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_PATIENCE = 30.0  # seconds for a fork, on a machine however busy
_THREAD_ENDS = 0.1  # seconds
_IMPORT_PATIENCE = 300.0  # seconds for all imports
_OWN = "KABLATE_"  # variables that nothing reads while it is imported

Stamps = dict[str, tuple[int, int]]


def prctl(option: int, value: int) -> bool:
    """Linux's call of that name; whether there is one and it went well."""
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) == 0)


def die_with(parent: int) -> None:
    """In a child: let SIGTERM reach it when the runner dies, however it dies."""
    prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before the line above
        os._exit(EXIT_NO_RUNNER)


# ---- the template ---------------------------------------------------------------


def serve(channel: int, main: Callable[[Sequence[str]], int], root: Path) -> int:
    """Fork a process for each request until the runner closes the channel.

    Returns the exit code: of main in each forked process, 0 in the template.
    root: of the sources of which the runner is told what was imported.
    """
    runner = os.getppid()
    with socket.socket(fileno=channel) as line, line.makefile("r") as requests:
        threads = _threads()
        if threads > 1:
            _send(line, f"it has {threads} threads, and no fork would be safe")
            return 1
        _send(line, loaded(root))
        for text in requests:
            middle = os.fork()
            if middle:
                os.waitpid(middle, 0)
                continue
            if os.fork():
                os._exit(0)
            request = json.loads(text)
            _become(request, runner)
            _send(line, os.getpid())
            break
        else:
            return 0
    return main(request["words"])


def _threads() -> int:
    """Threads of this process that a fork would lose, and itself.

    The pool that OpenBLAS starts when numpy is imported is none of them: before a
    fork it ends by itself, and comes back where it is used. On a busy machine the
    kernel lists an ended thread for a while.
    """
    child = os.fork()
    if not child:
        os._exit(0)
    os.waitpid(child, 0)
    end = time.monotonic() + _THREAD_ENDS
    while (found := len(os.listdir("/proc/self/task"))) > 1 and time.monotonic() < end:
        time.sleep(0.001)
    return found


def _become(request: Mapping[str, Any], runner: int) -> None:
    """A task's process: child of the runner, in its own session, log, environment."""
    end = time.monotonic() + _PATIENCE
    while os.getppid() != runner:  # until the process in the middle is gone
        if time.monotonic() > end:
            os._exit(EXIT_NO_RUNNER)
        time.sleep(0.0005)
    os.setsid()
    die_with(runner)
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW
    log = os.open(request["log"], flags, 0o666)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    os.environ.clear()
    os.environ.update(request["environ"])
    sys.argv[1:] = request["words"]


def loaded(root: Path) -> Stamps:
    """The imported files below root, with time and size."""
    found = (getattr(m, "__file__", None) for m in list(sys.modules.values()))
    mine = [name for name in found if name and Path(name).is_relative_to(root)]
    return {name: _stamp(name) for name in mine}


def _stamp(name: str) -> tuple[int, int]:
    with suppress(OSError):
        info = os.stat(name)
        return info.st_mtime_ns, info.st_size
    return 0, 0


def _send(line: socket.socket, value: object) -> None:
    line.sendall(json.dumps(value).encode() + b"\n")


# ---- the runner -----------------------------------------------------------------


class Forked:
    """As subprocess.Popen, as far as a runner needs it."""

    def __init__(self, pid: int) -> None:
        self.pid = pid

    def wait(self) -> int:
        """The exit code; negative for a signal."""
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


class Template:
    """The template of one runner: of a script, in one environment."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Start it; is_ready() tells when it has imported everything.

        command: interpreter and script. environ: also of all that are forked, but
        for variables of our own. Raises OSError if there cannot be one.
        """
        if not prctl(_PR_SET_CHILD_SUBREAPER, 1):
            raise OSError("there are no subreapers here")
        self._command, self._environ = list(command), dict(environ)
        self._start()

    def _start(self) -> None:
        self._line, theirs = socket.socketpair()
        self._answers = self._line.makefile("r")
        self._stamps: Stamps | None = None
        self._began = time.monotonic()
        parent = os.getpid()
        with theirs:
            self._process = subprocess.Popen(
                [*self._command, FLAG, str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=self._environ,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
                preexec_fn=lambda: die_with(parent),  # we have one thread
            )

    def serves(self, command: Sequence[str], environ: Mapping[str, str]) -> bool:
        """Whether this command would have found the same interpreter."""
        same = _others(environ) == _others(self._environ)
        return same and list(command[:2]) == self._command

    def is_ready(self) -> bool:
        """Whether it can fork, the sources being those that it has imported.

        Raises OSError if it has failed.
        """
        if self._line.fileno() < 0:
            raise OSError("the template is closed")
        if self._stamps is None and select.select([self._line], [], [], 0)[0]:
            said = self._answer()
            if isinstance(said, str):
                raise OSError(said)
            self._stamps = {k: tuple(v) for k, v in said.items()}
        if self._stamps is None:
            if time.monotonic() - self._began > _IMPORT_PATIENCE:
                raise OSError("the template does not come to an end of importing")
            return False
        if any(_stamp(name) != seen for name, seen in self._stamps.items()):
            self.close()
            self._start()
            return False
        return True

    def fork(
        self, words: Sequence[str], environ: Mapping[str, str], log: Path
    ) -> Forked:
        """A process as `command words` would have been. After an OSError the template
        is of no more use."""
        request = {"words": list(words), "environ": dict(environ), "log": str(log)}
        try:
            _send(self._line, request)
            return Forked(int(self._answer()))
        except OSError:
            self.close()
            raise

    def _answer(self) -> Any:
        if not select.select([self._line], [], [], _PATIENCE)[0]:
            raise OSError("the template does not answer")
        text = self._answers.readline()
        if not text:
            raise OSError("the template has ended")
        return json.loads(text)

    def close(self) -> None:
        """End it; what it has forked goes on."""
        self._answers.close()
        self._line.close()
        self._process.kill()
        self._process.wait()


class Preload:
    """The template of a runner, made for the first task that can use one."""

    def __init__(self, say: Callable[[str], None]) -> None:
        """say: is told once if there can be none."""
        self._say = say
        self._template: Template | None = None
        self._has_failed = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def begin(self, command: Sequence[str], environ: Mapping[str, str]) -> None:
        """Let the template import what such a task needs, unless there is one."""
        if self._template is not None or self._has_failed:
            return
        try:
            self._template = Template(command[:2], environ)
        except OSError as error:
            self._fail(error)

    def is_ready(self, command: Sequence[str], environ: Mapping[str, str]) -> bool:
        """False while such a task had better wait for the template."""
        self.begin(command, environ)
        try:
            template = self.template(command, environ)
            return template is None or template.is_ready()
        except OSError as error:
            self._fail(error)
            return True

    def _fail(self, error: OSError) -> None:
        self.close()
        self._has_failed = True
        self._say(f"each run imports for itself: {error}")

    def template(
        self, command: Sequence[str], environ: Mapping[str, str]
    ) -> Template | None:
        """What to fork such a task from, once is_ready() said so."""
        found = self._template
        return found if found and found.serves(command, environ) else None

    def close(self) -> None:
        if self._template is not None:
            self._template.close()
            self._template = None


def _others(environ: Mapping[str, str]) -> dict[str, str]:
    return {k: v for k, v in environ.items() if not k.startswith(_OWN)}
