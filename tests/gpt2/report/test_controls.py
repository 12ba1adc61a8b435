"""The A/A control and baselines that spoil a matrix: what no longer gets a verdict."""

import io
import json
import subprocess
import sys

import jsonschema
import numpy as np
import pytest

from gpt2.report.arms import group_arms, partner_of
from gpt2.report.checklist import checklist
from gpt2.report.controls import LARGEST_NOISE, NOISE, is_large, is_steady, noise_of
from gpt2.report.grades import INVALID
from gpt2.report.html import html_report
from gpt2.report.markdown import markdown_report
from gpt2.report.notes import remarks
from gpt2.report.read_results import read_matrix
from gpt2.report.terminal import terminal_report
from gpt2.report.verdicts import judge
from gpt2.run.runner import Watch
from lib.jobs.live_table import PlainView
from tests.results_factory import settings, write_control, write_matrix, write_run
from tests.scratch import ROOT

SCHEMA = ROOT / "gpt2" / "report" / "summary.schema.json"
STEPS, SEEDS, MARGIN = (0, 5, 8, 29), (1, 2, 3), 0.003


def judged(root):
    return judge(read_matrix(root))


def grades(root):
    found = judged(root)
    return {c.arm.step: c.at_steps.grade for c in found.comparisons}


def runner_alarms(root):
    """Alarms of the runner after a run has ended."""
    (root / "matrix.json").write_text('{"jobs": []}')
    said = io.StringIO()
    watch = Watch(root, PlainView(said))
    watch(None)
    first = said.getvalue().splitlines()
    watch(None)
    assert said.getvalue().splitlines() == first  # each once
    return first


def item(root, name):
    matrix = read_matrix(root)
    return next(x for x in checklist(matrix, judge(matrix)) if x.name == name)


def plain(parts):
    from rich.console import Console

    out = io.StringIO()
    console = Console(file=out, width=160)
    for part in parts:
        console.print(part)
    return out.getvalue()


# ---- the control ------------------------------------------------------------------


def test_a_healthy_control_is_shown_first_and_changes_no_verdict(tmp_path):
    without = judged(write_matrix(tmp_path / "a", STEPS, SEEDS, {8: 0.1}))
    root = write_matrix(tmp_path / "b", STEPS, SEEDS, {8: 0.1}, control=0.0)
    found = judged(root)
    assert [c.at_steps for c in found.comparisons] == [
        c.at_steps for c in without.comparisons  # Holm's family is the same
    ]
    (control,) = found.controls
    assert control.grade == "EQUAL" and control.mean == pytest.approx(2e-4)
    assert [n.arm.label for n in found.noise] == ["0 baseline"]
    matrix = read_matrix(root)
    sentence = (
        "A/A control: 0 baseline with other kernels ends +2.0e-04 ± 2.5e-04 nats "
        "from it over 3 seeds: the numerical noise of this matrix."
    )
    text = markdown_report(matrix, found, "x")
    before, _ = text.split("## Verdicts")
    assert f"**{sentence}**" in before.splitlines()
    assert text.index("A/A control: step 0 with") < text.index("GPT-2 baseline")
    assert "- [x] attention backend: sdpa:flash\n" in text  # not the control's
    assert plain(terminal_report(matrix, found, 160)).startswith(sentence)
    assert sentence in html_report(matrix, found, "x")
    summary = {"schema": 4, "runs": [], "left_out": [], "estimates": None}
    schema = json.loads(SCHEMA.read_text())
    verdicts = json.loads(json.dumps(found.to_json()))
    jsonschema.validate({**summary, "verdicts": verdicts}, schema)
    assert item(root, "A/A control").ok and item(root, "attention backend").ok
    assert runner_alarms(root) == []


@pytest.mark.parametrize("shift", [0.05, -0.05, 0.64])
@pytest.mark.parametrize("seeds", [(1,), (1, 2), (1, 2, 3)])
def test_a_control_that_differs_spoils_the_whole_matrix(tmp_path, shift, seeds):
    root = write_matrix(tmp_path, STEPS, seeds, {8: 0.1}, control=shift)
    found = judged(root)
    assert set(grades(root).values()) == {INVALID} and len(found.comparisons) == 3
    assert {c.at_time.grade for c in found.comparisons} == {INVALID}
    for comparison in found.comparisons:
        assert (
            "the A/A control of 0 baseline differs by" in comparison.at_steps.reasons[0]
        )
    text = markdown_report(read_matrix(root), found, "x")
    assert (
        "ALL VERDICTS OF THIS MATRIX ARE INVALID: the A/A control of 0 baseline" in text
    )
    assert not item(root, "A/A control").ok
    (line,) = runner_alarms(root)
    assert line.startswith("ALARM 0 baseline-aa: the A/A control differs by")
    said = remarks(found)
    assert len(said) == len(set(said)), "each remark once"
    assert not any(reason in found.void for _, reason in said), "it heads the report"


def test_a_wrong_baseline_is_seen_by_its_control_and_from_above(tmp_path):
    """As it happened: 0.64 nats, and every arm looked better."""
    root = write_matrix(tmp_path, (0, 5), (1, 2), {0: 0.64})
    for seed in (1, 2):
        write_control(root, seed)
    assert grades(root) == {5: INVALID}
    lines = runner_alarms(root)
    assert len(lines) == 2 and "A/A control differs by −0.6" in lines[0]
    assert lines[1].startswith("ALARM 0 baseline: its loss is at least ")
    assert ("0 baseline", f"alarm: {lines[1].partition(': ')[2]}") in remarks(
        judged(root)
    )
    assert "nats above that of every other arm" in item(root, "alarms").remark


def test_a_control_that_diverged_differs(tmp_path):
    root = write_matrix(tmp_path, (0, 5), SEEDS)
    for seed in (1, 2):
        write_control(root, seed)
    write_control(root, 3, status="failed", failure="nan")
    reason, *_ = judged(root).void
    assert reason == "the A/A control of 0 baseline diverged (seed 3)"


@pytest.mark.parametrize("status", ["planned", "running", "failed"])
def test_a_control_that_is_not_done_holds_nothing_up(tmp_path, status):
    root = write_matrix(tmp_path, (0, 5), SEEDS, {5: 0.1}, control=0.0)
    before = grades(root)
    folder = root / "step00-baseline-aa" / "seed3"
    for path in folder.iterdir():
        path.unlink()
    folder.rmdir()
    write_control(
        root, 3, status=status, failure="crash" if status == "failed" else None
    )
    assert grades(root) == before and judged(root).void == ()
    (control,) = judged(root).controls
    assert (control.grade, control.reasons) == ("PENDING", ("2 of 3 seeds finished",))
    assert item(root, "A/A control").remark == "2 of 3 seeds finished"


def test_a_control_that_is_done_before_its_baseline_waits_for_it(tmp_path):
    root = write_matrix(tmp_path, (5,), (1, 2))
    write_run(root, 0, 1, status="running")
    for seed in (1, 2):
        write_control(root, seed)
    (control,) = judged(root).controls
    assert (control.grade, control.reasons) == ("PENDING", ("0 of 2 seeds finished",))
    assert runner_alarms(root) == []
    text = markdown_report(read_matrix(root), judged(root), "x")
    assert "with other kernels: PENDING: 0 of 2 seeds finished.**" in text


def test_a_control_by_the_same_kernels_says_nothing(tmp_path):
    root = write_matrix(tmp_path, (0, 5), (1,))
    write_control(root, 1, manifest={"attention_backend": "sdpa:flash"})
    (control,) = judged(root).controls
    assert control.grade == "PENDING" and "same kernels" in control.reasons[0]
    assert "same kernels" in runner_alarms(root)[0]
    write_control(
        root, 2, manifest={"attention_backend": "sdpa:flash", "compile": False}
    )
    write_run(root, 0, 2)
    assert "(seed 1)" in judged(root).controls[0].reasons[0]


def test_no_arm_is_compared_with_a_control(tmp_path):
    root = write_matrix(tmp_path, (5, 29), (1, 2))
    write_control(root, 1)
    arms = group_arms(read_matrix(root))
    found = {arm.label: partner_of(arm, arms)[0] for arm in arms if not arm.is_control}
    assert found["5 ra"] is None and found["29 ra-full"].label == "5 ra"
    assert judged(root).controls[0].reasons == ("its baseline was not run",)


def difference_of(differences, margin):
    return is_large(differences, margin) or is_steady(differences, margin)


def test_a_test_matrix_has_a_control_too(tmp_path):
    cells = {"adamw-none": None, "muon-none": "adamw-none"}
    for name, partner in cells.items():
        job = {"step": None, "name": name, "parent": None, "parent_name": partner}
        write_run(tmp_path, 0, 1, job=job)
    aa = {"step": None, "name": "adamw-none-aa", "parent_name": "adamw-none"}
    aa |= {"parent": None, "run_dir": "adamw-none-aa/seed1"}
    write_run(
        tmp_path,
        0,
        1,
        job={**aa, "settings": settings(0, other_kernels=True)},
        manifest={"attention_backend": "triton"},
        twin="adamw-none",
        effect=0.05,
    )
    found = judged(tmp_path)
    assert [(c.arm.name, c.partner.name) for c in found.comparisons] == [
        ("muon-none", "adamw-none")
    ]
    assert "the A/A control of adamw-none differs" in found.void[0]


def draws(shape, noise, kind, seed=0):
    random = np.random.default_rng(seed)
    if kind == "t3":
        return random.standard_t(3, shape) * noise / np.sqrt(3)
    return random.normal(size=shape) * noise


@pytest.mark.parametrize("seeds", [1, 2, 3, 5])
@pytest.mark.parametrize(
    ("noise", "kind"), [(0.002, "normal"), (NOISE, "normal"), (0.75 * NOISE, "t3")]
)
def test_rounding_is_seldom_taken_for_a_fault_and_faults_never_for_rounding(
    seeds, noise, kind
):
    """1.5% here, for less than 1% and the error of 2,000 draws."""
    found = draws((2000, seeds), noise, kind)
    refused = sum(bool(difference_of(list(d), MARGIN)) for d in found)
    assert refused <= 0.015 * len(found)
    seen = sum(bool(difference_of(list(d), MARGIN)) for d in found + 0.05)
    assert seen >= (0.96 if seeds == 1 else 0.999) * len(found)
    assert all(difference_of(list(d), MARGIN) for d in found[:200] + 0.64)


def test_the_margin_that_was_declared_is_no_fault():
    assert difference_of([0.04, 0.05], 0.06) == ""
    assert difference_of([0.04, 0.05], MARGIN)
    assert "in one seed" in difference_of([0.06, -0.06, 0.0], MARGIN)
    assert "every seed" in difference_of([0.0051, 0.0050, 0.0050], MARGIN)


def test_the_runner_learns_it_without_numpy(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2), control=0.64)
    code = (
        "import sys; from pathlib import Path; from gpt2.run.runner import alarms\n"
        "assert 'A/A control differs' in str(alarms(Path(sys.argv[1])))\n"
        "assert not {'numpy', 'scipy', 'torch'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ---- the end of a run -------------------------------------------------------------


def test_a_baseline_above_a_uniform_guess_spoils_the_whole_matrix(tmp_path):
    root = write_matrix(tmp_path, STEPS, SEEDS, {0: 12.0})
    assert grades(root) == {5: INVALID, 8: INVALID, 29: INVALID}  # 29 is held to 5
    reason, *_ = judged(root).void
    assert reason.startswith("the baseline 0 baseline: seed 1 ended at ")
    assert "above ln(50257) = 10.825 of a uniform guess" in reason
    assert any("step00-baseline/seed1 ended at" in line for line in runner_alarms(root))
    assert "step00-baseline/seed2 ended at" in item(root, "alarms").remark


def test_an_arm_above_a_uniform_guess_is_invalid_alone(tmp_path):
    root = write_matrix(tmp_path, STEPS, SEEDS, {5: 12.0})
    found = grades(root)
    assert found[5] == found[29] == INVALID != found[8]  # 29 is held to 5
    assert judged(root).void == ()


def test_a_baseline_below_some_arm_raises_no_alarm(tmp_path):
    root = write_matrix(tmp_path, STEPS, SEEDS, {5: -0.6, 8: 0.02})
    assert runner_alarms(root) == [] and item(root, "alarms").value == "none"


def test_an_effect_as_large_as_any_reported_raises_no_alarm(tmp_path):
    root = write_matrix(tmp_path, (0, 5), SEEDS, {5: -0.1})
    assert runner_alarms(root) == []


def test_the_same_difference_in_every_seed_to_the_last_digit_is_steady():
    assert is_steady([0.004] * 3, 0.003) and not is_steady([0.004], 0.003)


# Validation losses of 124M, 150 updates after a warm-up of 20, seeds 1 and 2 (H200):
# the same baseline by cuDNN's attention and torch's MLP, and by other right kernels.
STEEP = (3.449140, 3.359462), (3.388590, 3.372842)


@pytest.mark.parametrize(("shift", "refused"), [(0.0, False), (0.64, True)])
def test_seeds_that_spread_widely_say_what_rounding_may_do(
    shift: float, refused: bool
) -> None:
    baseline, control = STEEP
    noise = noise_of(control, baseline)
    assert noise == pytest.approx(0.0455, abs=1e-3)
    pairs = zip(control, baseline, strict=True)
    differences = [mine - theirs + shift for mine, theirs in pairs]
    found = is_large(differences, 0.003, noise) or is_steady(differences, 0.003, noise)
    assert bool(found) is refused, found
    assert bool(is_large(differences, 0.003)), "at the noise of longer warm-ups"
    assert noise_of((3.3, 3.3012), (3.3,)) == NOISE
    assert noise_of((9.0, 3.0), (3.3, 3.4)) == LARGEST_NOISE


def test_a_spread_of_nats_does_not_excuse_half_a_nat():
    """At a noise of 0.1 a mean of 3 seeds may be off by 3 x 0.1 / sqrt(3) = 0.1732."""
    noise = noise_of((9.0, 6.0, 3.0), (9.5, 6.5, 3.5))
    assert is_large((0.5, 0.5, 0.5), MARGIN, noise)
    assert "at most 0.1732" in is_large((0.174, 0.174, 0.174), MARGIN, noise)
    assert not is_large((0.173, 0.173, 0.173), MARGIN, noise)
