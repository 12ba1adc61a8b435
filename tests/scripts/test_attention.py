"""`make attention` as a user types it, on models that were trained."""

import json
import shutil

import numpy as np
import pytest
import torch

from gpt2.infer.trained import load_trained
from gpt2.train.attention_metrics import head_metrics
from tests.scripts.inprocess import run_script

RUN = "results/step05-ra/seed1"


@pytest.fixture
def here(finished):
    return finished


def attention(folder, *words, code=0):
    done = run_script("attention.py", *words, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    assert code or "Next: " in done.stdout.splitlines()[-1]
    return done.stdout + done.stderr


def test_each_head_is_measured_on_validation_text(here):
    said = attention(here, "0,5", "--windows", "3")
    assert "0 baseline, seed 1" in said and "5 ra, seed 1" in said
    assert f"Written: {RUN}/attention.json, {RUN}/attention.png" in said
    found = json.loads((here / RUN / "attention.json").read_text())
    trained = load_trained(here / RUN)
    context, band = trained.model.block_size, trained.settings.mechanisms.ra_window
    (path,) = here.glob("data/*/val.bin")
    text = np.fromfile(path, dtype="<u2").astype(np.int64)
    last = len(text) - context - 1
    batch = torch.from_numpy(
        np.stack([text[n * last // 2 : n * last // 2 + context] for n in range(3)])
    )
    layers = head_metrics(trained.model, batch, context, band)
    for own, layer in zip(found["layers"], layers, strict=True):
        for head in own:
            values = layer.entropy[:, head["head"]].mean(-1)
            assert head["entropy"] == pytest.approx(float(values.mean()), rel=1e-5)
            error = float(values.std()) / 3**0.5
            assert head["entropy_error"] == pytest.approx(error, rel=0.05)
            assert 0 < head["relative"] < 1 and -1 < head["reciprocity"] < 1
            assert head["alpha"] == trained.settings.mechanisms.ra_alpha
    assert found["windows"] == 3 and found["rows"] == context - 1
    said = attention(here, "5", "--windows", "999999999999", code=2)
    assert f"tokens: use at most {last + 1}" in said
    base = here / "results/step00-baseline/seed1/attention.json"
    assert "alpha" not in json.loads(base.read_text())["layers"][0][0]
    run_script("report.py", "--no-plots", "--quiet", cwd=here)
    page = (here / "results/report.html").read_text()
    assert 'href="step05-ra/seed1/attention.png">attention</a>' in page


def test_what_cannot_be_kept_is_shown_and_the_next_run_is_measured(here):
    (here / RUN / "attention.json").mkdir()
    said = attention(here, "5,0", "--windows", "1")
    assert "5 ra, seed 1" in said and "entropy" in said
    why = f"cannot write {RUN}/attention.json: Is a directory. Move what is in the way"
    assert f"attention: not kept for the report: {why}" in said
    assert "Written: results/step00-baseline/seed1/attention.json" in said


def test_other_text_is_refused(here):
    (path,) = here.glob("data/*/val.bin")
    path.write_bytes(path.read_bytes()[::-1])
    assert "has other text" in attention(here, "5", code=2)
    shutil.rmtree(path.parent)
    assert "no prepared text in" in attention(here, "5", code=2)
    assert not (here / RUN / "attention.json").exists()
