"""Charts as PNG for papers, by matplotlib: curves with bands, forest, scatter.

Colours are Okabe and Ito's (distinguished by all kinds of colour vision) and never the
only mark: lines differ in dashes and points in shape as well. Labels may come from
anywhere, so nothing in them is read as markup.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lib.atomic_files import atomic_write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

INK = "#1a1a1a"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES: tuple[Any, ...] = ("-", (0, (5, 2)), (0, (1.5, 1.5)), (0, (6, 2, 1.5, 2)))
SHAPES = ("o", "s", "^", "D", "v", "P", "X")
DPI = 160
MOST_NUMBERS = 16  # columns of a heat map with numbers in its cells
Points = tuple[Sequence[float], Sequence[float]]  # x and y of a curve


@dataclass(frozen=True, slots=True)
class Curve:
    """One line and its band; place 0 is drawn as the baseline, in ink."""

    label: str
    place: int
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True, slots=True)
class Effect:
    """One row of a forest plot; outer is the wider, family-wise interval."""

    label: str
    mean: float
    inner: tuple[float, float] | None
    outer: tuple[float, float] | None
    remark: str = ""


@dataclass(frozen=True, slots=True)
class Point:
    """One mark of a scatter plot, with the spread of y if there is one."""

    label: str
    place: int
    x: float
    y: float
    spread: float = 0.0


@dataclass(frozen=True, slots=True)
class Panel:
    """One scatter plot among several that share y."""

    xlabel: str
    points: Sequence[Point]


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Rows of cells, None where there is nothing, and the ends of the colours."""

    title: str
    cells: Sequence[Sequence[float | None]]
    low: float
    high: float


def colour(place: int) -> str:
    return INK if place == 0 else COLOURS[(place - 1) % len(COLOURS)]


def dash(place: int) -> Any:
    return (
        DASHES[0] if place == 0 else DASHES[(place - 1) // len(COLOURS) % len(DASHES)]
    )


def curves(
    path: Path,
    lines: Sequence[Curve],
    xlabel: str,
    ylabel: str,
    title: str,
    differences: Sequence[Curve] = (),
    versus: str = "",
) -> None:
    """Lines with bands; to their right, if there are any, the differences to one.

    The y axis leaves out the steep start, if there is one.
    """
    panels = [(lines, ylabel, title)]
    if differences:
        panels.append((differences, "", versus))
    with _plain_text():
        figure = _figure(10.4 if differences else 6.4, 4.4)
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (shown, label, heading) in zip(grid, panels, strict=True):
            for line in shown:
                _line(axes, line)
            _set_texts(axes, xlabel, label, heading)
        _leave_out_start(grid[0], [(line.x, line.y) for line in lines])
        grid[0].legend(fontsize=7, frameon=False, ncols=1 + len(lines) // 12)
        if differences:
            ends = [(c.x, end) for c in differences for end in (c.low, c.high)]
            _leave_out_start(grid[1], ends)
        _save(figure, path)


def rates(
    path: Path,
    lines: Sequence[Curve],
    marks: Sequence[tuple[int, float, float]],
    xlabel: str,
    ylabel: str,
    title: str,
) -> None:
    """Lines with bands over a logarithmic x axis, and marks (place, x, y) on them."""
    with _plain_text():
        figure = _figure(6.4, 4.4)
        axes = figure.add_subplot()
        axes.set_xscale("log")
        for line in lines:
            _line(axes, line)
            axes.plot(line.x, line.y, ".", color=colour(line.place), ms=5)
        for place, x, y in marks:
            axes.plot([x], [y], SHAPES[place % len(SHAPES)], color=colour(place), ms=9)
        values = sorted({x for line in lines for x in line.x})
        axes.set_xticks(values, [f"{x:g}" for x in values], fontsize=7)
        axes.set_xticks([], minor=True)
        _set_texts(axes, xlabel, ylabel, title)
        axes.legend(fontsize=7, frameon=False)
        _save(figure, path)


def _line(axes: Any, line: Curve) -> None:
    tint = colour(line.place)
    axes.fill_between(line.x, line.low, line.high, color=tint, alpha=0.18, lw=0)
    style = {"linestyle": dash(line.place), "label": _label(line.label)}
    axes.plot(line.x, line.y, color=tint, lw=1.6, **style)


def _leave_out_start(axes: Any, curves: Sequence[Points]) -> None:
    """Limit y to the last three quarters of the curves, and x to where they are in
    these limits."""
    late = [y for _, ys in curves for y in ys[len(ys) // 4 :] if y == y]
    if late:
        room = 0.05 * (max(late) - min(late)) or 0.05
        low, high = min(late) - room, max(late) + room
        left = min(_enters(points, low, high) for points in curves)
        right = max(xs[-1] for xs, _ in curves)
        margin = 0.02 * (right - left) or 0.5
        axes.set_ylim(low, high)
        axes.set_xlim(left - margin, right + margin)


def _enters(points: Points, low: float, high: float) -> float:
    """The smallest x at which a curve is between low and high; its first if it never
    is."""
    xs, ys = points
    first = next((i for i, y in enumerate(ys) if low <= y <= high), 0)
    if first == 0:
        return xs[0]
    edge, before = high if ys[first - 1] > high else low, ys[first - 1]
    share = (edge - before) / (ys[first] - before)
    return xs[first - 1] + share * (xs[first] - xs[first - 1])


def forest(
    path: Path, rows: Sequence[Effect], margin: float, xlabel: str, title: str
) -> None:
    """Means with intervals, one row each, over the zone of no importance."""
    with _plain_text():
        figure = _figure(7.2, 1.4 + 0.36 * len(rows))
        axes = figure.add_subplot()
        axes.axvspan(-margin, margin, color="#999999", alpha=0.2, lw=0)
        axes.axvline(0, color=INK, lw=0.8)
        for place, row in enumerate(rows):
            if row.outer:
                axes.plot(row.outer, [place] * 2, color="#0072B2", lw=1.0)
            if row.inner:
                axes.plot(row.inner, [place] * 2, color="#0072B2", lw=3.0)
            axes.plot([row.mean], [place], "D", color=INK, ms=4)
        axes.set_yticks(
            range(len(rows)), [_label(row.label) for row in rows], fontsize=8
        )
        axes.set_ylim(len(rows) - 0.5, -0.5)
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(len(rows)), [row.remark for row in rows], fontsize=7)
        right.tick_params(length=0)
        _set_texts(axes, xlabel, "", title)
        _save(figure, path)


def scatter(path: Path, panels: Sequence[Panel], ylabel: str, title: str) -> None:
    """Panels side by side with one y axis, one legend, and the frontier of each."""
    with _plain_text():
        figure = _figure(3.0 * max(2, len(panels)), 3.8)
        grid = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(grid, panels, strict=True):
            for p in panel.points:
                style = {"fmt": SHAPES[p.place % len(SHAPES)], "label": _label(p.label)}
                axes.errorbar(p.x, p.y, p.spread, color=colour(p.place), ms=6, **style)
            front = frontier([(p.x, p.y) for p in panel.points])
            axes.step(
                *zip(*front, strict=True), where="post", color=INK, lw=0.6, ls=":"
            )
            _set_texts(axes, panel.xlabel, "", "")
        grid[0].set_ylabel(ylabel)
        figure.suptitle(title, fontsize=10)
        shown = dict(zip(*reversed(grid[0].get_legend_handles_labels()), strict=True))
        marks, labels = list(shown.values()), list(shown.keys())
        where: Any = "outside right"
        figure.legend(marks, labels, loc=where, fontsize=7, frameon=False)
        _save(figure, path)


def heat_maps(
    path: Path, maps: Sequence[HeatMap], xlabel: str, ylabel: str, title: str
) -> None:
    """Maps side by side, each with a scale of its own, and the number in each cell
    where there is room."""
    most = max(len(row) for one in maps for row in one.cells)
    rows = max(len(one.cells) for one in maps)
    with _plain_text():
        figure = _figure(len(maps) * max(3.4, 0.34 * most), max(2.6, 0.3 * rows + 1.2))
        places = figure.subplots(1, len(maps), squeeze=False)[0]
        for axes, one in zip(places, maps, strict=True):
            _heat_map(axes, one, most)
            axes.set(xlabel=xlabel, ylabel=ylabel)
        figure.suptitle(title, fontsize=10)
        _save(figure, path)


def _heat_map(axes: Any, one: HeatMap, columns: int) -> None:
    empty = float("nan")
    rows = [[*row, *[None] * (columns - len(row))] for row in one.cells]
    grid = [[empty if x is None else x for x in row] for row in rows]
    low, high = one.low, one.high if one.high > one.low else one.low + 1.0
    shown = axes.imshow(grid, "viridis", aspect="auto", vmin=low, vmax=high)
    axes.figure.colorbar(shown, ax=axes)
    axes.set_title(one.title, fontsize=9)
    axes.set_xticks(range(0, columns, 1 + columns // 16))
    axes.set_yticks(range(0, len(grid), 1 + len(grid) // 16))
    for y, row in enumerate(rows if columns <= MOST_NUMBERS else []):
        for x, value in enumerate(row):
            if value is not None:
                ink = INK if value > (low + high) / 2 else "white"
                axes.text(x, y, f"{value:.2f}", color=ink, ha="center", fontsize=6)


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in both x and y, by x (less is better)."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not found or y < found[-1][1]:
            found.append((x, y))
    return found


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=DPI, layout="constrained")


def _plain_text() -> AbstractContextManager:
    import matplotlib

    return matplotlib.rc_context({"text.parse_math": False, "font.size": 9})


def _label(text: str) -> str:
    """A legend hides labels that begin with an underscore."""
    return text if not text.startswith("_") else f" {text}"


def _set_texts(axes: Any, xlabel: str, ylabel: str, title: str) -> None:
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)
    axes.set_title(title, fontsize=10)
    axes.grid(alpha=0.25, lw=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


def _save(figure: Figure, path: Path) -> None:
    data = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a glyph the font has not
        figure.savefig(data, format="png")
    atomic_write_bytes(path, data.getvalue())
