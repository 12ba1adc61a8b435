"""Overfit one batch of text with each step, at a tiny size on the CPU.

Exit codes: 0 all reached a loss near zero; 1 one did not; 2 the configuration is
invalid.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from gpt2.plan.jobs import Plan
from gpt2.plan.planning import registry_plan
from gpt2.settings.configuration import load_or_defaults
from gpt2.settings.rerun_commands import show_next
from gpt2.settings.schema import SYMBOL_OF
from lib.jobs.fast_exit import run_to_end
from lib.jobs.import_gc import collector_at_rest
from lib.json_answer import add_json, answer, answers_json, fail
from lib.kconfig.config_py import Config
from lib.kconfig.dotconfig import COMMAND_LINE
from lib.output import EXIT_FAILED, EXIT_OK, EXIT_USAGE

IGNORED = (
    "optimizer",
    "learning_rate",
    "weight_decay",
    "max_iters",
    "time_budget",
    "batch_size",
    "gradient_accumulation",
    "device",
    "seeds",
    "dataset",
)


@answers_json("overfit")
def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config", type=Path, help="default: Kconfig's defaults")
    parser.add_argument("--overrides", default="", help="such as 'STEPS=0,5'")
    add_json(parser)
    given = parser.parse_args(arguments)
    try:
        first = ["RA_MLA_ABLATION_MODE=y"]
        config = load_or_defaults(given.config, given.overrides, first)
        refuse_ignored(config)
        plan = registry_plan(config)
    except (ValueError, OSError) as error:
        return fail(error, EXIT_USAGE)
    return overfit(plan)


def refuse_ignored(config: Config) -> None:
    """Raise ValueError for a setting on the command line that nothing here reads."""
    for name in IGNORED:
        if config.origin(symbol := SYMBOL_OF[name]) == COMMAND_LINE:
            raise ValueError(
                f"{symbol} has no effect here: each step learns one batch on the CPU, "
                "by AdamW and with one seed. STEPS and settings of the model count"
            )


def overfit(plan: Plan) -> int:
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads cost time
    with collector_at_rest():
        from gpt2.verify import overfit
        from gpt2.verify.certify_steps import subjects

    print(f"{'step':<34} {'updates':>7} {'first loss':>10} {'last loss':>9}")
    cells: list[dict[str, Any]] = []
    for cell, subject in subjects(plan, n_layer=2).items():
        found = overfit.overfit_batch(subject)
        cells.append({"name": cell, "passed": found.ok, **asdict(found)})
        mark = "" if found.ok else f"  above {overfit.ENOUGH}: it does not learn"
        numbers = f"{found.updates:>7} {found.first:>10.3f} {found.last:>9.3f}"
        print(f"{cell:<34} {numbers}{mark}", flush=True)
    answer(cells=cells)
    if not all(cell["passed"] for cell in cells):
        return EXIT_FAILED
    show_next("make dry-run", "lists the jobs that are configured")
    return EXIT_OK


if __name__ == "__main__":
    run_to_end(main)
