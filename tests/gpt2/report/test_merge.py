"""Results folders of one study that were made apart, merged."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from gpt2.plan.names import MATRIX_FILE, RUNNER_FILE
from gpt2.report.merge import merge, sources_of
from gpt2.report.read_results import read_matrix
from gpt2.report.timeline_report import read_timeline
from gpt2.run.sessions import note_lost
from lib.atomic_files import append_jsonl
from tests.results_factory import DEVICE, relabel, settings, write_matrix, write_run


def contents(root: Path) -> dict[str, str]:
    """Hash of each file below a folder."""
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file()
    }


def merged(*roots: Path, out: Path | None = None) -> tuple[Path, list[str]]:
    folder = merge([str(root) for root in roots], out)
    return folder, read_matrix(folder).merged


def test_arms_and_seeds_come_together_and_sources_stay(tmp_path: Path) -> None:
    a = write_matrix(tmp_path / "a", (0, 5), (1, 2))
    b = write_matrix(tmp_path / "b", (0, 8), (2, 3))
    before = contents(tmp_path)
    folder, notes = merged(a, b)
    assert folder == tmp_path / "a-merged"
    found = {(run.row["step"], run.row["seed"]) for run in read_matrix(folder).runs}
    assert found == {(0, 1), (0, 2), (0, 3), (5, 1), (5, 2), (8, 2), (8, 3)}
    assert notes[0] == f"Merged runs: 4 of {a}, 3 of {b}"
    assert "runs finished more than once, alike: 1" in notes
    after = contents(tmp_path)
    assert {name: after[name] for name in before} == before
    # Again, after a run was added: the earlier merged folder is replaced.
    write_run(b, 8, 4)
    assert len(read_matrix(merged(a, b)[0]).runs) == 8


def test_of_two_the_one_that_is_done_and_differing_results_are_named(
    tmp_path: Path,
) -> None:
    a, b = tmp_path / "a", tmp_path / "b"
    write_run(a, 0, 1, status="failed", failure="oom", updates=60)
    write_run(b, 0, 1)
    write_run(a, 0, 2)
    write_run(b, 0, 2, effect=0.25)
    folder, notes = merged(a, b)
    first, second = read_matrix(folder).runs
    assert (first.row["status"], second.row["status"]) == ("done", "done")
    (note,) = [note for note in notes if "finished 2 times" in note]
    assert "step00-baseline/seed2 was finished 2 times, with different results" in note
    assert note.endswith(f"taken from {a}")
    assert second.row["val_loss"] == read_matrix(a).runs[1].row["val_loss"]


def test_runs_that_are_only_planned_elsewhere_were_all_taken(tmp_path: Path) -> None:
    """Each folder lists all jobs of the study, and has run its own."""
    roots = [write_matrix(tmp_path / f"{n}", (0,), (n,)) for n in (1, 2)]
    jobs = [dict(run.job) for root in roots for run in read_matrix(root).runs]
    jobs.append(jobs[1] | {"seed": 3})  # which was not run anywhere
    for seed, job in enumerate(jobs, 1):
        job["run_dir"] = f"step00-baseline/seed{seed}"
    for root in roots:
        (root / MATRIX_FILE).write_text(json.dumps({"jobs": jobs}))
        assert len(read_matrix(root).runs) == 3
    folder, notes = merged(*roots)
    assert [run.on_disk for run in read_matrix(folder).runs] == [True, True, False]
    assert notes == [f"Merged runs: 1 of {roots[0]}, 1 of {roots[1]}"]


def test_the_commands_that_ran_the_sources_are_known(tmp_path: Path) -> None:
    """Time between two commands is not a gap; a killed one ends with its last run."""
    a = write_matrix(tmp_path / "a", (0,), (1, 2))
    b = write_matrix(tmp_path / "b", (0,), (2, 3))
    began = {"kind": "session", "event": "began", "places": ["host:0"]}
    append_jsonl(a / RUNNER_FILE, {**began, "time": 1e9})
    for name, time in (("started", 1e9 + 1), ("ended", 1e9 + 9)):
        phase = {"kind": "phase", "name": name, "time": time}
        append_jsonl(a / "step00-baseline" / "seed1" / "metrics.jsonl", phase)
    note_lost(a, "host:1", "it fell off the bus")
    append_jsonl(b / RUNNER_FILE, {**began, "time": 2e9})
    append_jsonl(b / RUNNER_FILE, {**began, "event": "ended", "time": 2e9 + 60})
    folder, notes = merged(a, b)
    assert notes[-1] == "runs not taken, whose time counts as idle: 1"
    found = read_timeline(read_matrix(folder))
    apart = [read_timeline(read_matrix(source)) for source in (a, b)]
    assert found.sessions == [x for each in apart for x in each.sessions]
    spans = [(session.start, session.end) for session in found.sessions]
    assert spans[0] == (1e9, 1e9 + 9) and spans[1] == (2e9, 2e9 + 60)
    assert found.notes == apart[0].notes and "fell off the bus" in found.notes[0]
    again = merge([str(folder), str(write_matrix(tmp_path / "c", (5,), (1,)))], None)
    assert read_timeline(read_matrix(again)).sessions == found.sessions


def test_what_differs_between_machines_is_said(tmp_path: Path) -> None:
    a = write_matrix(tmp_path / "a", (0,), (1,))
    h100 = {"device": {**DEVICE, "name": "NVIDIA H100"}, "mlp_backend": "triton"}
    b = write_matrix(tmp_path / "b", (0, 5), (2,), manifest=h100)
    _, notes = merged(a, b)
    text = "\n".join(notes)
    assert f"different hardware: 1 x NVIDIA A10G in {a}; 1 x NVIDIA H100 in {b}" in text
    assert "different MLP backend for step00-baseline: torch in" in text
    assert "step05" not in text and "versions" not in text


def test_other_settings_of_an_arm_are_refused_with_the_difference(
    tmp_path: Path,
) -> None:
    a = write_matrix(tmp_path / "a", (0, 5), (1,))
    b = write_matrix(tmp_path / "b", (0,), (1,))
    write_run(b, 5, 2, job={"settings": settings(5, ra_window=16)})
    with pytest.raises(
        ValueError, match=r"step05-ra has different.*\n.*RA_MLA_RA_WINDOW +Non"
    ):
        merged(a, b)
    assert not (tmp_path / "a-merged").exists()
    assert not list(tmp_path.glob(".a-merged*"))


def test_other_partners_and_names_of_a_step_are_refused(tmp_path: Path) -> None:
    a = write_matrix(tmp_path / "a", (0, 5), (1,))
    run = write_run(tmp_path / "b", 5, 2)
    relabel(run, parent=2)
    with pytest.raises(ValueError, match=r"step05-ra has different.*\n +parent +0 in"):
        merged(a, tmp_path / "b")
    relabel(run, parent=0, name="mine")
    run.parent.rename(run.parent.with_name("step05-mine"))
    with pytest.raises(ValueError, match=r"step 5 is not the same\n.*step05-mine in"):
        merged(a, tmp_path / "b")


def test_another_configuration_is_refused(tmp_path: Path) -> None:
    for name, rate in (("a", 1e-3), ("b", 2e-3)):
        write_matrix(tmp_path / name, (0 if name == "a" else 5,), (1,))
        matrix = {"base": {"optim": {"learning_rate": rate}}, "jobs": []}
        (tmp_path / name / "matrix.json").write_text(json.dumps(matrix))
    with pytest.raises(
        ValueError, match=r"one study\n.*LEARNING_RATE +0.001 in .*0.002"
    ):
        merged(tmp_path / "a", tmp_path / "b")


def test_places_that_cannot_be_written_or_read(tmp_path: Path) -> None:
    a = write_matrix(tmp_path / "a", (0,), (1,))
    b = write_matrix(tmp_path / "b", (0,), (2,))
    (tmp_path / "c").mkdir()
    for out, message in (
        (a, "within each other"),
        (tmp_path, "within each other"),
        (b / "x", "within each other"),
        (tmp_path / "c", "not a folder of merged results"),
    ):
        with pytest.raises(ValueError, match=message):
            merged(a, b, out=out)
    with pytest.raises(ValueError, match="twice"):
        merged(a, a)
    with pytest.raises(ValueError, match="not a results folder"):
        merged(a, tmp_path / "c")
    with pytest.raises(ValueError, match="not a results folder"):
        merged(a, b / "step00-baseline" / "seed2")
    folder, _ = merged(a, b)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match="notes.txt, which a merge did not write"):
        merged(a, b)
    assert (folder / "notes.txt").read_text() == "mine"


def test_links_in_a_source_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("secret")
    a = write_matrix(tmp_path / "a", (0,), (1,))
    b = write_matrix(tmp_path / "b", (0,), (2,))
    log = b / "step00-baseline" / "seed2" / "train.log"
    log.unlink()
    os.symlink(secret, log)
    folder, _ = merged(a, b)
    assert not (folder / "step00-baseline" / "seed2" / "train.log").exists()


def test_names_with_a_comma_are_one_folder_if_they_exist(tmp_path: Path) -> None:
    (tmp_path / "a,b").mkdir()
    assert sources_of(f"{tmp_path}/a,b") == [f"{tmp_path}/a,b"]
    assert sources_of("a, b.zip,") == ["a", "b.zip"]
    with pytest.raises(ValueError, match="RESULTS=' ,' names no folder"):
        sources_of(" ,")
    study = tmp_path / "study"
    study.mkdir()
    assert sources_of(str(study)) == [str(study)], "which says that there are no runs"
    for name in ("block-2.zip", "block-1.zip", "README.md"):
        (study / name).touch()
    assert sources_of(str(study)) == [f"{study}/block-1.zip", f"{study}/block-2.zip"]
    (study / MATRIX_FILE).touch()  # its own runs come first
    assert sources_of(str(study)) == [str(study)]
