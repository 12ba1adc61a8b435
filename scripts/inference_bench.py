"""Time how trained models continue a text, or untrained ones of the steps of STEPS.

Of each model and batch: tokens per second of prompt and continuation, the median and
the 95th percentile of a token's time, memory per token of the decode cache and in all,
and at longer contexts what a token costs there. After step 0, transformers' generate()
with equal weights, if it is installed. All numbers also go to a JSON file.
Exit codes: 0 done; 1 a measurement failed; 2 no such run, no usable model in it, or an
option that makes no sense; 6 the disk is full.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2.infer.chosen_runs import ChosenRuns, add_run_options, chosen_runs
from gpt2.plan.axes import split_names
from gpt2.plan.planning import step_settings
from gpt2.plan.steps import SHIPPED
from gpt2.report.generation import write_generation
from gpt2.report.named_runs import keep_for_report, show_next_report
from gpt2.settings.configuration import load_or_defaults
from gpt2.settings.parse import settings_from
from gpt2.settings.rerun_commands import show_next
from lib import human
from lib.atomic_files import atomic_write_json, require_json_place
from lib.jobs.import_gc import collector_at_rest
from lib.json_answer import add_json, answer, answers_json, refuse
from lib.number_option import COUNT, Allowed, add_number, number, one_of
from lib.output import EXIT_FAILED, exit_code
from lib.terminal import say_doing, table

if TYPE_CHECKING:
    from gpt2.infer.bench import Load, Row, TimedModel

ROOT = Path(__file__).resolve().parents[1]
MOST_RUNS = 64
USUAL_TOKENS = 128  # of a prompt, and after it
# The first token of a generation is timed with its prompt, the first one at the end of
# a context with what precedes it: neither says what a token costs.
AT_LEAST_2 = Allowed(int, lambda x: x >= 2, "a whole number of at least 2")
AT_LEAST_3 = Allowed(int, lambda x: x >= 3, "a whole number of at least 3")
COLUMNS = (
    "batch",
    "context",
    "prefill tok/s",
    "decode tok/s",
    "of first",
    "p50 ms",
    "p95 ms",
    "cache/token",
    "memory",
)
SPARE = ("p95 ms", "prefill tok/s", "memory", "cache/token", "of first")


@answers_json("inference-bench")
def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = parser().parse_args(arguments)
        contexts = numbers("CONTEXTS", options.contexts, AT_LEAST_3)
        batches = numbers("BATCHES", options.batches, COUNT)
        with collector_at_rest():
            from gpt2.infer.bench import Load

        peers = peers_of(options.peers)
        chosen = (
            chosen_runs(options, MOST_RUNS, variable="RUNS") if options.run else None
        )
        load = Load(batches, *tokens_of(options, chosen), options.repeats)
        require_json_place(options.out)
        subjects = untrained(options, load, contexts) if not chosen else trained(chosen)
        rows: list[Row] = []
        for row in measured(subjects, load, contexts, peers):
            rows.append(row)
            print(line_of(row), file=sys.stderr, flush=True)
            # At once: a long table may be cut short.
            found = document(load, rows, bool(options.run))
            atomic_write_json(options.out, found)
            answer(**found, written=str(options.out))
        show(rows)
        kept = keep(found)
    except (ValueError, OSError) as error:
        return refuse("inference-bench", error)
    print(f"Written: {options.out}")
    folders = [Path(row["run_dir"]) for row in rows if row.get("run_dir")]
    if not folders:
        show_next("make inference-bench RUNS=0,5", "of what `make` has trained")
    elif kept:
        show_next_report(folders, options.config, "with columns for generation")
    return EXIT_FAILED if any("failed" in row for row in rows) else 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="inference_bench.py", description=__doc__)
    add = found.add_argument
    add_run_options(found)
    add("--batches", default="1,32", help="sequences at once (default %(default)s)")
    usual = f"(default {USUAL_TOKENS}, fewer where the context of RUNS is shorter)"
    add_number(found, "PROMPT_TOKENS", COUNT, help=f"tokens of a prompt {usual}")
    add_number(found, "NEW_TOKENS", AT_LEAST_2, help=f"tokens after it {usual}")
    words = "contexts at whose end tokens are timed, as in 1024,8192"
    add("--contexts", default="", help=words)
    words = "of transformers, transformers-static; none: a comma"
    add("--peers", default="transformers,transformers-static", help=words)
    words = "timed generations, of which the fastest counts (default %(default)s)"
    add_number(found, "REPEATS", COUNT, default=3, help=words)
    place = ROOT / "bench_results" / "inference.json"
    add("--out", type=Path, default=place, help="where all numbers go")
    add_json(found)
    return found


def numbers(name: str, given: str, allowed: Allowed) -> list[int]:
    """Whole numbers separated by commas, each once. Raises ValueError."""
    words = split_names(given)
    if given and not words:
        raise ValueError(f"{name}={given} names no number")
    return list(dict.fromkeys(int(number(name, word, allowed)) for word in words))


def tokens_of(
    options: argparse.Namespace, chosen: ChosenRuns | None
) -> tuple[int, int]:
    """PROMPT_TOKENS and NEW_TOKENS; those not given fit the shortest context."""
    from gpt2.infer.trained import read_job

    folders = chosen.folders if chosen else ()
    lengths = (read_job(folder).settings.model.block_size for folder in folders)
    room = min(lengths, default=sys.maxsize)  # untrained models get the context needed
    given = options.new_tokens
    rest = room - given if given else room // 2
    prompt = options.prompt_tokens or max(1, min(USUAL_TOKENS, rest))
    return prompt, given or max(2, min(USUAL_TOKENS, room - prompt))


def peers_of(given: str) -> list[str]:
    """Peers by name; none, with a note, if transformers is not installed."""
    from gpt2.infer.bench import PEERS

    names = split_names(given)
    for name in names:
        one_of("PEERS", name, tuple(PEERS))
    if names and find_spec("transformers") is None:
        print("note: transformers is not installed: its rows are left out")
        return []
    return names


# ---- what is measured ---------------------------------------------------------------


def measured(
    subjects: Iterable[TimedModel],
    load: Load,
    contexts: Sequence[int],
    peers: Sequence[str],
) -> Iterator[Row]:
    """The rows of each subject, and of the peers after those of step 0."""
    from gpt2.infer.bench import failure_in, peer_model, peer_row, rows_of
    from gpt2.model.gpt2_weights import is_native

    seen = False
    for subject in subjects:
        say_doing(f"timing {subject.label}")
        yield from rows_of(subject, load, contexts)
        if seen or not is_native(subject.settings, subject.heads):
            continue
        seen = True
        model = None
        for peer in peers:
            say_doing(f"timing {peer}")
            for batch in load.batches:
                row = {"what": peer, "batch": batch, "context": load.prompt + load.new}
                with failure_in(row):
                    model = model or peer_model(subject)
                    row |= peer_row(subject, model, peer, load, batch)
                yield row
    if peers and not seen:
        print(f"note: {', '.join(peers)}: not timed without step 0, which both have")


def trained(chosen: ChosenRuns) -> Iterator[TimedModel]:
    """The models of RUNS, one at a time."""
    from gpt2.infer.bench import TimedModel, precision
    from gpt2.infer.trained import load_trained, prepare_device

    device = prepare_device(chosen.resources)
    for folder in chosen.folders:
        found = load_trained(folder, device.device)
        model = found.model.to(precision(found.settings, device))
        about = found.settings, model, found.heads, folder, found.job.hash
        yield TimedModel(found.label, *about)


def untrained(
    options: argparse.Namespace, load: Load, contexts: Sequence[int]
) -> Iterator[TimedModel]:
    """Models of STEPS with random weights, one at a time."""
    from gpt2.infer.bench import precision, untrained
    from gpt2.infer.trained import prepare_device

    first = ["RA_MLA_ABLATION_MODE=y"]
    config = load_or_defaults(options.config, options.overrides, first)
    base = settings_from(config)
    length = max(base.model.block_size, load.prompt + load.new, *contexts, 0)
    base = base.replace(block_size=length)
    device = prepare_device(base.resources)
    for step in SHIPPED.ids(base.matrix.steps):
        settings = step_settings(base, step)
        dtype = precision(settings, device)
        label = f"{step} {SHIPPED[step].name}"
        yield untrained(label, settings, device.torch_device, dtype)


def keep(found: Mapping[str, Any]) -> bool:
    """Write the measurements of each run next to it, for the report; whether all are
    written. Raises DiskFull."""
    kept = True
    about = {name: found[name] for name in found if name != "rows"}
    runs = {r["run_dir"]: r["hash"] for r in found["rows"] if r.get("run_dir")}
    for run_dir, run_hash in runs.items():
        rows = [row for row in found["rows"] if row.get("run_dir") == run_dir]
        write = partial(write_generation, Path(run_dir), run_hash, rows, about)
        kept &= keep_for_report("inference-bench", write)
    return kept


def line_of(row: Row) -> str:
    """A row as it is measured, for those who wait."""
    start = f"{row['what']}, batch {row['batch']}, context {row['context']}: "
    if "failed" in row:
        return start + row["failed"]
    rate, middle = row["decode_tokens_per_second"], row["p50_ms"]
    return f"{start}{rate:,.0f} tokens/s, {middle:.3f} ms per token"


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    made = [row for row in rows if "failed" not in row]
    lines = [[row["what"], *cells(row, made)] for row in made]
    print(table(("model", *COLUMNS), lines, left=(0,), spare=SPARE), end="")
    reasons = dict.fromkeys(row.get("not_recorded", "") for row in rows)
    for reason in filter(None, reasons):
        print(f"note: no graph per token, because {reason}")


def cells(row: Row, rows: Sequence[Row]) -> list[str]:
    """Cells after the name; the ratio is to the first model of equal load."""
    key = row["batch"], row["context"]
    first = next(r for r in rows if (r["batch"], r["context"]) == key)
    ratio = row["decode_tokens_per_second"] / first["decode_tokens_per_second"]
    prefill = row.get("prefill_tokens_per_second")
    return [
        str(row["batch"]),
        f"{row['context']:,}",
        "" if prefill is None else f"{prefill:,.0f}",
        f"{row['decode_tokens_per_second']:,.0f}",
        f"{ratio:.2f}",
        f"{row['p50_ms']:.3f}",
        f"{row['p95_ms']:.3f}",
        human.size(row.get("cache_bytes_per_token")),
        human.size(row.get("peak_bytes", row.get("cache_bytes"))),
    ]


def document(load: Load, rows: Sequence[Row], is_trained: bool) -> dict[str, Any]:
    """Contents of the JSON file."""
    import torch

    from lib.jobs.run_files import now

    gpu = torch.cuda.is_available() and any("peak_bytes" in row for row in rows)
    return {
        "schema": 1,
        "date": now(),
        "device": torch.cuda.get_device_name() if gpu else "CPU",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "prompt_tokens": load.prompt,
        "new_tokens": load.new,
        "trained": is_trained,
        "rows": list(rows),
    }


if __name__ == "__main__":
    sys.exit(exit_code(main))
