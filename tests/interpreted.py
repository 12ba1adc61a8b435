"""Triton kernels on a CPU, by Triton's interpreter."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import cache
from importlib import import_module
from typing import Any

import pytest

from tests.scratch import ROOT


def interpreted(function: Callable[[], Any]) -> Any:
    """Result of a function of a module as JSON, with interpreted kernels.

    In a process of their own: what Triton compiles to is settled at its import.
    """
    server = _server()
    assert server.stdin and server.stdout
    server.stdin.write(f"{function.__module__} {function.__name__}\n")
    server.stdin.flush()
    answer = server.stdout.readline()
    assert answer, f"it ended with {server.wait()}"
    result, error = json.loads(answer)
    if "only 0-dimensional arrays" in error:
        pytest.skip("Triton's interpreter does not know this numpy; 2.3 will do")
    assert not error, error
    return result


@cache
def _server() -> subprocess.Popen[str]:
    """One for all functions, as it imports torch; it ends with this process."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.interpreted"],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def serve() -> None:
    """Answer each line, a module and a function, with a result and a traceback."""
    for line in sys.stdin:
        module, function = line.split()
        result, error = None, ""
        try:
            result = getattr(import_module(module), function)()
        except Exception:
            error = traceback.format_exc()
        print(json.dumps([result, error]), flush=True)


if __name__ == "__main__":
    serve()
