"""Run what is configured: one process for each job, nothing that is done twice.

Exit codes: 0 all done; 1 some failed; 2 not started (bad configuration, other
settings in the folder, another runner at work); 3 stopped before the end; 6 disk full.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[1])

from gpt2 import listing, matrix
from gpt2.plan import Plan, make_plan
from gpt2.schema import ALIASES, PREFIXES, settings_from, symbol_types
from lib import rundir
from lib.generated import Config, read_config, render_config

ROOT = Path(__file__).resolve().parents[1]
KCONFIG = ROOT / "Kconfig"
CACHE = ROOT / ".kablate" / "certificates.json"  # shared with scripts/verify.py
EXIT_USAGE, EXIT_DISK = 2, 6


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Run the configured matrix; type it again to go on."
    )
    add = parser.add_argument
    add("--config", type=Path, default=Path("config.py"), help="default: config.py")
    add("--overrides", default="", help="assignments, as in 'MAX_ITERS=100 STEPS=0,5'")
    add("--jobs", type=int, default=1, help="runs at a time (default: 1)")
    add("--hang-timeout", type=float, default=1800, help="seconds without progress")
    add("--fail-fast", action="store_true", help="stop at the first failure")
    what = parser.add_mutually_exclusive_group()
    for name, text in (
        ("list", "list the jobs and stop"),
        ("dry-run", "list the jobs, then prove each step at tiny size"),
        ("budget", "print parameters, FLOPs and cache of each step"),
        ("status", "say how far everything is, also while it runs"),
        ("stop", "ask the runner at work to write checkpoints and stop"),
        ("rerun", "run the jobs anew; what was there is kept aside"),
    ):
        what.add_argument(f"--{name}", action="store_true", help=text)
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """The command; errors for the user are told on stderr, without a traceback."""
    given = parse(arguments)
    try:
        config = load(given.config, given.overrides)
        plan = make_plan(config)
        return act(given, config, plan)
    except rundir.DiskFull as error:
        print(error, file=sys.stderr)
        return EXIT_DISK
    except BrokenPipeError:  # the output went into `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_USAGE
    except (ValueError, OSError, rundir.LockHeld) as error:
        print(error, file=sys.stderr)
        return EXIT_USAGE


def load(path: Path, overrides: str) -> Config:
    """config.py, with assignments of the command line applied."""
    if not path.exists():
        raise FileNotFoundError(
            f"there is no {path}: load a preset with `make defconfig-<name>` "
            "(`make list-defconfigs` names them)"
        )
    config = read_config(path)
    if not overrides.strip():
        return config
    from lib.dotconfig import split_overrides
    from lib.kconfig import apply_overrides

    words = split_overrides(overrides)
    return apply_overrides(
        KCONFIG,
        config,
        words,
        types=symbol_types(),
        aliases=ALIASES,
        prefixes=PREFIXES,
    )


def act(given: argparse.Namespace, config: Config, plan: Plan) -> int:
    if given.list or given.dry_run:
        print(listing.listing(plan, config), end="", flush=True)
        return prove(plan) if given.dry_run else 0
    if given.budget:
        print(listing.budget_table(plan), end="")
        return 0
    if given.status:
        return show_status(plan)
    if given.stop:
        print(matrix.ask_to_stop(plan.output_dir))
        return 0
    return run(given, config, plan)


def prove(plan: Plan) -> int:
    """The certificates of each step at hand, at tiny size on the CPU."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # tiny tensors: threads cost time
    from gpt2 import verify

    print(f"\nproving each step at tiny size\n{verify.heading()}", flush=True)
    failed = []
    for proof in verify.prove(plan, CACHE):
        print(verify.row(proof), flush=True)
        failed += [] if proof.ok else [f"{proof.cell}: {proof.message}"]
    print("\n".join(failed) or "all are proven", flush=True)
    return 1 if failed else 0


def show_status(plan: Plan) -> int:
    found = matrix.read_matrix_file(plan.output_dir)
    print(listing.status_table(plan.output_dir, found["jobs"]), end="")
    lock = matrix.matrix_lock(plan.output_dir)
    running = rundir.is_locked(lock)
    print(str(rundir.lock_held(lock)) if running else "no runner is at work here")
    return 0


def run(given: argparse.Namespace, config: Config, plan: Plan) -> int:
    from lib.process import Patience
    from lib.progress import make_view
    from lib.scheduler import Options

    options = Options(
        slots=slots(given.jobs),
        patience=Patience(hang=given.hang_timeout),
        fail_fast=given.fail_fast,
        longest_first=given.jobs > 1,
        stop_file=plan.output_dir / matrix.STOP_FILE,
    )
    check_data(plan)
    with make_view() as view:
        settings = settings_from(config)
        code = matrix.run(
            plan, settings, copies(given.config, config), options, view, given.rerun
        )
    done = sum(
        rundir.effective_status(plan.output_dir / job.run_dir) == "done"
        for job in plan.jobs
    )
    print(f"{done} of {len(plan.jobs)} jobs are done; results in {plan.output_dir}")
    if code:
        print("type `make` again to go on with what is missing", file=sys.stderr)
    return code


def slots(jobs: int) -> list[dict[str, str]]:
    """One environment for each run at a time; they share the cores evenly."""
    from lib.provenance import usable_cores

    if jobs < 1:
        raise ValueError(f"--jobs {jobs}: at least 1")
    if jobs == 1 or "OMP_NUM_THREADS" in os.environ:
        return [{} for _ in range(jobs)]
    threads = str(max(1, usable_cores() // jobs))
    return [{"OMP_NUM_THREADS": threads} for _ in range(jobs)]


def check_data(plan: Plan) -> None:
    """Missing or unfit data is one error here, not one for each job."""
    from gpt2.tokenfiles import check_request, read_meta, request_of

    settings = plan.jobs[0].settings
    place, data = settings.resources.data_dir, settings.data
    check_request(read_meta(place, data.dataset, data.tokenizer), request_of(settings))


def copies(path: Path, config: Config) -> dict[str, str]:
    """config.py and .config as they stand, overrides included."""
    from lib.kconfig import render_dotconfig

    types = symbol_types()
    return {
        "config.py": render_config(config, types),
        ".config": render_dotconfig(KCONFIG, config, types=types),
    }


if __name__ == "__main__":
    raise SystemExit(main())
