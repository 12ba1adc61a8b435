"""Audit of one finished run: every check that its available files allow."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2.audit import losses, replay, weights
from gpt2.audit.corpus import NoText, PreparedText, meta_finding, open_text
from gpt2.audit.costs import cost_findings
from gpt2.audit.evidence import RunFiles, alarm_findings, origin_findings, read_evidence
from gpt2.audit.finding import (
    DIFFERS,
    NOT_CHECKED,
    AuditLine,
    left_out,
    not_checked,
    verdict,
)
from gpt2.audit.options import AuditOptions
from gpt2.audit.records import bits_per_byte, record_findings
from gpt2.audit.tables import table_findings
from gpt2.audit.times import epoch_findings, time_findings
from gpt2.audit.weights import BadExport, Export, export_findings, read_export
from gpt2.data.token_files import META_FILE
from gpt2.train.failures import is_out_of_memory
from lib.jobs.run_files import EXPORT_FILE
from lib.safe_json import Unusable, as_dict, clean, number, read_foreign_json, text

FROM_TEXT = (
    "bits per byte of each evaluation",
    "epochs",
    "mean_epoch_seconds",
    "validation loss at update 0",
    "validation loss of the export",
    replay.FIRST_LOSS,
)
FROM_EXPORT = ("parameters", "validation loss of the export", "kv_bytes_per_token")
MACHINE = "a measurement without other records"


@dataclass(frozen=True, slots=True)
class Audit:
    """Findings about a run."""

    run_dir: Path
    findings: tuple[AuditLine, ...]

    @property
    def verdict(self) -> str:
        return verdict(self.findings)

    def to_json(self) -> dict[str, Any]:
        return {
            "run_dir": str(self.run_dir),
            "verdict": self.verdict,
            "findings": [finding.to_json() for finding in self.findings],
        }


def audit_run(run_dir: Path, options: AuditOptions) -> Audit:
    """Run every check on one run.

    Raises gpt2.audit.evidence.NothingToAudit if it is not done, or unidentified.
    """
    evidence = read_evidence(run_dir)
    found = list(evidence.problems)
    found += _all(evidence, options)
    return Audit(run_dir, (*found, *_uncovered(evidence, found)))


def _all(evidence: RunFiles, options: AuditOptions) -> Iterator[AuditLine]:
    yield from _guarded("origin", origin_findings, evidence)
    yield from _guarded("records", record_findings, evidence)
    yield from _guarded("times", time_findings, evidence)
    yield from _guarded("alarms", alarm_findings, evidence)
    export = _export(evidence)
    if isinstance(export, Export):
        yield from _guarded("export", export_findings, evidence, export)
    else:
        yield from export
    yield from _guarded("costs", _cost_findings, evidence, export)
    of_text = _text(evidence, options)
    if isinstance(of_text, PreparedText):
        yield from _guarded("text", _text_findings, evidence, of_text)
        yield from _recomputed(evidence, of_text, export, options)
    else:
        yield from of_text
    yield from _guarded("tables", table_findings, evidence)


def _guarded(
    figure: str, check: Callable[..., Iterable[AuditLine]], *given: Any
) -> list[AuditLine]:
    """Findings of a check; an exception on unexpected data is a finding, too."""
    try:
        return list(check(*given))
    except Exception as error:  # untrusted files may contain anything
        reason = f"cannot be checked: {type(error).__name__}: {clean(error)}"
        state = NOT_CHECKED if is_out_of_memory(error) else DIFFERS
        return [AuditLine(figure, state, reason=reason)]


# ---- the text ---------------------------------------------------------------------


def _text(evidence: RunFiles, options: AuditOptions) -> PreparedText | list[AuditLine]:
    """Text of the run, or a finding for each figure that needs it."""
    settings = evidence.settings
    fingerprint = text(evidence.manifest.get("data_fingerprint"))
    own = (Path(settings.resources.data_dir).expanduser(),) if options.own_data else ()
    reasons = ["the manifest has no data_fingerprint"] if fingerprint is None else []
    for folder in dict.fromkeys((*own, *options.data_dirs)):
        if fingerprint is None:
            break
        try:
            return open_text(settings, folder, fingerprint)
        except NoText as error:
            reasons.append(str(error))
    why = clean("; ".join(reasons) or "no data folder was given")
    return [not_checked(figure, why) for figure in FROM_TEXT]


def _text_findings(evidence: RunFiles, found: PreparedText) -> Iterator[AuditLine]:
    yield from epoch_findings(evidence, len(found.train))
    if found.val_bytes is None:
        yield not_checked("bits per byte of each evaluation", found.no_bytes)
        return
    yield bits_per_byte(evidence, len(found.val), found.val_bytes)
    meta = _meta_bytes(found)
    if meta is not None:
        yield meta_finding(found, meta)


def _meta_bytes(found: PreparedText) -> object:
    """Bytes of the validation text in meta.json; None if it is missing."""
    try:
        meta = read_foreign_json(Path(found.val.filename).with_name(META_FILE))  # type: ignore
    except Unusable:
        return None
    return as_dict(as_dict(as_dict(meta).get("splits")).get("val")).get("bytes")


# ---- the export -------------------------------------------------------------------


def _export(evidence: RunFiles) -> Export | list[AuditLine]:
    """Exported model, or findings if it is missing or bad."""
    try:
        return read_export(evidence.run_dir / EXPORT_FILE, evidence.settings)
    except FileNotFoundError:
        return [not_checked(name, f"{EXPORT_FILE} is missing") for name in FROM_EXPORT]
    except BadExport as error:
        return [AuditLine(EXPORT_FILE, DIFFERS, reason=str(error))]


def _cost_findings(
    evidence: RunFiles, export: Export | list[AuditLine]
) -> Iterator[AuditLine]:
    heads = None
    if evidence.settings.pruning.prune_method == "heads":
        if not isinstance(export, Export):
            return
        heads = weights.heads_of(evidence.settings, export)
    yield from cost_findings(evidence, heads)


def _recomputed(
    evidence: RunFiles,
    of_text: PreparedText,
    export: Export | list[AuditLine],
    options: AuditOptions,
) -> Iterator[AuditLine]:
    """Check the losses that can be recomputed."""
    given, figure = (evidence, of_text, options), "validation loss of the export"
    if isinstance(export, Export):
        last = (export.whole, evidence.result, "of the export")
        yield from _guarded(figure, losses.evaluation, *given, *last)
    figure = "validation loss at update 0"
    yield from _guarded(figure, losses.first_evaluation, *given)
    yield from _guarded(replay.FIRST_LOSS, replay.replay_findings, *given)


# ---- unchecked figures ------------------------------------------------------------


def _uncovered(evidence: RunFiles, found: Sequence[AuditLine]) -> Iterator[AuditLine]:
    """Findings for numbers of the result that no check covers."""
    covered = {finding.figure for finding in found}
    for name, reported in evidence.result.items():
        is_number = number(reported) is not None
        if is_number and name not in covered:
            yield left_out(clean(name, 60), MACHINE, reported)
