"""Recompute losses of a run from its weights and its text.

Uses the plain formulas of gpt2/model/reference/formulas.py in fp32, one window at a
time. They share no code with the model, its loss or its evaluation. Two evaluations can
be recomputed: the one before the first update, from the seed, and the last one, from
the export.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gpt2.audit.corpus import PreparedText, Tokens, validation_offsets, window
from gpt2.audit.evidence import Record, RunFiles
from gpt2.audit.finding import AuditLine, Tolerance, compare, not_checked
from gpt2.audit.options import AuditOptions
from gpt2.model.gpt import GPT
from gpt2.model.init import start_parameters
from gpt2.model.reference.formulas import Weights, whole_trace
from gpt2.settings.schema import Settings
from lib.safe_json import as_dict, whole
from lib.stats import t_quantile

COARSE = 0.5  # nats; a sample of windows with a larger error checks nothing
SURE = 1e-6  # probability of a false alarm if only some windows are scored

# ---- tolerances -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Format:
    """Allowed differences from fp32 for the arithmetic of a run.

    For a mean loss in nats, the share of right tokens, and the norm of a gradient
    (relative); and the relative error of one rounding.
    """

    loss: float
    accuracy: float
    norm: float
    unit: float
    why: str


FORMATS = {
    "fp32": Format(2e-5, 1e-4, 1e-3, 2.0**-24, "fp32 sums in another order"),
    "tf32": Format(3e-3, 5e-3, 0.02, 2.0**-11, "TF32 products have 10 bits"),
    "fp16": Format(3e-3, 5e-3, 0.05, 2.0**-11, "fp16 has 10 bits"),
    "bf16": Format(5e-3, 1e-2, 0.10, 2.0**-8, "bf16 has 7 bits"),
}


def format_of(evidence: RunFiles) -> Format:
    """Arithmetic in which a run was trained and evaluated."""
    settings = evidence.settings
    precision = settings.optim.mixed_precision
    backend = as_dict(evidence.manifest.get("device")).get("backend")
    if precision == "fp32" and settings.resources.tf32 and backend != "cpu":
        precision = "tf32"
    return FORMATS[precision]


# ---- evaluation -------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scored:
    """Mean loss in nats per token, share of right tokens, number of tokens, of scored
    windows and of all windows; and sampling errors if not all windows were scored."""

    loss: float
    accuracy: float
    tokens: int
    windows: int
    of: int
    loss_error: float
    accuracy_error: float


@torch.no_grad()
def score(
    weights: Weights, settings: Settings, tokens: Tokens, options: AuditOptions
) -> Scored:
    """Validation loss and accuracy of weights on the windows of the settings.

    weights: fp32, by name, on any device; tokens: of the validation split.
    """
    block, samples = settings.model.block_size, settings.data.eval_samples
    offsets = validation_offsets(len(tokens), block, samples)
    chosen = _spread(offsets, options.windows or samples)
    device = torch.device(options.device)
    on_device = {name: tensor.to(device) for name, tensor in weights.items()}
    losses, right = [], []
    for start in chosen:
        x, y = pair(tokens, start, block, device)
        logits = whole_trace(on_device, settings, x)["the logits"]
        losses.append(float(cross_entropy(logits, y).double().mean()))
        right.append(float((logits.argmax(-1) == y).double().mean()))
    missing = 1 - len(chosen) / len(offsets)
    return Scored(
        math.fsum(losses) / len(losses),
        math.fsum(right) / len(right),
        len(chosen) * block,
        len(chosen),
        len(offsets),
        _sampling_error(losses, missing),
        _sampling_error(right, missing),
    )


def _spread(offsets: list[int], wanted: int) -> list[int]:
    """``wanted`` of the offsets, evenly spread; all if there are no more."""
    if wanted >= len(offsets):
        return offsets
    return [offsets[n * len(offsets) // wanted] for n in range(wanted)]


def _sampling_error(values: Sequence[float], missing: float) -> float:
    """Bound by Student's t on the distance of the mean of a sample without replacement
    from that of all. missing: share of all that is not in the sample."""
    if missing <= 0:
        return 0.0
    if len(values) < 2:
        return math.inf
    mean = math.fsum(values) / len(values)
    variance = math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)
    factor = t_quantile(1 - SURE / 2, len(values) - 1)
    return factor * math.sqrt(variance * missing / len(values))


def pair(
    tokens: Tokens, start: int, block: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Input x [T] and the following tokens y [T]."""
    both = torch.from_numpy(window(tokens, start, block)).to(device)
    return both[:-1], both[1:]


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy -log softmax at the target, in nats, [T]; logits [T, V]."""
    top = logits.max(-1, keepdim=True).values
    total = (logits - top).exp().sum(-1).log() + top[:, 0]
    return total - logits.gather(-1, targets[:, None])[:, 0]


def first_evaluation(
    evidence: RunFiles, text: PreparedText, options: AuditOptions
) -> Iterator[AuditLine]:
    """Check the evaluation before the first update, from the weights of the seed."""
    record = evidence.evals[0] if evidence.evals else {}
    if whole(record.get("step")) != 0:
        yield not_checked("validation loss at update 0", "it is not recorded")
        return
    weights = initial_weights(evidence.settings, evidence.job.seed)
    yield from evaluation(evidence, text, options, weights, record, "at update 0")


def evaluation(
    evidence: RunFiles,
    text: PreparedText,
    options: AuditOptions,
    weights: Weights,
    record: Record,
    where: str,
) -> Iterator[AuditLine]:
    """Check loss and accuracy in a record of an evaluation, from the weights then."""
    options.say(f"{evidence.run_dir}: validation {where}")
    found = score(weights, evidence.settings, text.val, options)
    loss, share = _allowed(found, format_of(evidence))
    reason = f"{found.windows} of {found.of} validation windows"
    if found.loss_error > COARSE:
        why = (
            f"{reason} give the loss only to within {found.loss_error:.2g} nats: "
            "use more WINDOWS"
        )
        yield not_checked(f"validation loss {where}", why, record.get("val_loss"))
        return
    loss_reported, share_reported = record.get("val_loss"), record.get("val_accuracy")
    yield compare(f"validation loss {where}", loss_reported, found.loss, loss, reason)
    yield compare(f"accuracy {where}", share_reported, found.accuracy, share, reason)


def _allowed(found: Scored, form: Format) -> tuple[Tolerance, Tolerance]:
    why = form.why
    if found.windows < found.of:
        why += f", {found.windows} windows for {found.of}"
    loss = form.loss + found.loss_error
    one_token = 1 / found.tokens  # two tokens that are equally likely
    share = form.accuracy + one_token + found.accuracy_error
    return Tolerance(absolute=loss, why=why), Tolerance(absolute=share, why=why)


def initial_weights(settings: Settings, seed: int) -> Weights:
    """Initial weights of a run with this seed."""
    model = GPT(settings)
    start_parameters(model, settings, seed)
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}
