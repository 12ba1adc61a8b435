"""Reading a run's files while it is running."""

import json
from pathlib import Path

import pytest

from lib.jobs.run_files import GPU_FILE, METRICS_FILE
from lib.jobs.run_log import RunProgress, gpu_line

H100 = {
    "index": 0,
    "utilisation": 96.0,
    "memory_used_bytes": 20 * 2**30,
    "power_w": 410.4,
    "temperature_c": 61,
}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_the_newest_whole_record_is_told(tmp_path: Path) -> None:
    old = {"seconds": 1, "gpus": [{**H100, "power_w": 100}]}
    path = write(tmp_path / GPU_FILE, old, {"seconds": 2, "gpus": [H100]})
    assert gpu_line(path) == "96% 20.0 GiB 410 W 61 °C"
    with open(path, "a") as file:
        file.write('{"seconds": 3, "gpus": [')  # a killed writer
    assert gpu_line(path) == "96% 20.0 GiB 410 W 61 °C"
    assert RunProgress(tmp_path, 10).gpu == gpu_line(path)


def test_several_gpus_are_taken_together(tmp_path: Path) -> None:
    other = {**H100, "utilisation": 50, "power_w": 90, "temperature_c": 70}
    path = write(tmp_path / GPU_FILE, {"seconds": 1, "gpus": [H100, other]})
    assert gpu_line(path) == "73% 40.0 GiB 500 W 70 °C"


@pytest.mark.parametrize("record", [[], {"gpus": 3}, {"gpus": [1]}, {"gpus": [{}]}])
def test_what_is_not_told_is_left_out(tmp_path: Path, record: object) -> None:
    assert gpu_line(write(tmp_path / GPU_FILE, record)) == ""
    assert gpu_line(tmp_path / "missing") == ""


def test_what_a_gpu_does_not_tell_is_left_out(tmp_path: Path) -> None:
    gpu = {**H100, "utilisation": None, "temperature_c": None}
    path = write(tmp_path / GPU_FILE, {"seconds": 1, "gpus": [gpu]})
    assert gpu_line(path) == "20.0 GiB 410 W"


# ---- alarms -----------------------------------------------------------------------


def test_alarms_of_this_attempt_are_taken_once(tmp_path: Path) -> None:
    def alarm(step: int) -> dict[str, object]:
        return {"kind": "alarm", "step": step, "message": "odd"}

    path = tmp_path / METRICS_FILE
    write(path, alarm(1))
    progress = RunProgress(tmp_path, 100)
    assert progress.take_alarms() == []  # of an earlier attempt
    write(path, alarm(1), {"kind": "train", "step": 2, "loss": 1.0}, alarm(2))
    progress.read()
    assert progress.take_alarms() == ["at update 2: odd"]
    shorter = tmp_path / "cut back to a checkpoint"
    write(shorter, alarm(1), alarm(2)).replace(path)
    progress.read()
    assert progress.take_alarms() == []
