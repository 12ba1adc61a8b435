"""scripts/plan_seeds.py: what it answers and from what."""

import re

import numpy as np
import pytest

from gpt2.report.evidence import Rules
from gpt2.report.noise import Family, PlannedTest
from gpt2.report.power import measured_spreads
from gpt2.report.read_results import read_matrix
from gpt2.report.verdicts import judge
from lib import pooled_power
from lib.kconfig.config_py import render_config
from tests.gpt2.helpers import make_config
from tests.results_factory import write_matrix, write_swept
from tests.scripts.inprocess import run_script


def plan(*arguments, cwd):
    return run_script("plan_seeds.py", *arguments, cwd=cwd)


def answers(printed):
    """(sd, seeds to find, seeds to exclude) of each row of the first table."""
    return re.findall(r"(0\.\d{4}) +(>?\d+) +(>?\d+) *$", printed, re.MULTILINE)


def test_without_results_the_noise_known_at_124m_is_taken(tmp_path):
    done = plan("--delta", "0.003", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert answers(done.stdout) == [("0.0018", "6", "5"), ("0.0027", "9", "9")]


def test_more_comparisons_take_more_seeds(tmp_path):
    done = plan("--sd", "0.0016", "--arms", "11", cwd=tmp_path)
    sd = 2**0.5 * 0.0016
    found = int(answers(done.stdout)[0][1])
    powers = [
        pooled_power.power(0.003, sd, n, 11, 0.05, 0.003) for n in (found - 1, found)
    ]
    assert powers[0] < 0.8 <= powers[1]
    assert (
        found
        < PlannedTest(Rules(), Family(11), False).seeds_to_find(0.003, sd, 0.003).first
    )
    assert "over 11 comparisons" in done.stdout


def test_noise_is_measured_in_the_results_if_there_are_any(tmp_path):
    write_matrix(tmp_path / "out", (0, 2, 5, 8), range(6))
    (tmp_path / "config.py").write_text("CONFIG_OUTPUT_DIR = 'out'\nORIGINS = {}\n")
    done = plan(cwd=tmp_path)
    assert "paired differences in these results (15 df)" in done.stdout
    assert "over 2 comparisons" in done.stdout  # step 2 is unmatched
    judged = judge(read_matrix(tmp_path / "out"))
    samples = [c.at_steps.differences for c in judged.comparisons]
    want = np.mean([np.var(sample, ddof=1) for sample in samples]) ** 0.5
    assert [x.sd for x in measured_spreads(judged)] == pytest.approx([want])
    assert answers(done.stdout)[0][0] == f"{want:.4f}"


def test_each_rate_of_a_sweep_has_its_own_noise(tmp_path):
    write_swept(tmp_path, {0.001: 0.001, 0.002: 0.004})
    done = plan("--results", tmp_path, "--delta", "0.006", cwd=tmp_path)
    printed = " ".join(done.stdout.split())
    assert "over 4 comparisons, with the noise of each of 2 rates or sizes" in printed
    quiet, noisy = (int(seeds) for _, seeds, _ in answers(done.stdout))
    assert quiet < noisy
    spreads = measured_spreads(judge(read_matrix(tmp_path)))
    apart, together = (
        PlannedTest(Rules(), family).seeds_to_find(0.006, spreads[1].sd, 0.003).first
        for family in (Family(4, pools=2), Family(4))
    )
    assert noisy == apart > together


def test_a_baseline_alone_gives_its_spread_times_root_two(tmp_path):
    write_matrix(tmp_path, (0,), range(5))
    judged = judge(read_matrix(tmp_path))
    losses = judged.arms[0].values("val_loss")
    want = 2**0.5 * np.std(losses, ddof=1)
    assert [x.sd for x in measured_spreads(judged)] == pytest.approx([want])
    assert "5 seeds of 0 baseline" in plan("--results", tmp_path, cwd=tmp_path).stdout


def test_what_no_number_of_seeds_finds_is_said(tmp_path):
    done = plan("--delta", "0.00001", "--sd", "0.01", cwd=tmp_path)
    assert re.search(r"0\.0141 +never", done.stdout)
    done = plan("--delta", "0.004", "--sd", "0.1", cwd=tmp_path)
    assert answers(done.stdout)[0][1] == ">1000"


def test_a_window_of_seeds_is_found_and_said(tmp_path):
    """Below the margin the power rises and falls again with the seeds."""
    words = ("--delta", "0.0026", "--sd", "0.00070711")
    shown = plan(*words, cwd=tmp_path).stdout
    assert re.search(r"0\.0010 +5 only +3", shown)
    rows = re.findall(r"^ +(\d+) +(0\.\d{4}) *$", shown, re.M)
    assert [n for n, smallest in rows if float(smallest) <= 0.0026] == ["5"], rows
    wide = plan(*words, "--arms", "6", cwd=tmp_path).stdout
    assert re.search(r"0\.0010 +4 to \d\d only", wide)


def test_looks_take_more_seeds_and_are_said(tmp_path):
    once = plan("--delta", "0.004", cwd=tmp_path)
    thrice = plan("--delta", "0.004", "--looks", "3", cwd=tmp_path)
    assert "LOOKS=3 plans for three" in " ".join(once.stdout.split())
    assert "in 3 looks" in " ".join(thrice.stdout.split())
    numbers = [int(answers(done.stdout)[1][1]) for done in (once, thrice)]
    assert numbers[0] < numbers[1]


def test_a_series_takes_more_seeds_the_longer_it_is(tmp_path):
    numbers = []
    for arms in ("1", "10"):
        words = ("--family", "sequential", "--arms", arms, "--delta", "0.006")
        shown = plan(*words, "--sd", "0.0015", cwd=tmp_path).stdout
        assert f"that of test {arms} of a sequential family" in shown
        numbers.append(int(answers(shown)[0][1]))
    assert 3 <= numbers[0] < numbers[1]
    done = plan("--family", "sequential", "--looks", "3", cwd=tmp_path)
    assert done.returncode == 2 and "REPORT_LOOKS must be 1" in done.stderr


def test_the_noise_of_124m_is_not_taken_for_another_size(tmp_path):
    write_matrix(tmp_path, (0,), (1,), result={"parameters": 800_000})
    done = plan("--results", tmp_path, cwd=tmp_path)
    assert done.returncode == 2 and "800.0k parameters is unknown" in done.stderr
    assert "RESULTS=folder" in done.stderr and "SD=" in done.stderr
    assert "these results have no two valid seeds" in done.stderr
    assert "124M" not in done.stdout
    assert plan("--results", tmp_path, "--sd", "0.02", cwd=tmp_path).returncode == 0


@pytest.mark.parametrize(
    ("symbols", "code"),
    [({}, 0), ({"GPT2_MODEL_CUSTOM": "y", "GPT2_N_LAYER": "2"}, 2)],
)
def test_the_size_is_that_of_the_configured_model(tmp_path, symbols, code):
    config = make_config(**symbols)
    (tmp_path / "config.py").write_text(render_config(config))
    done = plan(cwd=tmp_path)
    assert done.returncode == code, done.stderr


def test_a_difference_within_the_margin_is_said_to_be_graded_neutral(tmp_path):
    assert "graded NEUTRAL" not in plan("--delta", "0.003", cwd=tmp_path).stdout
    assert "graded NEUTRAL" in plan("--delta", "0.002", cwd=tmp_path).stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--delta", "-1"], "DELTA=-1 must be a positive loss in nats"),
        (["--delta", "nan"], "DELTA=nan"),
        (["--sd", "0"], "SD=0 must"),
        (["--delta", "abc"], "plan: DELTA=abc must be a positive loss in nats"),
        (["--arms", "0"], "ARMS=0"),
        (["--arms", "1.5"], "ARMS=1.5 must be a whole number from 1 to 1000"),
        (["--arms", "1000000000"], "ARMS=1000000000 must be a whole number"),
        (["--looks", "x"], "LOOKS=x must be a whole number"),
        (["--power", "1"], "POWER=1 must be a number between 0 and 1"),
        (["--results", "absent"], "no results at absent: it does not exist; run"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path, arguments, words):
    done = plan(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr
    assert "Traceback" not in done.stderr and "usage" not in done.stderr
