"""`make export` and `make push` as a user types them, on a model that was trained."""

import json
import signal

import pytest
from safetensors.torch import load_file

from gpt2.infer import hf_export
from gpt2.infer.trained import load_trained
from gpt2.model.gpt2_weights import from_gpt2
from lib.atomic_files import atomic_write_json, read_json
from lib.files import hidden_name, is_hidden_name
from tests.scratch import ROOT, python
from tests.scripts.inprocess import run_script

RUN = "results/step00-baseline/seed1"


@pytest.fixture
def folder(finished):
    """A copy of the matrix of step 0 and 5, seed 1, to change."""
    return finished


def test_step_0_becomes_gpt2_with_a_card_and_would_be_pushed(folder, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    run_script("report.py", "--no-plots", "--no-html", "--quiet", cwd=folder)
    done = run_script("export.py", "0", "--repo", "me/gpt2", cwd=folder)
    assert done.returncode == 3, done.stdout + done.stderr
    out = folder / "exports" / RUN
    assert "0 baseline, seed 1: GPT-2 of transformers, " in done.stdout
    assert f'from_pretrained("exports/{RUN}")' in done.stdout
    assert (
        "push: nothing was uploaded" in done.stderr
        and "me/gpt2, 7 files" in done.stderr
    )
    config = json.loads((out / "config.json").read_text())
    assert config["model_type"] == "gpt2" and "auto_map" not in config
    # Back again, the weights are those of the run, bit for bit.
    theirs = from_gpt2(load_file(out / "model.safetensors"), n_layer=2)
    ours = load_file(folder / RUN / "model.safetensors")
    assert theirs.keys() == ours.keys()
    assert all(theirs[name].equal(ours[name]) for name in ours)
    card = (out / "README.md").read_text()
    result = read_json(folder / RUN / "status.json")["result"]
    assert f"| validation loss, nats per token | {result['val_loss']:.4f} |" in card
    assert "| GPT2_N_LAYER | 2 |" in card and "license: mit" in card
    assert str(folder) not in card


def test_the_card_has_the_verdict_of_the_report(folder):
    from gpt2.infer.model_card import model_card
    from gpt2.infer.trained import load_trained

    def card():
        run = folder / "results/step05-ra/seed1"
        return model_card(load_trained(run), native=False)

    assert "None: no report has compared this arm" in card()
    run_script("report.py", "--no-plots", "--no-html", "--quiet", cwd=folder)
    summary = read_json(folder / "results/summary.json")
    (comparison,) = summary["verdicts"]["comparisons"]
    found = comparison["at_equal_steps"]
    assert f"**{found['grade']}** against step 0 baseline." in card()
    assert f"differs by {found['mean']:+.4f} nats per token" in card()
    # A report that somebody edited breaks neither the card nor its Markdown.
    comparison["partner"] = {"step": 0, "name": "<script>|x\n# y"}
    atomic_write_json(folder / "results/summary.json", summary)
    assert "against step 0 &lt;script>\\|x # y." in card()


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["0", "--format", "onnx"], "export: FORMAT=onnx must be hf"),
        (["0", "--format", "onnx", "--repo", "a/b"], "push: FORMAT=onnx must be hf"),
        (["0,5"], "stands for 2 runs, but this takes one run"),
        ([""], "stands for 2 runs"),
        (["7"], "nor a run of results: it has 0 baseline, 5 ra"),
        (["0", "--repo", ""], "push: REPO='' must be an account and a name"),
        (["0", "--out", "texts"], "texts is there and holds"),
    ],
)
def test_what_makes_no_sense_is_refused(folder, words, hint, monkeypatch):
    monkeypatch.setattr("gpt2.infer.hf_export.check_folder", lambda *_: 0.0)
    done = run_script("export.py", *words, cwd=folder)
    assert done.returncode == 2 and hint in done.stderr, done.stderr
    assert not (folder / "exports").exists()


KILLED = """
import os, signal, sys
from pathlib import Path
from gpt2.infer import hf_export
from gpt2.infer.trained import load_trained
hf_export.check_folder = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
hf_export.export_hf(load_trained(Path(sys.argv[1])), Path(sys.argv[2]))
"""


def test_what_a_killed_export_left_is_removed_by_the_next(
    undisturbed, tmp_path, monkeypatch
) -> None:
    run, out = undisturbed / "results/step05-ra/seed1", tmp_path / "out"
    done = python(ROOT, "-c", KILLED, run, out)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    assert is_hidden_name(left, out)
    other = hidden_name(tmp_path / "other")
    other.mkdir()
    monkeypatch.setattr(hf_export, "check_folder", lambda *_: 0.0)
    with hf_export.locked(left):  # by a process that lives
        hf_export.export_hf(load_trained(run), out)
        assert left.exists()
    hf_export.export_hf(load_trained(run), out)
    assert sorted(tmp_path.iterdir()) == sorted([other, out])
