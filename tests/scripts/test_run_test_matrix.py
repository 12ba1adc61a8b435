"""scripts/run_test_matrix.py with the real trainer: listing, running, going on."""

from __future__ import annotations

import csv
import json
import os
import pty
import re
import select
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from lib import atomic_files
from lib.jobs import linux_processes, run_files
from lib.jobs.slots import VISIBLE
from lib.output import EXIT_DISK
from tests.lib.jobs.test_ray_engine import HAS_RAY
from tests.scratch import Gate, copy_files, until
from tests.scripts.inprocess import run_script
from tests.tinymatrix import SCRIPT, command, prove_and_run, run_matrix

ONE_SEED = "SEEDS=1"
TINY_RUNS = ("step00-baseline/seed1", "step05-ra/seed1")


def start(folder: Path, *words: str, **environ: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        command(*words),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environ},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def look(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The script where it starts nothing."""
    return run_script(SCRIPT.name, *words, cwd=folder)


def summary(folder: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((folder / "results" / "summary.json").read_text())
    assert found["schema"] == 4
    return {run["run_dir"]: run for run in found["runs"]}


def attempts(folder: Path, run: str) -> int:
    return int(run_files.read_status(folder / "results" / run)["attempt"])


def losses(folder: Path, run: str) -> list[tuple[Any, ...]]:
    """Computed results, without times."""
    records = atomic_files.read_jsonl(folder / "results" / run / "metrics.jsonl")
    names = ("kind", "step", "tokens", "loss", "grad_norm", "val_loss", "val_accuracy")
    return [
        tuple(record.get(name) for name in names)
        for record in records
        if record["kind"] not in ("as_trained", "phase")  # more after each resume
    ]


def weights(run_dir: Path) -> dict[str, tuple[tuple[int, ...], bytes]]:
    """Shape and bytes by name; the file itself orders its metadata at random."""
    found = load_file(run_dir / "model.safetensors")
    return {name: (array.shape, array.tobytes()) for name, array in found.items()}


# ---- listing --------------------------------------------------------------------


def test_list_shows_each_job_with_what_differs_and_why(folder: Path) -> None:
    done = look(folder, "--list", "--overrides", "MAX_ITERS=100 STEPS=0,5-6")
    assert done.returncode == 0, done.stderr
    text = done.stdout
    assert "3 steps x 2 seeds = 6 jobs, 19,200 tokens in all" in text
    assert re.search(r"GPT2_MAX_ITERS +100 +command line", text)
    assert re.search(r"GPT2_N_LAYER +2\s+.*preset:6", text)
    block = text[text.index("step 6  ra-r25") :]
    assert "compared with step 5 (ra)" in block and "parameters (+" in block
    assert re.search(r"RA_MLA_RA +n -> y +step 5", block)
    assert re.search(r"RA_MLA_MLP_RATIO +0.0 -> 2.5 +step 6", block)
    assert re.search(r"GPT2_MLP_WIDTH +\d+ -> \d+ +solved", block)
    assert "results/step06-ra-r25/seed2" in block
    assert max(map(len, text.splitlines())) <= 100
    assert not (folder / "results").exists()


def test_only_the_jobs_that_match_are_listed(folder: Path) -> None:
    done = look(folder, "--list", "--only", "*/seed2,step05*")
    found = re.findall(r"results/(\S+)", done.stdout)
    assert found == ["step00-baseline/seed2", "step05-ra/seed1", "step05-ra/seed2"]
    done = look(folder, "--list", "--only", "step9*")
    assert done.returncode == 2 and "matches no job" in done.stderr


def test_the_budget_names_each_partner_planned_or_not(folder: Path) -> None:
    done = look(folder, "--budget", "--overrides", "STEPS=0,29,9 SEEDS=1")
    assert done.returncode == 0, done.stderr
    rows = {line.split()[1]: line.split()[2:6] for line in done.stdout.splitlines()}
    _, *of_the_first = rows["baseline"]
    assert of_the_first == ["+0.00%", "-", "-"]
    _, *equal = rows["ra-whole"]
    assert equal == ["+0.00%", "+0.00%", "5"]
    _, first, partner, name = rows["mla-r25"]
    assert name == "8" and first != partner != "+0.00%"


@pytest.mark.parametrize("what", ["--list", "--budget"])
def test_listing_never_imports_torch(folder: Path, what: str) -> None:
    code = (
        "import os, runpy, sys\n"
        "sys.path[0] = os.path.dirname(sys.argv[1])\n"
        "try: runpy.run_path(sys.argv.pop(1), run_name='__main__')\n"
        "except SystemExit as end: assert not end.code, end.code\n"
        "heavy = {'torch', 'numpy', 'matplotlib', 'datasets', 'wandb'}\n"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)\n"
        "assert 'gpt2.plan.jobs' in sys.modules\n"
    )
    words = [str(SCRIPT), what, "--overrides", "STEPS=0,2-33"]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert "mla-rope" in done.stdout


def test_dry_run_lists_and_then_proves_each_step(folder: Path) -> None:
    words = ("--dry-run", "--overrides", "STEPS=0,5 SEEDS=1,2")
    done = prove_and_run(folder, *words)
    assert done.returncode == 0, done.stdout + done.stderr
    listed, certified = done.stdout.split("verifying every step")
    assert "results/step05-ra/seed2" in listed
    rows = re.findall(r"^ *(step\d\d-\S+)", certified, re.MULTILINE)
    assert rows == ["step00-baseline", "step05-ra"]
    assert re.search(r"^ *adamw\b", certified, re.MULTILINE), certified
    assert "All certificates passed (2 steps, 1 optimizer)" in certified
    assert not (folder / "results").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--overrides", "MAX_ITER=5"), "nearest: MAX_ITERS"),
        (("--overrides", "STEPS=0,99"), "there is no step 99"),
        (("--overrides", "DATA_DIR=nowhere"), "`make data DATA_DIR=nowhere`"),
        (("--dry-run", "--overrides", "EVAL_SAMPLES=999999"), "use at most"),
        (("--dry-run", "--overrides", "BLOCK_SIZE=65536"), "GPT2_BLOCK_SIZE=65536"),
        (("--config", "none.py"), "make defconfig-"),
        (("--overrides", "JOBS=-1"), "PARALLEL_JOBS"),
        (("--dry-run", "--overrides", "GPUS=a"), "UUID of a GPU\n(GPUS: command"),
        (("--stop", "--only", "*/seed1"), "stopped as a whole"),
        (("--overrides", "ENGINE=ray GPUS=0"), "Ray assigns them"),
        pytest.param(
            ("--list", "--overrides", "ENGINE=ray"),
            "make setup EXTRAS=ray",
            marks=pytest.mark.skipif(HAS_RAY, reason="ray is installed"),
        ),
    ],
)
def test_what_cannot_start_says_why(
    folder: Path, words: tuple[str, ...], says: str
) -> None:
    done = look(folder, "--skip-verify", *words)
    assert done.returncode == 2 and says in done.stderr
    assert "Traceback" not in done.stderr and not (folder / "results").exists()


def test_a_full_disk_under_the_output_is_not_blamed_on_the_steps(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        ended = subprocess.run(
            [sys.executable, SCRIPT, "--dry-run", "--overrides=STEPS=0 SEEDS=1"],
            cwd=folder,
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
        )
    said = "cannot write: No space left on device"
    assert ended.stderr == f"verify: {said}\nrun_test_matrix: {said}\n"
    assert ended.returncode == EXIT_DISK


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("config.py", "config.py is a file, not a results folder"),
        ("/dev/null", "/dev/null is a file, not a results folder"),
        ("texts", "texts is a folder without matrix.json"),
        (".", "is a folder without matrix.json"),
        ("/proc/foo", "/proc/foo: results cannot be kept there: No such file"),
        ("config.py/x", "config.py/x: results cannot be kept there: Not a directory"),
        ("lost", "lost: results cannot be kept there: Not a directory"),
        ("n" * 250, "results cannot be kept there: File name too long"),
    ],
)
def test_a_dry_run_refuses_the_folders_that_a_run_refuses(
    folder: Path, place: str, says: str
) -> None:
    (folder / "lost").symlink_to("nowhere")
    before = sorted(folder.rglob("*"))
    words = ("--skip-verify", "--overrides", f"OUTPUT_DIR={place} STEPS=0 SEEDS=1")
    ran, previewed = look(folder, *words), look(folder, "--dry-run", *words)
    listed = look(folder, "--list", *words)
    assert ran.returncode == previewed.returncode == 2 and says in ran.stderr
    assert previewed.stderr == ran.stderr and "1 step x 1 seed" in previewed.stdout
    assert listed.returncode == 0 and listed.stderr == ""
    assert f"would refuse to start: {ran.stderr}" in listed.stdout
    if "not a results" in says or "without" in says:
        assert look(folder, "--status", *words).stderr == ran.stderr
    assert sorted(folder.rglob("*")) == before


def test_a_lock_that_cannot_be_taken_names_the_setting(finished: Path) -> None:
    """A folder in its place fails as a disk that is mounted read-only does."""
    (finished / "results/.lock").unlink(missing_ok=True)
    (finished / "results/.lock").mkdir()
    words = ("--skip-verify", "--overrides", ONE_SEED)
    sbatch = run_script("print_sbatch.py", *words, cwd=finished)
    for done in (look(finished, *words), look(finished, "--estimate", *words), sbatch):
        assert done.returncode == 2
        assert "\nOUTPUT_DIR=results: results cannot be kept" in f"\n{done.stderr}"
        assert "Choose another OUTPUT_DIR" in done.stderr


def test_a_preview_ends_with_the_data_that_is_missing(folder: Path) -> None:
    assert "make data" not in look(folder, "--list").stdout
    words = ("--skip-verify", "--overrides", "DATA_DIR=nowhere")
    for mode in ("--list", "--dry-run"):
        done = look(folder, mode, *words)
        assert (done.returncode, done.stderr) == (0, "")
        last = done.stdout.splitlines()[-1]
        assert "would refuse to start: nowhere/" in last
        assert last.endswith("prepare the data with `make data DATA_DIR=nowhere`")


def test_a_swept_context_that_the_data_cannot_give_is_refused(folder: Path) -> None:
    words = ("--skip-verify", "--overrides", "SWEEP=GPT2_BLOCK_SIZE=16,131072")
    for done in (look(folder, *words), look(folder, "--dry-run", *words)):
        assert done.returncode == 2, done.stdout
        assert "too few for GPT2_BLOCK_SIZE=131072" in done.stderr
    sbatch = run_script("print_sbatch.py", *words, cwd=folder)
    assert (sbatch.returncode, sbatch.stderr) == (2, done.stderr)
    assert not (folder / "results").exists()


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ("DEVICE=cuda", "torch sees no GPU here"),
        ("DEVICE=auto GPUS=0", "no GPU can be used"),
        (
            "DEVICE=auto MIXED_PRECISION=y MIXED_PRECISION_FP16=y",
            "DEVICE=auto is the CPU here, as torch sees no GPU: .*MIXED_PRECISION_FP16",
        ),
        (
            "DEVICE=auto MIXED_PRECISION=y SWEEP=MIXED_PRECISION_DTYPE=bf16,fp16",
            "^step00-baseline/mixed_precision=fp16: DEVICE=auto is the CPU here",
        ),
    ],
)
def test_a_missing_gpu_is_noted_in_a_listing_and_refused_by_a_run(
    folder: Path, monkeypatch: pytest.MonkeyPatch, asked: str, says: str
) -> None:
    for name in VISIBLE.values():
        monkeypatch.setenv(name, "")
    words = ("--skip-verify", "--overrides", asked)
    done = look(folder, *words)
    assert done.returncode == 2 and re.search(says, done.stderr)
    assert not (folder / "results").exists()
    listed = look(folder, "--dry-run", *words)  # may be meant for another machine
    assert (listed.returncode, listed.stderr) == (0, "")
    last = listed.stdout.splitlines()[-1]
    assert last.endswith(f"would refuse to start: {done.stderr.strip()}")


def test_settings_that_only_a_gpu_reads_are_noted_without_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in VISIBLE.values():
        monkeypatch.setenv(name, "")
    words = ("MLP_BACKEND=cublaslt", "TF32=n", "CPU_THREADS=1", "DEVICE=auto")
    listed = look(folder, "--list", "--overrides", " ".join(words))
    said = " ".join(listed.stdout.split())
    assert "note: TF32=n, MLP_BACKEND=cublaslt: no effect on this machine" in said
    usual = look(folder, "--list", "--overrides", "DEVICE=auto")
    assert "no effect on this machine" not in usual.stdout
    on_cpu = look(folder, "--list", "--overrides", "TF32=n DEVICE=cpu").stdout
    assert "TF32=n (command line) has no effect: no job runs on a GPU" in on_cpu


def test_a_reader_that_goes_away_is_no_error(folder: Path) -> None:
    process = start(folder, "--list", "--overrides", "STEPS=0,2-33 SEEDS=1-500")
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait() in (0, 2)


# ---- certificates ---------------------------------------------------------------

PRODUCT = ("Kconfig", "scripts", "lib", "gpt2")


def test_a_step_that_is_not_proven_is_not_run(folder: Path, tmp_path: Path) -> None:
    """RA that is without effect, planted in a copy of the sources."""
    tree = copy_files(tmp_path / "tree", PRODUCT)
    code = (tree / "gpt2" / "mechanisms" / "ra" / "layer.py").read_text()
    assert "Transposed(k, q, alpha" in code
    code = code.replace("Transposed(k, q, alpha", "Transposed(k, q, 0.0 * alpha")
    (tree / "gpt2" / "mechanisms" / "ra" / "layer.py").write_text(code)
    script = tree / "scripts" / SCRIPT.name
    words = ("--overrides", f"{ONE_SEED} JOBS=2")

    done = prove_and_run(folder, *words, script=script)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 of 3 failed (2 steps, 1 optimizer)" in done.stdout
    assert "step05-ra/seed1: NOT RUN (certificate): acting" in done.stdout
    runs = summary(folder)
    assert [runs[name]["status"] for name in TINY_RUNS] == ["done", "failed"]
    status = run_files.read_status(folder / "results" / TINY_RUNS[1])
    assert status["failure"] == "certificate" and status["attempt"] == 0
    table = atomic_files.read_json(folder / "results" / "certificates.json")
    assert [cell["passed"] for cell in table["cells"]] == [True, False]
    manifest = folder / "results" / TINY_RUNS[0] / "manifest.json"
    assert atomic_files.read_json(manifest)["verified"] == "passed"

    done = run_matrix(folder, *words)  # --skip-verify
    assert done.returncode == 0 and "step00" not in done.stdout
    manifest = folder / "results" / TINY_RUNS[1] / "manifest.json"
    assert atomic_files.read_json(manifest)["verified"] == "skipped"


def test_a_proof_that_cannot_be_carried_out_starts_nothing(folder: Path) -> None:
    (folder / "broken").mkdir()
    (folder / "broken" / "torch.py").write_text("raise ImportError('no torch')")
    words = ("--overrides", "SEEDS=1 STEPS=0")
    done = prove_and_run(folder, *words, PYTHONPATH="broken")
    assert done.returncode == 2 and "SKIP_VERIFY=1" in done.stderr
    assert "ImportError: no torch" in done.stderr
    assert not (folder / "results" / "step00-baseline").exists()


def test_proofs_end_at_a_ctrl_c_without_a_traceback(folder: Path) -> None:
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), "--dry-run"],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    while "causal" not in process.stdout.readline():
        pass
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate()
    assert process.returncode == 3 and "stopped before any job started" in said
    assert f"to continue: {sys.executable} {SCRIPT} --dry-run\n" in said
    assert "Traceback" not in said


def test_proofs_end_at_a_ctrl_c_while_their_python_starts(folder: Path) -> None:
    (folder / "early").mkdir()
    (folder / "early" / "sitecustomize.py").write_text(
        "import os, signal, sys\n"
        "if sys.orig_argv[1].endswith('/verify.py'): os.killpg(0, signal.SIGINT)\n"
    )
    ended = subprocess.run(
        [sys.executable, str(SCRIPT), "--dry-run"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": "early"},
        capture_output=True,
        text=True,
        start_new_session=True,
    )
    assert ended.returncode == 3
    said = f"stopped before any job started\nto continue: {sys.executable} {SCRIPT}"
    assert ended.stderr == f"{said} --dry-run\n"


def test_proofs_end_when_the_runner_is_asked_to_stop(
    folder: Path, tmp_path: Path
) -> None:
    tree = copy_files(tmp_path / "tree", PRODUCT)  # where nothing is proven yet
    runner = subprocess.Popen(
        [sys.executable, str(tree / "scripts" / SCRIPT.name)],
        cwd=folder,
        env={**os.environ, "KABLATE_TEST_PLACE": str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert runner.stdout is not None
    while "verifying every step" not in runner.stdout.readline():
        pass
    assert f"asked pid {runner.pid}" in look(folder, "--stop").stdout
    said, _ = runner.communicate()
    assert runner.returncode == 3 and "stopped before any job started" in said
    assert " proven" not in said and "Traceback" not in said
    assert linux_processes.marked("KABLATE_TEST_PLACE", str(folder)) == []
    assert not (folder / "results" / ".stop").exists()
    assert not (folder / "results" / "certificates.json").exists()


# ---- running --------------------------------------------------------------------


def test_a_finished_matrix(undisturbed: Path) -> None:
    runs = summary(undisturbed)
    assert list(runs) == list(TINY_RUNS)
    for run in runs.values():
        assert run["status"] == "done" and run["val_loss"] > 0 and run["parameters"]
        assert run["tokens"] == 320 and run["seed"] == 1
    with open(undisturbed / "results" / "results.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["run_dir"] for row in rows] == list(TINY_RUNS)
    config = (undisturbed / "results" / "config.py").read_text()
    assert "CONFIG_SEEDS = '1'" in config and "command line" in config
    assert 'CONFIG_SEEDS="1"' in (undisturbed / "results" / ".config").read_text()
    job = atomic_files.read_json(undisturbed / "results" / TINY_RUNS[0] / "job.json")
    assert job["origins"]["seeds"] == "command line"


def test_other_settings_stop_before_anything_starts(finished: Path) -> None:
    before = (finished / "results" / "matrix.json").read_bytes()
    words = ("--overrides", "MAX_ITERS=12 SEEDS=1,2")
    done = run_matrix(finished, *words)
    assert done.returncode == 2
    assert re.search(r"GPT2_MAX_ITERS +was 10, is now 12", done.stderr)
    assert "OUTPUT_DIR=" in done.stderr
    assert shlex.join([*command(*words), "--rerun"]) in done.stderr
    for look_only in ("--list", "--status"):  # the preview says it too
        seen = look(finished, look_only, *words)
        assert seen.returncode == 0
        assert (
            "would refuse to start" in seen.stdout and "was 10, is now" in seen.stdout
        )
    listed = look(finished, "--list", *words).stdout
    assert f"{TINY_RUNS[0]}  [done, with other settings]\n" in listed
    assert "baseline/seed2\n" in listed
    assert "would refuse" not in look(finished, "--list").stdout
    assert not (finished / "results" / "step00-baseline" / "seed2").exists()
    assert (finished / "results" / "matrix.json").read_bytes() == before
    assert "CONFIG_GPT2_MAX_ITERS = 10" in (finished / "results/config.py").read_text()


def test_the_way_out_of_a_damaged_matrix_file(finished: Path) -> None:
    path = finished / "results" / "matrix.json"
    path.write_bytes(path.read_bytes()[:1000])
    words = ("--skip-verify", "--overrides", "STEPS=0 SEEDS=1")
    for asked in (("--status",), words):
        done = look(finished, *asked)
        assert done.returncode == 2 and "Remove it and type `" in done.stderr
    path.unlink()
    done = look(finished, *words)
    assert done.returncode == 0 and "1 of 1 jobs are done" in done.stdout, done.stderr
    assert [job["name"] for job in atomic_files.read_json(path)["jobs"]] == [
        "baseline",
        "ra",
    ]
    assert list(summary(finished)) == list(TINY_RUNS)


def test_rerun_keeps_what_was_there(finished: Path) -> None:
    words = ("--skip-verify", "--rerun", "--overrides", "STEPS=5 SEEDS=1 MAX_ITERS=12")
    refused = look(finished, *words)  # would not be comparable with step 0
    assert refused.returncode == 2 and "nothing was started" in refused.stderr
    assert not (finished / "results" / ".replaced").exists()
    done = run_matrix(finished, "--rerun", "--overrides", "STEPS=5 SEEDS=1")
    assert done.returncode == 0, done.stderr
    assert "the old run is kept in" in done.stdout
    old = finished / "results" / ".replaced" / "step05-ra" / "seed1.1"
    new = finished / "results" / TINY_RUNS[1]
    assert weights(old) == weights(new)
    assert attempts(finished, TINY_RUNS[1]) == 1
    assert [run["status"] for run in summary(finished).values()] == ["done", "done"]
    shown = look(finished, "--status").stdout  # by the configuration, with two seeds
    assert re.findall(r"seed\d +(\w+)", shown) == ["done", "planned", "done", "planned"]


# ---- interruptions --------------------------------------------------------------

SLOW = {"KABLATE_TEST_CHECKPOINT_SECONDS": "0.3"}


def reached(folder: Path, run: str, step: int) -> Callable[[], bool]:
    path = folder / "results" / run / "metrics.jsonl"
    return lambda: any(r.get("step", 0) >= step for r in atomic_files.read_jsonl(path))


def assert_equal_to(
    undisturbed: Path, folder: Path, runs: Iterable[str] = TINY_RUNS
) -> None:
    for run in runs:
        assert losses(folder, run) == losses(undisturbed, run)
        places = (where / "results" / run for where in (folder, undisturbed))
        assert len({repr(sorted(weights(place).items())) for place in places}) == 1


def test_of_two_runners_one_works_and_resumes_a_killed_trainer_exactly(
    undisturbed: Path, folder: Path
) -> None:
    gate = Gate(folder / "gate")
    held = gate.holds("hold@6@baseline")
    both = [start(folder, "--overrides", ONE_SEED, **held) for _ in range(2)]
    until(lambda: gate.is_reached() and any(r.poll() is not None for r in both))
    status = run_files.read_status(folder / "results" / TINY_RUNS[0])
    os.kill(status["pid"], signal.SIGKILL)
    gate.open()
    said = {runner: runner.communicate()[0] for runner in both}
    worker, refused = sorted(both, key=lambda runner: runner.returncode)
    assert (worker.returncode, refused.returncode) == (0, 2), said
    assert f"in use by pid {worker.pid}" in said[refused]
    assert "in use by" not in said[worker] and "FAILED (killed)" in said[worker]
    assert [attempts(folder, run) for run in TINY_RUNS] == [2, 1]
    assert_equal_to(undisturbed, folder)


def test_while_one_runner_works(folder: Path) -> None:
    """A second runner names the first; status works; --stop stops the first."""
    gate = Gate(folder / "gate")
    process = start(folder, **gate.holds("hold@3"))
    until(gate.is_reached)
    second = look(folder, "--skip-verify")
    assert second.returncode == 2 and f"in use by pid {process.pid} on" in second.stderr
    status = look(folder, "--status")
    assert status.returncode == 0 and f"pid {process.pid}" in status.stdout
    assert re.search(r"step00-baseline/seed1 +running +1 +\d+/10 ", status.stdout)
    assert re.search(r"step05-ra/seed2 +planned", status.stdout)
    stop = look(folder, "--stop")
    assert stop.returncode == 0 and f"asked pid {process.pid}" in stop.stdout
    said, _ = process.communicate()
    assert process.returncode == 3 and "asked to stop" in said
    assert "nothing is running" in look(folder, "--status").stdout


def test_again_runs_only_what_is_missing_and_a_terminal_shows_it_live(
    finished: Path,
) -> None:
    before = weights(finished / "results" / TINY_RUNS[0])
    code, text = on_a_terminal(finished, "--overrides", "STEPS=0 SEEDS=1,2")
    assert code == 0, text
    assert "step00-baseline/seed2: done" in text
    assert "seed1: started" not in text
    assert attempts(finished, TINY_RUNS[0]) == 1
    assert weights(finished / "results" / TINY_RUNS[0]) == before
    runs = summary(finished)
    assert set(runs) == {*TINY_RUNS, "step00-baseline/seed2"}
    assert {run["status"] for run in runs.values()} == {"done"}

    for part in (
        "running",
        "val loss",
        "tokens/s",
        "1 of 2 runs done, 1 running",
        "/10",
    ):
        assert part in text
    assert "step00-baseline/seed2: done in" in text
    assert "2 of 2 jobs are done" in text


def on_a_terminal(folder: Path, *words: str) -> tuple[int, str]:
    """The exit code, and all that was shown, without colours and movements."""
    ours, theirs = pty.openpty()
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "100", "TERM": "xterm"}
    process = subprocess.Popen(
        command(*words),
        cwd=folder,
        env={**environ, **SLOW},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = b""
    while select.select([ours], [], [], 120)[0]:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the terminal's other end is closed
            break
    code = process.wait()
    return code, re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.decode())


def test_a_matrix_goes_on_when_its_terminal_has_gone(folder: Path) -> None:
    ours, theirs = pty.openpty()
    os.close(ours)  # before the first word
    process = subprocess.Popen(
        command("--overrides", "STEPS=0 SEEDS=1 MAX_ITERS=2"),
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TERM": "xterm"},
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    assert process.wait() == 0
    assert summary(folder)[TINY_RUNS[0]]["status"] == "done"


def test_a_linked_run_has_no_status_as_it_has_no_row_in_the_report(
    finished: Path, tmp_path: Path
) -> None:
    step = finished / "results" / "step05-ra"
    step.rename(tmp_path / "moved")
    step.symlink_to(tmp_path / "moved")
    done = run_matrix(finished, "--status", "--overrides", "SEEDS=1")
    assert done.returncode == 0, done.stderr
    (line,) = [x for x in done.stdout.splitlines() if x.startswith("step05-ra/seed1 ")]
    assert line.split()[1:3] == ["a", "link"]
    assert "Move its target to its place, or remove the link" in done.stdout
