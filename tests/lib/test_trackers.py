"""lib/trackers.py: the real trackers offline, and trackers that misbehave."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from lib.trackers import (
    QUEUE_SIZE,
    TrackedRun,
    Trackers,
    parse_trackers,
)
from tests.scratch import PATIENT, until
from tests.wandb_files import from_wandb

ROOT = Path(__file__).resolve().parents[2]


def tracked(directory, **fields):
    base = {"project": "kablate-test", "name": "step05-ra/seed1", "run_id": "ab12cd34"}
    return TrackedRun(**{**base, "directory": directory, **fields})


class Recorder:
    """A tracker that keeps the records it receives, with faults on request."""

    def __init__(self, name="recorder", fail_at=None, hold=None, has=()):
        self.name, self.fail_at, self.hold = name, fail_at, hold
        self.has, self.seen, self.summary = dict(has), [], None
        self.holds_one = False

    def start(self, run):
        if self.fail_at == "start":
            raise SystemExit("no network")
        return self.has

    def log(self, step, values):
        if self.hold is not None:
            self.holds_one = True
            self.hold.wait()
        if self.fail_at == step:
            raise RuntimeError("lost connection")
        self.seen.append((step, dict(values)))

    def finish(self, summary):
        self.summary = dict(summary)


def test_records_arrive_in_order_with_their_kind(tmp_path):
    recorder = Recorder()
    trackers = Trackers([recorder], tracked(tmp_path))
    trackers.log("train", 1, {"loss": 2.5, "kind": "train", "ok": True, "none": None})
    trackers.log("eval", 1, {"val_loss": 3.0})
    trackers.log("train", 2, {"loss": 2.0})
    trackers.finish({"val_loss": 3.0})
    assert recorder.seen == [
        (1, {"train/loss": 2.5}),
        (1, {"eval/val_loss": 3.0}),
        (2, {"train/loss": 2.0}),
    ]
    assert recorder.summary == {"val_loss": 3.0}


def test_what_the_record_has_and_the_tracker_has_not_is_told_first(tmp_path):
    """The last record is in the queue as well, and is sent once."""
    recorder = Recorder(has={"train": 2})
    earlier = [("train", step, {"loss": float(step)}) for step in (1, 2, 3, 4)]
    earlier.insert(2, ("eval", 2, {"val_loss": 1.0}))
    trackers = Trackers([recorder], tracked(tmp_path), lambda: earlier)
    for step in (4, 5):
        trackers.log("train", step, {"loss": float(step)})
    trackers.finish({})
    assert recorder.seen == [
        (2, {"eval/val_loss": 1.0}),
        *((step, {"train/loss": float(step)}) for step in (3, 4, 5)),
    ]


def test_without_a_record_of_its_own_an_attempt_tells_nothing(tmp_path):
    recorder = Recorder()
    history = [("train", 1, {"loss": 1.0})]
    Trackers([recorder], tracked(tmp_path), lambda: history).finish({})
    assert recorder.seen == [] and recorder.summary == {}


@pytest.mark.parametrize("fail_at", ["start", 2])
def test_a_tracker_that_fails_is_off_with_one_message_and_the_others_go_on(
    tmp_path, fail_at
):
    bad, good = Recorder("bad", fail_at), Recorder("good")
    said: list[str] = []
    trackers = Trackers([bad, good], tracked(tmp_path), say=said.append)
    for step in range(1, 50):
        trackers.log("train", step, {"loss": 1.0})
    trackers.finish({})
    assert len(good.seen) == 49
    assert len(said) == 1 and said[0].startswith("bad failed and is off")
    assert "metrics.jsonl has everything" in said[0]


def test_a_tracker_that_hangs_neither_blocks_nor_holds_up_the_end(tmp_path):
    release = threading.Event()
    hung = Recorder("hung", hold=release)
    said: list[str] = []
    trackers = Trackers([hung], tracked(tmp_path), say=said.append)
    try:
        for step in range(QUEUE_SIZE + 500):
            trackers.log("train", step + 1, {"loss": 1.0})
        trackers.finish({}, timeout=0.2)
        assert ["did not finish" in text for text in said] == [True]
        assert hung.seen == []
    finally:
        release.set()


def test_a_tracker_that_was_too_slow_says_what_it_lost(tmp_path):
    release = threading.Event()
    slow = Recorder("slow", hold=release)
    said: list[str] = []
    trackers = Trackers([slow], tracked(tmp_path), say=said.append)
    for step in range(QUEUE_SIZE + 500):
        trackers.log("train", step + 1, {"loss": 1.0})
    release.set()
    until(lambda: len(slow.seen) >= QUEUE_SIZE)
    trackers.finish({})
    lost = QUEUE_SIZE + 500 - len(slow.seen)
    assert said == [
        f"slow was too slow for {lost} records; metrics.jsonl has everything"
    ]


def test_a_tracker_that_catches_up_at_the_end_gets_the_summary(tmp_path):
    """Its queue is full when the run ends."""
    slow = Recorder("slow", hold=threading.Event())
    trackers = Trackers([slow], tracked(tmp_path))
    trackers.log("train", 0, {"loss": 1.0})
    until(lambda: slow.holds_one)  # of which the queue is free
    for step in range(1, QUEUE_SIZE + 500):
        trackers.log("train", step, {"loss": 1.0})
    threading.Timer(0.2, slow.hold.set).start()
    trackers.finish({"val_loss": 3.0}, timeout=PATIENT)
    assert slow.summary == {"val_loss": 3.0} and len(slow.seen) >= QUEUE_SIZE


def test_names():
    assert parse_trackers("trackio, wandb,trackio") == ("trackio", "wandb")
    assert parse_trackers("") == parse_trackers("none") == ()
    with pytest.raises(ValueError, match="nearest: wandb"):
        parse_trackers("trackio,wandbb")


# ---- the real ones, in processes of their own -----------------------------------

USE = """
import sys
from pathlib import Path
from lib.trackers import TrackedRun, open_trackers
name, where, first, last = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
run = TrackedRun(project="kablate-test", name="step05-ra/seed1", run_id="ab12cd34",
                 directory=where, config={"model": {"n_layer": 2}})
earlier = [("train", step, {"loss": 10.0 / step}) for step in range(1, last)]
trackers = open_trackers([name], run, lambda: earlier)
for step in range(first, last):
    trackers.log("train", step, {"loss": 10.0 / step})
trackers.finish({"val_loss": 1.5}, timeout=120)
"""


def use(name, directory, first, last):
    """Track some steps; what was printed to standard error."""
    environ = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "TRACKIO_DIR": str(directory / "trackio"),
        "WANDB_DIR": str(directory),
        "HOME": str(directory),
        "HF_HUB_OFFLINE": "1",
    }
    words = [sys.executable, "-c", USE, name, str(directory), str(first), str(last)]
    done = subprocess.run(
        words, cwd=ROOT, env=environ, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert "is off" not in done.stderr and "abandoned" not in done.stderr, done.stderr


def needs(package):
    absent = importlib.util.find_spec(package) is None
    return pytest.mark.skipif(absent, reason=f"without the package {package}")


@needs("tensorboard")
def test_tensorboard_has_each_step_once_after_a_resumption(tmp_path):
    use("tensorboard", tmp_path, 1, 6)
    use("tensorboard", tmp_path, 4, 9)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    scalars = events.Scalars("train/loss")
    assert [event.step for event in scalars] == list(range(1, 9))
    assert scalars[1].value == pytest.approx(5.0)
    assert events.Scalars("final/val_loss")[-1].value == pytest.approx(1.5)


@needs("trackio")
def test_trackio_has_each_step_once_in_one_run_after_a_resumption(tmp_path):
    use("trackio", tmp_path, 1, 6)
    use("trackio", tmp_path, 4, 9)
    import sqlite3

    (path,) = (tmp_path / "trackio").glob("*.db")
    with sqlite3.connect(path) as database:
        rows = database.execute(
            "select run_name, step, metrics from metrics"
        ).fetchall()
    trained = [(name, step) for name, step, m in rows if "train/loss" in json.loads(m)]
    assert sorted(step for _, step in trained) == list(range(1, 9))
    assert {name for name, _ in trained} == {"step05-ra/seed1 ab12cd"}


@needs("wandb")
def test_wandb_stays_offline_keeps_its_id_and_is_whole_in_its_last_folder(tmp_path):
    use("wandb", tmp_path, 1, 6)
    use("wandb", tmp_path, 4, 9)
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert len(folders) == 2 and not list((tmp_path / "wandb").glob("run-*"))
    assert all(folder.name.endswith("-ab12cd34") for folder in folders)
    found = from_wandb(folders[-1])
    assert found == {step: pytest.approx(10.0 / step) for step in range(1, 9)}
