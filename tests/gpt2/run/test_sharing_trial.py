"""gpt2/run/sharing_trial.py: what the records of one run and of two at a time say."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from gpt2.run.sharing_trial import rate, sharing_line
from lib.jobs.live_table import PlainView
from lib.jobs.options import Options
from lib.jobs.slots import Gpus, gpu_sets
from tests.gpt2.run.test_gpu_sharing import record
from tests.gpt2.run.test_prepare_ahead import jobs

TWO = gpu_sets(Gpus("cuda", ("0", "1")), 1)


def steady(begin: float, end: float, per_second: float) -> list[tuple[float, int]]:
    count = int((end - begin) * per_second)
    return [(begin + n / per_second, n) for n in range(1, count + 1)]


def test_updates_count_while_both_train() -> None:
    assert rate([steady(0, 10, 20)]) == pytest.approx(20)
    both = [steady(0, 10, 12), steady(3, 13, 14)]
    assert rate(both) == pytest.approx(26, rel=1e-2)
    slower_together = [(float(t), 10 * t) for t in range(4)]
    slower_together += [(float(t), 30 + 2 * (t - 3)) for t in range(4, 11)]
    apart = [slower_together, steady(3, 13, 2)]
    assert rate(apart) == pytest.approx(4, rel=1e-1), "the time alone counted"


def test_too_little_in_common_is_no_answer() -> None:
    assert rate([steady(0, 10, 12), steady(8, 18, 14)]) is None
    assert rate([steady(0, 10, 12), steady(20, 30, 14)]) is None
    assert rate([steady(0, 10, 12), []]) is None


def line(tmp_path: Path, slots: Any = TWO, count: int = 4, **changes: Any) -> str:
    found = jobs(count)
    probe = record(found[0], changes.pop("gib", 20)) | changes
    options, view = Options(slots=slots), PlainView(io.StringIO())
    return sharing_line(found, probe, options, view, tmp_path)


def test_what_cannot_pay_is_not_tried(tmp_path: Path) -> None:
    assert "MFU 48%" in line(tmp_path, mfu=0.48)
    assert "two do not fit" in line(tmp_path, gib=60)
    assert line(tmp_path, slots=[{}]) == "" == line(tmp_path, count=2)
    assert "does not show how runs slow" in line(tmp_path, slots=TWO * 2)
