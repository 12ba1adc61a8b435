"""Published studies: their pages say what their records say."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from gpt2.report.arms import is_done
from gpt2.report.bundle import open_bundle
from gpt2.report.read_results import read_matrix
from gpt2.report.results import MatrixResults
from gpt2.report.verdicts import judge

STUDY = Path(__file__).resolve().parents[1] / "docs" / "studies" / "ratio-124m"


def records(bundle: Path, folder: Path) -> MatrixResults:
    return read_matrix(open_bundle(Path(shutil.copy(bundle, folder))))


def rows(page: str) -> dict[str, list[str]]:
    """Cells of the rows of its tables, by the first one."""
    found = [
        [cell.strip(" *") for cell in line.strip("|").split("|")]
        for line in page.splitlines()
        if re.match(r"\| \d", line)
    ]
    return {cells[0]: cells[1:] for cells in found}


def test_the_page_of_ratio_124m_has_the_numbers_of_its_records(tmp_path: Path) -> None:
    rates, block = (STUDY / "README.md").read_text().split("**First block**")
    tuned = records(STUDY / "tuning" / "tuning.zip", tmp_path)
    said = rows(rates)
    for run in tuned.runs:
        rate = run.coordinates["learning_rate"]
        cells = next(
            c for name, c in said.items() if int(name.split()[0]) == run.row["step"]
        )
        cell = cells[[5e-4, 1e-3, 2e-3].index(rate)]
        loss = run.row.get("val_loss")
        assert cell == (f"{loss:.4f}" if is_done(run) else "not finished")

    judged = judge(records(STUDY / "block-1.zip", tmp_path))
    found = {c.arm.step: c for c in judged.comparisons if not c.arm.is_control}
    said = rows(block)
    for name, (_, loss, difference, verdict) in said.items():
        arm_step = int(name.split()[0])
        if arm_step not in found:
            continue
        comparison = found[arm_step]
        assert loss == f"{comparison.arm.mean('val_loss'):.4f}"
        mean = comparison.at_steps.mean
        assert mean is not None and difference.startswith(f"{mean:+.4f}")
        assert verdict.startswith(comparison.at_steps.grade)
