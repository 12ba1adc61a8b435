"""Pack what a results folder reports into one zip file to send.

The report, the table, and of each run its job, manifest, status, metrics and log, with
the hash of each file; no weights and no checkpoints. `make report RESULTS=file.zip`
unpacks it and makes the report again. Paths and host names that runs recorded are in
it.
Exit codes: 0 written; 2 no results there, or no report of them; 6 the disk is full.
"""

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from gpt2.report.bundle import SUFFIX, bundle_results
from gpt2.settings.configuration import results_of
from gpt2.settings.rerun_commands import make_command, show_next
from lib.human import size
from lib.json_answer import add_json, answer, answers_json, refuse
from lib.output import exit_code


@answers_json("bundle")
def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        results = options.results or results_of(options.config)
        if results is None:
            raise ValueError("name a results folder, by RESULTS=folder")
        out = options.out or Path(f"{results.resolve().name}{SUFFIX}")
        if out.suffix != SUFFIX:
            raise ValueError(f"OUT={out}: the name of a bundle ends in {SUFFIX}")
        written = bundle_results(results, out)
    except (ValueError, OSError) as error:
        return refuse("bundle", error)
    answer(file=str(out), bytes=written)
    print(f"{out}: {size(written)}")
    show_next(make_command("report", [f"RESULTS={out}"]), "reads it, anywhere")
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="bundle.py", description=__doc__)
    add = found.add_argument
    add("results", nargs="?", type=Path, help="results folder; default: of --config")
    add("--config", type=Path, default=Path("config.py"), help="default: config.py")
    add("--out", type=Path, help="file to write; default: the folder's name with .zip")
    add_json(found)
    return found


if __name__ == "__main__":
    sys.exit(exit_code(main))
