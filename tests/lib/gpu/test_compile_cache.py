"""Real processes that compile into one folder, and the folder itself."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from gpt2.model.autotune.store import kept_file
from gpt2.plan.planning import make_plan
from gpt2.run.plan_listing import cold_cache
from gpt2.settings.configuration import load_defaults
from lib.gpu import compile_cache
from lib.gpu.compile_cache import (
    INDUCTOR,
    TRITON,
    bytecode_folder,
    cache_environment,
    graphs_folder,
    is_empty,
)
from tests.scratch import ROOT, is_alive, until

# A formula of our own within autocast, and an operator: as our models have them.
# Products alone need no C++ compiler.
PROGRAM = """
import json, sys
import torch
from torch import Tensor
from lib.gpu import compile_cache

version, seed, *factors = sys.argv[1:]
compile_cache.operators_version = lambda: version

@torch.library.custom_op("test::product", mutates_args=())
def product(x: Tensor, w: Tensor) -> Tensor:
    return x @ w

product.register_fake(lambda x, w: x.new_empty(x.shape[0], w.shape[1]))
def product_backward(ctx, slope):
    x, w = ctx.saved_tensors
    return slope @ w.t(), x.t() @ slope

product.register_autograd(
    product_backward,
    setup_context=lambda ctx, inputs, output: ctx.save_for_backward(*inputs),
)

class Formula(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, w):
        ctx.save_for_backward(x, w)
        return x @ w

    @staticmethod
    def backward(ctx, slope):
        x, w = ctx.saved_tensors
        return slope @ w.t(), torch.addmm(x, x.t(), slope, beta=0.0, alpha=factor)

def model(x, w):
    with torch.autocast("cpu", enabled=False):
        return product(Formula.apply(x, w), w)

torch.manual_seed(int(seed))
double = {"dtype": torch.double}  # which autocast leaves alone
x, w = torch.eye(4, **double), torch.ones(4, 4, **double, requires_grad=True)
for factor in map(float, factors):
    torch.compiler.reset()
    run = compile_cache.compiled(model)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = run(x, w)
    (slope,) = torch.autograd.grad(out, w, torch.ones_like(out))
print(json.dumps([slope[0, 0].item(), compile_cache.graphs_compiled()]))
"""


def compile_in_process(
    folder: Path, *factors: float, version: str = "1", seed: int = 0
) -> tuple[float, dict[str, int]]:
    """The last slope, and how many graphs were found and compiled for all factors."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, version, str(seed), *map(str, factors)],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "TORCHINDUCTOR_COMPILE_THREADS": "1",
            INDUCTOR: str(folder),
        },
        capture_output=True,
        text=True,
        check=True,
    )
    slope, counts = json.loads(done.stdout)
    return slope, counts


def test_caches_of_tests_are_not_in_the_home_folder() -> None:
    named = [Path(os.environ[name]) for name in (INDUCTOR, TRITON, "XDG_CACHE_HOME")]
    ours = (graphs_folder(os.environ), bytecode_folder(os.environ), kept_file())
    for place in (*named, *ours):
        assert place is not None and place.is_relative_to(ROOT / ".pytest_cache")


@pytest.mark.slow
def test_next_seed_compiles_nothing_and_other_formulas_do(tmp_path: Path) -> None:
    assert is_empty({INDUCTOR: str(tmp_path)})
    made = {"cached": 0, "compiled": 1}
    assert compile_in_process(tmp_path, 1.0) == (8.0, made)
    assert not is_empty({INDUCTOR: str(tmp_path)})
    each = {"cached": 1, "compiled": 1}
    assert compile_in_process(tmp_path, 1.0, 3.0, seed=2) == (16.0, each)


@pytest.mark.slow
def test_damaged_deleted_and_other_versions_are_compiled(tmp_path: Path) -> None:
    made, found = {"cached": 0, "compiled": 1}, {"cached": 1, "compiled": 0}
    assert compile_in_process(tmp_path, 1.0) == (8.0, made)
    assert compile_in_process(tmp_path, 1.0, version="2") == (8.0, made)
    for path in tmp_path.glob("aotautograd/**/*"):
        if path.is_file():
            path.write_bytes(b"damaged")
    assert compile_in_process(tmp_path, 1.0)[0] == 8.0
    both = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "1", seed, "5.0"],
            env={**os.environ, "PYTHONPATH": str(ROOT), INDUCTOR: str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        )
        for seed in ("1", "2")
    ]
    for process in both:  # that write the same entries
        text, _ = process.communicate()
        assert json.loads(text)[0] == 24.0
    assert compile_in_process(tmp_path, 5.0) == (24.0, found)


WORKERS = """
import os, time
from torch._inductor.async_compile import AsyncCompile
from lib.gpu.compile_cache import rest_workers

def wait_for(count):
    while True:
        with open(f"/proc/{pid}/task/{pid}/children") as children:
            if len(children.read().split()) == count:
                return
        time.sleep(0.05)

rest_workers()  # there are none
AsyncCompile.wakeup()
pool = AsyncCompile.process_pool()
pid = pool.process.pid
wait_for(2)
rest_workers()
wait_for(0)
assert pool.submit(os.getppid).result() == pid  # there is work again
pool.process.kill()
pool.process.wait()
rest_workers()  # the process of the pool is gone
"""
LEAVES = """
from torch._inductor.async_compile import AsyncCompile
from lib.jobs.fast_exit import leave

pool = AsyncCompile.process_pool()
pool.submit(int).result()
with open(f"/proc/{pool.process.pid}/task/{pool.process.pid}/children") as children:
    print(pool.process.pid, children.read())
leave(0)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_compile_workers_end_and_start_again() -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    environ["TORCHINDUCTOR_COMPILE_THREADS"] = "2"
    subprocess.run(
        [sys.executable, "-c", WORKERS], env=environ, check=True, timeout=600
    )


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_compile_workers_end_when_their_process_has_left() -> None:
    environ = {**os.environ, "PYTHONPATH": str(ROOT)}
    environ["TORCHINDUCTOR_COMPILE_THREADS"] = "2"
    done = subprocess.run(
        [sys.executable, "-c", LEAVES], env=environ, check=True, stdout=subprocess.PIPE
    )
    pids = done.stdout.split()
    assert len(pids) == 3
    until(lambda: not any(map(is_alive, pids)))


def test_folder_is_the_users_own(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    added = cache_environment(environ)
    folder = compile_cache.cache_folder(environ)
    assert folder is not None
    assert folder.is_relative_to(tmp_path / "kablate") and folder.is_dir()
    assert folder.stat().st_mode & 0o077 == 0
    assert added == {
        INDUCTOR: str(folder / "inductor"),
        TRITON: str(folder / "triton"),
    }
    assert is_empty(environ | added)
    assert cache_environment({INDUCTOR: "/elsewhere"}) == {}
    assert set(cache_environment(environ | {TRITON: "/elsewhere"})) == {INDUCTOR}


def test_folder_that_cannot_be_written_is_left_to_torch(tmp_path: Path) -> None:
    (tmp_path / "kablate").write_text("")  # a file
    assert cache_environment({"XDG_CACHE_HOME": str(tmp_path)}) == {}
    assert cache_environment({}) == {} and is_empty({}), "no home"


def test_the_home_folder_is_the_usual_place(tmp_path: Path) -> None:
    added = cache_environment({"HOME": str(tmp_path)})
    assert added[INDUCTOR].startswith(f"{tmp_path}/.cache/kablate/compiled/")


def test_a_cold_cache_is_said_where_runs_compile(tmp_path: Path) -> None:
    environ = {"XDG_CACHE_HOME": str(tmp_path)}
    overrides = "SINGLE_RUN_MODE=y DEVICE=cpu "
    plans = [make_plan(load_defaults(overrides + f"COMPILE_MODEL={x}")) for x in "ny"]
    assert cold_cache(plans[0], environ) == []
    (line,) = cold_cache(plans[1], environ)
    assert str(compile_cache.cache_folder(environ)) in line
    entries = Path((environ | cache_environment(environ))[INDUCTOR], "fxgraph", "ab")
    entries.mkdir(parents=True)
    assert cold_cache(plans[1], environ) == []


def test_all_operators_are_in_the_key() -> None:
    sources = [p for room in ("gpt2", "lib") for p in (ROOT / room).rglob("*.py")]
    declares = re.compile(r"^@torch\.library\.|\.register_(autograd|fake)\(", re.M)
    found = [path for path in sources if declares.search(path.read_text())]
    assert found and all(path.parent == compile_cache.OPERATORS for path in found)


def test_every_compilation_is_kept() -> None:
    sources = [p for room in ("gpt2", "lib") for p in (ROOT / room).rglob("*.py")]
    compiles = [p.name for p in sources if "torch.compile(" in p.read_text()]
    assert compiles == ["compile_cache.py"]


def test_a_changed_operator_changes_the_key(tmp_path: Path) -> None:
    (tmp_path / "op.py").write_text("a")
    before = compile_cache.operators_version(tmp_path)
    assert compile_cache.operators_version(tmp_path) == before
    (tmp_path / "op.py").write_text("b")
    assert compile_cache.operators_version(tmp_path) != before
