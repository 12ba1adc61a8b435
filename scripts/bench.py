"""Measure: training steps, attention alone, and what a CPU shows; one table.

On a GPU every step's training speed, beside HF transformers' GPT-2 and the eager
reference; everywhere speed on the CPU beside transformers, the start of a listing,
the time of the certificates, and how much of its slots' time a matrix trains. Without
a GPU its rows are left out, and it says so.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt2 import configuration
from gpt2.ablation import STEPS
from gpt2.budget import budget
from gpt2.plan import step_settings
from gpt2.schema import Settings, settings_from
from lib.peaks import peak_flops
from lib.rundir import atomic_write_json, now, read_status

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    import torch

ROOT = Path(__file__).resolve().parents[1]
Row = dict[str, Any]
# What a CPU trains in seconds; the other sizes are GPT-2's own.
SMALL = (
    "RA_MLA_ABLATION_MODE=y MODEL=CUSTOM N_LAYER=4 N_HEAD=4 N_EMBD=128 "
    "BLOCK_SIZE=256 TOKENIZER=BYTES"
)
ON_CPU = "DEVICE=cpu MIXED_PRECISION=n"
ON_GPU = "COMPILE_MODEL=y MIXED_PRECISION=y"
# Twelve runs as the quickstart has them, of a quarter of a minute on an idle core.
MATRIX = (
    "RA_MLA_ABLATION_MODE=y STEPS=0,2,5,8 SEEDS=1,2,3 JOBS=2 CPU_THREADS=1 "
    "MODEL=CUSTOM N_LAYER=4 N_HEAD=4 N_EMBD=128 BLOCK_SIZE=128 RA_MLA_LATENT_DIM=24 "
    "RA_MLA_RA_WINDOW=16 TOKENIZER=BYTES DATASET=TEXT BATCH_SIZE=16 ACCUMULATION=1 "
    "MAX_ITERS=100 WARMUP_STEPS=10 EVAL_INTERVAL=50 EVAL_SAMPLES=64 "
    "CHECKPOINT_INTERVAL=50"
)
PEER = "HF transformers GPT-2"
PLAIN = "plain GPT-2, all logits"
EAGER = "eager reference"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = parser.add_argument
    add("--json", type=Path, default=ROOT / "bench_results" / "bench.json")
    add("--steps", default=",".join(map(str, STEPS)), help="such as 0,5,16")
    add("--micro-batches", default="8,32", help="on the GPU")
    add("--at-once", type=int, default=1, help="rows that prepare at the same time")
    add("--repeats", type=int, default=20, help="timed updates, after as many / 4")
    add("--parts", default="gpu,attention,cpu,start,certificates,matrix")
    add("--settings", default="", help="assignments such as BLOCK_SIZE=4096")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    given = parse(arguments)
    parts = given.parts.split(",")
    try:
        steps = [int(number) for number in given.steps.split(",")]
        settings_of(given.settings)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    import torch

    rows: list[Row] = []
    told = machine()
    print("  ".join(f"{key}: {value}" for key, value in told.items()))
    if torch.cuda.is_available():
        if "gpu" in parts:
            rows += gpu_rows(given, steps)
        if "attention" in parts:
            rows += attention_rows(given, steps)
    elif {"gpu", "attention"} & set(parts):
        print("torch sees no GPU here: its rows are left out")
    if "cpu" in parts:
        rows += cpu_rows(given)
    if "start" in parts:
        rows.append(start_row())
    if "certificates" in parts:
        rows.append(certificates_row(steps))
    if "matrix" in parts:
        rows.append(matrix_row(given.settings))
    for row in rows:
        print(line_of(row))
    atomic_write_json(given.json, {"schema": 1, "machine": told, "rows": rows})
    print(f"written: {given.json}")
    return 0


def machine() -> dict[str, str]:
    """What was measured on."""
    import torch

    gpu = torch.cuda.is_available()
    return {
        "date": now(),
        "gpu": torch.cuda.get_device_name() if gpu else "none",
        "cpu": f"{platform.machine()}, {os.cpu_count()} cores",
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


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


# ---- one training step ------------------------------------------------------------


def seconds_of(update: Callable[[], object], repeats: int) -> float:
    """Mean time of an update, on whatever device; waits for a GPU."""
    import torch

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    for _ in range(max(3, repeats // 4)):
        update()
    wait()
    start = time.perf_counter()
    for _ in range(repeats):
        update()
    wait()
    return (time.perf_counter() - start) / repeats


def our_update(settings: Settings, device: torch.device, batch: int) -> Any:
    """Forward, backward, clip and optimizer step as the trainer does them."""
    model = our_model(settings, device)
    return update_of(model, model, settings, device, batch)


def our_model(settings: Settings, device: torch.device) -> Any:
    from gpt2.init import init_parameters
    from gpt2.model import GPT

    model = GPT(settings)
    init_parameters(model, 1)
    return model.to(device).train()


def plain_update(settings: Settings, device: torch.device, batch: int) -> Any:
    """GPT-2 as nanoGPT computes it: all logits at once, in fp32 for the loss, a
    residual stream in fp32, the padded vocabulary, no recording."""
    import torch.nn.functional as F

    settings = settings.replace(residual_fp32=True, cuda_graphs=False)
    model = our_model(settings, device)

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weight = model.wte.weight
        wide = F.pad(weight, (0, 0, 0, -weight.shape[0] % 64))
        logits = F.linear(model.hidden(model.embed(tokens)), wide)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    return update_of(loss, model, settings, device, batch)


def peer_update(settings: Settings, device: torch.device, batch: int) -> Any:
    """The same with transformers' GPT-2."""
    from transformers import GPT2Config, GPT2LMHeadModel

    m = settings.model
    model: Any = GPT2LMHeadModel(
        GPT2Config(
            vocab_size=settings.vocab_size,
            n_positions=m.block_size,
            n_embd=m.n_embd,
            n_layer=m.n_layer,
            n_head=m.n_head,
            resid_pdrop=0.0,
            embd_pdrop=0.0,
            attn_pdrop=0.0,
            bos_token_id=None,
            eos_token_id=None,
            use_cache=False,
        )
    )
    model.set_attn_implementation("sdpa")
    model.to(device).train()
    settings = settings.replace(cuda_graphs=False)

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> Any:
        return model(input_ids=tokens, labels=tokens).loss

    return update_of(loss, model, settings, device, batch)


def update_of(
    loss: Callable[[Any, Any], Any],
    model: Any,
    settings: Settings,
    device: torch.device,
    batch: int,
) -> Callable[[], None]:
    """One update with the settings' optimizer, compilation and precision."""
    import torch

    from gpt2.training.micro_step import MicroStep, record
    from gpt2.training.optimize import make_optimizer
    from lib.device import select_device

    shape = (batch, settings.model.block_size)
    tokens = torch.randint(settings.vocab_size, shape, device=device)
    pair, parameters = (tokens, tokens.roll(-1, 1)), list(model.parameters())
    optimizer: Any = make_optimizer(model, settings.optim)
    compiled = settings.resources.compile_model
    run = torch.compile(loss, dynamic=False) if compiled else loss
    plain = MicroStep(
        run,
        select_device("cpu" if device.type == "cpu" else "auto"),
        settings.optim.mixed_precision,
    )
    step: Any = plain
    if device.type == "cuda" and settings.resources.cuda_graphs:
        step, why = record(plain, parameters, *pair, repeats=False)
        print(f"not recorded as a graph: {why}" if why else "", end="")

    def update() -> None:
        step(*pair)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return update


# ---- on a GPU ---------------------------------------------------------------------


def gpu_rows(given: argparse.Namespace, steps: list[int]) -> list[Row]:
    """Each step at each micro batch, with ratios to step 0 and the peers."""
    rows: list[Row] = []
    # 0 first, and the peers beside it.
    subjects: list[int | str] = [0, PLAIN, PEER, EAGER, *sorted(set(steps) - {0})]
    for batch in map(int, given.micro_batches.split(",")):
        first: Row | None = None
        for start in range(0, len(subjects), given.at_once):
            group = subjects[start : start + given.at_once]
            for row in measure_together(given, group, batch):
                first = first or row
                rows.append(row | ratios(row, first))
                print(line_of(rows[-1]), flush=True)
    return rows


def measure_together(
    given: argparse.Namespace, group: list[int | str], batch: int
) -> list[Row]:
    """Let each prepare in a process of its own, all at once; then time them one
    after the other, while the rest wait."""
    fresh = multiprocessing.get_context("spawn")
    running = []
    for subject in group:
        here, there = fresh.Pipe()
        arguments = (there, subject, batch, given.settings, given.repeats)
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


def measure(
    pipe: Connection, subject: int | str, batch: int, overrides: str, repeats: int
) -> None:
    """Send one row: tokens/s, MFU and peak memory, or why there are none."""
    row, device, timed = named(subject, batch), torch_device(), None
    try:
        settings, row["attention"] = subject_settings(subject, overrides, device, batch)
        makers = {PLAIN: plain_update, PEER: peer_update}
        update = makers.get(str(subject), our_update)(settings, device, batch)
        seconds_of(update, 1)
        timed = settings, update
    except Exception as error:  # a row that failed must not end the table
        row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
    pipe.send("prepared")
    pipe.recv()
    if timed:
        row |= speed(timed[0], batch, seconds_of(timed[1], repeats))
    pipe.send(row)


def torch_device() -> torch.device:
    """The GPU, with the trainer's precision of what stays in fp32."""
    import torch

    torch.set_float32_matmul_precision("high")
    return torch.device("cuda")


def subject_settings(
    subject: int | str, overrides: str, device: torch.device, batch: int
) -> tuple[Settings, str]:
    """The settings of a step or a peer, and the path of its attention."""
    from gpt2.attend.choice import choose
    from gpt2.attend.request import place_of, served_by

    base = settings_of(f"RA_MLA_ABLATION_MODE=y {ON_GPU} {overrides}")
    if subject == EAGER:
        base = base.replace(attention_backend="reference", compile_model=False)
    settings = step_settings(base, subject if isinstance(subject, int) else 0)
    if subject in (PLAIN, PEER):
        return settings.replace(attention_backend="sdpa"), "sdpa"
    path, _ = choose(settings, device, batch)
    settings = settings.replace(attention_backend=path)
    compiled = settings.resources.compile_model
    return settings, served_by(settings, place_of("cuda", compiled))


def speed(settings: Settings, batch: int, seconds: float) -> Row:
    import torch

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


def attention_rows(given: argparse.Namespace, steps: list[int]) -> list[Row]:
    """Summed kernel time of attention alone, forward and backward, each path."""
    import torch

    from gpt2.attend.choice import attempt, candidates
    from gpt2.attend.request import place_of

    device, rows = torch.device("cuda"), []
    base = settings_of(f"RA_MLA_ABLATION_MODE=y {ON_GPU} {given.settings}")
    for number in steps:
        settings = step_settings(base, number)
        for path in candidates(settings, place_of("cuda", True)):
            trial = attempt(path, settings, device, 8)
            row: Row = {"part": "attention", "what": f"step {number}, {path}"}
            if trial.problem:
                row["failed"] = trial.problem
            else:
                row["kernel ms"] = trial.seconds * 1e3
            rows.append(row)
    return rows


# ---- on a CPU ---------------------------------------------------------------------


def cpu_rows(given: argparse.Namespace) -> list[Row]:
    """Step 0 and transformers' GPT-2 at equal size, in turns, the best of each."""
    import torch

    device, batch = torch.device("cpu"), 4
    settings = step_settings(settings_of(f"{SMALL} {ON_CPU}"), 0)
    makers = {"step 0": our_update}
    try:
        import transformers  # noqa: F401

        makers[PEER] = peer_update
    except ImportError:
        print("transformers is not installed: its row is left out")
    best = dict.fromkeys(makers, float("inf"))
    updates = {name: make(settings, device, batch) for name, make in makers.items()}
    for _ in range(3):
        for name, update in updates.items():
            best[name] = min(best[name], seconds_of(update, given.repeats))
    tokens = batch * settings.model.block_size
    rows: list[Row] = [
        {"part": "cpu", "what": name, "tokens/s": tokens / seconds}
        for name, seconds in best.items()
    ]
    if PEER in best:
        rows[0]["of transformers"] = best[PEER] / best["step 0"]
    return rows


def start_row() -> Row:
    """The shortest of five starts of a listing."""
    config = configuration.load_defaults("RA_MLA_ABLATION_MODE=y")
    script = str(ROOT / "scripts" / "run_test_matrix.py")
    with TemporaryDirectory() as folder:
        path = Path(folder) / "config.py"
        path.write_text(configuration.copies(config)["config.py"])
        command = [sys.executable, script, "--list", "--config", str(path)]
        seconds = min(command_seconds(command) for _ in range(5))
    return {"part": "start", "what": "run_test_matrix.py --list", "seconds": seconds}


def certificates_row(steps: list[int]) -> Row:
    """The time to prove the steps anew."""
    wanted = "STEPS=" + ",".join(map(str, steps))
    command = [sys.executable, str(ROOT / "scripts" / "verify.py"), "--fresh"]
    overrides = f"RA_MLA_ABLATION_MODE=y {wanted}"
    seconds = command_seconds([*command, "--at-hand", "--overrides", overrides])
    what = f"certificates of {len(steps)} steps"
    return {"part": "certificates", "what": what, "seconds": seconds}


def matrix_row(more: str) -> Row:
    """What of the slots' time the training loops had, evaluations and checkpoints
    included; the rest is start-up, of the runner too. Our sources are the text."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        places = f"DATASET_TEXT_PATH={ROOT / 'gpt2'} OUTPUT_DIR={folder / 'results'}"
        config = configuration.load_defaults(
            f"{MATRIX} {ON_CPU} {places} DATA_DIR={folder / 'data'}"
        )
        path = folder / "config.py"
        path.write_text(configuration.copies(config)["config.py"])
        scripts = [
            str(ROOT / "scripts" / f"{n}.py")
            for n in ("prepare_data", "run_test_matrix")
        ]
        prepare, run = ([sys.executable, s, "--config", str(path)] for s in scripts)
        command_seconds(prepare)
        seconds = command_seconds([*run, "--skip-verify", "--overrides", more])
        runs = [read_status(p.parent) for p in folder.glob("results/*/*/status.json")]
    slots = settings_from(config).resources.parallel_jobs
    training = sum(run["result"]["seconds"] for run in runs)
    return {
        "part": "matrix",
        "what": f"{len(runs)} runs on {slots} slots",
        "seconds": seconds,
        "seconds a run": training / len(runs),
        "share training": training / (slots * seconds),
    }


def command_seconds(command: list[str]) -> float:
    """Wall time of a command. Raises CalledProcessError if it fails."""
    start = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    return time.perf_counter() - start


if __name__ == "__main__":
    sys.exit(main())
