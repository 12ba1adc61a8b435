"""One attempt at a run: its lock, status and exit code, around three phases.

    PREPARE  gpt2/train/prepare.py: device, data, kernels, model; compiled and proven
    TRAIN    gpt2/train/trainer.py: updates, evaluations, checkpoints
    FINISH   gpt2/train/finish.py: last checkpoint, exported model, result

Between PREPARE and TRAIN it waits for its turn (lib/jobs/turn.py), if the runner has
started it while another run has the device; that turn is over when FINISH begins.
However an attempt ends, status.json and the exit code say it; the runner acts on those
two alone.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path
from typing import Any

from gpt2.plan.jobs import Job
from gpt2.plan.run_length import last_update
from gpt2.train import checkpoint
from gpt2.train.banner import closing_line
from gpt2.train.distributed import Ranks
from gpt2.train.failures import (
    FolderGone,
    Refused,
    end_of,
)
from gpt2.train.finish import finish
from gpt2.train.monitoring import energy_used, watching
from gpt2.train.ownership import claim
from gpt2.train.prepare import Preparation
from gpt2.train.record import Follower, Recorder
from gpt2.train.stable import take_over
from gpt2.train.stopping import StopRequest
from gpt2.train.tracking import tracking
from lib.jobs.phases import place_name, process_start
from lib.jobs.process import ATTEMPT
from lib.jobs.run_files import LockHeld, lock, now, read_status, run_lock, write_status
from lib.jobs.slots import GPUS
from lib.jobs.turn import Turn
from lib.output import EXIT_DEVICE, EXIT_FAILED, EXIT_OK, EXIT_USAGE


class TrainingRun:
    """One attempt at a job in a run directory; of several ranks, this one's part."""

    def __init__(
        self,
        job: Job,
        run_dir: Path,
        micro_batch: int | None,
        environ: Mapping[str, str],
        on_export: Callable[[Path], None] | None = None,
    ) -> None:
        """micro_batch: instead of the configured one, or the one that memory allowed
        an earlier attempt. on_export: called with the run directory when all results
        are computed and the model is written; an error in it is only logged."""
        self.imported = time.time()
        self.job, self.run_dir, self.environ = job, run_dir, environ
        self.micro_batch = micro_batch
        self.on_export = on_export
        self.ranks = Ranks.from_environment(environ)
        self.max_steps = last_update(job.settings)
        self.recorder: Recorder = Follower(run_dir, self.max_steps)
        self.stop = StopRequest.from_environment(environ)
        if not self.ranks.is_single:
            self.stop = StopRequest(os.getppid())  # torchrun, which the runner started

    # ---- lock, status and exit code ---------------------------------------------

    def carry_out(self) -> int:
        """Train from the last checkpoint to the end; the exit code."""
        first = self.ranks.is_first
        try:
            with lock(run_lock(self.run_dir)) if first else nullcontext():
                return self._with_lock()
        except (LockHeld, Refused) as error:  # another run's: its status stays
            return _complain(error, EXIT_USAGE)
        except OSError as error:  # not even the lock can be written
            return _complain(error, end_of(error).exit_code)

    def _with_lock(self) -> int:
        """The attempt, by the rank that holds the lock or by one that follows it."""
        first = self.ranks.is_first
        if first:
            claim(self.job, self.run_dir)
        if read_status(self.run_dir)["status"] == "done":  # checkpoints may be gone
            return _complain(f"{self.run_dir} is done already", EXIT_OK)
        if first:
            take_over(self.job, self.run_dir, lambda text: print(text, flush=True))
            self.recorder = Recorder(self.run_dir, self.max_steps)
        trackers: AbstractContextManager[dict[str, Any]] = (
            tracking(self.job, self.recorder) if first else nullcontext({})
        )
        with self.stop.listening(), trackers as summary:
            try:
                if first:
                    self._announce()
                result = self._go_through_phases()
                self._note_done(result)
                summary.update(result)
            except Exception as error:
                self.recorder.close_bar()
                return self._note_failure(error)
        self.ranks.leave()
        self._clean_up()
        self.recorder.close_bar()
        self.recorder.say(closing_line(result))
        return EXIT_OK

    def _announce(self) -> None:
        """Write the status of an attempt that begins."""
        given, before = self.environ.get(ATTEMPT, ""), read_status(self.run_dir)
        attempt = int(given) if given.isdecimal() else before["attempt"] + 1
        self.recorder.attempt = attempt
        gpus = self.environ.get(GPUS, "")
        place = place_name(gpus, self.job.settings.resources.device)
        self.recorder.phase("started", process_start(), place)
        self.recorder.phase("imported", self.imported)
        self.recorder.status(
            status="running",
            failure=None,
            message="",
            max_steps=self.max_steps,
            attempt=attempt,
            pid=os.getpid(),
            host=socket.gethostname(),
            started=now(),
            result=None,
        )

    def _note_done(self, result: Mapping[str, Any]) -> None:
        last = self.recorder.last_step()  # by the clock, if that was the budget
        self.recorder.phase("ended")
        self.recorder.status(status="done", step=last, max_steps=last, result=result)

    def _note_failure(self, error: Exception) -> int:
        """Report an attempt that did not come to its end; the exit code. In a run
        directory that is gone nothing is written, whatever error that brought.

        Of several ranks the first reports, unless another one knows the cause: a rank
        may run out of memory or disk alone, or lose its GPU.
        """
        try:
            self.recorder.check_folder()
        except FolderGone as gone:
            return _complain(f"failed: {gone}", end_of(gone).exit_code)
        end = end_of(error)
        if end.exit_code in (EXIT_FAILED, EXIT_DEVICE):
            traceback.print_exception(error)
        several = not self.ranks.is_single
        reported = several and read_status(self.run_dir)["status"] != "running"
        knows = self.ranks.is_first or end.failure in ("oom", "disk", "device")
        if reported or not knows:
            return _complain(f"rank {self.ranks.rank}: {end.message}", end.exit_code)
        with suppress(OSError):  # on a full disk the exit code has to do
            self.recorder.phase("ended")
        with suppress(OSError):
            write_status(
                self.run_dir,
                status=end.status,
                failure=end.failure,
                message=end.message,
            )
        return _complain(f"{end.status}: {end.message}", end.exit_code)

    def _clean_up(self) -> None:
        """Remove the checkpoints of a finished run, unless they are to be kept."""
        if not self.ranks.is_first or self.job.settings.resources.keep_checkpoints:
            return
        folder = self.run_dir / checkpoint.FOLDER
        if left := checkpoint.drop_all(folder, self.job.hash):
            names = ", ".join(left)
            self.recorder.say(f"kept in {folder}, as not of this run: {names}")

    # ---- the phases -------------------------------------------------------------

    def _go_through_phases(self) -> dict[str, Any]:
        """Prepare, train and finish, with a smaller micro batch or other kernels from
        the last checkpoint where that may help; the result."""
        self.turn = Turn.from_environment(self.environ)
        preparation = Preparation(
            job=self.job,
            turn=self.turn,
            recorder=self.recorder,
            stop=self.stop,
            ranks=self.ranks,
            environ=self.environ,
            micro_batch=self.micro_batch,
        )
        while True:
            try:
                return self._try_phases(preparation)
            except Exception as error:
                preparation.adapt(error)
            preparation.free_memory()

    def _try_phases(self, preparation: Preparation) -> dict[str, Any]:
        trainer = preparation.trainer()
        preparation.take_turn()
        with closing(trainer):
            with watching(trainer.context, self.run_dir, self.recorder.say):
                trainer.train()
            result = finish(trainer, self._let_go)
        self._use_export()
        return result | energy_used(self.run_dir, result["tokens"])

    def _use_export(self) -> None:
        if self.on_export is None or not self.ranks.is_first:
            return
        try:
            self.on_export(self.run_dir)
        except Exception as error:  # whatever it is, the run itself is good
            self.recorder.say(f"no samples of text: {type(error).__name__}: {error}")

    def _let_go(self) -> None:
        """Let the next run of the slot train. Recorded first, as otherwise the turn of
        the next one could be on record before the end of this one."""
        self.recorder.phase("released")
        self.turn.let_go()


def _complain(error: object, code: int) -> int:
    print(f"train_ra_mla: {error}", file=sys.stderr)
    return code
