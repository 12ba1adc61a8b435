"""Open the dashboard of the configured tracker on this machine: make track.

Prints its address and serves until Ctrl-C; the browser of BROWSER, or of the
desktop, is opened with it.
Exit codes: 0 served; 2 no tracker is configured or installed, or nothing was run.
"""

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import os
import sys
import threading
import webbrowser
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gpt2.settings.configuration import load
from gpt2.settings.extras import check_installed
from gpt2.settings.parse import settings_from
from gpt2.train.tracking import project_of
from lib.output import exit_code

DASHBOARDS = ("trackio", "tensorboard")  # wandb has none on this machine


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        resources = settings_from(load(options.config, options.overrides)).resources
        tracker = choose(resources.trackers)
        check_installed("TRACKER", [tracker], "trackers")
        results = Path(options.config).parent / resources.output_dir
        if not results.is_dir():
            raise ValueError(f"nothing was run yet: there is no {results}")
        project = project_of(resources)
        start = start_trackio if tracker == "trackio" else start_tensorboard
        address = start(project, results)
    except (ValueError, OSError) as error:
        print(f"track: {error}", file=sys.stderr)
        return 2
    print(f"{tracker} is at {address} (Ctrl-C ends it)", flush=True)
    show(address)
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="track.py", description=__doc__)
    found.add_argument("--config", default="config.py", help="default: config.py")
    found.add_argument("--overrides", default="", help="as in 'TRACKER=trackio'")
    return found


def choose(trackers: Sequence[str]) -> str:
    """The first that has a dashboard; ValueError, with the way out, if none has."""
    for name in trackers:
        if name in DASHBOARDS:
            return name
    if trackers:
        raise ValueError(
            "wandb has no dashboard here: its runs are at wandb.ai, and `wandb sync` "
            "sends those of a run's folder there; or add trackio: make track "
            "TRACKER=trackio"
        )
    raise ValueError(
        "no tracker is configured: train with `make TRACKER=trackio` (or "
        "tensorboard), then type `make track TRACKER=trackio`"
    )


def start_trackio(project: str, results: Path) -> str:
    """Serve the project in a thread; the address, with the right to edit runs."""
    import trackio

    served = trackio.show(project, open_browser=False, block_thread=False, share=False)
    return str(served[3])


def start_tensorboard(project: str, results: Path) -> str:
    """Serve all runs of the results folder in a thread; the address."""
    from tensorboard import program

    board = program.TensorBoard()
    title = f"--window_title={project}"
    board.configure([None, "--logdir", str(results), "--host", "127.0.0.1", title])
    try:
        return str(board.launch())
    except program.TensorBoardServerException as error:
        raise ValueError(f"tensorboard does not start: {error}") from error


def show(address: str) -> None:
    """Open a browser if there is one to see; without a desktop, BROWSER decides."""
    seen = ("BROWSER", "DISPLAY", "WAYLAND_DISPLAY")
    if sys.platform in ("darwin", "win32") or any(os.environ.get(n) for n in seen):
        webbrowser.open(address)


if __name__ == "__main__":
    raise SystemExit(exit_code(main))
