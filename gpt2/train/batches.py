"""Token files to batches on the device.

A batch is a function of (seed, optimizer step, micro step, rank) alone. One draw
gives the windows of a whole optimizer step; how they are cut into micro batches
and ranks changes which process reads a window, never which windows are read.

Shapes: B micro batch, T block size; x and y are int64 [B, T], y one token ahead.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import DataLoader, Dataset

from gpt2.data.token_files import (
    DataError,
    DataRequest,
    dataset_folder,
    fingerprint,
    prepared,
    read_meta,
    request_of,
    split_file,
)
from gpt2.settings.schema import Settings
from gpt2.train.batch_split import BatchSplit
from gpt2.train.fingerprints import is_recorded, windows_sum

Offsets = npt.NDArray[np.int64]
Tokens = npt.NDArray[np.uint16]
Batch = tuple[torch.Tensor, torch.Tensor]

BATCH_STREAM = 0x6261746368  # keeps these draws apart from others of the same seed


# ---- token files ----------------------------------------------------------------


@dataclass(frozen=True)
class TokenSplit:
    """One split of a prepared data set, mapped from disk."""

    tokens: Tokens
    path: Path
    split: str
    meta: dict[str, Any]

    @property
    def vocab_size(self) -> int:
        return int(self.meta["vocab_size"])

    @property
    def bytes_per_token(self) -> float:
        """UTF-8 bytes of text per token: turns loss into bits per byte."""
        record = self.meta["splits"][self.split]
        return float(record["bytes"] / record["tokens"])

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.meta)


def load_split(
    data_dir: str | Path,
    request: DataRequest,
    split: str,
    block_size: int | None = None,
) -> TokenSplit:
    """The "train" or "val" tokens of a data set.

    Raises MissingData, with the command that prepares it, or DataError if it is
    damaged or has no window of block_size + 1 tokens.
    """
    meta = read_meta(data_dir, request)
    path = split_file(dataset_folder(data_dir, request), split)
    tokens = open_tokens(path)
    if block_size is not None and tokens.size < block_size + 1:
        raise DataError(
            f"{path} has {tokens.size:,} tokens, too few for GPT2_BLOCK_SIZE="
            f"{block_size}: prepare more text or shorten the block"
        )
    return TokenSplit(tokens, path, split, meta)


def load_data(settings: Settings) -> tuple[TokenSplit, TokenSplit]:
    """Training and validation split as the settings ask for them.

    Raises as load_split, and DataError if the data on disk was prepared with
    another GPT2_DATASET_TEXT_PATH or GPT2_DATASET_MAX_TOKENS.
    """
    prepared(settings)
    request, data_dir = request_of(settings), settings.resources.data_dir
    train, val = (
        load_split(data_dir, request, split, settings.model.block_size)
        for split in ("train", "val")
    )
    return train, val


def open_tokens(path: Path) -> Tokens:
    """The token file as a read-only array [n_tokens]."""
    return np.memmap(path, dtype="<u2", mode="r")


# ---- windows --------------------------------------------------------------------


@dataclass(frozen=True)
class BatchPlan:
    """Plan of the windows that each micro batch of each rank reads, of a training
    split that has at least one window (see load_split)."""

    n_tokens: int
    block_size: int
    split: BatchSplit
    seed: int

    def step_offsets(self, step: int) -> Offsets:
        """First tokens of the windows of one optimizer step [effective_batch]."""
        draw = np.random.default_rng([self.seed, BATCH_STREAM, step])
        last = self.n_tokens - self.block_size
        return draw.integers(0, last, size=self.split.effective_batch)

    def offsets(self, step: int, micro: int) -> Offsets:
        """This rank's windows of one micro step [micro_batch]."""
        cut = (self.split.accumulation, self.split.world_size, self.split.micro_batch)
        rows: Offsets = self.step_offsets(step).reshape(cut)[micro, self.split.rank]
        return rows


def eval_windows(n_tokens: int, block_size: int, samples: int) -> Offsets:
    """First tokens of the validation windows [samples]: fixed, for every arm.

    Evenly spread from the first window to the last; they do not overlap if
    samples * block_size < n_tokens. Raises DataError if there are not as many.
    """
    last = n_tokens - block_size - 1
    if samples > last + 1:
        raise DataError(
            f"the validation split has {n_tokens:,} tokens, so {max(last + 1, 0):,} "
            f"windows of GPT2_BLOCK_SIZE={block_size}, fewer than "
            f"GPT2_EVAL_SAMPLES={samples}: prepare more text or ask for fewer"
        )
    return np.arange(samples, dtype=np.int64) * last // max(samples - 1, 1)


def gather(tokens: Tokens, offsets: Offsets, block_size: int) -> Batch:
    """x, y of the windows that start at offsets, on the CPU."""
    pair = _gather_pair(tokens, offsets, block_size)
    return pair[0], pair[1]


def _gather_pair(tokens: Tokens, offsets: Offsets, block_size: int) -> torch.Tensor:
    """[2, B, T]: x and y in one piece, so that one copy takes both to the device."""
    windows = tokens[offsets[:, None] + np.arange(block_size + 1)]
    pair = np.stack([windows[:, :-1], windows[:, 1:]])
    return torch.from_numpy(pair.astype(np.int64))


# ---- batches --------------------------------------------------------------------


class _Loader(DataLoader[torch.Tensor]):
    """Loader without torch's warning of more processes than cores, which counts those
    of one rank: a plan (gpt2/run/device_limits.py) and a run's banner count all."""

    def check_worker_number_rationality(self) -> None:
        """Do not warn."""


class _Windows(Dataset[torch.Tensor]):
    """Micro batches by number: step-major, micro-minor. Each worker maps the file."""

    def __init__(self, path: Path, plan: BatchPlan) -> None:
        self.path, self.plan = path, plan
        self._tokens: Tokens | None = None

    def __getitem__(self, index: int) -> torch.Tensor:
        if self._tokens is None:
            self._tokens = open_tokens(self.path)
        step, micro = divmod(index, self.plan.split.accumulation)
        offsets = self.plan.offsets(step, micro)
        return _gather_pair(self._tokens, offsets, self.plan.block_size)

    def __getstate__(self) -> dict[str, Any]:  # a pickled memmap is a whole copy
        return {**self.__dict__, "_tokens": None}


class Batches:
    """Iterate for (x, y) on the device, for each micro step of the optimizer steps.

    window_sums: of the windows that were handed out, by update, for fingerprints
    (gpt2/train/fingerprints.py); the last may not be whole yet.
    The batches are the same for any number of workers.
    """

    def __init__(
        self,
        split: TokenSplit,
        plan: BatchPlan,
        start_step: int,
        stop_step: int,
        *,
        device: torch.device | str = "cpu",
        num_workers: int = 0,
        pin_memory: bool = False,
        prefetch_factor: int = 2,
        persistent_workers: bool = False,
    ) -> None:
        """This rank's batches of the optimizer steps start_step to stop_step - 1."""
        assert plan.n_tokens == split.tokens.size, "the plan is for another data set"
        self._wait_seconds = 0.0
        self.window_sums: dict[int, int] = {}
        self._dataset, self._device = _Windows(split.path, plan), torch.device(device)
        micro_steps = plan.split.accumulation
        self._keys = keys = range(start_step * micro_steps, stop_step * micro_steps)
        self._pin = pin_memory and self._device.type == "cuda"
        self._loader: _Loader | None = None
        if num_workers > 0:
            self._loader = _Loader(
                self._dataset,
                batch_size=None,
                sampler=keys,
                num_workers=num_workers,
                pin_memory=self._pin,
                prefetch_factor=prefetch_factor,
                persistent_workers=persistent_workers,
                worker_init_fn=_quiet_signals,
                # Its own, or it would draw from the generator that dropout uses.
                generator=torch.Generator(),
            )

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def source(self) -> tuple[Path, BatchPlan]:
        """Equal ones have equal batches."""
        return self._dataset.path, self._dataset.plan

    def take_wait(self) -> float:
        """Seconds spent since the last call waiting for a batch to be ready on the
        host."""
        waited, self._wait_seconds = self._wait_seconds, 0.0
        return waited

    def close(self) -> None:
        """End the loader's processes, once the iterators over this are closed.

        They would end when Python collects the loader, or at exit, where torch waits
        5 s for each persistent one that feeds a GPU (2.11; pytorch issue 81794).
        """
        self._loader = None

    def __iter__(self) -> Generator[Batch, None, None]:
        pairs = self._timed(self._host_pairs())
        if self._device.type == "cuda":
            pairs = self._ahead(pairs)
        for pair in pairs:
            on_device = pair.to(self._device)
            yield on_device[0], on_device[1]

    def _host_pairs(self) -> Iterator[torch.Tensor]:
        here = (self._dataset[key] for key in self._keys)
        for key, pair in zip(self._keys, self._loader or here, strict=True):
            self._note(key, pair)
            is_pinned = self._loader is not None or not self._pin
            yield pair if is_pinned else pair.pin_memory()

    def _note(self, key: int, pair: torch.Tensor) -> None:
        """Take a micro batch into the sums of its update."""
        accumulation = self._dataset.plan.split.accumulation
        update, last = key // accumulation + 1, self._keys.stop // accumulation
        if is_recorded(update, last):
            before = self.window_sums.get(update, 0)
            self.window_sums[update] = before + windows_sum(pair)

    def _timed(self, pairs: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        while True:
            start = perf_counter()
            pair = next(pairs, None)
            self._wait_seconds += perf_counter() - start
            if pair is None:
                return
            yield pair

    def _ahead(self, pairs: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
        """Copy each batch on a side stream while the one before is computed."""
        side = torch.cuda.Stream(self._device)
        following = self._copy(next(pairs, None), side)
        while following is not None:
            present = torch.cuda.current_stream(self._device)
            present.wait_stream(side)
            pair = following
            pair.record_stream(present)
            following = self._copy(next(pairs, None), side)
            yield pair

    def _copy(
        self, pair: torch.Tensor | None, side: torch.cuda.Stream
    ) -> torch.Tensor | None:
        if pair is None:
            return None
        with torch.cuda.stream(side):
            return pair.to(self._device, non_blocking=True)


def _quiet_signals(worker: int) -> None:
    """Leave Ctrl-C to the trainer; end at once on SIGTERM.

    Exit status 0, since torch raises in the trainer, in the middle of its
    checkpoint, when a worker goes with another.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
