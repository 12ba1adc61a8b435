"""Recompute seconds, tokens per second and epochs of a run from its records.

Torch-free. Evaluations are timed separately, so evaluation time that was booked as
training time is detected.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from itertools import pairwise

from gpt2.audit.evidence import Record, RunFiles, value
from gpt2.audit.finding import (
    EXACT,
    SAME,
    AuditLine,
    Tolerance,
    compare,
    compare_all,
    holds,
    not_checked,
)
from gpt2.audit.records import RANKS_SKEW, at
from gpt2.plan.run_length import seconds_of
from lib.safe_json import text, whole

RATES = Tolerance(relative=1e-6, why="a difference of two sums of seconds")
ROUNDING = 1e-6  # allowed error of sums of seconds
STAMPS = 2.0  # allowed error of a difference of two times of day in whole seconds


def time_findings(evidence: RunFiles) -> Iterator[AuditLine]:
    """Check everything that needs only the recorded times."""
    yield _rates(evidence)
    yield _order(evidence)
    yield from _sums(evidence)
    yield _wall(evidence)
    yield from _per_run(evidence)
    if evidence.settings.optim.time_budget:
        yield _budget(evidence)


def _train_seconds(record: Record) -> float | None:
    return value(record, "train_seconds")


def _rates(evidence: RunFiles) -> AuditLine:
    """Check the rate: tokens / seconds of updates, since the previous record."""
    rows, before = [], (0.0, 0.0)
    for record in evidence.trains:
        tokens, seconds = value(record, "tokens"), _train_seconds(record)
        if tokens is None or seconds is None:
            continue
        spent = seconds - before[1]
        if spent > 0:
            rate = (tokens - before[0]) / spent
            rows.append((at(record), record.get("tokens_per_s"), rate))
        before = (tokens, seconds)
    return compare_all("tokens per second of each record", rows, RATES)


def _order(evidence: RunFiles) -> AuditLine:
    """Check that times increase, and that training is a part of the elapsed time."""
    figure = "order of times"
    ends = {"seconds": evidence.result.get("seconds"), "step": "the result"}
    ends["train_seconds"] = evidence.result.get("train_seconds")
    records = [*evidence.trains, *evidence.evals, *evidence.epochs]
    if not records:
        return not_checked(figure, "there is no such record")
    records.sort(key=lambda r: (whole(r.get("step")) or 0, value(r, "seconds") or 0))
    before = (0.0, 0.0)
    for record in [*records, ends]:
        both = value(record, "seconds"), _train_seconds(record)
        if both[0] is None or both[1] is None:
            return not_checked(figure, f"{at(record)}: a time is not recorded")
        passed, trained = both[0] - before[0], both[1] - before[1]
        if trained < -ROUNDING or trained > passed + ROUNDING:
            shown = f"{passed:.6g} s, of them {trained:.6g} s in updates"
            bound = "from 0 s to all seconds since the previous record"
            return holds(figure, False, shown, bound, at(record))
        before = (both[0], both[1])
    return holds(figure, True, f"{len(records)} records", "rising")


def other_seconds(evidence: RunFiles) -> list[tuple[int, float]]:
    """(step, seconds) outside training: evaluations and comparisons with the formulas.
    An epoch's record may repeat an earlier evaluation, and the comparison at the start
    of an attempt is made before its clock starts."""
    found: dict[int, float] = {}
    for record in [*evidence.evals, *evidence.epochs]:
        step, seconds = whole(record.get("step")), value(record, "eval_seconds")
        is_own = record.get("val_step", step) == step
        if step is not None and seconds is not None and is_own:
            found.setdefault(step, seconds)
    starts = {0, *evidence.resumed_at}
    compared = {
        step: seconds
        for record in evidence.comparisons
        if (step := whole(record.get("step"))) is not None
        and step not in starts
        and (seconds := value(record, "seconds")) is not None
    }
    return sorted([*found.items(), *compared.items()])


def _sums(evidence: RunFiles) -> Iterator[AuditLine]:
    """Check that the seconds of updates and of all else fit into the loop's."""
    figure = "train_seconds"
    others = other_seconds(evidence)
    if not others:
        yield not_checked(figure, "the seconds of evaluations are not recorded")
        return
    rows = []
    for record in [*evidence.evals, evidence.result]:
        step = whole(record.get("step"))
        seconds, trained = value(record, "seconds"), _train_seconds(record)
        if seconds is None or trained is None:
            yield not_checked(figure, f"{at(record)}: a time is not recorded")
            return
        # At an evaluation, those of the same update may follow later.
        spent = sum(s for n, s in others if step is None or n < step)
        where = "the result" if step is None else at(record)
        rows.append((seconds - spent - trained, where, trained, seconds - spent))
    beyond = [row for row in rows if row[0] < -ROUNDING]
    _, where, trained, most = min(beyond) if beyond else rows[-1]
    bound = f"at most {most:.6g} s outside evaluations"
    reason = f"{where}: all seconds less those of evaluations and comparisons"
    yield holds(figure, not beyond, trained, bound, reason)


def _wall(evidence: RunFiles) -> AuditLine:
    """Check that the loop took no longer than the time of day from start to end."""
    began = _moment(evidence.manifest.get("started"))
    ended = _moment(evidence.status.get("updated"))
    seconds = value(evidence.result, "seconds")
    if began is None or ended is None or seconds is None:
        return not_checked("seconds", "start or end of the run is not recorded")
    passed = (ended - began).total_seconds()
    is_so = 0 < seconds <= passed + STAMPS
    bound = f"at most {passed + STAMPS:.0f} s from start to end"
    return holds("seconds", is_so, seconds, bound)


def _moment(stamp: object) -> datetime | None:
    try:
        found = datetime.fromisoformat(text(stamp) or "")
    except ValueError:
        return None
    return found if found.tzinfo else None


def _per_run(evidence: RunFiles) -> Iterator[AuditLine]:
    """Check tokens_per_s and step_seconds against the seconds of updates."""
    result = evidence.result
    trained, tokens = value(result, "train_seconds"), value(result, "tokens")
    rate = tokens / trained if tokens is not None and trained else None
    yield compare("tokens_per_s", result.get("tokens_per_s"), rate, EXACT)
    each = trained / evidence.updates if trained and evidence.updates else None
    yield compare("step_seconds", result.get("step_seconds"), each, EXACT)
    share = value(result, "data_wait_share")
    if share is not None:
        is_so = 0 <= share <= 1
        yield holds("data_wait_share", is_so, share, "a share of the updates' time")


def _budget(evidence: RunFiles) -> AuditLine:
    """Check that a run with a time budget spent all of it on updates and then ended.

    A GPU may exceed it while the host waits for a loss; one more update follows.
    """
    figure = "time budget"
    budget = seconds_of(evidence.settings.optim.time_budget)
    spent = value(evidence.result, "train_seconds")
    earlier = evidence.trains[-2] if len(evidence.trains) > 1 else {"step": 0}
    before = _train_seconds(earlier) if len(evidence.trains) > 1 else 0.0
    if spent is None or before is None:
        return not_checked(figure, "the seconds in updates are not recorded")
    skew = budget * RANKS_SKEW if evidence.ranks > 1 else 0.0
    is_next = evidence.updates == (whole(earlier.get("step")) or 0) + 1
    ends = before <= budget + skew or is_next
    bound = f"{budget:g} s, reached between the last two records"
    reason = f"{before:.6g} s at the last but one record"
    reached = spent >= budget - skew - ROUNDING
    return holds(figure, reached and ends, spent, bound, reason)


def epoch_findings(evidence: RunFiles, epoch_tokens: int) -> Iterator[AuditLine]:
    """Check the number of epochs, their times, and the records of their ends.

    epoch_tokens: of the training split.
    """
    result = evidence.result
    tokens, seconds = value(result, "tokens"), value(result, "seconds")
    epochs = tokens / epoch_tokens if tokens is not None else None
    reason = f"{epoch_tokens:,} tokens in the training split"
    yield compare("epochs", result.get("epochs"), epochs, EXACT, reason)
    mean = seconds / epochs if seconds is not None and epochs else None
    yield compare("mean_epoch_seconds", result.get("mean_epoch_seconds"), mean, EXACT)
    steps = _ends_of_epochs(evidence, epoch_tokens)
    found = [record.get("step") for record in evidence.epochs]
    shown, bound = f"{len(found)} records", f"{len(steps)} epochs ended"
    yield holds("epochs that ended", found == steps, shown, bound)
    if not steps:
        return
    yield compare_all(
        "number of each epoch",
        [
            (at(r), r.get("epoch"), (whole(r.get("tokens")) or 0) // epoch_tokens)
            for r in evidence.epochs
        ],
        SAME,
    )
    ends = [0.0, *(value(record, "seconds") or 0.0 for record in evidence.epochs)]
    yield compare_all(
        "seconds of each epoch",
        [
            (at(r), r.get("epoch_seconds"), after - before)
            for r, (before, after) in zip(evidence.epochs, pairwise(ends), strict=True)
        ],
        Tolerance(absolute=ROUNDING),
    )


def _ends_of_epochs(evidence: RunFiles, epoch_tokens: int) -> list[int]:
    """Updates at which another epoch was completed."""
    each = evidence.settings.tokens_per_update
    counts = [n * each // epoch_tokens for n in range(evidence.updates + 1)]
    return [n for n in range(1, len(counts)) if counts[n] > counts[n - 1]]
