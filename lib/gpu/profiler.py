"""Profile of selected updates: a trace, a snapshot of GPU memory, a text summary.

Profiling must not end the run: if something cannot be written, it is only reported. The
snapshot is a pickle, because torch writes no other format. It is never read here, since
loading an untrusted pickle runs its code.
"""

from __future__ import annotations

import os
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, record_function

from lib.atomic_files import atomic_write_bytes
from lib.files import refuse_link
from lib.gpu.device import DeviceInfo, synchronize

FOLDER = "profile"
TRACE_FILE = "trace.json.gz"
SNAPSHOT_FILE = "memory.pickle"
SUMMARY_FILE = "summary.txt"
TOP = 20  # operators in the summary
SNAPSHOT_ENTRIES = 200_000  # maximum allocations and frees in a snapshot

# Kinds of kernels and operators by name; the first pattern that matches counts.
KINDS = (
    ("communication", r"nccl|rccl|gloo|c10d|allreduce"),
    (
        "attention",
        r"attention|attn|flash|fmha|flex|kablate::"
        r"|^(forward|backward|rows|columns|mean)_kernel$",
    ),
    ("optimizer", r"adam|sgd|muon|multi_tensor|foreach|lp_norm|addcdiv|addcmul|lerp"),
    (
        "matrix products",
        r"gemm|gemv|\bmm\b|_mm_?\d*$|mm_out|addmm|bmm|matmul|linear|cutlass|nvjet|xmma"
        r"|cijk|mkldnn|triton_tem",
    ),
    ("copies", r"memcpy|memset|copy|\bcat|catarray|contiguous|fill|zero_|clone"),
    (
        "reductions",
        r"norm|softmax|logsumexp|nll_loss|cross_entropy|reduce|cumsum|topk|sort|sum"
        r"|triton_(red|per)|embedding|max|mean",
    ),
    (
        "elementwise",
        r"elementwise|pointwise|triton_(poi|fused)|gelu|aten::(add|mul|div)",
    ),
)
OTHER = "other"


@dataclass(frozen=True, slots=True)
class Operator:
    """One call of a kernel or operator, in us; ``own`` excludes the calls that it
    made."""

    name: str
    start: float
    end: float
    own: float


def kind_of(name: str) -> str:
    """Kind of an operator or kernel, one of KINDS, by its name."""
    low = name.lower()
    return next((kind for kind, part in KINDS if re.search(part, low)), OTHER)


def shares(operators: Iterable[Operator]) -> dict[str, float]:
    """Share of the total time by kind, the largest first; {} without any."""
    spent = _spent((kind_of(one.name), one.own) for one in operators)
    total = sum(spent.values())
    return {kind: own / total for kind, own in spent.items() if own}


def _spent(parts: Iterable[tuple[str, float]]) -> dict[str, float]:
    """Sums by name, the largest first."""
    sums: defaultdict[str, float] = defaultdict(float)
    for name, time_ in parts:
        sums[name] += time_
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def busy(operators: Iterable[Operator]) -> float:
    """Time in which at least one of them ran, in their unit."""
    total, reached = 0.0, float("-inf")
    for one in sorted(operators, key=lambda o: o.start):
        total += max(0.0, one.end - max(one.start, reached))
        reached = max(reached, one.end)
    return total


class StepProfiler:
    """Profiles the updates first to last of a training into a folder, once.

    say gets a few lines when the files are written, or the reason why they are not.
    """

    def __init__(
        self,
        folder: Path,
        updates: range,
        device: DeviceInfo,
        say: Callable[[str], None],
    ) -> None:
        self._folder, self._updates = folder, updates
        self._device, self._say = device, say
        self._running: torch.profiler.profile | None = None
        self._done: list[int] = []
        self._began = 0.0

    def __enter__(self) -> StepProfiler:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Also write if training ends in between; discard a failed profile."""
        if kind is None:
            self._finish()
        self._drop()

    @contextmanager
    def update(self, number: int) -> Iterator[None]:
        """Call around each update; updates that were not selected are not profiled."""
        if number in self._updates and self._running is None:
            self._start()
        if self._running is None:
            yield
            return
        with record_function(f"update {number}"):
            yield
        self._done.append(number)
        if number == self._updates[-1]:
            self._finish()

    def _start(self) -> None:
        kinds = [ProfilerActivity.CPU]
        if self._device.is_gpu:
            kinds.append(ProfilerActivity.CUDA)
            with suppress(Exception):  # not every build of torch records memory
                torch.cuda.memory._record_memory_history(max_entries=SNAPSHOT_ENTRIES)
        running = torch.profiler.profile(activities=kinds)
        try:
            running.start()
        except Exception as error:  # another profiler is active
            self._give_up(error)
            return
        self._done, self._running = [], running
        synchronize(self._device)
        self._began = time.perf_counter()

    def _give_up(self, error: Exception) -> None:
        self._updates = range(0)
        text = str(error).splitlines() or [""]
        self._say(f"no profile: {type(error).__name__}: {text[0][:200]}")

    def _finish(self) -> None:
        """Write the profile, if one is active."""
        running = self._running
        if running is None:
            return
        synchronize(self._device)
        seconds = time.perf_counter() - self._began
        try:
            running.stop()
            self._write(running, seconds)
        except Exception as error:  # a full disk, or a missing profiler
            self._give_up(error)
        self._drop()

    def _drop(self) -> None:
        """Stop an active profile, so that torch can profile again."""
        running, self._running = self._running, None
        if running is None:
            return
        with suppress(Exception):
            running.stop()
        if self._device.is_gpu:
            with suppress(Exception):
                torch.cuda.memory._record_memory_history(enabled=None)

    def _write(self, profile: torch.profiler.profile, seconds: float) -> None:
        refuse_link(self._folder).mkdir(parents=True, exist_ok=True)
        self._replace(TRACE_FILE, profile.export_chrome_trace)
        if self._device.is_gpu:
            self._replace(SNAPSHOT_FILE, torch.cuda.memory._dump_snapshot)
        operators = operators_of(profile, self._device.is_gpu)
        title = f"updates {self._done[0]} to {self._done[-1]} on {self._device.name}"
        text = summary(title, operators, seconds, len(self._done), self._device.is_gpu)
        atomic_write_bytes(self._folder / SUMMARY_FILE, text.encode())
        head = text.split("\n\n", 1)[0]
        self._say(f"profile: {head}\n  written to {self._folder}")

    def _replace(self, name: str, write: Callable[[str], Any]) -> None:
        """Let ``write`` write a file, which is replaced atomically."""
        half = self._folder / f".half-{name}"
        half.unlink(missing_ok=True)  # a link might lead anywhere
        try:
            write(str(half))
            os.replace(half, self._folder / name)
        finally:
            half.unlink(missing_ok=True)


def operators_of(profile: torch.profiler.profile, gpu: bool) -> list[Operator]:
    """Operators of a profile: kernels and copies on a GPU, else torch's operators."""
    wanted = DeviceType.CUDA if gpu else DeviceType.CPU
    return [
        Operator(
            event.name,
            event.time_range.start,
            event.time_range.end,
            event.self_device_time_total if gpu else event.self_cpu_time_total,
        )
        for event in profile.events() or []
        if event.device_type == wanted and not event.is_user_annotation
    ]


def summary(
    title: str, operators: list[Operator], seconds: float, updates: int, gpu: bool
) -> str:
    """Shares, idle time and the operators that took most, in plain text.

    The first paragraph says it in few lines.
    """
    idle = max(0.0, 1.0 - busy(operators) / 1e6 / seconds)
    what = "no kernel ran" if gpu else "no operator of torch ran"
    lines = [
        f"{title}: {1e3 * seconds / updates:.1f} ms each (profiling slows them)",
        "  " + ", ".join(f"{kind} {s:.1%}" for kind, s in shares(operators).items()),
        f"  idle {idle:.1%} of the time: {what}",
        "",
        f"{'ms':>10} {'share':>6} {'calls':>7}  kind, name",
        *_top(operators),
    ]
    return "\n".join(lines) + "\n"


def _top(operators: list[Operator]) -> Iterator[str]:
    calls = Counter(one.name for one in operators)
    spent = _spent((one.name, one.own) for one in operators)
    total = sum(spent.values()) or 1.0
    for name, own in list(spent.items())[:TOP]:
        shown = f"{kind_of(name)}, {name}"[:100]
        yield f"{own / 1e3:10.2f} {own / total:6.1%} {calls[name]:7}  {shown}"
