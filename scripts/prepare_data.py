"""Prepare the configured data set: documents to token files in DATA_DIR.

Exit codes: 0 the data is prepared; 1 it is unavailable or damaged; 2 the configuration
is wrong; 6 the disk is full; 130 interrupted.
"""

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt2.data.corpus import CorpusError
from gpt2.data.prepare import existing, prepare, recorded_files, summary
from gpt2.data.sources import open_corpus
from gpt2.data.text_files import changes
from gpt2.data.token_files import (
    PARTIAL,
    PREPARE,
    REBUILD,
    DataError,
    DataRequest,
    dataset_folder,
    expand,
    fingerprint,
    request_of,
    with_settings,
)
from gpt2.data.tokenizer import TokenizerUnavailable, get_encoding
from gpt2.settings.configuration import load
from gpt2.settings.parse import settings_from
from gpt2.settings.rerun_commands import show_next
from gpt2.settings.schema import Settings
from lib.atomic_files import DiskFull
from lib.json_answer import add_json, answer, answers_json, fail
from lib.output import exit_code


@answers_json("data")
def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    try:
        settings = settings_from(load(options.config, options.overrides))
    except (ValueError, OSError) as error:
        return complain(error, 2)
    more = options.overrides
    try:
        run(settings, force=options.force, verify=options.verify, more=more)
    except DiskFull as error:
        return complain(with_settings(error, more), 6)
    except (CorpusError, DataError, TokenizerUnavailable) as error:
        return complain(with_settings(error, more), 1)
    except OSError as error:
        return complain(place_of(error, settings.resources.data_dir), 1)
    except KeyboardInterrupt:
        return complain(with_settings(f"interrupted; {PREPARE} resumes", more), 130)
    return 0


def place_of(error: OSError, data_dir: str) -> str:
    """Message for an error, with the setting to change if it is about DATA_DIR."""
    if error.filename is None or not is_below(error.filename, data_dir):
        return str(error)
    return (
        f"DATA_DIR={data_dir}: data cannot be stored there: {error.strerror}. Choose "
        "another DATA_DIR, for example DATA_DIR=other_data"
    )


def is_below(path: str, data_dir: str) -> bool:
    """True if a path is in DATA_DIR, by its name or after resolving links."""
    folder = expand(data_dir, "DATA_DIR")
    ways = os.path.abspath, os.path.realpath
    return any(Path(way(path)).is_relative_to(way(folder)) for way in ways)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    add = result.add_argument
    add("--config", default="config.py", help="generated config.py")
    add("--overrides", default="", metavar="'KEY=VALUE ...'", help="as after `make`")
    add("--verify", action="store_true", help="compare the sha256 of existing files")
    add("--force", action="store_true", help="prepare existing data again")
    add_json(result)
    return result


def run(settings: Settings, *, force: bool, verify: bool, more: str) -> None:
    """Prepare the data for the settings, or report that it exists.

    more: settings of the command line, repeated in the commands of messages.
    """
    request, data_dir = request_of(settings), settings.resources.data_dir
    folder = dataset_folder(data_dir, request)
    meta = None if force else existing(request, data_dir, verify=verify)
    if meta is not None:
        print(f"{folder} is already there{' and verified' if verify else ''}")
        for note in notes(folder, request):
            print(f"note: {with_settings(note, more)}", file=sys.stderr)
    else:
        meta = build(request, data_dir, force)
        print(f"{folder} is prepared")
    answer(folder=str(folder), fingerprint=fingerprint(meta), meta=meta)
    print(f"{summary(meta)}\n  fingerprint {fingerprint(meta)}")
    show_next("make dry-run")


def notes(folder: Path, request: DataRequest) -> Iterator[str]:
    """Changes since the data set was prepared."""
    if (folder / PARTIAL).is_dir():
        yield f"{folder / PARTIAL} belongs to a later preparation; {REBUILD} resumes it"
    before = recorded_files(folder)
    if not before:
        return
    try:
        changed = changes(before, open_corpus(request))
    except CorpusError as error:
        yield f"its text does not exist any more ({error})"
        return
    if changed:
        yield f"files of its text since then: {changed}. {REBUILD} includes them"


def build(request: DataRequest, data_dir: str, force: bool) -> dict[str, Any]:
    from tqdm import tqdm

    cache = expand(data_dir, "DATA_DIR") / "tiktoken"
    encoding = get_encoding(request.tokenizer, cache)
    corpus = open_corpus(request)
    with tqdm(
        desc=f"preparing {request.dataset}",
        total=corpus.total_bytes,
        unit="B",
        unit_scale=True,
        mininterval=0.3,
        disable=None,  # only on a terminal
    ) as bar:
        return prepare(
            request,
            data_dir,
            corpus,
            encoding,
            force=force,
            progress=bar,
            report=lambda text: tqdm.write(text, file=sys.stderr),
        )


def complain(error: object, code: int) -> int:
    return fail(f"data: {error}", code)


if __name__ == "__main__":
    sys.exit(exit_code(main))
