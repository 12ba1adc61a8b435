"""Certificates of a whole plan: sizes, the run of all steps, and cache."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import importlib.metadata
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from gpt2.mechanisms import mechanisms
from gpt2.mechanisms.spec import Tiny
from gpt2.plan.jobs import Plan
from gpt2.plan.planning import plan_settings, step_settings
from gpt2.plan.registry import Registry, Step
from gpt2.plan.steps import SHIPPED
from gpt2.settings.schema import IDENTITY_PARTS, Settings
from gpt2.verify.certificates import CERTIFICATES, certify
from gpt2.verify.changes import changes, distinct
from gpt2.verify.subject import Finding, Subject
from lib.atomic_files import atomic_write_json, read_json
from lib.forked import Begin, on_demand
from lib.hashing import identity

ByName = dict[str, Finding]  # by the name of the certificate

ROOT = Path(__file__).resolve().parents[2]
CACHE_SCHEMA = 1
COLUMNS = (*CERTIFICATES, "changes", "distinct")
NO_FINDING = Finding(True, "-")
# At most this large is a model that certificates compare with the formulas alone.
LARGER = {"n_layer": 8, "n_head": 12, "n_embd": 192, "block_size": 320}


@dataclass(frozen=True, slots=True)
class Findings:
    """Findings on one subject: a step, a cell without a step, an optimizer, pruning."""

    name: str
    findings: Mapping[str, Finding]

    @property
    def ok(self) -> bool:
        return all(f.passed for f in self.findings.values())

    @property
    def message(self) -> str:
        """Failures with reasons; "" if there are none."""
        return "; ".join(
            f"{name}: {f.detail or f.figure}"
            for name, f in self.findings.items()
            if not f.passed
        )

    def extended(self, certificate: str, problems: Sequence[str]) -> Findings:
        """With one more certificate, which has failed if there are problems."""
        figure, detail = "FAILED" if problems else "-", "; ".join(problems)
        more = {certificate: Finding(not problems, figure, detail)}
        return Findings(self.name, {**self.findings, **more})

    def to_json(self) -> dict[str, Any]:
        found = {name: dataclasses.asdict(f) for name, f in self.findings.items()}
        return {"name": self.name, "passed": self.ok, "findings": found}


def shrink(
    settings: Settings,
    *,
    n_layer: int = 3,
    n_head: int = 4,
    n_embd: int = 64,
    block_size: int = 24,
) -> Settings:
    """The same configuration at certificate size; every width scales along.

    Settings are those of a plan's base: unsolved, zeros where derived.
    """
    m, x = settings.model, settings.mechanisms
    to = Tiny(n_embd / m.n_embd, min(n_head, m.n_head), block_size)
    shrunk = [mechanism.tiny(x, m, to) for mechanism in mechanisms()]
    return settings.replace(
        model_size="custom",
        n_layer=min(n_layer, m.n_layer),
        n_head=to.heads,
        n_embd=n_embd,
        head_dim=to.width(m.head_dim),
        mlp_width=to.width(m.mlp_width),
        block_size=block_size,
        dropout=0.0,
        tokenizer="bytes",
        compile_model=False,
        mixed_precision="fp32",
        init_sha256="",  # of weights that are larger
        **{name: value for values in shrunk for name, value in values.items()},
    )


def larger(settings: Settings) -> Settings:
    """The same configuration at the size of the certificate "at size"."""
    model = settings.model
    size = {name: min(most, getattr(model, name)) for name, most in LARGER.items()}
    return shrink(settings, **size)


def subjects(plan: Plan, **size: int) -> dict[str, Subject]:
    """One subject for each cell of a plan, by run folder without the seed."""
    found: dict[str, Subject] = {}
    for part in plan.points:
        small = _settings_at(shrink(part.base, **size), part.registry)
        middle = _settings_at(larger(part.base), part.registry)
        for job in part.jobs:
            subject = Subject(small[job.arm], job.settings, middle[job.arm])
            found.setdefault(job.cell, subject)
    return found


def _settings_at(base: Settings, registry: Registry) -> dict[str, Settings]:
    """Settings of each cell over a base, by its folder without coordinates."""
    jobs = plan_settings(base, {}, registry).jobs
    return {job.arm: job.settings for job in jobs}


def step_subject(base: Settings, step: int, registry: Registry = SHIPPED) -> Subject:
    """Subject of any step of the registry, also of one that the plan lacks."""
    tiny = step_settings(shrink(base), step, registry)
    return Subject(tiny, step_settings(base, step, registry))


def certify_plan(
    plan: Plan, cache: Path | None = None, begin: Begin = on_demand
) -> Iterator[Findings]:
    """Check the certificates of each cell of a plan; its findings as it is done.

    cache: a JSON file of earlier findings, which count for cells with the same code and
    settings. begin: as of lib.forked; the certificates of all cells are begun before
    the first is waited for.
    """
    known = FindingsCache(cache, begin)
    parts = [(part, subjects(part)) for part in plan.points]
    begun: dict[str, Callable[[], ByName]] = {}
    for cell, subject in (pair for _, found in parts for pair in found.items()):
        if cell not in begun:
            versions = subject.settings, subject.full, subject.larger
            depends_on = [_decisive(settings) for settings in versions]
            begun[cell] = known.begin(depends_on, partial(certify, subject))
    for part, found in parts:
        certified = {cell: begun.pop(cell) for cell in found if cell in begun}
        yield from _certify_part(part, found, known, certified)


def _certify_part(
    plan: Plan,
    found: Mapping[str, Subject],
    known: FindingsCache,
    certified: Mapping[str, Callable[[], ByName]],
) -> Iterator[Findings]:
    """Findings on the cells of one point of a sweep that are ``certified`` with it; all
    of its cells are ``found``."""
    steps = {
        job.cell: job.step
        for job in plan.jobs
        if job.step is not None and not job.is_control  # meant to be its baseline
    }
    apart = {cell: found[cell] for cell in sorted(steps, key=lambda c: steps[c])}
    parts = [[n, s.settings.to_dict(), s.full.to_dict()] for n, s in apart.items()]
    distinct_of = functools.cache(  # only what passes is kept by the file
        lambda: known.of(["distinct", *parts], lambda: distinct(apart))
    )
    for cell, result in certified.items():
        findings = result()
        if cell in steps:
            findings = findings | {  # those of result() may be another cell's, too
                "changes": _changes(known, plan.registry[steps[cell]], plan),
                "distinct": distinct_of()[cell],
            }
        yield Findings(cell, findings)


def _changes(known: FindingsCache, step: Step, plan: Plan) -> Finding:
    if step.parent is None:
        return NO_FINDING
    try:
        base, registry = plan.base, plan.registry
        mine, theirs = (
            step_subject(base, each, registry) for each in (step.id, step.parent)
        )
        parts = [
            s.to_dict() for each in (mine, theirs) for s in (each.settings, each.full)
        ]
        found = known.of(
            ["changes", step.id, sorted(step.changes), *parts],
            lambda: {"changes": changes(step, mine, theirs, base, registry)},
        )
    except Exception as error:  # also a parent that this base does not allow
        return Finding.of_crash(error)
    return found["changes"]


class FindingsCache:
    """Earlier findings by what they depend on, kept in a file if one is given."""

    def __init__(self, path: Path | None, begin: Begin = on_demand) -> None:
        self.path, self.known = path, {} if path is None else _stored(path)
        self.code, self._begin = code_hash(), begin
        self._begun: dict[str, Callable[[], ByName]] = {}

    def of(self, depends_on: Sequence[Any], check: Callable[[], ByName]) -> ByName:
        """The findings of ``check``, which this code and what it ``depends_on``
        decide; from the file if all of them passed."""
        return self._kept(identity([self.code, *depends_on]), check)

    def begin(
        self, depends_on: Sequence[Any], check: Callable[[], ByName]
    ) -> Callable[[], ByName]:
        """As of(), begun now: a function that waits for the findings."""
        key = identity([self.code, *depends_on])
        if _passed(self.known.get(key)) is None and key not in self._begun:
            self._begun[key] = self._begin(check)
        return partial(self._kept, key, self._begun.get(key, check))

    def _kept(self, key: str, check: Callable[[], ByName]) -> ByName:
        findings = _passed(self.known.get(key))
        if findings is None:
            findings = check()
            self.known[key] = {n: dataclasses.asdict(f) for n, f in findings.items()}
            if self.path is not None:
                # In another user's checkout, or on a full disk, nothing is kept.
                with suppress(OSError):
                    record = {"schema": CACHE_SCHEMA, "findings": self.known}
                    atomic_write_json(self.path, record)
        return findings


def _stored(path: Path) -> dict[str, Any]:
    """Earlier findings by key; {} if there are none, or they are damaged or
    unreadable, which only costs the time of the certificates."""
    try:
        record = read_json(path)
        good = isinstance(record, dict) and record.get("schema") == CACHE_SCHEMA
        return dict(record["findings"]) if good else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _passed(stored: Any) -> ByName | None:
    """Findings from the cache, if there are any and all passed."""
    try:
        found = {name: Finding(**finding) for name, finding in stored.items()}
    except (TypeError, AttributeError):
        return None
    return found if found and all(f.passed for f in found.values()) else None


def _decisive(settings: Settings | None) -> dict[str, Any]:
    """Settings that decide the certificates of a model, as plain data: cells that
    differ in pruning alone share theirs."""
    if settings is None:
        return {}
    whole = settings.replace(adamwprune_variant="").to_dict()
    return {part: whole[part] for part in IDENTITY_PARTS if part != "pruning"}


def code_hash() -> str:
    """Hash of what findings depend on besides settings: every file of ours that may
    take part, and the versions of the libraries."""
    digest = hashlib.sha256(platform.python_version().encode())
    for package in ("torch", "numpy"):
        digest.update(importlib.metadata.version(package).encode())
    for path in sorted(_sources()):
        digest.update(path.relative_to(ROOT).as_posix().encode() + b"\0")
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _sources() -> Iterator[Path]:
    outside = (ROOT / "scripts" / "verify.py", ROOT / "Kconfig")
    yield from filter(Path.is_file, outside)  # a wheel lacks the second
    for folder in ("gpt2", "lib"):
        for path in (ROOT / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path


def to_json(cells: Iterable[Findings]) -> dict[str, Any]:
    """The table as data: the findings of each cell."""
    found = [cell.to_json() for cell in cells]
    return {"schema": CACHE_SCHEMA, "code": code_hash(), "cells": found}
