"""Text reports: a table for the terminal, and REPORT.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import quote

from gpt2.report.checklist import checklist
from gpt2.report.columns import (
    COLUMN,
    Line,
    difference_text,
    grade_text,
    has_removed_heads,
    has_zeros,
    lines_of,
    p_text,
    shown_columns,
)
from gpt2.report.controls import sentence
from gpt2.report.estimates import score_lines
from gpt2.report.evidence import Rules
from gpt2.report.noise import KNOWN_NOISE, known_noise_of
from gpt2.report.notes import remarks
from gpt2.report.read_results import MatrixResults, Run
from gpt2.report.sweep_tables import sweep_tables
from gpt2.report.verdicts import INCONCLUSIVE, Comparison, Judgement
from lib import human
from lib.safe_json import clean
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
TERMINAL = (  # heading, column, justification
    ("step", "step", "right"),
    ("what changed", "title", "left"),
    ("seeds", "seeds", "right"),
    ("val loss", "val_loss", "right"),
    ("difference", "difference", "right"),
    ("ppl", "val_perplexity", "right"),
    ("acc", "val_accuracy", "right"),
    ("params", "parameters", "right"),
    ("zeros", "sparsity", "right"),
    ("heads", "heads_left", "right"),
    ("tok/s", "tokens_per_s", "right"),
    ("time", "seconds", "right"),
    ("verdict", "grade", "left"),
)
MORE = "more room for the title"
# Columns by importance, for narrow terminals.
BY_IMPORTANCE = (
    *("title", "step", "grade", "difference", "sparsity", "heads_left", MORE),
    *("seeds", "val_loss", "tokens_per_s", "parameters", "val_perplexity"),
    *("val_accuracy", "seconds"),
)
TITLE_WIDTH, MORE_WIDTH = 12, 8  # minimum width of the title, and additional width
GAP = 2  # between two columns, and around the table


def headline(matrix: MatrixResults) -> str:
    """ "9 of 12 runs finished, 1 failed, 2 planned"."""
    counts: dict[str, int] = {}
    for run in matrix.runs:
        counts[run.row["status"]] = counts.get(run.row["status"], 0) + 1
    done = counts.pop("done", 0)
    rest = "".join(f", {n} {status}" for status, n in sorted(counts.items()))
    return f"{done} of {len(matrix.runs)} runs finished{rest}"


def control_lines(judged: Judgement) -> list[str]:
    """Outcome of the A/A control, and reasons that void all verdicts of the matrix."""
    found = [sentence(control) for control in judged.controls]
    if judged.void:
        found.append(
            f"ALL VERDICTS OF THIS MATRIX ARE INVALID: {'; '.join(judged.void)}."
        )
    return found


def noise_lines(judged: Judgement) -> list[str]:
    """Noise floor in words, one sentence per baseline."""
    if not judged.noise:
        low, high = KNOWN_NOISE
        known = f" (sd at 124M in the literature: {low} to {high})"
        return [
            "Noise floor: not measured; this needs a baseline with two or more seeds"
            f"{known if known_noise_of(judged.arms) else ''}."
        ]
    return [
        f"Noise floor: {noise.arm.label} has sd {noise.sample.sd:.4f} over "
        f"{noise.sample.n} seeds (95%: {noise.interval.low:.4f} to "
        f"{noise.interval.high:.4f})."
        for noise in judged.noise
    ]


def seeds_lines(comparisons: Sequence[Comparison], rules: Rules) -> list[str]:
    """Advice on adding seeds without false findings, if seeds are missing."""
    short = any(c.at_steps.grade == INCONCLUSIVE for c in comparisons)
    if rules.looks > 1:
        return [
            f"Looks: {rules.looks} reports are planned as seeds are added, each at "
            f"{rules.alpha_of_look:.2%}; more of them would produce false findings."
        ]
    if not short:
        return []
    return [
        "More seeds: adding them until a verdict appears produces false findings (18% "
        'instead of 5% if "about N seeds" is followed three times). Run the whole '
        "number as fresh seeds in a new folder, or fix the number of seeds of each "
        "report in advance and set LOOKS to the number of reports."
    ]


def _seeds_lines(judged: Judgement) -> list[str]:
    return seeds_lines(judged.comparisons, judged.rules)


# ---- terminal -------------------------------------------------------------------


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
    parts: list[RenderableType] = [Text(x, style=style) for x in control_lines(judged)]
    parts.extend(_terminal_table(judged, width))
    if judged.comparisons:
        parts.append(
            Text("difference: val loss minus the partner's; negative is better.")
        )
    parts.append(Text(headline(matrix)))
    parts.extend(Text(line) for line in matrix.merged)
    parts.extend(Text(x) for x in (*noise_lines(judged), *_seeds_lines(judged)))
    parts.extend(Text(line) for line in score_lines(matrix.estimates))
    if has_zeros(lines_of(judged)):
        parts.append(Text("zeros: single pruned weights, which bring no speed."))
    if has_removed_heads(lines_of(judged)):
        parts.append(
            Text("heads: removed from the exported models; other columns: masked.")
        )
    parts.extend(Text(f"  {label}: {what}") for label, what in remarks(judged))
    if failed := [run for run in matrix.runs if _is_fault(run)]:
        parts.extend(Text(f"  {_fault(run)}", style="red") for run in failed)
    parts.extend(
        Text(f"  left out: {item.path}: {item.reason}", style="yellow")
        for item in matrix.left_out
    )
    return parts


def _terminal_table(judged: Judgement, width: int) -> list[RenderableType]:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    lines = lines_of(judged)
    absent = set() if _has_steps(lines) else {"step"}
    absent |= {"sparsity", "heads_left"} - {
        column.key for column in shown_columns(lines)
    }
    widths = {
        key: max(map(len, (heading, *(COLUMN[key].show(line) for line in lines))))
        for heading, key, _ in TERMINAL
    } | {"title": TITLE_WIDTH, MORE: MORE_WIDTH - GAP}
    needs = [(key, widths[key] + GAP) for key in BY_IMPORTANCE if key not in absent]
    shown = columns_that_fit(needs, width)
    if "grade" not in shown:
        return [Text(_short_line(line)) for line in lines]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for heading, key, justify in TERMINAL:
        if key not in shown:
            continue
        wide = key == "title"
        table.add_column(
            heading,
            justify=justify,  # type: ignore[arg-type]
            no_wrap=not wide,
            overflow="fold",
        )
    for line in lines:
        cells = (COLUMN[key].show(line) for _, key, _ in TERMINAL if key in shown)
        style = STYLES.get(line.grade, "")
        table.add_row(*(Text(cell, style=style) for cell in cells))
    return [table]


def _short_line(line: Line) -> str:
    """Label, grade and difference, where a table with verdicts does not fit."""
    cells = (COLUMN[key].show(line) for key in ("grade", "difference"))
    return f"{line.arm.label}: {', '.join(cells)}"


def _has_steps(lines: list[Line]) -> bool:
    return any(line.arm.step is not None for line in lines)


def _is_fault(run: Run) -> bool:
    return run.row["status"] in ("failed", "oom", "unreadable")


def _fault(run: Run) -> str:
    row = run.row
    why = row["failure"] or row["status"]
    return f"{row['run_dir']}: {why}: {row['message'] or 'see its train.log'}"


# ---- Markdown -------------------------------------------------------------------

METHOD = """\
Arms are paired by seed with the arm they are compared with; a difference is the arm's
validation loss minus its partner's, in nats per token; negative is better. Intervals
are 95% by Student's t on the paired differences. A verdict needs three seeds. Whether a
difference is 0 is decided by the pooled test, which estimates the noise from all arms
over the same seeds and is guarded against arms noisier than the rest; with only two
arms, and at equal time, by the paired t test with Holm's correction. The family-wise
error over all arms is {alpha:.0%}{looks}. The remarks give both tests where they
disagree; docs/statistics.md has their error rates. The margin of ±{margin:g} nats
(REPORT_MARGIN, to be chosen before seeing results) is the difference declared too small
to matter. NEUTRAL: the difference is within the margin (two one-sided t tests with
Holm's correction), whether or not it is 0. SUPPORTED and HARMFUL: it is not 0, and not
shown to be within the margin. INCONCLUSIVE: more seeds are needed. UNMATCHED: the arm
differs from its partner in parameters or tokens by more than {tolerance:.0%}, or in
data, which says nothing about the architecture. At equal time, losses are interpolated
between evaluations to the time when the first of the compared runs ended; the slower
arm is then still in the middle of its learning-rate schedule, which is a disadvantage
for it."""


SWEPT = """\
All {number} comparisons of the sweep, over all steps and all of its values, are one
family: every p and every verdict is corrected for all of them. A cell is compared with
the cell of its step's partner at the same values; a step that does not read a setting
has one cell for all of its values."""


BEST_OF_SWEEP = """\
Mean validation loss over the seeds; \\* is the lowest of its row. It is chosen on the
runs that it is read from, so that it is too optimistic by about the noise: the verdicts
above compare arms at equal values, and not each at its best."""


ZEROS = """\
Zeros are counted among the weights of linear layers, excluding embeddings and a head
tied to them. They are unstructured, which saves neither time nor memory on common
hardware: a pruned arm costs as much as the same arm unpruned."""


REMOVED_HEADS = """\
Pruned heads are masked during training and removed from the exported model, whose
logits were compared with the masked model's. Decode cache, time per decoded token and
time of a forward pass are given before and after the removal; the times were measured
at the end of each run on its device, not compiled. KV/token is the exported model's;
all other columns (loss, parameters, zeros, training speed) are the masked model's."""


def markdown_report(
    matrix: MatrixResults, judged: Judgement, name: str, times: Sequence[str] = ()
) -> str:
    """Render REPORT.md; times: lines on GPU time. All texts from the results are
    escaped."""
    parts = [
        f"# {escape(name)}",
        " ".join(f"**{escape(line)}**" for line in control_lines(judged)),
        f"{headline(matrix)}. {escape(' '.join(noise_lines(judged)))}",
        "\n".join(f"- {escape(line)}" for line in matrix.merged),
        escape(" ".join(_seeds_lines(judged))),
        "## Verdicts",
        _main_table(judged),
        _remarks(judged),
        _sweep_tables(judged),
        _chart_links(matrix),
        "## At equal updates and at equal time",
        _both_table(judged),
        "## Cost",
        _cost_table(judged),
        " ".join(map(escape, score_lines(matrix.estimates))),
        "\n".join(f"- {escape(line)}" for line in times),
        "## How to read this",
        method(judged),
        "## Publishing checklist",
        _checklist(matrix, judged),
        "## Runs",
        _runs(matrix),
        _left_out(matrix),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def method(judged: Judgement) -> str:
    """Method of the verdicts, in words."""
    rules = judged.rules
    looks = f", shared by {rules.looks} planned looks" if rules.looks > 1 else ""
    text = METHOD.format(
        alpha=rules.alpha,
        margin=rules.margin,
        tolerance=rules.tolerance,
        looks=looks,
    )
    lines = lines_of(judged)
    parts = [text]
    if any(arm.coordinates for arm in judged.arms):
        parts.append(SWEPT.format(number=len(judged.comparisons)))
    if has_zeros(lines):
        parts.append(ZEROS)
    if has_removed_heads(lines):
        parts.append(REMOVED_HEADS)
    return " ".join(parts)


LONGEST = 2000  # characters of a cell; our own remarks are long


def escape(text: str) -> str:
    """Escape a text from the results for Markdown, including tables."""
    line = clean(text, LONGEST)
    escaped = "".join(f"\\{c}" if c in "\\`*_[]|~#" else c for c in line)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _grid(heads: list[str], rows: list[list[str]], numeric: list[bool]) -> str:
    rule = ["--:" if is_number else "---" for is_number in numeric]
    lines = [heads, rule, *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines)


def _columns_table(judged: Judgement, keys: list[str]) -> str:
    lines = lines_of(judged)
    shown = {column.key for column in shown_columns(lines)}
    columns = [COLUMN[key] for key in keys if key in shown]
    rows = [[escape(column.show(line)) for column in columns] for line in lines]
    heads = [column.heading for column in columns]
    return _grid(heads, rows, [column.is_number for column in columns])


def _main_table(judged: Judgement) -> str:
    keys = "step title seeds val_loss difference interval p_deciding val_perplexity"
    return _columns_table(judged, [*keys.split(), "val_accuracy", "grade"])


def _cost_table(judged: Judgement) -> str:
    keys = "step title parameters parameter_change ratio flops_per_token tokens_per_s"
    more = "mfu energy_j_per_mtoken peak_memory_bytes kv_bytes_per_token seconds"
    cells = "bits_per_byte step_seconds optimizer_state_bytes as_trained sparsity zeros"
    cuts = "heads_left kv_change decode_change forward_change"
    wanted = " ".join((keys, more, cells, cuts)).split()
    return _columns_table(judged, wanted)


def _both_table(judged: Judgement) -> str:
    heads = ["arm", "compared with", "equal updates", "verdict", "time budget"]
    heads += ["equal time", "p", "verdict"]
    rows = []
    for c in judged.comparisons:
        steps, time = c.at_steps, c.at_time
        cells = [c.arm.label, c.partner.label, difference_text(steps)]
        cells += [grade_text(steps.grade), human.duration(time.seconds)]
        cells += [
            difference_text(time),
            p_text(time.p_deciding),
            grade_text(time.grade),
        ]
        rows.append([escape(cell) for cell in cells])
    if not rows:
        return "There is nothing to compare yet."
    is_number = [False, False, True, False, True, True, True, False]
    return _grid(heads, rows, is_number)


def _remarks(judged: Judgement) -> str:
    return "\n".join(
        f"- **{escape(label)}**: {escape(what)}" for label, what in remarks(judged)
    )


def _chart_links(matrix: MatrixResults) -> str:
    names = {"loss": "Loss curves", "forest": "Differences", "pareto": "Loss and cost"}
    return "\n".join(
        f"![{text}](plots/{name}.png)"
        for name, text in names.items()
        if (matrix.root / "plots" / f"{name}.png").is_file()
    )


def _sweep_tables(judged: Judgement) -> str:
    parts = []
    for table in sweep_tables(judged):
        rows = [[escape(cell) for cell in table.cells(row)] for row in table.rows]
        numeric = [False, *(True for _ in table.values), False]
        parts.append(_grid([escape(head) for head in table.heads], rows, numeric))
    if not parts:
        return ""
    return "\n\n".join(["## Loss by swept value", *parts, BEST_OF_SWEEP])


def _checklist(matrix: MatrixResults, judged: Judgement) -> str:
    lines = []
    for item in checklist(matrix, judged):
        remark = f" ({escape(item.remark)})" if item.remark else ""
        mark = "x" if item.ok else " "
        lines.append(f"- [{mark}] {item.name}: {escape(item.value)}{remark}")
    return "\n".join(lines)


def _runs(matrix: MatrixResults) -> str:
    rows = []
    for run in matrix.runs:
        row = run.row
        label = row["name"] if row["step"] is None else f"{row['step']} {row['name']}"
        state = (
            row["status"]
            if not row["failure"]
            else f"{row['status']}: {row['failure']}"
        )
        loss = human.fixed(row["val_loss"], 6)
        cells = [escape(str(cell)) for cell in (label, row["seed"], state, loss)]
        rows.append([*cells, _manifest_link(matrix, run), escape(row["hash"] or "")])
    heads = ["arm", "seed", "status", "val loss", "manifest", "hash"]
    return _grid(heads, rows, [False, True, False, True, False, False])


def _manifest_link(matrix: MatrixResults, run: Run) -> str:
    path = f"{run.run_dir}/manifest.json"
    if not (matrix.root / path).is_file():
        return human.NONE
    return f"[{escape(run.run_dir)}]({quote(path)})"


def _left_out(matrix: MatrixResults) -> str:
    if not matrix.left_out:
        return ""
    lines = [f"- {escape(x.path)}: {escape(x.reason)}" for x in matrix.left_out]
    return "\n".join(["## Left out", "", *lines])
