"""gpt2/infer/harness.py: numbers as lm-evaluation-harness has them for the export."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("lm_eval", reason="without `make setup EXTRAS=eval`")

from lm_eval.api.instance import Instance

from gpt2.infer.harness import (
    SHIPPED,
    KablateLM,
    Tasks,
    generation_options,
    score_tasks,
)
from gpt2.infer.hf_export import write_folder
from gpt2.infer.items import read_choices
from gpt2.infer.sampling import Sampling
from gpt2.infer.scores import Scores, token_losses
from tests.gpt2.helpers import tiny_model, tiny_step
from tests.gpt2.infer.test_hf_export import trained

TEXTS = ("one line", "a text longer than its context, in two pieces", "", "x")
METRICS = ("acc", "acc_bytes")
QUIET = {"disable_tqdm": True}


def requests(kind: str, *asked: tuple) -> list[Instance]:
    return [Instance(kind, {}, one, n) for n, one in enumerate(asked)]


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


def test_numbers_are_those_of_the_exported_folder(tmp_path: Path) -> None:
    pytest.importorskip("accelerate", reason="the harness' own model needs accelerate")
    from lm_eval.models.huggingface import HFLM

    own = trained(tmp_path, tiny_model(n_embd=12, head_dim=3))
    write_folder(own, tmp_path, native=True)
    ours = KablateLM(own)
    theirs = HFLM(pretrained=str(tmp_path), device="cpu", batch_size=1)
    pairs = [("a b", " c"), ("", "word"), ("trailing ", "gap"), ("long" * 9, "er")]
    asked = requests("loglikelihood", *pairs)
    for a, b in zip(
        ours.loglikelihood(asked), theirs.loglikelihood(asked, **QUIET), strict=True
    ):
        assert a[0] == pytest.approx(b[0], rel=1e-4) and a[1] == b[1]
    texts = requests("loglikelihood_rolling", *((text,) for text in TEXTS))
    rolled = theirs.loglikelihood_rolling(texts, **QUIET)
    assert ours.loglikelihood_rolling(texts) == pytest.approx(rolled, rel=1e-4)
    assert ours.loglikelihood_rolling(texts)[2] == 0
    how = {"until": ["e", "\n"], "max_gen_toks": 9, "do_sample": False}
    asked = requests("generate_until", ("a b", how), ("much too long" * 3, how))
    free = {**how, "until": []}
    asked += requests("generate_until", ("a b", free))
    assert ours.generate_until(asked) == theirs.generate_until(asked, **QUIET)
    assert ours.shortened == 2  # a continuation's context, and a prompt


def test_a_request_that_cannot_be_met_is_refused(tmp_path: Path) -> None:
    lm = KablateLM(trained(tmp_path, tiny_step(0)))
    with pytest.raises(ValueError, match="17 tokens, but .* scores 1 to 16"):
        lm.loglikelihood(requests("loglikelihood", ("a", "b" * 17)))
    with pytest.raises(ValueError, match="generates 256 tokens, but .* of 16"):
        lm.generate_until(requests("generate_until", ("a", {"until": ["\n"]})))
    with pytest.raises(ValueError, match="asks for num_beams in generation"):
        generation_options({"do_sample": True, "num_beams": 4})
    asked = {"until": "\n", "do_sample": True, "temperature": 0.5, "top_k": 3}
    stops, count, sampling = generation_options({**asked, "max_gen_toks": 5})
    assert (stops, count) == (["\n", "<|endoftext|>"], 5)
    assert sampling == Sampling(temperature=0.5, top_k=3)
    assert generation_options({"temperature": 0.5})[2] == Sampling(temperature=0.0)


def test_the_shipped_task_is_scored_by_its_definition(tmp_path: Path, quiet) -> None:
    own, found = trained(tmp_path, tiny_step(16, block_size=128)), Scores()
    result = score_tasks(own, Tasks(["python_syntax"]), 30, found)
    assert found.notes == ["python_syntax: the first 30 of 32 documents (ITEMS)"]
    acc, per_byte = (found.measures[f"python_syntax, {m}"].items for m in METRICS)
    questions = read_choices(str(SHIPPED / "python_syntax.jsonl"), 30)
    for place, item in enumerate(questions):
        before = item.context.encode()
        rows = [[*before, *choice.encode()] for choice in item.choices]
        losses = token_losses(own, rows)
        sums = [float(x[len(before) - 1 :].sum()) for x in losses]
        assert acc[place] == (sums.index(min(sums)) == item.answer)
    assert len(acc) == len(per_byte) == 30 and 0 < sum(acc) < 30
    for metric, items in zip(METRICS, (acc, per_byte), strict=True):
        mean = result["results"]["python_syntax"][f"{metric},none"]
        assert sum(items) / 30 == pytest.approx(mean)


WRITTEN = """
task: written
dataset_path: json
dataset_kwargs: {data_files: {test: lines.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}, {metric: bits_per_byte}]
"""
ANSWERED = """
task: answered
dataset_path: json
dataset_kwargs: {data_files: {test: lines.jsonl}}
test_split: test
output_type: generate_until
doc_to_text: "{{text}}"
doc_to_target: "{{text}}"
generation_kwargs: {until: ["e"], max_gen_toks: 4}
metric_list: [{metric: exact_match}, {metric: bleu}]
"""


def test_files_of_a_user_are_tasks(tmp_path: Path, quiet) -> None:
    own = trained(tmp_path, tiny_step(5))
    lines = [{"text": text} for text in ("one", "two words", "three of them, longer")]
    (tmp_path / "lines.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    for name, text in {"w.yaml": WRITTEN, "a.yaml": ANSWERED}.items():
        (tmp_path / name).write_text(text)
    found = Scores()
    files = [str(tmp_path / "w.yaml"), str(tmp_path / "a.yaml")]
    result = score_tasks(own, Tasks(files), 99, found)
    asked = requests("loglikelihood_rolling", *((line["text"],) for line in lines))
    nats = [-x for x in KablateLM(own).loglikelihood_rolling(asked)]
    words = found.measures["written, nats per word"].items
    assert words == pytest.approx([nats[0], nats[1] / 2, nats[2] / 4])
    sizes = [len(line["text"]) for line in lines]
    bits = result["results"]["written"]["bits_per_byte,none"]
    assert sum(nats) / sum(sizes) / 0.69314718 == pytest.approx(bits)
    assert set(found.measures["answered, exact_match"].items) <= {0.0, 1.0}
    (note,) = (note for note in found.notes if note.startswith("answered"))
    assert "bleu is not a number per document" in note
    (tmp_path / "w.yaml").write_text(WRITTEN.replace("lines.jsonl", "none.jsonl"))
    with pytest.raises(ValueError, match=r"w.yaml cannot be loaded: FileNotFound"):
        Tasks(files).load()
