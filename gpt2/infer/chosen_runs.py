"""Options of the commands that use trained models: which runs, on which device.

Torch-free.
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from pathlib import Path

from gpt2.report.named_runs import Chosen, choose_runs, split_run
from gpt2.settings.configuration import load_or_defaults, refuse_unread
from gpt2.settings.parse import settings_from
from gpt2.settings.schema import Resources
from lib.bytecode import keep_bytecode
from lib.gpu.compile_cache import bytecode_folder
from lib.kconfig.dotconfig import COMMAND_LINE

NAMES = (
    "folder of a run, or a step or name within the results (5, ra, 5:1337, "
    "step05-ra/seed1)"
)
MOST_RUNS = 16
# Settings that matter: where to compute, and where the runs are.
READ = ("CPU_THREADS", "DEVICE", "OUTPUT_DIR")


@dataclass(frozen=True, slots=True)
class ChosenRuns:
    """Finished runs, the resources that were configured for the command, and the
    results folder if the command line names one, for the next command."""

    folders: tuple[Path, ...]
    resources: Resources
    results: Path | None


def add_run_options(parser: argparse.ArgumentParser, several: bool = True) -> None:
    """Add RUN, --results, --config and --overrides."""
    add = parser.add_argument
    many = "; several separated by commas" if several else ""
    add("run", nargs="?", default="", help=NAMES + many)
    add("--results", type=Path, help="results folder; default: that of --config")
    add("--config", type=Path, default=Path("config.py"), help="default: config.py")
    add("--overrides", default="", help="where to compute, as in 'DEVICE=cpu'")


def chosen_runs(
    options: argparse.Namespace,
    most: int = MOST_RUNS,
    read: tuple[str, ...] = READ,
    variable: str = "RUN",
) -> ChosenRuns:
    """The finished runs that RUN names, each once, in its order.

    read: the settings that have an effect. variable: that make passes the runs by.
    Raises ValueError or OSError, naming what there is, if it names none, one that is
    not finished, or more than ``most``, and for an override of any other setting.
    """
    refuse_unread(options.overrides, read)
    keep_bytecode("torch", bytecode_folder(os.environ), os.environ)  # it comes next
    config = load_or_defaults(options.config, options.overrides)
    resources = settings_from(config).resources
    results = options.results
    named = config.origin("OUTPUT_DIR") == COMMAND_LINE
    if results is None and (named or options.config.exists()):
        results = options.config.parent / resources.output_dir
    folders: list[Path] = []
    for name in split_run(options.run, variable):
        found = choose_runs(name, results, variable)
        _check_finished(f"{variable}={name!r}", found)
        folders += [path for path in found.done if path not in folders]
    if len(folders) > most:
        raise ValueError(_too_many(f"{variable}={options.run!r}", folders, most))
    given = results if named or options.results is not None else None
    return ChosenRuns(tuple(folders), resources, given)


def _check_finished(given: str, found: Chosen) -> None:
    if not found.done:
        states = ", ".join(f"{path}: {state}" for path, state in found.others[:3])
        raise ValueError(f"{given}: none of these runs is finished: {states}")


def _too_many(given: str, folders: list[Path], most: int) -> str:
    shown = ", ".join(str(path) for path in folders[:4])
    count = "one run" if most == 1 else f"at most {most} runs"
    return (
        f"{given} stands for {len(folders)} runs, but this takes {count}. Name "
        f"them by name and seed, as in ra:1337, or by folder: {shown}, ..."
    )
