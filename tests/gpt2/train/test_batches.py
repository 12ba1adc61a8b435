"""Batches: pure functions of the step, the same however they are cut or loaded."""

import copy
import os
import pickle
import signal
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2.data.token_files import (
    DataError,
    DataRequest,
    MissingData,
    fingerprint,
    prepared,
)
from gpt2.settings.parse import settings_from
from gpt2.train.batch_split import split_batch
from gpt2.train.batches import (
    Batches,
    BatchPlan,
    eval_windows,
    gather,
    load_data,
    load_split,
    open_tokens,
)
from tests.gpt2.helpers import make_config
from tests.gpt2.tinydata import prepare_texts, text_folder, text_request, texts
from tests.gpt2.tinytraining import server
from tests.scratch import PATIENT

T = 16
PLAN = BatchPlan(5000, T, split_batch(24, 6), seed=1337)
CUTS = [(24, 1, 1), (1, 24, 1), (6, 4, 1), (3, 2, 4), (4, 3, 2), (1, 1, 24)]
PINNED = [1800, 4884, 2790, 2878, 1017, 3117]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    return prepare_texts(tmp_path_factory.mktemp("prepared"), texts(30))


@pytest.fixture(scope="module")
def train(data_dir):
    return load_split(data_dir, text_request(data_dir), "train", T)


def plan_for(split, **changes):
    return replace(PLAN, n_tokens=split.tokens.size, **changes)


def collected(loader):
    return [(x.clone(), y.clone()) for x, y in loader]


def equal(left, right):
    return len(left) == len(right) and all(
        torch.equal(a, b)
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    )


# ---- which windows ----------------------------------------------------------------


@pytest.mark.parametrize("micro, accumulation, world", CUTS)
def test_cuts_of_a_step_cover_the_same_windows_in_the_same_order(
    micro, accumulation, world
):
    for step in (0, 1, 999):
        rows = []
        for micro_step in range(accumulation):
            for rank in range(world):
                plan = replace(PLAN, split=split_batch(24, micro, world, rank))
                assert plan.offsets(step, micro_step).shape == (micro,)
                rows.extend(plan.offsets(step, micro_step).tolist())
        assert rows == PLAN.step_offsets(step).tolist()


def test_windows_differ_by_step_and_seed_and_by_nothing_else():
    again = replace(PLAN)
    assert np.array_equal(PLAN.step_offsets(3), again.step_offsets(3))
    assert not np.array_equal(PLAN.step_offsets(3), PLAN.step_offsets(4))
    other = replace(PLAN, seed=1338)
    assert not np.array_equal(PLAN.step_offsets(3), other.step_offsets(3))


def test_windows_are_those_of_every_release():
    """Pinned: a change here makes every earlier run impossible to reproduce."""
    assert PLAN.step_offsets(0)[:6].tolist() == PINNED
    assert PLAN.step_offsets(0).dtype == np.int64


def test_every_window_is_inside_and_the_last_one_is_reached():
    plan = replace(PLAN, n_tokens=T + 3)
    seen = {int(o) for step in range(20) for o in plan.step_offsets(step)}
    assert seen == {0, 1, 2}


def test_a_batch_that_does_not_divide_is_refused():
    with pytest.raises(ValueError, match="does not divide the effective batch of 24"):
        split_batch(24, 5)


# ---- what is in them --------------------------------------------------------------


def test_gather_reads_the_file_and_the_next_token(train):
    offsets = np.array([0, 7, train.tokens.size - T - 1])
    x, y = gather(train.tokens, offsets, T)
    raw = np.fromfile(train.path, dtype="<u2").astype(np.int64)
    for row, offset in enumerate(offsets):
        assert x[row].tolist() == raw[offset : offset + T].tolist()
        assert y[row].tolist() == raw[offset + 1 : offset + T + 1].tolist()
    assert x.dtype == y.dtype == torch.int64
    assert x.is_contiguous() and y.is_contiguous()


def test_batches_are_step_major_and_start_anywhere(train):
    plan = plan_for(train)
    whole = collected(Batches(train, plan, 0, 5))
    assert len(whole) == 5 * plan.split.accumulation
    for index, (x, y) in enumerate(whole):
        offsets = plan.offsets(*divmod(index, plan.split.accumulation))
        assert equal([(x, y)], [gather(train.tokens, offsets, T)])
    assert equal(collected(Batches(train, plan, 3, 5)), whole[3 * 4 :])
    assert collected(Batches(train, plan, 5, 5)) == []


@pytest.mark.parametrize("persistent", [False, True])
def test_workers_give_the_same_batches_and_leave_the_generator_alone(train, persistent):
    plan = plan_for(train)
    alone = collected(Batches(train, plan, 2, 5))
    torch.manual_seed(7)
    before = torch.get_rng_state()
    loader = Batches(
        train, plan, 2, 5, num_workers=2, persistent_workers=persistent, pin_memory=True
    )
    assert loader.take_wait() == 0.0
    assert equal(collected(loader), alone)
    assert equal(collected(loader), alone)
    assert loader.take_wait() > 0.0 == loader.take_wait()
    assert torch.equal(torch.get_rng_state(), before)


def test_loader_pickles_without_the_tokens(train):
    """Start methods other than fork send the data set to each worker."""
    dataset = Batches(train, plan_for(train), 0, 1)._dataset
    first = dataset[0]
    assert len(pickle.dumps(dataset)) < 2000 < train.tokens.nbytes
    assert torch.equal(copy.copy(dataset)[0], first)  # by the same state


def wait(data_dir, log):
    """A trainer that gets SIGTERM in its third update, and then takes its time."""
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    received = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, frame: received.append(number))
    train = load_split(data_dir, text_request(data_dir), "train", 16)
    plan = BatchPlan(train.tokens.size, 16, split_batch(4, 4), 1)
    for step, _ in enumerate(Batches(train, plan, 0, 10**6, num_workers=2)):
        if step == 2:
            print("ready", flush=True)
            while not received:
                time.sleep(0.01)
            break
    for _ in range(30):  # a checkpoint is being written meanwhile
        time.sleep(0.01)
    print("saved", flush=True)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signal_to_the_group_does_not_disturb_the_trainers_last_work(
    data_dir, tmp_path, number
):
    log = tmp_path / "log"
    log.touch()
    process = server().Process(target=wait, args=(data_dir, log))
    process.start()
    end = time.monotonic() + PATIENT
    while log.read_text() != "ready\n":
        assert process.is_alive() and time.monotonic() < end, log.read_text()
        time.sleep(0.01)
    os.killpg(process.pid, number)
    process.join()
    assert (process.exitcode, log.read_text()) == (0, "ready\nsaved\n")


@pytest.mark.gpu
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("pin", [False, True])
def test_batches_on_the_gpu_are_those_of_the_cpu(train, workers, pin):
    plan = plan_for(train)
    alone = collected(Batches(train, plan, 0, 20))
    busy = torch.randn(2000, 2000, device="cuda")
    found = []
    for x, y in Batches(
        train, plan, 0, 20, device="cuda", num_workers=workers, pin_memory=pin
    ):
        assert x.is_cuda and y.is_cuda
        busy = busy @ busy / 2000  # keeps the stream behind the copies
        found.append((x + 0, y + 0))
    assert equal([(x.cpu(), y.cpu()) for x, y in found], alone)


# ---- evaluation -------------------------------------------------------------------


@given(st.integers(2, 5000), st.integers(1, 64), st.integers(1, 100))
@settings(max_examples=200)
def test_eval_windows_are_inside_spread_and_apart_if_they_fit(n, block, samples):
    last = n - block - 1
    if samples > last + 1:
        with pytest.raises(DataError, match="GPT2_EVAL_SAMPLES"):
            eval_windows(n, block, samples)
        return
    offsets = eval_windows(n, block, samples)
    gaps = np.diff(offsets)
    assert len(offsets) == samples and offsets[0] == 0 and offsets.dtype == np.int64
    assert samples == 1 or offsets[-1] == last
    assert samples == 1 or gaps.max() - gaps.min() <= 1
    assert samples == 1 or gaps.min() >= 1
    if samples > 1 and samples * block < n:
        assert gaps.min() >= block


def test_every_window_may_be_evaluated():
    assert eval_windows(10, 4, 6).tolist() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(DataError, match="6 windows"):
        eval_windows(10, 4, 7)


def test_eval_windows_of_a_large_split_do_not_overflow():
    offsets = eval_windows(10**10, 1024, 10**6)
    assert offsets[-1] == 10**10 - 1025 and (np.diff(offsets) > 0).all()


# ---- what is refused --------------------------------------------------------------


def test_missing_data_names_the_command(tmp_path):
    with pytest.raises(MissingData, match="prepare the data with `make data`"):
        load_split(tmp_path, DataRequest("stdlib", "bytes"), "train")


def test_short_split_names_the_block_size(data_dir):
    size = open_tokens(text_folder(data_dir) / "val.bin").size
    assert (
        load_split(data_dir, text_request(data_dir), "val", size - 1).tokens.size
        == size
    )
    with pytest.raises(DataError, match=f"too few for GPT2_BLOCK_SIZE={size}"):
        load_split(data_dir, text_request(data_dir), "val", size)


def test_split_says_what_it_is(train, data_dir):
    val = load_split(data_dir, text_request(data_dir), "val")
    assert train.vocab_size == 257 and train.fingerprint == val.fingerprint
    assert train.fingerprint == fingerprint(train.meta)
    assert 0.9 < train.bytes_per_token < 1.0  # bytes, and one token a document
    with pytest.raises(DataError, match="split='test'"):
        load_split(data_dir, text_request(data_dir), "test")


def settings_for(data_dir, **wanted):
    overrides = {
        "GPT2_DATASET_TEXT": "y",
        "GPT2_DATASET_TEXT_PATH": str(data_dir.parent / "texts"),
        "GPT2_TOKENIZER_BYTES": "y",
        "GPT2_BLOCK_SIZE": "32",
        "DATA_DIR": str(data_dir),
        **wanted,
    }
    return settings_from(make_config(**overrides))


def test_load_data_takes_what_the_settings_ask_for(data_dir):
    train, val = load_data(settings_for(data_dir))
    assert (train.split, val.split) == ("train", "val")
    assert prepared(settings_for(data_dir)) == train.meta
    said = rf"^{text_folder(data_dir).name} .*MAX_TOKENS was 0 and is now 999"
    with pytest.raises(DataError, match=said):
        load_data(settings_for(data_dir, GPT2_DATASET_MAX_TOKENS="999"))
    with pytest.raises(MissingData, match="text-elsewhere-[0-9a-f]{6}-bytes does not"):
        load_data(settings_for(data_dir, GPT2_DATASET_TEXT_PATH="elsewhere"))
    with pytest.raises(MissingData):
        load_data(settings_for(data_dir).replace(tokenizer="gpt2"))


@pytest.mark.parametrize(
    "symbol, over, message",
    [
        ("GPT2_EVAL_SAMPLES", 1, "GPT2_EVAL_SAMPLES=.*use at most"),
        ("GPT2_BLOCK_SIZE", 32, "too few for GPT2_BLOCK_SIZE="),
    ],
)
def test_what_a_split_cannot_give_is_refused_from_its_counts(
    data_dir, symbol, over, message
):
    """Before anything is started: meta.json has the counts."""
    counts = prepared(settings_for(data_dir))["splits"]["val"]["tokens"]
    most = counts - 32
    prepared(settings_for(data_dir, **{"GPT2_EVAL_SAMPLES": "1", symbol: str(most)}))
    said = f"the val split of {text_folder(data_dir).name} has .*{message}"
    with pytest.raises(DataError, match=said):
        wanted = {"GPT2_EVAL_SAMPLES": "1", symbol: str(most + over)}
        prepared(settings_for(data_dir, **wanted))
