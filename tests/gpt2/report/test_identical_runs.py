"""Runs of different steps that trained the same: found whichever partners they have."""

import io
import json

import pytest

from gpt2.report.identical_runs import twins
from gpt2.report.notes import remarks
from gpt2.report.read_results import read_matrix
from gpt2.report.verdicts import judge
from gpt2.run.runner import Watch
from lib.jobs.live_table import PlainView
from tests.results_factory import settings, write_matrix


@pytest.fixture
def results(tmp_path):
    """Steps 5 and 8, which are both compared with 0, have the same losses."""
    root = write_matrix(tmp_path / "out", (0, 5, 8), (1, 2))
    job = root / "step08-mla" / "seed1" / "job.json"
    set_in(job, settings=settings(8, attention="mla"))
    for name in ("metrics.jsonl", "status.json"):
        source = root / "step05-ra" / "seed1" / name
        (root / "step08-mla" / "seed1" / name).write_text(source.read_text())
    return root


def set_in(path, **fields):
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


def pairs(root):
    return [(a.run_dir, b.run_dir) for a, b in twins(read_matrix(root).runs)]


def test_steps_that_trained_alike_are_found_and_reported(results):
    assert pairs(results) == [("step05-ra/seed1", "step08-mla/seed1")]
    said = remarks(judge(read_matrix(results)))
    assert ("8 mla", "its losses are identical to those of 5 ra (seeds 1)") in said


def test_the_runner_tells_it_once(results):
    (results / "matrix.json").write_text('{"jobs": []}')
    said = io.StringIO()
    watch = Watch(results, PlainView(said))
    watch(None)
    watch(None)
    (line,) = said.getvalue().splitlines()
    assert line.startswith("ALARM step05-ra/seed1 and step08-mla/seed1 have identical")


def test_what_is_not_finished_or_set_alike_is_no_twin(results):
    set_in(results / "step08-mla" / "seed1" / "status.json", status="running")
    assert pairs(results) == []
    set_in(results / "step08-mla" / "seed1" / "status.json", status="done")
    same = json.loads((results / "step05-ra" / "seed1" / "job.json").read_text())
    set_in(results / "step08-mla" / "seed1" / "job.json", settings=same["settings"])
    assert pairs(results) == []
