"""`make eval` as a user types it, on models that were trained."""

import json

import pytest

from tests.scripts.inprocess import run_script

QUESTION = {"context": "Document 1, line", "choices": [" 4", " five"], "answer": 0}


def evaluate(folder, *words, code=0):
    done = run_script("eval.py", *words, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


def test_arms_are_scored_and_compared_on_what_is_given(undisturbed, tmp_path):
    questions, out = tmp_path / "q.jsonl", tmp_path / "eval.json"
    questions.write_text(3 * (json.dumps(QUESTION) + "\n"))
    words = ("--text", "texts", "--choices", questions, "--items", "5", "--out", out)
    said = evaluate(undisturbed, "0,5", *words)
    for shown in ("bits per byte, texts", "repeated tokens, loss", "accuracy, q"):
        assert shown in said
    assert "5 items, 1 seed" in said and "8 to 15" in said
    assert "one seed: the intervals are of these models on other items" in said
    found = json.loads(out.read_text())
    base, arm = found["runs"]
    assert (base["arm"], arm["arm"], arm["seed"]) == ("0 baseline", "5 ra", 1)
    ours, theirs = (run["items"]["bits per byte, texts"] for run in (arm, base))
    (row,) = (
        row
        for row in found["measures"]
        if row["arm"] == "5 ra" and row["measure"] == "bits per byte, texts"
    )
    assert len(ours) == 5 and ours != theirs
    mean = sum(a - b for a, b in zip(ours, theirs, strict=True)) / 5
    assert row["difference"]["mean"] == pytest.approx(mean)


def test_without_text_or_questions_there_is_induction(undisturbed):
    said = evaluate(undisturbed, "5", "--items", "3")
    assert "repeated tokens, loss" in said and "bits per byte" not in said


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["0", "--text", "nothere"], "TEXT='nothere' matches no files"),
        (["0", "--choices", "nothere"], "CHOICES=nothere: missing"),
        (["0", "--items", "0"], "ITEMS=0 must be a whole number of at least 1"),
        (["9"], "nor a run of results: it has 0 baseline, 5 ra"),
    ],
)
def test_what_makes_no_sense_is_refused(undisturbed, words, hint):
    assert hint in evaluate(undisturbed, *words, code=2)
