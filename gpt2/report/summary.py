"""Write summary.json and results.csv, the contents of a results directory as data."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt2.report.results import COLUMNS, MatrixResults, Row
from lib.atomic_files import atomic_write_json, atomic_write_text, finite
from lib.safe_json import Unusable, as_dict, read_foreign_json, whole

SUMMARY_FILE = "summary.json"
# Characters that begin a formula in a spreadsheet, or that it skips before one; the
# wide forms are read alike in Japanese and Chinese ones (OWASP, CSV injection).
FORMULA_STARTS = (*"=+-@\t\n", *"\uff1d\uff0b\uff0d\uff20")
SCHEMA = 4  # increased with every change of fields; readers refuse newer ones


def write_summary(
    matrix: MatrixResults, verdicts: Mapping[str, Any] | None = None
) -> None:
    """Write summary.json and results.csv of a results directory, atomically.

    One entry per job, whatever its status. verdicts: added by the report; the field is
    null otherwise, so that no verdict outlives a change of its runs.
    """
    found = summary_of(matrix, verdicts)
    atomic_write_json(matrix.root / SUMMARY_FILE, found, make_folder=False)
    text = to_csv(matrix.rows)
    atomic_write_text(matrix.root / "results.csv", text, make_folder=False)


def summary_of(
    matrix: MatrixResults, verdicts: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Contents of summary.json (gpt2/report/summary.schema.json)."""
    summary = {
        "schema": SCHEMA,
        "runs": matrix.rows,
        "left_out": [{"path": x.path, "reason": x.reason} for x in matrix.left_out],
        "estimates": matrix.estimates or None,
        "verdicts": verdicts,
    }
    return dict(finite(summary))


def read_summary(output_dir: str | Path) -> dict[str, Any]:
    """Contents of summary.json in a results directory, as in summary.schema.json.

    Nothing in it is checked but that this version knows its schema. Raises ValueError,
    naming the file, if it is missing or damaged, or if a later version wrote it.
    """
    path = Path(output_dir) / SUMMARY_FILE
    try:
        found = as_dict(read_foreign_json(path))
        schema = whole(found.get("schema"))
        if schema is None or not isinstance(found.get("runs"), list):
            raise Unusable("not a summary; `make report` writes one")
        if schema > SCHEMA:
            raise Unusable(f"schema {schema} is of a later kablate, which reads it")
    except Unusable as error:
        raise ValueError(f"{path}: {error}") from None
    return found


def to_csv(rows: list[Row]) -> str:
    """Rows as CSV; missing values are empty, and no text or column name starts a
    formula in a spreadsheet."""
    names = [*COLUMNS, *sorted({name for row in rows for name in row} - set(COLUMNS))]
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(map(_csv_cell, names))
    for row in rows:
        writer.writerow([_csv_cell(row.get(name)) for name in names])
    return out.getvalue()


def _csv_cell(value: Any) -> Any:
    if not isinstance(value, str):
        return "" if value is None else value
    text = value.replace("\r", "\n")  # csv leaves \r, which ends a row, bare
    return f"'{text}" if text.startswith(FORMULA_STARTS) else text
