"""Write the exported model of a run, and read it back as data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from gpt2.model.gpt import GPT
from gpt2.settings.parse import settings_from_dict
from gpt2.settings.schema import Settings
from gpt2.train.checkpoint import export, load_weights, weights_of
from lib.atomic_files import BAD_JSON
from lib.hashing import canonical_json

WEIGHTS = "weights_sha256"  # of the metadata: of all tensors
HEADS = "heads"  # of the metadata: numbers of heads by layer, where some were removed


@dataclass(frozen=True, slots=True)
class Exported:
    """A trained model on the CPU, in evaluation mode, and what it was trained as.

    ``settings`` are those of the training; ``heads`` are what each layer has left,
    None if none were removed; ``origin`` is what the file says of its run.
    """

    model: GPT
    settings: Settings
    heads: tuple[int, ...] | None
    origin: Mapping[str, str]


def write_export(
    path: Path,
    model: nn.Module,
    settings: Settings,
    heads: Sequence[int] | None = None,
    **origin: str,
) -> None:
    """Write a trained model as load_export reads it, atomically.

    settings, heads: as in Exported. origin: what the file is to say besides of the
    run it comes from. Raises DiskFull.
    """
    metadata = {**origin, "settings": canonical_json(settings.to_dict())}
    metadata[WEIGHTS] = weights_sha256(weights_of(model))
    if heads is not None:
        metadata[HEADS] = canonical_json(list(heads))
    export(path, model, metadata)


def load_export(path: str | Path) -> Exported:
    """The model in a run's model.safetensors; nothing in the file is executed.

    Raises ValueError, naming the file, if it is not a complete export, or if its
    weights are not those that were written. Older exports do not say which these are.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}
        settings = settings_from_dict(json.loads(metadata["settings"]))
        heads = _heads_of(metadata)
        if metadata.get(WEIGHTS) not in (None, weights_sha256(weights)):
            raise ValueError(
                "it is damaged: its weights are not those that were written"
            )
        _check_vocabulary(weights["wte.weight"], settings)
        model = GPT(settings, heads)
        load_weights(model, weights)
    except KeyError as error:
        raise ValueError(
            f"{path} is not an exported model: it lacks {error}"
        ) from error
    except (SafetensorError, *BAD_JSON) as error:
        raise ValueError(f"{path} is not an exported model: {error}") from error
    origin = {name: text for name, text in metadata.items() if name != "settings"}
    return Exported(model.eval(), settings, heads, origin)


def weights_sha256(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of tensors with their names, types and shapes, 64 hex digits."""
    digest = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(
            tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
        )
    return digest.hexdigest()


def _check_vocabulary(embeddings: Tensor, settings: Settings) -> None:
    if embeddings.shape[0] != settings.vocab_size:
        raise ValueError(
            f"it has {embeddings.shape[0]} token embeddings, but its tokenizer, "
            f"{settings.data.tokenizer!r}, has {settings.vocab_size} tokens"
        )


def _heads_of(metadata: Mapping[str, str]) -> tuple[int, ...] | None:
    if HEADS not in metadata:
        return None
    found = json.loads(metadata[HEADS])
    if not isinstance(found, list) or any(type(number) is not int for number in found):
        raise ValueError(f"its {HEADS} are not a list of whole numbers")
    return tuple(found)
