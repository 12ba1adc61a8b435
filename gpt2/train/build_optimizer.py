"""Build the optimizer and the pruner that the settings describe."""

from __future__ import annotations

import re

from torch import nn

from gpt2.model.gpt import GPT
from gpt2.model.heads import head_layers
from gpt2.plan.matrix_cells import pruning_schedule
from gpt2.settings.schema import Optim, Settings
from lib.optim.config import OptimConfig
from lib.optim.groups import OptimizerLike, decay_groups
from lib.optim.registry import build
from lib.pruning.heads import HeadPruner
from lib.pruning.pruner import Pruner
from lib.pruning.registry import METHODS


def optim_config(optim: Optim) -> OptimConfig:
    """The optimizers' hyperparameters, by the same names."""
    shared = ("learning_rate", "beta1", "beta2", "eps", "momentum")
    values = {name: getattr(optim, name) for name in shared}
    return OptimConfig(**values, own=optim.own_of(optim.optimizer))


def embedding_names(model: nn.Module) -> tuple[str, ...]:
    """Names of the weights of embeddings; a head tied to one is the same tensor."""
    return tuple(
        f"{name}.weight"
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
    )


def make_optimizer(model: nn.Module, optim: Optim) -> OptimizerLike:
    """Each parameter once; decay on matrices only. ValueError as registry.build."""
    groups = decay_groups(model.named_parameters(), optim.weight_decay)
    return build(
        optim.optimizer,
        groups,
        optim_config(optim),
        embeddings=embedding_names(model),
    )


def prunable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The weights of linear layers by name, without a head tied to an embedding."""
    linear = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear)}
    tied = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    named = dict(model.named_parameters())
    return {name: p for name, p in named.items() if id(p) in linear - tied}


def depths(names: list[str], layers: int) -> dict[str, float]:
    """0 for the first block's weights to 1 for the last one's, by the number in
    the name."""
    found = {}
    for name in names:
        number = re.search(r"\.(\d+)\.", name)
        assert number, f"{name} belongs to no block"
        found[name] = int(number[1]) / max(1, layers - 1)
    return found


def make_pruner(
    model: GPT, optimizer: OptimizerLike, settings: Settings
) -> Pruner | HeadPruner:
    """The pruner that the settings ask for (method "none" does nothing).

    ValueError: sparsity 0, a schedule without room for one mask update, or no head
    that could go.
    """
    pruning = settings.pruning
    weights = prunable(model)
    schedule = None
    if pruning.prune_method != "none":
        schedule = pruning_schedule(settings)
    if METHODS[pruning.prune_method].is_structured:
        assert schedule is not None
        scope, layers = pruning.prune_scope, head_layers(model)
        return HeadPruner(weights, layers, optimizer, schedule=schedule, scope=scope)
    return Pruner(
        weights,
        optimizer,
        method=pruning.prune_method,
        schedule=schedule,
        scope=pruning.prune_scope,
        variant=settings.score_variant,
        depth_of=depths(list(weights), settings.model.n_layer),
    )
