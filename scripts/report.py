"""Report on a results directory: verdicts, tables, charts, HTML page.

The runs are only read; they may be half finished, copied, damaged or untrusted.
Exit codes: 0 written; 2 no results there, or an option that makes no sense; 6 the
disk is full.
"""

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt2.report.bundle import results_folder
from gpt2.report.evidence import Rules
from gpt2.report.merge import merge, sources_of
from gpt2.report.read_results import RUN_FIRST, read_matrix
from gpt2.report.results import MatrixResults
from gpt2.report.summary import summary_of, write_summary
from gpt2.report.timeline import Timeline
from gpt2.report.timeline_report import price_of, read_timeline, time_lines
from gpt2.report.verdict_rules import add_rule_options, asked_rules, rules_for
from gpt2.report.verdicts import Judgement, judge_and_record
from gpt2.run.last_call import last_call
from gpt2.run.results_dir import matrix_lock
from gpt2.settings.configuration import results_of
from gpt2.settings.rerun_commands import make_command, show_next
from lib.atomic_files import atomic_write_text
from lib.files import Linked
from lib.jobs.run_files import is_locked
from lib.json_answer import add_json, answer, answers_json, refuse
from lib.number_option import SHARE, add_number
from lib.output import exit_code


@answers_json("report")
def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = parser().parse_args(arguments)
        asked = asked_rules(options) | {"alpha": options.alpha}
        root = results_directory(options.results, options.config, options.out)
        matrix = read_matrix(root)
        config = None if options.results else Path(options.config)
        rules = rules_for(config, matrix.runs, **asked)
        price = price_of(config, matrix)
        if not matrix.runs:
            raise ValueError(f"no runs in {root}: {RUN_FIRST}")
        judged = judge_and_record(matrix, rules)
    except (ValueError, OSError) as error:
        return refuse("report", error)
    times = read_timeline(matrix)
    if not options.quiet:
        from gpt2.report.terminal import show

        show(matrix, judged)
        print("\n".join(time_lines(times, judged, price)))
    try:
        written = write_all(matrix, judged, options.plots, options.html, times, price)
    except OSError as error:
        return refuse("report", error)
    answer(results=str(root), written=[str(path) for path in written])
    answer(summary=summary_of(matrix, judged.to_json()))
    names = ", ".join(str(path.relative_to(root)) for path in written)
    print(f"\nWritten to {root}: {names}")
    words = [f"RESULTS={root}"] if options.results else []
    show_next(*to_continue(matrix) or (make_command("bundle", words),))
    return 0


def to_continue(matrix: MatrixResults) -> tuple[str, str] | None:
    """The command that continues what is planned or was interrupted, and why; None if
    there is nothing, or if it is unknown, as in the results of another person."""
    going = ("planned", "running", "interrupted")
    missing = sum(row["status"] in going for row in matrix.rows)
    if not missing:
        return None
    if is_locked(matrix_lock(matrix.root)):
        return make_command("status", [f"OUTPUT_DIR={matrix.root}"]), "runs are active"
    call = last_call(matrix.root)
    return (call, f"{missing} of {len(matrix.rows)} runs are missing") if call else None


def parser() -> argparse.ArgumentParser:
    rules = Rules()
    found = argparse.ArgumentParser(prog="report.py", description=__doc__)
    add = found.add_argument
    add(
        "results",
        nargs="?",
        help="results directory or bundle, or several to merge, separated by commas; "
        "default: that of --config",
    )
    merged = "folder for merged results; default: next to the first, NAME-merged"
    add("--out", type=Path, help=merged)
    add("--config", default="config.py", help="config.py whose OUTPUT_DIR is meant")
    add_rule_options(found)
    alpha = "family-wise error of the verdicts (default %(default)s)"
    add_number(found, "ALPHA", SHARE, default=rules.alpha, help=alpha)
    add("--no-plots", dest="plots", action="store_false", help="write no PNG")
    add("--no-html", dest="html", action="store_false", help="write no report.html")
    add("--quiet", action="store_true", help="print no table")
    add_json(found)
    return found


def results_directory(results: str | None, config: str, out: Path | None) -> Path:
    """The directory named, or OUTPUT_DIR of the configuration; several are merged."""
    names = [] if results is None else sources_of(results)
    if len(names) > 1:
        folder = merge(names, out)
        print(f"{len(names)} results folders are merged in {folder}")
        return folder
    if out is not None:
        raise ValueError("OUT is the folder of several merged results: RESULTS=a,b")
    if names:
        folder = results_folder(Path(names[0]))
        if folder != Path(names[0]):
            print(f"{names[0]} is unpacked in {folder}")
        return folder
    found = results_of(config)
    if found is None:
        raise ValueError(
            f"there is no {config}: name a results directory, or load a preset with "
            "`make defconfig-NAME`"
        )
    return found


def write_all(
    matrix: MatrixResults,
    judged: Judgement,
    plots: bool,
    html: bool,
    times: Timeline,
    price: float | None = None,
) -> list[Path]:
    """Every file of the report; the paths written."""
    from gpt2.report.markdown import markdown_report

    root, name = matrix.root, matrix.root.resolve().name
    written: list[Path] = []
    if plots:
        from gpt2.report.plots import write_plots

        try:
            written += write_plots(judged, root / "plots")
        except Linked as error:
            print(f"report: no plots: {error}", file=sys.stderr)
    if html:
        written += write_page(matrix, judged, name, times, price)
    lines = time_lines(times, judged, price)
    atomic_write_text(root / "REPORT.md", markdown_report(matrix, judged, name, lines))
    write_summary(matrix, judged.to_json())
    return [*written, *(root / n for n in ("REPORT.md", "summary.json", "results.csv"))]


def write_page(
    matrix: MatrixResults,
    judged: Judgement,
    name: str,
    times: Timeline,
    price: float | None,
) -> list[Path]:
    """Write report.html, or print on standard error why there is none."""
    from gpt2.report.html import PlotlyMissing, html_report

    path = matrix.root / "report.html"
    try:
        atomic_write_text(path, html_report(matrix, judged, name, times, price))
    except PlotlyMissing as error:
        print(f"report: {error}", file=sys.stderr)
        return []
    return [path]


if __name__ == "__main__":
    sys.exit(exit_code(main))
