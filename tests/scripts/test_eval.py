"""`make eval` as a user types it, on models that were trained."""

import json
import re
import shutil
from importlib.util import find_spec

import pytest

from tests.scripts.inprocess import run_script

TASK = """
task: t
dataset_path: json
dataset_kwargs: {data_files: {test: lines.jsonl}}
test_split: test
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{text}}"
metric_list: [{metric: word_perplexity}]
"""
QUESTION = {"context": "Document 1, line", "choices": [" 4", " five"], "answer": 0}


def evaluate(folder, *words, code=0, keep=False):
    more = [] if keep else ["--no-write"]
    done = run_script("eval.py", *words, *more, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    assert code or "Next: " in done.stdout.splitlines()[-1]
    return done.stdout + done.stderr


def test_arms_are_scored_and_compared_on_what_is_given(finished, tmp_path):
    questions, out = tmp_path / "q.jsonl", tmp_path / "eval.json"
    questions.write_text(3 * (json.dumps(QUESTION) + "\n"))
    words = ("--text", "texts", "--choices", questions, "--items", "5", "--out", out)
    said = evaluate(finished, "0,5", *words)
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


def test_files_of_one_name_are_apart_and_what_is_left_out_is_named(finished, tmp_path):
    paths = [tmp_path / folder / "q.jsonl" for folder in "ab"]
    for path, answer in zip(paths, (0, 1), strict=True):
        path.parent.mkdir()
        path.write_text(3 * (json.dumps({**QUESTION, "answer": answer}) + "\n"))
    words = ("--choices", f"{paths[0]},{paths[1]}", "--items", "2", "--out", "e.json")
    said = evaluate(finished, "5", *words, "--text", "texts")
    (run,) = json.loads((finished / "e.json").read_text())["runs"]
    scores = [run["items"][f"accuracy, {path}"] for path in paths]
    assert sorted(scores) == [[0.0, 0.0], [1.0, 1.0]]
    for name in ("texts", *paths):
        assert f"note: {name}: the first 2 (ITEMS) of more" in said.replace("\n", " ")


def test_the_report_has_what_was_evaluated(finished, tmp_path):
    words = ("0,5", "--items", "4", "--out", "eval.json")
    evaluate(finished, *words, keep=True)  # induction stays when text is added
    evaluate(finished, *words, "--text", "texts", keep=True)
    run_script("report.py", "--no-plots", "--quiet", cwd=finished)
    measures = json.loads((finished / "eval.json").read_text())["measures"]
    runs = json.loads((finished / "results/summary.json").read_text())["runs"]
    page = (finished / "results/report.html").read_text()
    text = (finished / "results/REPORT.md").read_text().replace("−", "-")
    for row, run in zip(
        (m for m in measures if m["measure"] == "bits per byte, texts"),
        runs,
        strict=True,
    ):
        assert run["eval: bits per byte, texts"] == pytest.approx(row["mean"])
        assert f"| {row['mean']:.4f} |" in text and f"{row['mean']:.4f}" in page
    found = row["difference"]
    half = (found["interval"]["high"] - found["interval"]["low"]) / 2
    assert f"| {found['mean']:+.4f} ± {half:.4f} (1 seed) |" in text
    assert "repeated tokens, loss" in text
    assert (
        "eval: repeated tokens, loss" in (finished / "results/results.csv").read_text()
    )
    # Of another run, and damaged.
    other = finished / "results/step05-ra/seed1/eval.json"
    shutil.copy(finished / "results/step00-baseline/seed1/eval.json", other)
    (finished / "results/step00-baseline/seed1/eval.json").write_text("{")
    said = run_script("report.py", "--no-plots", "--no-html", cwd=finished).stdout
    assert "seed1/eval.json: is of another run" in said
    assert "baseline/seed1/eval.json: " in said
    assert "## Evaluations" not in (finished / "results/REPORT.md").read_text()


@pytest.mark.skipif(find_spec("lm_eval") is not None, reason="lm-eval is installed")
def test_tasks_of_the_harness_need_the_extra(finished):
    said = evaluate(finished, "0", "--tasks", "python_syntax", code=2)
    assert "TASKS: lm_eval is not installed; run `make setup EXTRAS=eval`" in said


def test_tasks_of_the_harness_are_scored_and_compared(finished, tmp_path):
    pytest.importorskip("lm_eval", reason="without `make setup EXTRAS=eval`")
    lines = "".join(f'{{"text": "line {n} of some"}}\n' for n in range(4))
    (tmp_path / "lines.jsonl").write_text(lines)
    (tmp_path / "t.yaml").write_text(TASK)
    words = ("--tasks", tmp_path / "t.yaml", "--items", "3", "--out", tmp_path / "o")
    said = evaluate(finished, "0,5", *words)
    assert "t, nats per word" in said and "3 items, 1 seed" in said
    assert "note: t: the first 3 of 4 documents (ITEMS)" in said
    found = json.loads((tmp_path / "o").read_text())["runs"][1]
    assert len(found["items"]["t, nats per word"]) == 3
    assert found["harness"]["results"]["t"]["word_perplexity,none"] > 1
    for wrong, hint in {
        "pyton_syntax": "neither a file nor a task of .*; nearest: python_syntax",
        "nothere.yaml": "there is no such file",
    }.items():
        said = evaluate(finished, "0", "--tasks", wrong, code=2)
        assert re.search(f"TASKS={wrong}: {hint}", said), said


def test_arms_of_two_results_folders_are_apart(finished):
    shutil.copytree(finished / "results", finished / "other")
    runs = "results/step00-baseline,other/step00-baseline,other/step05-ra"
    said = evaluate(finished, runs, "--items", "3", "--out", "eval.json")
    found = json.loads((finished / "eval.json").read_text())
    arms = [
        *("0 baseline (results/step00-baseline)", "0 baseline (other/step00-baseline)"),
        "5 ra",
    ]
    assert [run["arm"] for run in found["runs"]] == arms
    (same,) = (
        row["difference"]["mean"]
        for row in found["measures"]
        if row["measure"] == "random tokens, loss" and row["arm"] == arms[1]
    )
    assert same == 0 and "(other/" in said


def test_without_text_or_questions_there_is_induction(finished):
    said = evaluate(finished, "5", "--items", "3")
    assert "repeated tokens, loss" in said and "bits per byte" not in said


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["0", "--text", "nothere"], "TEXT='nothere' matches no files"),
        (["0", "--choices", "nothere"], "CHOICES=nothere: missing"),
        (["0", "--text", ","], "TEXT=, names nothing"),
        (["0", "--items", "0"], "ITEMS=0 must be a whole number of at least 1"),
        (["9"], "nor a run of results: it has 0 baseline, 5 ra"),
        (["0", "--out", "texts"], "cannot write texts: Is a directory"),
        (["9", "--text", "nothere"], "TEXT='nothere' matches no files"),
    ],
)
def test_what_makes_no_sense_is_refused(finished, words, hint):
    assert hint in evaluate(finished, *words, code=2)
