"""The verify command with several processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing import active_children

import pytest

from lib.forked import Begin, forked
from scripts import verify


def test_a_killed_process_is_reported_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    @contextmanager
    def one_is_killed(processes: int) -> Iterator[Begin]:
        with forked(2) as begin:
            active_children()[0].kill()
            yield begin

    monkeypatch.setattr(verify, "forked", one_is_killed)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as the command sets it
    monkeypatch.setenv("MKL_NUM_THREADS", "1")
    assert verify.main(["--fresh", "--overrides", "STEPS=0"]) == verify.EXIT_FAILED
    assert "was killed" in capsys.readouterr().err
