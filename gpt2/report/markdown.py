"""REPORT.md: verdicts, costs, method, checklist and runs as Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import quote

from gpt2.report import rate_tables, sentences
from gpt2.report.checklist import checklist
from gpt2.report.columns import COLUMN, Column, shown_columns
from gpt2.report.estimates import score_lines
from gpt2.report.evaluation_columns import evaluation_columns
from gpt2.report.grades import Verdict
from gpt2.report.lines import Line, difference_text, grade_text, lines_of, p_text
from gpt2.report.notes import remarks
from gpt2.report.results import MatrixResults, Run
from gpt2.report.size_trends import size_trends
from gpt2.report.sweep_tables import SWEEP, sweep_tables
from gpt2.report.verdicts import Judgement, only_timed
from gpt2.report.what_was_trained import what_was_trained
from gpt2.settings.shown import shown_name
from lib import human
from lib.safe_json import clean

LONGEST = 2000  # characters of a cell; our own remarks are long
# Keys of the columns of two tables.
VERDICTS = """step title seeds val_loss difference interval p_deciding test
val_perplexity val_accuracy grade"""
COSTS = """step title parameters parameter_change ratio flops_per_token tokens_per_s mfu
energy_j_per_mtoken peak_memory_bytes kv_bytes_per_token seconds bits_per_byte
step_seconds optimizer_state_bytes as_trained sparsity zeros infer_tokens_per_s
infer_batch_tokens_per_s infer_p50_ms infer_p95_ms infer_cache_bytes_per_token
heads_left kv_change decode_change forward_change"""


def markdown_report(
    matrix: MatrixResults, judged: Judgement, name: str, times: Sequence[str] = ()
) -> str:
    """Render REPORT.md, all texts escaped; times: lines on GPU time."""
    parts = [
        f"# {escape(name)}",
        "\n".join(
            f"- {name}: {escape(value)}"
            for name, value in what_was_trained(matrix, judged)
        ),
        " ".join(f"**{escape(line)}**" for line in sentences.control_lines(judged)),
        f"{sentences.headline(matrix)}. {_escaped(sentences.noise_lines(judged))}",
        _list(matrix.merged),
        _escaped(sentences.family_lines(judged)),
        "## Verdicts",
        _columns_table(judged, VERDICTS),
        _listed(remarks(judged)),
        _sizes(judged),
        _rates(judged),
        _sweep_tables(judged),
        _chart_links(matrix),
        _measures(judged),
        "## Cost",
        _columns_table(judged, COSTS),
        _escaped(score_lines(matrix.estimates)),
        _list(times),
        *_evaluations(judged),
        "## How to read this",
        sentences.method(judged),
        "## Publishing checklist",
        _checklist(matrix, judged),
        "## Runs",
        _runs(matrix),
        _left_out(matrix),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def escape(text: str) -> str:
    """Escape a text from the results for Markdown, including tables."""
    line = clean(text, LONGEST)
    escaped = "".join(f"\\{c}" if c in "\\`*_[]|~#" else c for c in line)
    return escaped.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _escaped(lines: Iterable[str]) -> str:
    return " ".join(map(escape, lines))


def _list(lines: Iterable[str]) -> str:
    return "\n".join(f"- {escape(line)}" for line in lines)


class _Link(str):
    """Cell that is Markdown already."""


def _grid(heads: Sequence[str], rows: Iterable[Sequence[str]], sides: str) -> str:
    """Table of texts, which are escaped. sides: l or r for each column."""
    rule = [_Link("--:" if side == "r" else "---") for side in sides]
    return "\n".join(
        f"| {' | '.join(x if isinstance(x, _Link) else escape(x) for x in cells)} |"
        for cells in (heads, rule, *rows)
    )


def _evaluations(judged: Judgement) -> list[str]:
    """Section with the results of `make eval`; none without them."""
    lines = lines_of(judged)
    if not (columns := evaluation_columns(lines)):
        return []
    table = _table(lines, [COLUMN["step"], COLUMN["title"], *columns])
    return ["## Evaluations", table, escape(f"Differences: {columns[1].help}.")]


def _columns_table(judged: Judgement, keys: str) -> str:
    lines = lines_of(judged)
    shown = {column.key for column in shown_columns(lines)}
    return _table(lines, [COLUMN[key] for key in keys.split() if key in shown])


def _table(lines: list[Line], columns: list[Column]) -> str:
    rows = [[column.show(line) for column in columns] for line in lines]
    heads = [column.heading for column in columns]
    return _grid(heads, rows, "".join("lr"[column.is_number] for column in columns))


def _measures(judged: Judgement) -> str:
    """Section with both verdicts of each arm; at equal time alone if all runs have a
    time budget."""
    timed = only_timed(judged.comparisons)
    heads = ["arm", "compared with"]
    heads += [] if timed else ["equal updates", "verdict"]
    heads += ["time budget", "equal time", "p", "verdict"]
    rows = []
    for c in judged.comparisons:
        cells, time = [c.arm.label, c.partner.label], c.at_time
        if not timed:
            steps = difference_text(c.at_steps), grade_text(c.at_steps.grade)
            cells += [human.NONE] * len(steps) if c.is_timed else steps
        cells += [human.duration(time.seconds), difference_text(time)]
        rows.append([*cells, p_text(time.p_deciding), grade_text(time.grade)])
    sides = "llrrrl" if timed else "llrlrrrl"
    table = _grid(heads, rows, sides) if rows else "There is nothing to compare yet."
    what = "At equal time" if timed else "At equal updates and at equal time"
    return f"## {what}\n\n{table}"


def _listed(remarks: Iterable[tuple[str, str]]) -> str:
    """List of (label of an arm, sentence)."""
    return "\n".join(f"- **{escape(arm)}**: {escape(text)}" for arm, text in remarks)


def _chart_links(matrix: MatrixResults) -> str:
    names = {"loss": "Loss curves", "forest": "Differences", "pareto": "Loss and cost"}
    names["rates"] = "Loss and learning rate"
    swept = sorted((matrix.root / "plots").glob(f"{SWEEP}*.png"))
    names |= {
        p.stem: f"Against {shown_name(p.stem.removeprefix(SWEEP))}" for p in swept
    }
    return "\n".join(
        f"![{text}](plots/{name}.png)"
        for name, text in names.items()
        if (matrix.root / "plots" / f"{name}.png").is_file()
    )


def _rates(judged: Judgement) -> str:
    """Section on LR_SWEEP; "" without it."""
    if not judged.own_best.arms:
        pending = _escaped(rate_tables.rate_lines(judged))
        return f"## Learning rates\n\n{pending}" if pending else ""
    (heads, rows), best = rate_tables.rate_table(judged), rate_tables.best_table(judged)
    parts = [
        *("## Learning rates", _grid(heads, rows, "ll".ljust(len(heads), "r"))),
        *("### Each arm at its own best rate", escape(judged.own_best.pending)),
        _grid(*best, "llrrrl") if best[1] else "",
        _listed(rate_tables.rate_remarks(judged)),
        rate_tables.own_best_text(judged),
    ]
    return "\n\n".join(part for part in parts if part)


def _sizes(judged: Judgement) -> str:
    """Difference and grade of each arm at each size, and the trends."""
    trends = size_trends(judged)
    if not trends:
        return ""
    points = sorted(
        (p for t in trends for p in t.points), key=lambda point: point.parameters
    )
    sizes = {point.size: human.count(point.parameters) for point in points}
    heads = ["arm", *(f"{size} ({n})" for size, n in sizes.items())]
    rows = []
    for trend in trends:
        verdicts = {point.size: point.comparison.at_steps for point in trend.points}
        rows.append([trend.name, *(_difference(verdicts.get(size)) for size in sizes)])
    table = _grid(heads, rows, "l".ljust(len(heads), "r"))
    lines = _list(sentences.size_lines(judged))
    return "\n\n".join(["## Difference by size", table, lines])


def _difference(verdict: Verdict | None) -> str:
    if verdict is None:
        return human.NONE
    return f"{difference_text(verdict)} {grade_text(verdict.grade)}"


def _sweep_tables(judged: Judgement) -> str:
    tables = [
        _grid(table.heads, map(table.cells, table.rows), f"l{'r' * len(table.values)}l")
        for table in sweep_tables(judged)
    ]
    if not tables:
        return ""
    best = sentences.BEST_OF_SWEEP.replace("*", "\\*")
    return "\n\n".join(["## Loss by swept value", *tables, best])


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
        failure = f": {row['failure']}" if row["failure"] else ""
        state = f"{row['status']}{failure}"
        cells = [label, str(row["seed"]), state, human.fixed(row["val_loss"], 6)]
        rows.append([*cells, _manifest_link(matrix, run), row["hash"] or ""])
    heads = ["arm", "seed", "status", "val loss", "manifest", "hash"]
    return _grid(heads, rows, "lrlrll")


def _manifest_link(matrix: MatrixResults, run: Run) -> _Link:
    path = f"{run.run_dir}/manifest.json"
    is_there = (matrix.root / path).is_file()
    return _Link(f"[{escape(run.run_dir)}]({quote(path)})" if is_there else human.NONE)


def _left_out(matrix: MatrixResults) -> str:
    if not matrix.left_out:
        return ""
    lines = [f"- {escape(x.path)}: {escape(x.reason)}" for x in matrix.left_out]
    return "\n".join(["## Left out", "", *lines])
