"""report.html in a real browser: headless Chromium, driven by selenium.

Needs Debian's packages chromium and chromium-driver and selenium from PyPI, which
nothing else here does; skipped, with the reason, where one is missing.
"""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.results_factory import write_matrix, write_run

ROOT = Path(__file__).resolve().parents[2]
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
MISSING = [
    name
    for name, found in (
        ("chromium", CHROMIUM),
        ("chromedriver (Debian: chromium-driver)", DRIVER),
        ("the Python package selenium", importlib.util.find_spec("selenium")),
    )
    if not found
]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(MISSING), reason=f"without {', '.join(MISSING)}"),
]
HOSTILE = "</script><img src=x onerror='window.owned=1'><b>$x$ %{y}"


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    root = tmp_path_factory.mktemp("results")
    write_matrix(root, (0, 2, 5), (1, 2, 3), gpu=True)
    write_matrix(root, (8,), (1, 2, 3), effects={8: -0.05})
    hostile = write_run(root, 29, 1)
    job = json.loads((hostile / "job.json").read_text())
    job |= {
        "name": HOSTILE,
        "title": HOSTILE,
        "settings": {"model": {HOSTILE: HOSTILE}},
    }
    (hostile / "job.json").write_text(json.dumps(job))
    subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "report.py"), str(root), "--quiet"],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return root / "report.html"


@pytest.fixture(scope="module")
def chromium():
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = str(CHROMIUM)
    for argument in ("--headless=new", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium refuses root otherwise
    logs = {"browser": "ALL", "performance": "ALL"}
    options.set_capability("goog:loggingPrefs", logs)
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture
def browser(chromium, page):
    """The page, freshly loaded on a desktop in light colours."""
    load(chromium, page)
    return chromium


def load(driver, page, width=1280, dark=False):
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
    size = {
        "width": width,
        "height": 900,
        "deviceScaleFactor": 1,
        "mobile": width < 500,
    }
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(page.as_uri())
    driver.execute_script("try { localStorage.clear() } catch (e) {}")
    driver.get(page.as_uri())
    wait(driver, "return document.documentElement.dataset.ready === 'yes'")
    wait(driver, "return document.querySelectorAll('.chart .main-svg').length >= 6")


def wait(driver, script, seconds=20):
    end = time.monotonic() + seconds
    while not driver.execute_script(script):
        assert time.monotonic() < end, f"not reached: {script}"
        time.sleep(0.05)


def click(driver, selector):
    driver.execute_script("document.querySelector(arguments[0]).click()", selector)


def column(driver, table, heading):
    """The sort values of a column, from top to bottom."""
    return driver.execute_script(
        "const t = document.getElementById(arguments[0]);"
        "const heads = [...t.tHead.rows[0].cells].map((h) => h.textContent);"
        "const i = heads.indexOf(arguments[1]);"
        "return [...t.tBodies[0].rows].map((r) => r.cells[i].dataset.sort)",
        table,
        heading,
    )


def sort(driver, table, heading):
    driver.execute_script(
        "const t = document.getElementById(arguments[0]);"
        "[...t.tHead.rows[0].cells].find((h) => h.textContent === arguments[1])"
        ".querySelector('button').click()",
        table,
        heading,
    )


def test_no_errors_and_no_request_leaves_the_page(browser, page):
    errors = [
        x for x in browser.get_log("browser") if x["level"] in ("SEVERE", "WARNING")
    ]
    assert errors == []
    events = [
        json.loads(x["message"])["message"] for x in browser.get_log("performance")
    ]
    asked = {
        e["params"]["request"]["url"]
        for e in events
        if e["method"] == "Network.requestWillBeSent"
    }
    remote = {url for url in asked if not url.startswith(("file:", "data:", "blob:"))}
    assert page.as_uri() in asked and remote == set()


def test_tables_sort_by_number_both_ways_with_unknown_last(browser):
    sort(browser, "run-table", "val loss")
    up = [float(x) for x in column(browser, "run-table", "val loss")]
    assert up == sorted(up) and len(up) == 13
    sort(browser, "run-table", "val loss")
    assert [float(x) for x in column(browser, "run-table", "val loss")] == up[::-1]
    for _ in range(2):
        sort(browser, "verdict-table", "difference")
        values = column(browser, "verdict-table", "difference")
        assert values[-1] == "" and "" not in values[:-1]
    state = "return document.querySelectorAll('#verdict-table [aria-sort]').length"
    assert browser.execute_script(state) == 1


def test_both_verdicts_stand_side_by_side_and_other_columns_open_on_demand(browser):
    shown = (
        "return [...document.querySelectorAll('#verdict-table th')]"
        ".filter((h) => h.offsetParent !== null).map((h) => h.textContent)"
    )
    few = browser.execute_script(shown)
    assert {"verdict", "verdict, equal time"} <= set(few) and "MFU" not in few
    click(browser, "#all-columns")
    assert len(browser.execute_script(shown)) > len(few) + 10


def test_theme_goes_round_and_recolours_charts(browser):
    ink = "return getComputedStyle(document.body).color"
    chart = "return document.getElementById('loss')._fullLayout.font.color"
    light = browser.execute_script(ink), browser.execute_script(chart)
    click(browser, "#theme")
    assert (browser.execute_script(ink), browser.execute_script(chart)) == light
    click(browser, "#theme")
    dark = browser.execute_script(ink), browser.execute_script(chart)
    assert dark[0] != light[0] and dark[1] != light[1]
    click(browser, "#theme")
    assert (browser.execute_script(ink), browser.execute_script(chart)) == light


def test_dark_is_followed_from_the_system(browser, page):
    paper = "return getComputedStyle(document.body).backgroundColor"
    light = browser.execute_script(paper)
    load(browser, page, dark=True)
    assert browser.execute_script(paper) != light


def axis_title(driver, chart, axis="xaxis"):
    script = f"return document.getElementById('{chart}')._fullLayout.{axis}.title.text"
    return driver.execute_script(script)


def test_curves_turn_to_tokens_time_training_and_differences(browser):
    assert axis_title(browser, "loss") == "optimizer updates"
    for value, title in (("tokens", "tokens"), ("seconds", "minutes of training")):
        click(browser, f"input[name=axis][value={value}]")
        assert axis_title(browser, "loss") == title
    points = "return document.getElementById('loss').data.at(-1).y.length"
    evaluations = browser.execute_script(points)
    click(browser, "input[name=kind][value=train]")
    assert browser.execute_script(points) > evaluations
    click(browser, "input[name=kind][value=eval]")
    click(browser, "input[name=axis][value=step]")
    click(browser, "#relative")
    assert "minus the baseline" in axis_title(browser, "loss", "yaxis")
    base = "return document.getElementById('loss').data.find((t) => t.name).y"
    assert all(y == 0 for y in browser.execute_script(base))


def test_curves_have_bands_over_seeds(browser):
    bands = "return document.getElementById('loss').data.filter((t) => t.fill).length"
    assert browser.execute_script(bands) == 4  # the fifth arm has one seed


def test_gradient_norms_and_rates_have_a_line_for_each_run(browser):
    lines = (
        "return document.getElementById('training-chart').data"
        ".map((t) => [t.yaxis, t.legendgroup, t.y.length])"
    )
    found = browser.execute_script(lines)
    assert {axis for axis, _, _ in found} == {"y", "y2"} and len(found) == 2 * 13
    assert all(points > 1 for _, _, points in found)


def test_files_of_runs_are_seen_without_scrolling(browser):
    right = (
        "const cell = document.querySelector('#run-table td.files');"
        "return [cell.getBoundingClientRect().right,"
        " cell.closest('.scroll').getBoundingClientRect().right,"
        " [...cell.querySelectorAll('a')].map((a) => a.textContent)]"
    )
    cell, box, links = browser.execute_script(right)
    assert cell <= box and links[-1] == "log"


def test_loss_curves_leave_out_the_steep_start_at_both_axes(browser):
    curve = (
        "const chart = document.getElementById('loss');"
        "const line = chart.data.find((t) => t.name);"
        "return [chart.layout.xaxis.range, chart.layout.yaxis.range, line.x, line.y]"
    )
    (left, right), (_, high), x, y = browser.execute_script(curve)
    assert y[0] > high and left > x[0] and right >= x[-1]
    assert y[next(i for i, value in enumerate(x) if value >= left + 0.1 * x[-1])] < high


def test_arms_can_be_hidden_together(browser):
    shown = (
        "return document.getElementById('loss').data"
        ".filter((t) => t.name && t.visible === true).length"
    )
    assert browser.execute_script(shown) == 5
    click(browser, "#show-base")
    assert browser.execute_script(shown) == 1
    click(browser, "#show-all")
    assert browser.execute_script(shown) == 5


def test_forest_turns_to_equal_time(browser):
    means = "return document.getElementById('forest').data.at(-1).x"
    at_steps = browser.execute_script(means)
    click(browser, "input[name=measure][value=time]")
    at_time = browser.execute_script(means)
    assert len(at_steps) == len(at_time) == 4 and at_steps != at_time


def test_cost_and_gpu_charts_follow_their_choice(browser):
    assert axis_title(browser, "pareto") == "parameters"
    choose(browser, "cost-axis", "seconds")
    assert axis_title(browser, "pareto") == "training time (s)"
    series = "return document.getElementById('gpu-chart').data.map((t) => t.y[3])"
    first = browser.execute_script(series)
    choose(browser, "gpu-run", "1")
    assert len(first) == 4 and browser.execute_script(series) != first


def choose(driver, select, value):
    driver.execute_script(
        "const s = document.getElementById(arguments[0]); s.value = arguments[1];"
        "s.dispatchEvent(new Event('change'))",
        select,
        value,
    )


def test_configurations_of_any_two_runs_are_compared(browser):
    rows = (
        "return [...document.querySelectorAll('#config-table tbody tr')]"
        ".map((r) => [...r.cells].map((c) => c.textContent))"
    )
    choose(browser, "config-a", "0")  # step 0, seed 1
    choose(browser, "config-b", "7")  # step 5, seed 2
    found = {row[0]: row[1:] for row in browser.execute_script(rows)}
    assert found == {"RA_MLA_RA": ["n", "y"], "seed": ["1", "2"]}
    choose(browser, "config-b", "0")
    assert browser.execute_script(rows) == []


def test_numbers_lead_to_the_manifest_of_their_run(browser, page):
    link = browser.execute_script(
        "return document.querySelector('#run-table td a.plain').href"
    )
    browser.get(link)
    assert link.endswith("seed1/manifest.json") and "data_fingerprint" in (
        browser.page_source
    )


def test_hostile_texts_are_shown_not_run(browser):
    for index in range(13):
        choose(browser, "config-b", str(index))
    assert browser.execute_script("return window.owned === undefined")
    assert browser.execute_script(
        "return document.querySelector('img[onerror]') === null"
    )
    names = (
        "return [...document.querySelectorAll('.legendtext')].map((t) => t.textContent)"
    )
    assert any("<img src=x" in name for name in browser.execute_script(names))


def test_charts_are_not_offered_for_upload(browser):
    titles = browser.execute_script(
        "const all = [...document.querySelectorAll('.modebar-btn')];"
        "return all.map((b) => b.dataset.title)"
    )
    assert titles and not [t for t in titles if "Share" in t or "cloud" in t.lower()]


@pytest.mark.parametrize("width", [360, 390, 768, 1920, 2560])
def test_no_width_makes_the_page_scroll_sideways(browser, page, width):
    load(browser, page, width=width)
    inside = "return document.documentElement.scrollWidth <= window.innerWidth"
    assert browser.execute_script(inside)
    for chart in ("forest", "loss", "pareto", "gpu-chart"):
        wide = (
            f"return document.getElementById('{chart}').getBoundingClientRect().width"
        )
        assert 0.6 * min(width, 1400) < browser.execute_script(wide) <= width


def test_tables_are_there_without_script(browser, page):
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.get(page.as_uri())
        table = browser.find_element("id", "verdict-table").text
        curves = browser.find_element("id", "curves").text
    finally:
        enabled = {"value": False}
        browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", enabled)
    assert "SUPPORTED" in table and "UNMATCHED" in table
    assert "Without scripts" in curves and "minus the baseline" not in curves
