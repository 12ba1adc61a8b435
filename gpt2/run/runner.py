"""Run a matrix: verify its steps, schedule its runs, summarise.

Torch-free. The state is in the results folder (gpt2/run/results_dir.py).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

from gpt2.plan.jobs import Job, Plan, cells, rounds
from gpt2.plan.names import MATRIX_FILE
from gpt2.plan.run_length import last_update
from gpt2.run import estimate
from gpt2.run.conflicts import check
from gpt2.run.first_kernels import kernels_chosen_meanwhile
from gpt2.run.formula_comparison import FormulaComparison
from gpt2.run.gpu_sharing import at_once, share
from gpt2.run.placement import describe
from gpt2.run.prepare_ahead import runs_ahead, with_turns
from gpt2.run.results_dir import (
    GATE_FILE,
    STOP_FILE,
    MatrixError,
    held,
    missing,
    scratch,
    set_aside,
    update,
)
from gpt2.run.sessions import recorded
from gpt2.run.sharing_trial import sharing_line
from gpt2.run.tasks import task_of, tasks_of
from gpt2.run.verification import PASSED, Certificates
from lib import atomic_files
from lib.files import safe_join
from lib.jobs import run_files
from lib.jobs.options import Options, View
from lib.jobs.process import Patience, Task
from lib.jobs.scheduler import Scheduler
from lib.jobs.slots import have_own_gpus
from lib.jobs.task_state import Running
from lib.output import EXIT_FAILED, EXIT_OK

CERTIFICATES_FILE = "certificates.json"
OUT_OF_USE = (
    "Look at `nvidia-smi` or `rocm-smi`, and in `dmesg` for lines with Xid or amdgpu. "
    "Reset or replace the GPU, or leave it out by GPUS, and start again. "
    "docs/troubleshooting.md, `OUT OF USE`, has more"
)


def run(
    plan: Plan,
    copies: Mapping[str, str],
    options: Options,
    view: View,
    verify: Callable[[Path], Certificates] | None,
    rerun: bool = False,
) -> int:
    """Run what is missing of a plan; the runner's exit code (lib/jobs/scheduler.py).

    copies: files to put next to matrix.json (config.py, .config), name -> text.
    verify: called once if anything is missing, with a file that stops it when it is
    created; jobs with a failed certificate are not run. None: they run unverified.
    rerun: set runs of these jobs aside first. Raises MatrixError, and LockHeld if
    another runner is active here.
    """
    with held(plan, copies) as root:
        check(plan, replaced=rerun)
        todo = list(plan.jobs) if rerun else missing(root, plan.jobs)
        estimate.require_space(plan, todo, len(options.slots))
        for name, place in set_aside(root, plan.jobs) if rerun else ():
            view.note(f"{name}: the old run is kept in {place}")
        update(plan, copies)
        with (
            recorded(root, options.slots, plan.base.resources)
            if todo
            else nullcontext()
        ):
            return _run_missing(plan, root, todo, options, view, verify)


def _run_missing(
    plan: Plan,
    root: Path,
    todo: Sequence[Job],
    options: Options,
    view: View,
    verify: Callable[[Path], Certificates] | None,
) -> int:
    waiting = (task_of(job, root, "") for job in todo if _chooses_alone(job))
    early = None
    if verify and _may_begin_early(todo, options):
        early = _schedule(plan.jobs, root, PASSED, options, view)
    with (
        _begun(early[0], root) if early else nullcontext(),
        kernels_chosen_meanwhile(waiting, options),
    ):
        certificates = verify(root / STOP_FILE) if verify and todo else Certificates()
        if early and certificates.failed:
            early[0].withdraw()
            early = None
        refused = refuse(root, todo, certificates, view)
        _summarise(root)
        if refused and options.fail_fast:
            return EXIT_FAILED
        jobs = [job for job in plan.jobs if job not in refused]
        planned = early or _schedule(jobs, root, certificates.word, options, view)
        scheduler, plan_of_devices = planned
        if plan_of_devices:
            view.note(plan_of_devices)
        code = scheduler.run()
        if options.cards.lost:
            view.note(OUT_OF_USE)
    return code or (EXIT_FAILED if refused else EXIT_OK)


def _schedule(
    jobs: Sequence[Job], root: Path, verified: str, options: Options, view: View
) -> tuple[Scheduler, str]:
    """A scheduler of these jobs, and where it runs them; verified: as for task_of."""
    tasks = timed(tasks_of(jobs, root, verified), jobs, root)
    tasks, options = share(tasks, jobs, root, options, view)
    todo = missing(root, jobs)
    ahead = runs_ahead(todo, options)
    plan_of_devices = describe(todo, options, ahead, root)
    options = with_turns(options, ahead, root)

    def launch(task: Task, slot: Mapping[str, str], patience: Patience) -> Running:
        _require_there(root)  # else the run would create the folder again
        return launch_anywhere(task, slot, patience)

    launch_anywhere, options = options.launch, replace(options, launch=launch)
    return Scheduler(tasks, options, view, Watch(root, view)), plan_of_devices


def _require_there(root: Path) -> None:
    if not (root / MATRIX_FILE).exists():
        raise MatrixError(
            f"{root} was moved or removed while its runs were active: they are "
            "stopped. Put it back and start again"
        )


def _may_begin_early(todo: Sequence[Job], options: Options) -> bool:
    """Whether runs may prepare while the steps are verified: on GPUs of their own, as a
    CPU is busy with the certificates; in one process each; and not with a tracker,
    where a run that is withdrawn would stay."""
    resources = [job.settings.resources for job in todo]
    fit = all(r.is_one_local_process and not r.trackers for r in resources)
    return bool(todo) and have_own_gpus(options.slots) and fit


@contextmanager
def _begun(scheduler: Scheduler, root: Path) -> Iterator[None]:
    """Let the first runs prepare during the block. If it raises before they may train,
    they are removed."""
    try:
        scheduler.begin((root / GATE_FILE).absolute())
        yield
    except BaseException:
        scheduler.withdraw()
        raise


def _chooses_alone(job: Job) -> bool:
    """Whether kernels can be chosen outside of the run: it has one process, on this
    machine, and a micro batch that is known."""
    resources = job.settings.resources
    return resources.is_one_local_process and not resources.auto_batch


def prepare(
    plan: Plan,
    copies: Mapping[str, str],
    view: View,
    verify: Callable[[Path], Certificates],
) -> list[Task]:
    """Write a folder with a job.json for each missing run, for other processes to
    run; these runs as tasks.

    verify: as for run(). Raises as run().
    """
    with held(plan, copies) as root:
        check(plan)
        todo = missing(root, plan.jobs)
        estimate.require_space(plan, todo, plan.base.resources.parallel_jobs or 1)
        update(plan, copies)
        certificates = verify(root / STOP_FILE) if todo else Certificates()
        refused = refuse(root, todo, certificates, view)
        # again: while steps are verified, tasks of an earlier array may end
        jobs = missing(root, [job for job in todo if job not in refused])
        for job in jobs:
            path = safe_join(root, job.run_dir) / run_files.JOB_FILE
            atomic_files.atomic_write_json(path, job.to_json())
        _summarise(root)
    in_order = (job for found in rounds(jobs) for job in found)
    return [task_of(job, root, certificates.word) for job in in_order]


def timed(tasks: list[Task], jobs: Sequence[Job], root: Path) -> list[Task]:
    """The tasks with estimated seconds as their cost, if all have been probed."""
    seconds = estimate.probed_seconds(root, jobs)
    if seconds is None:
        return tasks
    pairs = zip(tasks, seconds, strict=True)
    return [replace(task, cost=float(cost)) for task, cost in pairs]


def make_estimate(
    plan: Plan,
    copies: Mapping[str, str],
    options: Options,
    view: View,
) -> dict[str, Any]:
    """Probe each cell of a plan and write the estimate of the whole; {}, and nothing is
    written, if it was stopped before the end.

    Raises as run().
    """
    with held(plan, copies) as root, scratch(root) as folder:
        check(plan)
        firsts = [group[0] for group in cells(plan.jobs)]
        tasks = [task_of(estimate.probe_job(job), folder, "skipped") for job in firsts]
        tasks, options = share(tasks, firsts, root, options, view)
        records = estimate.probe(plan, tasks, options, view, folder)
        if not records:
            return {}
        line = sharing_line(plan.jobs, records[0], options, view, folder)
        count = at_once(records, options.slots)
        return estimate.write(root, plan, records, count, line)


def compare_as_trained(
    plan: Plan,
    copies: Mapping[str, str],
    options: Options,
    view: View,
) -> list[FormulaComparison]:
    """Compare loss and gradients of each cell, as it trains, with the formulas, by one
    update on the device that will train (gpt2/train/as_trained.py).

    Earlier runs of the folder are left alone. Raises as run().
    """
    with held(plan, copies) as root, scratch(root) as folder:
        probes = [estimate.probe_job(g[0], updates=1) for g in cells(plan.jobs)]
        asked = {"as_trained": True}  # also where the runs themselves leave it out
        jobs = [replace(p, settings=p.settings.replace(**asked)) for p in probes]
        tasks = [task_of(job, folder, "skipped") for job in jobs]
        tasks, options = share(tasks, jobs, root, options, view)
        Scheduler(tasks, options, view).run()
        return [FormulaComparison.of(job.cell, folder / job.run_dir) for job in jobs]


def refuse(
    root: Path, todo: Sequence[Job], certificates: Certificates, view: View
) -> list[Job]:
    """Mark the jobs with a failed certificate as failed, and return them.

    todo: the jobs that were missing before the verification. Those that other
    processes, as tasks of Slurm, have finished since then stay as they are.
    """
    if certificates.table is not None:
        atomic_files.atomic_write_json(root / CERTIFICATES_FILE, certificates.table)
    refused = missing(root, [job for job in todo if job.cell in certificates.failed])
    for job in refused:
        why = certificates.failed[job.cell]
        view.note(f"{job.run_dir}: NOT RUN (certificate): {why}")
        run_dir = safe_join(root, job.run_dir)
        atomic_files.atomic_write_json(run_dir / run_files.JOB_FILE, job.to_json())
        run_files.write_status(
            run_dir,
            status="failed",
            failure="certificate",
            message=why,
            max_steps=last_update(job.settings),
        )
    return refused


class Watch:
    """Writes the summary when a run has ended, and shows alarms that compare runs."""

    def __init__(self, root: Path, view: View) -> None:
        self.root, self.view = root, view
        self._shown: set[str] = set()

    def __call__(self, cell: object) -> None:
        """Raises MatrixError, which ends the matrix, if its folder has gone."""
        _require_there(self.root)
        _summarise(self.root)
        for about, alarm in alarms(self.root).items():
            if about not in self._shown:
                self._shown.add(about)
                self.view.note(alarm)


def alarms(output_dir: Path) -> dict[str, str]:
    """Alarms about the finished runs of a folder together, by subject."""
    from gpt2.report.alarms import matrix_alarms

    return matrix_alarms(output_dir) if output_dir.is_dir() else {}


def _summarise(output_dir: Path) -> None:
    from gpt2.report.read_results import read_matrix
    from gpt2.report.summary import write_summary

    write_summary(read_matrix(output_dir, curves=False))
