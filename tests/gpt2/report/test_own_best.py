"""gpt2/report/own_best.py: arms compared at their own best learning rates."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from gpt2.report.chart_data import chart_data
from gpt2.report.grades import HARMFUL, INCONCLUSIVE, SUPPORTED
from gpt2.report.html import html_report
from gpt2.report.markdown import markdown_report
from gpt2.report.own_best import SweptArm
from gpt2.report.plots import baselines, write_plots
from gpt2.report.rate_tables import own_best_text, rate_lines, rate_remarks, rate_table
from gpt2.report.read_results import read_matrix
from gpt2.report.sentences import method
from gpt2.report.summary import write_summary
from gpt2.report.sweep_tables import sweep_tables
from gpt2.report.verdicts import Judgement, judge
from tests.results_factory import (
    STEPS,
    change_final_loss,
    settings,
    write_matrix,
    write_run,
)
from tests.scratch import ROOT

SCHEMA = ROOT / "gpt2" / "report" / "summary.schema.json"
SEEDS, TUNING = (1, 2, 3, 4), (101, 102)
# Loss by rate, in nats; "tuning" adds to it on the tuning seeds.
Losses = Mapping[float, float]


def write_arm(
    root: Path, step: int, losses: Losses, tuning: Losses | None = None, **run: Any
) -> None:
    """Finished runs of a step at each rate, on the seeds of both kinds."""
    name, title, of, *_ = STEPS[step]
    rates = ",".join(map(str, losses))
    for rate, loss in losses.items():
        at = f"learning_rate={rate}"
        for seed in (*SEEDS, *TUNING):
            job: dict[str, Any] = {
                "name": f"{name}/{at}",
                "title": f"{title} ({at})",
                "run_dir": f"step{step:02d}-{name}/{at}/seed{seed}",
                "coordinates": {"learning_rate": rate},
                "parent_name": None if of is None else f"{STEPS[of][0]}/{at}",
                "settings": {**settings(step), "matrix": {"lr_sweep": rates}},
            }
            if seed in TUNING:
                job["tuning"] = True
            more = (tuning or {}).get(rate, 0.0) if seed in TUNING else 0.0
            twin = f"{step} {at}"
            write_run(root, step, seed, job=job, twin=twin, effect=loss + more, **run)


def best(judged: Judgement) -> dict[str, tuple[str, str]]:
    """Partner and grade of each arm at its own best."""
    return {
        c.arm.label: (c.partner.label, c.verdict.grade)
        for c in judged.own_best.comparisons
    }


def test_each_arm_is_compared_at_the_rate_that_its_tuning_seeds_choose(
    tmp_path: Path,
) -> None:
    write_arm(tmp_path, 0, {0.001: 0.02, 0.002: 0.0, 0.004: 0.05})
    write_arm(tmp_path, 5, {0.001: 0.06, 0.002: 0.0, 0.004: -0.04})
    write_arm(tmp_path, 8, {0.001: 0.04, 0.002: 0.08, 0.004: 0.1})
    judged = judge(read_matrix(tmp_path))
    assert best(judged) == {
        "5 ra/learning_rate=0.004": ("0 baseline/learning_rate=0.002", SUPPORTED),
        "8 mla/learning_rate=0.001": ("0 baseline/learning_rate=0.002", HARMFUL),
    }
    assert len(judged.comparisons) == 6  # at equal rates, a family of their own
    assert all(arm.seeds == SEEDS for arm in judged.arms)
    edges = {arm.name: arm.choice.edge for arm in judged.own_best.arms}
    assert edges == {"0 baseline": "", "5 ra": "largest", "8 mla": "smallest"}


def test_the_correction_is_for_comparisons_at_equal_budgets(tmp_path: Path) -> None:
    """Step 2 has more parameters than step 0."""
    for step in (0, 2, 5):
        write_arm(tmp_path, step, {0.001: 0.0, 0.002: 0.03})
    judged = judge(read_matrix(tmp_path))
    found = {c.arm.step: c.verdict.family for c in judged.own_best.comparisons}
    assert found == {2: None, 5: 1}
    assert "at equal budgets, 1;" in own_best_text(judged)
    assert "are one family of 2:" in " ".join(method(judged).split())


def test_the_page_draws_loss_against_rate(tmp_path: Path) -> None:
    write_arm(tmp_path, 0, {0.001: 0.02, 0.002: 0.0, 0.004: 0.05})
    write_arm(tmp_path, 5, {0.001: 0.06, 0.002: 0.0, 0.004: -0.04})
    matrix = read_matrix(tmp_path)
    judged = judge(matrix)
    page = html_report(matrix, judged, "x")
    assert "Each arm at its own best rate" in page and "LR_SWEEP_EXTEND=y" in page
    text = page.partition('id="data">')[2].partition("</script>")[0]
    chart = json.loads(text)["rates"]
    assert chart["scale"] == "log"
    assert [tick for _, tick in chart["ticks"]] == ["0.001", "0.002", "0.004"]
    assert [one["best"] for one in chart["series"]] == [0.002, 0.004]
    losses = judged.own_best.arms[1].all_losses(0.004)
    ra = chart["series"][1]
    assert (ra["low"][2], ra["high"][2]) == (min(losses), max(losses))
    write_plots(judged, tmp_path / "plots")
    assert (tmp_path / "plots" / "rates.png").is_file()


def test_curves_are_compared_with_the_baseline_at_the_same_rate(tmp_path: Path) -> None:
    """Also those of an arm that is compared with another one than the baseline."""
    for step, losses in ((0, {0.001: 0.5, 0.002: 0.0}), (5, {0.001: 0.5, 0.002: 0.0})):
        write_arm(tmp_path, step, losses)
    write_arm(tmp_path, 6, {0.001: 0.75, 0.002: 0.25})  # partner: step 5
    matrix = read_matrix(tmp_path)
    judged = judge(matrix)
    found = {label: base.label for label, base in baselines(judged).items()}
    for rate in ("0.001", "0.002"):
        base = f"0 baseline/learning_rate={rate}"
        for arm in ("0 baseline", "5 ra", "6 ra-r25"):
            assert found[f"{arm}/learning_rate={rate}"] == base
    data = chart_data(judged, [])
    for arm in data["arms"]:
        last = arm["differences"]["eval"]["step"]["mean"][-1]
        assert abs(last - (0.25 if arm["label"].startswith("6 ") else 0.0)) < 0.05


def test_the_choice_is_of_the_tuning_seeds_alone(tmp_path: Path) -> None:
    write_arm(tmp_path, 0, {0.001: 0.0, 0.002: 0.0}, {0.001: -0.05})
    write_arm(tmp_path, 5, {0.001: 0.0, 0.002: -0.5}, {0.002: 1.0})
    judged = judge(read_matrix(tmp_path))
    assert [*best(judged)] == ["5 ra/learning_rate=0.001"]
    doubts = [text for arm, text in rate_remarks(judged) if arm == "5 ra"]
    assert "seeds 1, 2, 3, 4 are better at 0.002, by 0.50" in doubts[1]


def test_only_a_lower_mean_of_the_same_seeds_makes_a_choice_doubtful(
    tmp_path: Path,
) -> None:
    """At 0.001 the losses are equal, and at 0.004 one run has diverged."""
    rates = (0.001, 0.002, 0.004)
    write_arm(tmp_path, 0, dict.fromkeys(rates, 0.0))
    losses = {0.001: 0.0, 0.002: 0.0, 0.004: -0.1}
    write_arm(tmp_path, 5, losses, {0.001: 0.5, 0.004: 0.6})
    path = tmp_path / "step05-ra/learning_rate=0.004/seed1/status.json"
    status = json.loads(path.read_text())
    status["result"]["val_loss"] = None
    path.write_text(json.dumps(status))
    for rate in rates[:2]:
        for seed in SEEDS:
            run = tmp_path / f"step05-ra/learning_rate={rate}/seed{seed}"
            change_final_loss(run, lambda loss: round(loss, 1))
    judged = judge(read_matrix(tmp_path))
    equal = [arm.by_seed("val_loss") for arm in judged.arms[3:5]]
    assert equal[0] == equal[1]
    assert judged.own_best.arms[1].choice.best == 0.002
    doubts = [text for arm, text in rate_remarks(judged) if arm == "5 ra"]
    assert not any("uncertain" in text for text in doubts)


def test_an_arm_without_tuning_runs_is_not_at_its_best(tmp_path: Path) -> None:
    """As ONLY or a merge of folders leaves it."""
    for step in (0, 2, 5, 8):
        write_arm(tmp_path, step, {0.001: 0.0, 0.002: -0.01})
    for run in tmp_path.glob("step05-ra/*/seed10*"):
        shutil.rmtree(run)
    shutil.rmtree(tmp_path / "step08-mla/learning_rate=0.002")
    judged = judge(read_matrix(tmp_path))
    assert [*best(judged)] == ["2 r25/learning_rate=0.002"]
    remarks = dict(rate_remarks(judged))
    assert remarks["5 ra"].startswith("no tuning run at 0.001, 0.002, so no comparison")
    assert remarks["8 mla"].startswith("no tuning run at 0.002, so no comparison")
    assert [row[:2] for row in rate_table(judged)[1] if row[0] == "5 ra"] == [
        ["5 ra", "1, 2, 3, 4"]
    ]


def test_without_any_tuning_run_the_best_rates_are_said_to_be_unknown(
    tmp_path: Path,
) -> None:
    """As `make ONLY='*/seed[1234]'` leaves it; the losses by rate are shown."""
    for step in (0, 5):
        write_arm(tmp_path, step, {0.001: 0.0, 0.002: -0.01})
    for run in tmp_path.glob("*/*/seed10*"):
        shutil.rmtree(run)
    matrix = read_matrix(tmp_path)
    judged = judge(matrix)
    said = "the best rates are not known: LR_SWEEP is set, but there are no runs of its"
    assert rate_lines(judged)[0].startswith(f"Learning rates: {said}")
    assert said in markdown_report(matrix, judged, "x").replace("\\_", "_")
    page = html_report(matrix, judged, "x")
    assert said in page and 'id="rates"' not in page
    write_summary(matrix, judged.to_json())
    written = json.loads((tmp_path / "summary.json").read_text())
    jsonschema.validate(written, json.loads(SCHEMA.read_text()))
    assert said in written["verdicts"]["own_best"]["pending"]
    assert [table.axis for table in sweep_tables(judged)] == ["learning_rate"]


def test_an_untuned_baseline_still_decides_whether_a_matrix_is_valid(
    tmp_path: Path,
) -> None:
    write_arm(tmp_path, 0, {0.001: 20.0, 0.002: 20.0})  # worse than guessing
    write_arm(tmp_path, 5, {0.001: 0.0, 0.002: -0.01})
    for run in tmp_path.glob("step00-baseline/*/seed10*"):
        shutil.rmtree(run)
    judged = judge(read_matrix(tmp_path))
    assert judged.void and not judged.own_best.comparisons


def test_an_unlucky_choice_for_the_partner_is_no_finding(tmp_path: Path) -> None:
    """Equal arms: noise chose the baseline's worse rate, and the rates do differ."""
    equal = {0.001: 0.0, 0.002: 0.03}
    write_arm(tmp_path, 0, equal, {0.002: -0.1})
    write_arm(tmp_path, 5, equal)
    write_arm(tmp_path, 8, equal, {0.002: -0.1})
    judged = judge(read_matrix(tmp_path))
    found = best(judged)
    assert found["5 ra/learning_rate=0.001"] == (
        "0 baseline/learning_rate=0.002",
        INCONCLUSIVE,
    )
    comparison, _ = judged.own_best.comparisons
    assert comparison.verdict.mean is not None and comparison.verdict.mean < -0.02
    assert "0.001 may be its partner's best rate" in comparison.verdict.reasons[0]
    assert comparison.verdict.p_deciding is not None
    assert comparison.verdict.p_deciding > 0.05


def test_an_unlucky_choice_for_the_arm_is_no_finding(tmp_path: Path) -> None:
    equal = {0.001: 0.0, 0.002: 0.03}
    write_arm(tmp_path, 0, equal)
    write_arm(tmp_path, 5, equal, {0.002: -0.1})
    write_arm(tmp_path, 8, equal)
    found = best(judge(read_matrix(tmp_path)))
    assert found["5 ra/learning_rate=0.002"][1] == INCONCLUSIVE


def test_a_rate_at_which_the_baseline_diverges_voids_nothing(tmp_path: Path) -> None:
    write_arm(tmp_path, 0, {0.001: 0.02, 0.002: 0.0})
    write_arm(tmp_path, 0, {0.004: 0.0}, status="failed", failure="nan")
    write_arm(tmp_path, 0, {0.008: 30.0})  # above a uniform guess
    write_arm(tmp_path, 5, {0.001: 0.0, 0.002: -0.04, 0.004: 0.0, 0.008: 0.0})
    write_arm(tmp_path, 8, {0.001: 0.0, 0.002: -0.04, 0.004: 0.0, 0.008: 0.0})
    judged = judge(read_matrix(tmp_path))
    assert not judged.void
    assert {grade for _, grade in best(judged).values()} == {SUPPORTED}
    text = markdown_report(read_matrix(tmp_path), judged, "sweep")
    row = next(line for line in text.splitlines() if "0 baseline | 101, 102" in line)
    assert row.count("diverged") == 1


def test_nothing_is_compared_until_all_rates_are_chosen(tmp_path: Path) -> None:
    write_arm(tmp_path, 0, {0.001: 0.02, 0.002: 0.0})
    write_arm(tmp_path, 5, {0.001: 0.0})
    write_arm(tmp_path, 5, {0.002: 0.0}, status="running")
    judged = judge(read_matrix(tmp_path))
    assert judged.own_best.comparisons == []
    assert judged.own_best.pending.endswith("6 of 8 tuning runs have finished")
    assert judged.own_best.pending in markdown_report(
        read_matrix(tmp_path), judged, "sweep"
    )


def test_report_and_tables_have_the_rates(tmp_path: Path) -> None:
    write_arm(tmp_path, 0, {0.001: 0.02, 0.002: 0.0, 0.004: 0.05})
    write_arm(tmp_path, 5, {0.001: 0.06, 0.002: 0.0, 0.004: -0.04})
    matrix = read_matrix(tmp_path)
    judged = judge(matrix)
    text = markdown_report(matrix, judged, "sweep")
    assert "## Learning rates" in text and "## Loss by swept value" not in text
    assert "101, 102 (tuning)" in text and "| 1, 2, 3, 4 |" in text
    assert "its best rate, 0.004, is the largest of LR\\_SWEEP" in text
    write_summary(matrix, judged.to_json())
    whole = json.loads((tmp_path / "summary.json").read_text())
    jsonschema.validate(whole, json.loads(SCHEMA.read_text()))
    summary = whole["verdicts"]
    assert [arm["best"] for arm in summary["own_best"]["rates"]] == [0.002, 0.004]
    assert summary["own_best"]["comparisons"][0]["at_equal_steps"]["grade"]
    rows = csv.DictReader((tmp_path / "results.csv").open())
    assert {row["seed"] for row in rows if row["tuning"] == "True"} == {"101", "102"}


@pytest.mark.parametrize(
    ("base", "arm", "whose"),
    [
        ({0.001: -0.3, 0.002: 0.0}, {0.001: 0.0, 0.002: -0.1}, "its partner's"),
        ({0.001: 0.0, 0.002: 0.0}, {0.001: -0.3, 0.002: 0.1}, "its"),
    ],
)
def test_a_difference_that_another_rate_turns_round_is_not_shown(
    tmp_path: Path, base: Losses, arm: Losses, whose: str
) -> None:
    """Tuning chose 0.002 for both; at 0.001 one of them is better by 0.2 or more."""
    write_arm(tmp_path, 0, base, {0.001: 1.0})
    write_arm(tmp_path, 5, arm, {0.001: 1.0})
    judged = judge(read_matrix(tmp_path))
    (found,) = judged.own_best.comparisons
    assert found.arm.label == "5 ra/learning_rate=0.002"
    assert found.partner.label == "0 baseline/learning_rate=0.002"
    assert found.verdict.grade == INCONCLUSIVE
    assert f"0.001 may be {whose} best rate" in found.verdict.reasons[0]
    # Two arms have the paired t test alone.
    assert (found.verdict.p_holm, found.verdict.p_pooled) == (1.0, None)


def test_losses_of_all_seeds_are_those_that_there_are() -> None:
    tuned = SweptArm("5 ra", {}, {0.001: (3.0, None, float("inf")), 0.002: ()})
    assert tuned.all_losses(0.001) == [3.0]
    assert tuned.all_losses(0.002) == tuned.all_losses(0.004) == []
    assert (tuned.untuned, tuned.missing) == ([0.002], 1)


def test_arms_without_a_sweep_are_compared_as_they_are(tmp_path: Path) -> None:
    write_matrix(tmp_path, (0, 5), SEEDS, effects={5: -0.2})
    for step in (0, 8):
        write_arm(tmp_path, step, {0.001: 0.1 * (step == 8), 0.002: 0.3})
    assert best(judge(read_matrix(tmp_path))) == {
        "5 ra": ("0 baseline", SUPPORTED),
        "8 mla/learning_rate=0.001": ("0 baseline/learning_rate=0.001", HARMFUL),
    }
