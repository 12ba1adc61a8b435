"""Evaluate trained models on other text, induction, multiple choice.

All of it works offline. Documents of TEXT (folders, globs or files) are scored in bits
per byte and by position in the context, random sequences that repeat by the loss on
the repeat, questions of CHOICES (JSONL) by whether the right answer is the likeliest.
TASKS are those of EleutherAI's lm-evaluation-harness, by name or YAML file (`make setup
EXTRAS=eval`); a task file may run code, and most tasks fetch their data.
Runs of one arm are its seeds; every arm is compared with the first one over the same
items and seeds, with an error that counts both. The scores are kept in eval.json of
each run, for the report.
Exit codes: 0 done; 2 no such run, no usable model in it, or an option that makes no
sense; 6 the disk is full.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from gpt2.infer.chosen_runs import add_run_options, chosen_runs
from gpt2.infer.compared import (
    MeasureOfArm,
    ScoredRun,
    by_powers,
    compare_arms,
    position_rows,
)
from gpt2.infer.items import Choice, read_choices, read_texts
from gpt2.plan.axes import split_names
from gpt2.report.evaluations import write_evaluation
from gpt2.report.named_runs import keep_for_report, show_next_report
from gpt2.settings.extras import check_installed
from gpt2.settings.schema import Resources
from lib.atomic_files import atomic_write_json, require_json_place
from lib.jobs.import_gc import collector_at_rest
from lib.json_answer import add_json, answer, answers_json, refuse
from lib.number_option import COUNT, add_number
from lib.output import exit_code
from lib.terminal import report_console, say_doing

MOST_RUNS = 256
NUMBERS = ("mean", "difference", "95%", "p (Holm)")  # columns that do not wrap
T = TypeVar("T")
Texts = dict[str, list[str]]
Choices = dict[str, list[Choice]]


@dataclass(frozen=True, slots=True)
class Items:
    """Items to score: documents and questions by name, names of tasks, the number of
    sequences for induction and of documents of a task, and what was left out."""

    texts: Texts
    choices: Choices
    tasks: Sequence[str]
    count: int
    notes: Sequence[str]


@answers_json("eval")
def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = parser().parse_args(arguments)
        items = items_of(options)
        chosen = chosen_runs(options, MOST_RUNS, variable="RUNS")
        if options.out:
            require_json_place(options.out)
        runs, notes = score(chosen.folders, chosen.resources, items)
    except (ValueError, OSError) as error:
        return refuse("eval", error)
    compared = compare_arms(runs)
    found = to_json(runs, compared, notes)
    answer(**found)
    show(runs, compared, notes)
    try:
        kept = not options.write or keep(runs)
        if options.out:
            atomic_write_json(options.out, {"schema": 1, **found})
            print(f"Written: {options.out}")
        if kept:
            why = "with columns for the scores"
            show_next_report(chosen.folders, options.config, why)
    except OSError as error:
        return refuse("eval", error)
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="eval.py", description=__doc__)
    add = found.add_argument
    add_run_options(found)
    add("--text", default="", help="folders, globs or files, separated by commas")
    words = 'JSONL files of {"context": ..., "choices": [...], "answer": 0}'
    add("--choices", default="", help=words)
    words = "tasks of lm-evaluation-harness: names, or YAML files"
    add("--tasks", default="", help=words)
    words = "documents, sequences and questions of each kind (default %(default)s)"
    add_number(found, "ITEMS", COUNT, default=100, help=words)
    add("--out", type=Path, help="also write all numbers to this JSON file")
    words = "write no eval.json into the folders of the runs"
    add("--no-write", dest="write", action="store_false", help=words)
    add_json(found)
    return found


def names(option: str, given: str) -> list[str]:
    """The names in a list, each once. Raises ValueError if there are none in what
    is given."""
    found = split_names(given)
    if given and not found:
        raise ValueError(f"{option}={given} names nothing")
    return list(dict.fromkeys(found))


def by_stem(paths: Sequence[str]) -> dict[str, str]:
    """Paths by their stems; paths with a common stem by their whole name."""
    stems = [Path(path).stem for path in paths]
    return {
        p if stems.count(s) > 1 else s: p for p, s in zip(paths, stems, strict=True)
    }


def first_of(
    found: Mapping[str, list[T]], count: int, notes: list[str]
) -> dict[str, list[T]]:
    """The first ``count`` items of each name; notes gets what there is beyond them."""
    more = [name for name, items in found.items() if len(items) > count]
    notes += [f"{name}: the first {count} (ITEMS) of more" for name in more]
    return {name: items[:count] for name, items in found.items()}


def items_of(options: argparse.Namespace) -> Items:
    """Read the items. Raises ValueError if there are none, or for a missing extra."""
    count, tasks = options.items, names("TASKS", options.tasks)
    if tasks:
        check_installed("TASKS", ["lm_eval"], "eval")
    notes: list[str] = []
    given = names("TEXT", options.text)
    texts = {p: read_texts(p, count + 1, notes) for p in given}
    paths = by_stem(names("CHOICES", options.choices))
    choices = {name: read_choices(p, count + 1) for name, p in paths.items()}
    own = first_of(texts, count, notes), first_of(choices, count, notes)
    return Items(*own, tasks, count, notes)


def score(
    folders: Sequence[Path], resources: Resources, items: Items
) -> tuple[list[ScoredRun], list[str]]:
    """The scores of each run, one model in memory at a time, and notes on them."""
    with collector_at_rest():
        from gpt2.infer.scores import (
            Scores,
            score_choices,
            score_induction,
            score_texts,
        )
        from gpt2.infer.trained import load_trained, prepare_device

        if items.tasks:
            from gpt2.infer.harness import Tasks, score_tasks

            tasks = Tasks(items.tasks)
            tasks.load()  # before the first model is scored

    where = prepare_device(resources).device
    runs: list[ScoredRun] = []
    notes = dict.fromkeys(items.notes)
    for folder in folders:
        trained, found = load_trained(folder, where), Scores()
        if items.texts:
            say_doing(f"{folder}: documents")
            score_texts(trained, items.texts, found)
        say_doing(f"{folder}: random sequences that repeat")
        score_induction(trained, items.count, found)
        if items.choices:
            say_doing(f"{folder}: questions")
            score_choices(trained, items.choices, found)
        harness = {}
        if items.tasks:
            say_doing(f"{folder}: tasks")
            harness = score_tasks(trained, tasks, items.count, found)
        notes |= dict.fromkeys(found.notes)
        job = trained.job
        arm = job.name if job.step is None else f"{job.step} {job.name}"
        positions = by_powers(found.positions)
        own = job.hash, found.measures, positions, harness
        runs.append(ScoredRun(arm, job.seed, str(folder), *own))
    return told_apart(runs), list(notes)


def told_apart(runs: list[ScoredRun]) -> list[ScoredRun]:
    """The runs, with a folder in the name of each arm that has a seed twice, as arms of
    two results folders have."""
    count = Counter((run.arm, run.seed) for run in runs)
    twice = {arm for (arm, _), number in count.items() if number > 1}
    places = {run.run_dir: Path(run.run_dir).parent for run in runs}
    of_arm = Counter((run.arm, run.seed, places[run.run_dir]) for run in runs)
    if max(of_arm.values()) > 1:  # copies side by side
        places = {run.run_dir: Path(run.run_dir) for run in runs}
    return [
        (
            replace(run, arm=f"{run.arm} ({places[run.run_dir]})")
            if run.arm in twice
            else run
        )
        for run in runs
    ]


def keep(runs: Sequence[ScoredRun]) -> bool:
    """Write eval.json of each run; whether all are written. Raises DiskFull."""
    kept = True
    for run in runs:
        found = run.hash, run.measures, run.harness
        write = partial(write_evaluation, Path(run.run_dir), *found)
        kept &= keep_for_report("eval", write)
    return kept


def show(
    runs: Sequence[ScoredRun], rows: Sequence[MeasureOfArm], notes: Sequence[str]
) -> None:
    """Print the measures of each arm, and the loss by position of each run."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    console = report_console()
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column in ("measure", "arm", "mean", "difference", "95%", "p (Holm)", "over"):
        table.add_column(column, no_wrap=column in NUMBERS, overflow="fold")
    before = None
    for row in rows:
        shown = row.measure if row.measure != before else ""
        table.add_row(*(Text(x) for x in (shown, *cells(row))))
        before = row.measure
    console.print(table)
    if positions := list(position_rows(runs)):
        table = Table(box=box.SIMPLE_HEAD, title="Loss by position in the context")
        for column in ("position", *(f"{run.arm}, seed {run.seed}" for run in runs)):
            table.add_column(Text(column))
        for span, losses in positions:
            table.add_row(span, *("" if x is None else f"{x:.4f}" for x in losses))
        console.print(table)
    if any(r.difference is not None and not r.difference.over_seeds for r in rows):
        notes = [*notes, "one seed: the intervals are of these models on other items"]
    for note in notes:
        print(f"note: {note}")


def cells(row: MeasureOfArm) -> list[str]:
    found = row.difference
    shown = [row.arm, f"{row.mean:.4f}"]
    if found is None:
        return [*shown, "", "", "", ""]
    items, seeds = ("s" * (n != 1) for n in (found.items, found.seeds))
    over = f"{found.items} item{items}, {found.seeds} seed{seeds}"
    interval, p = "", "" if row.p_holm is None else f"{row.p_holm:.3g}"
    if found.interval is not None:
        interval = f"{found.interval.low:+.4f} to {found.interval.high:+.4f}"
    return [*shown, f"{found.mean:+.4f}", interval, p, over]


def to_json(
    runs: Sequence[ScoredRun], rows: Sequence[MeasureOfArm], notes: Sequence[str]
) -> dict[str, object]:
    return {
        "runs": [
            {
                "arm": run.arm,
                "seed": run.seed,
                "run_dir": run.run_dir,
                "items": {name: list(one.items) for name, one in run.measures.items()},
                "loss_by_position": {str(k): v for k, v in run.positions.items()},
                "harness": dict(run.harness),
            }
            for run in runs
        ],
        "measures": [row.to_json() for row in rows],
        "notes": list(notes),
    }


if __name__ == "__main__":
    sys.exit(exit_code(main))
