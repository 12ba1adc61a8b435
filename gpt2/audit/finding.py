"""Findings of an audit: a reported figure, the recomputed one, and whether they agree.

Torch-free.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lib.safe_json import number, text

OK = "ok"
DIFFERS = "differs"
NOT_CHECKED = "not checked"  # could be checked, but something needed is missing
LEFT_OUT = "left out"  # impossible from the files of a run, or in reasonable time
STATES = (OK, DIFFERS, NOT_CHECKED, LEFT_OUT)

PASSED, FAILED, INCOMPLETE = "passed", "differs", "incomplete"  # verdicts on a run

Value = float | int | str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Tolerance:
    """Allowed difference, absolute + relative x |recomputed|, and its reason."""

    absolute: float = 0.0
    relative: float = 0.0
    why: str = ""

    def admits(self, reported: float, recomputed: float) -> bool:
        """True if the two agree; an infinity agrees only with itself."""
        if math.isinf(reported) or math.isinf(recomputed):
            return reported == recomputed
        allowed = self.absolute + self.relative * abs(recomputed)
        return abs(reported - recomputed) <= allowed

    def __str__(self) -> str:
        parts = []
        if self.absolute:
            parts.append(f"{self.absolute:.2g}")
        if self.relative:
            parts.append(f"{self.relative:.2g} relative")
        size = " + ".join(parts) or "exact"
        return f"{size} ({self.why})" if self.why else size


EXACT = Tolerance(relative=1e-9)
SAME = Tolerance()


@dataclass(frozen=True, slots=True)
class AuditLine:
    """Line of an audit."""

    figure: str
    state: str
    reported: Value = None
    recomputed: Value = None
    tolerance: str = ""
    reason: str = ""

    def to_json(self) -> dict[str, Any]:
        """Plain data; infinities, which JSON lacks, as text."""
        return {
            name: (
                str(value) if isinstance(value, float) and math.isinf(value) else value
            )
            for name, value in asdict(self).items()
        }


def compare(
    figure: str,
    reported: object,
    recomputed: Value,
    tolerance: Tolerance = EXACT,
    reason: str = "",
) -> AuditLine:
    """Compare a reported number or text with the recomputed one.

    A value that was not reported, or is neither a number nor a text, is "not checked".
    """
    if isinstance(recomputed, str):
        word = text(reported)
        state = NOT_CHECKED if word is None else OK if word == recomputed else DIFFERS
        return AuditLine(figure, state, word, recomputed, "", reason or _absent(word))
    value = number(reported)
    if value is None or recomputed is None:
        return AuditLine(
            figure, NOT_CHECKED, value, recomputed, "", reason or _absent(value)
        )
    state = OK if tolerance.admits(value, recomputed) else DIFFERS
    return AuditLine(figure, state, value, recomputed, str(tolerance), reason)


def _absent(value: Value) -> str:
    return "not recorded" if value is None else ""


def compare_all(
    figure: str,
    triples: Iterable[tuple[str, object, float]],
    tolerance: Tolerance = EXACT,
) -> AuditLine:
    """Compare a series with its recomputation; the finding has the worst pair.

    triples: (where, reported, recomputed), for example ("step 40", 3.1, 3.1).
    """
    found = [(w, compare(figure, r, c, tolerance)) for w, r, c in triples]
    if not found:
        return AuditLine(figure, NOT_CHECKED, reason="there is no such record")
    bad = [(w, f) for w, f in found if f.state != OK]
    bad.sort(key=lambda item: (item[1].state != DIFFERS, -_gap(item[1])))
    if not bad:
        said = f"{len(found)} records"
        return AuditLine(figure, OK, said, "the same", str(tolerance))
    where, worst = bad[0]
    more = f" and {len(bad) - 1} more of {len(found)}" if len(bad) > 1 else ""
    parts = [f"{where}{more}", worst.reason]
    return AuditLine(
        figure,
        worst.state,
        worst.reported,
        worst.recomputed,
        worst.tolerance,
        "; ".join(part for part in parts if part),
    )


def _gap(finding: AuditLine) -> float:
    a, b = finding.reported, finding.recomputed
    if isinstance(a, int | float) and isinstance(b, int | float):
        return abs(a - b)
    return 0.0


def holds(
    figure: str, is_so: bool, reported: Value, bound: str, reason: str = ""
) -> AuditLine:
    """Finding for a condition on a reported figure, such as a bound, in words."""
    return AuditLine(figure, OK if is_so else DIFFERS, reported, bound, "", reason)


def not_checked(figure: str, reason: str, reported: object = None) -> AuditLine:
    """Finding for a figure that could be checked if nothing were missing."""
    return AuditLine(figure, NOT_CHECKED, _shown(reported), None, "", reason)


def left_out(figure: str, reason: str, reported: object = None) -> AuditLine:
    """Finding for a figure that cannot be checked from the files of a run."""
    return AuditLine(figure, LEFT_OUT, _shown(reported), None, "", reason)


def _shown(value: object) -> Value:
    found = number(value)
    return text(value) if found is None else found


def verdict(findings: Sequence[AuditLine]) -> str:
    """FAILED if anything differs, INCOMPLETE if something is not checked."""
    states = {finding.state for finding in findings}
    if DIFFERS in states:
        return FAILED
    return INCOMPLETE if NOT_CHECKED in states or OK not in states else PASSED
