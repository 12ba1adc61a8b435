"""Verify steps, optimizers and pruning methods; prints tables of certificates.

Exit codes: 0 all passed; 1 one failed, or a process was killed; 2 the configuration
makes no sense; 3 stopped by Ctrl-C or SIGTERM.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.plan.jobs import Plan, only
from gpt2.plan.planning import make_plan, registry_plan
from gpt2.settings.configuration import load_or_defaults
from gpt2.settings.rerun_commands import show_next
from lib.atomic_files import atomic_write_json
from lib.cpus import usable_cores
from lib.forked import Begin, forked
from lib.jobs.fast_exit import run_to_end
from lib.jobs.import_gc import collector_at_rest
from lib.json_answer import add_json, answer, answers_json, fail
from lib.kconfig.config_py import Config
from lib.kconfig.dotconfig import split_overrides
from lib.output import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE
from lib.terminal import paragraph

if TYPE_CHECKING:
    from gpt2.verify.certify_steps import Findings

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / ".kablate" / "certificates.json"
MOST_PROCESSES = 8


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add = parser.add_argument
    add("--config", type=Path, help="default: Kconfig's defaults")
    add("--overrides", default="", help="assignments, as in 'STEPS=0,5'")
    add("--at-hand", action="store_true", help="the configured jobs only")
    add("--only", default="", help="of these, the jobs that match a pattern")
    add("--out", type=Path, help="also write the table to this JSON file")
    add("--fresh", action="store_true", help="verify again what is verified already")
    add_json(parser)
    return parser.parse_args(arguments)


@answers_json("verify")
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; errors of the user go to stderr without a traceback."""
    given = parse(arguments)
    try:
        config = load(given.config, given.overrides)
        plans = (
            [only(make_plan(config), given.only)]
            if given.at_hand
            else list(all_plans(config))
        )
    except (ValueError, OSError) as error:
        return fail(error, EXIT_USAGE)
    try:
        return verify(plans, given)
    except OSError as error:
        return fail(error, EXIT_USAGE)
    except BrokenProcessPool:
        why = "maybe by the kernel for lack of memory"
        return fail(
            f"a process that checks certificates was killed, {why}", EXIT_FAILED
        )
    except KeyboardInterrupt:
        return fail("stopped", EXIT_INTERRUPTED)


def load(path: Path | None, overrides: str) -> Config:
    """config.py or Kconfig's defaults, with assignments applied."""
    steps = any(
        word.startswith(("STEPS=", "STEPS_FILE="))
        for word in split_overrides(overrides)
    )
    first = ["RA_MLA_ABLATION_MODE=y"] if steps else []
    return load_or_defaults(path, overrides, first)


def all_plans(config: Config) -> Iterator[Plan]:
    """Every step of the registry (or those asked for), then the configured cells."""
    yield registry_plan(config)
    plan = make_plan(config)
    if plan.base.matrix.mode != "ablation" or plan.parts:
        yield plan


def verify(plans: list[Plan], given: argparse.Namespace) -> int:
    """Run the certificates, one line a step, and say what failed."""
    # Threads cost time with tiny tensors. A number that the environment sets, as Slurm
    # sites do, would be one for each of the processes.
    os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with collector_at_rest():
        from gpt2.verify import certify_steps, pairing, table
        from gpt2.verify.certify_training import with_training

    cache = None if given.fresh else CACHE
    print(f"{table.MARKS}; docs/reading.md explains it")
    # The other half of the cores may prepare the first runs.
    with forked(min(MOST_PROCESSES, usable_cores() // 2)) as begin:
        certified = (certify_steps.certify_plan(plan, cache, begin) for plan in plans)
        found = chain.from_iterable(certified)
        cells = print_table("step", certify_steps.COLUMNS, found)
        pairings = [pairing.check_pairing(p) for plan in plans for p in plan.points]
        print("", *map(paragraph, pairing.lines(pairings)), sep="\n", flush=True)
        cells = pairing.with_pairing(cells, pairings)
        by_kind = verify_training(plans, cache, given.at_hand, begin)
    trained = [cell for of_kind in by_kind.values() for cell in of_kind]
    failed = [cell for cell in (*cells, *trained) if not cell.ok]
    for cell in failed:
        print(f"{cell.name}: {cell.message}", file=sys.stderr)
    cells = with_training(cells, plans, trained)
    counts = {kind: len(of_kind) for kind, of_kind in by_kind.items()}
    wrong = sum(not cell.ok for cell in (*cells, *trained))
    print("\n" + table.closing({"step": len(cells), **counts}, wrong))
    if not wrong and not given.at_hand:
        show_next("make dry-run", "lists the jobs that are configured")
    paired = {pairing.NAME: [found.to_json() for found in pairings]}
    table_of = certify_steps.to_json(cells) | paired
    if given.out is not None:
        atomic_write_json(given.out, table_of)
    answer(
        failed=[{"cell": cell.name, "message": cell.message} for cell in failed],
        table=table_of,
        trained={k: [each.to_json() for each in v] for k, v in by_kind.items()},
    )
    return EXIT_FAILED if failed else 0


def verify_training(
    plans: list[Plan], cache: Path | None, only: bool, begin: Begin
) -> dict[str, list[Findings]]:
    """Findings by kind on all optimizers and pruning methods, or of the plans' only."""
    from gpt2.verify import certify_training as training

    subjects = training.at_hand(plans) if only else training.everything()
    cells = {}
    for kind, columns in training.KINDS.items():
        if mine := [subject for subject in subjects if subject.kind == kind]:
            cells[kind] = print_table(
                kind, columns, training.certify_each(mine, cache, begin)
            )
    return cells


def print_table(
    kind: str, columns: Sequence[str], found: Iterable[Findings]
) -> list[Findings]:
    """Print the findings on each subject when they are there, then the legend."""
    from gpt2.verify import table

    cells = []
    print("\n" + table.heading(kind, columns))
    for cell in found:
        print(table.row(cell, columns), flush=True)
        cells.append(cell)
    print(*table.legend(kind, cells, columns), sep="\n", flush=True)
    return cells


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    run_to_end(main)
