"""The exported model of a run, read back as data."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from safetensors import SafetensorError, safe_open

from gpt2.model import GPT
from gpt2.reading import settings_from_dict
from gpt2.schema import Settings
from gpt2.training.checkpoint import load_weights

HEADS = "heads"  # of the metadata: numbers of heads by layer, where some were removed


@dataclass(frozen=True, slots=True)
class Exported:
    """A trained model on the CPU, in evaluation mode, and what it was trained as.

    ``settings`` are those of the training; ``heads`` are what each layer has left,
    None if none were removed.
    """

    model: GPT
    settings: Settings
    heads: tuple[int, ...] | None


def load_export(path: Path) -> Exported:
    """The model in a run's model.safetensors; nothing in the file is executed.

    Raises ValueError, naming the file, for anything that is no whole export.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}
        settings = settings_from_dict(json.loads(metadata["settings"]))
        heads = _heads_of(metadata)
        model = GPT(settings, heads)
        load_weights(model, weights)
    except KeyError as error:
        raise ValueError(f"{path} is no exported model: it lacks {error}") from error
    except (SafetensorError, ValueError) as error:
        raise ValueError(f"{path} is no exported model: {error}") from error
    return Exported(model.eval(), settings, heads)


def _heads_of(metadata: Mapping[str, str]) -> tuple[int, ...] | None:
    if HEADS not in metadata:
        return None
    found = json.loads(metadata[HEADS])
    if not isinstance(found, list) or any(type(number) is not int for number in found):
        raise ValueError(f"its {HEADS} are no list of whole numbers")
    return tuple(found)
