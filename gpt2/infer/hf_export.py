"""A trained model as a folder that transformers loads.

Step 0 becomes a native GPT-2, every other model a folder with its own code. Either is
written next to its place, loaded again by a fresh interpreter that has transformers and
nothing of kablate, and put in its place only if it computes the same.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from gpt2.infer import reload_check
from gpt2.infer.flat_code import flat_modules
from gpt2.infer.hf_tokenizer import tokenizer_files
from gpt2.infer.model_card import model_card
from gpt2.infer.trained import TrainedModel
from gpt2.model.gpt2_weights import is_native, native_config, to_gpt2
from gpt2.settings.schema import Settings
from gpt2.train.checkpoint import weights_of, write_weights
from gpt2.train.failures import FULL_DISK, disk_full_at
from lib.atomic_files import (
    atomic_write_bytes,
    atomic_write_json,
    clear_write_errors,
)
from lib.files import hidden_name, is_hidden_name, remove_folder, strangers

ENTRY = "modeling_kablate"
WEIGHTS_FILE = "model.safetensors"
TOLERANCE = 1e-5  # of logits in fp32, relative to the largest
OURS = re.compile(
    r"(gpt2|lib)_\w+\.py|modeling_kablate\.py|(model|generation_|tokenizer_)?\w*"
    r"\.(json|safetensors)|merges\.txt|README\.md|LICENSE"
)
ROOT = Path(__file__).resolve().parents[2]
# What a model reads of its settings besides those of its shape and mechanisms. None of
# it names a place or a machine.
READ = {"optim": ("residual_fp32", "mixed_precision"), "data": ("tokenizer",)}
BACKENDS = {"attention_backend": "auto", "mlp_backend": "auto"}
NO_SPACE = re.compile(rf"(?:Errno|os error) (?:{'|'.join(map(str, FULL_DISK))})\b")
TEXTS = ("Reciprocal attention, 2 + 2 = 4.", "  zwölf\n\tBoxkämpfer 日本 🙂", "it's")


class NotTheSame(RuntimeError):
    """The folder as written does not compute what the trained model does."""


@dataclass(frozen=True, slots=True)
class HfFolder:
    """folder; whether transformers' own GPT-2 loads it; the largest difference of
    logits, relative; size in bytes."""

    folder: Path
    is_native: bool
    deviation: float
    size: int


def export_hf(trained: TrainedModel, folder: Path) -> HfFolder:
    """Write the folder, and replace an earlier one that holds nothing else.

    Raises NotTheSame, FileExistsError for a file, a link or a folder with other files,
    gpt2.data.tokenizer.TokenizerUnavailable, lib.atomic_files.DiskFull.
    """
    _check_place(folder)
    native = is_native(trained.settings, trained.heads)
    with disk_full_at(folder, "it is not kept"), _work_folder(folder) as work:
        made = work / "model"
        made.mkdir()
        write_folder(trained, made, native)
        deviation = check_folder(trained, made)
        _check_place(folder)
        if folder.exists():
            remove_folder(folder, OURS)
        made.rename(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    return HfFolder(folder, native, deviation, size)


def _check_place(folder: Path) -> None:
    """Raise FileExistsError unless the folder is missing, empty or an export."""
    if not folder.name or not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise FileExistsError(f"OUT={folder} is a file or a link, not a folder")
    if others := strangers(folder, OURS):
        raise FileExistsError(
            f"{folder} is there and holds {', '.join(others[:3])}, which no export "
            "writes: name another folder by OUT="
        )


@contextmanager
def _work_folder(folder: Path) -> Iterator[Path]:
    """A hidden folder next to ``folder``, locked, removed at the end; and without those
    that killed exports left."""
    if not folder.name:
        raise ValueError(f"OUT={folder} has no name: name a folder to be written")
    work = hidden_name(folder)
    with clear_write_errors(folder):
        work.mkdir(parents=True)
    try:
        with locked(work):
            _remove_leftovers(folder)
            yield work
    finally:
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """Lock a folder while its process lives; False if another one holds it."""
    place = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        try:
            fcntl.flock(place, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            yield False
        else:
            yield True
    finally:
        os.close(place)


def _remove_leftovers(folder: Path) -> None:
    for path in folder.parent.iterdir():
        if is_hidden_name(path, folder) and path.is_dir() and not path.is_symlink():
            with locked(path) as is_free:
                if is_free:
                    shutil.rmtree(path, ignore_errors=True)


def write_folder(trained: TrainedModel, folder: Path, native: bool) -> None:
    """Weights, configuration, tokenizer, card and, unless native, code."""
    settings = trained.settings
    weights = {name: tensor.cpu() for name, tensor in weights_of(trained.model).items()}
    if native:
        tensors = to_gpt2(weights, settings.model.n_layer)
    else:
        tensors = {f"model.{name}": tensor for name, tensor in weights.items()}
    write_weights(folder / WEIGHTS_FILE, tensors, {})
    config = native_config(settings) if native else custom_config(trained)
    end = {f"{kind}_token_id": trained.encoding.eot_token for kind in ("bos", "eos")}
    config |= {**end, "torch_dtype": "float32"}
    atomic_write_json(folder / "config.json", config)
    generation = {**end, "pad_token_id": trained.encoding.eot_token}
    atomic_write_json(folder / "generation_config.json", generation)
    files = tokenizer_files(trained.encoding, settings.model.block_size)
    if not native:
        code = flat_modules({f"gpt2.infer.{ENTRY}": ENTRY})
        files |= {name: text.encode("utf-8") for name, text in code.items()}
    files["README.md"] = model_card(trained, native).encode("utf-8")
    files["LICENSE"] = licence().encode("utf-8")
    for name, data in files.items():
        atomic_write_bytes(folder / name, data)


def licence() -> str:
    """Text of kablate's licence: next to gpt2/ in a checkout, else as installed."""
    path = ROOT / "LICENSE"
    if path.is_file():
        return path.read_text(encoding="utf-8")
    return distribution("kablate").read_text("licenses/LICENSE") or ""


def custom_config(trained: TrainedModel) -> dict[str, Any]:
    """config.json of a folder with its own code."""
    settings, m = trained.settings, trained.settings.model
    return {
        "architectures": ["KablateForCausalLM"],
        "model_type": "kablate",
        "auto_map": {
            "AutoConfig": f"{ENTRY}.KablateConfig",
            "AutoModelForCausalLM": f"{ENTRY}.KablateForCausalLM",
        },
        "vocab_size": settings.vocab_size,
        "n_positions": m.block_size,
        "n_embd": m.n_embd,
        "n_layer": m.n_layer,
        "n_head": m.n_head,
        "settings": published_settings(settings),
        "heads": None if trained.heads is None else list(trained.heads),
        "tie_word_embeddings": False,  # the head is not a separate tensor
    }


def published_settings(settings: Settings) -> dict[str, dict[str, Any]]:
    """The settings by which exported code builds the model, by part."""
    parts = settings.to_dict()
    read = {part: {n: parts[part][n] for n in names} for part, names in READ.items()}
    shape = {part: parts[part] for part in ("model", "mechanisms")}
    return {**shape, **read, "resources": dict(BACKENDS)}


# ---- what others will see ---------------------------------------------------------


def check_folder(trained: TrainedModel, folder: Path) -> float:
    """Largest deviation of the logits that a fresh interpreter computes from ours,
    relative to the largest logit; raises NotTheSame if something differs."""
    tokens = _tokens(trained)
    with torch.no_grad():
        expected = trained.model.logits(tokens.to(trained.device)).cpu()
    with tempfile.TemporaryDirectory(
        prefix="check-", dir=folder.parent.resolve()
    ) as scratch:
        given, written = Path(scratch, "tokens"), Path(scratch, "logits")
        save_file({"tokens": tokens}, given)
        said = _load_elsewhere(folder.resolve(), given, written, scratch)
        logits, cached = (load_file(written)[name] for name in ("logits", "cached"))
    size = float(expected.abs().max().clamp_min(1.0))
    deviation = float((logits - expected).abs().max()) / size
    decoded = float((cached - expected[:, -1:]).abs().max()) / size
    for what, found in {"logits": deviation, "logits by its cache": decoded}.items():
        if not found <= TOLERANCE:
            raise NotTheSame(f"{what} of {said['class']} differ by {found:.1e}")
    ours = [trained.encoding.encode_ordinary(text) for text in TEXTS]
    if said["tokens"] != ours:
        raise NotTheSame(f"its tokenizer gives {said['tokens']}, not {ours}")
    return max(deviation, decoded)


def _tokens(trained: TrainedModel) -> torch.Tensor:
    """Tokens [1, T] that fill the context: real text and its end, then any."""
    context, encoding = trained.model.block_size, trained.encoding
    words = [*encoding.encode_ordinary(" ".join(TEXTS)), encoding.eot_token]
    generator = torch.Generator().manual_seed(0)
    others = torch.randint(encoding.n_vocab, (context,), generator=generator)
    return torch.cat([torch.tensor(words), others])[:context].unsqueeze(0)


def _load_elsewhere(
    folder: Path, given: Path, written: Path, scratch: str
) -> Mapping[str, Any]:
    """Result of gpt2/infer/reload_check.py for a folder; raises NotTheSame."""
    apart = {"HF_HOME": scratch, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    program = [sys.executable, "-I", reload_check.__file__]
    done = subprocess.run(
        [*program, str(folder), str(given), str(written)],
        input=json.dumps(TEXTS),
        cwd=scratch,
        env={**os.environ, **apart},
        capture_output=True,
        text=True,
    )
    if done.returncode != 0:
        if NO_SPACE.search(done.stderr):
            raise OSError(errno.ENOSPC, "no space left for loading it")
        raise NotTheSame(f"it does not load:\n{done.stderr[-2000:]}")
    found: Mapping[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found
