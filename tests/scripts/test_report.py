"""scripts/report.py as a user runs it, and what it writes."""

import json
import os
import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser

import jsonschema
import pytest

from gpt2.report.evidence import Rules
from gpt2.run.results_dir import matrix_lock
from gpt2.settings.configuration import copies, load_preset
from lib.jobs.run_files import lock
from tests.gpt2.helpers import make_config
from tests.results_factory import settings, write_matrix, write_run
from tests.scratch import ROOT
from tests.scripts.inprocess import run_script

PNG = b"\x89PNG\r\n\x1a\n"
HOSTILE = "<script>alert(1)</script>|[x](javascript:x)|`$\\frac`&\"'<b>_*# [red]x[/]"


def report(*arguments, cwd=ROOT):
    return run_script("report.py", *arguments, cwd=cwd)


def report_process(*arguments):
    return subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "report.py"), *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A matrix with every kind of trouble, and its report."""
    root = tmp_path_factory.mktemp("matrix") / "test_matrix_results_demo"
    write_matrix(root, (0, 2, 5), (1, 2, 3), gpu=True)
    write_matrix(root, (8,), (1, 2, 3), effects={8: -0.05})
    write_run(root, 29, 1)
    write_run(root, 29, 2, status="failed", failure="nan", updates=60)
    write_run(root, 29, 3, status="planned")
    (root / "stray").mkdir()
    (root / "stray" / "metrics.jsonl").write_text("what\n")
    done = report_process(root)
    assert done.returncode == 0, done.stderr
    return root, done.stdout


def test_terminal_shows_each_arm_with_its_verdict(results):
    _, printed = results
    table = printed.partition("runs finished")[0]
    rows = {line.split()[0]: line for line in table.splitlines() if line.strip()}
    assert rows["0"].rstrip().endswith("baseline")
    assert rows["2"].rstrip().endswith("UNMATCHED")
    assert rows["8"].rstrip().endswith("SUPPORTED") and "−0.04" in rows["8"]
    assert rows["29"].rstrip().endswith("INVALID") and "1/3" in rows["29"]
    assert max(map(len, printed.splitlines()[:16])) <= 120
    assert "left out: stray" in printed
    assert "13 of 15 runs finished, 1 failed, 1 planned" in printed
    assert "step29-ra-full/seed2: nan" in printed


@pytest.mark.parametrize("stale", [False, True])
def test_links_in_a_strangers_folder_lead_nothing_elsewhere(tmp_path, stale):
    """Charts are neither written nor, where there is no data for one, removed there."""
    root, theirs = tmp_path / "results", tmp_path / "theirs"
    if stale:
        write_run(root, 0, 1, status="planned")
    else:
        write_matrix(root, (0, 5), (1, 2))
    theirs.mkdir()
    names = ("loss.png", "forest.png", "pareto.png", "REPORT.md", "summary.json")
    for name in names:
        (theirs / name).write_text("theirs")
    (root / "plots").symlink_to(theirs)
    for name in ("REPORT.md", "summary.json", "report.html", "results.csv"):
        (root / name).symlink_to(theirs / name)
    done = report(root)
    assert done.returncode == 0 and "no plots: " in done.stderr, done.stderr
    assert {p.name: p.read_text() for p in theirs.iterdir()} == dict.fromkeys(
        names, "theirs"
    )
    assert (root / "plots").is_symlink() and not (root / "REPORT.md").is_symlink()


def test_terminal_names_the_files_written(results):
    root, printed = results
    listed, _, after = printed.partition(f"Written to {root}: ")[2].partition("\n")
    written = listed.split(", ")
    assert after == f"Next: make bundle RESULTS={root}\n"
    assert set(written) == {
        "plots/loss.png", "plots/forest.png", "plots/pareto.png", "report.html",
        "REPORT.md", "summary.json", "results.csv",
    }  # fmt: skip
    for name in written:
        assert (root / name).stat().st_size > 500
    for name in ("loss", "forest", "pareto"):
        assert (root / f"plots/{name}.png").read_bytes().startswith(PNG)


def test_summary_has_the_verdicts_and_fits_its_schema(results):
    root, _ = results
    summary = json.loads((root / "summary.json").read_text())
    schema = json.loads((ROOT / "gpt2" / "report" / "summary.schema.json").read_text())
    jsonschema.validate(summary, schema)
    grades = {
        c["step"]: c["at_equal_steps"]["grade"]
        for c in summary["verdicts"]["comparisons"]
    }
    assert grades[2] == "UNMATCHED" and grades[8] == "SUPPORTED"
    assert grades[29] == "INVALID" and grades[5] in ("NEUTRAL", "INCONCLUSIVE")
    assert len(summary["runs"]) == 15 and len(summary["left_out"]) == 1


def markdown_tables(text):
    """Cells by row of every table; escaped bars are not separators."""
    rows = [line for line in text.splitlines() if line.startswith("|")]
    return [re.split(r"(?<!\\)\|", row)[1:-1] for row in rows]


def test_markdown_has_tables_checklist_and_provenance(results):
    text = (results[0] / "REPORT.md").read_text()
    assert "SUPPORTED" in text and "plots/loss.png" in text
    assert "- [x] commit: 0123456789abcdef" in text
    assert "- [ ] runs: 13 of 15 finished (2 missing)" in text
    for item in (
        "uncommitted changes", "hardware", "versions", "effective batch",
        "torch.compile", "attention backend", "seeds", "data", "certificates",
    ):  # fmt: skip
        assert f"] {item}: " in text
    for link in re.findall(r"\]\((step\S+)\)", text):
        assert (results[0] / link).is_file()
    widths = {len(row) for row in markdown_tables(text)}
    assert len(widths) == 4  # four tables, each of even rows


class Page(HTMLParser):
    """Elements of a page with their attributes, and its visible text."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.text, self._silent = [], [], 0
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._silent += tag in ("script", "style")

    def handle_endtag(self, tag):
        self._silent -= tag in ("script", "style")

    def handle_data(self, data):
        if not self._silent:
            self.text.append(data)

    def attributes(self, name):
        return [attrs[name] for _, attrs in self.elements if attrs.get(name)]


def test_page_stands_alone_and_its_links_lead_somewhere(results):
    root, _ = results
    page = Page((root / "report.html").read_text())
    assert page.attributes("src") == [
        "plots/forest.png", "plots/loss.png", "plots/pareto.png",
    ]  # fmt: skip
    assert not [tag for tag, _ in page.elements if tag in ("link", "iframe", "base")]
    ids = set(page.attributes("id"))
    links = set(page.attributes("href"))
    assert any(link.endswith("seed1/manifest.json") for link in links)
    for link in links:
        where, _, anchor = link.partition("#")
        assert (root / where).is_file() if where else anchor in ids, link


def test_page_is_readable_without_script(results):
    text = " ".join(Page((results[0] / "report.html").read_text()).text)
    for word in ("SUPPORTED", "UNMATCHED", "Noise floor", "effective batch", "stray"):
        assert word in text
    assert "RA_MLA_RA" in text and "parameters differ by" in text


def test_hostile_texts_stay_texts_everywhere(tmp_path):
    for step in (0, 5):
        for seed in (1, 2):
            words = {"title": HOSTILE, "name": f"{HOSTILE[:60]}{step}"}
            job = {**words, "settings": {"model": {HOSTILE: HOSTILE}}}
            manifest = {"attention_backend": HOSTILE, "data_fingerprint": HOSTILE}
            hostile_run(tmp_path, step, seed, job, manifest)
    stray = tmp_path / "<img src=x onerror=alert(1)>"
    stray.mkdir()
    (stray / "status.json").write_text("{")
    done = report(tmp_path)
    assert done.returncode == 0, done.stderr
    source = (tmp_path / "report.html").read_text()
    page, plain = Page(source), Page(benign_page(tmp_path))
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == [tag for tag, _ in plain.elements].count("script")
    assert not {"img"} & {tag for tag, a in page.elements if "onerror" in a}
    assert "<script>alert" not in source and "<b>_*" not in source
    assert not [link for link in page.attributes("href") if "javascript" in link[:20]]
    markdown = (tmp_path / "REPORT.md").read_text()
    assert "<script" not in markdown and "<img" not in markdown
    assert "](javascript" not in markdown.replace("\\]\\(", "").replace("\\]", "")
    assert "[red]" in done.stdout.replace("\n", "") or "[red" in done.stdout


def hostile_run(root, step, seed, job, manifest):
    directory = write_run(root, step, seed, manifest=manifest)
    path = directory / "job.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **job}))


def benign_page(root):
    other = root.parent / "benign"
    write_matrix(other, (0, 5), (1, 2))
    assert report(other, "--quiet", "--no-plots").returncode == 0
    return (other / "report.html").read_text()


def test_a_copied_directory_reports_the_same_without_the_original(results, tmp_path):
    root, _ = results
    copy = tmp_path / "moved" / root.name
    shutil.copytree(root, copy)
    for name in ("summary.json", "REPORT.md", "report.html"):
        (copy / name).unlink()
    assert report(copy, "--quiet").returncode == 0
    for name in ("summary.json", "REPORT.md", "results.csv", "report.html"):
        assert (copy / name).read_bytes() == (root / name).read_bytes()


def test_the_configured_directory_is_the_default(tmp_path):
    write_matrix(tmp_path / "out", (0,), (1, 2))
    (tmp_path / "config.py").write_text("CONFIG_OUTPUT_DIR = 'out'\nORIGINS = {}\n")
    done = report("--no-html", "--no-plots", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "summary.json").is_file()
    assert not (tmp_path / "out" / "report.html").exists()
    assert not (tmp_path / "out" / "plots").exists()


def test_the_margin_is_the_one_asked_for_configured_or_recorded(tmp_path):
    """In this order; results of others are judged by what they were made with."""
    job = {"settings": settings(0) | {"matrix": {"report_margin": 0.01}}}
    out = write_matrix(tmp_path / "out", (0, 5), (1, 2), job=job)

    def margin(*arguments):
        done = report(*arguments, "--no-html", "--no-plots", "--quiet", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        rules = json.loads((out / "summary.json").read_text())["verdicts"]["rules"]
        assert f"margin of ±{rules['margin']:g} nats" in flowing(out / "REPORT.md")
        return rules["margin"]

    assert margin(out) == 0.01
    lines = "CONFIG_OUTPUT_DIR = 'out'\nCONFIG_REPORT_MARGIN = 0.02\nORIGINS = {}\n"
    (tmp_path / "config.py").write_text(lines)
    assert (margin(), margin(out)) == (0.02, 0.01)
    assert margin("--margin", "0.002") == 0.002
    job["settings"]["matrix"]["report_margin"] = "often"
    write_matrix(tmp_path / "out", (8,), (1, 2), job=job)
    assert margin(out) == Rules().margin


def test_the_looks_are_those_asked_for_configured_or_recorded(tmp_path):
    job = {"settings": settings(0) | {"matrix": {"report_looks": 4}}}
    out = write_matrix(tmp_path / "out", (0, 5), (1, 2, 3), job=job)

    def looks(*arguments):
        done = report(*arguments, "--no-html", "--no-plots", "--quiet", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        found = json.loads((out / "summary.json").read_text())["verdicts"]["rules"]
        assert f"shared by {found['looks']} planned looks" in flowing(out / "REPORT.md")
        return found["looks"]

    lines = "CONFIG_OUTPUT_DIR = 'out'\nCONFIG_REPORT_LOOKS = 3\nORIGINS = {}\n"
    (tmp_path / "config.py").write_text(lines)
    assert (looks(), looks(out), looks("--looks", "2")) == (3, 4, 2)
    refused = report("--looks", "0", cwd=tmp_path)
    assert refused.returncode == 2 and "LOOKS=0" in refused.stderr
    assert "must be a whole number from 1 to 20" in refused.stderr


def test_a_sequential_family_is_reported_recorded_and_planned(tmp_path):
    out = write_matrix(tmp_path / "out", (0, 5), (1, 2, 3), effects={5: -0.03})
    (tmp_path / "config.py").write_text("CONFIG_OUTPUT_DIR = 'out'\nORIGINS = {}\n")
    quick = ("--no-html", "--no-plots")
    done = report("--family", "sequential", *quick, cwd=tmp_path)
    assert "Sequential family: 1 test so far, of which 1 found" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    schema = json.loads((ROOT / "gpt2" / "report" / "summary.schema.json").read_text())
    jsonschema.validate(summary, schema)
    recorded = json.loads((out / "sequence.json").read_text())["tests"]
    assert summary["verdicts"]["series"]["tests"] == recorded
    assert "2 tests" not in report(*quick, cwd=tmp_path).stdout  # and it stays
    planned = run_script("plan_seeds.py", cwd=tmp_path).stdout
    assert "a level of 2.9%, that of test 2 of a sequential family" in planned
    compared = run_script("compare.py", "0", "5", cwd=tmp_path).stdout
    assert "this comparison is not one of its tests" in " ".join(compared.split())
    assert json.loads((out / "sequence.json").read_text())["tests"] == recorded


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--family", "holm"), "FAMILY=holm must be together or sequential or"),
        (("--family", "sequential", "--looks", "2"), "looks=2 with family=sequential"),
    ],
)
def test_rules_are_refused_before_there_are_results(tmp_path, words, says):
    for script in ("report.py", "plan_seeds.py"):
        refused = run_script(script, *words, cwd=tmp_path)
        assert refused.returncode == 2 and says in refused.stderr


def test_folders_are_not_merged_for_a_report_that_is_refused(tmp_path):
    for name in "ab":
        write_matrix(tmp_path / name, (0, 5), (1, 2, 3))
    refused = report("a,b", "--out", "both", "--family", "holm", cwd=tmp_path)
    assert refused.returncode == 2 and not (tmp_path / "both").exists()


def flowing(path):
    return path.read_text().replace("\n", " ")


def test_the_default_margin_is_kconfigs():
    assert make_config().values["REPORT_MARGIN"] == Rules().margin


def test_matrices_with_nothing_finished_are_reported(tmp_path):
    write_run(tmp_path, 0, 1, status="running", updates=40)
    write_run(tmp_path, 5, 1, status="planned")
    done = report(tmp_path)
    assert done.returncode == 0, done.stderr
    assert "0 of 2 runs finished, 1 interrupted, 1 planned" in done.stdout
    assert (tmp_path / "plots" / "loss.png").is_file()
    assert not (tmp_path / "plots" / "forest.png").exists()


def test_a_terminal_without_unicode_is_no_reason_to_crash(tmp_path, monkeypatch):
    write_matrix(tmp_path, (0, 5), (1, 2), effects={5: -0.02})
    # As in a locale of other files than ours, which are UTF-8 wherever they are read.
    for name, value in (
        *(("PYTHONIOENCODING", "ascii"), ("LC_ALL", "C")),
        *(("PYTHONUTF8", "0"), ("PYTHONCOERCECLOCALE", "0")),
    ):
        monkeypatch.setenv(name, value)
    done = report_process(tmp_path, "--no-plots")
    assert done.returncode == 0, done.stderr
    assert "↕" in (tmp_path / "report.html").read_text("utf-8")
    assert "baseline" in done.stdout
    assert re.search(r"-0\.0\d+ \+- \d", done.stdout), "a sign is not a question mark"


def test_stale_charts_go(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2))
    assert report(tmp_path, "--no-html").returncode == 0
    shutil.rmtree(tmp_path / "step05-ra")
    assert report(tmp_path, "--no-html").returncode == 0
    assert not (tmp_path / "plots" / "forest.png").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["absent"], "run `make` first"),
        (["empty"], "no runs in"),
        ([], "make defconfig-NAME"),
        (["empty", "--margin", "-1"], "MARGIN=-1 must be a positive loss"),
        (["empty", "--margin", "x"], "MARGIN=x must be a positive loss in nats"),
        (["empty", "--alpha", "2"], "ALPHA=2 must be"),
    ],
)
def test_nothing_to_report_is_an_error_in_words(tmp_path, arguments, words):
    (tmp_path / "empty").mkdir()
    done = report(*arguments, cwd=tmp_path)
    assert done.returncode == 2 and words in done.stderr
    assert "Traceback" not in done.stderr
    assert list((tmp_path / "empty").iterdir()) == []


def test_the_plotting_library_may_be_absent(tmp_path):
    write_matrix(tmp_path, (0, 5), (1, 2))
    hide = (
        "import sys, importlib.util as u; real = u.find_spec\n"
        "u.find_spec = lambda n, *a: None if n == 'plotly' else real(n, *a)\n"
        "import scripts.report; sys.exit(scripts.report.main(sys.argv[1:]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", hide, str(tmp_path), "--quiet", "--no-plots"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert "pip install plotly" in done.stderr
    assert (tmp_path / "summary.json").is_file()


def test_what_is_missing_comes_before_a_bundle(tmp_path, monkeypatch):
    config = load_preset("gpt2-cpu-smoke", "STEPS=0 SEEDS=1,2 OUTPUT_DIR=out")
    for name, text in copies(config).items():
        (tmp_path / name).write_text(text)
    out = write_matrix(tmp_path / "out", (0,), (1,)).relative_to(tmp_path)
    planned = write_run(tmp_path / "out", 0, 2, status="planned")
    typed = copies(load_preset("gpt2-cpu-smoke", "STEPS=0 SEEDS=1-2 OUTPUT_DIR=out"))
    (tmp_path / out / "config.py").write_text(typed["config.py"])
    monkeypatch.setenv("KABLATE_SETTINGS", "")
    quick = out, "--no-plots", "--no-html"

    def last_line():
        return report(*quick, cwd=tmp_path).stdout.splitlines()[-1]

    call = "make OUTPUT_DIR=out RA_MLA_ABLATION_STEPS=0 SEEDS=1-2"
    assert last_line() == f"Next: {call} (1 of 2 runs are missing)"
    with lock(matrix_lock(tmp_path / "out")):
        assert last_line() == "Next: make status OUTPUT_DIR=out (runs are active)"
    shutil.rmtree(planned)
    assert last_line() == "Next: make bundle RESULTS=out"
