"""A trained model with its tokenizer, from the folder of a finished run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tiktoken
import torch

from gpt2.data.tokenizer import TokenizerUnavailable, get_encoding
from gpt2.infer.decoder import Decoder
from gpt2.model.gpt import GPT
from gpt2.plan.jobs import Job, job_from_json
from gpt2.settings.schema import Resources, Settings
from gpt2.train.export import Exported, load_export
from lib.gpu.device import DeviceInfo, select_device
from lib.jobs.run_files import EXPORT_FILE, JOB_FILE
from lib.safe_json import Unusable, clean, read_foreign_json


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainedModel:
    """The model of a run in evaluation mode, what it was trained as, its tokenizer.

    ``heads``: the numbers of heads by layer where some were removed, else None.
    ``decoder``: continues texts, all of them in the same memory.
    """

    run_dir: Path
    job: Job
    model: GPT
    heads: tuple[int, ...] | None
    encoding: tiktoken.Encoding
    decoder: Decoder

    @property
    def settings(self) -> Settings:
        return self.job.settings

    @property
    def label(self) -> str:
        """Name in tables, as in "5 ra, seed 1"."""
        step = "" if self.job.step is None else f"{self.job.step} "
        return f"{step}{self.job.name}, seed {self.job.seed}"

    @property
    def device(self) -> torch.device:
        return self.model.wte.weight.device


def prepare_device(resources: Resources) -> DeviceInfo:
    """The device of DEVICE, with CPU_THREADS threads on a CPU. Raises ValueError."""
    if resources.threads:
        torch.set_num_threads(resources.threads)
    return select_device(resources.device)


def load_trained(run_dir: str | Path, device: str = "cpu") -> TrainedModel:
    """The model in a run folder; nothing in it is executed.

    Raises ValueError, naming the file, for a folder that is not a run's, and for an
    export that is missing, damaged, not finite, or of another run, and where the
    tokenizer does not fit or cannot be had.
    """
    run_dir = Path(run_dir)
    job = read_job(run_dir)
    path = run_dir / EXPORT_FILE
    if not path.is_file():
        raise ValueError(
            f"{path} is missing: a run writes its model at its end, and results that "
            "were sent as a bundle come without it"
        )
    exported = load_export(path)
    _check_origin(path, exported, job)
    for name, tensor in exported.model.state_dict().items():
        if not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{path}: {name} has numbers that are not finite")
    try:
        encoding = get_encoding(job.settings.data.tokenizer)
    except TokenizerUnavailable as error:
        raise ValueError(f"the tokenizer of {run_dir}: {error}") from None
    model = exported.model.to(device).requires_grad_(False)
    return TrainedModel(
        run_dir=run_dir,
        job=job,
        model=model,
        heads=exported.heads,
        encoding=encoding,
        decoder=Decoder(model),
    )


def read_job(run_dir: Path) -> Job:
    """The job of a run folder; ValueError, naming the file, if there is none."""
    path = run_dir / JOB_FILE
    try:
        found = read_foreign_json(path)
        if not isinstance(found, dict):
            raise Unusable("not a JSON object")
        return job_from_json(found)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path}: {clean(error)}") from None


def _check_origin(path: Path, exported: Exported, job: Job) -> None:
    """Refuse the export of another run, as after copying files between folders."""
    theirs = exported.origin.get("hash")
    if theirs != job.hash or exported.settings.to_dict() != job.settings.to_dict():
        raise ValueError(
            f"{path} belongs to another run than its {JOB_FILE}: hash "
            f"{clean(theirs, 40)}, not {job.hash}"
        )
