"""Curves, checklist, table and GPU use: the parts of the report."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from gpt2.audit.finding import DIFFERS, AuditLine
from gpt2.audit.stamp import write_audit
from gpt2.plan.budget import budget
from gpt2.plan.planning import make_plan
from gpt2.report.arms import Arm, group_arms
from gpt2.report.checklist import checklist
from gpt2.report.columns import COLUMN
from gpt2.report.curves import MAX_POINTS, band
from gpt2.report.gpu_records import gpu_use
from gpt2.report.grades import Verdict
from gpt2.report.html import as_json
from gpt2.report.lines import difference_text, lines_of, p_text, ratio_of
from gpt2.report.markdown import escape
from gpt2.report.notes import remarks
from gpt2.report.plots import places
from gpt2.report.read_results import read_matrix
from gpt2.report.results import Run
from gpt2.report.terminal import terminal_report
from gpt2.report.verdicts import judge
from gpt2.settings.configuration import strict_kconfig
from lib import stats
from tests.results_factory import (
    DEVICE,
    pairing,
    pass_audits,
    write_matrix,
    write_run,
)

ROOT = Path(__file__).resolve().parents[3]
KCONFIG, PRESET = ROOT / "Kconfig", ROOT / "defconfigs" / "gpt2-quickstart"


def test_band_is_mean_least_and_greatest_where_all_seeds_have_values(tmp_path):
    write_matrix(tmp_path, (0,), (1, 2, 3), noise=0.1)
    arm = group_arms(read_matrix(tmp_path))[0]
    found = band(arm, "tokens")
    losses = [[r["val_loss"] for r in run.evals] for run in arm.runs]
    assert found.seeds == 3 and found.x == [r["tokens"] for r in arm.runs[0].evals]
    assert found.mean == pytest.approx(np.mean(losses, axis=0), rel=1e-6)
    assert found.low == pytest.approx(np.min(losses, axis=0), rel=1e-6)
    assert found.high == pytest.approx(np.max(losses, axis=0), rel=1e-6)


def run_with(points):
    evals = [{"step": x, "val_loss": y} for x, y in points]
    row = {"status": "running", "val_loss": None, "seed": 1, "step": 0, "name": "a"}
    return Run({**row, "title": None}, evals=evals)


def arm_with(*curves):
    return Arm(0, "a", "a", tuple(run_with(points) for points in curves))


def test_seeds_evaluated_at_other_steps_meet_in_between():
    found = band(
        arm_with([(0, 4.0), (10, 2.0)], [(0, 4.0), (5, 2.0), (20, 1.0)]), "step"
    )
    assert found.x == [0, 5, 10]
    assert found.mean == pytest.approx([4.0, 2.5, (2 + 5 / 3) / 2])


def test_differences_are_taken_seed_by_seed(tmp_path):
    """Effects common to the seeds cancel; a seed without a counterpart is left out."""
    write_matrix(tmp_path, (0,), (1, 2, 3), noise=0.1)
    write_matrix(tmp_path, (5,), (2, 3, 4), noise=0.1)
    base, arm = group_arms(read_matrix(tmp_path))
    found = band(arm, "step", base=base)
    losses = {
        (a.step, run.row["seed"]): np.array([r["val_loss"] for r in run.evals])
        for a in (base, arm)
        for run in a.runs
    }
    pairs = [losses[5, seed] - losses[0, seed] for seed in (2, 3)]
    assert found.seeds == 2
    assert found.low == pytest.approx(np.min(pairs, axis=0), abs=1e-6)
    assert found.mean == pytest.approx(np.mean(pairs, axis=0), abs=1e-6)
    assert set(band(base, "step", base=base).high) == {0.0}
    assert band(arm, "tokens", base=arm_with([(0, 1.0)])) is None


def test_band_of_nothing_is_none():
    assert band(arm_with([]), "step") is None
    assert band(arm_with([(0, 1.0)], [(5, 1.0)]), "step") is None
    assert band(arm_with([(0, 1.0)]), "seconds") is None


def test_long_curves_are_thinned_and_keep_their_ends():
    long = [(x, float(x)) for x in range(10_000)]
    found = band(arm_with(long), "step")
    assert len(found.x) == MAX_POINTS
    assert (found.x[0], found.x[-1]) == (0, 9999) and found.mean == found.x


def items(root):
    matrix = read_matrix(root)
    return {item.name: item for item in checklist(matrix, judge(matrix))}


def test_checklist_of_a_clean_matrix_is_all_in_order(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2, 3), control=0.0)
    pass_audits(tmp_path)
    assert [item for item in items(tmp_path).values() if not item.ok] == []


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("commit", {"provenance": {"git": {"sha": "other"}}}),
        ("commit", {"resumed": [{"git": {"sha": "later"}}]}),
        ("uncommitted changes", {"provenance": {"git": {"sha": "a", "dirty": True}}}),
        (
            "uncommitted changes",
            {"resumed": [{"git": {"sha": "a", "dirty": True}}]},
        ),
        ("hardware", {"device": {"name": "other"}}),
        ("hardware", {"resumed": [{"device": "other"}]}),
        ("hardware", {"world_size": 4}),
        ("versions", {"provenance": {"packages": {"torch": "1.0"}}}),
        ("versions", {"resumed": [{"packages": {"torch": "1.0"}}]}),
        ("effective batch", {"effective_batch": 1}),
        ("fp32 products", {"device": {**DEVICE, "float32_products": "highest"}}),
        ("fp32 products", {"resumed": [{"float32_products": "highest"}]}),
        ("torch.compile", {"compile": False}),
        ("data", {"data_fingerprint": "other"}),
        ("data", {"data_fingerprint": None}),
        ("certificates", {"verified": "skipped"}),
        ("pairing", {"pairing": {}}),
        ("pairing", {"pairing": pairing(9, 5)}),
    ],
)
def test_checklist_finds_what_is_out_of_order(tmp_path, name, change):
    write_matrix(tmp_path, (0,), (1, 2))
    write_matrix(tmp_path, (5,), (1, 2), manifest=change)
    if "verified" in change:
        for path in tmp_path.glob("step05*/seed*/manifest.json"):
            path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    found = items(tmp_path)[name]
    assert not found.ok and found.remark


def test_checklist_says_whether_every_number_was_recomputed(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2))
    assert items(tmp_path)["audit"].value == "none"
    pass_audits(tmp_path)
    assert items(tmp_path)["audit"].ok
    run_dir = tmp_path / "step05-ra" / "seed2"
    (run_dir / "metrics.jsonl").open("a").write("{}\n")
    assert items(tmp_path)["audit"].value == "passed (3 runs); stale (1 run)"
    write_audit(run_dir, [AuditLine("val_loss", DIFFERS)])
    assert items(tmp_path)["audit"].remark == "1 of 4 runs report wrong numbers"


@pytest.mark.parametrize("count", [1, 2])
def test_checklist_asks_for_three_seeds(tmp_path, count):
    write_matrix(tmp_path, (0,), (1, 2, 3))
    write_matrix(tmp_path, (5,), range(1, count + 1))
    assert "at least 3 seeds" in items(tmp_path)["seeds"].remark


def test_checklist_ticks_nothing_without_manifests(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2, 3))
    for path in tmp_path.glob("*/*/manifest.json"):
        path.unlink()
    ticked = {name for name, item in items(tmp_path).items() if item.ok}
    said = {"runs", "seeds", "precision", "training tokens", "alarms"}
    assert ticked == said


def test_ratio_is_that_of_the_settings():
    settings = strict_kconfig().load([PRESET])
    job = make_plan(settings).jobs[0]
    assert ratio_of(Run({}, job.to_json())) == pytest.approx(budget(job.settings).ratio)


@pytest.mark.parametrize(
    "settings", [None, 7, {"model": 7}, {"model": {"n_layer": []}}]
)
def test_ratio_of_foreign_settings_is_unknown(settings):
    assert ratio_of(Run({}, {"settings": settings})) is None


def test_differences_and_p_values_as_text():
    verdict = Verdict(mean=-0.01234, interval=stats.Interval(-0.02, -0.005))
    assert difference_text(verdict) == "−0.0123 ± 0.0075"
    assert difference_text(Verdict(mean=0.5)) == "+0.5000 (1 seed)"
    assert difference_text(Verdict()) == "–"
    assert [p_text(p) for p in (None, 0.0, 0.0123, 1.0)] == [
        "–", "<0.001", "0.012", "1.000",
    ]  # fmt: skip


def test_a_bootstrap_that_disagrees_is_remarked(tmp_path):
    write_matrix(tmp_path, (0, 5), range(5), noise=1e-9)
    judged = judge(read_matrix(tmp_path))
    (comparison,) = judged.comparisons
    t, other = stats.Interval(-2.0, -1.0), stats.Interval(-2.0, 0.5)
    for bootstrap, expected in ((other, 1), (t, 0), (None, 0)):
        verdict = Verdict(mean=-1.5, interval=t, bootstrap=bootstrap)
        changed = replace(comparison, at_steps=verdict)
        found = remarks(replace(judged, comparisons=[changed]))
        assert ["bootstrap" in what for _, what in found] == [True] * expected


def printed(matrix, width):
    """The lines of the report on a terminal of this width, and of its table."""
    from rich.console import Console

    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    table, *rest = terminal_report(matrix, judge(matrix), width)
    console.print(table)
    lines = console.export_text().splitlines()
    console.print(*rest)
    return lines, lines + console.export_text().splitlines()


def test_maxima_of_an_arm_are_the_largest_of_its_seeds(tmp_path):
    for seed, worst, peak in ((1, 0.01, 5), (2, 0.03, 9), (3, 0.02, 7)):
        result = {"as_trained": worst, "peak_memory_bytes": peak << 30}
        write_run(tmp_path, 0, seed, result=result)
    (line,) = lines_of(judge(read_matrix(tmp_path)))
    shown = {name: COLUMN[name].show(line) for name in result}
    assert shown == {"as_trained": "3e-02", "peak_memory_bytes": "9.0 GiB"}
    assert COLUMN["val_loss"].value(line) == line.arm.mean("val_loss")


@pytest.mark.parametrize("width", [40, 60, 72, 80, 100, 120])
def test_terminal_table_has_whole_columns_and_every_title(tmp_path, width):
    write_matrix(tmp_path, (0, 5, 8), (1, 2, 3), effects={5: 0.5})
    matrix = read_matrix(tmp_path)
    table, lines = printed(matrix, width)
    assert max(map(len, lines)) <= width
    assert not any("…" in line for line in table), "a number that is cut is another"
    assert re.search(r"step\s+what", "".join(table[1:2]))
    for word in ("GPT-2", "baseline", "RA,", "MLA,", "latent"):
        assert any(word in line for line in table), word
    verdicts = [line for line in table if "INCONCLUSIVE" in line or "HARMFUL" in line]
    assert len(verdicts) == 2
    assert ("difference" in table[1]) == (width >= 60)
    assert ("params" in table[1]) == (width >= 100)


CUT = {
    **{"heads": 16, "heads_left": 6, "heads_by_layer": "4 1 1", "heads_spared": 2},
    **{"kv_bytes_per_token": 768.0, "kv_bytes_per_token_before": 2048.0},
    **{"decode_seconds": 0.0009, "decode_seconds_before": 0.00123},
    **{"forward_seconds": 0.0301, "forward_seconds_before": 0.04},
    "sparsity": 0.2,
}


def test_a_terminal_too_narrow_for_the_table_shows_the_verdicts(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2, 3), effects={5: -0.5})
    parts = terminal_report(read_matrix(tmp_path), judge(read_matrix(tmp_path)), 20)
    shown = [str(part) for part in parts]
    assert any(text.startswith("5 ra: ▲ SUPPORTED, −0.5") for text in shown)


@pytest.mark.parametrize("width", [80, 120])
def test_removed_heads_are_told_with_what_they_brought(tmp_path, width):
    from rich.console import Console

    write_matrix(tmp_path, steps=(0,), seeds=(1, 2))
    for seed in (1, 2):
        write_run(tmp_path, 5, seed, result=CUT)
    matrix = read_matrix(tmp_path)
    judged = judge(matrix)
    (said,) = (what for label, what in remarks(judged) if "heads left" in what)
    assert said == (
        "6 of 16 heads left (by layer, seed 1: 4 1 1; seed 2: 4 1 1), 2 more were "
        "due, but each layer keeps one; decode cache 2.0 KiB → 768 B per token, "
        "decoding 1.23 ms → 0.90 ms per token, forward 40.00 ms → 30.10 ms per pass"
    )
    console = Console(width=width, record=True, file=open("/dev/null", "w"))
    for part in terminal_report(matrix, judged, width):
        console.print(part)
    text = console.export_text()
    assert "6 of 16" in text and "removed from the exported models" in text
    assert "INCONCLUSIVE" in text or "NEUTRAL" in text, "the verdict is whole"
    assert "bring no speed" not in text  # it is what zeros that stay bring


def test_the_first_baseline_has_the_first_place_in_the_palette(tmp_path):
    write_matrix(tmp_path, (5, 0, 8), (1, 2))
    assert places(judge(read_matrix(tmp_path))) == {
        "0 baseline": 0,
        "5 ra": 1,
        "8 mla": 2,
    }


def test_gpu_use_is_thinned_and_tolerates_what_it_does_not_know(tmp_path):
    directory = write_run(tmp_path, 0, 1)
    gpu = {"index": 1, "name": "X", "utilisation": 50.0, "power_w": None}
    lines = [{"seconds": 60.0 * n, "gpus": [gpu, "junk"]} for n in range(1000)]
    odd = [{"seconds": "x", "gpus": []}, {"gpus": 7}]
    text = "".join(json.dumps(line) + "\n" for line in odd + lines)
    (directory / "gpu.jsonl").write_text(text)
    matrix = read_matrix(tmp_path)
    (found,) = gpu_use(matrix, matrix.runs[0])
    assert found["name"] == "1: X" and len(found["minutes"]) <= 300
    assert set(found["utilisation"]) == {50.0} and set(found["power_w"]) == {None}


def test_json_in_a_page_cannot_leave_its_element():
    value = {"</script>": "<!--&\u2028", "nan": float("nan")}
    found = as_json(value)
    assert not set("<>&\u2028") & set(found)
    assert json.loads(found) == {"</script>": "<!--&\u2028", "nan": None}


@pytest.mark.parametrize(
    "text", ["a|b", "<b>", "`x`", "[a](b)", "**b**", "~~s~~", "&lt;"]
)
def test_markdown_escapes(text):
    found = escape(text)
    assert "|" not in found.replace("\\|", "") and "<" not in found
    assert "&lt;" not in found or text != "&lt;"
