"""Files of a run that were edited, damaged or taken away: each is named."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from gpt2.audit.corpus import open_text
from gpt2.audit.costs import cost_findings
from gpt2.audit.evidence import NothingToAudit, alarm_findings, read_evidence
from gpt2.audit.finding import DIFFERS, LEFT_OUT, NOT_CHECKED, OK, PASSED, AuditLine
from gpt2.audit.records import bits_per_byte, record_findings
from gpt2.audit.stamp import NONE, STALE, audit_state, write_audit
from gpt2.audit.tables import results_folder, table_findings
from gpt2.audit.times import epoch_findings, time_findings
from gpt2.audit.weights import export_findings, prunable, read_export, shapes_of
from gpt2.infer.trained import load_trained
from gpt2.model.gpt import GPT
from gpt2.plan.jobs import identity_of
from gpt2.report.read_results import read_matrix
from gpt2.report.summary import write_summary
from gpt2.settings.parse import settings_from_dict
from gpt2.settings.records import BEFORE
from gpt2.train import build_optimizer
from lib.hashing import identity
from tests.gpt2.audit.runs import audit, differing, edit, edit_records, edit_result
from tests.gpt2.helpers import tiny_step


@pytest.fixture
def run_dir(done: Path, tmp_path: Path) -> Path:
    """A copy to change, in a results folder."""
    place = tmp_path / "results" / "single" / "seed1337"
    return Path(shutil.copytree(done, place))


def without_losses(run_dir: Path) -> list[AuditLine]:
    """All findings that take no computation of a loss."""
    evidence = read_evidence(run_dir)
    settings = evidence.settings
    data_dir = Path(settings.resources.data_dir)
    text = open_text(settings, data_dir, evidence.manifest["data_fingerprint"])
    export = read_export(run_dir / "model.safetensors", settings)
    assert text.val_bytes is not None
    return [
        *record_findings(evidence),
        *time_findings(evidence),
        *alarm_findings(evidence),
        *epoch_findings(evidence, len(text.train)),
        bits_per_byte(evidence, len(text.val), text.val_bytes),
        *export_findings(evidence, export),
        *cost_findings(evidence, None),
    ]


BOUNDED = (
    "seconds",
    "train_seconds",
    "data_wait_share",
)  # no second source, but bounds


def test_every_number_of_a_result_is_held_to_something(run_dir, audited):
    """One after the other is made larger by a tenth in status.json."""
    before = json.loads((run_dir / "status.json").read_text())["result"]
    left_out = {f.figure for f in audited.findings if f.state == LEFT_OUT}
    assert differing(without_losses(run_dir)) == set()
    for name, value in before.items():
        factor = 1000 if name in BOUNDED else 1.1
        edit_result(run_dir, **{**before, name: value * factor})
        is_named = name in differing(without_losses(run_dir))
        assert is_named == (name not in left_out), name
    assert len(before) > len(left_out) + 12


RECORDED = {
    "train": {
        "step": "updates behind each training loss",
        "tokens": "tokens of each record",
        "loss": "training loss = sum / updates",
        "loss_sum": "training loss = sum / updates",
        "updates": "updates behind each training loss",
        "lr": "learning rates",
        "tokens_per_s": "tokens per second of each record",
        "train_seconds": "tokens per second of each record",
    },
    "eval": {
        "step": "steps with an evaluation",
        "tokens": "tokens of each record",
        "val_loss": "perplexity = exp(validation loss)",
        "val_perplexity": "perplexity = exp(validation loss)",
        "bits_per_byte": "bits per byte of each evaluation",
        "seconds": "order of times",
    },
    "epoch": {
        "step": "epochs that ended",
        "epoch": "number of each epoch",
        "epoch_seconds": "seconds of each epoch",
    },
}
EACH = [(k, name, figure) for k in RECORDED for name, figure in RECORDED[k].items()]


@pytest.mark.parametrize(("kind", "name", "figure"), EACH)
def test_every_number_of_a_record_is_held_to_something(run_dir, kind, name, figure):
    """In all records of a kind it is made larger by a tenth, or by one; a time by far
    more, as only the order of times is known."""
    factor = 1e4 if name == "seconds" else 1.1

    def change(record: dict[str, Any]) -> None:
        if record["kind"] == kind:
            is_whole = isinstance(record[name], int)
            record[name] = record[name] + 1 if is_whole else record[name] * factor

    edit_records(run_dir, change)
    assert figure in differing(without_losses(run_dir))


def test_alarms_that_the_status_hides_are_named(run_dir):
    line = json.dumps({"kind": "alarm", "step": 3, "message": "odd"}) + "\n"
    (run_dir / "metrics.jsonl").open("a").write(line)
    assert "alarms" in differing(without_losses(run_dir))


def test_use_of_a_gpu_is_recomputed(run_dir):
    """MFU from the peak of a card, energy from the readings of two."""
    edit(run_dir / "job.json", lambda job: change_precision(job, "bf16"))
    device = {"backend": "cuda", "name": "NVIDIA A10G", "compute_units": 80}
    edit(run_dir / "manifest.json", lambda m: m.update(device=device, world_size=2))
    result = json.loads((run_dir / "status.json").read_text())["result"]
    peak = 2 * 70e12
    flops = result["flops_per_token"]

    def with_mfu(record: dict[str, Any]) -> None:
        if record["kind"] == "train":
            record["mfu"] = flops * record["tokens_per_s"] / peak

    edit_records(run_dir, with_mfu)
    powers = [(0.0, 100.0), (1.0, 200.0), (2.0, 100.0), (60.0, 100.0), (61.0, 300.0)]
    lines = [
        {"seconds": s, "gpus": [{"index": n, "power_w": w + n} for n in (0, 1)]}
        for s, w in powers
    ]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    (run_dir / "gpu.jsonl").write_text(text)
    joules = 2 * (150 + 150 + 200) + 3  # not over the gap of 58 s
    right = {
        "mfu": flops * result["tokens_per_s"] / peak,
        "energy_j": joules,
        "energy_j_per_mtoken": joules / result["tokens"] * 1e6,
        "kv_bytes_per_token": result["kv_bytes_per_token"] / 2,
    }
    edit_result(run_dir, **right)
    found = list(cost_findings(read_evidence(run_dir), None))
    assert {f.figure for f in found} >= {*right, "mfu of each record"}
    assert differing(found) == set()
    edit_result(run_dir, mfu=2 * right["mfu"], energy_j=joules / 2)
    found = list(cost_findings(read_evidence(run_dir), None))
    assert differing(found) == {"mfu", "energy_j"}


def change_precision(job: dict[str, Any], precision: str) -> None:
    """In a job, with the hash that then is its own."""
    job["settings"]["optim"]["mixed_precision"] = precision
    settings = settings_from_dict(job["settings"])
    job["hash"] = identity(identity_of(settings, job["seed"]))


# ---- damage -----------------------------------------------------------------------


def test_a_run_of_an_older_version_is_audited_and_loaded(run_dir):
    def age(parts: dict[str, Any]) -> dict[str, Any]:
        newer = {*BEFORE, "sweep", "prepare_ahead"}
        return {
            part: {n: v for n, v in values.items() if n not in newer}
            for part, values in parts.items()
        }

    edit(run_dir / "job.json", lambda job: job.update(settings=age(job["settings"])))
    path = run_dir / "model.safetensors"
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
    metadata["settings"] = json.dumps(age(json.loads(metadata["settings"])))
    save_file(load_file(path), path, metadata=metadata)
    assert not differing(without_losses(run_dir))
    assert load_trained(run_dir).job == read_evidence(run_dir).job


def test_a_run_that_is_not_finished_or_not_known_is_refused(run_dir, tmp_path):
    with pytest.raises(NothingToAudit, match=r"status.json: missing"):
        audit(tmp_path)
    edit(run_dir / "job.json", lambda job: job.update(seed=2))
    with pytest.raises(NothingToAudit, match="hash does not match"):
        audit(run_dir)
    (run_dir / "job.json").write_text("{")
    with pytest.raises(NothingToAudit, match=r"job.json: not JSON"):
        audit(run_dir)
    edit(run_dir / "status.json", lambda status: status.update(status="running"))
    with pytest.raises(NothingToAudit, match="not finished: its status is 'running'"):
        audit(run_dir)


@pytest.mark.parametrize("name", ["metrics.jsonl", "manifest.json"])
def test_a_missing_file_is_named_and_nothing_passes_for_it(run_dir, name):
    (run_dir / name).unlink()
    found = audit(run_dir)
    assert AuditLine(name, NOT_CHECKED, reason="missing") in found.findings
    assert found.verdict != PASSED


@pytest.mark.parametrize("budget", ["", "1h"])
def test_nothing_is_within_bounds_where_nothing_is_recorded(run_dir, budget):
    evidence = read_evidence(run_dir)
    job = replace(evidence.job, settings=evidence.settings.replace(time_budget=budget))
    nothing = replace(evidence, job=job, trains=[], evals=[], epochs=[])
    found = {x.figure: x for x in (*record_findings(nothing), *time_findings(nothing))}
    for figure in ("learning rates", "order of times"):
        assert found[figure].state == NOT_CHECKED
        assert found[figure].reason == "there is no such record"


@pytest.mark.parametrize(
    ("name", "text", "reason"),
    [
        ("metrics.jsonl", '{"kind": "train"}\n{"ki\n{}\n', "the first is line 2"),
        ("model.safetensors", "not one", "not readable"),
        ("manifest.json", "[]", "not a JSON object"),
    ],
)
def test_a_damaged_file_is_named(run_dir, name, text, reason):
    (run_dir / name).write_text(text)
    found = audit(run_dir, own_data=False)
    (finding,) = (f for f in found.findings if f.figure == name)
    assert finding.state in (DIFFERS, NOT_CHECKED) and reason in finding.reason
    assert found.verdict != PASSED


def change_tensor(run_dir: Path, name: str, make: Any) -> None:
    path = run_dir / "model.safetensors"
    weights = load_file(path)
    weights[name] = make(weights[name])
    save_file(weights, path)


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda w: w[:-1].contiguous(), "has shape"),
        (lambda w: w * torch.nan, "not finite"),
    ],
)
def test_an_export_of_another_shape_or_without_numbers_is_named(run_dir, make, reason):
    change_tensor(run_dir, "wpe.weight", make)
    found = audit(run_dir, own_data=False)
    (finding,) = (f for f in found.findings if f.figure == "model.safetensors")
    assert finding.state == DIFFERS and reason in finding.reason


def test_other_text_than_the_run_was_trained_on_is_not_used(run_dir, data_dir):
    edit(run_dir / "manifest.json", lambda m: m.update(data_fingerprint="0" * 16))
    found = audit(run_dir)
    reasons = {f.figure: f.reason for f in found.findings if f.state == NOT_CHECKED}
    assert "has other text" in reasons["validation loss of the export"]
    assert found.verdict == "incomplete"


def test_a_stranger_cannot_make_an_audit_break_off(run_dir):
    """Values of any type: what they stand in is named, nothing is raised."""
    edit_result(run_dir, val_loss="high", tokens=True, seconds=[1], sparsity={"a": 1})
    edit_records(run_dir, lambda r: r.update(step=None, tokens="many", val_loss=[]))
    found = audit(run_dir, own_data=False)
    assert found.verdict == DIFFERS


# ---- tables and audit.json --------------------------------------------------------


def test_the_tables_of_a_results_folder_have_the_numbers_of_its_runs(run_dir):
    root = run_dir.parents[1]
    assert results_folder(read_evidence(run_dir)) is None
    edit(run_dir / "job.json", lambda job: job.update(run_dir="single/seed1337"))
    assert results_folder(read_evidence(run_dir)) is None
    write_summary(read_matrix(root, curves=False))
    assert results_folder(read_evidence(run_dir)) == root
    states = {f.figure: f.state for f in table_findings(read_evidence(run_dir))}
    assert states == {"summary.json": OK, "results.csv": OK}
    edit_result(run_dir, best_val_loss=1.5)
    found = list(table_findings(read_evidence(run_dir)))
    assert differing(found) == {"summary.json", "results.csv"}
    assert all("best_val_loss" in finding.reason for finding in found)
    (root / "results.csv").unlink()
    edit(root / "summary.json", lambda summary: summary.update(runs=[]))
    found = list(table_findings(read_evidence(run_dir)))
    assert {finding.state for finding in found} == {NOT_CHECKED}


def test_an_audit_is_of_the_files_that_it_was_made_of(run_dir, tmp_path):
    assert audit_state(run_dir) == NONE
    write_audit(run_dir, [AuditLine("val_loss", OK)])
    assert audit_state(run_dir) == PASSED
    copy = shutil.copytree(run_dir, tmp_path / "copy", copy_function=shutil.copy)
    assert audit_state(Path(copy)) == PASSED  # other times, the same bytes
    for name in ("metrics.jsonl", "status.json", "job.json", "model.safetensors"):
        kept = (run_dir / name).read_bytes()
        (run_dir / name).write_bytes(kept[:-1] + b" ")
        assert audit_state(run_dir) == STALE, name
        (run_dir / name).write_bytes(kept)
        assert audit_state(run_dir) == PASSED, name
    (run_dir / "audit.json").write_text("[]")
    assert audit_state(run_dir) == STALE
    write_audit(run_dir, [AuditLine("val_loss", OK), AuditLine("x", NOT_CHECKED)])
    assert audit_state(run_dir) == "incomplete"


# ---- what is counted --------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 4, 16, 19, 25, 27, 28, 30])
def test_prunable_weights_are_those_of_the_pruner(step):
    settings = tiny_step(step)
    expected = build_optimizer.prunable(GPT(settings))
    shapes = {n: torch.empty(s, device="meta") for n, s in shapes_of(settings).items()}
    assert set(prunable(shapes)) == set(expected)
