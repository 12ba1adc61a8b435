"""Merge results folders of one study that were made apart: other days or machines.

The merged folder has copies of the records of each run, without weights and
checkpoints, and is read like any other. The sources are only read. Torch-free.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from gpt2.plan.names import MATRIX_FILE, RUNNER_FILE
from gpt2.report.arms import config_changes, is_done
from gpt2.report.bundle import ALLOWED, OF_RUN, results_folder
from gpt2.report.checklist import ENVIRONMENT, KERNELS, kernels_of
from gpt2.report.read_results import MERGED_FILE, read_curves, read_matrix
from gpt2.report.results import MatrixResults, Run
from gpt2.report.series import ArmSeries, carried, read_series, write_series
from gpt2.report.timeline_report import runner_records
from gpt2.settings.records import identity_parts
from gpt2.settings.shown import shown_name, shown_value
from lib.atomic_files import (
    append_jsonl,
    atomic_write_bytes,
    atomic_write_json,
    finite,
)
from lib.files import hidden_name, remove_folder
from lib.jobs.run_files import SCHEMA, now
from lib.safe_json import (
    MAX_RECORDS_BYTES,
    Unusable,
    clean,
    number,
    read_plain,
)

PER_ARM = (*KERNELS, "training tokens")  # differ between arms of one machine
MAX_SHOWN = 12  # of the differences in a refusal


Sources = Mapping[str, MatrixResults]  # results folders by their names
Chosen = dict[str, tuple[str, Run]]  # source and run, by run directory


def sources_of(results: str) -> list[str]:
    """Folders or bundles in RESULTS, separated by commas, or those in a folder that has
    nothing but bundles, as of a published study; a single one, which may have a comma
    in its name, is returned as it is. Raises ValueError for commas alone."""
    folder = Path(results)
    if folder.is_dir() and not (folder / MATRIX_FILE).exists():
        bundles = [str(path) for path in sorted(folder.glob("*.zip"))]
        if bundles:
            return bundles
    if "," not in results or Path(results).exists():
        return [results]
    if names := [name for name in map(str.strip, results.split(",")) if name]:
        return names
    raise ValueError(f"RESULTS={results!r} names no folder")


def merge(names: Sequence[str], out: Path | None) -> Path:
    """Merge results folders or bundles; the merged folder.

    out: the folder to write; by default next to the first source, as NAME-merged. An
    earlier merged folder is replaced. Raises ValueError for sources that do not belong
    to one study, with the differing settings, and OSError.
    """
    places = [Path(name) for name in names]
    roots = [results_folder(path) for path in places]
    first = roots[0].resolve()
    out = first.with_name(f"{first.name}-merged") if out is None else out
    _check_places(roots, out)
    found = {name: _read(name, root) for name, root in zip(names, roots, strict=True)}
    _check_settings(found)
    chosen, notes = _choose(found)
    notes = [_summary(found, chosen), *_differences(found, chosen), *notes]
    series, added = _series(found, out)
    _write(out, found, chosen, [*notes, *added], series)
    return out


def _check_places(roots: Sequence[Path], out: Path) -> None:
    twice = [path for path, n in Counter(p.resolve() for p in roots).items() if n > 1]
    if twice:
        raise ValueError(f"RESULTS names {twice[0]} twice")
    for root in roots:
        one, other = root.resolve(), out.resolve()
        if one.is_relative_to(other) or other.is_relative_to(one):
            raise ValueError(
                f"OUT={out} and {root} are within each other: sources are not changed; "
                "choose another OUT"
            )
    if out.is_symlink() or (out.exists() and not (out / MERGED_FILE).is_file()):
        raise ValueError(
            f"OUT={out} exists, and is not a folder of merged results: choose another"
        )


def _read(label: str, root: Path) -> MatrixResults:
    matrix = read_matrix(root, curves=False)
    if not matrix.runs or any(run.run_dir == "." for run in matrix.runs):
        raise ValueError(f"{label} is not a results folder with runs")
    return matrix


# ---- one study --------------------------------------------------------------------


def _check_settings(found: Sources) -> None:
    """Raise ValueError unless configuration and arms are the same in all folders."""
    bases = [(label, matrix.base) for label, matrix in found.items() if matrix.base]
    for label, base in bases[1:]:
        if changed := config_changes(bases[0][1], base):
            _refuse("they are not of one study", bases[0][0], label, changed)
    arms: dict[str, tuple[str, Run]] = {}
    names: dict[int, tuple[str, str]] = {}
    for source, matrix in found.items():
        for run in matrix.runs:
            label, first = arms.setdefault(_arm(run), (source, run))
            if changed := config_changes(_identity(first), _identity(run)):
                what = f"{_arm(run)} has different settings"
                _refuse(what, label, source, changed)
            step, name = run.row["step"], run.run_dir.partition("/")[0]
            if step is None or run.is_control:
                continue
            label, known = names.setdefault(step, (source, name))
            if known != name:
                what = f"step {step} is not the same"
                _refuse(what, label, source, [("folder", known, name)])


def _refuse(
    what: str, one: str, other: str, changed: Iterable[tuple[str, object, object]]
) -> None:
    rows = [
        f"    {clean(shown_name(name)):<32} {clean(shown_value(old))} in {one}, "
        f"{clean(shown_value(new))} in {other}"
        for name, old, new in changed
    ]
    more = [f"    and {len(rows) - MAX_SHOWN} more"] if len(rows) > MAX_SHOWN else []
    raise ValueError(
        "\n".join([f"not merged: {what}", *rows[:MAX_SHOWN], *more])
        + "\nto see both results side by side: make compare A=... B=..."
    )


def _arm(run: Run) -> str:
    return run.run_dir.rpartition("/")[0] or run.run_dir


def _identity(run: Run) -> dict[str, Any]:
    """Identity of what a run trains and of its partner, without the seed."""
    place = run.part("resources")
    sizes = [number(place.get(n)) for n in ("batch_size", "gradient_accumulation")]
    parts = identity_parts(run.settings)
    batch = None if None in sizes else (sizes[0] or 0) * (sizes[1] or 0)
    return {
        **{name: value for name, value in parts.items() if value is not None},
        "effective_batch": batch,
        "parent": run.row["parent"],
        "control": run.is_control,
    }


# ---- which runs -------------------------------------------------------------------


def _choose(found: Sources) -> tuple[Chosen, list[str]]:
    """The best run for each run directory, and notes on those found several times."""
    copies: dict[str, list[tuple[str, Run]]] = {}
    for source, matrix in found.items():
        for run in matrix.runs:
            copies.setdefault(run.run_dir, []).append((source, run))
    chosen = {name: max(each, key=_progress) for name, each in copies.items()}
    notes = []
    for name, each in copies.items():
        done = [(source, run) for source, run in each if is_done(run)]
        if len(done) > 1 and len({repr(_result(found[s], r)) for s, r in done}) > 1:
            losses = ", ".join(f"{r.row['val_loss']} in {s}" for s, r in done)
            notes.append(
                f"{name} was finished {len(done)} times, with different results "
                f"({losses}); taken from {chosen[name][0]}"
            )
    same = sum(sum(is_done(run) for _, run in each) > 1 for each in copies.values())
    if same > len(notes):
        notes.append(f"runs finished more than once, alike: {same - len(notes)}")
    on_disk = sum(run.on_disk for each in copies.values() for _, run in each)
    if spare := on_disk - sum(run.on_disk for _, run in chosen.values()):
        notes.append(f"runs not taken, whose time counts as idle: {spare}")
    return chosen, notes


def _progress(copy: tuple[str, Run]) -> tuple[bool, bool, int]:
    run = copy[1]
    return is_done(run), run.on_disk, run.row["updates"] or 0


def _result(matrix: MatrixResults, run: Run) -> tuple[Any, ...]:
    """Losses of a run: the last one and all evaluations."""
    if not run.evals:
        read_curves(matrix, run)
    return run.row["val_loss"], [(r["step"], r.get("val_loss")) for r in run.evals]


def _summary(found: Sources, chosen: Chosen) -> str:
    counts = Counter(source for source, run in chosen.values() if run.on_disk)
    each = ", ".join(f"{counts[source]} of {source}" for source in found)
    return f"Merged runs: {each}"


# ---- what differs -----------------------------------------------------------------


def _differences(found: Sources, chosen: Chosen) -> Iterator[str]:
    """Differences of hardware, versions and kernels between the folders."""
    runs: dict[str, list[Run]] = {source: [] for source in found}
    for source, run in chosen.values():
        if is_done(run):
            runs[source].append(run)
    for name, read in ENVIRONMENT.items():
        arms: dict[str, dict[str, list[Run]]] = {}
        for label, mine in runs.items():
            for run in mine:
                key = _arm(run) if name in PER_ARM else ""
                arms.setdefault(key, {}).setdefault(label, []).append(run)
        for arm, by_label in arms.items():
            if values := _apart(by_label, read):
                yield f"different {name}{f' for {arm}' if arm else ''}: {values}"
    kernels = kernels_of(run for mine in runs.values() for run in mine)
    if differ := [name for name, values in kernels.items() if len(values) > 1]:
        yield f"different kernels: {len(differ)}, first {differ[0][:60]}"


def _apart(by_label: dict[str, list[Run]], read: Callable[[Run], str | None]) -> str:
    """Values by folder, unless they are the same in all."""
    values = {
        label: ", ".join(sorted({read(run) or "not recorded" for run in runs}))
        for label, runs in by_label.items()
    }
    if len(set(values.values())) < 2:
        return ""
    return "; ".join(f"{value} in {label}" for label, value in values.items())


def _series(found: Sources, out: Path) -> tuple[ArmSeries | None, list[str]]:
    """Series that the merged folder has: of an earlier merge into it, else of the
    sources; and a note if several sources have one."""
    if (mine := read_series(out)) is not None:
        return mine, []
    each = {label: read_series(matrix.root) for label, matrix in found.items()}
    known = {label: series for label, series in each.items() if series is not None}
    if not known:
        return None, []
    notes = []
    if len(known) > 1:
        names = ", ".join(known)
        notes = [f"{names} had a sequential family each; a new one begins here"]
    return carried([*known.values()]), notes


# ---- the merged folder ------------------------------------------------------------


def _write(
    out: Path,
    found: Sources,
    chosen: Chosen,
    notes: Sequence[str],
    series: ArmSeries | None,
) -> None:
    """Write the folder under a hidden name, then put it in place of an earlier one."""
    new = hidden_name(out)
    new.mkdir(parents=True)
    try:
        for name, (source, run) in chosen.items():
            if run.on_disk:
                _copy(found[source].root / name, new / name)
        left_out = dict.fromkeys(x for each in found.values() for x in each.left_out)
        matrix = {
            "schema": SCHEMA,
            "updated": now(),
            "base": next((x.base for x in found.values() if x.base), {}),
            "jobs": [{**run.job, "run_dir": k} for k, (_, run) in chosen.items()],
            "left_out": [{"name": x.path, "reason": x.reason} for x in left_out],
        }
        atomic_write_json(new / MATRIX_FILE, finite(matrix))
        roots = [str(matrix.root.resolve()) for matrix in found.values()]
        record = {"schema": SCHEMA, "sources": roots, "notes": list(notes)}
        atomic_write_json(new / MERGED_FILE, record)
        for line in chain.from_iterable(map(runner_records, found.values())):
            append_jsonl(new / RUNNER_FILE, line)
        if series is not None:
            write_series(new, series)
        if out.exists() and (odd := remove_folder(out, ALLOWED)):
            raise ValueError(
                f"OUT={out} has {clean(odd[0])}, which a merge did not write: nothing "
                "was changed; choose another OUT"
            )
        new.rename(out)
    finally:
        if new.exists():
            remove_folder(new, ALLOWED)


def _copy(source: Path, target: Path) -> None:
    """Copy the records of a run, as bytes; links are not followed."""
    target.mkdir(parents=True)
    for name in OF_RUN:
        path = source / name
        if path.is_file() and not path.is_symlink():
            try:
                data = read_plain(path, MAX_RECORDS_BYTES)
            except Unusable as error:
                raise ValueError(f"{path}: {error}") from None
            atomic_write_bytes(target / name, data)
