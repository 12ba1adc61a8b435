"""Print a Slurm array job that runs the configured matrix, one run per task.

    make sbatch SBATCH='--partition=gpu --gres=gpu:1' > runs.sh
    sbatch runs.sh

The results folder must be one that all machines share. Each task trains one run and
holds its lock; one that Slurm ends early has written a checkpoint and is queued again.
`make status`, `make report` and `make` work as usual. The steps are verified first,
as reported on stderr. Exit codes: 0 printed; 2 nothing can be submitted.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from gpt2.data.token_files import check_if_prepared, with_settings
from gpt2.plan.jobs import Plan, only
from gpt2.plan.names import VERIFIED
from gpt2.plan.planning import make_plan
from gpt2.run import runner, verification
from gpt2.run.plan_listing import note_lines
from gpt2.run.requirements import require_data, require_packages, require_stable
from gpt2.settings.configuration import add_options, copies, load
from gpt2.settings.rerun_commands import matrix_command
from gpt2.settings.schema import SYMBOL_OF
from gpt2.settings.shown import shown_value
from lib.jobs.live_table import PlainView
from lib.jobs.process import Task
from lib.kconfig.config_py import DEFAULT, Config
from lib.kconfig.dotconfig import COMMAND_LINE
from lib.output import EXIT_USAGE, exit_code, print_exact

WARNING_SECONDS = 300  # before the limit, for a checkpoint
# What the script sets: the option, another name or its opposite, what decides it.
OWN_OPTIONS = (
    ("--job-name={name}", "-J", "it is the name of OUTPUT_DIR"),
    (
        "--array=0-{last}%{at_once}",
        "-a",
        "STEPS, SEEDS and ONLY choose its runs, JOBS how many at a time",
    ),
    (
        "--signal=B:TERM@{warning}",
        "",
        "it lets a run write its checkpoint before its time is up",
    ),
    ("--requeue", "--no-requeue", "a run that was cut off goes on in the same task"),
    ("--open-mode=append", "", "a task that is queued again goes on in its log"),
    ("--output={output}/slurm-%A_%a.log", "-o", "the logs are in OUTPUT_DIR"),
)
# Settings of the scheduler that `make` itself runs, the value of each that asks for
# nothing, and what takes its place under Slurm.
OF_MAKE = {
    "engine": ("local", "Slurm starts the runs"),
    "ray_address": ("auto", "Slurm starts the runs"),
    "gpus": ("", "Slurm assigns GPUs, as SBATCH='--gres=gpu:1' asks for"),
    "jobs_per_gpu": (0, "Slurm assigns GPUs, as SBATCH='--gres=gpu:1' asks for"),
    "prepare_ahead": (-1, "each task prepares its own run"),
    "fail_fast": (False, "tasks do not know of each other"),
    "hang_timeout": (0, "a task ends at its time limit, SBATCH='--time=8:00:00'"),
    "hang_factor": (0, "a task ends at its time limit, SBATCH='--time=8:00:00'"),
}
# sbatch's options of one letter: with a value, and without one. Long ones are more with
# every release and plugin of Slurm, so that only their form is checked.
VALUED, FLAGS = "ABCDFGJLMNSabcdegimnopqtwx", "HIOQRVWhksuv"
ONE_LETTER = re.compile(f"-[{FLAGS}]*([{VALUED}])?(.*)")
LONG = re.compile(r"--[A-Za-z0-9][\w-]*(=.*)?")
SCRIPT = "".join(("#!/bin/bash\n", *(f"#SBATCH {own}\n" for own, _, _ in OWN_OPTIONS)))
SCRIPT += """\
{options}
cd {folder} || exit 2  # relative paths of settings are seen from there
RUNS=(
{runs}
)
RUN="${{RUNS[$SLURM_ARRAY_TASK_ID]}}"
export {verified}
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
    skip = "print steps without verifying them"
    parser.add_argument("--skip-verify", action="store_true", help=skip)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command; errors of the user go to stderr without a traceback."""
    given = parse(arguments)
    try:
        config = load(given.config, given.overrides)
        plan = only(make_plan(config), given.only)
        options = split(given.sbatch)
        ignored = without_effect(plan, config)
        require_packages(plan)
        require_stable(plan)
        if missing := check_if_prepared(plan.longest):
            print(f"note: {missing}, if the runs are to read it here", file=sys.stderr)
        else:
            require_data(plan)
        for note in [*note_lines(plan, config, is_here=False), *ignored]:
            print(note, file=sys.stderr)
        view, certificates = PlainView(sys.stderr), partial(verify, given)
        tasks = runner.prepare(plan, copies(config), view, certificates)
        print_exact(render(plan, tasks, options))
    except (ValueError, OSError, RuntimeError) as error:
        print(with_settings(error, given.overrides), file=sys.stderr)
        return EXIT_USAGE
    return 0


def without_effect(plan: Plan, config: Config) -> list[str]:
    """A note on each configured setting that the tasks do not read.

    Raises ValueError for one that was typed with this command.
    """
    found = []
    for field, (nothing, instead) in OF_MAKE.items():
        value, symbol = getattr(plan.base.resources, field), SYMBOL_OF[field]
        origin = config.origin(symbol)
        text = f"{symbol}={shown_value(value)}"
        if value == nothing or origin == DEFAULT:
            continue
        if origin == COMMAND_LINE:
            raise ValueError(f"{text} has no effect in an array: {instead}")
        found.append(f"note: {text} ({origin}) has no effect in an array: {instead}")
    return found


def split(options: str) -> list[str]:
    """The options as a shell would take them apart, each with its value.

    Raises ValueError, naming the setting, for what is not an option of sbatch and for
    what the script sets itself.
    """
    found: list[list[str]] = []
    try:
        for word in shlex.split(options):
            if not word.isprintable():
                raise ValueError(f"{word!r} does not fit on a line")
            if word.startswith("-"):
                found.append([word])
            elif found and may_take_next(found[-1]):
                found[-1].append(word)
            else:
                raise ValueError(f"{word!r} is not an option")
        for words in found:
            for name in names_of(words):
                refuse_own(name, shlex.join(words))
    except ValueError as error:
        raise ValueError(f"SBATCH={options!r}: {error}") from None
    return [shlex.join(words) for words in found]


def may_take_next(words: Sequence[str]) -> bool:
    """Whether the next word may be the value of an option."""
    word, *value = words
    if value or word.startswith("--"):
        return not value and "=" not in word
    form = ONE_LETTER.fullmatch(word)
    return form is not None and form[1] is not None and not form[2]


def names_of(words: Sequence[str]) -> list[str]:
    """Names of the options in a word, as in -Hp for -H and -p.

    words: with the value, if it is a word of its own. Raises ValueError for what sbatch
    does not have, and for an option of one letter without its value.
    """
    word = words[0]
    if LONG.fullmatch(word):
        return [word.partition("=")[0]]
    form = ONE_LETTER.fullmatch(word)
    if word.startswith("--") or form is None or not word[1:]:
        raise ValueError(f"{word!r} is not of the form --name=value")
    valued, rest = form[1], form[2]
    if valued is None and rest:
        raise ValueError(f"sbatch has no option -{rest[0]}, as in {word!r}")
    if valued and not rest and len(words) == 1:
        raise ValueError(f"-{valued} needs a value")
    flags = word[1 : form.start(1) if valued else None]
    return [f"-{letter}" for letter in (*flags, *(valued or ""))]


def refuse_own(name: str, option: str) -> None:
    """Raise ValueError, with how to get it, for an option that the script sets."""
    for own, other, what in OWN_OPTIONS:
        long = own.partition("=")[0]
        if means(name, long) or means(name, other):
            raise ValueError(
                f"{long} is set by the script ({what}); for one submission "
                f"`sbatch {option} runs.sh` overrules it"
            )


def means(given: str, name: str) -> bool:
    """Whether sbatch takes ``given`` for the option of that name: it takes long names
    shortened."""
    if name.startswith("--"):
        return len(given) > len("--a") and name.startswith(given)
    return given == name


def verify(given: argparse.Namespace, stop_file: Path) -> verification.Certificates:
    """Verify the missing cells, unless that is skipped."""
    if given.skip_verify:
        return verification.Certificates()
    words = given.config, given.overrides, given.only
    return verification.verify(*words, sys.stderr, stop_file)


def render(plan: Plan, tasks: Sequence[Task], options: Sequence[str]) -> str:
    """The batch script over these runs of a plan."""
    if not tasks:
        raise ValueError(f"{plan.output_dir}: there is no run left to submit")
    first, place = tasks[0], str(plan.output_dir.absolute())
    if "\n" in place:  # what follows would be a line of the script, and executed
        raise ValueError(f"{place!r} does not fit on a line of the script")
    return SCRIPT.format(
        name=shlex.quote(plan.output_dir.name),
        last=len(tasks) - 1,
        at_once=plan.base.resources.parallel_jobs or 1,
        warning=WARNING_SECONDS,
        output=shlex.quote(place.replace("%", "%%")),  # as sbatch reads names
        options="".join(f"#SBATCH {option}\n" for option in options) + later(),
        folder=shlex.quote(str(Path.cwd())),
        runs="\n".join(f"    {shlex.quote(str(task.run_dir))}" for task in tasks),
        verified=f"{VERIFIED}={first.env[VERIFIED]}",
        command=shlex.join(first.command[: first.command.index("--job")]),
    )


def later() -> str:
    """Comments with the commands for these runs, once the script was submitted."""
    commands = {
        "how far they are": matrix_command("status"),
        "to run here what is missing": matrix_command(),
    }
    # a command with a line break, in a pattern of ONLY, would be run from its second
    shown = {what: text for what, text in commands.items() if "\n" not in text}
    return "".join(f"# {what}: {text}\n" for what, text in shown.items())


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
