"""Which attention backend serves what, and the fast ones against the reference."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

import gpt2
from gpt2.mechanisms.needs import WHOLE_CONTEXT
from gpt2.model import attention
from gpt2.model.attention import Heads
from gpt2.model.autotune.attention import candidates, compare, try_attention
from gpt2.model.backends import flex, reference
from gpt2.model.backends.call import (
    Attended,
    AttentionCall,
    CallShape,
    Largest,
    Platform,
    Statistic,
    Transposed,
    platform_of,
)
from gpt2.model.backends.flex import merge
from gpt2.model.backends.registry import (
    BACKENDS,
    attend,
    fallbacks,
    served_by,
    serving,
    shapes_of,
)
from gpt2.model.by_block import CompiledGPT
from gpt2.model.kept_weights import keep_weights
from gpt2.plan.steps import STEPS
from tests.gpt2.helpers import generic, normal, tiny_step, tokens_of
from tests.interpreted import interpreted

CPU = Platform("cpu", triton=False, compiled=False)
GPU = Platform("cuda", triton=True, compiled=True)
PLAIN = CallShape(rows=100, columns=100, widths=(64, 64), dtype=torch.bfloat16)
TOPK = Statistic("topk", 8, False)
ENTROPY = Statistic("entropy", 8, False)


# ---- which backend serves ---------------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "able"),
    [
        (PLAIN, "sdpa flex triton"),
        (replace(PLAIN, window=WHOLE_CONTEXT), "sdpa flex triton"),
        (replace(PLAIN, window=64), "flex triton"),
        (replace(PLAIN, statistic=ENTROPY), "flex triton"),
        (replace(PLAIN, statistic=ENTROPY, window=64), "triton"),
        (replace(PLAIN, statistic=TOPK), "triton"),
        (replace(PLAIN, statistic=replace(TOPK, topk=33)), ""),
        (replace(PLAIN, statistic=Statistic("topk", 33, True)), "triton"),
        (replace(PLAIN, mean=True), "triton"),
        (replace(PLAIN, dropout=0.1), "sdpa"),
        (replace(PLAIN, window=64, dropout=0.1), ""),
        (replace(PLAIN, widths=(160, 128)), "sdpa flex"),
        (replace(PLAIN, rows=1), ""),
        (replace(PLAIN, dtype=torch.float64), "sdpa"),
    ],
)
def test_backends_say_what_they_cannot_serve(shape: CallShape, able: str) -> None:
    names = ("sdpa", "flex", "triton")
    found = [name for name in names if not BACKENDS[name].unsupported(shape, GPU)]
    assert found == able.split()
    for name in names:
        expected = name if name in found else "sdpa" if "sdpa" in found else "reference"
        assert serving(shape, name, GPU) == expected


def test_gpu_backends_need_a_gpu_and_flex_a_compiler() -> None:
    band = replace(PLAIN, window=64)
    assert serving(band, "triton", CPU) == "reference"
    assert serving(PLAIN, "triton", CPU) == "sdpa"
    eager = Platform("cuda", triton=True, compiled=False)
    assert "torch.compile" in BACKENDS["flex"].unsupported(band, eager)
    assert platform_of("cpu", True).triton is (
        os.environ.get("TRITON_INTERPRET") == "1"
    )


def test_reference_by_name_is_the_reference() -> None:
    assert serving(PLAIN, "reference", GPU) == "reference"
    assert serving(PLAIN, "auto", GPU) == "sdpa"


def test_the_menu_offers_each_backend() -> None:
    menu = Path(gpt2.__file__).with_name("Kconfig.hardware").read_text()
    offered = re.findall(r"^config RA_MLA_ATTENTION_BACKEND_(\w+)$", menu, re.MULTILINE)
    assert set(offered) == {"AUTO", *(name.upper() for name in BACKENDS)}


@pytest.mark.parametrize("number", STEPS)
def test_a_gpu_has_a_fast_backend_for_every_step(number: int) -> None:
    base = {"head_dim": 64, "mixed_precision": "bf16", "block_size": 128}
    settings = tiny_step(number, **base)
    assert "triton" in candidates(settings, GPU)


def test_served_by_tells_both_calls_of_a_layer() -> None:
    at_weights = tiny_step(17)
    assert len(shapes_of(at_weights)) == 2
    assert served_by(at_weights, CPU) == "reference+sdpa"
    assert served_by(tiny_step(0), CPU) == "sdpa"
    assert served_by(tiny_step(5), CPU) == "reference"
    named = tiny_step(5, attention_backend="sdpa")
    (line,) = fallbacks(named, CPU)
    assert "'sdpa': no band; reference serves instead" in line
    assert fallbacks(tiny_step(5), CPU) == []


@pytest.mark.parametrize("number", STEPS)
def test_settings_predict_the_calls_of_a_layer(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = tiny_step(number, mixed_precision="fp32")
    model = generic(settings, dtype=torch.float32)
    asked: list[CallShape] = []

    def note(call: AttentionCall, backend: str) -> Attended:
        asked.append(call.shape)
        return attend(call, backend)

    monkeypatch.setattr(attention, "attend", note)
    model.logits(tokens_of(settings, 1, settings.model.block_size))
    expected = shapes_of(settings) * settings.model.n_layer
    assert tuple(asked) == expected


# ---- trying the backends ----------------------------------------------------------


def test_a_wrong_backend_is_detected() -> None:
    settings = tiny_step(29)

    def right(heads: Heads) -> Attended:
        return attend(AttentionCall(heads.q, heads.k, heads.v, scale=0.5))

    def detached(heads: Heads) -> Attended:
        frozen = heads.q.detach() + 0 * heads.q
        return attend(AttentionCall(frozen, heads.k, heads.v, scale=0.5))

    def shifted(heads: Heads) -> Attended:
        return Attended(right(heads).output.roll(1, 2))

    def unwritten(heads: Heads) -> Attended:
        return Attended(right(heads).output * torch.tensor(float("nan")))

    device = torch.device("cpu")
    assert compare(right, right, settings, device, 3) == ""
    for wrong in (detached, shifted, unwritten):
        problem = compare(wrong, right, settings, device, 3)
        assert "differs from the reference" in problem, wrong


def test_a_backend_is_compared_and_timed() -> None:
    trial = try_attention("sdpa", tiny_step(29), torch.device("cpu"), 2)
    assert trial.problem == ""
    assert trial.seconds > 0
    crashing = try_attention("sdpa", tiny_step(29), torch.device("meta"), 2)
    assert "failed" in crashing.problem


# ---- the compositions -------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile")
@pytest.mark.parametrize(
    ("window", "statistic"), [(None, None), (3, None), (64, None), (None, ENTROPY)]
)
@pytest.mark.parametrize("with_factor", [False, True])
def test_flex_computes_what_the_reference_does(
    window: int | None, statistic: Statistic | None, with_factor: bool
) -> None:
    # Uncompiled and without gradients it runs on a CPU too.
    q, k, v = (normal(2, 3, 16, 4, seed=n).detach().float() for n in range(3))
    alpha, factor = normal(3, seed=7).detach().float(), q[..., 0].exp()
    term = None if window is None else Transposed(k, q, alpha, window)
    call = AttentionCall(
        *(q, k, v, 0.5),
        transposed=term,
        statistic=statistic,
        row_scale=factor if with_factor else None,
    )
    found, expected = flex.run(call), reference.run(call)
    assert (found.output - expected.output).abs().max() < 1e-5
    if expected.statistic is not None:
        assert found.statistic is not None
        assert (found.statistic - expected.statistic).abs().max() < 1e-5


def test_merging_two_parts_of_the_keys_is_attention_over_all() -> None:
    # Near and far keys as FlexAttention returns them: rows without far keys have
    # the output 0 and the log-sum-exp -inf.
    q, k, v = (normal(2, 3, 9, 4, seed=n) for n in range(3))
    scores = q @ k.transpose(-1, -2) * 0.5
    i, j = torch.meshgrid(torch.arange(9), torch.arange(9), indexing="ij")
    parts = []
    for mask in ((i >= j) & (i - j <= 2), i - j > 2):
        lse = scores.masked_fill(~mask, float("-inf"))
        some = mask.any(-1)
        finite = torch.where(some[:, None], lse, 0.0)
        p = finite.softmax(-1) * mask
        parts += [p @ v, finite.logsumexp(-1).masked_fill(~some, float("-inf"))]
    whole = attend(AttentionCall(q, k, v, scale=0.5), "reference").output
    merged = merge(*parts)
    assert (merged - whole).abs().max() < 1e-12
    for a, b in zip(
        torch.autograd.grad(merged.square().sum(), (q, k, v)),
        torch.autograd.grad(whole.square().sum(), (q, k, v)),
        strict=True,
    ):
        assert (a - b).abs().max() < 1e-10


# ---- fused kernels against the reference ------------------------------------------

# name: D, Dv, window (None: no term), learned alpha, statistic, row factor, mean
# weights (a number: so many of each row). At no length a row's fifth and sixth scores
# are so near that the kernels' SLACK counts both.
KERNELS: dict[str, tuple] = {
    "plain": (16, 16, None, False, None, False, False),
    "widths": (24, 40, 5, False, None, False, False),
    "learned-band": (16, 16, 7, True, None, False, True),
    "whole-factor": (16, 16, WHOLE_CONTEXT, True, None, True, True),
    "topk": (16, 16, None, False, "topk", False, False),
    "topk-band-mean": (16, 8, 7, False, "topk", False, True),
    "max": (16, 16, None, False, "max", False, False),
    "entropy-band": (16, 16, 7, False, "entropy", False, False),
    "rms": (16, 16, None, False, "rms", False, False),
    "kept": (16, 16, None, False, None, False, 3),
    "kept-band": (24, 40, 9, True, "topk", False, 8),
    "kept-whole-factor": (16, 16, WHOLE_CONTEXT, True, None, True, 8),
}
# Relative to the norm of the reference on the same rounded inputs.
TOLERANCES = {torch.float32: 1e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}


def kernel_case(
    name: str, length: int, dtype: torch.dtype, device: str, backend: str
) -> list[float]:
    """Relative distances of results and gradients from the float64 reference.

    The slope of alpha [H] is a sum over rows of terms of both signs, and can be much
    smaller than they are (a quarter at 63 tokens): rounding is relative to the terms.
    """
    d, dv, window, learned, kind, factor, mean = KERNELS[name]
    kept = 0 if isinstance(mean, bool) else mean
    shapes = [(2, length, 3, d), (2, length, 3, d), (2, length, 3, dv)]
    leaves = [normal(*s, seed=n).detach() for n, s in enumerate(shapes)]
    extra = [normal(3, seed=7).detach(), normal(2, 3, length, seed=8).detach().exp()]
    found = []
    for path, wide in ((backend, dtype), ("reference", torch.float64)):
        mine = [x.to(device, dtype).to(wide).requires_grad_() for x in leaves]
        high = torch.float64 if wide == torch.float64 else torch.float32
        alpha, rows = (x.to(device, high).requires_grad_() for x in extra)
        q, k, v = (x.transpose(1, 2) for x in mine)  # not contiguous
        term = None
        keys = k * 1 if path == "reference" else k  # * 1: with a slope of its own
        if window is not None:
            term = Transposed(keys, q, alpha if learned else 0.3, window)
        got: Attended = attend(
            AttentionCall(
                q,
                k,
                v,
                scale=d**-0.5,
                transposed=term,
                statistic=None if kind is None else Statistic(kind, 5, False),
                row_scale=rows if factor else None,
                mean=bool(mean),
                kept=kept,
            ),
            path,
        )
        means = got.mean
        if isinstance(means, Largest):
            means = means.matrix(length)
        elif kept:
            means = keep_weights(means, "topk", kept, 0.0, False)
        outputs = [x for x in (*got[:2], means) if x is not None]
        used = [*mine, *([rows] if factor else []), *([alpha, keys] if learned else [])]
        total = torch.zeros((), device=device, dtype=torch.float64)
        for n, x in enumerate(outputs):
            weights = normal(*x.shape, seed=20 + n).detach().to(device)
            total = total + (x.double() * weights).sum()
        found.append([*outputs, *torch.autograd.grad(total, used)])
    sizes = [b.norm() for b in found[1]]
    if learned:
        *_, slopes = (results.pop() for results in found)  # of the term's own keys
        sizes[-2:] = [((keys * slopes).sum(-1) / alpha[:, None]).norm()]
    return [
        # With one token the weights are constant: gradients of nothing.
        ((a.double() - b).norm() / size.clamp_min(1.0)).item()
        for a, b, size in zip(*found, sizes, strict=True)
    ]


def worst_of_each_kernel() -> dict[str, float]:
    found = {n: kernel_case(n, 21, torch.float32, "cpu", "triton") for n in KERNELS}
    # torch's maximum, unlike max(), is not deaf to NaN
    return {name: torch.tensor(x).max().item() for name, x in found.items()}


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
def test_kernels_in_the_interpreter_equal_the_reference() -> None:
    found = interpreted(worst_of_each_kernel)
    assert set(found) == set(KERNELS)
    wrong = {name: x for name, x in found.items() if not x < 1e-5}
    assert not wrong


@pytest.fixture
def poisoned_memory():
    """Fresh memory is full of NaN: what a kernel leaves unwritten shows."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.gpu
@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("name", KERNELS)
def test_kernels_on_a_gpu_equal_the_reference(name: str, dtype: torch.dtype) -> None:
    # All lengths in one process, which compiles and tunes but once, at the first.
    for length in (300, 1, 63, 64, 129):
        found = kernel_case(name, length, dtype, "cuda", "triton")
        assert all(x <= TOLERANCES[dtype] for x in found), (length, found)  # none NaN


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("name", "statistic"),
    [
        ("plain", None),
        ("plain", ENTROPY),
        ("learned-band", None),
        ("whole-factor", None),
    ],
)
def test_flex_on_a_gpu_equals_the_reference(
    name: str, statistic: Statistic | None
) -> None:
    torch.compiler.reset()
    compiled = torch.compile(attend)
    d, dv, window, learned, *_ = KERNELS[name]
    results = []
    for path in (compiled, attend):
        q, k, v = (
            normal(2, 3, 300, 64, seed=n).detach().cuda().bfloat16().requires_grad_()
            for n in range(3)
        )
        alpha = normal(3, seed=7).detach().cuda().float() if learned else 0.3
        term = None if window is None else Transposed(k, q, alpha, window)
        backend = "flex" if path is compiled else "reference"
        try:
            call = AttentionCall(q, k, v, 0.125, transposed=term, statistic=statistic)
            both = path(call, backend)[:2]
            found = [x for x in both if x is not None]
            total = torch.stack([x.float().square().sum() for x in found]).sum()
            slopes = torch.autograd.grad(total, (q, k, v))
        except torch._inductor.exc.InductorError as error:
            if "No valid triton configs" not in str(error):
                raise
            pytest.skip("this torch has no tile of FlexAttention for such widths here")
        results.append([*found, *slopes])
    for a, b in zip(*results, strict=True):
        assert (a - b).float().norm() / b.float().norm() < 2e-2


@pytest.mark.gpu
@pytest.mark.parametrize("number", [0, 5, 7, 13, 16, 17, 18, 30])
def test_a_step_is_compiled_once(number: int) -> None:
    settings = tiny_step(
        number, head_dim=64, block_size=128, attention_backend="triton"
    )
    torch.compiler.reset()
    model = generic(settings, dtype=torch.float32).cuda().train()
    compiled = CompiledGPT(model)
    tokens = tokens_of(settings, 2, 128).cuda()
    with torch.autocast("cuda", torch.bfloat16):
        compiled(tokens, tokens.flip(1)).backward()
        with torch.compiler.set_stance("fail_on_recompile"):
            compiled(tokens.flip(0), tokens).backward()
    slopes = [p.grad for p in model.parameters() if p.grad is not None]
    assert all(x.isfinite().all() for x in slopes)


@pytest.mark.parametrize("backend", ["auto", "reference"])
def test_a_call_is_traced_whole_by_the_compiler(backend: str) -> None:
    q, k, v = (normal(2, 3, 9, 4, seed=n) for n in range(3))
    call = AttentionCall(
        *(q, k, v, 0.5),
        transposed=Transposed(k, q, normal(3, seed=7), 2),
        statistic=TOPK,
        row_scale=q[..., 0].exp(),
        mean=True,
    )
    traced = torch.compile(attend, fullgraph=True, backend="eager")
    found, expected = traced(call, backend), attend(call, backend)
    assert found.gated is expected.gated is False
    for mine, other in zip(found[:3], expected[:3], strict=True):
        assert torch.equal(mine, other)


def test_replaced_queries_do_not_keep_the_packed_tensor() -> None:
    qkv = normal(2, 9, 3, 3, 4, seed=0)
    q, k, v = (part.transpose(1, 2) for part in qkv.unbind(2))
    packed = AttentionCall(q, k, v, 0.5, qkv=qkv)
    plain = attend(AttentionCall(q, k, v, 0.5))
    assert torch.equal(attend(packed).output, plain.output)
    for stale in (
        replace(packed, q=q * 1.0),
        replace(packed, q=k),
        replace(packed, k=k.flip(1)),
        replace(packed, v=v[..., :2]),
    ):
        with pytest.raises(AssertionError, match="qkv was kept although q, k or v"):
            attend(stale)


def test_the_statistic_alone_is_that_of_attention() -> None:
    q, k, v = (normal(2, 3, 9, 4, seed=n) for n in range(3))
    together = attend(AttentionCall(q, k, v, scale=0.5, statistic=ENTROPY)).statistic
    alone = attend(AttentionCall(q, k, None, scale=0.5, statistic=ENTROPY)).statistic
    assert torch.equal(together, alone)
