"""Measure entropy and reciprocity of the attention of finished runs.

By layer and head, on windows of the validation text: the entropy of each head's
weights, in nats and over the logarithm of the position, the correlation of scores with
their transposed counterparts in RA's band, and RA's alpha. Written as attention.json
and, as heat maps, attention.png into each run's folder; report.html links the picture.
Exit codes: 0 done; 2 no such run, no usable model or text, or an option that makes no
sense; 6 the disk is full.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from gpt2.infer.chosen_runs import READ, add_run_options, chosen_runs
from gpt2.report.named_runs import keep_for_report, show_next_report
from gpt2.settings.schema import Resources
from lib.jobs.import_gc import collector_at_rest
from lib.json_answer import add_json, answer, answers_json, refuse
from lib.number_option import COUNT, add_number
from lib.output import exit_code
from lib.terminal import report_console, say_doing

WINDOWS = 32
COLUMNS = ("entropy", "relative", "reciprocity", "alpha")


@answers_json("attention")
def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = parser().parse_args(arguments)
        chosen = chosen_runs(options, read=(*READ, "DATA_DIR"))
        resources, count = chosen.resources, options.windows
        runs = [measure(folder, resources, count) for folder in chosen.folders]
        answer(runs=runs)
        kept = [Path(run["run_dir"]) for run in runs if run["written"]]
        show_next_report(kept, options.config, "report.html links the plots")
    except (ValueError, OSError) as error:
        return refuse("attention", error)
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="attention.py", description=__doc__)
    add_run_options(found)
    words = "windows of the validation text (default %(default)s)"
    add_number(found, "WINDOWS", COUNT, default=WINDOWS, help=words)
    add_json(found)
    return found


def measure(run_dir: Path, resources: Resources, windows: int) -> dict[str, Any]:
    """Measure a run, print its layers, write its files if that is possible; the same as
    data. Raises ValueError, OSError and DiskFull."""
    with collector_at_rest():
        from gpt2.infer.attention_heads import (
            attention_of,
            validation_text,
            write_attention,
        )
        from gpt2.infer.trained import load_trained, prepare_device

    trained = load_trained(run_dir, prepare_device(resources).device)
    both = (trained.settings.resources, resources)
    places = [Path(each.data_dir).expanduser() for each in both]
    tokens, fingerprint = validation_text(trained, places)
    say_doing(f"{run_dir}: {windows} windows of the validation text")
    layers = attention_of(trained, tokens, windows)
    source = {"windows": windows, "data_fingerprint": fingerprint}
    show(trained.label, layers)
    files: list[str] = []

    def write() -> None:
        files.extend(map(str, write_attention(trained, layers, **source)))

    if keep_for_report("attention", write):
        print(f"Written: {', '.join(files)}")
    return {"run_dir": str(run_dir), **source, "layers": layers, "written": files}


def show(label: str, layers: list[list[dict[str, Any]]]) -> None:
    """Print the mean over the heads of each layer, with the lowest and the highest."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    names = [name for name in COLUMNS if name in layers[0][0]]
    table = Table(box=box.SIMPLE_HEAD, title=Text(label))
    for column in ("layer", *names):
        table.add_column(column)
    for number, heads in enumerate(layers):
        cells = [str(number)]
        for name in names:
            own = [head[name] for head in heads]
            cells.append(f"{fmean(own):.3f} ({min(own):.3f} to {max(own):.3f})")
        table.add_row(*map(Text, cells))
    report_console().print(table)


if __name__ == "__main__":
    sys.exit(exit_code(main))
