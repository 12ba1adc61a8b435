"""A results folder with phase records: its time line in reports, and its price."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from gpt2.report.html import html_report
from gpt2.report.read_results import read_matrix
from gpt2.report.timeline_report import chart, folder_lines, price_of, read_timeline
from gpt2.report.verdicts import judge
from gpt2.run.sessions import note_lost, recorded
from lib.jobs.slots import GPUS
from tests.gpt2.helpers import tiny_step
from tests.gpt2.report.test_timeline import whole
from tests.results_factory import settings, write_matrix


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Two runs of step 0 on one GPU, one a second after the other."""
    root = write_matrix(tmp_path / "results", steps=(0,), seeds=(1, 2))
    for number, run in enumerate(sorted(root.glob("*/*"))):
        with open(run / "metrics.jsonl", "a") as file:
            for record in whole(1000.0 + 100 * number):
                file.write(json.dumps(record) + "\n")
    return root


def test_shares_are_read_from_the_runs(results: Path) -> None:
    times = read_timeline(read_matrix(results, curves=False))
    assert [lane.name for lane in times.lanes] == ["GPU 0"]
    assert times.shares()["training"] == pytest.approx(120 / 198)
    share, wait = folder_lines(results)[:2]
    assert share == (
        "GPU 0, 3:18: training 60.6%, evaluating 7.1%, compiling 18.2%, "
        "preparing 10.1%, writing 4.0%"
    )
    assert "first update" in wait
    assert folder_lines(results / "elsewhere") == []


def test_chart_and_page(results: Path) -> None:
    matrix = read_matrix(results)
    times = read_timeline(matrix)
    bars = chart(times)
    assert bars["lanes"] == ["GPU 0"]
    assert sum(bar[3] for bar in bars["bars"]) == pytest.approx(198 / 60, abs=1e-2)
    page = html_report(matrix, judge(matrix), "x", times, 2.0)
    assert 'id="time-line"' in page and "GPU hours, 0.11 at 2 per hour" in page
    bare = read_matrix(write_matrix(results.parent / "old", steps=(0,), seeds=(1,)))
    assert 'id="time-line"' not in html_report(bare, judge(bare), "x")


def test_price_of_the_configuration_or_of_the_runs(tmp_path: Path) -> None:
    job = {"settings": settings(0) | {"matrix": {"price_per_gpu_hour": 3.0}}}
    matrix = read_matrix(write_matrix(tmp_path / "r", steps=(0,), seeds=(1,), job=job))
    assert price_of(None, matrix) == 3.0
    config = tmp_path / "config.py"
    config.write_text("CONFIG_PRICE_PER_GPU_HOUR = 2.5\nORIGINS = {}\n")
    assert price_of(config, matrix) == 2.5
    plain = read_matrix(write_matrix(tmp_path / "s", steps=(0,), seeds=(1,)))
    assert price_of(None, plain) is None


def places_of(folder: Path, slots: list[dict[str, str]], **fields: str) -> list[str]:
    """GPUs that a session in this folder notes."""
    resources = tiny_step(0, **fields).resources
    with recorded(folder, slots, resources):
        pass
    lines = (folder / "runner.jsonl").read_text().splitlines()
    began, ended = map(json.loads, lines[-2:])
    assert (began["event"], ended["event"]) == ("began", "ended")
    assert began["time"] <= ended["time"]
    return [place.rpartition(":")[2] for place in began["places"]]


def test_places_of_a_session(tmp_path: Path) -> None:
    two = [{GPUS: "0"}, {GPUS: "1"}]
    assert places_of(tmp_path, two, device="auto", engine="local") == ["0", "1"]
    assert places_of(tmp_path, [{}], device="cuda:1", engine="local") == ["1"]
    assert places_of(tmp_path, [{}, {}], device="cpu", engine="local") == ["", ""]
    assert places_of(tmp_path, two, device="auto", engine="ray") == []


def test_a_session_is_noted_also_when_it_fails(tmp_path: Path) -> None:
    resources = tiny_step(0).resources
    with pytest.raises(RuntimeError), recorded(tmp_path, [{}], resources):
        raise RuntimeError
    assert len((tmp_path / "runner.jsonl").read_text().splitlines()) == 2
    with recorded(tmp_path / "missing" / "folder", [{}], resources):
        pass


def test_a_gpu_that_is_out_of_use_comes_first(results: Path) -> None:
    note_lost(results, "1", "3 runs in a row failed there")
    first, second = folder_lines(results)[:2]
    assert first.startswith("GPU 1 of ") and "OUT OF USE since 20" in first
    assert first.endswith(": 3 runs in a row failed there")
    assert second.startswith("GPU 0, ")


def test_a_clock_that_was_set_back_is_noted(results: Path) -> None:
    path = results / "step00-baseline/seed2/metrics.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    late = [r for r in records if r["kind"] == "phase"][4:]
    for record in late:
        record["time"] -= 3600
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    first = folder_lines(results)[0]
    assert first.startswith("the clock was set back during step00-baseline/seed2: ")
