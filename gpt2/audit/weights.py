"""Exported model of a run: parameters, zeros, masks and heads, counted in the file.

Names and shapes of the complete model come from the model class, all numbers from the
tensors in the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from gpt2.audit.evidence import RunFiles, value
from gpt2.audit.finding import (
    DIFFERS,
    EXACT,
    SAME,
    AuditLine,
    compare,
    holds,
    left_out,
    not_checked,
)
from gpt2.mechanisms import mechanisms
from gpt2.model.gpt import GPT
from gpt2.settings.parse import settings_from_dict
from gpt2.settings.schema import Settings
from gpt2.train.checkpoint import FOLDER, STATE_FILE
from lib.atomic_files import BAD_JSON
from lib.jobs.run_files import EXPORT_FILE
from lib.pruning.registry import METHODS
from lib.safe_json import clean

FIXED = "basis"  # suffixes of buffers, which are not parameters
# In the names of tensors that a head owns.
OF_HEADS = (".attn.", *(name for m in mechanisms() for name in m.next_heads))
FUSED = 3  # parts of a fused projection: queries, keys, values
ACCIDENTAL = 1e-4  # share of prunable weights: zeros that are not due to a mask
LARGEST_LAYER = 0.95  # maximum sparsity of a layer with bitter4

Weights = dict[str, Tensor]


class BadExport(ValueError):
    """model.safetensors is not the complete model of its run."""


@dataclass(frozen=True, slots=True)
class Export:
    """Exported model. ``tensors``: as in the file; ``whole``: with zeros for each
    removed head, so that shapes are those of the settings."""

    tensors: Weights
    whole: Weights
    metadata: dict[str, str]

    @property
    def parameters(self) -> int:
        return _count(self.tensors)


def read_export(path: Path, settings: Settings) -> Export:
    """Read model.safetensors. Raises FileNotFoundError, and BadExport if it is not a
    model of these settings."""
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, framework="pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise BadExport(f"not readable: {clean(error)}") from None
    shapes = shapes_of(settings)
    if odd := sorted(shapes.keys() ^ tensors.keys()):
        raise BadExport(f"has other tensors than the model: {', '.join(odd[:4])}")
    if settings.pruning.prune_method == "heads":
        whole = {name: _widened(name, tensors[name], shapes[name]) for name in shapes}
    else:
        whole = tensors
    for name, shape in shapes.items():
        if whole[name].shape != shape:
            raise BadExport(_other_shape(name, tensors[name], shape))
    for name, tensor in whole.items():
        if not bool(torch.isfinite(tensor).all()):
            raise BadExport(f"{name} has numbers that are not finite")
    return Export(tensors, whole, metadata)


def shapes_of(settings: Settings) -> dict[str, torch.Size]:
    """Names and shapes of all tensors of a model with all heads."""
    with torch.device("meta"):
        model = GPT(settings)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def _widened(name: str, tensor: Tensor, shape: torch.Size) -> Tensor:
    """Tensor with zeros for removed heads. They come last, since the order of heads
    does not matter. Tensors that heads do not own are unchanged."""
    if tensor.shape == shape or not any(owner in name for owner in OF_HEADS):
        return tensor
    parts = FUSED if ".qkv." in name else 1
    if tensor.ndim == len(shape) and tensor.shape[0] % parts == 0:
        rows, wanted = tensor.shape[0] // parts, shape[0] // parts
        split = tensor.view(parts, rows, *tensor.shape[1:])
        grown = split.new_zeros(parts, wanted, *shape[1:])
        if all(a <= b for a, b in zip(split.shape, grown.shape, strict=True)):
            grown[tuple(slice(size) for size in split.shape)] = split
            return grown.reshape(shape)
    raise BadExport(_other_shape(name, tensor, shape))


def _other_shape(name: str, tensor: Tensor, shape: torch.Size) -> str:
    return f"{name} has shape {tuple(tensor.shape)}, not {tuple(shape)}"


def _count(weights: Mapping[str, Tensor]) -> int:
    return sum(t.numel() for name, t in weights.items() if not name.endswith(FIXED))


def prunable(weights: Mapping[str, Tensor]) -> Weights:
    """Prunable matrices: the linear layers of the blocks, without fixed ones."""
    return {
        name: tensor
        for name, tensor in weights.items()
        if tensor.ndim == 2 and name.startswith("blocks.") and name.endswith(".weight")
    }


# ---- metadata of the file ---------------------------------------------------------


def origin_findings(evidence: RunFiles, export: Export) -> Iterator[AuditLine]:
    """Check that the file belongs to this run and its last update."""
    metadata, job = export.metadata, evidence.job
    yield compare("hash in the export", metadata.get("hash"), job.hash)
    yield compare("seed in the export", metadata.get("seed"), str(job.seed))
    yield compare("update in the export", metadata.get("step"), str(evidence.updates))
    try:
        theirs = settings_from_dict(json.loads(metadata.get("settings", "")))
        same = theirs == job.settings
    except BAD_JSON:
        same = False
    shown = "those of the job" if same else "others"
    yield holds("settings in the export", same, shown, "those of the job")


def count_findings(evidence: RunFiles, export: Export) -> Iterator[AuditLine]:
    """Check parameters and heads, counted in the file."""
    result, whole = evidence.result, _count(export.whole)
    reason = f"{len(export.tensors)} tensors in {EXPORT_FILE}"
    yield compare("parameters", result.get("parameters"), whole, SAME, reason)
    yield compare(
        "parameters in the manifest", evidence.manifest.get("parameters"), whole, SAME
    )
    if evidence.settings.pruning.prune_method != "heads":
        return
    heads, all_heads = heads_of(evidence.settings, export), _all_heads(evidence)
    yield compare(
        "parameters_exported",
        result.get("parameters_exported"),
        export.parameters,
        SAME,
        reason,
    )
    yield compare("heads", result.get("heads"), all_heads, SAME)
    yield compare("heads_left", result.get("heads_left"), sum(heads), SAME)
    by_layer = " ".join(map(str, heads))
    yield compare("heads_by_layer", result.get("heads_by_layer"), by_layer)
    wanted, spared = _heads_asked(evidence.settings)
    yield compare("heads_spared", result.get("heads_spared"), spared, SAME)
    reason = "by PRUNING_SPARSITY"
    left = all_heads - wanted + spared
    yield compare("heads left of the schedule", sum(heads), left, SAME, reason)


def _all_heads(evidence: RunFiles) -> int:
    model = evidence.settings.model
    return model.n_layer * model.n_head


def heads_of(settings: Settings, export: Export) -> list[int]:
    """Heads of each layer, from the width of its output projection."""
    names = (f"blocks.{n}.attn.proj.weight" for n in range(settings.model.n_layer))
    width = settings.model.head_dim
    return [export.tensors[name].shape[1] // width for name in names]


def _heads_asked(settings: Settings) -> tuple[int, int]:
    """Heads to remove at the final sparsity, and how many of them are kept as the last
    of their layer."""
    model, pruning = settings.model, settings.pruning
    each = model.n_layer if pruning.prune_scope == "layer" else 1
    heads = model.n_layer * model.n_head // each
    layers = model.n_layer // each
    wanted = round(pruning.prune_sparsity * heads)
    return each * wanted, each * max(0, wanted - (heads - layers))


# ---- pruning ----------------------------------------------------------------------


def pruning_findings(evidence: RunFiles, export: Export) -> Iterator[AuditLine]:
    """Check zeros in the file, the number due by the schedule, and the masks."""
    pruning, result = evidence.settings.pruning, evidence.result
    if pruning.prune_method == "none":
        return
    weights = prunable(export.whole)
    total = sum(tensor.numel() for tensor in weights.values())
    zeros = sum(int((tensor == 0).sum()) for tensor in weights.values())
    yield compare("zeros", result.get("zeros"), zeros, SAME, f"of {total:,} weights")
    yield compare("sparsity", result.get("sparsity"), zeros / total, EXACT)
    if pruning.prune_method != "heads":
        yield _scheduled(evidence.settings, weights, zeros, total)
    yield _masked(evidence, export)


def _scheduled(
    settings: Settings, weights: Weights, zeros: int, total: int
) -> AuditLine:
    """Check the zeros at the end of the ramp; a few more may be zero by chance."""
    asked = _zeros_asked(settings, weights)
    most = asked + int(ACCIDENTAL * total) + 1
    bound = f"{asked:,} to {most:,} by PRUNING_SPARSITY"
    return holds("zeros of the schedule", asked <= zeros <= most, zeros, bound)


def _zeros_asked(settings: Settings, weights: Weights) -> int:
    pruning, layers = settings.pruning, settings.model.n_layer
    share, sizes = pruning.prune_sparsity, {n: t.numel() for n, t in weights.items()}
    if settings.score_variant in METHODS[pruning.prune_method].by_depth:
        depth = {name: int(name.split(".")[1]) / max(1, layers - 1) for name in sizes}
        return sum(
            round(min(LARGEST_LAYER, share * (0.7 + 0.6 * depth[name])) * size)
            for name, size in sizes.items()
        )
    if pruning.prune_scope == "layer":
        return sum(round(share * size) for size in sizes.values())
    return round(share * sum(sizes.values()))


def _masked(evidence: RunFiles, export: Export) -> AuditLine:
    """Check that weights pruned by the masks of the last checkpoint are zero."""
    figure = "masks"
    masks = _last_masks(evidence)
    if isinstance(masks, AuditLine):
        return masks
    if evidence.settings.pruning.prune_method == "heads":
        kept = [int(mask.sum()) for mask in masks.values()]
        found = heads_of(evidence.settings, export)
        shown = " ".join(map(str, found))
        return compare(figure, shown, " ".join(map(str, kept)), reason="heads kept")
    weights = prunable(export.whole)
    if masks.keys() != weights.keys():
        odd = sorted(masks.keys() ^ weights.keys())
        return AuditLine(figure, DIFFERS, reason=f"other weights: {odd[0]}")
    for name, mask in masks.items():
        stray = int((weights[name][~mask] != 0).sum())
        if stray:
            reason = f"{name}: {stray:,} pruned weights are not zero"
            return AuditLine(figure, DIFFERS, stray, 0, reason=reason)
    pruned = sum(int((~mask).sum()) for mask in masks.values())
    bound = "zero wherever a weight is pruned"
    return holds(figure, True, f"{pruned:,} pruned", bound)


def _last_masks(evidence: RunFiles) -> dict[str, Tensor] | AuditLine:
    """Masks in the checkpoint of the last update, or the reason why there are none."""
    folder = evidence.run_dir / FOLDER / f"step-{evidence.updates:06d}"
    path = folder / STATE_FILE
    if not path.is_file():
        why = "the checkpoints were not kept (KEEP_CHECKPOINTS=y keeps them)"
        return left_out("masks", why)
    try:
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
        masks = state["pruner"]["masks"]
        return {str(name): mask.bool() for name, mask in masks.items()}
    except Exception as error:  # torch.load raises many unrelated types
        return not_checked("masks", f"{path}: unreadable ({clean(error)})")


def export_findings(evidence: RunFiles, export: Export) -> Iterator[AuditLine]:
    """Check everything that needs only the exported file."""
    yield from origin_findings(evidence, export)
    yield from count_findings(evidence, export)
    yield from pruning_findings(evidence, export)
    figure = "export_deviation"
    if figure in evidence.result:
        found = value(evidence.result, figure)
        is_so = found is not None and 0 <= found <= 1e-5
        yield holds(figure, is_so, found, "at most 1e-05, relative")
