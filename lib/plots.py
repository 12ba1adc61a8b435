"""Charts as PNG for papers, by matplotlib: curves with bands, forest, scatter.

Colours are Okabe and Ito's (distinguished by all kinds of colour vision) and never the
only mark: lines differ in dashes and points in shape as well. Labels may come from
anywhere, so nothing in them is read as markup.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lib.atomic_files import atomic_write_bytes

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
    """One row of a forest plot; outer is the family-wise interval."""

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


Coordinate = bool | float | str


@dataclass(frozen=True, slots=True)
class Series:
    """Values of one arm by coordinate, with both ends of an interval (None: unknown).

    is_level: one value that does not depend on the coordinate, drawn as a level line.
    best: coordinate of a point that is drawn larger.
    """

    label: str
    place: int
    x: Sequence[Coordinate]
    y: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]
    is_level: bool = False
    best: Coordinate | None = None


@dataclass(frozen=True, slots=True)
class Against:
    """Chart of values against a coordinate. margin: half the width of the zone around 0
    that is drawn in grey; None without a zone and a line at 0. names: of coordinates
    that are not shown as they are."""

    xlabel: str
    ylabel: str
    series: Sequence[Series]
    margin: float | None = None
    names: Mapping[Coordinate, str] = field(default_factory=dict)

    @property
    def ticks(self) -> list[Coordinate]:
        """All coordinates: numbers in ascending order, others as they come."""
        found = dict.fromkeys(x for each in self.series for x in each.x)
        return sorted(found, key=lambda x: x if is_number(x) else 0)  # stable

    def tick_text(self, x: Coordinate) -> str:
        """Coordinate as in names of cells, with short numbers: y, 16, 0.0003."""
        if isinstance(x, bool):
            return "y" if x else "n"
        return self.names.get(x) or (f"{x:g}" if isinstance(x, float) else str(x))

    @property
    def scale(self) -> str:
        """ "category", or "log" for numbers that are closer to geometric than to
        arithmetic, else "linear"."""
        ticks = [float(x) for x in self.ticks if is_number(x)]
        if len(ticks) < len(self.ticks):
            return "category"
        if len(ticks) < 2 or ticks[0] <= 0:
            return "linear"
        if len(ticks) == 2:
            return "log" if ticks[1] >= 4 * ticks[0] else "linear"
        steps = np.diff(ticks), np.diff(np.log(ticks))
        unevenness = [float(step.std() / step.mean()) for step in steps]
        return "log" if unevenness[1] < unevenness[0] else "linear"


def is_number(x: Coordinate) -> bool:
    return isinstance(x, int | float) and not isinstance(x, bool)


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
    """Lines over whole numbers, with bands; to their right, if there are any,
    differences.

    The y axis leaves out the steep start, if there is one.
    """
    panels = [(lines, ylabel, title)]
    if differences:
        panels.append((differences, "", versus))
    with _drawing(path, 10.4 if differences else 6.4, 4.4) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (shown, label, heading) in zip(grid, panels, strict=True):
            for line in shown:
                _line(axes, line)
            axes.xaxis.get_major_locator().set_params(integer=True)
            _set_texts(axes, xlabel, label, heading)
        _leave_out_start(grid[0], [(line.x, line.y) for line in lines])
        _legend(figure, grid, loc="outside lower center", ncols=1 + len(panels))
        if differences:
            ends = [(c.x, end) for c in differences for end in (c.low, c.high)]
            _leave_out_start(grid[1], ends)


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
    with _drawing(path, 7.2, 1.4 + 0.36 * len(rows), title) as figure:
        axes = figure.add_subplot()
        axes.axvspan(-margin, margin, color="#999999", alpha=0.2, lw=0)
        axes.axvline(0, color=INK, lw=0.8)
        for place, row in enumerate(rows):
            if row.inner:
                axes.plot(row.inner, [place] * 2, color="#0072B2", lw=4.0)
            if row.outer:  # of the pooled test it may be the narrower one
                axes.plot(row.outer, [place] * 2, color=INK, lw=1.0)
            axes.plot([row.mean], [place], "D", color=INK, ms=4)
        axes.set_yticks(
            range(len(rows)), [_label(row.label) for row in rows], fontsize=8
        )
        axes.set_ylim(len(rows) - 0.5, -0.5)
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(len(rows)), [row.remark for row in rows], fontsize=7)
        right.tick_params(length=0)
        _set_texts(axes, "", "", "")
        # Centred on the figure: long labels of rows leave the axes little of its width.
        figure.supxlabel(xlabel, fontsize=9)


def scatter(path: Path, panels: Sequence[Panel], ylabel: str, title: str) -> None:
    """Panels side by side with one y axis, one legend, and the frontier of each."""
    with _drawing(path, 3.0 * max(2, len(panels)), 3.8, title) as figure:
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
        _legend(figure, grid[:1], loc="outside right")


def heat_maps(
    path: Path, maps: Sequence[HeatMap], xlabel: str, ylabel: str, title: str
) -> None:
    """Maps side by side, each with a scale of its own, and the number in each cell
    where there is room."""
    most = max(len(row) for one in maps for row in one.cells)
    rows = max(len(one.cells) for one in maps)
    width, height = len(maps) * max(3.4, 0.34 * most), max(2.6, 0.3 * rows + 1.2)
    with _drawing(path, width, height, title) as figure:
        places = figure.subplots(1, len(maps), squeeze=False)[0]
        for axes, one in zip(places, maps, strict=True):
            _heat_map(axes, one, most)
            axes.set(xlabel=xlabel, ylabel=ylabel)


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


def against(path: Path, panels: Sequence[Against], title: str) -> None:
    """Charts of the same arms side by side, with one legend below."""
    with _drawing(path, max(5.2, 4.6 * len(panels)), 4.2, title) as figure:
        grid = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, chart in zip(grid, panels, strict=True):
            _against(axes, chart)
        _legend(figure, [grid[-1], *grid[:-1]], loc="outside lower center", ncols=3)


def _against(axes: Any, chart: Against) -> None:
    ticks, scale = chart.ticks, chart.scale
    places = {x: i if scale == "category" else float(x) for i, x in enumerate(ticks)}
    if chart.margin is not None:
        axes.axhspan(-chart.margin, chart.margin, color="#999999", alpha=0.2, lw=0)
        axes.axhline(0, color=INK, lw=0.8)
    for one in chart.series:
        style = {"color": colour(one.place), "label": _label(one.label)}
        if one.is_level:
            axes.axhline(one.y[0], ls=DASHES[2], lw=1.4, **style)
            continue
        x = [places[value] for value in one.x]
        ends = [
            [
                0.0 if end is None else abs(end - y)
                for end, y in zip(side, one.y, strict=True)
            ]
            for side in (one.low, one.high)
        ]
        line = {"marker": SHAPES[one.place % len(SHAPES)], "linestyle": dash(one.place)}
        axes.errorbar(
            x, one.y, ends, ms=5, lw=1.4, elinewidth=1, capsize=3, **line, **style
        )
        if one.best in one.x:
            at = one.x.index(one.best)
            axes.plot([x[at]], [one.y[at]], line["marker"], color=style["color"], ms=10)
    if scale == "log":
        axes.set_xscale("log")
    axes.set_xticks(
        [*places.values()], [chart.tick_text(x) for x in ticks], minor=False
    )
    axes.set_xticks([], minor=True)
    _set_texts(axes, chart.xlabel, chart.ylabel, "")


def frontier(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other one beats in both x and y, by x (less is better)."""
    found: list[tuple[float, float]] = []
    for x, y in sorted(points):
        if not found or y < found[-1][1]:
            found.append((x, y))
    return found


@contextmanager
def _drawing(path: Path, width: float, height: float, title: str = "") -> Iterator[Any]:
    """A figure in inches, written to the path at the end of the block."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"text.parse_math": False, "font.size": 9}):
        figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained")
        if title:
            figure.suptitle(title, fontsize=10)
        yield figure
        data = io.BytesIO()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # a glyph the font has not
            figure.savefig(data, format="png")
    atomic_write_bytes(path, data.getvalue())


def _legend(figure: Any, panels: Iterable[Any], **options: Any) -> None:
    """One legend of all panels: one may have arms that another has not."""
    marks: dict[str, Any] = {}
    for axes in panels:
        for mark, text in zip(*axes.get_legend_handles_labels(), strict=True):
            marks.setdefault(text, mark)
    labels = list(marks)
    figure.legend(list(marks.values()), labels, fontsize=7, frameon=False, **options)


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
