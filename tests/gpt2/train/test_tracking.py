"""Trackers with real training runs: trackio and tensorboard, and ones that fail."""

import importlib.util
import json
import os
import sqlite3
import sys
from dataclasses import replace

import psutil
import pytest

from gpt2.settings.parse import settings_from
from gpt2.train.record import Recorder
from gpt2.train.tracking import project_of, tracked_run, tracking
from lib.atomic_files import atomic_write_json
from lib.jobs.run_files import JOB_FILE
from lib.trackers import BACKENDS
from tests.gpt2.helpers import make_config
from tests.gpt2.tinydata import prepare_texts, texts
from tests.gpt2.tinytraining import Training, finish, records, running, tiny_job, train
from tests.scratch import Gate
from tests.tinymatrix import TINY, run_matrix, write_config
from tests.wandb_files import from_wandb

ALL = {f"with_{name}": True for name in BACKENDS}
EXTRA = "the extra is not installed: make setup EXTRAS=trackers"


def needs(name):
    return pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=EXTRA)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_texts(tmp_path_factory.mktemp("corpus"), texts(30))


def places(root):
    """Where trackers may write: nowhere but here."""
    return {
        "TRACKIO_DIR": str(root / "trackio"),
        "HF_HOME": str(root / "hf"),
        "HF_HUB_OFFLINE": "1",
    }


# ---- configuration --------------------------------------------------------------


def test_tracker_names_become_symbols_and_the_others_are_off():
    def chosen(text):
        return settings_from(make_config(TRACKER=text)).resources

    assert chosen("trackio,wandb").trackers == ("trackio", "wandb")
    assert chosen("tensorboard").trackers == ("tensorboard",)
    assert chosen("none").trackers == ()
    assert settings_from(make_config()).resources.trackers == ()
    with pytest.raises(ValueError, match="nearest: wandb"):
        chosen("trackio,wandbb")


def test_trackers_are_no_part_of_the_identity(data_dir):
    plain = tiny_job(data_dir)
    tracked = tiny_job(data_dir, with_trackio=True, tracker_project="x")
    assert plain.hash == tracked.hash


@pytest.mark.parametrize(
    ("folder", "project"),
    [
        ("test_matrix_results", "kablate"),
        ("test_matrix_results_quickstart", "kablate-quickstart"),
        ("out/my results, old", "kablate-my-results-old"),
    ],
)
def test_the_project_is_named_after_the_results_folder(data_dir, folder, project):
    resources = tiny_job(data_dir, output_dir=folder).settings.resources
    assert project_of(resources) == project
    assert project_of(replace(resources, tracker_project="mine")) == "mine"


@pytest.mark.parametrize("words", [("--list",), ()])
def test_a_missing_package_is_told_at_planning_time(tmp_path, words):
    missing = [n for n in BACKENDS if importlib.util.find_spec(n) is None]
    if not missing:
        pytest.skip("every tracker is installed")
    (tmp_path / "texts").mkdir()
    write_config(tmp_path, TINY + f"CONFIG_ENABLE_{missing[0].upper()}=y\n")
    done = run_matrix(tmp_path, *words)
    assert done.returncode == 2
    assert f"{missing[0]} is not installed" in done.stderr
    assert "make setup EXTRAS=trackers" in done.stderr
    assert not (tmp_path / "results").exists()
    assert run_matrix(tmp_path, "--budget").returncode == 0


# ---- one tracker run, however often the run is taken up ---------------------------


def test_a_directory_keeps_its_tracker_run_and_a_new_one_gets_another(
    data_dir, tmp_path
):
    job = tiny_job(data_dir, tracker_project="first")
    one = tracked_run(job, tmp_path / "a")
    later = tiny_job(data_dir, tracker_project="second")
    again = tracked_run(later, tmp_path / "a")
    assert (again.run_id, again.project) == (one.run_id, "first")
    assert tracked_run(job, tmp_path / "b").run_id != one.run_id
    (tmp_path / "a" / "tracker_run.json").write_text("[1")
    assert tracked_run(job, tmp_path / "a").project == "first"


# Records that a tracker had received but not written are lost with the process.
KILLED = {"KABLATE_TEST_FAULTS": "kill@200"}


@pytest.mark.slow
@needs("trackio")
@needs("wandb")
@needs("tensorboard")
def test_after_a_kill_the_same_tracker_run_goes_on_and_is_whole(data_dir, tmp_path):
    often = {"log_interval": 1, "eval_interval": 100, "checkpoint_interval": 30}
    job = tiny_job(data_dir, max_iters=250, **often, **ALL)
    run_dir = tmp_path / "run"
    training = Training(job, run_dir, **KILLED, **places(tmp_path))
    assert training.wait() == -9, training.log
    before = of_each(tmp_path)
    finish(job, run_dir, **places(tmp_path))
    expected = {r["step"]: r["loss"] for r in records(run_dir, "train")}
    assert len(expected) == 250
    assert min(map(len, before.values())) < 199  # some had not written all
    for name, losses in of_each(tmp_path).items():
        assert losses == {s: pytest.approx(x) for s, x in expected.items()}, name
    folders = list((run_dir / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    assert len({folder.name.split("-")[-1] for folder in folders}) == 1


def of_each(root):
    """Step to training loss, by tracker."""
    attempt = max((root / "run" / "wandb").glob("offline-run-*"))
    return {
        "trackio": from_trackio(root / "trackio"),
        "wandb": from_wandb(attempt),
        "tensorboard": from_tensorboard(root / "run" / "tensorboard"),
    }


@needs("trackio")
@needs("tensorboard")
def test_trackio_and_tensorboard_have_what_the_metrics_have(data_dir, tmp_path):
    job = tiny_job(data_dir, with_trackio=True, with_tensorboard=True)
    run_dir, gate = tmp_path / "run", Gate(tmp_path / "gate")
    environ = places(tmp_path) | gate.holds("hold@6")
    with running(job, run_dir, **environ) as training:
        training.wait_until(gate.is_reached)
        os.kill(training.pid, 15)
        assert training.wait() == 3, training.log
    finish(job, run_dir, **places(tmp_path))
    expected = {r["step"]: r["loss"] for r in records(run_dir, "train")}
    assert from_trackio(tmp_path / "trackio") == expected
    found = from_tensorboard(run_dir / "tensorboard")
    assert found == {s: pytest.approx(x) for s, x in expected.items()}


def from_trackio(folder):
    """Step to training loss, of the only run of the only project."""
    (path,) = folder.glob("*.db")
    with sqlite3.connect(path) as database:
        found = database.execute("select run_name, step, metrics from metrics")
        rows = [(name, step, json.loads(text)) for name, step, text in found]
    assert len({name for name, _, _ in rows}) == 1
    losses = [(s, m["train/loss"]) for _, s, m in rows if "train/loss" in m]
    assert len(losses) == len(dict(losses)), "a step was sent twice"
    return dict(losses)


def from_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    if "train/loss" not in events.Reload().Tags()["scalars"]:
        return {}
    return {event.step: event.value for event in events.Scalars("train/loss")}


# ---- trackers that fail -----------------------------------------------------------


def _without_trackers():
    """As if the packages had gone after the plan was made."""
    for name in (*BACKENDS, "torch.utils.tensorboard"):
        sys.modules[name] = None  # type: ignore[assignment]


def test_trackers_that_fail_change_nothing_and_are_told_once(data_dir, tmp_path):
    finish(tiny_job(data_dir), tmp_path / "plain")
    run = train(tiny_job(data_dir, **ALL), tmp_path / "run", setup=_without_trackers)
    for name in BACKENDS:
        assert run.log.count(f"{name} failed and is off") == 1, run.log
    assert records(tmp_path / "run") == records(tmp_path / "plain")


@pytest.mark.slow
@needs("trackio")
@needs("wandb")
@needs("tensorboard")
def test_trackers_that_cannot_write_change_nothing(data_dir, tmp_path):
    """A file stands where each of them wants a folder; root may write anywhere."""
    finish(tiny_job(data_dir), tmp_path / "plain")
    run_dir, job = tmp_path / "run", tiny_job(data_dir, **ALL)
    run_dir.mkdir()
    atomic_write_json(run_dir / JOB_FILE, job.to_json())
    for path in (run_dir / "wandb", run_dir / "tensorboard", tmp_path / "trackio"):
        path.write_text("in the way\n")
    run = train(job, run_dir, **places(tmp_path))
    assert run.wait() == 0, run.log
    # Trackio catches its error and prints a warning of its own.
    for said in ("wandb failed and", "tensorboard failed and", "trackio failed to"):
        assert run.log.count(said) == 1, run.log
    assert records(run_dir) == records(tmp_path / "plain")


@pytest.mark.slow
@needs("trackio")
def test_a_database_locked_in_mid_run_changes_nothing(data_dir, tmp_path):
    job = tiny_job(data_dir, max_iters=60, log_interval=1)
    finish(job, tmp_path / "plain")
    tracked = tiny_job(data_dir, max_iters=60, log_interval=1, with_trackio=True)
    run_dir = tmp_path / "run"
    with running(tracked, run_dir, **places(tmp_path)) as training:
        training.wait_until(lambda: any((tmp_path / "trackio").glob("*.db")))
        (path,) = (tmp_path / "trackio").glob("*.db")
        with sqlite3.connect(path, isolation_level=None, timeout=600) as database:
            database.execute("begin exclusive")
            assert training.wait() == 0, training.log
    assert records(run_dir) == records(tmp_path / "plain")


@pytest.mark.slow
@needs("wandb")
def test_a_tracker_process_that_dies_in_mid_run_changes_nothing(data_dir, tmp_path):
    job = tiny_job(data_dir, max_iters=60, log_interval=1)
    finish(job, tmp_path / "plain")
    tracked = tiny_job(data_dir, max_iters=60, log_interval=1, with_wandb=True)
    run_dir = tmp_path / "run"
    with running(tracked, run_dir, **places(tmp_path)) as training:
        training.wait_until(lambda: helpers_of(training.pid))
        for helper in helpers_of(training.pid):
            helper.kill()
        assert training.wait() == 0, training.log
    assert records(run_dir) == records(tmp_path / "plain")


def helpers_of(pid):
    return psutil.Process(pid).children(recursive=True)


def test_listening_ends_with_the_training(data_dir, tmp_path):
    recorder = Recorder(tmp_path, max_steps=2)
    with tracking(tiny_job(data_dir), recorder) as result:
        assert result == {} and not recorder.listeners
    assert list(tmp_path.iterdir()) == []
