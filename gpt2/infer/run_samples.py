"""Samples of text that a run writes at its end, for the report: samples.json.

Every model continues the same beginnings of validation documents with the same random
numbers, on the CPU and in fp32, from the exported weights. By then the run has no more
use for its device, and its results are written.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from gpt2.data.token_files import dataset_folder, request_of, split_file
from gpt2.infer.sampling import Sampling, next_tokens
from gpt2.infer.trained import TrainedModel, load_trained
from gpt2.settings.schema import Settings
from gpt2.train.batches import open_tokens
from lib.atomic_files import atomic_write_json
from lib.jobs.run_files import SAMPLES_FILE

PROMPT, COUNT = 32, 96  # tokens, where the context has room for them
PROMPTS = 2
SAMPLING = Sampling(temperature=0.8)
SEED = 1
SECONDS = 10.0  # a model that is slower on the CPU gets shorter samples
THREADS = 4  # at most: the next run may have started to train


def write_samples(run_dir: Path) -> None:
    """Write samples.json of a run that has written its export.

    Raises ValueError or OSError, naming the file, if export, tokenizer or validation
    text cannot be read.
    """
    trained = load_trained(run_dir)
    windows = _windows(trained.settings, trained.encoding.eot_token)
    prompts = windows[:, : -_count(trained.settings)]
    texts = _continue(trained, prompts)
    decode = trained.encoding.decode
    found = [
        {
            "prompt": decode(prompt.tolist()),
            "actual": decode(true[len(prompt) :].tolist()),
            "text": decode(text.tolist()),
        }
        for prompt, true, text in zip(prompts, windows, texts, strict=True)
    ]
    settings = {"temperature": SAMPLING.temperature, "seed": SEED}
    record = {**settings, "tokens": texts.shape[1], "samples": found}
    atomic_write_json(run_dir / SAMPLES_FILE, record)


def _count(settings: Settings) -> int:
    """New tokens per sample: at most three quarters of the context."""
    return min(COUNT, settings.model.block_size * 3 // 4)


def _windows(settings: Settings, eot: int) -> torch.Tensor:
    """Prompt and true continuation, int64 [PROMPTS, T]: the beginnings of documents
    spread over the validation text, where they are long enough."""
    folder = dataset_folder(settings.resources.data_dir, request_of(settings))
    path = split_file(folder, "val")
    tokens = open_tokens(path)
    count = _count(settings)
    length = min(PROMPT, settings.model.block_size - count) + count
    starts = list(_starts(tokens, eot, length))
    return torch.from_numpy(
        np.stack([tokens[s : s + length] for s in starts]).astype(np.int64)
    )


def _starts(tokens: np.ndarray, eot: int, length: int) -> Iterator[int]:
    """The first document that begins after each of PROMPTS places and has ``length``
    tokens; the place itself if there is none."""
    ends = np.flatnonzero(tokens == eot)
    begins = np.concatenate([[0], ends + 1])
    sizes = np.diff(np.append(begins, len(tokens) + 1)) - 1
    fitting = begins[sizes >= length]
    for number in range(PROMPTS):
        place = (len(tokens) - length) * number // PROMPTS
        later = fitting[fitting >= place]
        yield int(later[0]) if len(later) else place


def _continue(trained: TrainedModel, prompts: torch.Tensor) -> torch.Tensor:
    """New tokens [PROMPTS, up to COUNT]."""
    generator = torch.Generator().manual_seed(SEED)
    torch.set_num_threads(min(THREADS, torch.get_num_threads()))
    end = time.monotonic() + SECONDS
    new: list[torch.Tensor] = []
    with torch.inference_mode():
        for token in next_tokens(trained.decoder, prompts, SAMPLING, generator):
            new.append(token)
            if len(new) == _count(trained.settings) or time.monotonic() > end:
                break
    return torch.cat(new, dim=1)
