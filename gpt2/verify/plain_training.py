"""A training in plain formulas: batches, rate, clip, optimizer, pruning, in float64.

The reference that gpt2/verify/trainer_updates.py compares each update of the trainer
with. It shares the model's forward pass with the trainer and nothing else: windows,
schedules and scores are written out here, optimizers and masks come from the numpy
references of lib/.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from gpt2.model.gpt import GPT
from gpt2.settings.schema import Settings
from lib.optim.registry import OPTIMIZERS
from lib.pruning import reference as pruning
from lib.pruning.registry import METHODS
from lib.pruning.spec import MethodSpec

Array = np.ndarray
EMBEDDINGS = ("wte.weight", "wpe.weight")  # which Muon leaves to AdamW
STREAM = 0x6261746368  # of the draws of batches
ROUNDING = 1e-6  # of a gradient, relative to the largest of the model
CLOSE_BFLOAT16 = 1e-2  # of scores, where updates are


@dataclass(slots=True)
class PlainTraining:
    """One run of `settings` on `tokens`, followed update by update.

    model: a float64 copy of the trained one, for logits and gradients alone.
    heads: for head pruning, the entries of each parameter that (layer, head) owns.
    """

    settings: Settings
    model: GPT
    tokens: Array
    seed: int
    heads: Mapping[tuple[int, int], Mapping[str, Array]] = field(default_factory=dict)
    loss: float = 0.0
    rate: float = 0.0
    states: dict[str, dict[str, Any]] = field(default_factory=dict)
    keep: dict[str, Array] = field(default_factory=dict)
    rounded: dict[str, Array] = field(default_factory=dict)  # see _decided_by_rounding
    sums: dict[str, Array] = field(default_factory=dict)
    aside: dict[str, Array] = field(default_factory=dict)  # masked, may come back

    @property
    def method(self) -> MethodSpec:
        return METHODS[self.settings.pruning.prune_method]

    # ---- one update -----------------------------------------------------------------

    def update(self, n: int, weights: Mapping[str, Array]) -> dict[str, Array]:
        """The weights after update n = 1, 2, ..., from those before it; masks are
        applied, new ones are not chosen yet."""
        gradients = self._gradients(n, weights)
        self._accumulate(gradients, weights)
        for name, keep in self.keep.items():
            gradients[name] = gradients[name] * keep
        norm = math.sqrt(sum(float((g * g).sum()) for g in gradients.values()))
        limit = self.settings.optim.grad_clip or math.inf
        clip = min(1.0, limit / (norm + 1e-6))
        self.rate = self._rate(n)
        if OPTIMIZERS[self.settings.optim.optimizer].jumps:
            self.rounded = self._decided_by_rounding(n, weights, gradients, clip)
        return {
            name: self._rule(name, w, gradients[name] * clip, n)
            for name, w in weights.items()
        }

    def _rule(self, name: str, w: Array, g: Array, n: int) -> Array:
        optim = self.settings.optim
        values = {f: getattr(optim, f) for f in ("beta1", "beta2", "eps", "momentum")}
        values |= optim.own_of(optim.optimizer)
        values |= {
            "lr": self.rate,
            "decay": optim.weight_decay if w.ndim >= 2 else 0.0,
            "embedding": name in EMBEDDINGS,
        }
        state = self.states.setdefault(name, {})
        return OPTIMIZERS[optim.optimizer].formula(w, g, state, n, values)

    def _decided_by_rounding(
        self,
        n: int,
        weights: Mapping[str, Array],
        gradients: Mapping[str, Array],
        clip: float,
    ) -> dict[str, Array]:
        """Entries whose update depends on the rounding of their gradient.

        Some gradients are 0 but for rounding, such as those of the keys' biases, and
        the sign of rounding is not the same in two orders of summation.
        """
        error = ROUNDING * clip * max(abs(g).max() for g in gradients.values())
        states, found = copy.deepcopy(self.states), {}
        for name, w in weights.items():
            ends = []
            for e in (-error, error):
                self.states = copy.deepcopy(states)
                ends.append(self._rule(name, w, gradients[name] * clip + e, n))
            jumps = abs(ends[1] - ends[0]) > self.rate * ROUNDING
            found[name] = jumps & self.keep.get(name, np.ones_like(jumps))
        self.states = states
        return found

    def _rate(self, n: int) -> float:
        """Linear warm-up, then a cosine, or constant and a decay, to min_lr at the last
        update."""
        optim = self.settings.optim
        if n <= optim.warmup_steps:
            return optim.learning_rate * n / optim.warmup_steps
        start, end = optim.warmup_steps, optim.max_iters
        if optim.lr_schedule == "wsd":
            start = max(start, end - max(1, round(end * optim.lr_decay_share)))
        share = max(0.0, (n - start) / (end - start))
        height = {
            "cosine": (1 + math.cos(math.pi * share)) / 2,
            "wsd sqrt": 1 - math.sqrt(share),
            "wsd linear": 1 - share,
        }
        kind = optim.lr_schedule
        if kind == "wsd":
            kind += f" {optim.lr_decay_shape}"
        return optim.min_lr + (optim.learning_rate - optim.min_lr) * height[kind]

    def windows(self, n: int) -> Array:
        """Tokens [effective batch, T + 1] of update n."""
        block = self.settings.model.block_size
        draw = np.random.default_rng([self.seed, STREAM, n - 1])
        size = self.settings.effective_batch
        starts = draw.integers(0, len(self.tokens) - block, size=size)
        return np.stack([self.tokens[s : s + block + 1] for s in starts])

    def _gradients(self, n: int, weights: Mapping[str, Array]) -> dict[str, Array]:
        self.load(weights)
        self.model.train()
        self.model.zero_grad(set_to_none=True)
        loss = self._mean_loss(self.windows(n))
        torch.autograd.backward(loss)
        self.loss = loss.item()
        named = self.model.named_parameters()
        return {k: p.grad.numpy().copy() for k, p in named if p.grad is not None}

    @torch.no_grad()
    def load(self, weights: Mapping[str, Array]) -> None:
        """Put these weights into the model."""
        for name, parameter in self.model.named_parameters():
            parameter.copy_(torch.as_tensor(weights[name]))

    def _mean_loss(self, windows: Array) -> Tensor:
        pair = torch.as_tensor(windows.astype(np.int64))
        logits = self.model.logits(pair[:, :-1])
        return cross_entropy(logits.flatten(0, 1), pair[:, 1:].flatten())

    @torch.no_grad()
    def validation_loss(self, tokens: Array, weights: Mapping[str, Array]) -> float:
        """Loss of eval_samples windows, evenly spread from the first to the last."""
        self.load(weights)
        self.model.eval()
        block, count = self.settings.model.block_size, self.settings.data.eval_samples
        last = len(tokens) - block - 1
        starts = [i * last // max(count - 1, 1) for i in range(count)]
        return self._mean_loss(
            np.stack([tokens[s : s + block + 1] for s in starts])
        ).item()

    # ---- pruning --------------------------------------------------------------------

    def prunable(self, weights: Mapping[str, Array]) -> list[str]:
        """The matrices of the blocks: no embedding, no vector."""
        return [k for k, w in weights.items() if k.startswith("blocks.") and w.ndim > 1]

    def share(self, n: int) -> float | None:
        """Sparsity that update n brings; None: it changes no mask."""
        p = self.settings.pruning
        start, every = p.prune_warmup, p.prune_interval
        last = int(Fraction(str(p.prune_ramp_end)) * self.settings.optim.max_iters)
        count = (last - start) // every
        due = start <= n <= start + count * every and (n - start) % every == 0
        if self.method.name == "none" or not due:
            return None
        return pruning.sparsity(n, start, every, count, p.prune_sparsity)

    def wrong_masks(
        self, n: int, stepped: Mapping[str, Array], kept: Mapping[str, Array]
    ) -> int:
        """How many entries of the masks `kept` after update n are not as the scores
        of `stepped`, the weights after the optimizer, have them. They become this
        training's own masks, so that one wrong choice counts once.
        """
        share = self.share(n)
        if self.method.is_structured:
            return self._wrong_heads(n, share, kept)
        if share is None:
            return sum(int((kept[k] != m).sum()) for k, m in self.keep.items())
        is_bfloat16 = OPTIMIZERS[self.settings.optim.optimizer].is_bfloat16
        close = CLOSE_BFLOAT16 if is_bfloat16 else pruning.CLOSE
        scores = {name: self._score(name, stepped[name], n) for name in kept}
        return sum(
            pruning.wrong_choices(
                [scores[k] for k in names], [kept[k] for k in names], pruned, close
            )
            for names, pruned in self._groups(share, stepped)
        )

    def adopt(
        self, stepped: Mapping[str, Array], kept: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The weights once `kept` are the masks; state and what is aside follow."""
        after = dict(stepped)
        for name, keep in kept.items():
            before = self.keep.get(name, np.ones_like(keep))
            if self.method.regrows:
                aside = self.aside.get(name, np.zeros_like(after[name]))
                dense = np.where(before, after[name], aside)
                self.aside[name] = np.where(keep, 0.0, dense)
                after[name] = dense * keep
            else:
                after[name] = after[name] * keep
                for key, value in self.states[name].items():
                    if isinstance(value, np.ndarray):
                        self.states[name][key] = value * keep
            self.keep[name] = keep
        return after

    def _accumulate(
        self, gradients: Mapping[str, Array], weights: Mapping[str, Array]
    ) -> None:
        if self.method.sum_reference is None:
            return
        for name in self.prunable(weights):
            dense = weights[name] + self.aside.get(name, 0.0)
            sums = self.sums.get(name, np.zeros_like(dense))
            self.sums[name] = self.method.sum_reference(sums, gradients[name], dense)

    def _score(self, name: str, w: Array, n: int) -> Array:
        values: dict[str, Any] = {
            "variant": self.settings.score_variant,
            "sums": self.sums.get(name),
        }
        if self.method.reads_moments:
            values |= {**self.states[name], "n": n, "beta1": self.settings.optim.beta1}
        assert self.method.reference is not None
        score = self.method.reference(w, values)
        if self.method.regrows:
            return score
        gone = ~self.keep.get(name, np.ones_like(w, dtype=bool))
        return np.where(gone, -math.inf, score)

    def _groups(
        self, share: float, weights: Mapping[str, Array]
    ) -> list[tuple[list[str], int]]:
        """(matrices under one threshold, how many of their entries are to go)."""
        names = self.prunable(weights)
        sizes = {name: weights[name].size for name in names}
        p = self.settings.pruning
        if self.settings.score_variant in self.method.by_depth:
            last = max(1, self.settings.model.n_layer - 1)
            depth = {name: int(name.split(".")[1]) / last for name in names}
            shares = {k: min(0.95, share * (0.7 + 0.6 * d)) for k, d in depth.items()}
            return [([name], round(shares[name] * sizes[name])) for name in names]
        if p.prune_scope == "layer":
            return [([name], round(share * sizes[name])) for name in names]
        return [(names, round(share * sum(sizes.values())))]

    # ---- pruned heads ---------------------------------------------------------------

    def _wrong_heads(
        self, n: int, share: float | None, kept: Mapping[str, Array]
    ) -> int:
        """How many heads are not kept or dropped as their scores have it."""
        dropped, before = self._dropped(kept), self._dropped(self.keep)
        wanted = {place: not before[place] for place in self.heads}
        if share is not None:
            layers = range(self.settings.model.n_layer)
            scores = [self._head_scores(layer, n) for layer in layers]
            for i, h in self.heads:
                scores[i][h] = -1.0 if before[i, h] else scores[i][h]
            keep = pruning.keep_heads(scores, round(share * len(self.heads)))
            wanted = {(i, h): keep[i][h] for i, h in self.heads}
        return sum(wanted[place] == dropped[place] for place in self.heads)

    def _dropped(self, masks: Mapping[str, Array]) -> dict[tuple[int, int], bool]:
        """Whether masks by parameter leave nothing of each head; without any, none is
        dropped."""
        return {
            place: bool(masks) and not any(masks[k][own].any() for k, own in p.items())
            for place, p in self.heads.items()
        }

    def _head_scores(self, layer: int, n: int) -> list[float]:
        optim = self.settings.optim
        names = (f"blocks.{layer}.attn.{k}.weight" for k in ("projection.qkv", "proj"))
        qkv, proj = ((self.states[k]["m"], self.states[k]["v"]) for k in names)
        beta = (optim.beta1, optim.beta2)
        return pruning.head_scores(qkv, proj, self.settings.model.n_head, n, beta)
