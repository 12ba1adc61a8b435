"""gpt2/run/results_dir.py: the results folder, what is already there, and what
stays."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from gpt2.plan.jobs import Plan
from gpt2.plan.names import MATRIX_FILE
from gpt2.plan.planning import make_plan
from gpt2.report.read_results import read_matrix
from gpt2.run.conflicts import check, refusal
from gpt2.run.progress import plan_states
from gpt2.run.results_dir import (
    STOP_FILE,
    MatrixError,
    ask_to_stop,
    begun_in,
    held,
    kept_jobs,
    matrix_lock,
    open_folder,
    read_matrix_file,
    render_matrix_file,
    set_aside,
    update,
)
from gpt2.run.tasks import task_of
from lib import atomic_files
from lib.jobs import run_files
from tests.tinymatrix import TINY, write_config

Make = Callable[..., Plan]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """The plan of TINY with lines replaced or added; paths are in tmp_path."""
    monkeypatch.chdir(tmp_path)

    def plan(**lines: str) -> Plan:
        kept = [line for line in TINY.splitlines() if name_of(line) not in lines]
        own = [f"CONFIG_{name}={value}" for name, value in lines.items()]
        text = "\n".join([*kept, *own, ""])
        return make_plan(write_config(tmp_path, text))

    return plan


def name_of(line: str) -> str:
    return line.partition("=")[0].removeprefix("CONFIG_")


def create(plan: Plan) -> Plan:
    """Make the results folder of the plan, as a runner does; the plan."""
    files = {"config.py": "", MATRIX_FILE: render_matrix_file(plan)}
    open_folder(plan.output_dir, files)
    return plan


def begin(plan: Plan, *which: int) -> None:
    """As if these jobs had been started."""
    for number in which:
        task = task_of(plan.jobs[number], plan.output_dir, "passed")
        for name, text in task.files.items():
            atomic_files.atomic_write_text(task.run_dir / name, text)
        run_files.write_status(task.run_dir, status="interrupted")


# ---- the folder -----------------------------------------------------------------


def test_the_folder_appears_whole(make: Make) -> None:
    plan = create(make())
    names = sorted(p.name for p in plan.output_dir.iterdir())
    assert names == ["config.py", "matrix.json"]
    found = read_matrix_file(plan.output_dir)
    assert [job["run_dir"] for job in found["jobs"]] == [
        "step00-baseline/seed1",
        "step00-baseline/seed2",
        "step05-ra/seed1",
        "step05-ra/seed2",
    ]
    assert found["provenance"]["packages"]["torch"]
    assert not list(plan.output_dir.parent.glob(".results*"))


def test_an_existing_matrix_is_not_touched(make: Make) -> None:
    plan = create(make())
    before = (plan.output_dir / MATRIX_FILE).read_bytes()
    open_folder(plan.output_dir, {MATRIX_FILE: "other"})
    assert (plan.output_dir / MATRIX_FILE).read_bytes() == before


@pytest.mark.parametrize("is_damaged", [False, True])
def test_a_folder_of_results_folders_is_not_one_itself(
    make: Make, tmp_path: Path, is_damaged: bool
) -> None:
    """As the folder of a checkout, with a configuration that is not to be replaced, and
    with a run that another runner may be preparing."""
    outer = make(OUTPUT_DIR='"outer"')
    inner = create(make(OUTPUT_DIR='"outer/results"'))
    begin(inner, 0)
    run_dir = inner.output_dir / inner.jobs[0].run_dir
    if is_damaged:
        (run_dir / run_files.JOB_FILE).write_text("{")
    (outer.output_dir / "config.py").write_text("mine")
    with pytest.raises(MatrixError, match="without matrix.json, not a results folder"):
        with held(outer, {"config.py": "other"}):
            pass
    (outer.output_dir / "matrix.json").write_text('{"jobs": []}')
    (run_dir / run_files.EARLY_FILE).touch()
    assert begun_in(outer.output_dir) == []
    with held(outer, {}):
        assert (run_dir / run_files.JOB_FILE).exists()
    assert (outer.output_dir / "config.py").read_text() == "mine"


def test_a_folder_of_something_else_is_refused(make: Make) -> None:
    plan = make()
    plan.output_dir.mkdir()
    (plan.output_dir / "thesis.tex").write_text("years of work")
    with pytest.raises(MatrixError, match="OUTPUT_DIR=.*, not a results folder"):
        create(plan)
    assert [p.name for p in plan.output_dir.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("name", ["file", "file/below", "/proc/below"])
def test_a_place_for_no_folder_is_refused_by_its_setting(
    make: Make, tmp_path: Path, name: str
) -> None:
    plan = make()
    (tmp_path / "file").write_text("kept")
    plan = replace(plan, output_dir=tmp_path / name)
    with pytest.raises(MatrixError, match=f"OUTPUT_DIR={plan.output_dir}") as refused:
        create(plan)
    assert "Choose another OUTPUT_DIR" in str(refused.value)
    assert ".tmp" not in str(refused.value) and "Errno" not in str(refused.value)
    with pytest.raises(MatrixError, match="OUTPUT_DIR=|nothing was run yet"):
        read_matrix_file(plan.output_dir)
    assert "nothing is running" in ask_to_stop(plan.output_dir)
    assert (tmp_path / "file").read_text() == "kept"


def test_an_empty_folder_is_used_be_it_a_link(make: Make, tmp_path: Path) -> None:
    plan = make()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / ".matrix.json.0123.tmp").touch()  # a killed writer's
    plan.output_dir.symlink_to(tmp_path / "elsewhere")
    create(plan)
    assert (tmp_path / "elsewhere" / MATRIX_FILE).exists()
    assert plan.output_dir.is_symlink()


def test_of_many_at_once_one_makes_the_folder(tmp_path: Path) -> None:
    folder, barrier = tmp_path / "results", threading.Barrier(8)

    def create_it(n: int) -> None:
        barrier.wait()
        open_folder(folder, {MATRIX_FILE: str(n), "config.py": str(n)})

    threads = [threading.Thread(target=create_it, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = {(folder / name).read_text() for name in (MATRIX_FILE, "config.py")}
    assert len(texts) == 1
    assert [p.name for p in tmp_path.iterdir()] == ["results"]


# ---- what is already there ------------------------------------------------------


def test_the_same_plan_does_not_conflict(make: Make) -> None:
    plan = create(make())
    begin(plan, 0, 3)
    check(plan)
    other = make(BATCH_SIZE="1", GPT2_GRADIENT_ACCUMULATION="2")
    check(other)  # the same effective batch


def test_other_settings_stop_with_every_field_and_the_ways_out(make: Make) -> None:
    plan = create(make())
    begin(plan, 0, 1)
    changed = {"GPT2_MAX_ITERS": "20", "GPT2_N_EMBD": "32", "BATCH_SIZE": "4"}
    plan = make(**changed)
    with pytest.raises(MatrixError) as caught:
        check(plan)
    said = str(caught.value)
    for part in (
        "nothing was started",
        "step00-baseline/seed1",
        "GPT2_MAX_ITERS                   was 10, is now 20",
        "GPT2_N_EMBD                      was 16, is now 32",
        "effective_batch                  was 2, is now 4",
        "OUTPUT_DIR=",
        "make rerun",
    ):
        assert part in said
    assert "step00-baseline/seed1 and 1 more: " in said, "alike, so reported once"
    assert said.count("GPT2_MAX_ITERS") == 1
    assert "step05-ra" not in said  # never begun, so nothing to lose


def test_fields_of_other_versions_name_the_way_to_continue(make: Make) -> None:
    plan = create(make())
    begin(plan, 0)
    path = plan.output_dir / plan.jobs[0].run_dir / run_files.JOB_FILE
    job = json.loads(path.read_text())
    del job["settings"]["optim"]["beta1"]
    job["settings"]["optim"]["lookahead"] = 5
    path.write_text(json.dumps({**job, "hash": "0" * 16}))
    with pytest.raises(MatrixError) as caught:
        check(plan)
    version = r" \(continue with the commit in its manifest.json\)"
    for line in (
        r"ADAM_BETA1 +is new since the run began, now 0.9" + version,
        r"optim.lookahead +was 5, does not exist any more" + version,
    ):
        assert re.search(line, str(caught.value))


def test_runs_outside_the_plan_count_too(make: Make) -> None:
    plan = create(make())
    begin(plan, 3)
    only = make(RA_MLA_ABLATION_STEPS='"0"')
    check(only)
    changed = make(RA_MLA_ABLATION_STEPS='"0"', GPT2_MAX_ITERS="20")
    with pytest.raises(MatrixError, match="other runs.*\n.*GPT2_MAX_ITERS +was 10"):
        check(changed)


@pytest.mark.parametrize("has_matrix_file", [True, False])
def test_a_difference_of_rounding_is_named(make: Make, has_matrix_file: bool) -> None:
    """Runs of an earlier version, which computed 0.1 x 3e-4 in binary."""
    rate, product = {"LEARNING_RATE": '"3e-4"'}, 0.1 * 3e-4
    new = make(**rate, MIN_LR_RATIO='"0.1"')
    assert new.jobs[0].settings.optim.min_lr == 3e-5 != product
    jobs = [replace(j, settings=j.settings.replace(min_lr=product)) for j in new.jobs]
    old = create(replace(new, jobs=tuple(jobs)))
    begin(old, 0, 1, 2, 3)
    if not has_matrix_file:
        (old.output_dir / MATRIX_FILE).unlink()
        Path("config.py").rename(old.output_dir / "config.py")
    with pytest.raises(
        MatrixError, match=f"GPT2_MIN_LR +was {product!r}, is now 3e-05"
    ):
        check(new)
    check(make(**rate, GPT2_MIN_LR=f'"{product!r}"'))


def test_a_hash_that_was_edited_is_named(make: Make) -> None:
    plan = create(make())
    begin(plan, 0)
    path = plan.output_dir / plan.jobs[0].run_dir / run_files.JOB_FILE
    path.write_text(path.read_text().replace(plan.jobs[0].hash, "0" * 16))
    with pytest.raises(MatrixError, match="job.json was edited: its hash is not that"):
        check(plan)


def test_a_run_that_was_only_prepared_is_not_begun(make: Make) -> None:
    """As left by a runner that was killed while the steps were verified."""
    plan = create(make())
    begin(plan, 0)
    early, alive = (plan.output_dir / job.run_dir for job in plan.jobs[:2])
    run_files.write_status(early, attempt=1, message="SIGTERM: it was waiting")
    assert refusal(other := make(GPT2_MAX_ITERS="20"))
    (early / run_files.EARLY_FILE).touch()
    assert refusal(other) == "" and not begun_in(plan.output_dir)
    state = plan_states(plan)[0]
    assert (state["status"], state["attempt"], state["message"]) == ("planned", 0, "")
    assert read_matrix(plan.output_dir).rows[0]["status"] == "planned"
    begin(plan, 1)
    (alive / run_files.EARLY_FILE).touch()
    with run_files.lock(run_files.run_lock(alive)):
        run_files.write_status(alive, status="running")
        assert plan_states(plan)[1]["status"] == "running"
        with held(plan, {}):  # the next runner, before the run has ended
            assert not early.exists() and alive.is_dir()


def test_a_smaller_plan_keeps_what_was_begun(make: Make) -> None:
    plan = create(make())
    begin(plan, 1, 3)
    only = make(RA_MLA_ABLATION_STEPS='"0"', SEEDS='"1"')
    kept = kept_jobs(only.output_dir, only.jobs)
    assert [job["run_dir"] for job in kept] == [
        "step00-baseline/seed2",
        "step05-ra/seed2",
    ]


def test_a_fifo_in_place_of_matrix_json_is_refused_by_name(make: Make):
    plan = create(make())
    begin(plan, 0)
    path = plan.output_dir / "matrix.json"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(MatrixError, match="matrix.json cannot be read: Not a plain"):
        check(plan)


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"hash": "x"}'])
def test_a_damaged_job_file_stops(make: Make, text: str) -> None:
    plan = create(make())
    begin(plan, 0)
    (plan.output_dir / plan.jobs[0].run_dir / "job.json").write_text(text)
    with pytest.raises(MatrixError, match="seed1: its job.json is damaged"):
        check(plan)


def test_a_run_without_its_job_file_stops(make: Make) -> None:
    plan = create(make())
    begin(plan, 0)
    (plan.output_dir / plan.jobs[0].run_dir / "job.json").unlink()
    with pytest.raises(MatrixError, match="its job.json is missing"):
        check(plan)


def test_hostile_paths_in_matrix_json_are_not_followed(make: Make) -> None:
    plan = create(make())
    outside = plan.output_dir.parent / "outside"
    atomic_files.atomic_write_json(outside / "job.json", {})
    found: dict[str, Any] = read_matrix_file(plan.output_dir)
    found["jobs"] = [{"run_dir": "../outside"}, {"run_dir": str(outside)}]
    atomic_files.atomic_write_json(plan.output_dir / MATRIX_FILE, found)
    assert kept_jobs(plan.output_dir, plan.jobs) == []


# ---- set aside and stop ---------------------------------------------------------


def test_set_aside_overwrites_nothing(make: Make) -> None:
    plan = create(make())
    places = []
    for _ in range(2):
        begin(plan, 0)
        places += set_aside(plan.output_dir, plan.jobs)
    aside = plan.output_dir / ".replaced" / "step00-baseline"
    assert [place for _, place in places] == [aside / "seed1.1", aside / "seed1.2"]
    assert all((place / "job.json").exists() for _, place in places)
    assert not (plan.output_dir / plan.jobs[0].run_dir).exists()
    check(plan)


def test_a_running_job_is_not_set_aside(make: Make) -> None:
    plan = create(make())
    begin(plan, 0, 1)
    first, second = (plan.output_dir / job.run_dir for job in plan.jobs[:2])
    with run_files.lock(run_files.run_lock(second)), pytest.raises(run_files.LockHeld):
        set_aside(plan.output_dir, plan.jobs)
    assert (first / "job.json").exists() and (second / "job.json").exists()


def test_asking_to_stop_needs_a_runner(make: Make) -> None:
    plan = create(make())
    stop = plan.output_dir / STOP_FILE
    assert "nothing is running" in ask_to_stop(plan.output_dir)
    assert not stop.exists()
    with run_files.lock(matrix_lock(plan.output_dir)):
        assert "asked pid" in ask_to_stop(plan.output_dir)
    assert stop.exists()


def test_a_matrix_file_that_is_none(make: Make) -> None:
    plan = make()
    with pytest.raises(MatrixError, match="nothing was run yet"):
        read_matrix_file(plan.output_dir)
    for text, what in (
        ("[]", "not a list of jobs"),
        ('{"jobs": [{}]}', "not a list of jobs"),
        ("{", "not JSON"),
    ):
        atomic_files.atomic_write_text(plan.output_dir / MATRIX_FILE, text)
        with pytest.raises(MatrixError, match=f"{what}.* move .*results away"):
            read_matrix_file(plan.output_dir)
    plan.output_dir.rename("elsewhere")  # as it says
    create(plan)
    check(plan)


def test_a_matrix_file_is_written_anew_by_the_runs_and_their_config(make: Make) -> None:
    plan = create(make())
    begin(plan, 1, 3)
    path, config = (plan.output_dir / name for name in (MATRIX_FILE, "config.py"))
    config.write_bytes(Path("config.py").read_bytes())
    path.write_text("{")
    with pytest.raises(MatrixError, match="Remove it and type `make`"):
        check(plan)
    path.unlink()  # as it says

    only = make(RA_MLA_ABLATION_STEPS='"0"', SEEDS='"1"')
    create(only)
    check(only)
    update(only, {})
    found = [job["run_dir"] for job in read_matrix_file(plan.output_dir)["jobs"]]
    first, second, _, last = (job.run_dir for job in plan.jobs)
    assert found == [first, second, last]

    path.unlink()
    other = make(RA_MLA_ABLATION_STEPS='"0"', GPT2_MAX_ITERS="20")
    with pytest.raises(MatrixError, match=r"GPT2_MAX_ITERS +was 10, is now 20"):
        check(other)

    config.write_text("CONFIG_SEEDS = 1\n")  # nothing tells what the runs were
    for text in ("{", None):
        path.write_text(text) if text else path.unlink()
        with pytest.raises(MatrixError, match="choose another OUTPUT_DIR"):
            check(plan)


@pytest.mark.parametrize("link", [".replaced", ".replaced/step00-baseline"])
def test_nothing_is_set_aside_behind_a_link(
    make: Make, tmp_path: Path, link: str
) -> None:
    plan = create(make())
    begin(plan, 0)
    place = plan.output_dir / link.replace("step00-baseline", plan.jobs[0].cell)
    (tmp_path / "theirs").mkdir()
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tmp_path / "theirs")
    with pytest.raises(ValueError, match="is a link to"):
        set_aside(plan.output_dir, plan.jobs)
    assert not list((tmp_path / "theirs").iterdir())
    assert (plan.output_dir / plan.jobs[0].run_dir).is_dir()
