"""Triton kernels on a CPU, by Triton's interpreter."""

import os
import subprocess
import sys

import pytest

from tests.scratch import ROOT


def interpreted(program: str) -> str:
    """What a program prints whose kernels are interpreted.

    In a process of its own: what Triton compiles to is settled at its import.
    """
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    if "only 0-dimensional arrays" in done.stderr:
        pytest.skip("Triton's interpreter does not know this numpy; 2.3 will do")
    assert done.returncode == 0, done.stderr
    return done.stdout
