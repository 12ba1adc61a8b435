"""lib/plots.py: files that are pictures, whatever the labels hold."""

import numpy as np
import pytest
from matplotlib.figure import Figure

from lib import plots

LABELS = ["plain", "$\\frac{$", "_hidden", "日本 \u0600", "<b>&"]


def picture(path):
    """Pixels of a PNG, rows x columns x channels."""
    from matplotlib.image import imread

    return imread(path)


def lines_of(labels):
    return [
        plots.Curve(label, place, [0, 1, 2], [3, 2, 1 + place], [2, 1, 0.5], [4, 3, 3])
        for place, label in enumerate(labels)
    ]


def test_curves_of_any_labels(tmp_path):
    path = tmp_path / "deep" / "loss.png"
    plots.curves(path, lines_of(LABELS), "$x", "y$", "_$")
    pixels = picture(path)
    assert pixels.shape[0] > 400 and np.ptp(pixels[..., :3]) > 0.9


def test_a_steep_start_leaves_no_empty_half(tmp_path):
    """The losses of a short run: evaluated at its start, where the loss is far above
    the rest, and next at 40% of its length."""
    x, y = [0.0, 50.0, 100.0, 120.0], [5.4, 2.9, 2.7, 2.65]
    line = plots.Curve("a", 1, x, y, y, y)
    plots.curves(tmp_path / "loss.png", [line], "x", "y", "t")
    pixels = picture(tmp_path / "loss.png")[..., :3]
    blue = (pixels[..., 2] - pixels[..., 0]) > 0.4
    columns = np.flatnonzero(blue.any(axis=0)) / pixels.shape[1]
    assert columns.min() < 0.2 and columns.max() > 0.9


def test_ticks_of_a_short_run_are_whole_updates(tmp_path, monkeypatch):
    ticks, save = [], Figure.savefig

    def recorded(figure, *words, **options):
        save(figure, *words, **options)
        ticks.append([text.get_text() for text in figure.axes[0].get_xticklabels()])

    monkeypatch.setattr(Figure, "savefig", recorded)
    for last in (1, 3, 4000):
        x, y = [0.0, last / 2, float(last)], [3.0, 2.5, 2.4]
        plots.curves(tmp_path / "a.png", [plots.Curve("a", 1, x, y, y, y)], "x", "", "")
        assert len({*ticks[-1]}) == len(ticks[-1]) >= 2
        assert all(label.lstrip("\N{MINUS SIGN}").isdigit() for label in ticks[-1])


def test_differences_have_a_panel_of_their_own(tmp_path):
    plots.curves(tmp_path / "a.png", lines_of(["a"]), "x", "y", "t")
    two = lines_of(["a", "b"])
    plots.curves(tmp_path / "b.png", two, "x", "y", "t", two, "minus a")
    widths = [picture(tmp_path / f"{name}.png").shape[1] for name in "ab"]
    assert widths[1] > 1.4 * widths[0]


def test_forest_with_and_without_intervals(tmp_path):
    rows = [
        plots.Effect(label, 0.1 * i, (0.0, 0.2), (-0.1, 0.3), "NEUTRAL")
        for i, label in enumerate(LABELS)
    ]
    plots.forest(tmp_path / "all.png", rows, 0.003, "x", "t")
    bare = [plots.Effect("a", 0.1, None, None)]
    plots.forest(tmp_path / "one.png", bare, 0.003, "x", "t")
    heights = [picture(tmp_path / name).shape[0] for name in ("all.png", "one.png")]
    assert heights[0] > heights[1]


def test_texts_of_a_forest_are_whole_next_to_long_labels(tmp_path):
    row = plots.Effect(
        "a long name of an arm against another one " * 2, 0.1, None, None
    )
    title = "Thick: 95% interval; thin: 95% for all arms together; grey: margin"
    plots.forest(tmp_path / "x.png", [row], 0.003, title, title)
    assert (picture(tmp_path / "x.png")[:, -4:, :3] == 1).all()


def test_scatter_panels(tmp_path):
    points = [plots.Point(x, i, 1.0 + i, 3.0 - i, 0.1) for i, x in enumerate(LABELS)]
    panels = [plots.Panel("a", points), plots.Panel("b", points[:1])]
    plots.scatter(tmp_path / "x.png", panels, "y", "t")
    assert picture(tmp_path / "x.png").shape[1] > 900


def test_heat_maps_of_rows_of_any_length(tmp_path):
    one = plots.HeatMap("$a", [[0.0, 1.0, 0.5], [1.0], [None, 0.0]], 0.0, 1.0)
    flat = plots.HeatMap("flat", [[0.3] * 20], 0.3, 0.3)
    plots.heat_maps(tmp_path / "a.png", [one], "x", "y", "_")
    plots.heat_maps(tmp_path / "b.png", [one, flat], "x", "y", "$")
    narrow, wide = (picture(tmp_path / f"{name}.png") for name in "ab")
    assert wide.shape[1] > 2 * narrow.shape[1]
    dark = (narrow[..., :3] < 0.35).all(-1).any()  # a cell at the low end
    assert dark and np.ptp(narrow[..., 0]) > 0.9


def series(*xs, place=1, label="a"):
    """One value per coordinate; the first has no interval."""
    ys = [0.1 * i for i in range(len(xs))]
    low, high = ([None, *(y + d for y in ys[1:])] for d in (-0.1, 0.1))
    return plots.Series(label, place, xs, ys, low, high)


@pytest.mark.parametrize(
    ("xs", "scale"),
    [
        ((16, 32, 64), "log"),
        ((3e-4, 6e-4, 1.2e-3, 2e-3), "log"),
        ((1, 2, 3, 4), "linear"),
        ((0, 8, 64), "linear"),
        ((0.1, 0.2), "linear"),
        ((0.01, 0.1), "log"),
        (("adamw", "muon"), "category"),
        ((True, False), "category"),
        ((16, "none"), "category"),
    ],
)
def test_the_axis_of_a_sweep_fits_its_values(xs, scale):
    assert plots.Against("x", "y", [series(*xs)]).scale == scale


def test_values_against_coordinates_of_any_kind(tmp_path):
    level = plots.Series("base", 0, [], [0.2], [None], [None], is_level=True)
    for name, xs in (("log", (64, 16, 32)), ("named", ("$a", "b_", "日本"))):
        lines = [series(*xs, label=x, place=i + 1) for i, x in enumerate(LABELS)]
        panels = [
            plots.Against("$x", "y", lines, 0.003),
            plots.Against("$x", "y", [*lines, level]),
        ]
        assert panels[0].ticks == (sorted(xs) if name == "log" else [*xs])
        plots.against(tmp_path / f"{name}.png", panels, "_t$")
        pixels = picture(tmp_path / f"{name}.png")
        assert pixels.shape[1] > 900 and np.ptp(pixels[..., :3]) > 0.9


def test_frontier_is_what_nothing_beats():
    points = [(3, 1.0), (1, 3.0), (2, 4.0), (2, 2.0), (4, 1.0)]
    assert plots.frontier(points) == [(1, 3.0), (2, 2.0), (3, 1.0)]


@pytest.mark.parametrize("count", [19, 34])
def test_many_arms_are_told_apart(count):
    looks = {(plots.colour(p), str(plots.dash(p))) for p in range(min(count, 25))}
    assert len(looks) == min(count, 25)
