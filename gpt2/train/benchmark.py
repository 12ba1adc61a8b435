"""Rows of the benchmark's tables: updates of steps and peers, attention alone.

Every row of the GPU's table is measured in a process of its own, so that its memory and
its compiled code are its own.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

import torch

from gpt2.model.autotune import choice
from gpt2.model.autotune.attention import candidates, try_attention
from gpt2.model.autotune.store import Tuning
from gpt2.model.backends.call import platform_of
from gpt2.plan.budget import budget
from gpt2.plan.planning import step_settings
from gpt2.settings import configuration
from gpt2.settings.parse import settings_from
from gpt2.settings.schema import Settings
from gpt2.train.choose_kernels import tune
from gpt2.train.timed_updates import (
    Update,
    nanogpt_update,
    our_update,
    peer_update,
    plain_update,
    seconds_of,
)
from lib.gpu.device import select_device
from lib.gpu.peaks import peak_flops
from lib.kernels import choices

Row = dict[str, Any]
ON_GPU = "COMPILE_MODEL=y MIXED_PRECISION=y"
PEER = "HF transformers GPT-2"
PLAIN = "plain GPT-2, all logits"
EAGER = "eager reference"
NANOGPT = "nanoGPT"
FASTEST = "reduce-overhead"  # torch.compile's mode that records CUDA graphs
FAST = f", {FASTEST}"  # after the name of a peer: compiled in that mode
PEERS = {
    "plain": PLAIN,
    "plain-fast": PLAIN + FAST,
    "transformers": PEER,
    "eager": EAGER,
}
NANOGPT_PEERS = {"nanogpt": NANOGPT, "nanogpt-fast": NANOGPT + FAST}


@dataclass(frozen=True, slots=True)
class Order:
    """Contents of the table of a GPU; peers: values of PEERS and NANOGPT_PEERS;
    settings: assignments for all rows; nanogpt: its model.py, or its folder."""

    steps: Sequence[int]
    peers: Sequence[str]
    micro_batches: Sequence[int]
    at_once: int
    repeats: int
    settings: str
    nanogpt: str = ""


def settings_of(overrides: str) -> Settings:
    """Kconfig's defaults with assignments. Raises ValueError for a wrong one."""
    return settings_from(configuration.load_defaults(overrides))


def line_of(row: Row) -> str:
    """A row of the table: its name, then each number with its name."""
    shown = [f"{row['part']:<12} {row['what']:<34}"]
    for key, value in row.items():
        if key not in ("part", "what"):
            text = f"{value:,.4g}" if isinstance(value, float) else str(value)
            shown.append(f"{key} {text}")
    return "  ".join(shown)


def gpu_rows(order: Order) -> Iterator[Row]:
    """Each step at each micro batch, with ratios to step 0 and the peers."""
    # 0 first, followed by the peers.
    subjects: list[int | str] = [0, *order.peers, *sorted(set(order.steps) - {0})]
    for batch in order.micro_batches:
        first: Row | None = None
        for start in range(0, len(subjects), order.at_once):
            group = subjects[start : start + order.at_once]
            for row in measure_together(order, group, batch):
                first = first or row
                yield row | ratios(row, first)


def measure_together(order: Order, group: list[int | str], batch: int) -> list[Row]:
    """Let each prepare in a process of its own, all at once; then time them one
    after the other, while the rest wait."""
    fresh = multiprocessing.get_context("spawn")
    running = []
    for subject in group:
        here, there = fresh.Pipe()
        arguments = (there, subject, batch, order)
        process = fresh.Process(target=measure, args=arguments, daemon=True)
        process.start()
        there.close()  # so that the death of the process shows
        running.append((subject, process, here))
    for _, _, pipe in running:
        pipe.poll(None)  # prepared, or dead
    rows = []
    for subject, process, pipe in running:
        try:
            pipe.recv()
            pipe.send("your turn")
            rows.append(pipe.recv())
        except (EOFError, OSError):
            row = named(subject, batch)
            rows.append(row | {"failed": f"the process ended, {process.exitcode}"})
        process.join()
    return rows


def named(subject: int | str, batch: int) -> Row:
    name = f"step {subject}" if isinstance(subject, int) else subject
    return {"part": "gpu", "what": f"{name}, micro batch {batch}"}


def measure(pipe: Connection, subject: int | str, batch: int, order: Order) -> None:
    """Send one row: tokens/s, MFU and peak memory, or why there are none."""
    row, device = named(subject, batch), torch_device()
    if is_others(subject):  # torch's own choice, as their users have it
        torch.backends.cuda.enable_cudnn_sdp(True)
    timed: tuple[Settings, Update] | None = None
    with failure_in(row):
        settings, row["attention"] = subject_settings(
            subject, order.settings, device, batch
        )
        update = update_of(subject, order.nanogpt)(settings, device, batch)
        timed = settings, update
    pipe.send("prepared")
    pipe.recv()
    with failure_in(row):
        if timed is not None:
            settings, update = timed
            choices.forget()  # those made while others used the GPU, too
            with choices.timing():
                update.record()
            row |= speed(settings, batch, seconds_of(update, order.repeats))
    pipe.send(row)


def is_others(subject: int | str) -> bool:
    """Whether it is a peer with code of its own, or what nanoGPT computes."""
    return str(subject).removesuffix(FAST) in (PLAIN, NANOGPT, PEER)


def update_of(subject: int | str, nanogpt: str) -> Callable[..., Update]:
    """The maker of a subject's update, of settings, device and micro batch."""
    name, fast = str(subject).removesuffix(FAST), str(subject).endswith(FAST)
    mode = FASTEST if fast else None
    makers: dict[str, Callable[..., Update]] = {
        PLAIN: partial(plain_update, mode=mode),
        NANOGPT: partial(nanogpt_update, mode=mode, path=nanogpt),
        PEER: peer_update,
    }
    return makers.get(name, our_update)


@contextmanager
def failure_in(row: Row) -> Iterator[None]:
    """Note in the row what went wrong: one that failed must not end the table."""
    try:
        yield
    except Exception as error:
        row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]


def torch_device() -> torch.device:
    """The GPU, with the trainer's precision of what stays in fp32."""

    torch.set_float32_matmul_precision("high")
    return torch.device("cuda")


def subject_settings(
    subject: int | str, overrides: str, device: torch.device, batch: int
) -> tuple[Settings, str]:
    """The settings of a step or a peer, and the paths of its attention and MLP."""
    base = settings_of(f"RA_MLA_ABLATION_MODE=y {ON_GPU} {overrides}")
    if subject == EAGER:
        base = base.replace(
            attention_backend="reference", mlp_backend="torch", compile_model=False
        )
    settings = step_settings(base, subject if isinstance(subject, int) else 0)
    if is_others(subject):
        named = {"attention_backend": "sdpa", "mlp_backend": "torch"}
        return settings.replace(**named), "sdpa, torch"
    found = tune(settings, select_device("auto"), batch, Tuning())
    settings, _ = choice.choose_backends(settings, device, batch, found)
    return settings, ", ".join(choice.serving(settings, "cuda").values())


def speed(settings: Settings, batch: int, seconds: float) -> Row:
    """Speed of updates in bf16 that take ``seconds``; MFU of the first card."""
    rate = batch * settings.model.block_size / seconds
    flops = budget(settings).flops_training
    props = torch.cuda.get_device_properties(0)
    peak = peak_flops(props.name, props.multi_processor_count, "bf16")
    return {
        "ms": seconds * 1e3,
        "tokens/s": rate,
        "flops/token": float(flops),
        "MFU": rate * flops / peak if peak else "unknown",
        "peak GiB": torch.cuda.max_memory_allocated() / 2**30,
    }


def ratios(row: Row, first: Row) -> Row:
    """Speed per equal FLOPs and memory, relative to step 0."""
    if "tokens/s" not in row or "tokens/s" not in first:
        return {}
    work = [r["tokens/s"] * r["flops/token"] for r in (row, first)]
    return {
        "of step 0": row["tokens/s"] / first["tokens/s"],
        "of step 0, equal FLOPs": work[0] / work[1],
        "of step 0, memory": row["peak GiB"] / first["peak GiB"],
    }


def attention_rows(order: Order) -> Iterator[Row]:
    """Summed kernel time of attention alone, forward and backward, each path."""
    device = torch.device("cuda")
    base = settings_of(f"RA_MLA_ABLATION_MODE=y {ON_GPU} {order.settings}")
    for number in order.steps:
        settings = step_settings(base, number)
        for path in candidates(settings, platform_of("cuda", True)):
            trial = try_attention(path, settings, device, 8)
            row: Row = {"part": "attention", "what": f"step {number}, {path}"}
            if trial.problem:
                row["failed"] = trial.problem
            else:
                row["kernel ms"] = trial.seconds * 1e3
            yield row
