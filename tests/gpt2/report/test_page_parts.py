"""Parts of report.html: what was trained, training curves, samples of text."""

import json

import pytest

from gpt2.report.html import html_report
from gpt2.report.markdown import markdown_report
from gpt2.report.read_results import read_matrix
from gpt2.report.results import MatrixResults
from gpt2.report.samples import sample_prompts
from gpt2.report.training_curves import MAX_POINTS, training_curves
from gpt2.report.verdicts import Judgement, judge
from gpt2.report.what_was_trained import what_was_trained
from tests.results_factory import write_matrix, write_run


def judged_of(root) -> tuple[MatrixResults, Judgement]:
    matrix = read_matrix(root)
    return matrix, judge(matrix)


def write_records(run_dir, records):
    lines = "".join(json.dumps({"kind": "train", **r}) + "\n" for r in records)
    with (run_dir / "metrics.jsonl").open("a") as file:
        file.write(lines)


def write_samples(run_dir, *texts, prompt="Once", actual=" upon"):
    samples = [{"prompt": prompt, "actual": actual, "text": text} for text in texts]
    (run_dir / "samples.json").write_text(json.dumps({"samples": samples}))


# ---- what was trained -------------------------------------------------------------


def test_model_data_tokens_date_and_hardware_are_at_the_top(tmp_path):
    starts = ["2026-11-30T13:53:00+00:00", "2026-12-01T01:30:00+02:00"]
    for seed, start in enumerate(starts, 1):
        for step in (0, 2):
            write_run(tmp_path, step, seed, manifest={"started": start})
    facts = dict(what_was_trained(*judged_of(tmp_path)))
    assert facts["model"] == (
        "12 layers, 12 heads, width 768, context 1024; 124.0M to 138.0M parameters"
    )
    assert facts["data"].startswith("stdlib gpt2 (")
    assert "200 updates of 65,536 tokens; 13.1M tokens per run" in facts["training"]
    assert "adamw at 0.0006; bf16" in facts["training"]
    assert facts["arms"] == "2; seeds 1, 2"
    assert facts["started"] == "2026-11-30 13:53 to 23:30 UTC"
    assert facts["hardware"].startswith("1 x NVIDIA A10G, cuda 12.4 550")
    page = html_report(*judged_of(tmp_path), "results")
    top = page[: page.index('<section id="verdicts">')]
    assert all(value in top for value in facts.values())
    text = markdown_report(*judged_of(tmp_path), "results").partition("## Verdicts")[0]
    assert all(f"- {name}: " in text for name in facts)
    assert facts["model"] in text and facts["started"] in text


@pytest.mark.parametrize("start", ["<script>", 7, None, "9999-99-99T00:00", []])
def test_a_start_that_is_not_a_time_is_left_out(tmp_path, start):
    write_run(tmp_path, 0, 1, manifest={"started": start})
    assert "started" not in dict(what_was_trained(*judged_of(tmp_path)))


def test_planned_runs_have_no_facts(tmp_path):
    (tmp_path / "matrix.json").write_text("{}")
    assert what_was_trained(*judged_of(tmp_path)) == [("arms", "0")]


# ---- gradient norm and learning rate ------------------------------------------------


def test_each_run_has_its_curves_and_no_spike_is_thinned_out(tmp_path):
    run_dir = write_run(tmp_path, 0, 1)
    many = 10 * MAX_POINTS
    norms = [1.0] * many
    norms[many // 2 + 3] = 77.0
    records = (
        {"step": 1000 + i, "lr": 1e-3 * (1 - i / many), "grad_norm": norm}
        for i, norm in enumerate(norms)
    )
    write_records(run_dir, records)
    write_run(tmp_path, 0, 2)
    (arm,) = training_curves(judged_of(tmp_path)[1])
    assert (arm["label"], arm["place"]) == ("0 baseline", 0)
    first = arm["runs"][0]
    assert [run["seed"] for run in arm["runs"]] == [1, 2]
    assert len(first["x"]) == len(first["lr"]) == len(first["grad_norm"]) == MAX_POINTS
    assert max(filter(None, first["grad_norm"])) == 77.0
    assert first["x"] == sorted(first["x"]) and first["x"][-1] == 999 + many
    assert first["lr"][-1] == pytest.approx(1e-3 / many, rel=1e-3)


def test_results_without_records_have_no_such_chart(tmp_path):
    run_dir = write_run(tmp_path, 0, 1)
    page = html_report(*judged_of(tmp_path), "results")
    assert 'id="training-chart"' in page
    (run_dir / "metrics.jsonl").unlink()
    page = html_report(*judged_of(tmp_path), "results")
    assert 'id="training-chart"' not in page


# ---- samples of text ----------------------------------------------------------------


def test_arms_continue_the_same_prompt_side_by_side(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2))
    for run_dir, text in (
        ("step00-baseline/seed2", " a <b>time</b>"),
        ("step05-ra/seed1", "\n  indented \u202e\x1b[31m"),
        ("step05-ra/seed2", "another seed"),
    ):
        write_samples(tmp_path / run_dir, text)
    matrix, judged = judged_of(tmp_path)
    (found,) = sample_prompts(matrix, judged)
    assert (found.prompt, found.actual) == ("Once", " upon")
    assert found.texts == [
        ("0 baseline, seed 2", " a <b>time</b>"),
        ("5 ra, seed 1", "\n  indented [31m"),
    ]
    page = html_report(matrix, judged, "results")
    assert "a &lt;b&gt;time&lt;/b&gt;" in page and "<b>time" not in page


@pytest.mark.parametrize(
    "content", ["", "[]", '{"samples": 3}', '{"samples": [{"prompt": 1}]}', "{" * 5000]
)
def test_damaged_samples_are_left_out(tmp_path, content):
    run_dir = write_run(tmp_path, 0, 1)
    (run_dir / "samples.json").write_text(content)
    matrix, judged = judged_of(tmp_path)
    assert sample_prompts(matrix, judged) == []
    damaged = content == "" or content.startswith("{{")
    assert [item.path for item in matrix.left_out] == (
        ["step00-baseline/seed1/samples.json"] * damaged
    )
