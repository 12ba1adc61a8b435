"""Jobs and plans as data: identity, folders, job.json. Torch-free."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from itertools import zip_longest
from pathlib import Path
from typing import Any

from gpt2.plan.axes import Axis, split_names
from gpt2.plan.matrix_cells import LeftOutCell
from gpt2.plan.readers import unread
from gpt2.plan.registry import Registry
from gpt2.plan.steps import SHIPPED
from gpt2.settings.parse import settings_from_dict
from gpt2.settings.records import identity_parts
from gpt2.settings.schema import IDENTITY_PARTS, PART_OF, Settings
from lib.atomic_files import read_json
from lib.hashing import identity

JOB_SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """One training run. ``origins`` has the origin of each field's value."""

    step: int | None = None
    name: str
    title: str
    parent: int | None = None
    parent_name: str | None = None
    seed: int = 0
    settings: Settings
    origins: Mapping[str, str]
    run_dir: str
    ancestors: tuple[int, ...] = ()  # of a step, from its parent to the root
    coordinates: Mapping[str, Any] = field(default_factory=dict)  # of a sweep, by field
    tuning: bool = False  # chooses a learning rate; no verdict uses it

    @property
    def hash(self) -> str:
        """Identity of the run: what is trained, not on which machine."""
        return identity(identity_of(self.settings, self.seed))

    @property
    def stable_source(self) -> Path | None:
        """Folder of the run whose stable phase it starts with; None: no other run."""
        place = self.settings.resources.stable_from
        return Path(place).expanduser() / self.run_dir if place else None

    @property
    def is_control(self) -> bool:
        """True if it is the A/A control of a baseline."""
        return self.settings.resources.other_kernels

    @property
    def cell(self) -> str:
        """Folder of the run without its seed, shared by all seeds."""
        return self.run_dir.rpartition("/")[0]

    @property
    def arm(self) -> str:
        """Folder of the run without seed and coordinates."""
        return self.run_dir.partition("/")[0]

    def to_json(self) -> dict[str, Any]:
        data = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        data["settings"] = self.settings.to_dict()
        data["origins"] = dict(self.origins)
        data["ancestors"] = list(self.ancestors)
        for name in ("coordinates", "tuning"):
            if not data[name]:
                del data[name]
        return {"schema": JOB_SCHEMA, **data, "hash": self.hash}


@dataclass(frozen=True, slots=True)
class Plan:
    """All jobs of a configuration, in the order of the matrix.

    axes: of its sweep. parts: a plan for each point of the sweep, with the names that
    its jobs have in the whole plan. added_rates: by LR_SWEEP_EXTEND, with reasons.
    """

    jobs: tuple[Job, ...]
    left_out: tuple[LeftOutCell, ...]
    output_dir: Path
    base: Settings  # as configured, before steps and derived widths
    registry: Registry = SHIPPED
    axes: tuple[Axis, ...] = ()
    parts: tuple[Plan, ...] = ()
    added_rates: tuple[str, ...] = ()

    @property
    def points(self) -> tuple[Plan, ...]:
        """Plans that have one base for all of their jobs."""
        return self.parts or (self,)

    @property
    def longest(self) -> Settings:
        """Settings of a job with the longest context: data that has its windows has
        those of all jobs, which share everything else about their data."""
        return max((j.settings for j in self.jobs), key=lambda s: s.model.block_size)

    def base_of(self, job: Job) -> Settings:
        """Base of a job: as configured, at its point of the sweep."""
        found = (
            p.base for p in self.points for j in p.jobs if j.run_dir == job.run_dir
        )
        return next(found, self.base)


def cells(jobs: Iterable[Job]) -> list[list[Job]]:
    """The jobs by cell of the matrix, in order: those that differ by seed alone."""
    groups: dict[tuple[int | None, str], list[Job]] = {}
    for job in jobs:
        groups.setdefault((job.step, job.name), []).append(job)
    return list(groups.values())


def rounds(jobs: Iterable[Job]) -> list[list[Job]]:
    """The first seed of each cell, then the second of each, and so on: in this order a
    matrix that is stopped has few cells without their partners."""
    found = zip_longest(*cells(jobs))
    return [[job for job in seeds if job is not None] for seeds in found]


def identity_of(settings: Settings, seed: int) -> dict[str, Any]:
    """Settings that identify a run, as plain data."""
    return identity_of_json({"settings": settings.to_dict(), "seed": seed})


def identity_of_json(job: Mapping[str, Any]) -> dict[str, Any]:
    """As identity_of, from a job.json of this or an older version.

    Raises KeyError or TypeError if it lacks what identifies a run.
    """
    parts, place = identity_parts(job["settings"]), job["settings"]["resources"]
    effective = place["batch_size"] * place["gradient_accumulation"]
    # otherwise an A/A control would equal its baseline
    control = {"control": True} if place.get("other_kernels") else {}
    return {**parts, "seed": job["seed"], "effective_batch": effective, **control}


def run_dir_in(path: Path) -> str | None:
    """The run directory, relative to its results, that a job.json says; None if it
    cannot be read."""
    with suppress(OSError, ValueError):
        found = read_json(path)
        if isinstance(found, dict) and isinstance(found.get("run_dir"), str):
            return str(found["run_dir"])
    return None


def was_edited(job: Mapping[str, Any]) -> bool:
    """Whether the settings of a job.json are not those of its hash: they were edited
    since, or a version with other rules has written them.

    False for records that lack a part, or have settings that do not exist here.
    """
    settings = job.get("settings")
    parts = settings if isinstance(settings, Mapping) else {}
    for part in (*IDENTITY_PARTS, "resources"):
        known = parts.get(part)
        if not isinstance(known, Mapping):
            return False
        if part in IDENTITY_PARTS and any(PART_OF.get(name) != part for name in known):
            return False
    try:
        return identity(identity_of_json(job)) != job.get("hash")
    except (KeyError, TypeError, ValueError, OverflowError, RecursionError):
        return True


def job_from_json(data: Mapping[str, Any]) -> Job:
    """Read a job from job.json; ValueError if damaged, not ours or edited by hand."""
    if data.get("schema") != JOB_SCHEMA:
        raise ValueError(f"job of schema {data.get('schema')!r}, not {JOB_SCHEMA}")
    optional = ("ancestors", "coordinates", "tuning")
    names = [f.name for f in dataclasses.fields(Job)]
    wanted = [name for name in (*names, "hash") if name not in optional]
    missing = [name for name in wanted if name not in data]
    if missing:
        raise ValueError(f"job without {', '.join(missing)}")
    fields = {name: data[name] for name in names if name in data}
    fields["ancestors"] = tuple(data.get("ancestors", ()))
    job = Job(**{**fields, "settings": settings_from_dict(data["settings"])})
    if job.hash != data["hash"]:
        raise ValueError("the job's hash does not match its settings")
    return job


def trained_identity(job: Job) -> str:
    """Identity of what a job trains: jobs that differ only in settings that they do
    not read have the same one."""
    same = identity_of(job.settings, job.seed)
    for name in unread(job.settings):
        same[PART_OF[name]].pop(name, None)
    return identity(same)


def only(plan: Plan, patterns: str) -> Plan:
    """Restrict a plan to jobs whose run directory, or the start of it, matches one of
    the patterns, for example "adamw-*,*/seed1"; without patterns all jobs are kept.

    Raises ValueError if there is no match.
    """
    wanted = [end for text in split_names(patterns) for end in (text, f"{text}/*")]
    if not wanted:
        return plan
    names = (job.run_dir for job in plan.jobs)
    found = {name for name in names if any(fnmatchcase(name, x) for x in wanted)}
    if not found:
        some = ", ".join(job.run_dir for job in plan.jobs[:3])
        raise ValueError(f"ONLY={patterns!r} matches no job; there are {some}, ...")
    return restricted(plan, found)


def restricted(plan: Plan, run_dirs: Collection[str]) -> Plan:
    """The plan with these runs alone, and the parts that have any of them."""

    def kept(of: Plan) -> Plan:
        jobs = tuple(job for job in of.jobs if job.run_dir in run_dirs)
        return dataclasses.replace(of, jobs=jobs)

    parts = tuple(part for part in map(kept, plan.parts) if part.jobs)
    return dataclasses.replace(kept(plan), parts=parts)
