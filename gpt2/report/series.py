"""Sequential family: each arm of an open-ended series is tested once, at its own level.

The order of the tests and the level of each are kept in LEDGER_FILE of the results
folder. A test is recorded before its result is shown, and stays as it is: its number,
level and p do not change when further arms are run. A test is of certain runs, of the
arm and its partner, with their losses. Where an arm gets more seeds, or other losses,
it is tested again, and that is a further test with the next level: looking twice costs
twice. lib/sequential.py has the levels and the test.
"""

from __future__ import annotations

import dataclasses
import fcntl
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gpt2.report.arms import Pair
from gpt2.report.evidence import FDR, SEQUENTIAL, Evidence, Rules
from lib import sequential, stats
from lib.atomic_files import atomic_write_json
from lib.hashing import identity
from lib.jobs.run_files import now
from lib.safe_json import Unusable, as_dict, number, read_foreign_json, text, whole

LEDGER_FILE = "sequence.json"
SCHEMA = 1
LEVELS: Mapping[str, Callable[[float, Sequence[float], Sequence[bool]], float]] = {
    SEQUENTIAL: sequential.fallback_level,
    FDR: sequential.lord_level,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SeriesTest:
    """One test, as recorded. Losses in nats."""

    number: int  # from 1
    time: str
    step: int | None
    name: str
    partner: str
    seeds: tuple[int, ...]
    key: str  # identity of the runs and their losses
    mean: float
    half_width: float  # of the interval at this level
    level: float
    p: float

    @property
    def found(self) -> bool:
        return self.p <= self.level


@dataclass(slots=True)
class ArmSeries:
    """Tests in their order; those from ``recorded`` on are not in the file yet."""

    family: str
    alpha: float
    tests: list[SeriesTest] = field(default_factory=list)
    recorded: int = 0

    def of(self, key: str) -> SeriesTest | None:
        return next((test for test in self.tests if test.key == key), None)

    def next_level(self, later: int = 0) -> float:
        """Level of the next test, or of one later by so many tests without finding."""
        levels = [test.level for test in self.tests]
        found = [test.found for test in self.tests]
        for _ in range(later):
            levels.append(LEVELS[self.family](self.alpha, levels, found))
            found.append(False)
        return LEVELS[self.family](self.alpha, levels, found)

    def to_json(self) -> dict[str, Any]:
        tests = [{**dataclasses.asdict(t), "found": t.found} for t in self.tests]
        return {"family": self.family, "alpha": self.alpha, "tests": tests}


# ---- the file ---------------------------------------------------------------------


def read_series(folder: Path) -> ArmSeries | None:
    """Series recorded in a results folder; None if there is none.

    Raises ValueError for a file that is damaged, as its levels would be spent twice.
    """
    path = folder / LEDGER_FILE
    if not path.exists():
        return None
    try:
        data = as_dict(read_foreign_json(path))
        records = data.get("tests")
        if data.get("schema") != SCHEMA or not isinstance(records, list):
            raise Unusable(f"it is not of schema {SCHEMA}")
        tests = [_test(as_dict(r), i + 1) for i, r in enumerate(records)]
        family, alpha = data.get("family"), number(data.get("alpha"))
        if family not in LEVELS or alpha is None or not 0 < alpha < 1:
            raise Unusable("family or alpha is missing")
    except Unusable as error:
        raise ValueError(
            f"{path}: {error}. It records the tests of a sequential family; restore it "
            "from a copy, since without it the same levels would be spent again"
        ) from None
    return ArmSeries(str(family), float(alpha), tests, len(tests))


def _test(record: dict[str, Any], place: int) -> SeriesTest:
    numbers = {n: number(record.get(n)) for n in ("mean", "half_width", "level", "p")}
    words = {n: text(record.get(n)) for n in ("time", "name", "partner", "key")}
    seeds = record.get("seeds")
    known = [whole(seed) for seed in seeds] if isinstance(seeds, list) else [None]
    if None in (*numbers.values(), *words.values(), *known):
        raise Unusable(f"test {place} is damaged")
    if record.get("number") != place or not 0 < (numbers["level"] or 0) < 1:
        raise Unusable(f"test {place} is not in its place")
    fields: dict[str, Any] = {**numbers, **words, "seeds": tuple(known)}
    return SeriesTest(number=place, step=whole(record.get("step")), **fields)


def record(folder: Path, series: ArmSeries) -> None:
    """Write the tests that are new; OSError if that is impossible."""
    if series.recorded < len(series.tests):
        write_series(folder, series)
        series.recorded = len(series.tests)


def write_series(folder: Path, series: ArmSeries) -> None:
    data = {"schema": SCHEMA, **series.to_json()}
    atomic_write_json(folder / LEDGER_FILE, data, make_folder=False)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Exclude other reports of a folder, so that no two tests get the same number."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # released when it is closed
        yield
    finally:
        os.close(descriptor)


def series_for(folder: Path, rules: Rules) -> tuple[ArmSeries | None, Rules]:
    """Series of a results folder, recorded or new, and the rules that hold for it; None
    if all arms are one family.

    A folder that has a series keeps it. Raises ValueError for rules that contradict it.
    """
    series = read_series(folder)
    if series is None:
        new = ArmSeries(rules.family, rules.alpha) if rules.is_sequential else None
        return new, rules
    if rules.is_sequential and rules.family != series.family:
        raise ValueError(
            f"FAMILY={rules.family}, but {folder / LEDGER_FILE} has a series with "
            f"FAMILY={series.family}, and the rule cannot change within a series"
        )
    if rules.alpha != series.alpha:
        raise ValueError(
            f"alpha {rules.alpha:g}, but {folder / LEDGER_FILE} has a series with "
            f"alpha {series.alpha:g}"
        )
    return series, dataclasses.replace(rules, family=series.family)


def carried(series: Sequence[ArmSeries]) -> ArmSeries:
    """Series of a folder that is merged from folders with these: the one that there is,
    or a new one if there are several, whose arms are then all tested again.

    Raises ValueError if their rules differ.
    """
    first = series[0]
    if any((s.family, s.alpha) != (first.family, first.alpha) for s in series):
        raise ValueError(f"the folders have {LEDGER_FILE} with different rules")
    tests = first.tests if len(series) == 1 else []
    return ArmSeries(first.family, first.alpha, tests)


# ---- tests ------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Tests:
    """Tests of comparisons by their place, and the level and number of the next one."""

    by_place: Mapping[int, SeriesTest]
    next_level: float
    next_number: int


def is_testable(evidence: Evidence) -> bool:
    """Whether a comparison can get a grade from a test."""
    why_not = evidence.invalid or evidence.unmatched or evidence.unverified
    return not why_not and len(evidence.seeds) >= stats.MIN_SEEDS


def tests_of(
    series: ArmSeries, pairs: Sequence[Pair], evidence: Sequence[Evidence], rules: Rules
) -> Tests:
    """Test of each comparison that can be tested, by its place in ``pairs``.

    Those that are not in the series are appended, in the order of ``pairs``. The noise
    is estimated from all arms of the same size that are tested and have these seeds.
    """
    places = [i for i, item in enumerate(evidence) if is_testable(item)]
    found = {}
    for place in places:
        key = _key(pairs[place], evidence[place])
        test = series.of(key)
        if test is None:
            nearest = sorted(places, key=lambda i: abs(i - place))
            size = pairs[place][0].size  # smaller models may be noisier
            others = [pairs[i] for i in nearest if pairs[i][0].size == size]
            rows = _rows(pairs[place], others, evidence[place].seeds)
            test = _new_test(series, pairs[place], evidence[place], key, rows, rules)
            series.tests.append(test)
        found[place] = test
    return Tests(found, series.next_level(), len(series.tests) + 1)


def _new_test(
    series: ArmSeries,
    pair: Pair,
    evidence: Evidence,
    key: str,
    rows: Sequence[Sequence[float]],
    rules: Rules,
) -> SeriesTest:
    level = series.next_level()
    outcome = sequential.sequential_test(
        np.array(rows), rules.alpha, level, evidence.rounding
    )
    assert outcome is not None
    arm, partner = pair
    return SeriesTest(
        number=len(series.tests) + 1,
        time=now(),
        step=arm.step,
        name=arm.name,
        partner=partner.label,
        seeds=evidence.seeds,
        key=key,
        mean=stats.describe(evidence.differences).mean,
        half_width=outcome.half_width,
        level=level,
        p=outcome.p,
    )


def _rows(
    pair: Pair, others: Sequence[Pair], seeds: Sequence[int]
) -> list[list[float]]:
    """Losses by seed: arm, partner, then the arms of other comparisons, nearest first,
    that have all of these seeds."""
    arms = {id(arm): arm for each in (pair, *others) for arm in each}
    losses = [arm.by_seed("val_loss") for arm in arms.values()]
    return [[x[seed] for seed in seeds] for x in losses if x.keys() >= set(seeds)]


def _key(pair: Pair, evidence: Evidence) -> str:
    """Identity of the runs of a comparison, with their losses."""
    found = []
    for arm, losses in zip(pair, evidence.losses, strict=True):
        hashes = {run.seed: run.row["hash"] for run in arm.done}
        known = zip(evidence.seeds, losses, strict=True)
        found.append([arm.label, [[s, hashes.get(s), loss] for s, loss in known]])
    return identity(found)
