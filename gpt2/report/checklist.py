"""Publishing checklist: what a reader needs to trust and reproduce a number.

An item is complete when every finished run has recorded it and, where all runs must
agree, they do. Items come from the manifests written in training, and from audits.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gpt2.audit.finding import FAILED, PASSED
from gpt2.audit.stamp import audit_state
from gpt2.report.alarms import all_alarms
from gpt2.report.arms import is_done
from gpt2.report.controls import so_far
from gpt2.report.pairing import recorded, unpaired_runs
from gpt2.report.results import MatrixResults, Run
from gpt2.report.verdicts import Judgement
from lib import stats
from lib.safe_json import as_dict, clean, number

NOT_RECORDED = "not recorded"
MAX_SHOWN = 4


@dataclass(frozen=True, slots=True)
class Item:
    """One line of the list; ``remark`` says what is missing or wrong."""

    name: str
    value: str
    remark: str = ""

    @property
    def ok(self) -> bool:
        return not self.remark


def checklist(matrix: MatrixResults, judged: Judgement) -> list[Item]:
    """All items for the finished runs of a matrix and its judgement."""
    runs = [run for run in matrix.runs if is_done(run)]
    if not runs:
        return [Item("runs", "none finished", "nothing to publish yet")]
    return [
        _completeness(matrix, runs),
        *(
            _item(name, _runs_for(name, runs), read)
            for name, read in ENVIRONMENT.items()
        ),
        _work_tree(runs),
        _seeds(matrix),
        _pairing(runs),
        _certificates(runs),
        _as_trained(runs),
        _kernels(runs),
        _control(runs, judged),
        _alarms(matrix, judged),
        _audits(matrix, runs),
    ]


def _runs_for(name: str, runs: list[Run]) -> list[Run]:
    """Runs that an item applies to: an A/A control uses other kernels on purpose."""
    kept = [run for run in runs if not run.is_control]
    return kept if kept and name in KERNELS else runs


def _completeness(matrix: MatrixResults, done: list[Run]) -> Item:
    value = f"{len(done)} of {len(matrix.runs)} finished"
    missing = len(matrix.runs) - len(done)
    return Item("runs", value, f"{missing} missing" if missing else "")


def _item(name: str, runs: list[Run], read: Callable[[Run], str | None]) -> Item:
    values = Counter(read(run) for run in runs)
    missing = values.pop(None, 0)
    if not values:
        return Item(name, NOT_RECORDED, "not recorded in any manifest")
    remark = ""
    if missing:
        remark = f"not recorded by {missing} of {len(runs)} runs"
    elif name not in MAY_DIFFER and len(values) > 1:
        remark = "the runs differ"
    return Item(name, _listing(values, len(runs)), remark)


def _listing(values: Counter[Any], total: int, noun: str = "run") -> str:
    parts = [
        str(value) if count == total else f"{value} ({count} {noun}{'s' * (count > 1)})"
        for value, count in values.most_common()
    ]
    return _first(parts)


def _first(parts: list[str]) -> str:
    more = len(parts) - MAX_SHOWN
    return "; ".join([*parts[:MAX_SHOWN], *[f"and {more} more"] * (more > 0)])


# ---- recorded by one run; None if it is not -------------------------------------


def _field(data: dict[str, Any], name: str) -> str | None:
    value = data.get(name)
    if isinstance(value, bool):
        return "on" if value else "off"
    is_plain = isinstance(value, str | int | float) and value != ""
    return clean(value) if is_plain else None


def _attempts(run: Run) -> list[dict[str, Any]]:
    """Conditions of each attempt at a run, in their order."""
    manifest = run.manifest
    device = as_dict(manifest.get("device"))
    first = {  # of a manifest that is older than "began", what it has
        **{k: v for k, v in manifest.items() if isinstance(v, str | int | bool)},
        **{k: device.get(k) for k in ("backend", "runtime", "driver")},
        "float32_products": device.get("float32_products"),
        "device": device.get("name"),
        **as_dict(manifest.get("began")),
        **as_dict(manifest.get("provenance")),
    }
    resumed = manifest.get("resumed")
    return [first, *map(as_dict, resumed if isinstance(resumed, list) else [])]


def _of_each(
    read: Callable[[dict[str, Any]], str | None],
) -> Callable[[Run], str | None]:
    """Function that reads a value of each attempt: one, or all in their order."""

    def found(run: Run) -> str | None:
        values = dict.fromkeys(map(read, _attempts(run)))
        return ", then ".join(x for x in values if x) or None

    return found


def _hardware(attempt: dict[str, Any]) -> str | None:
    name, ranks = _field(attempt, "device"), number(attempt.get("world_size")) or 1
    return None if name is None else f"{ranks} x {name}"


def _runtime(attempt: dict[str, Any]) -> str | None:
    found = [_field(attempt, name) for name in ("backend", "runtime", "driver")]
    return " ".join(x for x in found if x and x != "-") or None


def _versions(attempt: dict[str, Any]) -> str | None:
    packages = as_dict(attempt.get("packages"))
    versions = {"python": _field(attempt, "python")}
    versions |= {clean(k): _field(packages, k) for k in ("torch", "triton", "numpy")}
    return ", ".join(f"{k} {v}" for k, v in versions.items() if v) or None


def _split(attempt: dict[str, Any]) -> str | None:
    names = ("micro_batch", "accumulation", "world_size")
    parts = [_field(attempt, name) for name in names]
    return None if None in parts else " x ".join(x or "?" for x in parts)


def _data(run: Run) -> str | None:
    settings = run.part("data")
    fingerprint = _field(run.manifest, "data_fingerprint")
    if fingerprint is None:
        return None
    names = [_field(settings, "dataset"), _field(settings, "tokenizer")]
    return " ".join([*(x for x in names if x), f"({fingerprint})"])


def _length(run: Run) -> str | None:
    """Tokens, or the time budget of a run that ends by the clock."""
    budget = _field(run.part("optim"), "time_budget")
    return _field(run.row, "tokens") if budget is None else f"those of {budget}"


ENVIRONMENT: dict[str, Callable[[Run], str | None]] = {
    "commit": _of_each(lambda attempt: _field(as_dict(attempt.get("git")), "sha")),
    "hardware": _of_each(_hardware),
    "driver and runtime": _of_each(_runtime),
    "versions": _of_each(_versions),
    "effective batch": lambda run: _field(run.manifest, "effective_batch"),
    "micro batch x accumulation x ranks": _of_each(_split),
    "precision": lambda run: _field(run.part("optim"), "mixed_precision"),
    "fp32 products": _of_each(partial(_field, name="float32_products")),
    "torch.compile": _of_each(partial(_field, name="compile")),
    "attention backend": _of_each(partial(_field, name="attention_backend")),
    "MLP backend": _of_each(partial(_field, name="mlp_backend")),
    "data": _data,
    "training tokens": _length,
}
KERNELS = ("torch.compile", "attention backend", "MLP backend")
MAY_DIFFER = ("micro batch x accumulation x ranks", "attention backend", "MLP backend")


# ---- further items --------------------------------------------------------------


def _work_tree(runs: list[Run]) -> Item:
    trees = [[as_dict(x.get("git")) for x in _attempts(run)] for run in runs]
    states = [_is_dirty(of_run) for of_run in trees]
    sums = {clean(git.get("diff_sha256") or "")[:12] for x in trees for git in x} - {""}
    if all(state is False for state in states):
        return Item("uncommitted changes", "none")
    if not any(states):
        return Item("uncommitted changes", NOT_RECORDED, "not recorded in any manifest")
    dirty = f"in {sum(state is True for state in states)} runs"
    named = f", diff sha256 {', '.join(sorted(sums)[:MAX_SHOWN])}" if sums else ""
    return Item(
        "uncommitted changes",
        dirty + named,
        "the commit does not fully identify the code",
    )


def _is_dirty(trees: list[dict[str, Any]]) -> bool | None:
    """Whether any attempt had uncommitted changes; None if that is not recorded."""
    states = [git.get("dirty") for git in trees if git]
    return True if True in states else (states or [None])[0]


def _seeds(matrix: MatrixResults) -> Item:
    arms: dict[tuple[Any, str], list[Any]] = {}
    for run in matrix.runs:
        if is_done(run):
            key = (run.row["step"], run.row["name"])
            arms.setdefault(key, []).append(run.seed)
    listed = Counter(", ".join(map(str, sorted(seeds))) for seeds in arms.values())
    fewest = min(len(seeds) for seeds in arms.values())
    few = f"a verdict needs at least {stats.MIN_SEEDS} seeds"
    remark = few if fewest < stats.MIN_SEEDS else ""
    return Item("seeds", _listing(listed, len(arms), "arm"), remark)


def _pairing(runs: list[Run]) -> Item:
    """Pairing of all runs of a seed, not only of those that are compared."""
    known = [run for run in runs if recorded(run)]
    if not known:
        return Item("pairing", NOT_RECORDED, "no manifest has fingerprints of batches")
    if wrong := unpaired_runs(known):
        run_dir, reasons = next(iter(wrong.items()))
        more = f", and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        remark = f"{clean(run_dir)}: {'; '.join(reasons)}{more}"
        return Item("pairing", f"{len(wrong)} of {len(known)} runs differ", remark)
    counts = (len(as_dict(recorded(run)["batches"])) for run in known)
    value = (
        f"batches (of {min(counts)} updates or more), validation windows and shared "
        "initial weights of each seed are the same"
    )
    silent = len(runs) - len(known)
    remark = f"{silent} of {len(runs)} runs have no fingerprints" if silent else ""
    return Item("pairing", value, remark)


def _audits(matrix: MatrixResults, runs: list[Run]) -> Item:
    """State of `make audit` for each run in its present form."""
    states = Counter(audit_state(matrix.root / run.run_dir) for run in runs)
    value, remark = _listing(states, len(runs)), ""
    if states[FAILED]:
        remark = f"{states[FAILED]} of {len(runs)} runs report wrong numbers"
    elif set(states) != {PASSED}:
        remark = "not every number was recomputed: run `make audit`"
    return Item("audit", value, remark)


def _certificates(runs: list[Run]) -> Item:
    states = Counter(run.row["verified"] or NOT_RECORDED for run in runs)
    passed = set(states) == {"passed"}
    remark = "" if passed else "not every step was verified: run `make verify`"
    return Item("certificates", _listing(states, len(runs)), remark)


def _as_trained(runs: list[Run]) -> Item:
    """Result of the certificate in gpt2/train/as_trained.py over all runs."""
    checked = [run for run in runs if run.manifest.get("as_trained")]
    found = {run.run_dir: number(run.row["as_trained"]) for run in checked}
    known = {name: value for name, value in found.items() if value is not None}
    if not known:
        return Item("as trained", NOT_RECORDED, "no gradient was compared (AS_TRAINED)")
    worst = max(known, key=lambda name: known[name])
    left = len(runs) - len(known)
    return Item(
        "as trained",
        f"gradients within {known[worst]:.1e} of the formulas (worst: {worst})",
        f"{left} of {len(runs)} runs were not compared" if left else "",
    )


def _kernels(runs: list[Run]) -> Item:
    """Whether runs used the same kernels where possible: the same backends for the same
    request, the same tiles and algorithms for the same product."""
    if not any("kernels" in run.manifest for run in runs):
        return Item("kernels", NOT_RECORDED, "not recorded in any manifest")
    values = kernels_of(runs)
    untimed = sum(bool(run.manifest.get("untimed_kernels")) for run in runs)
    differ = [name for name, found in values.items() if len(found) > 1]
    remarks = []
    if differ:
        remarks.append(f"{len(differ)} differ between runs, first {differ[0][:60]}")
    if untimed:
        remarks.append(f"{untimed} runs used kernels that were not timed")
    shared = f"{len(values)} chosen" if values else "nothing to choose from"
    return Item("kernels", shared, "; ".join(remarks))


def kernels_of(runs: Iterable[Run]) -> dict[str, set[str]]:
    """The different kernels of the runs, by what each was chosen for; an A/A control
    has others on purpose, and does not count."""
    found: dict[str, set[str]] = {}
    for run in runs:
        kernels = {} if run.is_control else as_dict(run.manifest.get("kernels"))
        for name, value in kernels.items():
            found.setdefault(clean(name), set()).add(str(value))
    return found


def _control(runs: list[Run], judged: Judgement) -> Item:
    """The A/A control, needed on GPUs, where kernels are chosen by timing."""
    if not judged.controls:
        backends = {as_dict(run.manifest.get("device")).get("backend") for run in runs}
        needed = bool(judged.comparisons) and backends != {"cpu"}
        remark = "numerical noise was not measured: set CONTROLS=y" * needed
        return Item("A/A control", "none", remark)
    control = judged.controls[0]
    value = so_far(control) if control.differences else "not run"
    return Item("A/A control", value, "; ".join(control.reasons))


def _alarms(matrix: MatrixResults, judged: Judgement) -> Item:
    found = all_alarms(matrix, judged.arms)
    if not found:
        return Item("alarms", "none")
    return Item("alarms", f"{len(found)}", _first(found))
