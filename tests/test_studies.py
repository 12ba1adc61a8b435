"""Published studies: their pages say what their records say."""

from __future__ import annotations

import re
import shutil
import statistics
from collections import Counter
from pathlib import Path

import pytest

from gpt2.plan.steps import STEPS
from gpt2.report.arms import is_done
from gpt2.report.bundle import results_folder
from gpt2.report.merge import merge
from gpt2.report.read_results import read_matrix
from gpt2.report.results import MatrixResults
from gpt2.report.verdicts import judge
from lib.atomic_files import read_jsonl

STUDY = Path(__file__).resolve().parents[1] / "docs" / "studies" / "ratio-124m"
RATE = "learning_rate"
RATES = {5e-4: "5e-4", 1e-3: "1e-3"}
T_95_OF_3 = 4.303  # Student's t of a 95% interval, two degrees of freedom


def records(bundle: str, folder: Path) -> MatrixResults:
    target = folder / bundle.replace("/", "-")
    return read_matrix(results_folder(Path(shutil.copy(STUDY / bundle, target))))


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> MatrixResults:
    return records("block-1.zip", tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> MatrixResults:
    return records("second-block/block-2.zip", tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="module")
def third(tmp_path_factory: pytest.TempPathFactory) -> MatrixResults:
    return records("third-block/block-3.zip", tmp_path_factory.mktemp("study"))


def section(title: str) -> str:
    """Text of the study's results below a heading."""
    page = (STUDY / "RESULTS.md").read_text().partition(f"## {title}\n")[2]
    assert page
    return page.partition("\n## ")[0]


def rows(page: str) -> list[list[str]]:
    """Cells of all rows of its tables that begin with a step."""
    return [
        [cell.strip(" *").replace("−", "-") for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if re.match(r"\| \d", line)
    ]


def test_the_first_page_of_ratio_124m_has_the_results_of_all_blocks() -> None:
    """Of step 5, which the third block repeats as a partner, those of the first."""
    at_5e4, at_1e3 = section("First block").split("At 1e-3")
    tables = [(at_5e4, "5e-4"), (at_1e3, "1e-3")]
    tables += [(section(f"{name} block"), "5e-4") for name in ("Third", "Second")]
    found: dict[tuple[str, str], list[str]] = {}
    for table, rate in tables:
        for name, partner, _, *cells in rows(table):
            if partner != "-":
                found.setdefault((name, rate), [name, partner, rate, *cells])
    page = (STUDY / "README.md").read_text()
    assert sorted(rows(page)) == sorted(found.values())
    compared = {int(name.split()[0]) for name, _ in found} - {0}
    assert f"{len(compared)} of the {len(STEPS) - 1}" in page


def test_the_effort_on_the_first_page_of_ratio_124m_is_the_sum() -> None:
    page, runs = ((STUDY / name).read_text() for name in ("README.md", "RESULTS.md"))
    hours = [float(x) for x in re.findall(r"([\d.]+) GPU\s+hours", runs)]
    energy = [float(x) for x in re.findall(r"([\d.]+) kWh", runs)]
    trained = [int(x) for x in re.findall(r"(\d+) runs,\s+took", runs)]
    assert len(hours) == len(energy) == 5 and len(trained) == 4
    assert f"{sum(trained)} runs took {sum(hours):.2f} GPU hours" in page
    assert f"and {sum(energy):.2f} kWh" in page


def test_learning_rates_of_ratio_124m_are_those_of_its_records(tmp_path: Path) -> None:
    cells_of = {
        int(name.split()[0]): cells for name, *cells in rows(section("Learning rates"))
    }
    tried = records("tuning/tuning.zip", tmp_path).runs
    (low,) = records("tuning-low/rate-2.5e-4.zip", tmp_path).runs
    for run, rate in [(low, 2.5e-4), *((r, r.coordinates[RATE]) for r in tried)]:
        cell = cells_of[run.row["step"]][[2.5e-4, 5e-4, 1e-3, 2e-3].index(rate)]
        loss = run.row.get("val_loss")
        assert cell == (f"{loss:.4f}" if is_done(run) else "not finished")


def test_the_first_block_of_ratio_124m_is_that_of_its_records(
    block: MatrixResults,
) -> None:
    page = section("First block")
    by_rate = dict(zip((5e-4, 1e-3), page.split("At 1e-3"), strict=True))
    its_table_is_right(block, by_rate)
    (gate,) = (
        c
        for c in judge(block).comparisons
        if c.arm.step == 19 and c.arm.coordinates[RATE] == 1e-3
    )
    found, later = gate.at_steps, gate.at_time
    text = " ".join(page.split())
    assert f"(pooled p {found.p_pooled:.3f}; " in text
    assert f"the paired t test alone has {found.p_holm:.3f})" in text
    assert f"{-later.mean:.3f} ahead and {later.grade} (p {later.p_holm:.3f})" in text
    front = (STUDY.parents[2] / "README.md").read_text().partition("## ")[0]
    assert rows(front)
    for name, _, *cells in rows(front):
        assert [name.split()[0], *cells] in [
            [cells[0].split()[0], *cells[2:]] for cells in rows(page)
        ]


def test_the_second_block_of_ratio_124m_is_that_of_its_records(
    second: MatrixResults,
) -> None:
    page = section("Second block")
    its_table_is_right(second, {5e-4: page})
    text = " ".join(page.split())
    compared = {c.arm.step: c for c in judge(second).comparisons}
    later = {step: c.at_time.mean for step, c in compared.items() if step != 9}
    assert "{:.3f}, {:.3f} and {:.3f} nats".format(*later.values()) in text
    assert {compared[step].at_time.grade for step in later} == {"INCONCLUSIVE"}
    gate = compared[21].at_steps
    low, high = min(gate.differences), max(gate.differences)
    assert f"by {low:.3f} to {high:.3f} nats" in text
    assert f"(pooled p {gate.p_pooled:.2f}, paired {gate.p:.3f})" in text


def test_the_third_block_of_ratio_124m_is_that_of_its_records(
    second: MatrixResults, third: MatrixResults, tmp_path: Path
) -> None:
    page = section("Third block")
    its_table_is_right(third, {5e-4: page})
    text = " ".join(page.split())
    compared = {c.arm.step: c for c in judge(third).comparisons}
    both = compared[7].at_steps
    low, high = sorted(-difference for difference in both.differences)[::2]
    assert f"by {low:.3f} to {high:.3f} nats (pooled p {both.p_pooled:.3f})" in text
    over_all = both.family_interval.high - both.mean
    assert f"whose interval over all arms is ±{over_all:.3f}" in text
    front = " ".join((STUDY.parents[2] / "README.md").read_text().split())
    assert f"(step 7, −{-both.mean:.3f}, pooled p {both.p_pooled:.3f} in" in front
    blocks = [str(matrix.root) for matrix in (second, third)]
    together = judge(read_matrix(merge(blocks, tmp_path / "both"))).comparisons
    (found,) = (c.at_steps for c in together if c.arm.step == 7)
    assert f"of the {len(together)} of the second and third block together" in text
    assert f"it would be {found.grade} (p {found.p_pooled:.2f})" in text
    wide = (compared[step].at_steps.mean for step in (2, 6))
    assert "by {:.3f} and {:.3f} nats with".format(*wide) in text
    gains = (-statistics.fmean(apart(third, 7, 6, n)) for n in (100, 200, 300, 400))
    assert "{:.3f}, {:.3f}, {:.3f} and {:.3f} after".format(*gains) in text
    assert (
        f"{-statistics.fmean(apart(third, 5, 0, 200)):.3f} nats at update 200" in text
    )
    of_baseline, of_wide = spread(third, 7, 0), spread(third, 4, 2)
    assert "{:.3f} nats ahead (±{:.3f})".format(*of_baseline) in text
    assert "{:.3f} nats better than step 2 (±{:.3f})".format(*of_wide) in text
    arms = {arm.step: arm for arm in judge(third).arms}
    slower = 1 - arms[7].mean("tokens_per_s") / arms[0].mean("tokens_per_s")
    assert f"{slower:.0%} fewer tokens per second" in text
    later = compared[7].at_time
    assert f"{later.mean:.3f} nats behind step 6 and {later.grade}" in text


def apart(matrix: MatrixResults, arm: int, partner: int, update: int) -> list[float]:
    """Difference of the validation losses of two steps, for each of three seeds."""
    losses = {
        (run.row["step"], run.row["seed"]): record["val_loss"]
        for run in matrix.runs
        for record in run.evals
        if record["step"] == update
    }
    return [losses[arm, seed] - losses[partner, seed] for seed in (1, 2, 3)]


def spread(matrix: MatrixResults, arm: int, partner: int) -> tuple[float, float]:
    """By how much an arm is better, and half of the 95% interval of three seeds."""
    differences = apart(matrix, arm, partner, 400)
    half = T_95_OF_3 * statistics.stdev(differences) / 3**0.5
    return -statistics.fmean(differences), half


def test_the_longer_training_of_ratio_124m_is_that_of_its_records(
    tmp_path: Path,
) -> None:
    """The run that was cut off was trained again, and the report merges both."""
    page = section("Longer training")
    bundles = [str(shutil.copy(path, tmp_path)) for path in STUDY.glob("long/*.zip")]
    matrix = read_matrix(merge(sorted(bundles), None))
    cells = {
        (int(name.split()[0]), seed): cell
        for name, *losses in rows(page)
        for seed, cell in enumerate(losses, 1)
    }
    assert all(map(is_done, matrix.runs))
    assert cells == {
        (run.row["step"], run.row["seed"]): f"{run.row['val_loss']:.4f}"
        for run in matrix.runs
    }
    text = " ".join(page.split())
    (found,) = judge(matrix).comparisons
    gate = found.at_steps
    half = (gate.interval.high - gate.interval.low) / 2
    assert (
        f"ahead by {-gate.mean:.4f} ± {half:.4f} nats: {gate.grade} (p {gate.p:.2f})"
    ) in text
    assert "are {:.3f}, {:.3f} and {:.3f}.".format(*gate.differences) in text
    early = -statistics.fmean(apart(matrix, 19, 0, 600))
    assert f"is {early:.3f} nats ahead at update 600" in text


def its_table_is_right(block: MatrixResults, tables: dict[float, str]) -> None:
    """tables: text by learning rate."""
    judged = judge(block)
    found = [
        *((c.arm, c.at_steps.mean, c.at_steps.grade) for c in judged.comparisons),
        *((c.arm, c.mean, c.grade) for c in judged.controls),
        *(
            (arm, None, "")
            for arm in judged.arms
            if arm.step == 0 and not arm.is_control
        ),
    ]
    assert sum(len(rows(table)) for table in tables.values()) == len(found)
    for arm, mean, grade in found:
        (cells,) = (
            cells
            for cells in rows(tables[float(str(arm.coordinates.get(RATE, 5e-4)))])
            if int(cells[0].split()[0]) == arm.step
            and ("A/A" in cells[0]) == arm.is_control
        )
        assert cells[2] == f"{arm.mean('val_loss'):.4f}"
        assert cells[3].startswith("-" if mean is None else f"{mean:+.4f}")
        assert cells[4].startswith(grade)


def test_the_effort_of_ratio_124m_is_that_of_its_records(
    block: MatrixResults, second: MatrixResults, third: MatrixResults
) -> None:
    """Sessions are the commands that ran it; each ended is as long as it took."""
    its_effort_is_right("first", "took three on one card", block, 3)
    its_effort_is_right("second", "took two commands on one card", second, 2)
    its_effort_is_right("third", "took one command on one card", third, 1)


def its_effort_is_right(
    name: str, took: str, block: MatrixResults, commands: int
) -> None:
    page = " ".join(section("Runs").split())
    sessions = [
        (line["event"], line["time"])
        for line in read_jsonl(block.root / "runner.jsonl")
        if line["kind"] == "session"
    ]
    assert [event for event, _ in sessions] == ["began", "ended"] * commands
    seconds = sum(time * (1 if event == "ended" else -1) for event, time in sessions)
    kwh = sum(run.row["energy_j"] for run in block.runs) / 3.6e6
    assert all(map(is_done, block.runs))
    assert (
        f"The {name} block, {len(block.runs)} runs, {took}: "
        f"{seconds / 60:.0f} minutes, {seconds / 3600:.2f} GPU hours, {kwh:.2f} kWh"
    ) in page
    codes = [run.manifest["provenance"]["git"]["sha"][:7] for run in block.runs]
    for commit, runs in Counter(codes).items():
        assert re.search(rf"\b{runs} (runs|others)\b[^.]* of (commit )?{commit}", page)


def test_the_own_best_of_ratio_124m_is_that_of_its_records(
    block: MatrixResults,
) -> None:
    best = judge(block).own_best
    assert len(rows(section("Each arm at its own best rate"))) == len(best.comparisons)
    for cells, found in zip(
        rows(section("Each arm at its own best rate")), best.comparisons, strict=True
    ):
        partner = f"{found.partner.step} at {RATES[found.partner.coordinates[RATE]]}"
        assert [int(cells[0].split()[0]), *cells[1:3]] == [
            found.arm.step,
            partner,
            RATES[found.arm.coordinates[RATE]],
        ]
        assert cells[3].startswith(f"{found.verdict.mean:+.4f}")
        assert cells[4].startswith(found.verdict.grade)


def test_the_noise_of_ratio_124m_is_that_of_runs_made_twice(
    block: MatrixResults, second: MatrixResults, third: MatrixResults, tmp_path: Path
) -> None:
    """Each run is compared with the last one before it of the same arm and seed."""
    before = losses(records("first-try/block-1.zip", tmp_path))
    before |= losses(records("tuning/tuning.zip", tmp_path))
    pairs = []
    for again in map(losses, (block, second, third)):
        pairs += [(key, again[key] - before[key]) for key in again if key in before]
        before |= again
    page = section("Noise")
    largest = 0.0
    for rate, name in RATES.items():
        twice = [difference for key, difference in pairs if key[-1] == rate]
        assert f"{len(twice)} at {name}" in page.replace(" times", "")
        assert f"{statistics.stdev(twice) / 2**0.5:.3f} at {name}" in page
        largest = max(largest, *map(abs, twice))
    assert f"the largest difference is {largest:.3f}," in page
    front = (STUDY.parents[2] / "README.md").read_text()
    assert f"differs by up to {largest:.3f} nats" in " ".join(front.split())


def losses(matrix: MatrixResults) -> dict[tuple[object, ...], float]:
    """Loss of each finished run by arm, seed and rate."""
    return {
        (
            run.run_dir.split("/")[0],
            run.row["seed"],
            run.coordinates.get(RATE, 5e-4),
        ): run.row["val_loss"]
        for run in matrix.runs
        if is_done(run)
    }
