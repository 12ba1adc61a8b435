"""Speed of generation next to a run: inference.json, from `make inference-bench`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lib.atomic_files import atomic_write_json
from lib.jobs.run_files import now
from lib.safe_json import Unusable, as_dict, number, text, whole

INFERENCE_FILE = "inference.json"
SCHEMA = 1
# Column in summary.json and results.csv to the field of a measurement of one sequence.
FIGURES = {
    "infer_tokens_per_s": "decode_tokens_per_second",
    "infer_prefill_tokens_per_s": "prefill_tokens_per_second",
    "infer_p50_ms": "p50_ms",
    "infer_p95_ms": "p95_ms",
    "infer_cache_bytes_per_token": "cache_bytes_per_token",
}
AT_MOST = "infer_batch_tokens_per_s"  # tokens per second at the largest batch


def write_generation(
    run_dir: Path, run_hash: str, rows: Sequence[Mapping[str, Any]], about: Mapping
) -> None:
    """Write inference.json, atomically, in the place of an earlier one.

    rows: measurements of this run; about: where and with what they were made. Raises
    lib.atomic_files.DiskFull and OSError.
    """
    record = {**about, "schema": SCHEMA, "hash": run_hash, "written": now()}
    record["rows"] = [dict(row) for row in rows]
    atomic_write_json(run_dir / INFERENCE_FILE, record, make_folder=False)


@dataclass(frozen=True, slots=True)
class Generation:
    """Figures by column, and in words what they were measured with: only figures of
    equal conditions can be compared."""

    figures: Mapping[str, float]
    conditions: str


def read_generation(found: Any, run_hash: str | None) -> Generation:
    """Figures in the content of an inference.json.

    Raises Unusable if it is of another run or another version.
    """
    record = as_dict(found)
    rows = record.get("rows")
    known = record.get("schema") == SCHEMA and record.get("hash") == run_hash
    if not known or not isinstance(rows, list):
        raise Unusable("is of another run (its hash differs), or another version")
    made = [row for row in map(as_dict, rows) if _is_generation(row)]
    if not made:
        return Generation({}, "")
    one = next((row for row in made if row["batch"] == 1), {})
    many = max(made, key=lambda row: row["batch"])
    figures = {column: number(one.get(field)) for column, field in FIGURES.items()}
    figures[AT_MOST] = number(many.get("decode_tokens_per_second"))
    known = {column: float(x) for column, x in figures.items() if x is not None}
    return Generation(known, _conditions(record, many["batch"]))


def _conditions(record: Mapping[str, Any], largest: float) -> str:
    device = text(record.get("device")) or "an unknown device"
    threads = whole(record.get("threads"))
    return ", ".join(
        (
            f"{device} with {threads} threads" if device == "CPU" else device,
            f"torch {text(record.get('torch'))}",
            f"{whole(record.get('prompt_tokens'))} + {whole(record.get('new_tokens'))} "
            f"tokens, batch at most {largest:g}",
        )
    )


def common_conditions(measured: Iterable[Generation]) -> str:
    """The conditions of most runs; of the first of them, if others are as many."""
    counts = Counter(one.conditions for one in measured if one.figures)
    return max(counts, key=lambda name: counts[name], default="")


def _is_generation(row: Mapping[str, Any]) -> bool:
    """Whether a measurement is of a whole generation, not of a long context's end."""
    numbers = [number(row.get(n)) for n in ("batch", "prefill_tokens_per_second")]
    return all(x is not None and x > 0 for x in numbers)
