"""Plan the seeds that would find a difference: make plan DELTA=0.003.

The noise is measured in the results of the configured matrix if they have enough
seeds, else it is that known of GPT-2 124M, for a model of that size; --sd sets it.
Numbers are seeds of every arm, for the test that gives the verdicts.
Exit codes: 0 answered; 2 an option that makes no sense, or the noise is not known.
"""

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import dataclasses
import math
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from gpt2.plan.budget import budget
from gpt2.plan.planning import make_plan
from gpt2.report import pooling
from gpt2.report.bundle import results_folder
from gpt2.report.evidence import Rules
from gpt2.report.noise import KNOWN_PARAMETERS, Family, PlannedTest, is_known
from gpt2.report.power import (
    Spread,
    known_spreads,
    measured_spreads,
    of_runs,
    plan_seeds,
)
from gpt2.report.read_results import read_matrix
from gpt2.report.series import ArmSeries
from gpt2.report.verdict_rules import add_rule_options, asked_rules, rules_for
from gpt2.report.verdicts import Judgement, judge
from gpt2.settings.configuration import load, results_of
from gpt2.settings.rerun_commands import show_next
from lib import human, stats
from lib.json_answer import add_json, answer, answers_json, is_json, refuse
from lib.number_option import LOSS, SHARE, Allowed, add_number
from lib.output import exit_code
from lib.terminal import report_console

SHOWN_SEEDS = (3, 4, 5, 6, 8, 10, 15, 20)
# The critical values are simulated, which takes minutes with hundreds of comparisons.
ARMS = Allowed(int, lambda x: 1 <= x <= 1000, "a whole number from 1 to 1000")


@answers_json("plan")
def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = parser().parse_args(arguments)
        config = Path(options.config)
        rules = rules_for(
            config,
            **asked_rules(options),
            alpha=options.alpha,
            power=options.power,
        )
        judged = judged_results(options.results, config, rules)
        found = spreads(options.sd, judged, config)
    except (ValueError, OSError) as error:
        return refuse("plan", error)
    delta = rules.margin if options.delta is None else options.delta
    family = family_of(options.arms, judged, rules)
    test = PlannedTest(rules, family)
    show(found, delta, test)
    show_next("make SEEDS=1-N OUTPUT_DIR=NEW", "N from the first table")
    if is_json():
        answer(delta=delta, arms=family.number, level=family.level, pools=family.pools)
        answer(rules=dataclasses.asdict(rules))
        answer(noise=[to_json(spread, delta, test) for spread in found])
    return 0


def family_of(arms: int | None, judged: Judgement | None, rules: Rules) -> Family:
    """Comparisons that share the error, or the test of a series that is planned."""
    series = judged.series if judged else None
    if series is None and not rules.is_sequential:
        compared = judged.comparisons if judged else []
        found = pooling.family_of(
            [(c.arm, c.partner) for c in compared if c.at_steps.family]
        )
        number = arms or found.number
        return Family(number, pools=min(number, found.pools))
    series = series or ArmSeries(rules.family, rules.alpha)
    number = max(arms or 0, len(series.tests) + 1)
    level = series.next_level(number - len(series.tests) - 1)
    return Family(number, level)


def parser() -> argparse.ArgumentParser:
    rules = Rules()
    found = argparse.ArgumentParser(prog="plan_seeds.py", description=__doc__)
    add = found.add_argument
    number = partial(add_number, found)
    delta = "difference to detect, nats; default: the margin"
    number("DELTA", LOSS, help=delta)
    number("POWER", SHARE, default=rules.power, help="probability of detecting it")
    number("ALPHA", SHARE, default=rules.alpha, help="family-wise error")
    add_rule_options(found)
    number("ARMS", ARMS, help="comparisons; default: those of the results, or 1")
    number("SD", LOSS, help="standard deviation of a run over seeds, nats")
    add("--results", help="results directory or bundle to measure the noise in")
    add("--config", default="config.py", help="config.py whose OUTPUT_DIR is meant")
    add_json(found)
    return found


def judged_results(results: str | None, config: Path, rules: Rules) -> Judgement | None:
    """Judge the results that measure the noise; configured ones may not exist yet."""
    root = results_of(config) if results is None else results_folder(Path(results))
    if root is None or (results is None and not root.is_dir()):
        return None
    return judge(read_matrix(root), Rules(alpha=rules.alpha, family=rules.family))


def spreads(sd: float | None, judged: Judgement | None, config: Path) -> list[Spread]:
    """Spreads to plan with. ValueError if none is given, measured or known."""
    if sd is not None:
        return [of_runs(sd, f"run sd {sd:g} as given")]
    measured = measured_spreads(judged) if judged else []
    if measured:
        return measured
    sizes = sizes_of(config, judged)
    if not all(map(is_known, sizes)):
        low, high = (f"{size / 1e6:g}" for size in KNOWN_PARAMETERS)
        size = human.count(sizes[0])
        few = "these results have no two valid seeds to measure it with, and "
        few = few if judged else ""
        raise ValueError(
            f"{few}the noise of a model of {size} parameters is unknown "
            f"(it is known for {low} to {high} million): run three seeds of the "
            "baseline, name a results folder that has them with RESULTS=folder, or set "
            "SD= to the standard deviation of a run over seeds in nats"
        )
    return known_spreads()


def sizes_of(config: Path, judged: Judgement | None) -> list[float | None]:
    """Parameters of the arms in the results or configuration; [] without either."""
    if judged and judged.arms:
        return [arm.mean("parameters") for arm in judged.arms]
    if not config.is_file():
        return []
    return [budget(job.settings).parameters for job in make_plan(load(config)).jobs]


def show(found: list[Spread], delta: float, test: PlannedTest) -> None:
    rules = test.rules
    console = report_console()
    console.print(f"Seeds of each arm for {rules.power:.0%} power at {error_of(test)}:")
    console.print(needed(found, delta, test))
    if delta < rules.margin:
        console.print(
            f"{delta:g} is within the margin of ±{rules.margin:g}: with more seeds "
            'than "only" it is graded NEUTRAL. If it matters, lower REPORT_MARGIN.'
        )
    if test.family.level is not None:
        console.print(
            "Run that number at once: more seeds after the test are a further test, at "
            "the next level."
        )
    elif rules.looks == 1:
        console.print(
            "Run that number at once: adding seeds until a verdict appears produces "
            "false findings. LOOKS=3 plans for three reports."
        )
    console.print("Smallest detectable difference by number of seeds:")
    console.print(detectable(found, test))


def error_of(test: PlannedTest) -> str:
    """Error that the test keeps, in words."""
    rules, family, number = test.rules, test.family, test.family.number
    if family.level is not None:
        level = human.level(family.level)
        return f"a level of {level}, that of test {number} of a sequential family"
    count = "1 comparison" if number == 1 else f"{number} comparisons"
    if family.pools > 1:
        count += f", with the noise of each of {family.pools} rates or sizes"
    looks = f" in {rules.looks} looks" if rules.looks > 1 else ""
    return f"a family-wise error of {rules.alpha:.0%} over {count}{looks}"


def to_json(spread: Spread, delta: float, test: PlannedTest) -> dict[str, Any]:
    """Numbers of seeds at one noise, and the differences that numbers of seeds find."""
    numbers = plan_seeds(spread, delta, test.family, test.rules)
    seeds = {"to_detect": numbers.find, "to_exclude": numbers.exclude}
    return {
        **dataclasses.asdict(spread),
        **{k: None if x is None else dataclasses.asdict(x) for k, x in seeds.items()},
        "detectable": {str(n): smallest(spread.sd, n, test) for n in SHOWN_SEEDS},
    }


def needed(found: list[Spread], delta: float, test: PlannedTest) -> Table:
    rules = test.rules
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    heads = (f"to detect ±{delta:g}", f"to grade 0 NEUTRAL within ±{rules.margin:g}")
    for head in ("noise of a difference", "sd", *heads):
        table.add_column(head, justify="left" if head.startswith("noise") else "right")
    for spread in found:
        numbers = plan_seeds(spread, delta, test.family, test.rules)
        find = seeds_text(numbers.find, delta < rules.margin)
        cells = [find, seeds_text(numbers.exclude)]
        table.add_row(Text(spread.origin), f"{spread.sd:.4f}", *cells)
    return table


def seeds_text(found: stats.Seeds | None, falls: bool = False) -> str:
    """ "5", "5 only", "5 to 16 only", ">1000", or "never" if the power falls again."""
    if found is None:
        return "never" if falls else f">{stats.MAX_SEEDS}"
    if found.last is None:
        return str(found.first)
    ends = dict.fromkeys((found.first, found.last))
    return f"{' to '.join(map(str, ends))} only"


def detectable(found: list[Spread], test: PlannedTest) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("seeds", justify="right")
    for spread in found:
        table.add_column(Text(f"sd {spread.sd:.4f}"), justify="right")
    for n in SHOWN_SEEDS:
        row = (smallest(spread.sd, n, test) for spread in found)
        table.add_row(str(n), *(f"{value:.4f}" for value in row))
    return table


def smallest(sd: float, seeds: int, test: PlannedTest) -> float:
    """Smallest difference that is detected with this number of seeds.

    Rounded up to the digits shown, so that the difference in the table is detected.
    """

    def chance(delta: float) -> float:
        return test.power(delta, sd, seeds, test.rules.margin)

    found = stats.detectable_difference(chance, sd, test.rules.power)
    return math.ceil(1e4 * found - 1e-3) / 1e4


if __name__ == "__main__":
    sys.exit(exit_code(main))
