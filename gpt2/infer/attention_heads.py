"""Attention of a trained model by layer and head, on its validation text."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gpt2.audit.corpus import NoText, Tokens, open_text, validation_offsets, window
from gpt2.infer.trained import TrainedModel
from gpt2.plan.names import ATTENTION_FILE, ATTENTION_PLOT
from gpt2.train.attention_metrics import HeadMetrics, head_metrics
from lib import plots
from lib.atomic_files import atomic_write_json
from lib.jobs.run_files import MANIFEST_FILE
from lib.safe_json import Unusable, as_dict, read_foreign_json, text

SCHEMA = 1
MOST_SCORES = 1 << 24  # of a layer at a time, 64 MiB in fp32
# Figures of a head: title of its heat map, and the range of its colours (None: the
# largest of all heads).
FIGURES: dict[str, tuple[str, float, float | None]] = {
    "entropy": ("Entropy of the weights (nats)", 0.0, None),
    "relative": ("Entropy over ln(position)", 0.0, 1.0),
    "reciprocity": ("Reciprocity: correlation with transposed scores", -1.0, 1.0),
    "alpha": ("RA's alpha", 0.0, None),
}


def validation_text(
    trained: TrainedModel, data_dirs: Sequence[Path]
) -> tuple[Tokens, str]:
    """Tokens of the validation split and the fingerprint of the text, from the first
    folder that has the text of the run. Raises ValueError with what was found."""
    path = trained.run_dir / MANIFEST_FILE
    try:
        fingerprint = text(as_dict(read_foreign_json(path)).get("data_fingerprint"))
    except Unusable as error:
        raise ValueError(f"{path}: {error}") from None
    if fingerprint is None:
        raise ValueError(f"{path} has no data_fingerprint: its text is unknown")
    reasons = []
    for folder in dict.fromkeys(data_dirs):
        try:
            return open_text(trained.settings, folder, fingerprint).val, fingerprint
        except NoText as error:
            reasons.append(str(error))
    raise ValueError(f"the text of {trained.run_dir}: {'; '.join(reasons)}")


def attention_of(
    trained: TrainedModel, tokens: Tokens, count: int
) -> list[list[dict[str, Any]]]:
    """Figures of each head by layer: the mean over ``count`` evenly spaced windows,
    and its standard error over these, None for one window.

    All rows of a context that see more than one key, or as many, evenly spaced, as fit
    MOST_SCORES. Raises ValueError if the text has fewer windows.
    """
    context = trained.model.block_size
    if count > (most := len(tokens) - context):
        raise ValueError(
            f"WINDOWS={count}: the validation text has {most:,} windows of {context} "
            f"tokens: use at most {most}"
        )
    starts = validation_offsets(len(tokens), context, count)
    band = trained.settings.mechanisms.ra_window
    rows = rows_of(trained)
    found = [
        head_metrics(trained.model, _batch(trained, tokens, start), rows, band)
        for start in starts
    ]
    return [list(_heads(layer)) for layer in zip(*found, strict=True)]


def rows_of(trained: TrainedModel) -> int:
    """Rows of a context that are measured."""
    m, context = trained.settings.model, trained.model.block_size
    return max(1, min(context - 1, MOST_SCORES // (m.n_head * context)))


def _batch(trained: TrainedModel, tokens: Tokens, start: int) -> Tensor:
    row = window(tokens, start, trained.model.block_size)[:-1]
    return torch.from_numpy(row).to(trained.device)[None]


def _heads(layer: Sequence[HeadMetrics]) -> Iterator[dict[str, Any]]:
    """Figures of each head of a layer, from the metrics of each window."""
    by_window = {
        "entropy": torch.cat([one.entropy.mean(-1) for one in layer]),
        "relative": torch.cat([one.relative.mean(-1) for one in layer]),
        "reciprocity": torch.cat([one.reciprocity for one in layer]),
    }
    alpha = layer[0].alpha
    for place, head in enumerate(layer[0].heads.tolist()):
        figures: dict[str, Any] = {"head": head}
        for name, values in by_window.items():
            own = values[:, place].double()
            figures[name] = float(own.mean())
            error = float(own.std()) / math.sqrt(len(own)) if len(own) > 1 else None
            figures[f"{name}_error"] = error
        if alpha is not None:
            figures["alpha"] = float(alpha[place])
        yield figures


def write_attention(
    trained: TrainedModel, layers: list[list[dict[str, Any]]], **source: object
) -> list[Path]:
    """Write attention.json and attention.png into the folder of a run; their paths.

    source: of the text. Raises lib.jobs.run_files.DiskFull and OSError.
    """
    record = {
        "schema": SCHEMA,
        "hash": trained.job.hash,
        "band": trained.settings.mechanisms.ra_window,
        "rows": rows_of(trained),
        "context": trained.model.block_size,
        **source,
        "layers": layers,
    }
    paths = [trained.run_dir / name for name in (ATTENTION_FILE, ATTENTION_PLOT)]
    atomic_write_json(paths[0], record, make_folder=False)
    plots.heat_maps(paths[1], heat_maps(layers), "head", "layer", trained.label)
    return paths


def heat_maps(layers: list[list[dict[str, Any]]]) -> list[plots.HeatMap]:
    """A map of layers x heads for each figure that there is."""
    found = []
    for name, (title, low, high) in FIGURES.items():
        cells = [[head.get(name) for head in layer] for layer in layers]
        values = [x for row in cells for x in row if x is not None]
        if values:
            low, high = min(low, *values), high or max(low, *values)
            found.append(plots.HeatMap(title, cells, low, high))
    return found
