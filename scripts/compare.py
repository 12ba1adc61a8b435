"""Compare two runs, arms or matrices: make compare A=ra B=baseline.

Says what differs in configuration, in environment (code, machine, data) and in
results, and whether the results may be compared at all. Differences are B minus A.
Exit codes: 0 compared; 2 one of the two cannot be found.
"""

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from gpt2.report.arms import Change
from gpt2.report.columns import form_of
from gpt2.report.compare import (
    ComparedSide,
    MatchedArms,
    SideBySide,
    find_subject,
    own_changes,
    shared_changes,
    side_by_side,
)
from gpt2.report.evidence import TOGETHER, Rules
from gpt2.report.grades import INCONCLUSIVE, INVALID, UNMATCHED
from gpt2.report.lines import difference_text, grade_text, shown_change
from gpt2.report.named_runs import results_folders, show_next_report
from gpt2.report.sentences import seeds_lines
from gpt2.report.series import read_series
from gpt2.report.verdict_rules import add_rule_options, asked_rules, rules_for
from gpt2.settings.configuration import results_of
from gpt2.settings.rerun_commands import make_command, show_next
from lib import human
from lib.json_answer import add_json, answer, answers_json, refuse
from lib.output import exit_code
from lib.terminal import report_console


@answers_json("compare")
def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = parser().parse_args(arguments)
        asked = asked_rules(options) | {"family": TOGETHER}
        results = results_of(options.config)
        a, b = (find_subject(name, results) for name in (options.a, options.b))
        runs = [run for arm in (*a.arms, *b.arms) for run in arm.runs]
        rules = rules_for(Path(options.config), runs, **asked)
        series = None if results is None else read_series(results)
        found = side_by_side(a, b, rules)
    except (ValueError, OSError) as error:
        return refuse("compare", error)
    answer(a=a.label, b=b.label, rules=asdict(rules), **found.to_json())
    answer(left_out=[asdict(item) for item in (*a.left_out, *b.left_out)])
    console = report_console()
    show(console, a, b, found, rules)
    if series is not None:
        console.print(
            f"{results} has a sequential family: this comparison is not one of its "
            "tests, and its verdict has no part in the promise of the series."
        )
    show_what_is_next(options, found, results)
    return 0


def show_what_is_next(
    options: argparse.Namespace, found: SideBySide, results: Path | None
) -> None:
    """Show the command for more seeds if they would decide, else for the report."""
    sides = [Path(x) if Path(x).is_dir() else results for x in (options.a, options.b)]
    folders, config = [side for side in sides if side is not None], Path(options.config)
    if any(p.comparison.at_steps.grade == INCONCLUSIVE for p in found.pairs):
        *_, folder = results_folders(folders, config)
        words = [f"RESULTS={folder}"]
        show_next(make_command("plan", words), "seeds that would decide")
    else:
        show_next_report(folders, config, "all arms of a matrix")


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="compare.py", description=__doc__)
    found.add_argument(
        "a", help="folder of a matrix, arm or run; bundle; or step[:seed]"
    )
    found.add_argument("b", help="the same for the other side")
    found.add_argument(
        "--config", default="config.py", help="where steps are looked up"
    )
    add_rule_options(found, family=False)
    add_json(found)
    return found


def show(
    console: Console, a: ComparedSide, b: ComparedSide, found: SideBySide, rules: Rules
) -> None:
    console.print(Text(f"A: {a.label}"))
    console.print(Text(f"B: {b.label}"))
    if len(found.pairs) == 1:
        show_pair(console, found.pairs[0])
    elif found.pairs:
        show_matrices(console, found.pairs)
    else:
        console.print("\nThey have no arm in common.")
    for line in seeds_lines([pair.comparison for pair in found.pairs], rules):
        console.print(Text(line))
    for name, arms in (("A", found.only_a), ("B", found.only_b)):
        if arms:
            labels = ", ".join(arm.label for arm in arms)
            console.print(Text(f"\nOnly in {name}: {labels}"))
    for item in (*a.left_out, *b.left_out):
        console.print(Text(f"left out: {item.path}: {item.reason}"))


def show_pair(console: Console, pair: MatchedArms) -> None:
    show_changes(console, "Configuration", pair.settings, "No setting differs.")
    show_changes(console, "Environment", pair.environment, "No differences found.")
    table = grid("Results (means over finished seeds)", "", "A", "B", "B - A")
    for name, x, y in pair.results:
        form = form_of(name)
        less = None if x is None or y is None else y - x
        shown_less = human.NONE if less is None else signed(form(abs(less)), less)
        table.add_row(*map(Text, (name, form(x), form(y), shown_less)))
    console.print(table)
    console.print(Text(comparability(pair)))


def show_matrices(console: Console, pairs: list[MatchedArms]) -> None:
    shared = shared_changes(pairs)
    show_changes(console, "Configuration, in all arms", shared, "No setting differs.")
    for pair in pairs:
        if own := own_changes(pair, shared):
            show_changes(console, f"Configuration, in {pair.a.label}", own, "")
    environment = dict.fromkeys(c for pair in pairs for c in pair.environment)
    show_changes(console, "Environment", environment, "No differences found.")
    table = grid("Validation loss", "arm", "A", "B", "B - A, paired by seed", "verdict")
    for pair in pairs:
        steps = pair.comparison.at_steps
        losses = [human.fixed(arm.mean("val_loss"), 4) for arm in (pair.a, pair.b)]
        cells = [pair.a.label, *losses, difference_text(steps), grade_text(steps.grade)]
        table.add_row(*map(Text, cells))
    console.print(table)
    for pair in pairs:
        if pair.comparison.at_steps.reasons:
            console.print(Text(f"  {pair.a.label}: {comparability(pair)}"))


def show_changes(
    console: Console, title: str, changes: Iterable[Change], none: str
) -> None:
    changes = list(changes)
    if not changes:
        console.print(Text(f"\n{title}: {none}"))
        return
    table = grid(title, "", "A", "B")
    for change in changes:
        table.add_row(*map(Text, shown_change(change)))
    console.print(table)


def comparability(pair: MatchedArms) -> str:
    """Whether the two may be compared, and what follows if so."""
    verdict = pair.comparison.at_steps
    why = "; ".join(verdict.reasons)
    if verdict.grade in (INVALID, UNMATCHED):
        return f"Not comparable ({verdict.grade}): {why}"
    same = "Both have identical settings. " if pair.is_same else ""
    line = f"{same}Comparable. B relative to A: {verdict.grade}"
    if verdict.grade != INCONCLUSIVE or verdict.mean:
        line += f", {difference_text(verdict)} nats"
    return f"{line} ({why})" if why else line


def grid(title: str, *heads: str) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD, title=title, title_justify="left", pad_edge=False
    )
    for head in heads:
        table.add_column(head, overflow="fold")
    return table


def signed(text: str, value: float) -> str:
    return text if value == 0 else f"{'−' if value < 0 else '+'}{text}"


if __name__ == "__main__":
    sys.exit(exit_code(main))
