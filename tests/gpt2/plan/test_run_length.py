"""Budgets in tokens, epochs and time, and what the trainer makes of a time."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from gpt2.plan.planning import baseline_parameters, make_plan
from gpt2.plan.run_length import NO_END, last_update, resolve, seconds_of
from gpt2.settings.configuration import override
from gpt2.settings.parse import settings_from
from gpt2.train.lr_schedule import learning_rate
from lib.kconfig.dotconfig import SAVED
from tests.gpt2.tinydata import prepare_texts, text_folder, text_request
from tests.gpt2.tinytraining import finish, records, status, tiny_config, tiny_job


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_texts(tmp_path_factory.mktemp("corpus"))


def plan_of(*overrides: str, max_iters_from: str = "preset:1", **paths: str):
    config = tiny_config(*overrides, **paths)
    origins = {**config.origins, "GPT2_MAX_ITERS": max_iters_from}
    return make_plan(replace(config, origins=origins))


def test_times_are_read() -> None:
    times = {"": 0, "2h": 7200, "90m": 5400, "1h30m": 5400, "45s": 45, "1h1s": 3601}
    assert {text: seconds_of(text) for text in times} == times
    for wrong in ("2", "h", "1m2h", "-5s", "1.5h", "2h ", "0m"):
        with pytest.raises(ValueError, match="TIME_BUDGET"):
            seconds_of(wrong)


def test_tokens_become_updates_rounded_up() -> None:
    job = plan_of("MAX_TOKENS=1025").jobs[0]  # 8 sequences of 32 tokens an update
    assert job.settings.optim.max_iters == 5
    assert job.origins["max_iters"] == "GPT2_MAX_TOKENS (command line)"
    plain = plan_of().jobs[0]
    same = replace(plain, settings=plain.settings.replace(max_iters=5))
    assert job.hash == same.hash, "the same run, however it was asked for"


def test_epochs_are_of_the_training_split(data_dir: Path) -> None:
    meta = json.loads((text_folder(data_dir) / "meta.json").read_text())
    path = text_request(data_dir).text_path
    plan = plan_of(f"DATA_DIR={data_dir}", "MAX_EPOCHS=1.5", text_path=path)
    updates = plan.jobs[0].settings.optim.max_iters
    tokens = meta["splits"]["train"]["tokens"]
    assert (updates - 1) * 256 < 1.5 * tokens <= updates * 256
    with pytest.raises(ValueError, match="prepare the data with `make data`"):
        plan_of("DATA_DIR=nowhere", "MAX_EPOCHS=1.5")


def test_two_budgets_are_one_too_many() -> None:
    with pytest.raises(ValueError, match="GPT2_MAX_TOKENS and TIME_BUDGET"):
        plan_of("MAX_TOKENS=100", "TIME=1m")


@pytest.mark.parametrize("budget", ["TIME=1m", "MAX_TOKENS=100"])
def test_updates_typed_beside_another_budget_are_not_dropped(budget: str) -> None:
    with pytest.raises(ValueError, match="GPT2_MAX_ITERS=.* was given.*leave one out"):
        plan_of(budget, max_iters_from="command line")


@pytest.mark.parametrize("budget", ["TIME=1m", "MAX_TOKENS=1025", "MAX_EPOCHS=0.001"])
def test_updates_saved_with_a_preset_give_way_to_a_budget(
    budget: str, data_dir: Path
) -> None:
    path = text_request(data_dir).text_path
    words = budget, f"DATA_DIR={data_dir}"
    plan = plan_of(*words, max_iters_from=SAVED, text_path=path)
    assert plan.jobs[0].origins["max_iters"].endswith("(command line)")


def test_settings_saved_together_do_not_replace_each_other() -> None:
    config = tiny_config("TIME=1m", "MIN_LR=1e-5")
    for name in ("TIME_BUDGET", "GPT2_MAX_ITERS", "GPT2_MIN_LR"):
        config = replace(config, origins={**config.origins, name: SAVED})
    with pytest.raises(ValueError, match="GPT2_MAX_ITERS=.* was given.*TIME="):
        make_plan(config)
    later = override(config, "MAX_ITERS=9 TIME= MIN_LR_RATIO=0.1")
    optim = make_plan(later).jobs[0].settings.optim
    assert optim.max_iters == 9
    assert optim.min_lr == pytest.approx(0.1 * optim.learning_rate)


def test_a_time_has_no_last_update_and_no_pruning() -> None:
    settings, origins = resolve(
        settings_from(tiny_config("TIME=1m")), {}, baseline_parameters
    )
    assert settings.optim.max_iters == NO_END and "TIME" in origins["max_iters"]
    assert last_update(settings) == 0
    with pytest.raises(ValueError, match="pruning"):
        resolve(settings.replace(prune_method="magnitude"), {}, baseline_parameters)


def test_the_rate_follows_the_share_of_the_time() -> None:
    optim = settings_from(tiny_config()).optim
    optim = replace(optim, learning_rate=1.0, min_lr=0.1, warmup_steps=4)
    assert learning_rate(2, optim, 0.0) == pytest.approx(0.5)
    assert learning_rate(9, optim, 0.0) == pytest.approx(1.0)
    assert learning_rate(9, optim, 0.5) == pytest.approx(0.55)
    assert learning_rate(9, optim, 1.2) == pytest.approx(0.1)


def test_a_run_ends_when_its_time_is_over(data_dir: Path, tmp_path: Path) -> None:
    job = tiny_job(data_dir, time_budget="2s", max_iters=NO_END, checkpoint_interval=99)
    result = finish(job, tmp_path / "run")
    found = status(tmp_path / "run")
    assert 0 < found["step"] == found["max_steps"] < NO_END
    assert result["tokens"] == found["step"] * 256
    rates = [record["lr"] for record in records(tmp_path / "run", "train")]
    low = job.settings.optim.min_lr
    assert rates[-1] < 1.2 * low < max(rates)
    assert records(tmp_path / "run", "eval")[-1]["step"] == found["step"]
