"""End of a run that pruned heads: remove them, compare outputs, measure cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gpt2.model.autotune.choice import built_with
from gpt2.model.gpt import GPT
from gpt2.model.heads import without_heads
from gpt2.plan.budget import budget, kv_bytes
from gpt2.settings.schema import Settings
from lib.gpu import device as devices
from lib.pruning.heads import HeadPruner
from lib.pruning.schedules import head_target

TOLERANCE = 1e-5  # fp32, relative to the largest logit where that is above 1
REPEATS = 7  # in turn, after one that does not count; the shortest does
TIMED_WINDOWS, LONGEST = 4, 256  # of a timed forward pass; the latter in tokens
DECODED = 32  # tokens, one by one

Cut = Callable[[GPT, Settings, Sequence[Sequence[bool]]], GPT]


class RemovalDiffers(ArithmeticError):
    """The model without its pruned heads does not compute what the masked one did."""


@dataclass(frozen=True, slots=True)
class Removal:
    """The smaller model, its heads by layer, and what became of cost and output."""

    model: GPT
    heads: tuple[int, ...]
    result: dict[str, Any]


def remove_heads(
    model: GPT,
    settings: Settings,
    pruner: HeadPruner,
    tokens: Tensor,
    targets: Tensor,
    device: devices.DeviceInfo,
    cut: Cut = without_heads,
) -> Removal:
    """Remove the pruned heads from a trained model, compare and time both models.

    tokens, targets: validation windows [B, T] on the CPU; T is the context. Raises
    RemovalDiffers if outputs or cache are not what they should be.
    """
    settings = built_with(model, settings)
    kept = pruner.kept()
    heads = tuple(sum(layer) for layer in kept)
    small = cut(model, settings, kept)
    deviation = compare(model, small, settings, heads, tokens[:1])
    times = measure(model, small, settings, tokens, targets, device)
    m = settings.model
    return Removal(
        small,
        heads,
        {
            "heads": m.n_layer * m.n_head,
            "heads_left": sum(heads),
            "heads_by_layer": " ".join(map(str, heads)),
            "heads_spared": _spared(pruner),
            "parameters_exported": sum(p.numel() for p in small.parameters()),
            "kv_bytes_per_token": kv_bytes(settings, heads),
            "kv_bytes_per_token_before": kv_bytes(settings),
            "export_deviation": deviation,
            **times,
        },
    )


def log_line(removal: Removal) -> str:
    """Line for the log."""
    r = removal.result
    return (
        f"{r['heads_left']} of {r['heads']} heads left (by layer: "
        f"{r['heads_by_layer']}), logits differ by {r['export_deviation']:.1e}; "
        f"cache {r['kv_bytes_per_token_before']:,.0f} -> "
        f"{r['kv_bytes_per_token']:,.0f} bytes per token; measured: decoding "
        f"{1e3 * r['decode_seconds_before']:.2f} -> {1e3 * r['decode_seconds']:.2f} ms "
        f"per token, forward {1e3 * r['forward_seconds_before']:.2f} -> "
        f"{1e3 * r['forward_seconds']:.2f} ms"
    )


def _spared(pruner: HeadPruner) -> int:
    """Heads that the schedule asked for and that stay as the last of their layer."""
    assert pruner.schedule is not None
    found = 0
    for names in pruner.groups():
        heads = [pruner.layers[name].heads for name in names]
        wanted, possible = head_target(pruner.schedule.final, heads)
        found += wanted - possible
    return found


# ---- the same outputs -------------------------------------------------------------


@torch.no_grad()
def compare(
    model: GPT, small: GPT, settings: Settings, heads: Sequence[int], tokens: Tensor
) -> float:
    """Largest difference of logits in fp32 on the CPU, relative to the largest.

    The smaller model scores the whole context, and decodes it with its cache; the
    numbers in the caches of both have to be those of the budget. Raises
    RemovalDiffers.
    """
    masked = _on_cpu(model, GPT(settings))
    cut = _on_cpu(small, GPT(settings, heads))
    expected = masked.logits(tokens)
    size = expected.abs().max().clamp_min(1.0)
    found = cut.logits(tokens), _decoded(cut, tokens, settings, heads)
    apart = torch.stack([(logits - expected).abs().max() / size for logits in found])
    worst = apart.nan_to_num(torch.inf).max().item()
    if not worst <= TOLERANCE:
        raise RemovalDiffers(
            f"without its pruned heads the model's logits differ by {worst:.1e}, "
            f"relative to the largest; allowed: {TOLERANCE:g}"
        )
    _decoded(masked, tokens, settings, None)
    return worst


def _on_cpu(model: GPT, copy: GPT) -> GPT:
    copy.load_state_dict({k: v.cpu() for k, v in model.state_dict().items()})
    return copy.eval()


def _decoded(
    model: GPT, tokens: Tensor, settings: Settings, heads: Sequence[int] | None
) -> Tensor:
    """Logits of all tokens by way of the cache, the last one alone."""
    cache = model.new_cache(tokens.shape[1])
    parts = [model.decode(part, cache) for part in (tokens[:, :-1], tokens[:, -1:])]
    costs = budget(settings, heads)
    expected = tokens.shape[1] * costs.cache_per_token + costs.cache_constant
    if cache.numbers != len(tokens) * expected:
        raise RemovalDiffers(
            f"the decode cache holds {cache.numbers:,} numbers, not the budget's "
            f"{len(tokens) * expected:,}"
        )
    return torch.cat(parts, 1)


# ---- the time ---------------------------------------------------------------------


def measure(
    model: GPT,
    small: GPT,
    settings: Settings,
    tokens: Tensor,
    targets: Tensor,
    device: devices.DeviceInfo,
) -> dict[str, float]:
    """Seconds of a forward pass over the windows and of one decoded token, before and
    after; in the precision of the run, not compiled. The shortest of several, since
    whatever else a machine does only adds to them."""
    length = min(LONGEST, tokens.shape[1])
    x, y = (part[:, :length].to(device.torch_device) for part in (tokens, targets))
    decoded = min(DECODED, length // 2)

    def forward(one: GPT) -> float:
        return _seconds(lambda: one.score(x, y), device)

    def decode(one: GPT) -> float:
        cache = one.new_cache(length)
        one.decode(x[:1, : length - decoded], cache)
        ends = range(length - decoded, length)
        every = [x[:1, at : at + 1] for at in ends]
        return _seconds(lambda: [one.decode(t, cache) for t in every], device) / decoded

    taken: dict[str, list[float]] = {}
    was_training = model.training
    with torch.no_grad(), devices.autocast(device, settings.optim.mixed_precision):
        for number in range(1 + REPEATS):
            for suffix, one in (("_before", model), ("", small)):
                one.eval()
                for name, timed in (("forward", forward), ("decode", decode)):
                    seconds = timed(one)
                    if number:
                        taken.setdefault(f"{name}_seconds{suffix}", []).append(seconds)
    model.train(was_training)
    return {name: min(seconds) for name, seconds in taken.items()}


def _seconds(work: Callable[[], object], device: devices.DeviceInfo) -> float:
    devices.synchronize(device)
    start = time.perf_counter()
    work()
    devices.synchronize(device)
    return time.perf_counter() - start
