"""The process that chooses kernels, on a CPU, where the choice is soon made."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch

from gpt2.model.autotune import attention, mlp
from gpt2.model.autotune.choice import arm_of, choose_backends
from gpt2.model.autotune.store import Tuning
from tests.gpt2.helpers import tiny_step
from tests.scratch import ROOT

PROGRAM = """
import atexit, runpy
atexit.register(print, "compile workers were waited for")
runpy.run_module("gpt2.train.choose_kernels", run_name="__main__")
"""


def test_a_long_request_is_read_and_answered(tmp_path: Path) -> None:
    """A pipe to the process that compiles the parts would hold 64 KiB of it. Once the
    answer is there, nothing more is waited for."""
    settings = tiny_step(0)
    known = {f"of another arm, {n}": ["x" * 100] for n in range(1000)}
    request = {
        "settings": settings.to_dict(),
        "device": "cpu",
        "batch": 2,
        "tuning": asdict(Tuning(ranks=known)),
        "dropped": [],
        "began": time.time(),
    }
    answer = tmp_path / "answer.json"
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, answer],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "kernels chosen in" in done.stderr
    found = Tuning.of(json.loads(answer.read_text()))
    asked = {attention.key(settings, 2), mlp.key(settings, 2)}
    assert found.ranks.keys() == known.keys() | asked
    built, _ = choose_backends(settings, torch.device("cpu"), 2, found)
    assert found.arms == [arm_of(built, 2)]
