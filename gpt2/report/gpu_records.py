"""GPU records of a run (gpu.jsonl), thinned for a chart.

A record is {"seconds", "gpus": [{"index", "name", "utilisation" (percent),
"memory_used_bytes", "power_w", "temperature_c"}, ...]}; values that a GPU does not
report are null or absent.
"""

from __future__ import annotations

from typing import Any

from gpt2.report.read_results import records_of
from gpt2.report.results import MatrixResults, Run
from lib.jobs.run_files import GPU_FILE
from lib.safe_json import clean, number, whole

PANELS = (  # key, title, unit of the record
    ("utilisation", "busy %", 1.0),
    ("memory_used_bytes", "memory GiB", float(1 << 30)),
    ("power_w", "power W", 1.0),
    ("temperature_c", "temperature °C", 1.0),
)
MAX_POINTS = 300
MAX_GPUS = 16


def gpu_use(matrix: MatrixResults, run: Run) -> list[dict[str, Any]]:
    """Name, minutes and a list for each panel (None where not reported) of each GPU."""
    if not run.on_disk:
        return []
    records = records_of(matrix, matrix.root / run.run_dir / GPU_FILE)
    step = max(1, -(-len(records) // MAX_POINTS))
    found: dict[int, dict[str, Any]] = {}
    for record in records[::step]:
        seconds, gpus = number(record.get("seconds")), record.get("gpus")
        if seconds is None or not isinstance(gpus, list):
            continue
        for place, gpu in enumerate(gpus[:MAX_GPUS]):
            if isinstance(gpu, dict):
                _add(found, place, gpu, seconds / 60)
    return [found[index] for index in sorted(found)]


def _add(found: dict, place: int, gpu: dict[str, Any], minutes: float) -> None:
    reported = whole(gpu.get("index"))
    index = place if reported is None else reported
    if index not in found:
        name = clean(gpu.get("name") or "GPU", 40)
        panels: dict[str, Any] = {key: [] for key, _, _ in PANELS}
        found[index] = {"name": f"{index}: {name}", "minutes": [], **panels}
    series = found[index]
    series["minutes"].append(round(minutes, 3))
    for key, _, unit in PANELS:
        value = number(gpu.get(key))
        series[key].append(None if value is None else round(value / unit, 2))
