"""PROFILE: a real run with a profile, which changes nothing of the run."""

import gzip
import json

import pytest
import torch

from gpt2.run.estimate import probe_job
from gpt2.settings.checks import check, remarks
from lib.gpu.profiler import FOLDER, SUMMARY_FILE, TRACE_FILE
from tests.gpt2.tinydata import prepare_texts
from tests.gpt2.tinytraining import Training, exported, finish, losses, tiny_job


def test_a_run_is_profiled_and_stays_the_same(tmp_path):
    data = prepare_texts(tmp_path)
    plain, profiled = tmp_path / "plain", tmp_path / "profiled"
    job = tiny_job(data, max_iters=6, profile=True, profile_steps=(4, 5))
    assert job.hash == tiny_job(data, max_iters=6).hash
    finish(tiny_job(data, max_iters=6), plain)
    training = Training(job, profiled)
    assert training.wait() == 0, training.log
    assert "profile: updates 4 to 5 on" in training.log
    assert losses(plain) == losses(profiled)
    weights, same = exported(plain)[1], exported(profiled)[1]
    assert all(torch.equal(weights[name], same[name]) for name in weights)
    text = (profiled / FOLDER / SUMMARY_FILE).read_text()
    for word in ("matrix products", "attention", "idle", "aten::"):
        assert word in text, text
    with gzip.open(profiled / FOLDER / TRACE_FILE) as file:
        assert json.load(file)["traceEvents"]
    assert not (plain / FOLDER).exists()


@pytest.mark.parametrize("steps", [(0,), (3, 5), (5, 4)])
def test_updates_that_are_no_range_are_refused(tmp_path, steps):
    with pytest.raises(ValueError, match="PROFILE_STEPS"):
        check(tiny_job(tmp_path / "data", profile_steps=steps).settings)


def test_what_will_not_be_profiled_is_said_and_probes_are_not(tmp_path):
    job = tiny_job(tmp_path / "data", profile=True)
    assert "nothing is profiled" not in "".join(remarks(job.settings))
    late = job.settings.replace(profile_steps=(13,))
    assert "nothing is profiled" in "".join(remarks(late))
    assert not probe_job(job).settings.resources.profile
