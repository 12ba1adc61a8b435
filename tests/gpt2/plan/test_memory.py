"""The memory estimate, term by term against what torch really keeps.

On a GPU: the whole estimate against the measured peak, a line for each step (without
"and not slow" for all steps, each of them compiled; several at once by -n 8 -rP):

    python -m pytest -m "gpu and not slow" -s tests/gpt2/plan/test_memory.py
"""

from __future__ import annotations

import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gpt2.mechanisms.mla import layer as mla_layer
from gpt2.model.backends.call import Platform
from gpt2.model.backends.registry import served_by
from gpt2.model.gpt import GPT
from gpt2.model.loss import linear_cross_entropy
from gpt2.plan.budget import linear_weights
from gpt2.plan.memory import (
    TUNED,
    activations_per_token,
    attention_backend,
    kept_by_block,
    kept_by_producer,
    memory,
    misfit,
    optimizer_bytes,
    pruning_bytes,
)
from gpt2.plan.planning import make_plan, step_settings
from gpt2.plan.steps import STEPS
from gpt2.run.plan_listing import budget_table, listing
from gpt2.settings.schema import Settings
from gpt2.train.build_optimizer import make_optimizer, make_pruner, prunable
from lib.optim.groups import state_bytes
from lib.optim.registry import OPTIMIZERS
from lib.pruning.registry import METHODS
from tests import card
from tests.gpt2.helpers import full_size, make_config, tiny, tiny_step

ROOT = Path(__file__).resolve().parents[3]
GPU = Platform("cuda", triton=True, compiled=False)
GIB = 2**30


# ---- what a block keeps -----------------------------------------------------------


def kept(settings: Settings, batch: int) -> int:
    """Bytes that the second block keeps for its backward pass, without a compiler;
    parameters are there anyway."""
    model = GPT(settings).train()
    own = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}
    found: dict[int, Tensor] = {}

    def note(x: Tensor) -> Tensor:
        found[x.untyped_storage()._cdata] = x  # held, so that no two share a number
        return x

    shape = (batch, settings.model.block_size, settings.model.n_embd)
    x = torch.zeros(shape, requires_grad=True)
    mixed = settings.optim.mixed_precision == "bf16"

    def autocast() -> torch.autocast:
        return torch.autocast("cpu", torch.bfloat16, enabled=mixed)

    with autocast():
        _, ctx = model.layers()[0](x, ctx={})
    handed = {name: leaf(c) for name, c in ctx.items()}
    with autocast(), saved_tensors_hooks(note, lambda x: x):
        model.layers()[1](x, ctx=handed)
    held = (x for number, x in found.items() if number not in own)
    return sum(x.untyped_storage().nbytes() for x in held)


def leaf(x: Tensor) -> Tensor:
    return x.detach().requires_grad_()


def kept_per_token(settings: Settings) -> float:
    """The same for each token; weights, kept too, drop out of the difference."""
    return (kept(settings, 3) - kept(settings, 2)) / settings.model.block_size


def expected(settings: Settings) -> int:
    block, producer = kept_by_block(settings), kept_by_producer(settings)
    return sum(block.values()) + sum(producer.values())


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("step", [0, 3, 8, 19, 21, 25, 26, 27])
def test_what_a_block_keeps_with_sdpa(
    step: int, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a GPU, for which the rows of latents are padded.
    monkeypatch.setattr(mla_layer, "platform_of_tensor", lambda x: GPU)
    settings = tiny_step(step, attention_backend="sdpa", mixed_precision=precision)
    assert attention_backend(settings) == "sdpa"
    assert kept_per_token(settings) == expected(settings)


@pytest.mark.parametrize("step", [0, 8, 13, 17, 18, 22, 28])
def test_what_a_block_keeps_with_matrices(step: int) -> None:
    fields = {"attention_backend": "reference", "mixed_precision": "bf16"}
    settings = tiny_step(step, **fields)
    assert kept_per_token(settings) == expected(settings)


KERNELS = """
import json, sys
sys.path.insert(0, sys.argv[1])
from torch._subclasses import FakeTensorMode
from tests.gpt2.helpers import tiny_step
from tests.gpt2.plan.test_memory import kept_per_token
found = {}
for step in map(int, sys.argv[2:]):
    with FakeTensorMode():  # shapes alone: the kernels themselves need a GPU
        fields = {"attention_backend": "triton", "mixed_precision": "bf16"}
        found[step] = kept_per_token(tiny_step(step, **fields))
print(json.dumps(found))
"""


@pytest.mark.slow
def test_what_a_block_keeps_with_the_kernels() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    steps = ("4", "5", "13", "16", "17", "27", "28")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", KERNELS, str(ROOT), *steps],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    fields = {"attention_backend": "triton", "mixed_precision": "bf16"}
    counted = {s: float(expected(tiny_step(int(s), **fields))) for s in steps}
    assert json.loads(done.stdout) == counted


# ---- the other terms --------------------------------------------------------------


@pytest.mark.parametrize("step", list(STEPS))
def test_linear_weights_are_those_that_may_be_pruned(step: int) -> None:
    settings = tiny_step(step)
    assert linear_weights(settings) == sum(
        weight.numel() for weight in prunable(GPT(settings)).values()
    )


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("method", METHODS)
def test_state_of_optimizers_and_pruning(name: str, method: str) -> None:
    settings = tiny(mlp_width=40, optimizer=name, prune_method=method)
    model = GPT(settings)
    optimizer = make_optimizer(model, settings.optim)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    counters = 4 * len(list(model.parameters()))
    assert 0 <= state_bytes(optimizer) - optimizer_bytes(settings) <= counters
    pruner = make_pruner(model, optimizer, settings)
    assert pruner.state_bytes() == pruning_bytes(settings)


def test_sgd_without_momentum_keeps_nothing() -> None:
    assert optimizer_bytes(tiny(mlp_width=40, optimizer="sgd", momentum=0.0)) == 0


@pytest.mark.parametrize("backend", ["auto", "sdpa", "triton", "reference"])
def test_the_path_is_the_one_that_serves(backend: str) -> None:
    for step in STEPS:
        settings = tiny_step(step, attention_backend=backend)
        served = served_by(settings, GPU)
        if backend == "auto":  # on a GPU decided by trial, of those that can serve
            named = settings.replace(attention_backend=attention_backend(settings))
            assert served_by(named, GPU) == attention_backend(settings), step
        else:
            assert attention_backend(settings) in served, step


# ---- the whole --------------------------------------------------------------------


def test_gpt2_124m_by_hand() -> None:
    settings = step_settings(full_size(), 0).replace(compile_model=True)
    found = memory(settings, 8)
    assert found.weights == 4 * 124_439_808
    assert found.optimizer == 2 * found.weights
    assert found.gradients == found.weights  # kept between micro steps
    assert found.casts == 0  # made again in the backward pass
    eager = memory(settings.replace(compile_model=False), 8)
    assert eager.casts == 2 * 12 * 12 * 768**2
    block = 2 * (2 * 768 + 8) + 2 * 2 * 768 + 2 * 2 * 3072 + 4 * 2 * 768 + 4 * 12
    assert abs(found.activations - 8192 * 12 * block) < 8192 * 16_000
    logits = 8192 * 50_304
    assert found.temporaries > TUNED[True].logit * logits
    whole = settings.replace(gradient_accumulation=1, cuda_graphs=False)
    assert memory(whole, 8).gradients == 0


def test_it_grows_with_the_batch_and_with_matrices() -> None:
    base = step_settings(full_size(), 5).replace(compile_model=True)
    sizes = [memory(base, batch).total for batch in (1, 2, 8, 32)]
    assert sizes == sorted(sizes) and sizes[-1] > 3 * sizes[0]
    slow = memory(base.replace(attention_backend="reference"), 8)
    assert slow.total > 1.5 * memory(base, 8).total
    assert activations_per_token(base) == memory(base, 8).activations / 8192


def test_a_tiny_batch_peaks_while_the_weights_are_updated() -> None:
    fields = {"batch_size": 1, "gradient_accumulation": 1, "block_size": 16}
    fields["cuda_graphs"] = False
    found = memory(step_settings(full_size(), 1).replace(**fields))
    assert found.activations == 0 and found.gradients == found.weights


class Live(TorchDispatchMode):
    """Counts the bytes of all storages that are alive, and their peak."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._sizes: dict[int, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, Tensor):
                self._count(x.untyped_storage())
        return out

    def _count(self, storage) -> None:
        number = storage._cdata
        if number not in self._sizes:
            self._sizes[number] = storage.nbytes()
            self.now += self._sizes[number]
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, number)

    def _forget(self, number: int) -> None:
        self.now -= self._sizes.pop(number)


def test_temporaries_of_the_loss_are_about_what_is_tuned() -> None:
    rows, words, width = 512, 1280, 16
    x = torch.randn(rows, width, dtype=torch.bfloat16, requires_grad=True)
    weight = torch.randn(words, width, requires_grad=True)
    with Live() as live:
        linear_cross_entropy(x, weight, torch.zeros(rows, dtype=torch.int64))
    logits = TUNED[False].logit * rows * words
    head = TUNED[False].head * words * width
    assert 0.6 * (logits + head) < live.peak < 1.1 * (logits + head)


@pytest.mark.slow
@pytest.mark.parametrize("step", [0, 8, 19])
def test_the_peak_of_an_update_at_124m_by_its_shapes(step: int) -> None:
    """Without a compiler, of tensors that have a size but no content."""
    fields = {"attention_backend": "sdpa", "residual_fp32": True}
    alone = {"gradient_accumulation": 1, "cuda_graphs": False}
    settings = step_settings(full_size(), step).replace(**fields, **alone)
    with FakeTensorMode(), Live() as live:
        model = GPT(settings).train()
        optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
        tokens = torch.zeros(8, 1024, dtype=torch.int64)
        for _ in range(2):
            live.peak = live.now
            with torch.autocast("cpu", torch.bfloat16):
                hidden = model.hidden(model.embed(tokens))
                loss = linear_cross_entropy(hidden, model.wte.weight, tokens)
            del hidden
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    estimate = memory(settings, 8).total - TUNED[False].workspace
    print(step, estimate / GIB, live.peak / GIB)
    assert abs(estimate / live.peak - 1) < 0.05


def test_a_card_that_is_too_small_is_told() -> None:
    base = step_settings(full_size(), 0).replace(compile_model=True)
    assert misfit(base.replace(gpu_memory=24)) == misfit(base) == ""
    small = misfit(base.replace(gpu_memory=6))
    assert "GPU_MEMORY_GB=6" in small and "lower BATCH_SIZE" in small
    assert misfit(base.replace(gpu_memory=6, device="cpu")) == ""


def test_a_listing_shows_and_warns_of_it() -> None:
    config = make_config(
        RA_MLA_ABLATION_MODE="y", STEPS="0,5", GPU_MEMORY_GB="6", COMPILE_MODEL="y"
    )
    plan = make_plan(config)
    text = listing(plan, config)
    assert text.count(" GiB") == 2 and text.count("note: ra: about") == 1, text
    assert "GiB" in budget_table(plan)


# ---- against a GPU ----------------------------------------------------------------


def measured(settings: Settings, batch: int) -> int:
    """Peak bytes that torch allocates in this process in three updates."""
    torch.compiler.reset()
    before = torch.cuda.memory_allocated()  # of other tests, for cuBLAS say
    torch.cuda.reset_peak_memory_stats()
    device = torch.device("cuda")
    model = GPT(settings).to(device).train()
    run: Callable[..., Tensor] = model
    if settings.resources.compile_model:
        run = torch.compile(model)
    optimizer = make_optimizer(model, settings.optim)
    tokens = torch.randint(50_257, (batch, settings.model.block_size), device=device)
    for _ in range(3):
        for _ in range(2):
            with torch.autocast("cuda", torch.bfloat16):
                loss = run(tokens, tokens.roll(-1, 1))
            loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated() - before


def compared(step: int, batch: int, compiled: bool) -> SimpleNamespace:
    """Estimate and measurement of a step at 124M, said on one line."""
    settings = step_settings(full_size(), step)
    settings = settings.replace(compile_model=compiled, mixed_precision="bf16")
    settings = settings.replace(attention_backend=attention_backend(settings))
    found = SimpleNamespace(estimate=memory(settings, batch).total)
    if found.estimate / GIB > 0.9 * card.size():
        pytest.skip(f"needs {found.estimate / GIB:.1f} of {card.size():.1f} GiB")
    try:
        found.measured = measured(settings, batch)
    finally:  # nothing of it is left to the next test
        torch.compiler.reset()
        gc.collect()
    found.error = found.estimate / found.measured - 1
    how = f"{'compiled' if compiled else 'eager':8} {attention_backend(settings):6}"
    sizes = f"{found.estimate / GIB:6.2f} measured {found.measured / GIB:6.2f} GiB"
    print(
        f"\nstep {step:2} micro batch {batch:2} {how} estimate {sizes} "
        f"{found.error:+.1%}",
        end="",
        flush=True,
    )
    return found


FEW = (0, 5, 8, 13, 16)
COMPILED = [
    *(pytest.param(n, 8, marks=() if n in FEW else pytest.mark.slow) for n in STEPS),
    *(pytest.param(n, 32, marks=pytest.mark.gpu(gib=15)) for n in FEW),
]


@pytest.mark.gpu(gib=8)
@pytest.mark.parametrize(("step", "batch"), COMPILED)
def test_the_estimate_holds_compiled_on_a_gpu(step: int, batch: int) -> None:
    assert abs(compared(step, batch, True).error) < 0.15


@pytest.mark.gpu(gib=8)
@pytest.mark.parametrize("step", [0, 8, 16])
def test_the_estimate_holds_without_a_compiler_on_a_gpu(step: int) -> None:
    assert abs(compared(step, 8, False).error) < 0.15
