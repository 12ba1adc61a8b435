"""Remarks on a text that is small for its runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2.data.small_text import small_text
from gpt2.data.token_files import read_meta
from gpt2.plan.planning import make_plan
from gpt2.run.plan_listing import notes
from tests.gpt2.helpers import TINY, make_config
from tests.gpt2.tinydata import prepare_texts, text_request

WINDOW = 16
SIZES = {**TINY, "BATCH_SIZE": "2", "GPT2_GRADIENT_ACCUMULATION": "1"}


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepare_texts(tmp_path_factory.mktemp("data"))


@pytest.mark.parametrize(
    ("epochs", "more_windows", "words"),
    [
        (3.9, 0, []),
        (12.0, 0, ["12 times"]),
        (1.0, 1, ["windows of 16 tokens overlap"]),
        (5.0, 1, ["5 times", "overlap"]),
    ],
)
def test_a_small_text_is_noted(
    data_dir: Path, epochs: float, more_windows: int, words: list[str]
) -> None:
    splits = read_meta(data_dir, text_request(data_dir))["splits"]
    updates = round(epochs * splits["train"]["tokens"] / (2 * WINDOW))
    samples = splits["val"]["tokens"] // WINDOW + more_windows
    config = make_config(
        **SIZES,
        GPT2_DATASET_TEXT="y",
        GPT2_DATASET_TEXT_PATH=str(data_dir.parent / "texts"),
        DATA_DIR=str(data_dir),
        GPT2_MAX_ITERS=str(updates),
        GPT2_EVAL_SAMPLES=str(samples),
    )
    plan = make_plan(config)
    found = small_text(plan.jobs[0].settings)
    assert len(found) == len(words)
    assert all(word in line for word, line in zip(words, found, strict=True))
    assert {*found} <= {*notes(plan, config)}
    # A budget of time sets the length, and GPT2_MAX_ITERS does not.
    timed = small_text(plan.jobs[0].settings.replace(time_budget="1h"))
    assert timed == [line for line in found if "overlap" in line]


def test_text_that_is_not_prepared_is_not_judged(tmp_path: Path) -> None:
    plan = make_plan(make_config(DATA_DIR=str(tmp_path / "none")))
    assert small_text(plan.jobs[0].settings) == []
