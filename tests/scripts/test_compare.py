"""scripts/compare.py on runs, arms and matrices."""

import json
import re
import shutil

import pytest

from tests.results_factory import change_final_loss, write_matrix, write_run
from tests.scripts.inprocess import run_script


def compare(*arguments, cwd):
    return run_script("compare.py", *arguments, cwd=cwd)


@pytest.fixture
def matrix(tmp_path):
    """A matrix of steps 0, 2 and 8, with its configuration next to it."""
    write_matrix(tmp_path / "out", (0, 2), (1, 2, 3))
    write_matrix(tmp_path / "out", (8,), (1, 2, 3), effects={8: -0.05})
    (tmp_path / "config.py").write_text("CONFIG_OUTPUT_DIR = 'out'\nORIGINS = {}\n")
    return tmp_path


@pytest.mark.parametrize(
    ("a", "b"),
    [("0", "8"), ("baseline", "mla"), ("out/step00-baseline", "out/step08-mla")],
)
def test_steps_are_compared_pair_by_pair(matrix, a, b):
    done = compare(a, b, cwd=matrix)
    assert done.returncode == 0, done.stderr
    assert "B relative to A: SUPPORTED, −0.04" in done.stdout
    assert "124.0M" in done.stdout and "124.2M" in done.stdout
    assert "Environment: No differences found." in done.stdout
    assert "report.py out (all arms" in done.stdout.splitlines()[-1]


def test_direction_is_b_minus_a(matrix):
    assert "HARMFUL, +0.04" in compare("8", "0", cwd=matrix).stdout


def test_runs_without_a_comparison_with_the_formulas_are_compared(matrix):
    write_run(matrix / "other", 0, 1, result={"as_trained": None})
    done = compare("0:1", "other/step00-baseline/seed1", cwd=matrix)
    assert done.returncode == 0, done.stderr
    row = next(x for x in done.stdout.splitlines() if "as_trained" in x)
    assert row.split() == ["as_trained", "6e-03", "–", "–"]


def test_another_budget_is_not_comparable(matrix):
    done = compare("0", "2", cwd=matrix)
    assert "Not comparable (UNMATCHED): parameters differ by +11.3%" in done.stdout
    row = next(x for x in done.stdout.splitlines() if "RA_MLA_MLP_RATIO" in x)
    assert row.split() == ["RA_MLA_MLP_RATIO", "2.0", "2.5"]


@pytest.mark.parametrize(
    "names", [("0:1", "8:1"), ("out/step00-baseline/seed1", "8:1")]
)
def test_single_runs_show_their_difference_and_decide_nothing(matrix, names):
    done = compare(*names, cwd=matrix)
    assert "INCONCLUSIVE" in done.stdout and "one seed is not enough" in done.stdout
    assert done.stdout.splitlines()[-1].startswith("Next: make plan RESULTS=")
    assert "More seeds: adding them until" in done.stdout


def test_seeds_are_planned_by_the_noise_of_what_is_compared(matrix):
    write_matrix(matrix / "two", (0, 5), (1, 2), noise=0.0)
    for name, more in (("step00-baseline", 0.2), ("step05-ra", 0.201)):
        change_final_loss(matrix / "two" / name / "seed1", more.__add__)
    done = compare("two/step05-ra", "two/step00-baseline", cwd=matrix)
    assert "seeds at the noise floor" in done.stdout


def test_matrices_are_matched_by_arm(matrix):
    shutil.copytree(matrix / "out", matrix / "again")
    shutil.rmtree(matrix / "again" / "step02-r25")
    write_run(matrix / "again", 29, 1)
    for path in (matrix / "again").glob("step0*/seed*/*.json"):
        text = path.read_text().replace("0123456789abcdef", "f" * 16)
        path.write_text(text.replace('"learning_rate": 0.0006', '"learning_rate": 0.1'))
    done = compare("out", "again", cwd=matrix)
    assert done.returncode == 0, done.stderr
    assert "Only in A: 2 r25" in done.stdout and "Only in B: 29 ra-full" in done.stdout
    lines = done.stdout.splitlines()
    changed = [line.split() for line in lines if "LEARNING_RATE" in line]
    assert changed == [["LEARNING_RATE", "0.0006", "0.1"]]
    assert any("commit" in line and "f" * 16 in line for line in lines)
    assert sum("have no effect" in line for line in lines) == 2  # same losses


def test_bundles_are_read_like_folders(matrix):
    for script in ("report.py", "bundle.py"):
        done = run_script(script, "out", cwd=matrix)
        assert done.returncode == 0, done.stderr
    (matrix / "out.zip").rename(matrix / "sent.zip")
    done = compare("sent.zip", "out/step08-mla", cwd=matrix)
    assert done.returncode == 0 and "Only in A: 0 baseline" in done.stdout, done.stderr
    plans = [
        run_script("plan_seeds.py", f"--results={name}", cwd=matrix).stdout
        for name in ("out", "sent.zip")
    ]
    assert "in these results" in plans[0] and plans[0] == plans[1]
    (matrix / "sent.zip").write_bytes(b"no zip")
    done = compare("sent.zip", "out", cwd=matrix)
    assert done.returncode == 2 and "sent.zip" in done.stderr


def test_other_data_is_said(matrix):
    for path in (matrix / "out" / "step08-mla").glob("seed*/manifest.json"):
        manifest = json.loads(path.read_text())
        path.write_text(json.dumps({**manifest, "data_fingerprint": "other"}))
    done = compare("0", "8", cwd=matrix)
    assert "Not comparable (UNMATCHED): trained on different data" in done.stdout
    assert "stdlib gpt2 (other)" in done.stdout


@pytest.mark.parametrize(
    ("a", "words"),
    [
        ("7", "nor an arm of out: 0 baseline, 2 r25, 8 mla"),
        ("0:9", "0 baseline has no seed 9; it has 1, 2, 3"),
        ("empty", "there are no runs in empty"),
        ("", "name both sides"),
        ("0", "out/step00-baseline/seed1 is on both sides"),
        ("out", "out/step00-baseline/seed1 is on both sides"),
    ],
)
def test_what_cannot_be_compared_is_named(matrix, a, words):
    (matrix / "empty").mkdir()
    done = compare(a, "0", cwd=matrix)
    assert done.returncode == 2 and words in done.stderr
    assert "Traceback" not in done.stderr


def test_without_a_configuration_directories_still_work(matrix):
    (matrix / "config.py").unlink()
    assert compare("0", "8", cwd=matrix).returncode == 2
    assert compare("out/step00-baseline", "out/step08-mla", cwd=matrix).returncode == 0


def test_the_cache_is_as_large_as_make_budget_says(undisturbed):
    """RA keeps its last W + 1 queries once for a whole context."""
    budget = run_script("run_test_matrix.py", "--budget", cwd=undisturbed).stdout
    (row,) = (x for x in budget.splitlines() if re.match(r" +5  ra ", x))
    done = compare("0:1", "5:1", cwd=undisturbed)
    (found,) = re.findall(r"kv_bytes_per_token +(\S+ \S+) +(\S+ \S+)", done.stdout)
    assert found == ("256 B", "296 B") and found[1] in row
