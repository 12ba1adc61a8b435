"""gpt2/report/estimates.py: an estimate scored in every form of the report."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rich.console import Console

from gpt2.report.estimates import score_lines
from gpt2.report.html import html_report
from gpt2.report.markdown import markdown_report
from gpt2.report.read_results import read_matrix
from gpt2.report.results import MatrixResults
from gpt2.report.summary import write_summary
from gpt2.report.terminal import terminal_report
from gpt2.report.verdicts import judge
from tests.results_factory import write_matrix, write_run
from tests.scratch import ROOT

SCHEMA = json.loads((ROOT / "gpt2" / "report" / "summary.schema.json").read_text())


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three runs that are done, one of them slower than estimated, and one that
    is not; 9 GiB each, of which 10 were estimated for step 0."""
    write_run(tmp_path, 0, 1, result={"seconds": 110.0})
    write_run(tmp_path, 0, 2, result={"seconds": 100.0})
    write_run(tmp_path, 5, 1, result={"seconds": 150.0})
    write_run(tmp_path, 5, 2, status="failed", failure="nan")
    cells = [
        {"name": "step00-baseline", "seconds": 100.0, "peak_memory_bytes": 10 << 30},
        {"name": "step05-ra", "seconds": 200.0, "peak_memory_bytes": None},
    ]
    estimate(tmp_path, {"jobs": jobs(tmp_path), "cells": cells})
    return tmp_path


def jobs(root: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in root.glob("*/*/job.json")]


def estimate(root: Path, content: object) -> None:
    (root / "estimates.json").write_text(json.dumps(content))


def summary(root: Path) -> Any:
    write_summary(read_matrix(root, curves=False))
    found = json.loads((root / "summary.json").read_text())
    jsonschema.validate(found, SCHEMA)
    return found["estimates"]


def said(matrix: MatrixResults) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))
    for part in terminal_report(matrix, judge(matrix)):
        console.print(part)
    return console.export_text()


def test_errors_are_actual_over_estimated_less_1(results: Path) -> None:
    found = summary(results)
    time = found["time"]
    assert time["errors"] == pytest.approx([-0.25, 0.0, 0.1])
    assert (time["runs"], time["median"]) == (3, pytest.approx(0.0))
    assert (time["worst"], time["worst_run"]) == (-0.25, "step05-ra/seed1")
    assert found["memory"]["errors"] == pytest.approx([-0.1, -0.1])


def test_terminal_and_markdown_tell_them(results: Path) -> None:
    matrix = read_matrix(results)
    line = "Estimated time compared with actual, 3 runs: "
    line += "median error +0.0%, largest −25.0%"
    assert f"{line} (step05-ra/seed1)." in said(matrix)
    assert "Estimated memory compared with actual, 2 runs: median error −10.0%" in said(
        matrix
    )
    assert line in markdown_report(matrix, judge(matrix), "x")


def cost_on_page(matrix: MatrixResults) -> str:
    """The section on cost of report.html."""
    page = html_report(matrix, judge(matrix), "x")
    return page.partition('id="cost"')[2].partition("</section>")[0]


def test_the_page_tells_them_where_it_tells_the_cost(results: Path) -> None:
    matrix = read_matrix(results)
    lines = score_lines(matrix.estimates)
    assert len(lines) == 2
    assert re.findall(r"Estimated [^<]*", cost_on_page(matrix)) == lines
    estimate(results, {})
    assert "Estimated" not in cost_on_page(read_matrix(results))


def test_runs_of_other_settings_do_not_count(results: Path) -> None:
    made = json.loads((results / "estimates.json").read_text())
    for job in made["jobs"]:
        if job["run_dir"] == "step05-ra/seed1":
            job["hash"] = "0123"
    estimate(results, made)
    assert summary(results)["time"]["runs"] == 2


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"jobs": 7, "cells": {}},
        {"jobs": [None, {"hash": []}], "cells": [{"name": "step00-baseline"}]},
        {"jobs": [], "cells": [{"name": "step00-baseline", "seconds": "1"}]},
    ],
)
def test_damaged_estimates_score_nothing(tmp_path: Path, content: object) -> None:
    write_matrix(tmp_path, (0,), (1,))
    assert summary(tmp_path) is None
    estimate(tmp_path, content)
    assert summary(tmp_path) is None
    assert "Estimated" not in said(read_matrix(tmp_path))
    if isinstance(content, dict):
        estimate(tmp_path, {**content, "jobs": jobs(tmp_path)})
    assert summary(tmp_path) is None
