"""Time generation, ours and that of transformers: speed, latency and memory."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt2.infer.decoder import Decoder
from gpt2.infer.sampling import Sampling, generate, next_tokens
from gpt2.model.gpt import GPT
from gpt2.model.gpt2_weights import native_config, to_gpt2
from gpt2.model.init import init_parameters
from gpt2.plan.budget import budget
from gpt2.settings.schema import Settings
from gpt2.train.checkpoint import weights_of
from lib.gpu.device import DTYPES, DeviceInfo

Row = dict[str, Any]
GREEDY = Sampling(temperature=0.0)
AT_CONTEXT = 32  # tokens decoded at the end of a context that is nearly full
# Peers by name, and the cache that transformers' generate() is asked for.
PEERS = {"transformers": None, "transformers-static": "static"}


@dataclass(frozen=True, slots=True)
class Load:
    """Work that is timed: prompts of ``prompt`` tokens, continued by ``new`` each."""

    batches: Sequence[int]
    prompt: int
    new: int
    repeats: int


@dataclass(frozen=True, slots=True)
class TimedModel:
    """A model to be timed, in the precision in which it decodes."""

    label: str
    settings: Settings
    model: GPT
    heads: tuple[int, ...] | None = None
    run_dir: Path | None = None
    run_hash: str = ""

    @property
    def device(self) -> torch.device:
        return self.model.wte.weight.device


class TokenTimes:
    """Moments on a device; on a GPU without waiting for it in between."""

    def __init__(self, device: torch.device) -> None:
        self.is_gpu = device.type == "cuda"
        self.moments: list[Any] = []
        if self.is_gpu:
            torch.cuda.synchronize(device)

    def stamp(self) -> None:
        if self.is_gpu:
            event = torch.cuda.Event(enable_timing=True)
            event.record()
            self.moments.append(event)
        else:
            self.moments.append(time.perf_counter())

    def seconds(self) -> list[float]:
        """Seconds from each moment to the next."""
        pairs = zip(self.moments, self.moments[1:], strict=False)
        if not self.is_gpu:
            return [b - a for a, b in pairs]
        torch.cuda.synchronize()
        return [a.elapsed_time(b) / 1e3 for a, b in pairs]


def precision(settings: Settings, device: DeviceInfo) -> torch.dtype:
    """Type of weights and cache: on a GPU that of the run's products, else fp32."""
    return DTYPES[settings.optim.mixed_precision if device.is_gpu else "fp32"]


def untrained(
    label: str, settings: Settings, device: torch.device, dtype: torch.dtype
) -> TimedModel:
    """A model with the weights with which training begins."""
    model = GPT(settings)
    init_parameters(model, 1)
    model.to(device, dtype).eval().requires_grad_(False)
    return TimedModel(label, settings, model)


def speed(times: Sequence[Sequence[float]], batch: int, prompt: int) -> Row:
    """Numbers of the fastest of several generations, each the seconds of its tokens,
    the first with the prompt's."""
    first = min(seconds[0] for seconds in times)
    best = min((seconds[1:] for seconds in times), key=sum)
    middle, slow = np.quantile(best, (0.5, 0.95))
    return {
        "prefill_tokens_per_second": batch * prompt / first,
        "decode_tokens_per_second": batch * len(best) / sum(best),
        "p50_ms": 1e3 * float(middle),
        "p95_ms": 1e3 * float(slow),
    }


def rows_of(
    subject: TimedModel, load: Load, contexts: Sequence[int] = ()
) -> Iterator[Row]:
    """A row per batch, then one per batch and context. Raises ValueError before all
    rows if the model has no such context."""
    for context in contexts:
        check_context(subject, context, f"CONTEXTS={context}")
    for batch in load.batches:
        with failure_in(start_of(subject, batch, load.prompt + load.new)) as row:
            row |= generation_row(subject, load, batch)
        yield row
    for context in contexts:
        for batch in load.batches:
            with failure_in(start_of(subject, batch, context)) as row:
                row |= context_row(subject, load, batch, context)
            yield row


@contextmanager
def failure_in(row: Row) -> Iterator[Row]:
    """The row, with what failed in it, as for want of memory: it must not end the
    table."""
    try:
        yield row
    except RuntimeError as error:
        row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]


@torch.no_grad()
def generation_row(subject: TimedModel, load: Load, batch: int) -> Row:
    """Greedy continuations of random prompts. Raises ValueError if the model has no
    context for them."""
    words = f"PROMPT_TOKENS={load.prompt} and NEW_TOKENS={load.new}"
    check_context(subject, load.prompt + load.new, words)
    begin_memory(subject.device)
    decoder = Decoder(subject.model, load.prompt + load.new)
    prompts = random_tokens(subject, batch, load.prompt)
    times = []
    for number in range(1 + load.repeats):  # in the first, graphs are recorded
        clock = TokenTimes(subject.device)
        clock.stamp()
        for _ in islice(next_tokens(decoder, prompts, GREEDY), load.new):
            clock.stamp()
        if number:
            times.append(clock.seconds())
    row = speed(times, batch, load.prompt)
    return row | memory_row(subject, decoder, batch)


@torch.no_grad()
def context_row(subject: TimedModel, load: Load, batch: int, context: int) -> Row:
    """The last tokens of a long context, with any numbers in the cache before them."""
    begin_memory(subject.device)
    decoder = Decoder(subject.model, context)
    token = random_tokens(subject, batch, 1)
    decoder.begin(token)
    times = []
    for number in range(1 + load.repeats):
        decoder.cache.reset()
        decoder.cache.advance(max(1, context - AT_CONTEXT))
        if not number:
            decoder.cache.fill()
        clock = TokenTimes(subject.device)
        clock.stamp()
        while decoder.cache.position < context:
            token = decoder.step(token).argmax(-1, keepdim=True)
            clock.stamp()
        if number:
            times.append(clock.seconds())
    row = speed(times, batch, 0)
    del row["prefill_tokens_per_second"]
    return row | memory_row(subject, decoder, batch)


def start_of(subject: TimedModel, batch: int, context: int) -> Row:
    """First fields of a row."""
    where = None if subject.run_dir is None else str(subject.run_dir)
    found = {"what": subject.label, "run_dir": where, "hash": subject.run_hash or None}
    return {**found, "batch": batch, "context": context}


def check_context(subject: TimedModel, length: int, words: str) -> None:
    """Raise ValueError, naming the options, for more tokens than the context has."""
    most = subject.model.block_size
    if length > most:
        raise ValueError(
            f"{words}: {length} tokens do not fit the context of {most} of "
            f"{subject.label}; give fewer"
        )


def memory_row(subject: TimedModel, decoder: Decoder, batch: int) -> Row:
    """Size of the cache, measured and as the specs state it, and memory in use."""
    cache, length = decoder.cache, decoder.cache.length
    costs = budget(subject.settings, subject.heads)
    numbers = costs.cache_per_token + costs.cache_constant / length
    return {
        "cache_bytes_per_token": cache.bytes / (batch * length),
        "cache_bytes_stated": numbers * subject.model.wte.weight.element_size(),
        "cache_bytes": cache.bytes,
        **peak_memory(subject.device),
        "graphs": len(decoder.graphs),
        "not_recorded": decoder.why_not,
    }


def begin_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> Row:
    """Most bytes that tensors took on a GPU, weights included."""
    if device.type != "cuda":
        return {}
    return {"peak_bytes": torch.cuda.max_memory_allocated(device)}


def random_tokens(subject: TimedModel, batch: int, length: int) -> Tensor:
    generator = torch.Generator().manual_seed(length)
    words = subject.settings.vocab_size
    tokens = torch.randint(words, (batch, length), generator=generator)
    return tokens.to(subject.device)


# ---- transformers -----------------------------------------------------------------


def peer_model(subject: TimedModel) -> Any:
    """transformers' GPT-2 with the weights of step 0."""
    from transformers import GPT2Config, GPT2LMHeadModel

    settings = subject.settings
    config = native_config(settings) | {"bos_token_id": None, "eos_token_id": None}
    model: Any = GPT2LMHeadModel(GPT2Config(**config))
    weights = to_gpt2(weights_of(subject.model), settings.model.n_layer)
    model.load_state_dict(weights, strict=False)
    model.tie_weights()
    model.set_attn_implementation("sdpa")
    return model.to(subject.device, subject.model.wte.weight.dtype).eval()


@torch.no_grad()
def peer_row(subject: TimedModel, model: Any, peer: str, load: Load, batch: int) -> Row:
    """transformers' generate(), greedy, from the same prompts; with the share of its
    tokens that are also ours. It may be below 1 in 16 bits, where likeliest tokens
    tie."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    prompts = random_tokens(subject, batch, load.prompt)
    ours = generate(subject.model, prompts, load.new, GREEDY)
    going_on = torch.zeros(batch, dtype=torch.bool, device=subject.device)
    clock = TokenTimes(subject.device)

    class EachToken(StoppingCriteria):
        def __call__(self, input_ids: Tensor, scores: Any, **rest: Any) -> Tensor:
            clock.stamp()
            return going_on

    begin_memory(subject.device)
    times, found = [], prompts
    for number in range(2 + load.repeats):  # a static cache is compiled in the first
        clock = TokenTimes(subject.device)
        clock.stamp()
        found = model.generate(
            prompts,
            attention_mask=torch.ones_like(prompts),
            max_new_tokens=load.new,
            min_new_tokens=load.new,
            do_sample=False,
            eos_token_id=None,
            pad_token_id=0,
            cache_implementation=PEERS[peer],
            stopping_criteria=StoppingCriteriaList([EachToken()]),
        )
        if number > 1:
            times.append(clock.seconds())
    row = speed(times, batch, load.prompt)
    same = (found == ours)[:, load.prompt :].float().mean().item()
    return row | {"same_tokens": same, **peak_memory(subject.device)}
