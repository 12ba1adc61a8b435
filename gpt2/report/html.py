"""HTML report: one file that works offline, and whose tables work without scripts.

The charts use plotly.js, embedded from the plotly package. All contents of the results
are escaped by Jinja or embedded as JSON data, and a content security policy allows only
the scripts of this package and no network requests.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
import importlib.util
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from gpt2.plan.names import ATTENTION_PLOT
from gpt2.report import sentences
from gpt2.report.arms import Arm
from gpt2.report.chart_data import chart_data, costs
from gpt2.report.checklist import checklist
from gpt2.report.columns import Column, fixed, form_of, shown_columns
from gpt2.report.estimates import score_lines
from gpt2.report.evaluation_columns import evaluation_columns
from gpt2.report.gpu_records import gpu_use
from gpt2.report.lines import Line, lines_of, shown, shown_change
from gpt2.report.notes import remarks
from gpt2.report.results import MatrixResults, Run
from gpt2.report.samples import sample_prompts
from gpt2.report.swept_page import charts_of, rates_part, sweeps_part
from gpt2.report.timeline import Timeline
from gpt2.report.timeline_report import chart, read_timeline, time_lines
from gpt2.report.training_curves import PANELS as PANELS_OF_TRAINING
from gpt2.report.training_curves import training_curves
from gpt2.report.verdicts import Judgement, only_timed
from gpt2.report.what_was_trained import what_was_trained
from lib import human
from lib.atomic_files import finite
from lib.jobs.run_files import JOB_FILE, LOG_FILE, MANIFEST_FILE, METRICS_FILE

PAGE = Path(__file__).resolve().parent / "page"
SCRIPTS = ("training.js", "script.js")  # the last one draws the charts of all
RESULTS = {"val_loss", "difference", "interval", "difference_time"}
LINKED_FILES = (
    ("manifest", MANIFEST_FILE),
    ("job", JOB_FILE),
    ("metrics", METRICS_FILE),
    ("log", LOG_FILE),
    ("attention", ATTENTION_PLOT),
)
RUN_HEADS = {
    "val_loss": "val loss",
    "val_perplexity": "ppl",
    "val_accuracy": "accuracy",
    "parameters": "params",
    "tokens": "tokens",
    "tokens_per_s": "tokens/s",
    "peak_memory_bytes": "memory",
    "seconds": "time",
}
RUN_FORMS = {"val_loss": fixed(6), "val_perplexity": fixed(3)}  # to tell runs apart


@dataclass(frozen=True, slots=True)
class TableCell:
    """Table cell; ``sort`` is empty if the value is unknown."""

    key: str
    text: str
    sort: str
    css: str = ""
    grade: str = ""
    is_result: bool = False


class PlotlyMissing(RuntimeError):
    """The plotly package is not installed."""


def html_report(
    matrix: MatrixResults,
    judged: Judgement,
    name: str,
    times: Timeline | None = None,
    price: float | None = None,
) -> str:
    """Render report.html; price: of a GPU hour. Raises PlotlyMissing."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(PAGE), autoescape=True, undefined=StrictUndefined
    )
    times = read_timeline(matrix) if times is None else times
    lines = lines_of(judged)
    columns = sorted(shown_columns(lines), key=lambda column: column.reading_order)
    columns += evaluation_columns(lines)
    gpu = [(run, use) for run in matrix.runs if (use := gpu_use(matrix, run))]
    sources = [plotly_source(), *((PAGE / n).read_text("utf-8") for n in SCRIPTS)]
    scripts = [_script(source) for source in sources]
    training = training_curves(judged)
    data = {
        **chart_data(judged, gpu),
        "times": chart(times),
        "training": {"panels": PANELS_OF_TRAINING, "arms": training},
        **charts_of(judged),
    }
    return environment.get_template("page.html").render(
        name=name,
        policy=_policy(scripts),
        style=Markup((PAGE / "style.css").read_text("utf-8")),
        facts=what_was_trained(matrix, judged),
        headline=sentences.headline(matrix),
        controls=sentences.control_lines(judged),
        noise=[*matrix.merged, *sentences.statistics_lines(judged)],
        method=sentences.method(judged),
        columns=columns,
        lines=[_line(line, columns, judged) for line in lines],
        sweeps=sweeps_part(judged),
        best_of_sweep=sentences.BEST_OF_SWEEP,
        rates=rates_part(judged),
        costs=costs(judged),
        estimates=score_lines(matrix.estimates),
        has_gpu=bool(gpu),
        timed=only_timed(judged.comparisons),
        time_lines=time_lines(times, judged, price),
        pictures={path.stem for path in (matrix.root / "plots").glob("*.png")},
        run_heads=_run_heads(),
        runs=list(_runs(matrix, judged)),
        checklist=checklist(matrix, judged),
        left_out=matrix.left_out,
        has_training=bool(training),
        samples=sample_prompts(matrix, judged),
        data=Markup(as_json(data)),
        scripts=[Markup(script) for script in scripts],
        plotly_version=importlib.metadata.version("plotly"),
    )


def plotly_source() -> str:
    """Source of plotly.js from the plotly package, which is not imported."""
    found = importlib.util.find_spec("plotly")
    if found is None or not found.submodule_search_locations:
        raise PlotlyMissing(
            "report.html needs the plotly package: pip install plotly, or make the "
            "report without it (--no-html)"
        )
    folder = Path(next(iter(found.submodule_search_locations)))
    return (folder / "package_data" / "plotly.min.js").read_text(encoding="utf-8")


def as_json(value: object) -> str:
    """JSON that is safe inside a script element."""
    found = json.dumps(finite(value), separators=(",", ":"), allow_nan=False)
    for character in "<>&":
        found = found.replace(character, f"\\u{ord(character):04x}")
    return found


def _script(source: str) -> str:
    """Script with the line ends of an HTML parser, so that its hash is right."""
    return source.replace("\r\n", "\n").replace("</script", "<\\/script")


def _policy(scripts: list[str]) -> str:
    """Content security policy: only these scripts run, and nothing is fetched."""
    sums = (hashlib.sha256(script.encode("utf-8")).digest() for script in scripts)
    allowed = " ".join(f"'sha256-{base64.b64encode(s).decode()}'" for s in sums)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; "
        "img-src 'self' data: blob:; base-uri 'none'; form-action 'none'"
    )


# ---- tables ---------------------------------------------------------------------


def _line(line: Line, columns: list[Column], judged: Judgement) -> dict[str, Any]:
    comparison = line.comparison
    return {
        "cells": [_cell(column, line) for column in columns],
        "anchor": _anchor(line.arm),
        "partner": comparison.partner.label if comparison else "",
        "remarks": [what for label, what in remarks(judged) if label == line.arm.label],
        "changes": list(map(shown_change, comparison.changes if comparison else ())),
    }


def _cell(column: Column, line: Line) -> TableCell:
    value, is_grade = column.value(line), column.key.startswith("grade")
    css = {"number": column.is_number, "text": column.key == "title"}
    css["more"] = not column.is_main
    return TableCell(
        column.key,
        column.show(line),
        "" if value is None else str(value),
        " ".join(name for name, is_set in css.items() if is_set),
        grade=str(value).replace(" ", "-") if is_grade else "",
        is_result=column.key in RESULTS,
    )


def _anchor(arm: Arm) -> str:
    """Anchor of the arm's first row in the table of runs."""
    return f"arm-{quote(arm.label, safe='')}"


def _run_heads() -> list[tuple[str, bool]]:
    first = [("arm", False), ("seed", True), ("status", False), ("files", False)]
    last = [("hash", False)]
    return [*first, *((head, True) for head in RUN_HEADS.values()), *last]


def _runs(matrix: MatrixResults, judged: Judgement) -> Iterator[dict[str, Any]]:
    for arm in judged.arms:
        for place, run in enumerate(arm.runs):
            links = [
                (label, f"{quote(run.run_dir)}/{name}")
                for label, name in LINKED_FILES
                if (matrix.root / run.run_dir / name).is_file()
            ]
            yield {
                "anchor": _anchor(arm) if place == 0 else "",
                "cells": _run_cells(arm, run),
                "links": links,
                "manifest": dict(links).get("manifest"),
            }


def _run_cells(arm: Arm, run: Run) -> list[TableCell]:
    row = run.row
    why = row["failure"] or row["message"]
    state = row["status"] + (f": {why}" if why and row["status"] != "done" else "")
    seed = shown(row["seed"])
    cells = [
        TableCell("arm", arm.label, arm.label, "text"),
        TableCell("seed", seed, seed, "number"),
        TableCell("status", state, state, "text" if len(state) > 20 else ""),
    ]
    for key in RUN_HEADS:
        value, show = row[key], RUN_FORMS.get(key) or form_of(key)
        text = "" if value is None else str(value)
        cells.append(TableCell(key, show(value), text, "number", is_result=True))
    known = row["hash"] or ""
    return [*cells, TableCell("hash", (known or human.NONE)[:8], known)]
