"""Packages and data that runs need, wherever they execute. Torch-free."""

from __future__ import annotations

from gpt2.data.token_files import (
    check_untouched,
    dataset_folder,
    prepared,
    request_of,
)
from gpt2.plan.jobs import Plan
from gpt2.plan.names import STABLE_FOLDER
from gpt2.run.progress import status_word
from gpt2.settings.extras import check_installed


def require_packages(plan: Plan) -> None:
    """Raise ValueError if a package of the trackers, or Ray, is not installed."""
    resources = plan.base.resources
    check_installed("TRACKER", resources.trackers, "trackers")
    if resources.engine == "ray":
        check_installed("ENGINE=ray", ["ray"], "ray")


def require_data(plan: Plan) -> None:
    """Raise one error for missing or unfit data, which each job would raise."""
    settings = plan.longest
    meta = prepared(settings)
    folder = dataset_folder(settings.resources.data_dir, request_of(settings))
    check_untouched(folder, meta)
    require_stable(plan)


def require_stable(plan: Plan) -> None:
    """Raise ValueError if a checkpoint that a job would start from is missing."""
    for job in plan.jobs:
        if job.stable_source is None:
            continue
        kept = job.stable_source / STABLE_FOLDER
        begun = status_word(plan.output_dir / job.run_dir) != "planned"
        if not begun and not kept.is_dir():
            raise ValueError(
                f"STABLE_FROM={job.settings.resources.stable_from}: there is no "
                f"{kept}, which {job.run_dir} would start from: run the same arms "
                "and seeds there first, with KEEP_STABLE=y"
            )
