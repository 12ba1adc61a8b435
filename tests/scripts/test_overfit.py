"""`make overfit`: steps overfit one batch, and a blind model does not."""

import subprocess
import sys
from dataclasses import replace

import pytest

from gpt2.model.gpt import GPT
from gpt2.plan.planning import plan_settings
from gpt2.verify.certify_steps import subjects
from gpt2.verify.overfit import ENOUGH, one_batch, overfit_batch
from tests.gpt2.tinydata import ROOT
from tests.gpt2.tinytraining import tiny_job


class Blind(GPT):
    """It gets the same token everywhere, so it can learn no more than frequencies."""

    def forward(self, tokens, *words, **named):
        return super().forward(tokens * 0, *words, **named)


def run(*words, cwd=ROOT):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts/overfit.py"), *words],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_the_steps_asked_for_learn_their_batch(tmp_path):
    done = run("--overrides", "STEPS=0,16", cwd=tmp_path)
    assert done.returncode == 0, done.stderr + done.stdout
    _, *lines, following = done.stdout.splitlines()
    assert following.startswith("Next: make dry-run")
    assert [line.split("-")[0] for line in lines] == ["step00", "step16"]
    for line in lines:
        _, updates, first, last = line.split()
        assert int(updates) > 5 and float(first) > 4 and float(last) < ENOUGH


def test_what_makes_no_sense_is_refused():
    done = run("--overrides", "STEPS=99")
    assert done.returncode == 2 and "99" in done.stderr and "Trace" not in done.stderr
    done = run("--overrides", "STEPS=0 OPTIMIZER=muon")
    assert done.returncode == 2 and "OPTIMIZER has no effect here" in done.stderr


def test_windows_begin_differently():
    x, y = one_batch(24)
    assert len(set(x[:, 0].tolist())) == len(x) and x.shape == y.shape
    assert x[:, 1:].equal(y[:, :-1])


@pytest.mark.parametrize("build", [GPT, Blind])
def test_a_model_that_does_not_see_its_input_is_found_out(tmp_path, build):
    base = tiny_job(tmp_path / "data").settings
    plan = plan_settings(base.replace(mode="ablation", steps=(0,)), {})
    (subject,) = subjects(plan).values()
    found = overfit_batch(replace(subject, build=build), updates=150)
    assert found.ok == (build is GPT), found
