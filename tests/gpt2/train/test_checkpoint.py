"""Checkpoints on disk: whole or not there, of this run or refused."""

import json
import os
import resource
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch import nn

from gpt2.train import checkpoint
from gpt2.train.checkpoint import (
    INDEX_FILE,
    STATE_FILE,
    WEIGHTS_FILE,
    CheckpointMismatch,
    DamagedCheckpoint,
    Stamp,
)
from gpt2.train.failures import end_of
from lib.atomic_files import DiskFull
from lib.files import Linked
from lib.hashing import file_sha256, identity

STAMP = Stamp(
    step=3,
    hash="a" * 16,
    identity={"optim": {"learning_rate": 1e-3, "max_iters": 10}, "seed": 1},
    data_fingerprint="d" * 16,
)
WEIGHTS = {"w": torch.arange(12.0).view(3, 4), "b": torch.ones(4)}
STATE = {"rng": torch.get_rng_state(), "progress": {"step": 3, "best": None}}


def save(folder, step):
    weights = {name: tensor + step for name, tensor in WEIGHTS.items()}
    state = {**STATE, "progress": {"step": step, "best": None}}
    return checkpoint.save(folder, replace(STAMP, step=step), weights, state)


def load_newest(folder, stamp=STAMP):
    said: list[object] = []
    return checkpoint.load_newest(folder, stamp, said.append), said


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_what_is_saved_is_loaded(tmp_path):
    path = checkpoint.save(tmp_path, STAMP, WEIGHTS, STATE)
    assert path.name == "step-000003"
    found, said = load_newest(tmp_path)
    assert found.stamp == STAMP
    assert found.weights.keys() == WEIGHTS.keys()
    assert all(torch.equal(found.weights[name], WEIGHTS[name]) for name in WEIGHTS)
    assert torch.equal(found.state["rng"], STATE["rng"])
    assert found.state["progress"] == STATE["progress"]
    assert said == []


def test_its_files_can_be_read_by_whom_the_umask_lets(tmp_path):
    before = os.umask(0o022)
    try:
        path = save(tmp_path, 3)
    finally:
        os.umask(before)
    modes = {file.name: oct(file.stat().st_mode & 0o777) for file in path.iterdir()}
    assert set(modes.values()) == {"0o644"}, modes


def test_no_folder_and_an_empty_one_have_no_checkpoint(tmp_path):
    assert load_newest(tmp_path / "none") == (None, [])
    assert load_newest(tmp_path) == (None, [])


def test_the_last_two_are_kept_by_number_and_not_by_name(tmp_path):
    for step in (5, 999_999, 1_000_000):
        save(tmp_path, step)
    assert names(tmp_path) == ["step-1000000", "step-999999"]
    assert load_newest(tmp_path)[0].stamp.step == 1_000_000


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path):
    save(tmp_path, 3)
    other = {name: tensor * 2 for name, tensor in WEIGHTS.items()}
    checkpoint.save(tmp_path, STAMP, other, STATE)
    assert names(tmp_path) == ["step-000003"]
    assert torch.equal(load_newest(tmp_path)[0].weights["w"], other["w"])


def do_sums(path):
    """Of a checkpoint whose files were changed, so that they fit again."""
    index = {
        "schema": 1,
        "stamp": asdict(STAMP),
        "sha256": {n: file_sha256(path / n) for n in (WEIGHTS_FILE, STATE_FILE)},
    }
    text = json.dumps({**index, "sum": identity(index)})
    (path / INDEX_FILE).write_text(text)


def flip(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 0x40
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def empty(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [flip, cut, empty, Path.unlink])
@pytest.mark.parametrize("name", [WEIGHTS_FILE, STATE_FILE, INDEX_FILE])
def test_a_damaged_one_is_told_and_the_one_before_is_taken(tmp_path, name, damage):
    save(tmp_path, 3)
    damage(save(tmp_path, 6) / name)
    found, said = load_newest(tmp_path)
    assert found.stamp.step == 3
    assert torch.equal(found.weights["w"], WEIGHTS["w"] + 3)
    assert len(said) == 1
    assert "skipped a damaged checkpoint" in said[0] and "step-000006" in said[0]


def test_a_changed_stamp_counts_as_damage(tmp_path):
    path = save(tmp_path, 3) / INDEX_FILE
    index = json.loads(path.read_text())
    index["stamp"]["step"] = 4
    path.write_text(json.dumps(index))
    assert load_newest(tmp_path)[0] is None


def test_a_copy_under_another_number_counts_as_damage(tmp_path):
    """As the newest for ever it would take every later one's place."""
    shutil.copytree(save(tmp_path, 3), tmp_path / "step-000900")
    found, said = load_newest(tmp_path)
    assert found.stamp.step == 3 and "was written as step-000003" in said[0]


@pytest.mark.parametrize("inner", [{"progress": {"step": 6}}, {"progress": 3}, [3]])
def test_a_state_of_another_step_counts_as_damage(tmp_path, inner):
    """A swapped state with recomputed hashes would change the count of updates."""
    path = save(tmp_path, 3)
    torch.save(inner, path / STATE_FILE)
    do_sums(path)
    with pytest.raises(DamagedCheckpoint, match=f"{STATE_FILE}: is of update .* of 3$"):
        checkpoint.load(path)
    found, said = load_newest(tmp_path)
    assert found is None and len(said) == 1


def test_a_damaged_one_does_not_take_the_place_of_a_whole_one(tmp_path):
    """It must not count among the last two, or the good one before would go."""
    save(tmp_path, 3)
    cut(save(tmp_path, 6) / STATE_FILE)
    assert load_newest(tmp_path)[0].stamp.step == 3
    assert names(tmp_path) == ["damaged-step-000006", "step-000003"]
    save(tmp_path, 4)
    assert names(tmp_path) == ["step-000003", "step-000004"]


def test_all_damaged_means_a_fresh_start(tmp_path):
    cut(save(tmp_path, 3) / STATE_FILE)
    flip(save(tmp_path, 6) / WEIGHTS_FILE)
    found, said = load_newest(tmp_path)
    assert found is None
    assert len(said) == 2


def test_a_half_written_one_is_invisible_and_cleared_away(tmp_path):
    whole = save(tmp_path, 3)
    partial = tmp_path / ".step-000006.0a1b2c3d4e5f.tmp"
    partial.mkdir()
    (partial / WEIGHTS_FILE).write_bytes((whole / WEIGHTS_FILE).read_bytes())
    (partial / ".tmp0LH6UG").write_bytes(b"")  # as a killed safetensors leaves it
    assert load_newest(tmp_path)[0].stamp.step == 3
    checkpoint.remove_leftovers(tmp_path)
    assert names(tmp_path) == ["step-000003"]


def test_dropping_all_leaves_what_is_not_of_this_run(tmp_path):
    """A folder and a note of the user, another run's checkpoint, and one with a file
    that no checkpoint has."""
    for step in (3, 6):
        save(tmp_path, step)
    cut(tmp_path / "step-000006" / STATE_FILE)
    load_newest(tmp_path)  # puts it aside
    (save(tmp_path, 9) / "note.txt").write_text("look at this one")
    other = replace(STAMP, hash="b" * 16, step=1)
    checkpoint.save(tmp_path, other, WEIGHTS, {"progress": {"step": 1}})
    (tmp_path / "keep").mkdir()
    (tmp_path / "keep" / "x").write_text("kept")
    (tmp_path / "note.txt").write_text("kept")
    (tmp_path / "step-000002").symlink_to(tmp_path / "keep")
    stays = ["keep", "note.txt", "step-000001", "step-000002", "step-000009"]
    assert checkpoint.drop_all(tmp_path, STAMP.hash) == stays == names(tmp_path)
    assert names(tmp_path / "keep") == ["x"]
    assert (tmp_path / "step-000009" / WEIGHTS_FILE).exists()
    checkpoint.reject_all(tmp_path, STAMP.hash)
    left = ["damaged-step-000002", "damaged-step-000009", *stays[:3]]
    assert names(tmp_path) == left


def test_nothing_is_dropped_or_written_behind_a_link(tmp_path):
    save(tmp_path / "theirs", 3)
    (tmp_path / "theirs" / "sub").mkdir()
    link = tmp_path / "ckpt"
    link.symlink_to(tmp_path / "theirs")
    assert checkpoint.drop_all(link, STAMP.hash) == ["ckpt"]
    with pytest.raises(Linked, match="remove the link"):
        save(link, 6)
    (tmp_path / "theirs" / ".step-000001.0a1b2c3d4e5f.tmp").mkdir()
    checkpoint.remove_leftovers(link)
    left = [".step-000001.0a1b2c3d4e5f.tmp", "step-000003", "sub"]
    assert names(tmp_path / "theirs") == left


def test_another_runs_newer_checkpoints_do_not_displace_ours(tmp_path):
    for step in (800, 900):
        stamp = replace(STAMP, hash="b" * 16, step=step)
        checkpoint.save(tmp_path, stamp, WEIGHTS, {"progress": {"step": step}})
    for step in (3, 6, 9):
        save(tmp_path, step)
    ours, theirs = ["step-000006", "step-000009"], ["step-000800", "step-000900"]
    assert names(tmp_path) == ours + theirs


def test_what_somebody_put_into_a_damaged_one_is_kept(tmp_path):
    for _ in range(2):
        path = save(tmp_path, 3)
        cut(path / STATE_FILE)
        (path / "note.txt").write_text("kept")
        assert load_newest(tmp_path)[0] is None
    assert names(tmp_path) == ["damaged-step-000003", "damaged-step-000003.2"]


def test_another_run_is_refused_field_by_field(tmp_path):
    save(tmp_path, 3)
    other = {"optim": {"learning_rate": 2e-3, "max_iters": 10}, "seed": 2}
    with pytest.raises(CheckpointMismatch) as error:
        load_newest(tmp_path, replace(STAMP, hash="b" * 16, identity=other))
    text = str(error.value)
    assert "LEARNING_RATE: 0.001 in the checkpoint, 0.002 configured" in text
    assert "seed: 1 in the checkpoint, 2 configured" in text
    assert "max_iters" not in text
    assert names(tmp_path) == ["step-000003"]


def test_other_data_are_refused(tmp_path):
    save(tmp_path, 3)
    with pytest.raises(CheckpointMismatch, match="other data"):
        load_newest(tmp_path, replace(STAMP, data_fingerprint="e" * 16))


class Trap:
    """Unpickled, it would leave a file; loading must not get that far."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    """Sums that are right prove only that the writer wrote it."""
    path, trap = save(tmp_path / "ckpt", 3), tmp_path / "sprung"
    torch.save({"progress": Trap(trap)}, path / STATE_FILE)
    do_sums(path)
    with pytest.raises(DamagedCheckpoint, match="unreadable"):
        checkpoint.load(path)
    assert not trap.exists()


@pytest.mark.parametrize("big", ["weights", "state"])
def test_a_full_disk_leaves_what_was_there(tmp_path, big):
    """A limit on the size of files stands for the disk: it needs no privileges."""
    save(tmp_path, 3)
    bulk = torch.zeros(50_000)
    weights = {"w": bulk} if big == "weights" else WEIGHTS
    state = {"s": bulk} if big == "state" else STATE
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(DiskFull, match="older checkpoints still stand"):
            checkpoint.save(tmp_path, replace(STAMP, step=6), weights, state)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert names(tmp_path) == ["step-000003"]
    assert load_newest(tmp_path)[0].stamp.step == 3


def test_a_folder_that_cannot_be_written_ends_the_run_as_a_crash(tmp_path):
    """Once the error became its own cause, and its causes were followed for ever."""
    (tmp_path / "file").write_text("")
    for write in (
        lambda: save(tmp_path / "file", 3),
        lambda: checkpoint.export(tmp_path / "none" / "x.safetensors", Tied(), {}),
    ):
        with pytest.raises(OSError) as caught:
            write()
        assert caught.value.__cause__ is not caught.value
        assert end_of(caught.value).failure == "crash"


# ---- weights of a model ---------------------------------------------------------


class Tied(nn.Module):
    """A head that is the embedding, and a buffer."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(5, 3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.wte.weight
        self.register_buffer("basis", torch.randn(2, 2))
        self.register_buffer("table", torch.randn(2), persistent=False)


def test_tied_weights_are_stored_once_and_come_back_tied(tmp_path):
    model, other = Tied(), Tied()
    weights = checkpoint.weights_of(model)
    assert sorted(weights) == ["basis", "wte.weight"]
    checkpoint.save(tmp_path, STAMP, weights, STATE)
    checkpoint.load_weights(other, load_newest(tmp_path)[0].weights)
    assert other.head.weight is other.wte.weight
    assert torch.equal(other.head.weight, model.wte.weight)
    assert torch.equal(other.basis, model.basis)


def test_weights_of_another_model_are_refused():
    weights = checkpoint.weights_of(Tied())
    with pytest.raises(ValueError, match="basis"):
        checkpoint.load_weights(
            Tied(), {n: t for n, t in weights.items() if n != "basis"}
        )
    with pytest.raises(ValueError, match="has shape"):
        checkpoint.load_weights(Tied(), {**weights, "basis": torch.zeros(3)})
