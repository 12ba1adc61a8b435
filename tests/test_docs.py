"""Markdown files: links lead somewhere, numbers and messages are those of the code."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import lib.output
from gpt2.plan.mechanisms_page import slug
from gpt2.plan.memory import memory
from gpt2.plan.planning import make_plan
from gpt2.report.alarms import FAR
from gpt2.report.columns import COLUMNS
from gpt2.report.lines import MARKS
from gpt2.run.prepare_ahead import MOST
from gpt2.run.sharing_trial import BUSY, SECONDS
from gpt2.settings.configuration import load_preset
from gpt2.train.as_trained import LOSS_TOLERANCE, TOLERANCE
from gpt2.verify.certify_steps import COLUMNS as OF_STEPS
from gpt2.verify.certify_training import KINDS
from gpt2.verify.table import MEANINGS
from lib.alarms import SAME_POINTS, Limits
from lib.jobs.cards import STRIKES
from lib.jobs.process import Patience
from lib.jobs.pulse import LEAST
from tests.scratch import ROOT, project_files

MARKDOWN = [name for name in project_files() if name.endswith(".md")]
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
WORDS = {3: "three"}
PAGES = {
    "step": "Steps",
    "optimizer": "Optimizers",
    "pruning": "Pruning",
    "head pruning": "Head pruning",
}


@pytest.mark.parametrize("name", MARKDOWN)
def test_no_page_gives_make_an_exit_code_but_2(name: str) -> None:
    text = " ".join((ROOT / name).read_text().split())
    codes = re.findall(r"`make\b[^`]*` [^.]{0,40}?exits with (\d)", text)
    assert set(codes) <= {"2"}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


@cache
def anchors(path: Path) -> set[str]:
    """Anchors of a Markdown file, those of equal headings numbered as by GitHub."""
    found: dict[str, int] = {}
    headings = re.findall(r"^#+ (.+)$", without_code(path.read_text()), re.M)
    for heading in headings:
        name = slug(re.sub(r"[`*]", "", heading))
        found[name] = found.get(name, 0) + 1
    return {f"{n}-{i}" if i else n for n, count in found.items() for i in range(count)}


def broken(name: str, text: str) -> Iterator[str]:
    """Relative links of a file that lead nowhere."""
    for link in LINK.findall(without_code(text)):
        if re.match(r"[a-z]+:", link):
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / name).parent / target if target else ROOT / name
        if not path.exists() or (anchor and anchor not in anchors(path)):
            yield link


@pytest.mark.parametrize("name", MARKDOWN)
def test_links_lead_somewhere(name: str) -> None:
    assert [*broken(name, (ROOT / name).read_text())] == []


def test_broken_links_are_found() -> None:
    text = "[a](no.md) [b](reading.md#no) [c](#grades) [d](reading.md#grades) [e](#no)"
    assert [*broken("docs/reading.md", text)] == ["no.md", "reading.md#no", "#no"]


# ---- reading.md ------------------------------------------------------------------


@cache
def tables() -> dict[str, dict[str, list[str]]]:
    """Rows of each section of docs/reading.md, by their first cell."""
    text = (ROOT / "docs/reading.md").read_text()
    found = {}
    for section in re.split(r"^###? ", text, flags=re.M)[1:]:
        title, _, body = section.partition("\n")
        rows = (
            line.strip("|").split("|") for line in body.split("\n") if line[:1] == "|"
        )
        cells = ([cell.strip() for cell in row] for row in rows)
        found[title] = {first: rest for first, *rest in cells}
    return found


@pytest.mark.parametrize("kind", PAGES)
def test_certificates_have_the_thresholds_that_decide(kind: str) -> None:
    rows = tables()[PAGES[kind]]
    columns = OF_STEPS if kind == "step" else KINDS[kind]
    assert [*rows][2:] == [*columns]
    meanings = MEANINGS[kind]
    assert {n: rows[n][0] for n in columns} == {n: meanings[n].limit for n in columns}


def test_limits_as_trained() -> None:
    rows = tables()["As trained"]
    assert {n: rows[n] for n in TOLERANCE} == {
        n: [f"{TOLERANCE[n]:g}", f"{LOSS_TOLERANCE[n]:g}"] for n in TOLERANCE
    }


def test_columns_and_grades_of_the_report() -> None:
    rows = tables()["Columns"]
    assert [*rows][2:] == [column.heading for column in COLUMNS]
    assert {c.heading: [c.help] for c in COLUMNS}.items() <= rows.items()
    grades = tables()["Grades"]
    marks = {
        grade: row[0] for names, row in grades.items() for grade in names.split(", ")
    }
    assert MARKS.items() <= marks.items()


def test_limits_of_the_alarms() -> None:
    rows, limits = tables()["Alarms"], Limits()
    for alarm, number in (
        ("first", f"{limits.first_tolerance:.0%}"),
        ("leak", f"{limits.drop_per_update:g} nats per update"),
        ("leak", f"{limits.least_bits_per_byte:g} bits per byte"),
        ("flat", f"{limits.flat_after} updates"),
        ("flat", f"{limits.flat_share:.0%}"),
        ("diverging", f"{limits.rise:g} nats"),
        ("growing", f"{limits.norm_growth:g} times"),
        ("growing", f"{limits.stall:.0%}"),
        ("identical runs", f"{SAME_POINTS} evaluations"),
        ("baseline far above", f"{FAR:.0%}"),
    ):
        assert number in rows[alarm][0], alarm


# ---- hardware.md -----------------------------------------------------------------


def test_memory_of_the_presets() -> None:
    text = (ROOT / "docs/hardware.md").read_text()
    row = r"^\| `(gpt2-[\w-]+)` \| .*?, (\d+) GB \| (\d+) \| ([\d.]+) GiB \|$"
    rows = re.findall(row, text, re.M)
    assert len(rows) == 4
    for preset, *stated in rows:
        config = load_preset(preset)
        jobs = make_plan(config).jobs
        largest = max(memory(job.settings).total for job in jobs) / 2**30
        here = [f"{config.values[name]}" for name in ("GPU_MEMORY_GB", "BATCH_SIZE")]
        assert stated == [*here, f"{largest:.1f}"]


# ---- machines.md, troubleshooting.md ----------------------------------------------


def flowing(name: str) -> str:
    """Text of a page without line breaks."""
    return " ".join((ROOT / name).read_text().split())


def test_exit_codes() -> None:
    codes = {v for k, v in vars(lib.output).items() if k.startswith("EXIT_")}
    (stated,) = re.findall(
        r"Exit codes: (.+?)\. They are", flowing("docs/troubleshooting.md")
    )
    assert {int(code) for code in re.findall(r"\d+", stated)} == codes - {0}


def test_limits_of_the_runner() -> None:
    machines = flowing("docs/machines.md")
    hang_timeout = load_preset("gpt2-quickstart").values["HANG_TIMEOUT"]
    for text in (
        f"up to {WORDS[MOST]} more runs prepare",
        f"After {WORDS[STRIKES]} such failures",
        f"{SECONDS:g} s each",
        f"uses {BUSY:.0%} of the GPU's peak",
        f"{int(hang_timeout) // 60} minutes by default",
    ):
        assert text in machines
    trouble = flowing("docs/troubleshooting.md")
    for text in (
        f"{WORDS[STRIKES].capitalize()} runs in a row ended on that GPU",
        f"at least {LEAST / 60:g} minutes",
        f"at least {Patience.preparing_least / 60:g} minutes",
    ):
        assert text in trouble


# ---- troubleshooting.md ----------------------------------------------------------


@cache
def messages() -> str:
    """Texts of the sources but for docstrings, with values in braces as dots."""
    found = []
    for name in project_files(("gpt2", "lib", "scripts")):
        if name.endswith(".py"):
            nodes = [*ast.walk(ast.parse((ROOT / name).read_text()))]
            alone = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
            found += [text_of(node) for node in nodes if id(node) not in alone]
    return "\n".join(found)


def text_of(node: ast.AST) -> str:
    """Text of a string or f-string; "" for another node."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        parts = (text_of(part) or "..." for part in node.values)
        return "".join(parts)
    return ""


def quoted() -> list[str]:
    """Headings of docs/troubleshooting.md that are messages."""
    text = (ROOT / "docs/troubleshooting.md").read_text()
    return re.findall(r"^### `(.+)`$", text, re.M)


def test_quoted_messages_are_in_the_sources() -> None:
    assert len(quoted()) >= 20
    known = " ".join(messages().split())
    assert [message for message in quoted() if message not in known] == []
