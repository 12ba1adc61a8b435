"""Report for a terminal: the table, what limits it, and faults."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gpt2.plan.axes import label
from gpt2.report import sentences
from gpt2.report.columns import COLUMN, shown_columns
from gpt2.report.estimates import score_lines
from gpt2.report.lines import (
    Line,
    has_removed_heads,
    has_zeros,
    lines_of,
    shared_coordinates,
)
from gpt2.report.notes import remarks
from gpt2.report.rate_tables import rate_lines
from gpt2.report.results import MatrixResults, Run
from gpt2.report.verdicts import Judgement
from lib.terminal import columns_that_fit, report_console

if TYPE_CHECKING:
    from rich.console import RenderableType

STYLES = {
    "SUPPORTED": "bold green",
    "HARMFUL": "bold red",
    "INVALID": "red",
    "UNMATCHED": "yellow",
    "UNVERIFIED": "yellow",
}
KEYS = """step title seeds val_loss difference val_perplexity val_accuracy parameters
sparsity heads_left tokens_per_s seconds grade""".split()
SHORTER = {"val_accuracy": "acc", "tokens_per_s": "tok/s"}  # headings
MORE = "longer_title"
# Columns by importance, for narrow terminals.
BY_IMPORTANCE = (
    f"""title step grade difference sparsity heads_left {MORE} seeds val_loss
tokens_per_s parameters val_perplexity val_accuracy seconds""".split()
)
TITLE_WIDTH, MORE_WIDTH = 12, 8  # minimum width of the title, and additional width
GAP = 2  # between two columns, and around the table


def show(matrix: MatrixResults, judged: Judgement) -> None:
    """Print the table and the remarks on standard output."""
    console = report_console()
    for part in terminal_report(matrix, judged, console.width):
        console.print(part)


def terminal_report(
    matrix: MatrixResults, judged: Judgement, width: int = 120
) -> list[RenderableType]:
    """Report of `make` and `make report` as objects for rich.

    Columns that do not fit into the width are left out.
    """
    from rich.text import Text

    style = "bold red" if judged.void else ""
    heads = [Text(line, style=style) for line in sentences.control_lines(judged)]
    if shared := shared_coordinates(judged):
        heads.append(Text(f"All arms: {label(shared)}"))
    lines = lines_of(judged)
    texts = [sentences.headline(matrix), *matrix.merged]
    if judged.comparisons:
        texts.insert(0, "difference: val loss minus the partner's; negative is better.")
    texts += [*sentences.statistics_lines(judged), *score_lines(matrix.estimates)]
    if has_zeros(lines):
        texts.append("zeros: single pruned weights, which bring no speed.")
    if has_removed_heads(lines):
        texts.append("heads: removed from the exported models; other columns: masked.")
    # An arm at its own best rate often has the remarks that it has at equal rates.
    found = [f"  {label}: {what}" for label, what in remarks(judged)]
    texts += dict.fromkeys([*found, *rate_lines(judged)])
    parts = [*heads, *_terminal_table(lines, width), *map(Text, texts)]
    parts.extend(
        Text(f"  {_fault(run)}", style="red")
        for run in matrix.runs
        if run.row["status"] in ("failed", "oom", "unreadable")
    )
    parts.extend(
        Text(f"  left out: {item.path}: {item.reason}", style="yellow")
        for item in matrix.left_out
    )
    return parts


def _terminal_table(lines: list[Line], width: int) -> list[RenderableType]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    has_steps = any(line.arm.step is not None for line in lines)
    absent = {"sparsity", "heads_left"} - {c.key for c in shown_columns(lines)}
    absent |= set() if has_steps else {"step"}
    headings = {key: SHORTER.get(key, COLUMN[key].heading) for key in KEYS}
    widths = {
        key: max(map(len, (heading, *(COLUMN[key].show(line) for line in lines))))
        for key, heading in headings.items()
    } | {"title": TITLE_WIDTH, MORE: MORE_WIDTH - GAP}
    needs = [(key, widths[key] + GAP) for key in BY_IMPORTANCE if key not in absent]
    shown = columns_that_fit(needs, width)
    if "grade" not in shown:
        return [Text(_short_line(line)) for line in lines]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    columns = [COLUMN[key] for key in KEYS if key in shown]
    for column in columns:
        table.add_column(
            headings[column.key],
            justify="right" if column.is_number else "left",
            no_wrap=column.key != "title",
            overflow="fold",
        )
    for line in lines:
        cells = (column.show(line) for column in columns)
        style = STYLES.get(line.at_steps.grade, "")
        table.add_row(*(Text(cell, style=style) for cell in cells))
    return [table]


def _short_line(line: Line) -> str:
    """Label, grade and difference, where a table with verdicts does not fit."""
    cells = (COLUMN[key].show(line) for key in ("grade", "difference"))
    return f"{line.arm.label}: {', '.join(cells)}"


def _fault(run: Run) -> str:
    row = run.row
    why = row["failure"] or row["status"]
    return f"{row['run_dir']}: {why}: {row['message'] or 'see its train.log'}"
