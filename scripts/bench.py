"""Measure the speed of training, attention, certificates and a matrix; one table.

On a GPU the training speed of every step, compared with HF transformers' GPT-2 and the
eager reference; everywhere the speed on the CPU compared with transformers, the start
of a listing, the time of the certificates, and the share of its slots' time that a
matrix trains. Without a GPU its rows are left out with a note.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from gpt2.plan.axes import split_names
from gpt2.plan.planning import step_settings
from gpt2.plan.steps import SHIPPED
from gpt2.report.read_results import read_matrix
from gpt2.report.timeline_report import read_timeline
from gpt2.settings import configuration
from gpt2.settings.parse import settings_from
from gpt2.settings.rerun_commands import show_next
from gpt2.train.benchmark import (
    NANOGPT_PEERS,
    PEER,
    PEERS,
    Order,
    Row,
    attention_rows,
    gpu_rows,
    line_of,
)
from gpt2.train.timed_updates import our_update, peer_update, seconds_of
from lib.atomic_files import atomic_write_json, require_json_place
from lib.cpus import usable_cores
from lib.gpu.compile_cache import cache_environment
from lib.jobs.run_files import now, read_status
from lib.json_answer import add_json, answer, answers_json, fail
from lib.kconfig.dotconfig import COMMAND_LINE
from lib.number_option import COUNT, add_number, number
from lib.output import EXIT_FAILED, EXIT_USAGE, exit_code

ROOT = Path(__file__).resolve().parents[1]
# What a CPU trains in seconds; the other sizes are GPT-2's own.
SMALL = (
    "RA_MLA_ABLATION_MODE=y MODEL=CUSTOM N_LAYER=4 N_HEAD=4 N_EMBD=128 "
    "BLOCK_SIZE=256 TOKENIZER=BYTES"
)
PARTS = ("gpu", "attention", "cpu", "start", "certificates", "matrix")
ON_CPU = "DEVICE=cpu MIXED_PRECISION=n"
# Twelve runs as the quickstart has them, of a quarter of a minute on an idle core.
CPU_MATRIX = (
    "RA_MLA_ABLATION_MODE=y STEPS=0,2,5,8 SEEDS=1,2,3 JOBS=2 CPU_THREADS=1 "
    "MODEL=CUSTOM N_LAYER=4 N_HEAD=4 N_EMBD=128 BLOCK_SIZE=128 RA_MLA_LATENT_DIM=24 "
    "RA_MLA_RA_WINDOW=16 TOKENIZER=BYTES DATASET=TEXT BATCH_SIZE=16 ACCUMULATION=1 "
    "MAX_ITERS=100 WARMUP_STEPS=10 EVAL_INTERVAL=50 EVAL_SAMPLES=64 "
    f"CHECKPOINT_INTERVAL=50 DATASET_TEXT_PATH={ROOT / 'gpt2'} {ON_CPU}"
)
# Six runs of GPT-2 124M, of 20 s each on an H100.
GPU_MATRIX = (
    "RA_MLA_ABLATION_MODE=y STEPS=0,5 SEEDS=1,2,3 DATASET=STDLIB BATCH_SIZE=32 "
    "ACCUMULATION=2 MAX_ITERS=150 WARMUP_STEPS=10 EVAL_INTERVAL=75 "
    "CHECKPOINT_INTERVAL=75 COMPILE_MODEL=y"
)


class Failed(Exception):
    """A command that was to be timed has failed; the message has what it says."""


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--out", type=Path, default=ROOT / "bench_results" / "bench.json")
    steps = "such as 0,5,16; default: STEPS of --settings, or all"
    add("--steps", default="", help=steps)
    peers = (
        f"besides step 0, of {', '.join(PEERS)} (a CPU has transformers); none: a comma"
    )
    add("--peers", default=",".join(PEERS), help=peers)
    path = "model.py of nanoGPT, or its folder: adds nanoGPT, compiled in two ways"
    add("--nanogpt", default="", metavar="PATH", help=path)
    add("--micro_batches", default="8,32", help="on the GPU")
    once = "rows of the GPU that prepare at the same time"
    add_number(parser, "AT_ONCE", COUNT, default=1, help=once)
    timed = "timed updates, after as many / 4"
    add_number(parser, "REPEATS", COUNT, default=20, help=timed)
    parts = f"of {', '.join(PARTS)} (default: all)"
    add("--parts", default=",".join(PARTS), help=parts)
    add("--settings", default="", help="of all that trains, as BLOCK_SIZE=4096")
    add_json(parser)
    return parser.parse_args(arguments)


@answers_json("bench")
def main(arguments: Sequence[str] | None = None) -> int:
    try:
        given = parse(arguments)
        if not (parts := names("PARTS", given.parts, PARTS)):
            raise ValueError(f"PARTS={given.parts} names nothing")
        peers = [PEERS[name] for name in names("PEERS", given.peers, PEERS)]
        if given.nanogpt and not Path(given.nanogpt).exists():
            raise ValueError(f"NANOGPT={given.nanogpt}: no such file or folder")
        peers += NANOGPT_PEERS.values() if given.nanogpt else ()
        steps = steps_of(given.steps, given.settings)
        sizes = given.micro_batches.split(",")
        batches = [int(number("MICRO_BATCHES", size, COUNT)) for size in sizes]
        require_json_place(given.out)
    except (ValueError, OSError) as error:
        return fail(error, EXIT_USAGE)
    more = given.at_once, given.repeats, given.settings, given.nanogpt
    order = Order(steps, peers, batches, *more)
    os.environ.update(cache_environment(os.environ))
    rows: list[Row] = []
    specs = machine()
    print("  ".join(f"{key}: {value}" for key, value in specs.items()))
    if not torch.cuda.is_available() and {"gpu", "attention"} & set(parts):
        parts = [part for part in parts if part not in ("gpu", "attention")]
        print("torch sees no GPU here: its rows are left out")
    measures: dict[str, Callable[[], Iterable[Row]]] = {
        "gpu": lambda: gpu_rows(order),
        "attention": lambda: attention_rows(order),
        "cpu": lambda: cpu_rows(order),
        "start": lambda: [start_row(given.repeats)],
        "certificates": lambda: [certificates_row(steps)],
        "matrix": lambda: matrix_rows(given.settings),
    }
    try:
        for row in chain.from_iterable(measures[part]() for part in parts):
            rows.append(row)
            print(line_of(row), flush=True)
            # At once: a table that takes an hour may be cut short.
            atomic_write_json(given.out, {"schema": 1, "machine": specs, "rows": rows})
    except Failed as error:
        return fail(error, EXIT_FAILED)
    if not rows:
        return fail(
            "nothing was measured: no part of PARTS is possible here", EXIT_USAGE
        )
    answer(machine=specs, rows=rows, written=str(given.out))
    print(f"written: {given.out}")
    show_next("make estimate", "hours, memory and disk of what is configured")
    return 0


def steps_of(asked: str, overrides: str) -> list[int]:
    """The steps that are asked for, else those that the settings name, else all.
    Raises ValueError for wrong settings."""
    words = f"RA_MLA_ABLATION_MODE=y {overrides}"
    config = configuration.load_defaults(words)
    if config.origin("DEVICE") == COMMAND_LINE:
        raise ValueError("DEVICE has no effect here: PARTS choose what is measured")
    if asked:
        return [int(number) for number in asked.split(",")]
    named = config.origin("RA_MLA_ABLATION_STEPS") == COMMAND_LINE
    wanted = settings_from(config).matrix.steps if named else SHIPPED.steps
    return [*SHIPPED.ids(wanted)]


def names(variable: str, text: str, known: Collection[str]) -> list[str]:
    """The names in a list. Raises ValueError for one that is not known."""
    found = split_names(text)
    unknown = [name for name in found if name not in known]
    if unknown:
        wrong, allowed = ", ".join(unknown), ", ".join(known)
        raise ValueError(f"{variable}={text}: {wrong}: allowed are {allowed}")
    return found


def machine() -> dict[str, str]:
    """The machine that was measured."""
    gpu = torch.cuda.is_available()
    return {
        "date": now(),
        "gpu": torch.cuda.get_device_name() if gpu else "none",
        "cpu": f"{platform.machine()}, {usable_cores()} cores",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


# ---- on a CPU ---------------------------------------------------------------------


def cpu_rows(order: Order) -> list[Row]:
    """Step 0 and transformers' GPT-2 at equal size, in turns, the best of each."""
    device, batch = torch.device("cpu"), 4
    with TemporaryDirectory() as folder:
        path = write_config(Path(folder), f"{SMALL} {ON_CPU}")
        config = configuration.load(path, order.settings)
    settings = step_settings(settings_from(config), 0)
    makers = {"step 0": our_update}
    if PEER in order.peers and find_spec("transformers") is None:
        print("transformers is not installed: its row is left out")
    elif PEER in order.peers:
        makers[PEER] = peer_update
    best = dict.fromkeys(makers, float("inf"))
    updates = {name: make(settings, device, batch) for name, make in makers.items()}
    for _ in range(3):
        for name, update in updates.items():
            best[name] = min(best[name], seconds_of(update, order.repeats))
    tokens = batch * settings.model.block_size
    rows: list[Row] = [
        {"part": "cpu", "what": name, "tokens/s": tokens / seconds}
        for name, seconds in best.items()
    ]
    if PEER in best:
        rows[0]["of transformers"] = best[PEER] / best["step 0"]
    return rows


def start_row(repeats: int) -> Row:
    """The shortest of up to five starts of a listing."""
    with TemporaryDirectory() as folder:
        words = f"RA_MLA_ABLATION_MODE=y DATA_DIR={folder}"
        path = write_config(Path(folder), words)
        command = [*script("run_test_matrix"), "--list", "--config", str(path)]
        seconds = min(command_seconds(command) for _ in range(min(repeats, 5)))
    return {"part": "start", "what": "run_test_matrix.py --list", "seconds": seconds}


def certificates_row(steps: list[int]) -> Row:
    """The time to verify the steps without a cache."""
    wanted = "STEPS=" + ",".join(map(str, steps))
    command = [*script("verify"), "--fresh"]
    seconds = command_seconds([*command, "--at-hand", "--overrides", wanted])
    what = f"certificates of {len(steps)} steps"
    return {"part": "certificates", "what": what, "seconds": seconds}


def matrix_rows(more: str) -> Iterator[Row]:
    """Use of the GPUs' time by a matrix, with no compiled code and then with
    the code of the first time; without a GPU, that of its slots.

    The training loops have evaluations and checkpoints within; first update: seconds
    after the start, verification on a GPU included; gap: seconds from the end of a run
    to the first update of the next, the median and the longest.
    """
    gpu = torch.cuda.is_available()
    with TemporaryDirectory() as name:
        folder = Path(name)
        words = f"{GPU_MATRIX if gpu else CPU_MATRIX} DATA_DIR={folder / 'data'}"
        path = write_config(folder, words)
        command_seconds([*script("prepare_data"), "--config", str(path)])
        caches = {"XDG_CACHE_HOME": str(folder / "cache")}
        for kind in ("cold", "warm") if gpu else ("",):
            results = folder / f"results{kind}"
            options = ["--config", str(path), "--no-table"]
            options += [] if gpu else ["--skip-verify"]
            options += ["--overrides", f"{more} OUTPUT_DIR={results}"]
            command = [*script("run_test_matrix"), *options]
            yield matrix_row(results, command_seconds(command, caches), kind)


def matrix_row(results: Path, seconds: float, caches: str) -> Row:
    """The row of a matrix that took so many seconds."""
    runs = [read_status(p.parent) for p in results.glob("*/*/status.json")]
    training = sum(run["result"]["seconds"] for run in runs)
    times = read_timeline(read_matrix(results, curves=False))
    lanes, gaps = times.lanes, times.gaps
    where = f"{len(lanes)} {'GPUs' if lanes[0].is_gpu else 'slots'}"
    row: Row = {
        "part": "matrix",
        "what": f"{len(runs)} runs on {where}{caches and f', {caches} caches'}",
        "seconds": seconds,
        "seconds a run": training / len(runs),
        "share training": training / (len(lanes) * seconds),
        "first update": times.first_updates[0],
    }
    if gaps:
        row |= {"gap": statistics.median(gaps), "longest gap": max(gaps)}
    return row | {f"of time {state}": x for state, x in times.shares().items() if x}


def script(name: str) -> list[str]:
    """The command of one of our scripts."""
    return [sys.executable, str(ROOT / "scripts" / f"{name}.py")]


def write_config(folder: Path, assignments: str) -> Path:
    """A config.py in a folder: Kconfig's defaults with assignments."""
    path = folder / "config.py"
    config = configuration.load_defaults(assignments)
    path.write_text(configuration.copies(config)["config.py"])
    return path


def command_seconds(command: list[str], environ: Mapping[str, str] = {}) -> float:
    """Wall time of a command. Raises Failed, with what it says, if it fails."""
    start, env = time.perf_counter(), {**os.environ, **environ}
    done = subprocess.run(command, capture_output=True, cwd=ROOT, env=env, text=True)
    if done.returncode:
        why = done.stderr.strip() or done.stdout.strip().rpartition("\n")[2]
        raise Failed(f"{Path(command[1]).name} exits with {done.returncode}: {why}")
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(exit_code(main))
