"""Recompute losses, tokens and learning rates of a run from its records.

Torch-free. Does not call the code that wrote the figures: each is recomputed from its
definition.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import pairwise

from gpt2.audit.evidence import Record, RunFiles, value
from gpt2.audit.finding import (
    NOT_CHECKED,
    SAME,
    AuditLine,
    Tolerance,
    compare,
    compare_all,
    holds,
    left_out,
    not_checked,
)
from gpt2.plan.run_length import seconds_of
from gpt2.settings.schema import Optim
from lib.safe_json import whole

# A training loss that is smaller than both neighbouring validation losses by more than
# this factor cannot come from text that is seen for the first time.
IMPLAUSIBLE = 1.8
RANKS_SKEW = 0.02  # of a time budget: deviation of the first rank's clock from the mean


def record_findings(evidence: RunFiles) -> Iterator[AuditLine]:
    """Check everything that needs only the records."""
    yield from _steps(evidence)
    yield from _tokens(evidence)
    yield _rates(evidence)
    yield from _training_losses(evidence)
    yield from _validation_losses(evidence)
    yield from _comparisons(evidence)


def at(record: Record) -> str:
    """Name of a record, in words."""
    return f"step {record.get('step')}"


# ---- steps and tokens -------------------------------------------------------------


def _steps(evidence: RunFiles) -> Iterator[AuditLine]:
    """Check that each update is in one training record, and all evaluations exist."""
    last = evidence.updates
    spans = zip(evidence.trains, _spans(evidence), strict=True)
    yield compare_all(
        "updates behind each training loss",
        [(at(record), record.get("updates"), span) for record, span in spans],
        SAME,
    )
    optim, interval = evidence.settings.optim, evidence.settings.data.eval_interval
    wanted = sorted({*range(0, last + 1, interval), last})
    found = [record.get("step") for record in evidence.evals]
    yield holds(
        "steps with an evaluation",
        found == wanted,
        f"{len(found)} evaluations",
        f"{len(wanted)}, every {interval} updates and at the end",
        _first_difference(found, wanted),
    )
    if not optim.time_budget:
        yield compare("updates", last, optim.max_iters, SAME)


def _spans(evidence: RunFiles) -> list[int]:
    """Updates between consecutive records of the training loss."""
    steps = [0, *(whole(record.get("step")) or 0 for record in evidence.trains)]
    return [after - before for before, after in pairwise(steps)]


def _first_difference(found: list[object], wanted: list[int]) -> str:
    odd = [step for step in wanted if step not in found]
    more = [step for step in found if step not in wanted]
    twice = len(found) != len({str(step) for step in found})
    parts = [f"step {odd[0]} is missing"] if odd else []
    parts += [f"step {more[0]} is not expected"] if more else []
    return "; ".join(parts + ["one is repeated"] * twice)


def _tokens(evidence: RunFiles) -> Iterator[AuditLine]:
    """Check tokens = updates x effective batch x context length."""
    settings = evidence.settings
    batch = settings.resources.batch_size * settings.resources.gradient_accumulation
    each = batch * settings.model.block_size
    reason = f"{evidence.updates} updates x {batch} x {settings.model.block_size}"
    total = evidence.updates * each
    yield compare("tokens", evidence.result.get("tokens"), total, SAME, reason)
    records = [*evidence.trains, *evidence.evals, *evidence.epochs]
    yield compare_all(
        "tokens of each record",
        [(at(r), r.get("tokens"), each * (whole(r.get("step")) or 0)) for r in records],
        SAME,
    )


# ---- learning rates ---------------------------------------------------------------


def rate_at(update: int, optim: Optim, share: float | None = None) -> float:
    """Learning rate of update 1, 2, ...: linear to the peak at the last update of the
    warm-up, then to min_lr at the last update: by half a cosine (arXiv 1608.03983), or
    constant with a decay at the end (wsd, arXiv 2405.18392).

    share: share of a time budget that was spent before the update; the fall then spans
    the whole budget and is multiplied by the warm-up.
    """
    peak, low, warm = optim.learning_rate, optim.min_lr, optim.warmup_steps
    ramp = update / warm if warm and update < warm else 1.0
    if share is None:
        if update <= warm:
            return peak * ramp
        first = warm
        if optim.lr_schedule == "wsd":
            decaying = max(1, round(optim.max_iters * optim.lr_decay_share))
            first = max(warm, optim.max_iters - decaying)
        share = max(0.0, (update - first) / (optim.max_iters - first))
    elif optim.lr_schedule == "wsd":
        share = max(0.0, 1 - (1 - share) / optim.lr_decay_share)
    return ramp * (low + (peak - low) * _fall(min(share, 1.0), optim))


def _fall(share: float, optim: Optim) -> float:
    """Height of the fall: 1 at its beginning (share 0), 0 at its end."""
    if optim.lr_schedule == "cosine":
        return (1 + math.cos(math.pi * share)) / 2
    return 1 - share ** {"sqrt": 0.5, "linear": 1.0}[optim.lr_decay_shape]


def _rates(evidence: RunFiles) -> AuditLine:
    optim = evidence.settings.optim
    if optim.time_budget and evidence.trains:
        return _rates_by_time(evidence)
    pairs = [
        (at(record), record.get("lr"), rate_at(whole(record.get("step")) or 1, optim))
        for record in evidence.trains
    ]
    return compare_all("learning rates", pairs)


def budget_shares(evidence: RunFiles) -> list[float] | None:
    """Shares of the time budget spent before each update of the first record of the
    loss; None if they are not recorded, as before December 2026."""
    first = evidence.trains[0] if evidence.trains else {}
    shares = first.get("budget_shares")
    if not isinstance(shares, list) or len(shares) != whole(first.get("step")):
        return None
    known = all(isinstance(share, float) and math.isfinite(share) for share in shares)
    return shares if known else None


def _rates_by_time(evidence: RunFiles) -> AuditLine:
    """Check by time that the rate lies between those at the neighbouring records, and
    that the recorded times of the first updates rise up to the first record."""
    optim, figure = evidence.settings.optim, "learning rates"
    budget = seconds_of(optim.time_budget)
    skew = RANKS_SKEW if evidence.ranks > 1 else 0.0
    before = 0.0
    for record in evidence.trains:
        found, after = value(record, "lr"), value(record, "train_seconds")
        if found is None or after is None:
            reason = f"{at(record)}: the seconds in updates are not recorded"
            return AuditLine(figure, NOT_CHECKED, found, reason=reason)
        update = whole(record.get("step")) or 1
        most = rate_at(update, optim, max(0.0, before / budget - skew))
        least = rate_at(update, optim, after / budget + skew)
        if not least * (1 - 1e-9) <= found <= most * (1 + 1e-9):
            return holds(figure, False, found, f"{least:.6g} to {most:.6g}", at(record))
        before = after
    if shares := budget_shares(evidence):
        spent = (value(evidence.trains[0], "train_seconds") or 0.0) / budget + skew
        if not all(a <= b for a, b in pairwise([0.0, *shares, spent])):
            figures = f"{min(shares):.6g} to {max(shares):.6g}"
            reason = "shares of the time budget at the first updates"
            return holds(figure, False, figures, f"0 to {spent:.6g}, rising", reason)
    count = f"{len(evidence.trains)} records"
    return holds(figure, True, count, "within bounds", "the budget is a time")


# ---- losses -----------------------------------------------------------------------


def _training_losses(evidence: RunFiles) -> Iterator[AuditLine]:
    trains = evidence.trains
    yield compare_all(
        "training loss = sum / updates",
        [
            (at(r), r.get("loss"), total / span)
            for r, span in zip(trains, _spans(evidence), strict=True)
            if (total := value(r, "loss_sum")) is not None and span
        ],
    )
    last = value(trains[-1], "loss") if trains else None
    yield compare("train_loss", evidence.result.get("train_loss"), last, SAME)
    yield _plausible(evidence)


def _plausible(evidence: RunFiles) -> AuditLine:
    """Check that in the first epoch the training loss is not far below the validation
    loss: the model has not seen either text before."""
    figure = "training losses near the validation losses"
    epoch = value(evidence.result, "epochs")
    if not epoch or not evidence.evals:
        return left_out(figure, "the length of an epoch is not recorded")
    fresh = evidence.updates / epoch  # updates in one epoch
    looked_at, worst = 0, (math.inf, "")
    for record, span in zip(evidence.trains, _spans(evidence), strict=True):
        step, loss = whole(record.get("step")) or 0, value(record, "loss")
        around = _losses_around(evidence, step - span, step)
        if step > fresh or loss is None or not around:
            continue
        looked_at += 1
        worst = min(worst, (loss / min(around), at(record)))
    if not looked_at:
        return left_out(figure, "the whole text was seen before the first record")
    is_so = worst[0] >= 1 / IMPLAUSIBLE
    reason = "" if is_so else f"{worst[1]}, {worst[0]:.3f} of the validation loss"
    bound = f"at least 1/{IMPLAUSIBLE} of them in the first epoch"
    return holds(figure, is_so, f"{looked_at} records", bound, reason)


def _losses_around(evidence: RunFiles, first: int, last: int) -> list[float]:
    """Validation losses from the evaluation before ``first`` to the one after ``last``;
    [] if either is missing."""
    points = [
        (whole(record.get("step")), value(record, "val_loss"))
        for record in evidence.evals
    ]
    known = [(s, loss) for s, loss in points if s is not None and loss is not None]
    before = [s for s, _ in known if s <= first]
    after = [s for s, _ in known if s >= last]
    if not before or not after:
        return []
    return [loss for s, loss in known if max(before) <= s <= min(after)]


def _validation_losses(evidence: RunFiles) -> Iterator[AuditLine]:
    """Check the last and the best evaluation, and values derived from a loss."""
    evals, result = evidence.evals, evidence.result
    last = evals[-1] if evals else {}
    for name in ("val_loss", "val_perplexity", "val_accuracy", "bits_per_byte"):
        reason = f"the last evaluation, {at(last)}"
        yield compare(name, result.get(name), value(last, name), SAME, reason)
    losses = [x for x in (value(r, "val_loss") for r in evals) if x is not None]
    best = min(losses, default=None)
    reason = f"the smallest of {len(losses)} evaluations"
    yield compare("best_val_loss", result.get("best_val_loss"), best, SAME, reason)
    yield compare_all(
        "perplexity = exp(validation loss)",
        [
            (at(r), r.get("val_perplexity"), math.exp(loss))
            for r in [*evals, *evidence.epochs]
            if (loss := value(r, "val_loss")) is not None and loss < 700
        ],
    )
    yield from _repeated(evidence)


def _repeated(evidence: RunFiles) -> Iterator[AuditLine]:
    """Check that an epoch that ends without an evaluation repeats an earlier one."""
    known = {record.get("step"): record for record in evidence.evals}
    pairs = [
        (at(record), record.get("val_loss"), loss)
        for record in evidence.epochs
        if (loss := value(known.get(record.get("val_step"), {}), "val_loss"))
    ]
    if pairs:
        yield compare_all("validation losses of epochs", pairs, SAME)


def _comparisons(evidence: RunFiles) -> Iterator[AuditLine]:
    """Check the certificate "as trained": the largest deviation, and that all passed.

    A comparison of an attempt that came to nothing is followed by one of the same
    update and does not count, unless it was made within the attempt before.
    """
    worst = [(r.get("step"), value(r, "worst")) for r in evidence.comparisons]
    known = [(step, size) for step, size in worst if size is not None]
    figure, reported = "as_trained", value(evidence.result, "as_trained")
    if not known:
        if reported is not None:
            yield not_checked(figure, "no comparison is recorded", reported)
        return
    sizes, last = {size for _, size in known}, dict(known)
    is_so = reported in sizes and max(last.values()) <= (reported or 0.0)
    bound = f"{max(sizes):.6g}, the largest of {len(known)}"
    yield holds(figure, is_so, reported, bound)
    late = [at(r) for r in evidence.comparisons if not _passed(r)]
    shown = late[0] if late else f"{len(known)} comparisons"
    yield holds("gradients as trained", not late, shown, "within their tolerances")


def _passed(record: Record) -> bool:
    """True if every deviation of a comparison is within its tolerance."""
    limit, worst = value(record, "tolerance"), value(record, "worst")
    loss, most = value(record, "loss_deviation"), value(record, "loss_tolerance")
    if limit is None or worst is None or loss is None or most is None:
        return False
    return worst <= limit and loss <= most and record.get("passed") is True


def bits_per_byte(evidence: RunFiles, tokens: int, text_bytes: int) -> AuditLine:
    """Check bits per byte = nats per token / ln 2 x tokens per byte, of every
    evaluation.

    tokens, text_bytes: of the validation split.
    """
    nats_to_bits = tokens / text_bytes / math.log(2)
    return compare_all(
        "bits per byte of each evaluation",
        [
            (at(r), r.get("bits_per_byte"), loss * nats_to_bits)
            for r in [*evidence.evals, *evidence.epochs]
            if (loss := value(r, "val_loss")) is not None
        ],
        Tolerance(relative=1e-9, why=f"{text_bytes:,} bytes, {tokens:,} tokens"),
    )
