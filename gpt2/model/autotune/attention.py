"""Backends of attention on a GPU: which can serve, which is right, which is fastest.

Each is compared with the reference at the size of the run: output, statistic, mean
weights and the gradients of q, k and v.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from gpt2.mechanisms import needs_of, projection_of
from gpt2.mechanisms.spec import MULTI_HEAD
from gpt2.model.attention import CausalAttention, Heads
from gpt2.model.autotune import trials
from gpt2.model.autotune.trials import Trial
from gpt2.model.backends.call import Attended, Largest, OfHeads, Platform
from gpt2.model.backends.registry import BACKENDS, platform_for, shapes_of
from gpt2.model.block import RA_MLA_Block
from gpt2.model.kept_weights import keep_weights
from gpt2.settings.schema import Settings
from lib.gpu.compile_cache import compiled
from lib.kernels import ahead

# Wherever triton serves too, flex took twice its time (H100, torch 2.11) and compiles
# for long: it is tried where no other backend is right.
LAST_RESORT = "flex"

Weigh = Callable[[Heads], Attended]


def key(settings: Settings, batch: int) -> str:
    """Key of a ranking: the same for all arms that attend alike."""
    asked = [str(shape) for shape in shapes_of(settings)]
    kind = f"{settings.mechanisms.attention}, {settings.model.n_head} heads"
    compiled = "compiled" if settings.resources.compile_model else "eager"
    return f"attention {kind}, batch {batch}, {compiled}: " + "; ".join(asked)


def rank(settings: Settings, device: torch.device, batch: int) -> tuple[list[str], str]:
    """The right backends, the fastest first and the reference last, and a line for the
    log. ``batch``: sequences in a micro batch."""
    platform = platform_for(settings, device.type)
    tried: list[Trial] = []
    for backend in candidates(settings, platform):
        if backend != LAST_RESORT or all(trial.problem for trial in tried):
            tried.append(try_attention(backend, settings, device, batch))
    return trials.ranked(tried, "reference"), trials.report("attention", tried)


def candidates(settings: Settings, platform: Platform) -> list[str]:
    """The backends that serve every call of a layer, besides the reference."""
    shapes = shapes_of(settings)
    return [
        name
        for name, backend in BACKENDS.items()
        if name != "reference"
        and not any(backend.unsupported(shape, platform) for shape in shapes)
    ]


def compile_ahead(settings: Settings, device: torch.device, batch: int) -> None:
    """Begin to compile the tiles of Triton's kernels where they may serve: all that
    will be tried, on all cores. What fails here is reported by a trial later."""
    serves = "triton" in candidates(settings, platform_for(settings, device.type))
    asked = settings.resources.attention_backend in ("auto", "triton")
    if device.type != "cuda" or not serves or not asked:
        return
    with trials.tried():
        weigh = _weigher("triton", settings.replace(compile_model=False), device)
        heads, leaves = inputs(settings, device, batch)
        with ahead.collected():
            found = _numbers(weigh(heads))
            torch.autograd.grad(found, leaves, [torch.zeros_like(x) for x in found])


def warm_up(settings: Settings, device: torch.device, batch: int) -> None:
    """Compile what ``rank`` will time into the cache of compiled code: it then needs
    the device for itself for a short time."""
    platform = platform_for(settings, device.type)
    for backend in candidates(settings, platform):
        if backend == LAST_RESORT:
            continue
        with trials.tried():
            weigh = _weigher(backend, settings, device)
            heads, leaves = inputs(settings, device, batch)
            found = _numbers(weigh(heads))
            torch.autograd.grad(found, leaves, [torch.zeros_like(x) for x in found])


def try_attention(
    backend: str, settings: Settings, device: torch.device, batch: int
) -> Trial:
    """Time a backend, then compare it with the reference."""

    def seconds() -> float:
        weigh = _weigher(backend, settings, device)
        heads, leaves = inputs(settings, device, batch)
        return trials.gradient_seconds(lambda: _numbers(weigh(heads)), leaves, device)

    def check() -> str:
        ours = _weigher(backend, settings, device)
        return compare(
            ours, _weigher("reference", settings, device), settings, device, batch
        )

    return trials.run_trial(backend, seconds, check)


def _weigher(backend: str, settings: Settings, device: torch.device) -> Weigh:
    """A layer's attention without projections, compiled as the model will be."""
    torch.manual_seed(0)
    chosen = settings.replace(attention_backend=backend, dropout=0.0)
    layer: CausalAttention = RA_MLA_Block(chosen, 0).to(device).attn
    with torch.no_grad():
        for part in layer.parts():
            for parameter in part.parameters():
                if not parameter.any():  # learned weights at 0, where nothing shows
                    parameter.fill_(0.3)
    compiles = settings.resources.compile_model and backend != "reference"
    return compiled(layer.weigh) if compiles else layer.weigh


def _numbers(attended: Attended) -> list[Tensor]:
    """Output, and statistic and mean weights where there are some."""
    mean = attended.mean
    assert not isinstance(mean, OfHeads), "attention decoded"
    given = mean.values if isinstance(mean, Largest) else mean
    return [x for x in (*attended[:2], given) if x is not None]


def _comparable(attended: Attended, settings: Settings) -> Attended:
    """The results, with the mean weights as a matrix of those that are read."""
    kept, mean = needs_of(settings).kept, attended.mean
    if isinstance(mean, Largest):
        return attended._replace(mean=mean.matrix(mean.columns.shape[1]))
    if not isinstance(mean, Tensor) or not kept:
        return attended
    return attended._replace(mean=keep_weights(mean, "topk", kept, 0.0, False))


def inputs(
    settings: Settings, device: torch.device, batch: int
) -> tuple[Heads, list[Tensor]]:
    """Random heads of whole sequences, in the memory layout of a projection's output,
    and their leaves: one tensor for GPT-2's projection, so that the time to assemble
    its gradient counts.
    """
    asked, heads = shapes_of(settings)[-1], settings.model.n_head
    generator = torch.Generator(device).manual_seed(1)

    def draw(*last: int) -> Tensor:
        shape = (batch, settings.model.block_size, *last)
        numbers = torch.randn(shape, generator=generator, device=device)
        return numbers.to(asked.dtype).requires_grad_()

    if projection_of(settings) is MULTI_HEAD:
        leaves = [draw(3, heads, asked.widths[0])]
    else:
        widths = (asked.widths[0], *asked.widths)
        leaves = [draw(heads, width) for width in widths]
    return heads_of(leaves), leaves


def heads_of(leaves: list[Tensor]) -> Heads:
    """One packed tensor [B, T, 3, H, D], or queries, keys and values [B, T, H, D]."""
    if len(leaves) == 1:
        q, k, v = (part.transpose(1, 2) for part in leaves[0].unbind(2))
        return Heads(q, k, v, q, k, qkv=leaves[0])
    q, k, v = (leaf.transpose(1, 2) for leaf in leaves)
    return Heads(q, k, v, q, k)


def compare(
    ours: Weigh, theirs: Weigh, settings: Settings, device: torch.device, batch: int
) -> str:
    """The first result that differs by more than rounding; empty: none does.

    theirs, the reference, takes one sequence at a time: its matrices are T x T.
    """
    heads, leaves = inputs(settings, device, batch)
    found = _numbers(_comparable(ours(heads), settings))
    weights = trials.generic_weights(found)
    results = [*found, *trials.gradients(found, weights, leaves)]
    distance = trials.Distance()
    for row in range(batch):
        mine = [x.detach()[row : row + 1].requires_grad_() for x in leaves]
        truth = _numbers(_comparable(theirs(heads_of(mine)), settings))
        slopes = trials.gradients(truth, [w[row : row + 1] for w in weights], mine)
        distance.add([x[row : row + 1] for x in results], [*truth, *slopes])
    return distance.problem(shapes_of(settings)[-1].dtype)
