"""Tables of certificates for a terminal of 80 columns, with thresholds and meanings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

from gpt2.train.head_removal import TOLERANCE as REMOVAL
from gpt2.verify.certificates import FLOP_TOLERANCE
from gpt2.verify.certify_steps import LARGER, NO_FINDING, Findings
from gpt2.verify.subject import EXACT, ROUNDING, Finding
from gpt2.verify.trainer_updates import EXPORT
from gpt2.verify.trainer_updates import TOLERANCE as UPDATE
from lib.human import counted
from lib.optim.certify import BFLOAT16, UPDATES
from lib.optim.certify import EXACT as OPTIMIZER
from lib.optim.certify_spam import PHASES
from lib.pruning.certify_scores import SCORES

NAME_WIDTH = 30  # the longest name of our steps has 28 characters
PASSED, FAILED, NONE = "✓", "✗", "-"
MARKS = f"{PASSED} passed, {FAILED} failed, {NONE} does not apply"


@dataclass(frozen=True, slots=True)
class Meaning:
    """Threshold of a certificate and what it shows.

    worst: the figure of a table to show, max or min of its rows; "" if none.
    """

    limit: str
    text: str
    worst: str = "max"


def _at_most(limit: float, text: str) -> Meaning:
    return Meaning(f"<= {limit:g}", text)


OF_STEPS = {
    "causal": _at_most(EXACT, "no logit depends on a later token"),
    "stateless": Meaning("0", "the same input gives the same logits"),
    "alive": Meaning("> 0", "every parameter gets a gradient and moves", "min"),
    "acting": Meaning(f">= {ROUNDING:g}", "each mechanism changes the logits", "min"),
    "identity": Meaning("0", "neutral values have no effect; ~: shipped"),
    "budget": Meaning(
        "exact", f"parameters and cache; FLOPs within {FLOP_TOLERANCE:.0%}", ""
    ),
    "decode": _at_most(ROUNDING, "decoding with a cache equals a whole pass"),
    "formula": _at_most(EXACT, "outputs and gradients equal the formulas"),
    "at size": _at_most(
        EXACT,
        "as formula, {n_layer} layers, {n_head} heads, {block_size} tokens".format(
            **LARGER
        ),
    ),
    "heads": _at_most(REMOVAL, "cutting heads that are 0 changes nothing"),
    "changes": Meaning("", "each change of a step changes its training", ""),
    "distinct": Meaning("", "no two steps compute the same function", ""),
}
OF_TRAINING = {
    "updates": _at_most(1, f"updates equal formulas, in units of {UPDATE:g}"),
    "export": _at_most(EXPORT, "the exported model computes the same"),
}
OF_OPTIMIZERS = {
    "groups": Meaning("0", "each parameter is in one optimizer group"),
    "reference": _at_most(
        OPTIMIZER, f"{UPDATES:,} updates equal float64 (bf16: {BFLOAT16:g})"
    ),
    "decay": _at_most(OPTIMIZER, "zero gradients: weight decay as asked"),
    "resume": Meaning("0", "after loading it goes on bit for bit"),
    "state": Meaning("0", "its state has the size that is claimed"),
    "settings": Meaning("0", "a setting acts if and only if it is read"),
    "theta 50": _at_most(OPTIMIZER, "as reference, with the other threshold"),
    "clip": _at_most(PHASES, "spikes enter the moments as sqrt(theta v)"),
    "resets": Meaning("", "moments are reset when asked, never else", ""),
    "warm-up": _at_most(PHASES, "step length after a reset"),
    **OF_TRAINING,
}
OF_PRUNING = {
    "schedule": _at_most(1, "zeros follow the schedule, in weights"),
    "gradients": Meaning("0", "pruned weights get no gradient, others do"),
    "for good": Meaning("", "pruned stays pruned (movement: may return)", ""),
    "masks": Meaning("0", "masks drop the lowest scores"),
    "resume": OF_OPTIMIZERS["resume"],
    "selection": Meaning("0", "as a stable sort selects, ties included"),
    "scores": _at_most(SCORES, "scores equal their formulas"),
    **OF_TRAINING,
}
OF_HEADS = {
    **OF_PRUNING,
    "schedule": Meaning("0", "dead heads follow the schedule, in heads"),
    "for good": Meaning("0", "pruned heads stay pruned"),
    "selection": Meaning("0", "as selecting one by one, ties included"),
    "export": _at_most(REMOVAL, "without its heads it computes the same"),
}
OWN = Meaning("", "a certificate of one optimizer alone")
MEANINGS = {
    "step": OF_STEPS,
    "optimizer": OF_OPTIMIZERS,
    "pruning": OF_PRUNING,
    "head pruning": OF_HEADS,
}


def heading(kind: str, columns: Sequence[str]) -> str:
    """First line of a table: the numbers of its columns."""
    return f"{kind:<{NAME_WIDTH}}" + "".join(f"{n + 1:>3}" for n in range(len(columns)))


def row(cell: Findings, columns: Sequence[str]) -> str:
    """One line of a table: a mark for each certificate; a long name has its own
    line."""
    found = (cell.findings.get(name, NO_FINDING) for name in columns)
    name = cell.name if len(cell.name) < NAME_WIDTH else f"{cell.name}\n"
    width = NAME_WIDTH + (len(name) if name[-1] == "\n" else 0)
    return f"{name:<{width}}" + "".join(f"{mark(f):>3}" for f in found)


def mark(finding: Finding) -> str:
    if not finding.passed:
        return FAILED
    return NONE if finding.figure == NO_FINDING.figure else PASSED


def legend(
    kind: str, cells: Sequence[Findings], columns: Sequence[str]
) -> Iterator[str]:
    """A line for each column: number, name, worst figure, threshold, meaning."""
    yield f"    {'certificate':<12}{'worst':>9}  {'allowed':<11}meaning"
    for number, name in enumerate(columns, 1):
        if all(mark(p.findings.get(name, NO_FINDING)) == NONE for p in cells):
            continue
        meaning = MEANINGS[kind].get(name, OWN)
        figure = worst_of(cells, name, meaning)
        yield f"{number:>3} {name:<12}{figure:>9}  {meaning.limit:<11}{meaning.text}"


def worst_of(cells: Sequence[Findings], name: str, meaning: Meaning) -> str:
    """Figure of the row that comes nearest to the threshold; "" if there is none."""
    figures: dict[float, str] = {}
    for cell in cells:
        text = cell.findings.get(name, NO_FINDING).figure
        with suppress(ValueError):  # a dash, or text
            figures[float(text.removeprefix("~"))] = text
    if not figures or not meaning.worst:
        return ""
    return figures[max(figures) if meaning.worst == "max" else min(figures)]


def closing(kinds: Mapping[str, int], failed: int) -> str:
    """Last line: whether all passed, and what was checked."""
    counts = [counted(n, kind) for kind, n in kinds.items() if n]
    checked, total = ", ".join(counts), sum(kinds.values())
    if failed:
        return f"{failed} of {total} failed ({checked}): nothing of these may train"
    return f"All certificates passed ({checked})"
