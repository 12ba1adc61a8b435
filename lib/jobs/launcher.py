"""torchrun with the exit code of its ranks: lib/jobs/launcher.py N SCRIPT [WORDS...]

torchrun itself exits with 1 whatever happened, so that a rank that ran out of memory
would look like any crash.
"""

from __future__ import annotations

import _signal  # before all other imports, see lib/output.py

if __name__ == "__main__" and callable(_signal.getsignal(_signal.SIGINT)):
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import os
import sys

sys.path[0] = os.path.dirname(
    os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
)
from lib.output import begin

if __name__ == "__main__":
    begin()

import signal
from collections.abc import Sequence
from typing import Protocol

from lib.jobs.fast_exit import run_to_end
from lib.jobs.import_gc import collector_at_rest
from lib.output import EXIT_FAILED, EXIT_INTERRUPTED

# Exit codes of a rank that lost a peer, or that torchrun stopped after one.
CONSEQUENCES = (EXIT_FAILED, -signal.SIGTERM, EXIT_INTERRUPTED)
SOON = 10  # seconds; torchrun kills those that do not end 30 s after the first


class Failure(Protocol):
    """As torch's ProcessFailure; exitcode is negative for a signal."""

    exitcode: int
    timestamp: int  # seconds


def main(words: list[str]) -> int:
    """Run N ranks of a script on this machine; does not return if one was killed."""
    with collector_at_rest():
        from torch.distributed import run
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(["--standalone", "--nproc-per-node", *words])
    except ChildFailedError as error:
        print(error, file=sys.stderr, flush=True)
        return end(cause(list(error.failures.values())))
    return 0


def cause(failures: Sequence[Failure]) -> int:
    """The exit code of the rank that caused all of them to end."""
    first = min(failures, key=lambda one: one.timestamp)
    soon = [f.exitcode for f in failures if f.timestamp < first.timestamp + SOON]
    return min((c for c in soon if c not in CONSEQUENCES), default=first.exitcode)


def end(code: int) -> int:
    """The exit code to use; a signal is sent to this process itself."""
    if code >= 0:
        return code
    if -code != signal.SIGKILL:
        signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
    return EXIT_FAILED


if __name__ == "__main__":
    run_to_end(lambda: main(sys.argv[1:]))
