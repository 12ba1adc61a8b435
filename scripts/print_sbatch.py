"""Print a Slurm array job that carries out the configured matrix, a run each task.

    make sbatch SBATCH='--partition=gpu --gres=gpu:1' > runs.sh
    sbatch runs.sh

The results folder must be one that all machines share. Each task trains one run and
holds its lock; one that Slurm ends early has written a checkpoint and is queued again.
`make status`, `make report` and `make` know no difference. Prove the steps before, with
`make dry-run`. Exit codes: 0 printed; 2 the configuration is wrong.
"""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt2 import matrix
from gpt2.configuration import add_options, copies, load
from gpt2.folder import missing
from gpt2.plan import Plan, make_plan, only
from lib import rundir

EXIT_USAGE = 2
WARNING_SECONDS = 300  # before the limit, for a checkpoint
SCRIPT = """\
#!/bin/bash
#SBATCH --job-name={name}
#SBATCH --array=0-{last}%{at_once}
#SBATCH --signal=B:TERM@{warning}
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output={output}/slurm-%A_%a.log
{options}
RUNS=(
{runs}
)
RUN="${{RUNS[$SLURM_ARRAY_TASK_ID]}}"
export KABLATE_VERIFIED=skipped
{command} --job "$RUN/job.json" --run-dir "$RUN" &
TRAINER=$!
trap 'kill -TERM $TRAINER' TERM
wait $TRAINER
CODE=$?
if [ $CODE -gt 128 ]; then wait $TRAINER; CODE=$?; fi  # the wait was cut short
TASK="${{SLURM_ARRAY_JOB_ID}}_$SLURM_ARRAY_TASK_ID"
if [ $CODE -eq 3 ]; then scontrol requeue "$TASK"; fi
exit $CODE
"""


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_options(parser)
    more = "more options, as in '--partition=gpu'"
    parser.add_argument("--sbatch", default="", help=more)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command; errors for the user are told on stderr, without a traceback."""
    given = parse(arguments)
    try:
        config = load(given.config, given.overrides)
        plan = only(make_plan(config), given.only)
        matrix.prepare(plan, plan.base, copies(config))
        print(render(plan, shlex.split(given.sbatch)), end="")
    except (ValueError, OSError, rundir.LockHeld) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE
    return 0


def render(plan: Plan, options: list[str]) -> str:
    """The batch script over the runs of a plan that are not done."""
    jobs = missing(plan)
    if not jobs:
        raise ValueError(f"{plan.output_dir}: every run is done; nothing to submit")
    task = matrix.task_of(jobs[0], plan.output_dir, "skipped")
    command = task.command[: task.command.index("--job")]
    folders = [str((plan.output_dir / job.run_dir).absolute()) for job in jobs]
    return SCRIPT.format(
        name=shlex.quote(plan.output_dir.name),
        last=len(jobs) - 1,
        at_once=plan.base.resources.parallel_jobs,
        warning=WARNING_SECONDS,
        output=shlex.quote(str(plan.output_dir.absolute())),
        options="".join(f"#SBATCH {option}\n" for option in options),
        runs="\n".join(f"    {shlex.quote(folder)}" for folder in folders),
        command=shlex.join(command),
    )


if __name__ == "__main__":
    raise SystemExit(main())
