"""Certificate: heads can be cut out of a model as its mechanisms say."""

from __future__ import annotations

import torch

from gpt2.model.heads import head_layers, without_heads
from gpt2.settings.checks import heads_refusal
from gpt2.train.head_removal import compare
from gpt2.verify.subject import Finding, Subject


@torch.no_grad()
def heads(subject: Subject) -> Finding:
    """A model with some heads at zero computes the same as one without them.

    The figure is the relative deviation of the logits, by the whole text and by way of
    the cache. Models whose heads cannot be removed, and would be refused with head
    pruning, are left out.
    """
    settings, number = subject.settings, subject.settings.model.n_head
    if number < 2 or heads_refusal(settings):
        return Finding(True, "-")
    model, kept = subject.model(), []
    for place, layer in enumerate(head_layers(model).values()):
        gone = place % number  # another head, and another number of them, in each layer
        keep = [not gone <= head <= 2 * gone for head in range(number)]
        for part in layer.slices.values():
            part.of(part.parameter, number)[:, ~torch.tensor(keep)] = 0.0
        kept.append(keep)
    small = without_heads(model, settings, kept)
    left = [sum(keep) for keep in kept]
    worst = compare(model, small, settings, left, subject.tokens("heads", 1))
    return Finding(True, f"{worst:.1e}")
