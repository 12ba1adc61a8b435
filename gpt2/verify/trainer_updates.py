"""Certificate of the trainer: each of its updates is that of the plain formulas.

A tiny model is trained by the code that trains every run, from batches to export,
and each update is compared with gpt2/verify/plain_training.py, as are the masks, the
recorded losses and the exported weights. What an optimizer or a pruner does by itself
is certified in lib/; this is about what the trainer makes of them.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2.model.gpt import GPT
from gpt2.model.init import init_parameters
from gpt2.plan.jobs import Job
from gpt2.plan.steps import PLAIN
from gpt2.settings.schema import Settings
from gpt2.train.batch_split import split_batch
from gpt2.train.export import load_export
from gpt2.train.finish import finish
from gpt2.train.record import Follower
from gpt2.train.run_context import RunContext
from gpt2.train.stopping import StopRequest
from gpt2.train.trainer import Trainer
from gpt2.verify import certify_heads
from gpt2.verify.plain_training import EMBEDDINGS, Array, PlainTraining
from gpt2.verify.random_tokens import stand_in
from lib.gpu.device import select_device
from lib.jobs.run_files import EXPORT_FILE
from lib.optim.certify import Row
from lib.optim.registry import OPTIMIZERS
from lib.pruning.heads import HeadPruner
from lib.pruning.registry import METHODS

SEED = 7
# Of an update, relative to its length: losses and so their gradients are float32.
TOLERANCE = 3e-4
BFLOAT16 = 0.25  # of what is computed so (see lib/optim/certify.py)
ROUNDED = 0.02  # of the weights, at most, may depend on rounding and are left out
RECORDS = 1e-5  # of losses in nats
EXPORT = 1e-4  # of the exported model's logits


@cache
def _tiny(of_heads: bool) -> Settings:
    """A tiny GPT-2 with everything acting that changes an update.

    of_heads: with every mechanism that a head may own a part of.
    """
    settings = certify_heads.tiny("adamw")
    if not of_heads:
        settings = settings.replace(**PLAIN)
    return settings.replace(
        dropout=0.0,
        warmup_steps=3,
        learning_rate=3e-3,
        min_lr=1e-3,
        weight_decay=0.1,
        grad_clip=0.5,
        batch_size=2,
        gradient_accumulation=2,
        num_workers=0,
        eval_samples=4,
        log_interval=3,
        checkpoint_interval=1000,
        as_trained=False,  # whose formulas have a certificate of their own
        prune_sparsity=0.5,
        prune_warmup=2,
        prune_interval=2,
        prune_ramp_end=0.75,
    )


def certify_updates(
    optimizer: str, method: str, variant: str, schedule: str = ""
) -> dict[str, Row]:
    """The certificates of a run with this optimizer and pruning, by short names.

    schedule: the shape of the decay of wsd; empty: cosine.
    """
    spec = OPTIMIZERS[optimizer]
    settings = _tiny(METHODS[method].is_structured).replace(
        optimizer=optimizer,
        prune_method=method,
        adamwprune_variant=variant or "bitter0",
        **({"lr_schedule": "wsd", "lr_decay_shape": schedule} if schedule else {}),
        lr_decay_share=0.5,
        max_iters=spec.training_updates,
        eval_interval=spec.training_updates,
        **{own.name: own.short for own in spec.own},
    )
    with tempfile.TemporaryDirectory() as folder, _one_thread():
        run = Watched(settings, Path(folder))
        run.trainer.train()
        finish(run.trainer, let_go=lambda: None)
        return {"updates": run.row(), "export": run.export_row()}


@contextmanager
def _one_thread() -> Iterator[None]:
    """More of them cost a tiny model time, on a busy machine twenty times as much."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


class Watched(Follower):
    """A run of the trainer that is looked at after each of its updates."""

    def __init__(self, settings: Settings, folder: Path) -> None:
        super().__init__(folder, settings.optim.max_iters)
        self.settings, self.method = settings, settings.pruning.prune_method
        train, val = stand_in(folder, train=1000, val=90, vocab=settings.vocab_size)
        context = RunContext(
            device=select_device("cpu"),
            split=split_batch(settings.effective_batch, settings.resources.batch_size),
            train=train,
            val=val,
        )
        model = GPT(settings)
        init_parameters(model, SEED)
        self.trainer = Trainer(
            _job(settings), model.double(), context, self, StopRequest()
        )
        self.plain = PlainTraining(
            settings,
            GPT(settings).double(),
            np.array(train.tokens),
            SEED,
            _owned(model) if self.method == "heads" else {},
        )
        self.val, self.weights = np.array(val.tokens), self._weights()
        self.updates, self.worst, self.where = 0, 0.0, ""
        self.wrong: list[str] = []
        self._losses: list[float] = []
        self._records = Counter[str]()

    def _weights(self) -> dict[str, Array]:
        named = self.trainer.model.named_parameters()
        return {k: p.detach().double().numpy().copy() for k, p in named}

    # ---- what the trainer calls -----------------------------------------------------

    def advance(self) -> None:
        """Compare the update that was just made."""
        self.updates += 1
        before, found = self.weights, self._weights()
        stepped = self.plain.update(self.updates, before)
        self._losses.append(self.plain.loss)
        kept = self._kept(found)
        if wrong := self.plain.wrong_masks(self.updates, stepped, kept):
            what = "heads" if self.method == "heads" else "weights"
            self._report(f"{wrong} other {what} pruned than by score")
        self._compare_weights(found, self.plain.adopt(stepped, kept))
        rounded = sum(int(m.sum()) for m in self.plain.rounded.values())
        if rounded > ROUNDED * sum(w.size for w in found.values()):
            self._report(f"rounding decides {rounded} weights")
        self.weights = found

    def _report(self, problem: str) -> None:
        self.wrong.append(f"update {self.updates}: {problem}")

    def _compare_weights(
        self, found: Mapping[str, Array], wanted: Mapping[str, Array]
    ) -> None:
        """Errors over the distance moved; of the updates that are off, the first is
        reported."""
        was_right = self.worst <= 1.0
        for name, before in self.weights.items():
            compared = ~self.plain.rounded.get(name, np.zeros_like(before, dtype=bool))
            error = float(np.linalg.norm((found[name] - wanted[name])[compared]))
            moved = float(np.linalg.norm((wanted[name] - before)[compared]))
            least = 1e-9 * max(1.0, float(np.linalg.norm(before)))
            share = error / max(moved, least) / self._allowed(name, before)
            share = math.inf if math.isnan(share) else share
            if share > self.worst:
                self.worst, self.where = share, f"{name} at update {self.updates}"
        if was_right and self.worst > 1.0:
            self.wrong.append(f"{self.where} deviates by {self.worst:.2g} tolerances")

    def _allowed(self, name: str, weight: Array) -> float:
        is_hidden = weight.ndim == 2 and name not in EMBEDDINGS
        is_bfloat16 = OPTIMIZERS[self.settings.optim.optimizer].is_bfloat16
        return BFLOAT16 if is_bfloat16 and is_hidden else TOLERANCE

    def _kept(self, found: Mapping[str, Array]) -> dict[str, Array]:
        """The pruner's masks by parameter, from its update of the masks on."""
        pruner = self.trainer.updater.pruner
        if self.method == "none" or self.updates < self.settings.pruning.prune_warmup:
            return {}
        if not isinstance(pruner, HeadPruner):
            return {name: mask.numpy().copy() for name, mask in pruner.masks.items()}
        kept = {name: np.ones_like(w, dtype=bool) for name, w in found.items()}
        for place, parts in self.plain.heads.items():
            if not pruner.kept()[place[0]][place[1]]:
                for name, own in parts.items():
                    kept[name][own] = False
        return kept

    def train(self, record: Mapping[str, Any]) -> None:
        """Compare a record of the training loss with the updates since the last."""
        self._records["training"] += 1
        mean = sum(self._losses) / len(self._losses)
        self._losses.clear()
        self._compare_record("loss", record["loss"], mean)
        self._compare_record("learning rate", record["lr"], self.plain.rate)

    def evaluation(self, kind: str, record: Mapping[str, Any]) -> None:
        """Compare a record of the validation loss."""
        self._records["validation"] += 1
        wanted = self.plain.validation_loss(self.val, self.weights)
        self._compare_record("validation loss", record["val_loss"], wanted)

    def _compare_record(self, what: str, found: float, wanted: float) -> None:
        if not abs(found - wanted) <= RECORDS * max(1.0, abs(wanted)):
            self._report(f"the {what} is recorded as {found:.6g}, and is {wanted:.6g}")

    # ---- findings -------------------------------------------------------------------

    def row(self) -> Row:
        """The figure is the largest deviation of an update over the tolerated one."""
        if self.updates != self.max_steps:
            self.wrong.insert(0, f"{self.updates} updates instead of {self.max_steps}")
        interval = self.settings.resources.log_interval
        due = {"training": math.ceil(self.max_steps / interval), "validation": 2}
        if self._records != due:
            self.wrong.append(f"records of losses are {dict(self._records)}, not {due}")
        detail = "; ".join(self.wrong[:3]) or f"worst: {self.where}"
        return Row("updates = plain formulas", not self.wrong, self.worst, detail)

    def export_row(self) -> Row:
        """The exported model computes what the plain training's weights do, and has
        its zeros. The figure is the largest difference of logits."""
        label = "export = plain weights"
        found = load_export(self.run_dir / EXPORT_FILE)
        tokens = torch.as_tensor(self.plain.windows(1)[:, :-1].astype(np.int64))
        self.plain.load(self.weights)
        with torch.no_grad():
            logits = self.plain.model.eval().logits(tokens)
            error = (found.model.logits(tokens) - logits).abs().max().item()
        exported = {k: p.detach().numpy() for k, p in found.model.named_parameters()}
        if found.heads is None:
            masks = self.plain.keep.items()
            alive = sum(int((exported[k][~keep] != 0).sum()) for k, keep in masks)
            if alive or self.method == "heads":
                return Row(label, False, error, f"{alive} pruned weights are not 0")
        return Row(label, error <= EXPORT, error, "largest difference of logits")


def _job(settings: Settings) -> Job:
    name = "certificate"
    return Job(
        name=name, title="", seed=SEED, settings=settings, origins={}, run_dir=name
    )


def _owned(model: GPT) -> dict[tuple[int, int], dict[str, Array]]:
    """The entries of each parameter that the heads of ``certify_heads.tiny`` own."""
    names = {id(p): name for name, p in model.named_parameters()}
    return {
        (layer, head): {
            names[id(weight)]: mask.numpy()
            for weight, mask in certify_heads.owned(model, layer, head)
        }
        for layer in range(len(model.blocks))
        for head in range(model.layers()[layer].attn.heads)
    }
