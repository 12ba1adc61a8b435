"""`make sample` as a user types it, on models that were really trained."""

import json
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import save_file

from gpt2.infer.run_samples import write_samples
from gpt2.train.export import WEIGHTS, weights_sha256
from lib.atomic_files import atomic_write_json, read_json
from scripts.sample import parser
from tests.scratch import ROOT
from tests.scripts.inprocess import run_script

RUN, OTHER = "results/step00-baseline/seed1", "results/step05-ra/seed1"


def sample(folder, *words, code=0):
    done = run_script("sample.py", *words, cwd=folder)
    assert done.returncode == code, done.stdout + done.stderr
    assert code or done.stderr.splitlines()[-1].startswith("Next: make eval RUNS=")
    return done


def texts(folder, *words):
    said = sample(folder, "--json", "--prompt", "Doc", *words).stdout
    return json.loads(said)["texts"]


def test_text_is_the_prompt_and_what_the_model_makes_of_it(undisturbed):
    done = sample(undisturbed, "--prompt", "Doc", "--count", "5", "5")
    (found,) = texts(undisturbed, "--count", "5", "5")
    assert found["run"] == "5 ra, seed 1" and found["tokens"] == 5
    assert found["prompt"] == "Doc" and found["ended"] == "COUNT=5"
    assert "5 ra, seed 1: 5 tokens, " in done.stderr
    assert done.stdout.startswith("Doc") and done.stdout.endswith("\n")
    # The same seed gives the same text, another seed another.
    assert texts(undisturbed, "--count", "5", OTHER)[0]["text"] == found["text"]
    others = {texts(undisturbed, "--seed", s, "5")[0]["text"] for s in "123"}
    assert len(others) == 3
    (likeliest,) = texts(undisturbed, "--temperature", "0", "5")
    assert texts(undisturbed, "--top_k", "1", "5")[0]["text"] == likeliest["text"]
    assert likeliest["ended"] == "the context of 16 is full"
    assert likeliest["tokens"] == 13
    (stopped,) = texts(
        undisturbed, "--temperature", "0", "--stop", likeliest["text"][4:6], "5"
    )
    assert likeliest["text"].startswith(stopped["text"])
    assert stopped["ended"] == "STOP" and len(stopped["text"]) <= 4


def test_options_that_change_nothing_are_named(undisturbed):
    words = ("--temperature", "0", "--count", "2", "--prompt", "Doc", "5")
    said = sample(undisturbed, "--top_k", "3", "--seed", "7", *words).stderr
    assert "note: no effect of TOP_K=3, SEED=7: TEMPERATURE=0 takes" in said
    assert "note:" not in sample(undisturbed, *words).stderr


def test_escapes_are_read_in_stop_and_noted_in_a_prompt(undisturbed):
    for given, stop in {
        r"\n\n": "\n\n",
        r"\tx\r": "\tx\r",
        r"a\\n": r"a\n",
        r"\d \x41 \\alpha": r"\d \x41 \alpha",
        "\n": "\n",
    }.items():
        assert parser().parse_args(["--stop", given]).stop == stop
    words = ("--count", "1", "--json", "5", "--prompt")
    done = sample(undisturbed, *words, r"D\n")
    assert json.loads(done.stdout)["texts"][0]["prompt"] == r"D\n"
    assert "PROMPT is a backslash and an n" in done.stderr


def test_a_finished_run_has_samples_of_validation_text_for_the_report(
    finished, monkeypatch
):
    found = [read_json(finished / run / "samples.json") for run in (RUN, OTHER)]
    mine, theirs = (
        [(one["prompt"], one["actual"]) for one in record["samples"]]
        for record in found
    )
    assert mine == theirs and len(mine) == 2
    (path,) = finished.glob("data/*/val.bin")
    text = bytes(np.fromfile(path, "<u2").clip(0, 255).astype("u1")).decode("latin1")
    assert all(prompt + actual in text for prompt, actual in mine)
    assert found[0]["tokens"] == 12 and mine[0][0] == "Docu"
    monkeypatch.chdir(finished)
    write_samples(Path(RUN))
    assert read_json(finished / RUN / "samples.json") == found[0]
    monkeypatch.chdir(finished / "texts")  # from where the data is not found
    with pytest.raises(FileNotFoundError, match=r"val\.bin"):
        write_samples(finished / RUN)


def test_several_models_stand_side_by_side(undisturbed):
    found = texts(undisturbed, "--count", "4", f"{RUN},ra")
    assert [one["run"] for one in found] == ["0 baseline, seed 1", "5 ra, seed 1"]
    done = sample(undisturbed, "--prompt", "Doc", "--count", "4", "0,5")
    heading = next(line for line in done.stdout.splitlines() if "baseline" in line)
    assert "0 baseline, seed 1" in heading and "5 ra, seed 1" in heading
    assert done.stderr.count("4 tokens") == 2


@pytest.mark.parametrize("name", ["step05-ra/seed1", "5:1", "results/step05*"])
def test_a_run_is_named_as_in_other_commands(undisturbed, name):
    (found,) = texts(undisturbed, "--count", "1", name)
    assert found["run"] == "5 ra, seed 1"


def test_without_a_prompt_they_are_read_line_by_line(undisturbed):
    command = [
        sys.executable,
        ROOT / "scripts/sample.py",
        "0",
        "--count",
        "3",
        "--json",
    ]
    lines = "Doc\n" + "x" * 16 + "\n\n"
    done = subprocess.run(
        command, cwd=undisturbed, input=lines, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["texts"]
    assert [one["prompt"] for one in found] == ["Doc", ""]
    assert "PROMPT has 16 tokens" in done.stderr and "at most 15" in done.stderr
    done = subprocess.run(
        command, cwd=undisturbed, input="", capture_output=True, text=True
    )
    assert done.returncode == 2 and "there is no PROMPT" in done.stderr


def test_a_terminal_gets_a_prompt_and_no_control_characters(undisturbed):
    """Models of bytes make escape sequences, too."""
    leader, follower = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, ROOT / "scripts/sample.py", "0", "--temperature", "50"],
        cwd=undisturbed,
        env={**os.environ, "TERM": "dumb"},
        stdin=follower,
        stdout=follower,
        stderr=follower,
    )
    os.close(follower)
    said = b""
    for number in range(5):
        while said.count(b"> ") <= number:
            said += os.read(leader, 65536)
        os.write(leader, b"Doc\n" if number < 4 else b"\x04")
    assert process.wait() == 0, said
    os.close(leader)
    assert said.count(b"0 baseline, seed 1: ") == 4
    shown = said.translate(None, b"\r\n\t")
    assert b"\\x" in shown and min(shown) >= 32


@pytest.fixture
def folder(finished):
    """A copy of the matrix of step 0 and 5, seed 1, to change."""
    return finished


def rewrite(path, change=None, **metadata):
    """Write an export again with other tensors, as if trained so, or metadata."""
    with safe_open(path, framework="pt") as file:
        stored = {**file.metadata(), **metadata}
        tensors = {name: file.get_tensor(name) for name in file.keys()}
    if change is not None:
        change(tensors)
        stored[WEIGHTS] = weights_sha256(tensors)
    save_file(tensors, path, metadata=stored)


def not_finite(tensors):
    tensors["wpe.weight"][3, 3] = float("nan")


def other_vocabulary(tensors):
    tensors["wte.weight"] = tensors["wte.weight"][:200].clone()


def head_removed(tensors):
    name = "blocks.1.attn.proj.weight"
    tensors[name] = tensors[name][:, :12].clone()


@pytest.mark.parametrize(
    ("change", "hint"),
    [
        (lambda path: path.unlink(), "model.safetensors is missing"),
        (
            lambda path: path.write_bytes(path.read_bytes()[:-9]),
            "is not an exported model",
        ),
        (lambda path: rewrite(path, not_finite), "wpe.weight has numbers that are not"),
        (
            lambda path: rewrite(path, other_vocabulary),
            "has 200 token embeddings, but its tokenizer, 'bytes', has 257",
        ),
        (
            lambda path: rewrite(path, head_removed),
            "blocks.1.attn.proj.weight has shape (16, 12), not (16, 16)",
        ),
        (lambda path: rewrite(path, heads="[4, 5]"), "must be 2 numbers from 1 to 4"),
        # The tensors of step 5 are named and shaped as those of step 0.
        (
            lambda path: shutil.copy(
                path.parents[2] / "step05-ra/seed1" / path.name, path
            ),
            "belongs to another run than its job.json",
        ),
    ],
)
def test_an_unusable_export_is_refused_by_its_fault(folder, change, hint):
    change(folder / RUN / "model.safetensors")
    said = sample(folder, "--prompt", "a", "0", code=2).stderr
    assert said.startswith("sample: ") and hint in said, said


def test_settings_have_an_effect_or_are_refused(undisturbed, tmp_path):
    for word in ("N_LAYER=9", "MODEL=CUSTOM", "MAX_ITERS=5", "DATA_DIR=elsewhere"):
        words = ("--prompt", "a", "--overrides", f"DEVICE=cpu {word}", "5")
        said = sample(undisturbed, *words, code=2).stderr
        assert f"{word} has no effect on runs that are trained" in said
        assert "of the settings, CPU_THREADS, DEVICE, OUTPUT_DIR" in said
    where = f"OUTPUT_DIR={undisturbed / 'results'}"
    elsewhere = ("--config", "none.py", "--overrides", where, "--prompt", "a", "5")
    said = sample(tmp_path, "--count", "1", *elsewhere).stderr
    assert f"Next: make eval RUNS=5 RESULTS={undisturbed / 'results'} (" in said


def test_what_is_no_run_is_refused_with_what_there_is(folder):
    path = folder / OTHER / "status.json"
    atomic_write_json(path, {**read_json(path), "status": "interrupted"})
    for name, hint in {
        "5": "none of these runs is finished: results/step05-ra/seed1: interrupted",
        "7": "nor a run of results: it has 0 baseline, 5 ra",
        ",": "RUN=',' names no run",
        "0:": "RUN='0:' has no seed after the colon",
        "none/": "nor a run of results",
    }.items():
        assert hint in sample(folder, "--prompt", "a", name, code=2).stderr
    shutil.rmtree(folder / OTHER)  # planned in matrix.json, without a folder
    said = sample(folder, "--prompt", "a", "ra:1", code=2).stderr
    assert "RUN='ra:1' was not begun in results: run `make` first" in said
    for option, value, hint in [
        ("--temperature", "-1", "TEMPERATURE=-1 must be a number of at least 0"),
        ("--top_p", "0", "TOP_P=0 must be above 0 and at most 1"),
        ("--count", "0", "COUNT=0 must be a whole number of at least 1"),
    ]:
        assert hint in sample(folder, option, value, "0", code=2).stderr
