"""The trainer's command line, by whole interpreters."""

import os
import signal
import subprocess
import time
from dataclasses import replace

import pytest

from gpt2.settings.parse import symbol_types
from lib.kconfig.config_py import render_config
from tests.gpt2.tinydata import prepare_texts, texts
from tests.gpt2.tinytraining import (
    command_line,
    finish,
    manifest,
    records,
    run_command,
    tiny_config,
    tiny_job,
    write_job,
)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_texts(tmp_path_factory.mktemp("corpus"), texts(30))


def write_config(folder, data_dir, *overrides):
    config = tiny_config(
        f"DATA_DIR={data_dir}", *overrides, text_path=str(data_dir.parent / "texts")
    )
    path = folder / "config.py"
    path.write_text(render_config(config, symbol_types()))
    return path


def test_a_step_by_hand_equals_the_job_of_the_matrix(data_dir, tmp_path):
    """From another folder, with overrides and another seed."""
    config = write_config(tmp_path, data_dir, "RA_MLA_ABLATION_MODE=y")
    words = ("--config", config, "--ra-mla-ablation-step", "5", "--seed", "2")
    by_hand = run_command(
        *words, "--overrides", "MAX_ITERS=4 DROPOUT=0.0", "--run-dir", "x", cwd=tmp_path
    )
    assert by_hand.returncode == 0, by_hand.stderr
    job = replace(tiny_job(data_dir, 5, max_iters=4, dropout=0.0), seed=2)
    assert manifest(tmp_path / "x")["hash"] == job.hash
    origins = manifest(tmp_path / "x")["origins"]
    assert (origins["max_iters"], origins["ra"]) == ("command line", "step 5")
    finish(job, tmp_path / "y")
    assert records(tmp_path / "x") == records(tmp_path / "y")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--config", "config.py"), "say which run is meant"),
        (("--config", "none.py"), "there is no none.py"),
        (
            ("--config", "config.py", "--ra-mla-ablation-step", "0", "--overrides")
            + ("MAX_ITER=4",),
            "MAX_ITERS",
        ),
        (
            ("--config", "config.py", "--ra-mla-ablation-step", "99"),
            "--ra-mla-ablation-step: there is no step 99; steps are 0 to",
        ),
        (
            ("--config", "config.py", "--ra-mla-ablation-step", "0", "--overrides")
            + ("INIT_FROM=nowhere",),
            "INIT_FROM=nowhere: there is no such folder",
        ),
        (
            ("--config", "config.py", "--ra-mla-ablation-step", "0", "--overrides")
            + ("SWEEP=WEIGHT_DECAY=0,0.1",),
            "SWEEP: one run has no axes",
        ),
        (
            ("--config", "config.py", "--ra-mla-ablation-step", "0", "--overrides")
            + ("SIZES=2x64,2x128",),
            "SIZES: one run has no axes",
        ),
        (("--job", "job.json", "--seed", "3"), "--seed goes with --config"),
        (("--job", "tampered.json"), "hash does not match"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_torch_is_loaded(
    data_dir, tmp_path, words, said
):
    write_config(tmp_path, data_dir, "RA_MLA_ABLATION_MODE=y")
    job = write_job(tmp_path / "job.json", tiny_job(data_dir))
    tampered = job.read_text().replace('"dropout": 0.1', '"dropout": 0.2')
    (tmp_path / "tampered.json").write_text(tampered)
    done = run_command(*words, "--run-dir", "x", cwd=tmp_path)
    assert done.returncode == 2
    assert said in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "x").exists()


def test_sigusr1_prints_the_stacks_of_a_hung_trainer(data_dir, tmp_path):
    job = write_job(tmp_path / "job.json", tiny_job(data_dir))
    environ = {**os.environ, "OMP_NUM_THREADS": "1", "KABLATE_TEST_FAULTS": "hang@1"}
    words = command_line("--job", job, "--run-dir", tmp_path / "run")
    log = tmp_path / "log"
    with (
        open(log, "wb") as file,
        subprocess.Popen(words, env=environ, stdout=file, stderr=file) as process,
    ):
        try:
            while "update 0" not in log.read_text():
                assert process.poll() is None, log.read_text()
                time.sleep(0.05)
            while "in _hang" not in log.read_text():
                process.send_signal(signal.SIGUSR1)
                time.sleep(0.05)
        finally:
            process.kill()
    assert "in carry_out" in log.read_text()
