"""gpt2/infer/scores.py: each score against its definition, token by token."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

from gpt2.infer import scores
from gpt2.infer.items import Choice, read_choices, read_texts
from gpt2.infer.scores import Scores, score_choices, score_induction, score_texts
from gpt2.infer.trained import TrainedModel
from tests.gpt2.helpers import tiny_step
from tests.gpt2.infer.test_hf_export import trained

END = 256


@pytest.fixture
def model(tmp_path: Path) -> TrainedModel:
    return trained(tmp_path, tiny_step(16))


def nats_of(model: TrainedModel, tokens: list[int]) -> list[float]:
    """Loss of each token but the first, all in one context."""
    with torch.no_grad():
        logits = model.model.logits(torch.tensor([tokens[:-1]]))[0]
    return [
        -float(row.log_softmax(-1)[t])
        for row, t in zip(logits, tokens[1:], strict=True)
    ]


def test_each_byte_is_scored_once_in_whole_contexts(
    model: TrainedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = ["a", "ä" * 8, "x" * 16, "0123456789" * 5]
    # Few rows at a time, which changes nothing.
    monkeypatch.setattr(scores, "MOST_LOGITS", 2 * 16 * 257)
    found = Scores()
    score_texts(model, {"t": texts}, found)
    totals = [0.0] * 16
    for text, bits in zip(texts, found.measures["bits per byte, t"].items, strict=True):
        tokens, nats = [END, *text.encode()], 0.0
        for start in range(0, len(tokens) - 1, 16):
            losses = nats_of(model, tokens[start : start + 17])
            nats += sum(losses)
            for place, loss in enumerate(losses):
                totals[place] += loss
        assert bits == pytest.approx(nats / math.log(2) / len(text.encode()), rel=1e-5)
    sums, counts = zip(*found.positions, strict=True)
    assert sums == pytest.approx(totals, rel=1e-5)
    assert sum(counts) == sum(len(text.encode()) for text in texts)


def test_induction_scores_the_repeat_but_for_its_first_token(
    model: TrainedModel,
) -> None:
    found = Scores()
    score_induction(model, 3, found)
    generator = torch.Generator().manual_seed(0)
    for number, row in enumerate(torch.randint(END, (3, 8), generator=generator)):
        nats = nats_of(model, [END, *row.tolist(), *row.tolist()])
        first, again = (one.items for one in found.measures.values())
        assert first[number] == pytest.approx(sum(nats[:8]) / 8, rel=1e-5)
        assert again[number] == pytest.approx(sum(nats[9:]) / 7, rel=1e-5)


def test_a_choice_is_right_by_the_sum_or_per_byte(model: TrainedModel) -> None:
    items = [
        Choice("ab", ("c", "defg"), 1),
        Choice("ab", ("defg", "c"), 1),
        Choice("", ("xy", "zzzz", "q"), 0),
        Choice("long" * 9, ("xy", "z"), 0),
    ]
    found = Scores()
    score_choices(model, {"q": items}, found)
    for place, item in enumerate(items):
        sums, means = [], []
        for text in item.choices:
            row = [END, *item.context.encode(), *text.encode()][-17:]
            nats = nats_of(model, row)[-len(text.encode()) :]
            sums.append(sum(nats))
            means.append(sum(nats) / len(nats))
        for name, own in {"accuracy, q": sums, "accuracy per byte, q": means}.items():
            right = own.index(min(own)) == item.answer
            assert found.measures[name].items[place] == float(right)
    assert found.notes == [
        "q: 2 of 9 texts lost their beginning to the context of 16 tokens"
    ]
    with pytest.raises(ValueError, match="a choice has 17 tokens"):
        score_choices(model, {"q": [Choice("", ("x", "y" * 17), 0)]}, found)


def test_questions_and_texts_are_read_as_data(tmp_path: Path) -> None:
    path = tmp_path / "q.jsonl"
    line = '{"context": "a", "choices": ["b", "c"], "answer": 1}\n'
    path.write_text(3 * line)
    assert read_choices(str(path), 2) == [Choice("a", ("b", "c"), 1)] * 2
    for wrong, hint in {
        "": "no questions",
        line + "{\n" + line: "line 2 is not a JSON object",
        line + '{"context": 3}\n': 'question 2: "context" must be a text',
        line.replace('"b", ', ""): '"choices" must be 2 to 64 texts',
        line.replace('"b"', '""'): '"choices" must be',
        line.replace('"b"', "7"): '"choices" must be',
        line.replace(": 1}", ": 2}"): '"answer" must be a place from 0 to 1',
        line.replace(": 1}", ": true}"): '"answer" must be',
        line + line.strip()[:-1]: "line 2 is not a JSON object",
    }.items():
        path.write_text(wrong)
        with pytest.raises(ValueError, match=hint):
            read_choices(str(path), 9)
    with pytest.raises(ValueError, match=r"CHOICES=.*missing"):
        read_choices(str(tmp_path / "none"), 9)
    with pytest.raises(ValueError, match="TEXT=.* matches no files"):
        read_texts(str(tmp_path / "none"), 9, [])
    for n in range(4):
        (tmp_path / f"{n}.txt").write_text("x" * n)
    notes: list[str] = []
    assert read_texts(f"{tmp_path}/*.txt", 2, notes) == ["x", "xx"] and not notes
    # A text that cannot be divided is a document, as nothing is held out.
    assert read_texts(f"{tmp_path}/3.txt", 2, notes) == ["xxx"] and not notes
    with pytest.raises(ValueError, match="no documents with text"):
        read_texts(f"{tmp_path}/0.txt", 2, notes)


def test_documents_that_cannot_be_read_are_noted(tmp_path: Path) -> None:
    for name, content in {"a": b"a", "b": b"\xff", "c": b"\xfe", "d": b" \n"}.items():
        (tmp_path / f"{name}.txt").write_bytes(content)
    notes: list[str] = []
    assert read_texts(str(tmp_path), 9, notes) == ["a"]
    (note,) = notes
    assert note.startswith(f"{tmp_path}: 2 left out, the first ")
    assert note.endswith("not UTF-8 at byte 0")
