"""gpt2/train/stable.py: runs of several lengths from one stable phase."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from gpt2.audit.finding import PASSED
from gpt2.plan.jobs import Job
from gpt2.plan.matrix_cells import require_effect
from gpt2.settings.checks import check
from gpt2.train.failures import Refused
from gpt2.train.stable import take_over
from tests.gpt2.audit.runs import audit, problems
from tests.gpt2.tinytraining import (
    exported,
    finish,
    manifest,
    records,
    running,
    tiny_job,
    train,
)

WSD = {"lr_schedule": "wsd", "lr_decay_share": 0.25, "keep_stable": True}


@pytest.fixture(scope="module")
def short(data_dir, tmp_path_factory):
    """Results folder of a run of 12 updates, the last 3 of which decay."""
    root = tmp_path_factory.mktemp("short")
    job = tiny_job(data_dir, **WSD)
    (root / job.run_dir).parent.mkdir(parents=True)
    finish(job, root / job.run_dir)
    return root


def longer(data_dir, root, **fields) -> Job:
    more = {"max_iters": 20, "lr_decay_shape": "linear", "stable_from": str(root)}
    return tiny_job(data_dir, **{**WSD, **more, **fields})


def kept(run_dir) -> list[str]:
    return sorted(path.name for path in (run_dir / "stable").iterdir())


def test_a_longer_run_from_a_shorter_one_is_that_from_the_first_update_on(
    data_dir, short, tmp_path
) -> None:
    job = longer(data_dir, short)
    assert kept(short / job.run_dir) == ["step-000009"]
    one, other = tmp_path / "one", tmp_path / "other"
    finish(job, one)
    finish(longer(data_dir, ""), other)
    assert manifest(one)["stable_from"]["step"] == 9
    assert [entry["step"] for entry in manifest(one)["resumed"]] == [9]
    assert json.dumps(records(one)) == json.dumps(records(other))
    (_, weights), (_, theirs) = exported(one), exported(other)
    assert all(torch.equal(weights[name], theirs[name]) for name in theirs)
    assert kept(one) == kept(other) == ["step-000015"]


def test_one_that_is_killed_goes_on_from_its_own_checkpoint_and_is_audited(
    data_dir, short, tmp_path
) -> None:
    root = tmp_path / "source"
    shutil.copytree(short, root)
    job = longer(data_dir, root, dropout=0.0)
    shutil.rmtree(root / job.run_dir)
    finish(tiny_job(data_dir, **WSD, dropout=0.0), root / job.run_dir)
    run_dir = tmp_path / "run"
    with running(job, run_dir) as training:
        training.wait_until(lambda: (run_dir / "ckpt" / "step-000012").is_dir())
    shutil.rmtree(root)  # it is not read again
    finish(job, run_dir)
    assert [r["step"] for r in manifest(run_dir)["resumed"]][0] == 9
    found = audit(run_dir)
    assert found.verdict == PASSED, problems(found)


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"max_iters": 8}, "of update 9, but this run is stable only until 6"),
        ({"learning_rate": 0.01}, "LEARNING_RATE: "),
        ({"log_interval": 3}, "its records are 2 updates apart"),
        ({"stable_from": "/nowhere"}, "has no checkpoint: train that run with KEEP_ST"),
    ],
)
def test_a_source_that_does_not_fit_is_refused(
    data_dir, short, tmp_path, fields, why
) -> None:
    training = train(longer(data_dir, short, **fields), tmp_path / "run")
    assert training.wait() == 2
    assert why in training.log
    assert not (tmp_path / "run" / "ckpt").exists()


def test_a_source_that_cannot_be_read_is_refused(data_dir, short, tmp_path) -> None:
    """As one that was copied in part, or a link in the place of its folder."""
    root = tmp_path / "source"
    lines: list[str] = []
    shutil.copytree(short, root)
    job = longer(data_dir, root)
    source = root / job.run_dir

    def refused() -> str:
        with pytest.raises(Refused, match="^STABLE_FROM=.* cannot be used: ") as found:
            take_over(job, tmp_path, lines.append)
        return str(found.value)

    (source / "manifest.json").write_text("[]")
    refused()
    (source / "job.json").write_text("{}")
    assert "settings" in refused()
    (source / "job.json").unlink()
    assert "job.json" in refused()
    (source / "stable").rename(root / "elsewhere")
    (source / "stable").symlink_to(root / "elsewhere")
    assert "is a link" in refused()
    assert not lines and not (tmp_path / "metrics.jsonl").exists()


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"lr_schedule": "cosine"}, "KEEP_STABLE=y: LR_SCHEDULE=cosine has no stable"),
        ({"time_budget": "1m"}, "with TIME_BUDGET the decay begins at a time"),
        ({"prune_method": "magnitude"}, "a pruning schedule depends on the length"),
    ],
)
def test_what_has_no_stable_phase_is_refused(data_dir, fields, why) -> None:
    with pytest.raises(ValueError, match=why):
        check(tiny_job(data_dir, **{**WSD, **fields}).settings)


def test_a_decay_from_the_first_update_on_leaves_nothing_to_keep(data_dir) -> None:
    for more in ({"lr_decay_share": 1.0}, {"max_iters": 1}):
        with pytest.raises(ValueError, match="KEEP_STABLE=y: .* no stable phase"):
            require_effect(tiny_job(data_dir, **{**WSD, **more}).settings)
    require_effect(tiny_job(data_dir, **WSD, max_iters=2).settings)
