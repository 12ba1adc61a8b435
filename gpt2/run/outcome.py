"""End of a matrix: the results so far, times and costs, and the next command.

Torch-free.
"""

from __future__ import annotations

import sys

from gpt2.plan.jobs import Plan
from gpt2.run.plan_json import progress
from gpt2.run.progress import next_commands, plan_states, statuses
from gpt2.settings.rerun_commands import report_command, show_next
from lib.json_answer import answer, is_json
from lib.kconfig.config_py import Config
from lib.kconfig.dotconfig import COMMAND_LINE
from lib.output import EXIT_DEVICE, EXIT_FAILED, EXIT_OK

# Of a matrix that came to its end.
ENDED = (EXIT_OK, EXIT_FAILED, EXIT_DEVICE)


def conclude(plan: Plan, config: Config, code: int, *, table: bool) -> None:
    """Print the results so far and the next command: continue, or make the report."""
    done = statuses(plan)["done"]
    stopped = code not in ENDED
    if done and table and not stopped:
        show_table(plan)
    if is_json():
        answer(**progress(plan, plan_states(plan)))
    print(f"{done} of {len(plan.jobs)} jobs are done; results in {plan.output_dir}")
    if done and table:
        show_next_report(plan, config)
    if code and (code != EXIT_DEVICE or done < len(plan.jobs)):
        for command, why in next_commands(plan):
            print(f"{why}: {command}", file=sys.stderr)


def show_next_report(plan: Plan, config: Config) -> None:
    """Show the command that reports on the results folder of a plan."""
    configured = config.origin("OUTPUT_DIR") != COMMAND_LINE
    command = report_command(plan.output_dir, configured=configured)
    show_next(command, "plots and verdicts")


def show_table(plan: Plan) -> None:
    """The table of scripts/report.py, by the margin that is configured."""
    from gpt2.report.evidence import Rules
    from gpt2.report.read_results import read_matrix
    from gpt2.report.terminal import show
    from gpt2.report.timeline_report import read_timeline, time_lines
    from gpt2.report.verdicts import judge_and_record

    configured = plan.base.matrix
    try:
        found = read_matrix(plan.output_dir)
        rules = Rules(
            margin=configured.report_margin,
            looks=configured.report_looks,
            family=configured.report_family,
        )
        judged = judge_and_record(found, rules)
    except (ValueError, OSError) as error:  # the runs themselves came to their end
        print(f"no table: {error}", file=sys.stderr)
        return
    print(flush=True)
    show(found, judged)
    times = read_timeline(found)
    print("\n".join(time_lines(times, judged, configured.price_per_gpu_hour)))
    print()


def show_times(plan: Plan) -> None:
    """Time of the GPUs or slots by activity, so far."""
    from gpt2.report.timeline_report import folder_lines

    price = plan.base.matrix.price_per_gpu_hour
    for line in folder_lines(plan.output_dir, price):
        print(line)
