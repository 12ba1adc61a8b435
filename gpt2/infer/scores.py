"""Scores of a trained model on items shared by all models of a comparison.

Loss is in nats per token, text in bits per byte, which models of any tokenizer share.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt2.infer.items import Choice
from gpt2.infer.trained import TrainedModel
from gpt2.report.evaluations import Measure
from lib.hashing import identity

MOST_LOGITS = 1 << 26  # at a time: 256 MiB in fp32


@dataclass(slots=True)
class Scores:
    """Measures by name; ``positions``: summed loss and number of tokens by the position
    in the context; ``notes``: what to know about them."""

    measures: dict[str, Measure] = field(default_factory=dict)
    positions: list[tuple[float, int]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, name: str, items: Iterable[float], of: object) -> None:
        """Add a number per item; of: the items as data, by which they are known."""
        self.measures[name] = Measure(tuple(items), identity(of))


def token_losses(trained: TrainedModel, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """For each row of 2 to T+1 tokens the loss of all but its first, in nats."""
    return [losses for losses, _ in token_scores(trained, rows)]


@torch.no_grad()
def token_scores(
    trained: TrainedModel, rows: Sequence[Sequence[int]]
) -> list[tuple[Tensor, Tensor]]:
    """For each row of 2 to T+1 tokens (loss in nats, whether it is the likeliest) of
    all but its first."""
    model, found = trained.model, [(torch.empty(0), torch.empty(0))] * len(rows)
    for length, places in _by_length(rows).items():
        most = max(1, MOST_LOGITS // (length * trained.encoding.n_vocab))
        for start in range(0, len(places), most):
            chosen = places[start : start + most]
            batch = torch.tensor([rows[n] for n in chosen], device=trained.device)
            logits = model.logits(batch[:, :-1]).float()
            goals = batch[:, 1:]
            losses = F.cross_entropy(
                logits.flatten(0, 1), goals.flatten(), reduction="none"
            )
            likeliest = (logits.argmax(-1) == goals).cpu()
            own = losses.view(len(chosen), -1).double().cpu()
            for place, pair in zip(
                chosen, zip(own, likeliest, strict=True), strict=True
            ):
                found[place] = pair
    return found


def _by_length(rows: Sequence[Sequence[int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for place, row in enumerate(rows):
        found.setdefault(len(row), []).append(place)
    return found


def windows(tokens: Sequence[int], context: int) -> Iterator[Sequence[int]]:
    """Pieces of at most context + 1 tokens, in which each but the first of all is
    scored once."""
    for start in range(0, len(tokens) - 1, context):
        yield tokens[start : start + context + 1]


def score_texts(
    trained: TrainedModel, corpora: Mapping[str, Sequence[str]], into: Scores
) -> None:
    """Bits per byte of each document, all of its tokens scored once, in whole contexts.

    A document begins after the token for the end of the one before, as in training.
    """
    end, context = trained.encoding.eot_token, trained.model.block_size
    into.positions = [(0.0, 0)] * context
    for name, texts in corpora.items():
        pieces, owners = [], []
        for number, text in enumerate(texts):
            tokens = [end, *trained.encoding.encode_ordinary(text)]
            for piece in windows(tokens, context):
                pieces.append(piece)
                owners.append(number)
        nats = [0.0] * len(texts)
        losses = token_losses(trained, pieces)
        for owner, loss in zip(owners, losses, strict=True):
            nats[owner] += float(loss.sum())
            for place, value in enumerate(loss.tolist()):
                total, count = into.positions[place]
                into.positions[place] = total + value, count + 1
        bits = (
            nat / math.log(2) / len(text.encode("utf-8", "replace"))
            for nat, text in zip(nats, texts, strict=True)
        )
        into.add(f"bits per byte, {name}", bits, texts)


def score_induction(trained: TrainedModel, count: int, into: Scores) -> None:
    """Loss on random tokens, and on the same tokens when they come again.

    A model that copies what followed the last time (induction heads, Olsson et al.
    2022) loses little on the second half. Tokens are drawn evenly from the vocabulary.
    """
    half = trained.model.block_size // 2
    if half < 2:
        into.notes.append("induction: the context is too short")
        return
    generator = torch.Generator().manual_seed(0)
    end = trained.encoding.eot_token  # the highest token of both vocabularies
    first = torch.randint(end, (count, half), generator=generator)
    start = torch.full((count, 1), end)
    rows = torch.cat([start, first, first], 1)[:, : trained.model.block_size + 1]
    losses = token_losses(trained, rows.tolist())
    of = [count, half, end]
    into.add("random tokens, loss", (float(x[:half].mean()) for x in losses), of)
    # The first token of the repeat cannot be foreseen.
    again = (float(x[half + 1 :].mean()) for x in losses)
    into.add("repeated tokens, loss", again, of)


def score_choices(
    trained: TrainedModel, choices: Mapping[str, Sequence[Choice]], into: Scores
) -> None:
    """Whether the right continuation is the likeliest, as a whole and per byte."""
    end, context = trained.encoding.eot_token, trained.model.block_size
    for name, items in choices.items():
        rows, sizes, shortened = [], [], 0
        for item in items:
            before = [end, *trained.encoding.encode_ordinary(item.context)]
            for text in item.choices:
                own = trained.encoding.encode_ordinary(text)
                if len(own) > context:
                    raise ValueError(
                        f"{name}: a choice has {len(own)} tokens, but {trained.label} "
                        f"has a context of {context}"
                    )
                row = [*before, *own][-(context + 1) :]
                shortened += len(row) < len(before) + len(own)
                rows.append(row)
                sizes.append(len(own))
        losses = token_losses(trained, rows)
        nats = [float(x[-n:].sum()) for x, n in zip(losses, sizes, strict=True)]
        of = [dataclasses.astuple(item) for item in items]
        into.add(f"accuracy, {name}", _right(items, nats, per_byte=False), of)
        into.add(f"accuracy per byte, {name}", _right(items, nats, per_byte=True), of)
        if shortened:
            into.notes.append(
                f"{name}: {shortened} of {len(rows)} texts lost their beginning to the "
                f"context of {context} tokens"
            )


def _right(
    items: Sequence[Choice], nats: Sequence[float], *, per_byte: bool
) -> list[float]:
    found, at = [], 0
    for item in items:
        own = list(nats[at : at + len(item.choices)])
        at += len(item.choices)
        if per_byte:
            sizes = [len(text.encode("utf-8", "replace")) for text in item.choices]
            own = [nat / size for nat, size in zip(own, sizes, strict=True)]
        found.append(float(own.index(min(own)) == item.answer))
    return found
