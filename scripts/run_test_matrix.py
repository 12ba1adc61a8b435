"""Run the jobs that are configured and not done, each in its own process.

Exit codes: 0 all done; 1 some failed; 2 not started (bad configuration, other
settings in the folder, another active runner); 3 stopped before the end; 6 disk full;
8 a GPU failed and is out of use, all that the others could run is done.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gpt2.data.token_files import check_if_prepared, with_settings
from gpt2.plan.jobs import Plan, only, restricted
from gpt2.plan.planning import make_plan
from gpt2.run import (
    estimate,
    plan_json,
    plan_listing,
    results_dir,
    runner,
    verification,
)
from gpt2.run.conflicts import refusal
from gpt2.run.formula_comparison import FormulaComparison, comparison_table
from gpt2.run.last_call import last_call
from gpt2.run.outcome import ENDED, conclude, show_next_report, show_times
from gpt2.run.placement import describe_plan, price_of_gpus, scheduler_options
from gpt2.run.progress import (
    next_commands,
    plan_states,
    status_table,
    statuses,
    watch,
)
from gpt2.run.requirements import require_data, require_packages
from gpt2.settings.configuration import add_options, copies, load
from gpt2.settings.rerun_commands import matrix_command, show_next
from lib import atomic_files
from lib.bytecode import keep_bytecode
from lib.gpu.compile_cache import bytecode_folder
from lib.jobs import run_files
from lib.jobs.options import Options, View
from lib.json_answer import add_json, answer, answers_json, fail, is_json
from lib.kconfig.config_py import Config
from lib.on_done import on_done_command, run_on_done
from lib.output import (
    EXIT_DISK,
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    EXIT_USAGE,
    exit_code,
)

MODES = {
    "list": "list the jobs and stop",
    "dry-run": "list the jobs, then verify every step on a tiny model",
    "estimate": "time a few updates of each cell and estimate the whole",
    "as-trained": "compare each cell's gradients with the formulas, as trained",
    "budget": "print parameters, FLOPs, cache and memory of each step",
    "status": "show the progress of every run, also while they run",
    "stop": "ask the active runner to write checkpoints and stop",
    "rerun": "run the jobs again; earlier runs are kept aside",
}


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run the configured matrix; run it again to continue."
    )
    add_options(parser)
    skip = "run steps without verifying them"
    parser.add_argument("--skip-verify", action="store_true", help=skip)
    bare = "print neither the table of certificates nor that of results"
    parser.add_argument("--no-table", action="store_true", help=bare)
    when = "run this command when the matrix ends (docs/machines.md)"
    parser.add_argument("--on_done", default="", help=when)
    add_json(parser)
    what = parser.add_mutually_exclusive_group()
    for name, text in MODES.items():
        what.add_argument(f"--{name}", action="store_true", help=text)
    return parser.parse_args(arguments)


@answers_json("run")
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; errors of the user go to stderr without a traceback."""
    given = parse(arguments)
    answer(command=mode_of(given))
    keep_bytecode("torch", bytecode_folder(os.environ), os.environ)
    try:
        on_done_command(given.on_done)  # refused now and not after the runs
        config = load(given.config, given.overrides)
        plan = only(make_plan(config), given.only)
        return act(given, config, plan)
    except atomic_files.DiskFull as error:
        fail(error, EXIT_DISK)
        show_same_command(given)
        return EXIT_DISK
    except (KeyboardInterrupt, verification.Stopped):
        fail("stopped before any job started", EXIT_INTERRUPTED)
        show_same_command(given)
        return EXIT_INTERRUPTED
    except (ValueError, OSError, RuntimeError) as error:
        return fail(with_settings(error, given.overrides), EXIT_USAGE)


def mode_of(given: argparse.Namespace) -> str:
    """The option of MODES that is given, without dashes; "run" without one."""
    return next((mode for mode in MODES if vars(given)[mode.replace("-", "_")]), "run")


def show_same_command(given: argparse.Namespace) -> None:
    """Print the command to continue; a rerun has set old runs aside by then."""
    target = "estimate" if given.estimate else "dry-run" if given.dry_run else ""
    print(f"to continue: {matrix_command(target)}", file=sys.stderr)


def act(given: argparse.Namespace, config: Config, plan: Plan) -> int:
    if not (given.budget or given.status or given.stop):
        require_packages(plan)
    if given.list or given.dry_run:
        return preview(given, config, plan)
    if given.budget:
        answer(**plan_json.described(plan, config))
        print(plan_listing.budget_table(plan), end="")
        show_next(matrix_command("dry-run"))
        return 0
    if given.status:
        return show_status(plan, config, given.only)
    if given.stop and given.only:
        raise ValueError("ONLY: a runner is stopped as a whole; leave it out")
    if given.stop:
        message = results_dir.ask_to_stop(plan.output_dir)
        answer(results=str(plan.output_dir), message=message)
        print(message)
        show_next(matrix_command("status"))
        return 0
    return run(given, config, plan)


def preview(given: argparse.Namespace, config: Config, plan: Plan) -> int:
    """The listing, the certificates of a dry run, and why `make` would not start.

    A folder that no setting but OUTPUT_DIR can make usable ends a dry run as it ends
    `make`: by MatrixError.
    """
    missing = check_if_prepared(plan.longest)
    if is_json():
        answer(**plan_json.described(plan, config))
    answer(missing_data=missing or None, refusal=None, certificates=None)
    print(plan_listing.listing(plan, config), end="", flush=True)
    where = no_place = ""
    try:
        if not missing:
            require_data(plan)
        # To list jobs, no cluster is connected to.
        if given.dry_run or plan.base.resources.engine != "ray":
            where = describe_plan(plan)
    except ValueError as error:  # the listing may be made for another machine
        no_place = str(error)
    for line in (where, estimate.price(plan) if plan.axes else ""):
        if line:
            print(line, flush=True)
    try:
        results_dir.require_usable(plan.output_dir)
    except results_dir.MatrixError as error:
        if given.dry_run:
            raise
        print_refusal(str(error))
    refused = warn_of_other_settings(plan)
    code = dry_run(given) if given.dry_run else 0
    if no_place:
        print_refusal(no_place)
    if missing:
        print_refusal(with_settings(missing, given.overrides))
    elif given.dry_run and not (code or no_place or refused):
        show_next(matrix_command())
    return code


def dry_run(given: argparse.Namespace) -> int:
    """The certificates of the steps that were listed."""
    if given.skip_verify:
        return 0
    found = verify(given)
    answer(certificates=found.to_json())
    return EXIT_FAILED if found.failed else EXIT_OK


def verify(
    given: argparse.Namespace, stop_file: Path | None = None
) -> verification.Certificates:
    """Verify the cells, the first stage of every run."""
    print("\nverifying every step on a tiny model", flush=True)
    words = given.config, given.overrides, given.only
    if not given.no_table:
        found = verification.verify(*words, stop_file=stop_file)
        print(flush=True)
        return found
    with open(os.devnull, "w") as unseen:  # a dry run has just shown the table
        found = verification.verify(*words, to=unseen, stop_file=stop_file)
    if not found.failed:
        print("All certificates passed, as in the dry run\n", flush=True)
    return found


def warn_of_other_settings(plan: Plan) -> bool:
    """Warn that a run would be refused, as the folder has different settings."""
    why = refusal(plan)
    if why:
        print_refusal(why)
    return bool(why)


def print_refusal(why: str) -> None:
    answer(refusal=why)
    print(f"note: `{matrix_command()}` would refuse to start: {why}", flush=True)


def show_status(plan: Plan, config: Config, only: str) -> int:
    """Print the progress of the runs of the results folder, or of those selected."""
    results_dir.refuse_foreign(plan.output_dir)
    asked = {job.run_dir for job in plan.jobs} if only else None
    states = plan_states(plan, asked)
    print(status_table(states), end="")
    if not only:
        show_times(plan)
    answer(refusal=None)
    refused = warn_of_other_settings(plan)
    alarms = runner.alarms(plan.output_dir)
    for alarm in alarms.values():
        print(alarm)
    lock = results_dir.matrix_lock(plan.output_dir)
    running = str(run_files.lock_held(lock)) if run_files.is_locked(lock) else None
    print(running or "nothing is running")
    if running:
        show_next(matrix_command("stop"), "writes checkpoints; `make` continues")
    elif not refused and set(statuses(plan)) == {"done"}:
        show_next_report(plan, config)
    elif not refused:
        if call := last_call(plan.output_dir, now=config):
            print(f"the last call in {plan.output_dir}: {call}")
        for command, why in next_commands(plan):
            show_next(command, "" if command == matrix_command() else why)
    answer(**plan_json.progress(plan, states), alarms=list(alarms.values()))
    answer(running=running)
    return 0


def run(given: argparse.Namespace, config: Config, plan: Plan) -> int:
    """Run what is missing, and then the command that was given for its end."""
    try:
        code = run_or_watch(given, config, plan)
    except atomic_files.DiskFull:
        run_at_end(given, config, EXIT_DISK)
        raise
    run_at_end(given, config, code)
    return code


def run_at_end(given: argparse.Namespace, config: Config, code: int) -> None:
    """Run the command of ON_DONE, if there is one, after a matrix."""
    if given.estimate or given.as_trained or not given.on_done:
        return
    plan = only(make_plan(config), given.only)  # with all rates that were added
    summary = {
        "RESULTS": str(plan.output_dir.resolve()),
        "EXIT_CODE": str(code),
        "JOBS_DONE": str(statuses(plan)["done"]),
        "JOBS_PLANNED": str(len(plan.jobs)),
    }
    run_on_done(on_done_command(given.on_done), summary)


def run_or_watch(given: argparse.Namespace, config: Config, plan: Plan) -> int:
    """Run what is missing; with Ray, watch a runner that is active already."""
    try:
        cold = plan_listing.cold_cache(plan, os.environ)
        answer(notes=plan_listing.notes(plan, config))
        for note in plan_listing.note_lines(plan, config) + cold:
            print(note, flush=True)
        return carry_out(given, config, plan)
    except run_files.LockHeld as held:
        if plan.base.resources.engine != "ray" or given.rerun or given.estimate:
            raise
        print(f"{held}\nwatching it, which can be ended by Ctrl-C", flush=True)
        code = watch(plan)
        conclude(plan, config, code, table=not given.no_table)
        return code


def carry_out(given: argparse.Namespace, config: Config, plan: Plan) -> int:
    """Run, probe or compare the jobs, as asked; the exit code."""
    from lib.jobs.live_table import make_view

    require_data(plan)
    asked = scheduler_options(plan)
    files = copies(config)
    if given.as_trained:
        with make_view() as view:
            compared = runner.compare_as_trained(plan, files, asked, view)
        return show_comparison(compared)
    if given.estimate:
        with make_view() as view:
            found = runner.make_estimate(plan, files, asked, view)
        return show_estimate(plan, found, asked)
    with make_view() as view:
        run_plan = partial(
            runner.run,
            copies=files,
            options=asked,
            view=view,
            verify=None if given.skip_verify else partial(verify, given),
        )
        plan, code = run_and_extend(given, config, plan, view, run_plan)
    conclude(plan, config, code, table=not given.no_table)
    return code


def show_comparison(compared: Sequence[FormulaComparison]) -> int:
    answer(cells=[one.to_json() for one in compared])
    print(comparison_table(compared), end="")
    if not all(c.passed for c in compared):
        return EXIT_FAILED
    show_next(matrix_command())
    return EXIT_OK


def show_estimate(plan: Plan, found: Mapping[str, Any], asked: Options) -> int:
    """Print an estimate with its price; {}: it was stopped."""
    if not found:
        answer(error="stopped before every cell was probed")
        print("stopped before every cell was probed; the estimate is unchanged")
        print(f"to start over: {matrix_command('estimate')}", file=sys.stderr)
        return EXIT_INTERRUPTED
    answer(estimate=found)
    print(estimate.render(found), end="")
    if not found["seconds"]:
        return EXIT_FAILED
    price = plan.base.matrix.price_per_gpu_hour
    if cost := price_of_gpus(asked, found["seconds"], price):
        print(f"about {cost}")
    show_next(matrix_command())
    return EXIT_OK


def run_and_extend(
    given: argparse.Namespace,
    config: Config,
    plan: Plan,
    view: View,
    run_plan: Callable[..., int],
) -> tuple[Plan, int]:
    """Run what is missing, then the rates that LR_SWEEP_EXTEND adds by the results;
    the plan with these, and an exit code."""
    code = run_plan(plan, rerun=given.rerun)
    codes = [code]
    extends = plan.base.matrix.lr_sweep_extend
    while extends and code in ENDED:
        wider = only(make_plan(config), given.only)
        more = {j.run_dir for j in wider.jobs} - {j.run_dir for j in plan.jobs}
        if not more:
            break
        for line in plan_listing.added_rates(wider)[len(plan.added_rates) :]:
            view.note(line)
        plan = wider  # a rate that diverged is not tried again
        code = run_plan(restricted(plan, more))
        codes.append(code)
    return plan, EXIT_FAILED if code in ENDED and EXIT_FAILED in codes else code


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
