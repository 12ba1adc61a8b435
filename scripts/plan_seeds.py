"""How many seeds would find a difference: make plan DELTA=0.003.

The noise is measured in the results of the configured matrix if they have seeds
enough, else it is that known of 124M models; --sd sets it. Numbers are seeds of
every arm, with Holm's correction over the arms.
Exit codes: 0 answered; 2 an option that makes no sense.
"""

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt2.configuration import results_of
from gpt2.report.evidence import Rules
from gpt2.report.margin import margin_for
from gpt2.report.results import read_matrix
from gpt2.report.seeds import (
    Spread,
    answer,
    comparisons_of,
    known_spreads,
    measured_spread,
    of_runs,
)
from gpt2.report.verdicts import Judgement, judge
from lib import stats
from lib.output import exit_code
from lib.terminal import report_console

SHOWN_SEEDS = (2, 3, 4, 5, 6, 8, 10, 15, 20)


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        margin = margin_for(options.margin, Path(options.config))
        rules = Rules(alpha=options.alpha, margin=margin, power=options.power)
        check(options)
        judged = judged_results(options.results, Path(options.config))
    except (ValueError, OSError) as error:
        print(f"plan: {error}", file=sys.stderr)
        return 2
    arms = options.arms or (comparisons_of(judged) if judged else 0) or 1
    delta = rules.margin if options.delta is None else options.delta
    show(spreads(options.sd, judged), delta, arms, rules)
    return 0


def parser() -> argparse.ArgumentParser:
    rules = Rules()
    found = argparse.ArgumentParser(prog="plan_seeds.py", description=__doc__)
    add = found.add_argument
    delta = "difference to find, nats; default: the margin"
    add("--delta", type=float, help=delta)
    add("--power", type=float, default=rules.power, help="chance to find it")
    add("--alpha", type=float, default=rules.alpha, help="family-wise error")
    margin = "for NEUTRAL, nats; default: as is configured"
    add("--margin", type=float, help=margin)
    add("--arms", type=int, help="comparisons; default: those of the results, or 1")
    add("--sd", type=float, help="standard deviation of a run over seeds, nats")
    add("--results", help="results directory to measure the noise in")
    add("--config", default="config.py", help="config.py whose OUTPUT_DIR is meant")
    return found


def check(options: argparse.Namespace) -> None:
    """ValueError for numbers that make no sense."""
    for name in ("delta", "sd"):
        value = getattr(options, name)
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ValueError(f"{name.upper()}={value} must be a positive loss in nats")
    if options.arms is not None and options.arms < 1:
        raise ValueError(f"ARMS={options.arms} must be at least 1")


def judged_results(results: str | None, config: Path) -> Judgement | None:
    """The results to measure in; those of a configuration need not be there yet."""
    if results is not None:
        return judge(read_matrix(results))
    root = results_of(config)
    return judge(read_matrix(root)) if root is not None and root.is_dir() else None


def spreads(sd: float | None, judged: Judgement | None) -> list[Spread]:
    if sd is not None:
        return [of_runs(sd, f"run sd {sd:g} as given")]
    measured = measured_spread(judged) if judged else None
    return [measured] if measured else known_spreads()


def show(found: list[Spread], delta: float, arms: int, rules: Rules) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = report_console()
    count = "1 comparison" if arms == 1 else f"{arms} comparisons"
    console.print(
        f"Seeds of each arm for {rules.power:.0%} power at a family-wise error of "
        f"{rules.alpha:.0%} over {count}:"
    )
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heads = (f"to find ±{delta:g}", f"to call 0 NEUTRAL within ±{rules.margin:g}")
    for head in ("noise of a difference", "sd", *heads):
        table.add_column(head, justify="left" if head.startswith("noise") else "right")
    for spread in found:
        told = answer(spread, delta, arms, rules)
        numbers = (told.find, told.exclude)
        shown = [f">{stats.MAX_SEEDS}" if n is None else str(n) for n in numbers]
        table.add_row(Text(spread.origin), f"{spread.sd:.4f}", *shown)
    console.print(table)
    if delta < rules.margin:
        console.print(
            f"Within the margin of ±{rules.margin:g}: with more seeds a difference of "
            f"{delta:g} is graded NEUTRAL. If it matters, lower REPORT_MARGIN."
        )
    console.print("The smallest difference that so many seeds find:")
    small = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    small.add_column("seeds", justify="right")
    for spread in found:
        small.add_column(Text(f"sd {spread.sd:.4f}"), justify="right")
    for n in SHOWN_SEEDS:
        alpha, power = rules.alpha / arms, rules.power
        row = (
            stats.detectable_difference(s.sd, n, alpha, power, rules.margin)
            for s in found
        )
        small.add_row(str(n), *(f"{value:.4f}" for value in row))
    console.print(small)


if __name__ == "__main__":
    sys.exit(exit_code(main))
