r"""Train one run: a job of the matrix, or one step of a configuration by hand.

    python gpt2/train_ra_mla.py --job JOB.json --run-dir DIR
    python gpt2/train_ra_mla.py --config config.py --ra-mla-ablation-step 5 \
        --run-dir DIR

Called again on the same directory it goes on from the last checkpoint; a run that is
done is left alone. Exit codes:
0 done; 1 crashed; 2 refused before it began; 3 interrupted, with a checkpoint;
4 out of memory; 5 not finite; 6 disk full; 7 wrong gradients; 8 the GPU failed.
SIGUSR1 prints all stacks to stderr.
"""

from __future__ import annotations

import _signal  # before all other imports, see lib/output.py

if __name__ == "__main__" and callable(_signal.getsignal(_signal.SIGINT)):
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
from lib.output import begin

if __name__ == "__main__":
    begin()

import argparse
import faulthandler
import signal
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gpt2.plan.jobs import Job, job_from_json
from gpt2.plan.names import KERNELS_ONLY
from gpt2.plan.planning import configured_step, make_plan
from gpt2.settings.checks import naming
from gpt2.settings.configuration import load
from lib.atomic_files import read_json
from lib.bytecode import keep_bytecode
from lib.gpu.compile_cache import bytecode_folder, cache_environment
from lib.gpu.env import child_environment
from lib.jobs.fast_exit import run_to_end
from lib.jobs.import_gc import collector_at_rest
from lib.output import EXIT_USAGE


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    try:
        job = load_job(options)
    except (ValueError, OSError) as error:
        print(f"train_ra_mla: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        return 130
    prepare_environment(job)
    if options.kernels_only:
        from gpt2.train.choose_kernels import choose_for

        return choose_for(job, options.run_dir)
    with collector_at_rest():  # torch takes seconds to import
        from gpt2.train.run import TrainingRun

    micro_batch = options.micro_batch
    run = TrainingRun(job, options.run_dir, micro_batch, os.environ, write_samples)
    return run.carry_out()


def write_samples(run_dir: Path) -> None:
    """Samples of text for the report, once the model is written."""
    from gpt2.infer import run_samples

    run_samples.write_samples(run_dir)


def prepare_environment(job: Job) -> None:
    """Set what torch reads only once, when it is imported."""
    keep_bytecode("torch", bytecode_folder(os.environ), os.environ)
    resources = job.settings.resources
    if resources.compile_model:
        os.environ.update(cache_environment(os.environ))
    if resources.device != "cpu":
        added = child_environment(os.environ, resources.alloc_conf)
        os.environ.update(added)


def parser() -> argparse.ArgumentParser:
    lines = (__doc__ or "").splitlines()
    result = argparse.ArgumentParser(
        description=lines[0],
        epilog="\n".join(lines[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    source = result.add_mutually_exclusive_group(required=True)
    source.add_argument("--job", type=Path, metavar="JOB.json")
    source.add_argument("--config", type=Path, metavar="config.py")
    result.add_argument("--run-dir", type=Path, required=True, metavar="DIR")
    result.add_argument("--ra-mla-ablation-step", type=int, metavar="N")
    result.add_argument("--seed", type=int, help="instead of the first of SEEDS")
    result.add_argument(
        "--overrides", default="", metavar="'KEY=VALUE ...'", help="as after `make`"
    )
    result.add_argument(
        "--micro-batch", type=int, metavar="N", help="the effective batch stays"
    )
    result.add_argument(
        KERNELS_ONLY, action="store_true", help="choose kernels, and train nothing"
    )
    return result


def load_job(options: argparse.Namespace) -> Job:
    """The job that the command line names.

    Raises ValueError, telling what is wrong and what is allowed, or OSError.
    """
    if options.job is None:
        return configured_job(options)
    for name in ("ra_mla_ablation_step", "seed", "overrides"):
        if getattr(options, name) not in (None, ""):
            flag = "--" + name.replace("_", "-")
            raise ValueError(f"{flag} goes with --config; a job is fixed already")
    return job_from_json(read_json(options.job))


def configured_job(options: argparse.Namespace) -> Job:
    """The step, or the single run, of a config.py with its overrides."""
    config = load(options.config, options.overrides)
    step, mode = options.ra_mla_ablation_step, config.values.get("KABLATE_MODE")
    if step is not None:
        with naming("--ra-mla-ablation-step"):
            job = configured_step(config, step)
    elif mode == "single":
        job = make_plan(config).jobs[0]
    else:
        raise ValueError(
            f"{options.config} is of mode {mode!r}: say which run is meant with "
            "--ra-mla-ablation-step N, or run them all with `make`"
        )
    return job if options.seed is None else replace(job, seed=options.seed)


if __name__ == "__main__":
    run_to_end(main)
