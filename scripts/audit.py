"""Audit finished runs: recompute their results with independent code.

Uses metrics, the prepared text and the exported weights. Prints each figure as reported
and as recomputed, and writes audit.json into each run's folder, which the report shows.
The files may be copied, damaged or untrusted, and are never executed. A run that was
made on a GPU can be audited without one, within the tolerance of its number format; a
window of a 124M model then takes seconds, and `make audit WINDOWS=16` scores only 16 of
them, within a wider tolerance.
Exit codes: 0 everything that can be checked agrees; 1 something differs; 2 no such run,
or none is finished; 3 nothing differs, but something needed is missing, or WINDOWS are
too few for an estimate of the loss; 6 the disk is full.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.audit.evidence import NothingToAudit
from gpt2.audit.finding import FAILED, INCOMPLETE, NOT_CHECKED, AuditLine
from gpt2.audit.options import AuditOptions
from gpt2.audit.show import show_audit
from gpt2.audit.stamp import write_audit
from gpt2.report.named_runs import (
    Chosen,
    choose_runs,
    keep_for_report,
    show_next_report,
    split_run,
)
from gpt2.settings.checks import naming
from gpt2.settings.configuration import load_or_defaults, refuse_unread
from gpt2.settings.parse import settings_from
from gpt2.settings.schema import SYMBOL_OF
from lib.atomic_files import DiskFull
from lib.jobs.import_gc import collector_at_rest
from lib.json_answer import add_json, answer, answers_json, refuse
from lib.kconfig.dotconfig import COMMAND_LINE
from lib.number_option import COUNT_OR_0, add_number
from lib.output import EXIT_FAILED, EXIT_INTERRUPTED, exit_code
from lib.terminal import report_console, say_doing

if TYPE_CHECKING:
    from gpt2.audit.run import Audit

CODES = {FAILED: EXIT_FAILED, INCOMPLETE: EXIT_INTERRUPTED}  # 3: not all checked
READ = ("DATA_DIR", "DEVICE", "OUTPUT_DIR")  # the settings that have an effect


@answers_json("audit")
def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = parser().parse_args(arguments)
        request, results = prepare(options)
        chosen = Chosen()
        for name in split_run(options.run):
            chosen.join(choose_runs(name, options.results or results))
        if not chosen.done:
            states = ", ".join(f"{path}: {state}" for path, state in chosen.others[:3])
            raise ValueError(f"none of these runs is finished: {states}")
        how = request()
    except (ValueError, OSError) as error:
        return refuse("audit", error)
    try:
        done = list(carry_out(chosen, how, options))
    except DiskFull as error:
        return refuse("audit", error)
    audits = [audit for audit, _ in done]
    answer(
        runs=[audit.to_json() for audit in audits],
        unfinished=[{"path": str(p), "status": state} for p, state in chosen.others],
        left_out=[asdict(item) for item in chosen.left_out],
    )
    print_rest(chosen)
    kept = [audit.run_dir for audit, is_kept in done if is_kept]
    show_next_report(kept, options.config, "its checklist has the audits")
    codes = {CODES.get(audit.verdict, 0) for audit in audits}
    return next((code for code in CODES.values() if code in codes), 0)


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="audit.py", description=__doc__)
    add = found.add_argument
    names = "folder or glob of runs, or a step or name of the results (5, ra, 5:1337)"
    rest = "several separated by commas; default: all results"
    add("run", nargs="?", default="", help=f"{names}; {rest}")
    add("--results", type=Path, help="results folder; default: that of --config")
    add("--config", type=Path, default=Path("config.py"), help="default: config.py")
    overrides = "settings of text and device, for example 'DATA_DIR=data DEVICE=cpu'"
    add("--overrides", default="", help=overrides)
    windows = "score this many of the validation windows (default: all)"
    add_number(found, "WINDOWS", COUNT_OR_0, default=0, help=windows)
    add("--all", action="store_true", help="all findings, also for more than one run")
    add("--no-write", action="store_true", help="write no audit.json")
    add_json(found)
    return found


def prepare(
    options: argparse.Namespace,
) -> tuple[Callable[[], AuditOptions], Path | None]:
    """Function that returns the audit options (it imports torch), and the configured
    results, if there is a configuration.

    Raises ValueError or OSError for an invalid configuration.
    """
    refuse_unread(options.overrides, READ)
    config = load_or_defaults(options.config, options.overrides)
    resources = settings_from(config).resources
    data_dir = Path(resources.data_dir).expanduser()
    typed = config.origin(SYMBOL_OF["data_dir"]) == COMMAND_LINE
    named = config.origin(SYMBOL_OF["output_dir"]) == COMMAND_LINE
    results = None
    if named or options.config.exists():
        results = options.config.parent / resources.output_dir

    def request() -> AuditOptions:
        with collector_at_rest():
            from lib.gpu.device import select_device

        with naming("DEVICE"):
            device = select_device(resources.device).device
        return AuditOptions(
            data_dirs=(data_dir,),
            own_data=not typed,
            device=device,
            windows=options.windows,
            say=say_doing,
        )

    return request, results


def carry_out(
    chosen: Chosen, how: AuditOptions, options: argparse.Namespace
) -> Iterator[tuple[Audit, bool]]:
    """Audit one run after the other, print the findings, and save them if that is
    possible, as the second value says. Raises DiskFull."""
    from gpt2.audit.run import Audit, audit_run

    console = report_console()
    whole = options.all or len(chosen.done) == 1
    for run_dir in chosen.done:
        try:
            audit = audit_run(run_dir, how)
            is_kept = keep(audit, options)
        except NothingToAudit as error:
            audit = Audit(run_dir, (AuditLine("run", NOT_CHECKED, reason=str(error)),))
            is_kept = False
        show_audit(console, run_dir, audit.findings, whole=whole)
        yield audit, is_kept


def keep(audit: Audit, options: argparse.Namespace) -> bool:
    """Write audit.json, or print why that is not possible; whether it is written.
    Raises DiskFull."""
    if options.no_write:
        return False
    return keep_for_report("audit", lambda: write_audit(audit.run_dir, audit.findings))


def print_rest(chosen: Chosen) -> None:
    """Print runs that were not audited, and why."""
    for path, state in chosen.others:
        print(f"not audited: {path} is not finished ({state})")
    for item in chosen.left_out:
        print(f"not audited: {item.path}: {item.reason}")


if __name__ == "__main__":
    sys.exit(exit_code(main))
