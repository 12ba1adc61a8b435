"""Updates to be timed: ours, nanoGPT's, plain GPT-2's, transformers'."""

from __future__ import annotations

import importlib.util
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

from gpt2.model.by_block import CompiledGPT
from gpt2.model.gpt import GPT
from gpt2.model.gpt2_weights import native_config
from gpt2.model.init import init_parameters
from gpt2.settings.schema import Settings
from gpt2.train.build_optimizer import make_optimizer
from gpt2.train.micro_step import MicroStep, Recorded, record
from lib.gpu.compile_cache import compiled
from lib.gpu.device import select_device


def seconds_of(update: Callable[[], object], repeats: int) -> float:
    """Mean time of an update, on whatever device; waits for a GPU."""

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


def our_update(settings: Settings, device: torch.device, batch: int) -> Update:
    """Forward, backward, clip and optimizer step as the trainer does them."""
    model = our_model(settings, device)
    compiles = settings.resources.compile_model
    forward = CompiledGPT(model) if compiles else model
    return Update(forward, model, settings, device, batch)


def our_model(settings: Settings, device: torch.device) -> Any:
    model = GPT(settings)
    init_parameters(model, 1)
    return model.to(device).train()


def plain_update(
    settings: Settings, device: torch.device, batch: int, mode: str | None = None
) -> Update:
    """GPT-2 as nanoGPT computes it: all logits at once, in fp32 for the loss, a
    residual stream in fp32, the padded vocabulary, no recording of our own."""
    settings = settings.replace(residual_fp32=True, cuda_graphs=False)
    model = our_model(settings, device)

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        weight = model.wte.weight
        wide = F.pad(weight, (0, 0, 0, -weight.shape[0] % 64))
        logits = F.linear(model.hidden(model.embed(tokens)), wide)
        return F.cross_entropy(logits.float().flatten(0, 1), targets.flatten())

    return Update(in_one(loss, settings, mode), model, settings, device, batch)


def nanogpt_update(
    settings: Settings, device: torch.device, batch: int, mode: str | None, path: str
) -> Update:
    """nanoGPT's own model (github.com/karpathy/nanoGPT, model.py) with its padded
    vocabulary, in our optimizer; the file is executed. Raises ValueError if it does
    not define that model."""
    file = Path(path) / "model.py" if Path(path).is_dir() else Path(path)
    spec = importlib.util.spec_from_file_location("nanogpt_model", file)
    if spec is None or spec.loader is None or not file.is_file():
        raise ValueError(f"NANOGPT={path}: there is no model.py of nanoGPT")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclass looks itself up
    spec.loader.exec_module(module)
    m, words = settings.model, settings.vocab_size
    try:
        config = module.GPTConfig(
            block_size=m.block_size,
            vocab_size=words + -words % 64,
            n_layer=m.n_layer,
            n_head=m.n_head,
            n_embd=m.n_embd,
            dropout=0.0,
            bias=m.bias,
        )
        model = module.GPT(config).to(device).train()
    except AttributeError as error:
        raise ValueError(f"NANOGPT={path} is not nanoGPT's model: {error}") from error
    settings = settings.replace(cuda_graphs=False)

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> Any:
        return model(tokens, targets)[1]

    return Update(in_one(loss, settings, mode), model, settings, device, batch)


def peer_update(settings: Settings, device: torch.device, batch: int) -> Update:
    """An update of transformers' GPT-2 of the same shape."""
    from transformers import GPT2Config, GPT2LMHeadModel

    config = native_config(settings.replace(dropout=0.0)) | {"use_cache": False}
    config |= {"bos_token_id": None, "eos_token_id": None}
    model: Any = GPT2LMHeadModel(GPT2Config(**config))
    model.set_attn_implementation("sdpa")
    model.to(device).train()
    settings = settings.replace(cuda_graphs=False)

    def loss(tokens: torch.Tensor, targets: torch.Tensor) -> Any:
        return model(input_ids=tokens, labels=tokens).loss

    return Update(in_one(loss, settings), model, settings, device, batch)


def in_one(
    loss: Callable[..., Any], settings: Settings, mode: str | None = None
) -> Callable[..., Any]:
    """The function as one graph in a mode of torch.compile, if the settings compile."""
    return compiled(loss, mode) if settings.resources.compile_model else loss


class Update:
    """One update with the settings' optimizer and precision."""

    def __init__(
        self,
        forward: Callable[[Any, Any], Any],
        model: Any,
        settings: Settings,
        device: torch.device,
        batch: int,
    ) -> None:
        """Run once, which compiles, so that what is left to do is short."""
        shape = (batch, settings.model.block_size)
        tokens = torch.randint(settings.vocab_size, shape, device=device)
        self.pair, self.parameters = (tokens, tokens.roll(-1, 1)), [*model.parameters()]
        self.optimizer: Any = make_optimizer(model, settings.optim)
        self.step: MicroStep | Recorded = MicroStep(
            forward,
            select_device("cpu" if device.type == "cpu" else "auto"),
            settings.optim.mixed_precision,
        )
        self.records = device.type == "cuda" and settings.resources.cuda_graphs
        self()

    def record(self) -> None:
        """Record the step as a graph, if the settings ask for it."""
        if self.records and isinstance(self.step, MicroStep):
            self.step, why = record(
                self.step, self.parameters, *self.pair, repeats=False
            )
            print(f"not recorded as a graph: {why}" if why else "", end="")

    def __call__(self) -> None:
        self.step(*self.pair)
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
