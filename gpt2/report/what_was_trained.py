"""Facts at the top of the report: model, data, training, dates, hardware.

They come from the settings and manifests of the runs. A value that differs between runs
is given as a range or as the few values that there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import UTC, datetime

from gpt2.plan.axes import label
from gpt2.report.checklist import ENVIRONMENT
from gpt2.report.lines import shared_coordinates
from gpt2.report.results import MatrixResults, Run
from gpt2.report.verdicts import Judgement
from lib import human
from lib.safe_json import clean, number

MAX_VALUES = 3
PLACE = ("hardware", "driver and runtime", "versions")


def what_was_trained(matrix: MatrixResults, judged: Judgement) -> list[tuple[str, str]]:
    """(name, value) of each fact that some run has recorded."""
    runs = [run for run in matrix.runs if run.on_disk]
    facts = [
        ("model", _model(runs)),
        ("data", _different(ENVIRONMENT["data"], runs)),
        ("training", _training(runs)),
        ("arms", _arms(judged)),
        ("started", _starts(runs)),
        ("hardware", _joined(", ", *(_different(ENVIRONMENT[x], runs) for x in PLACE))),
    ]
    return [(name, value) for name, value in facts if value]


def _model(runs: list[Run]) -> str:
    shape = _different(_shape, runs)
    parameters = _range((run.row["parameters"] for run in runs), human.count)
    return _joined("; ", shape, parameters and f"{parameters} parameters")


def _shape(run: Run) -> str | None:
    names = ("n_layer", "n_head", "n_embd", "block_size")
    sizes = [number(run.part("model").get(name)) for name in names]
    if None in sizes:
        return None
    layers, heads, width, context = sizes
    return f"{layers} layers, {heads} heads, width {width}, context {context}"


def _training(runs: list[Run]) -> str:
    updates = _range((run.row["updates"] for run in runs), "{:,.0f}".format)
    batch = _range((_batch_tokens(run) for run in runs), "{:,.0f}".format)
    tokens = _range((run.row["tokens"] for run in runs), human.count)
    return _joined(
        "; ",
        updates and f"{updates} updates" + (f" of {batch} tokens" if batch else ""),
        tokens and f"{tokens} tokens per run",
        _different(_optimizer, runs),
        _different(ENVIRONMENT["precision"], runs),
    )


def _batch_tokens(run: Run) -> float | None:
    """Tokens of one update."""
    windows = number(run.row["effective_batch"])
    length = number(run.part("model").get("block_size"))
    return windows * length if windows and length else None


def _optimizer(run: Run) -> str | None:
    optim = run.part("optim")
    name, rate = optim.get("optimizer"), number(optim.get("learning_rate"))
    return None if name is None or rate is None else f"{clean(name)} at {rate:g}"


def _arms(judged: Judgement) -> str:
    seeds = {seed for arm in judged.arms for seed in arm.seeds if seed is not None}
    shown = ", ".join(map(str, sorted(seeds)))
    number_of_arms = str(len(judged.arms))
    shared = label(shared_coordinates(judged))
    seeds_text = shown and f"seeds {clean(shown)}"
    return _joined("; ", number_of_arms, seeds_text, shared and f"all at {shared}")


def _starts(runs: list[Run]) -> str:
    """When the first and the last run began, in UTC."""
    times = sorted(filter(None, map(_start, runs)))
    if not times:
        return ""
    first, last = (f"{time:%Y-%m-%d %H:%M}" for time in (times[0], times[-1]))
    if last[:10] == first[:10]:
        last = last[11:]
    return f"{first} UTC" if first.endswith(last) else f"{first} to {last} UTC"


def _start(run: Run) -> datetime | None:
    try:
        return datetime.fromisoformat(str(run.manifest.get("started"))).astimezone(UTC)
    except (ValueError, OverflowError):
        return None


# ---- values over runs -------------------------------------------------------------


def _different(read: Callable[[Run], str | None], runs: list[Run]) -> str:
    """The different values of the runs, in order; "" if none has one."""
    values = list(dict.fromkeys(value for run in runs if (value := read(run))))
    more = len(values) - MAX_VALUES
    return " / ".join(values[:MAX_VALUES]) + (f" / {more} more" if more > 0 else "")


def _range(values: Iterable[object], show: Callable[[float], str]) -> str:
    """ "842.6k", or "759.7k to 974.2k"; "" if no value is known."""
    known = [found for value in values if (found := number(value)) is not None]
    ends = (min(known), max(known)) if known else ()
    return " to ".join(dict.fromkeys(map(show, ends)))


def _joined(separator: str, *parts: str) -> str:
    return separator.join(part for part in parts if part)
