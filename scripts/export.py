"""Write a trained model as a folder that transformers loads.

Step 0 becomes a native GPT-2; any other model brings its own code, which is loaded
with trust_remote_code=True. The folder is loaded again by a fresh interpreter, and
kept only if its logits and its tokens equal those of the trained model. With --repo it
is then uploaded to the Hugging Face hub, as a private repository if it is new.
Exit codes: 0 written, and uploaded if that was asked for; 1 the folder does not compute
the same, and is not kept; 2 no such run, no usable model in it, or an option that makes
no sense; 3 written, but not uploaded; 6 the disk is full.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from gpt2.infer.chosen_runs import READ, add_run_options, chosen_runs
from gpt2.infer.hub import NotUploaded, check_repo, upload
from gpt2.settings.configuration import refuse_unread
from gpt2.settings.rerun_commands import make_command, show_next
from lib.human import size
from lib.jobs.import_gc import collector_at_rest
from lib.json_answer import add_json, answer, answers_json, fail, refuse
from lib.number_option import add_name
from lib.output import EXIT_FAILED, EXIT_INTERRUPTED, exit_code
from lib.terminal import say_doing

FORMATS = ("hf",)


@answers_json("export")
def main(arguments: Sequence[str] | None = None) -> int:
    given = sys.argv[1:] if arguments is None else arguments
    command = "push" if any(word.startswith("--repo") for word in given) else "export"
    answer(command=command)
    try:
        options = parser().parse_args(given)
        refuse_unread(options.overrides, READ)  # such as REPOS=, before a missing REPO
        if options.repo is not None:
            check_repo(options.repo)
        if find_spec("transformers") is None:
            how = "`make setup` or `pip install transformers`"
            raise ValueError(f"transformers is not installed: {how} adds it")
        chosen = chosen_runs(options, most=1)
        code = export(chosen.folders[0], options.out, options.repo)
    except (ValueError, OSError) as error:
        return refuse(command, error)
    results = f"RESULTS={chosen.results or ''}"
    if options.repo is None and not code:
        words = f"RUN={options.run}", results, "REPO=account/name"
        show_next(make_command("push", words), "uploads it to the Hugging Face hub")
    elif not code:
        why = "report and records, for the readers of the model"
        show_next(make_command("bundle", [results]), why)
    return code


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="export.py", description=__doc__)
    add_run_options(found, several=False)
    formats = f"one of {', '.join(FORMATS)} (default: %(default)s)"
    add_name(found, "FORMAT", FORMATS, default=FORMATS[0], help=formats)
    words = "folder to write; default: one in exports/, named after the run"
    found.add_argument("--out", type=Path, help=words)
    words = "upload it there, as in user/name; without a network: say what would be"
    found.add_argument("--repo", help=words)
    add_json(found)
    return found


def export(run_dir: Path, out: Path | None, repo: str | None) -> int:
    """Write the folder of a run, say where it is, and upload it if repo is given."""
    with collector_at_rest():
        from gpt2.infer.hf_export import NotTheSame, export_hf
        from gpt2.infer.trained import load_trained

    trained = load_trained(run_dir)
    folder = out or Path("exports", *run_dir.resolve().parts[-3:])
    say_doing(f"writing {folder}, and loading it again by transformers")
    try:
        found = export_hf(trained, folder)
    except NotTheSame as error:
        command = "export" if repo is None else "push"
        message = f"{command}: {trained.label} is not exported: {error}"
        return fail(message, EXIT_FAILED)
    answer(run=trained.label, folder=str(folder), bytes=found.size, uploaded=None)
    answer(is_native=found.is_native, deviation=found.deviation)
    kind = "GPT-2 of transformers" if found.is_native else "model with its own code"
    trust = "" if found.is_native else ", trust_remote_code=True"
    print(f"{trained.label}: {kind}, {size(found.size)}, in {folder}")
    print(f"Logits agree within {found.deviation:.1e} (relative, fp32). Load it by")
    print(f'  AutoModelForCausalLM.from_pretrained("{folder}"{trust})')
    if repo is not None:
        try:
            place = upload(folder, repo)
        except NotUploaded as error:
            return fail(f"push: {error}", EXIT_INTERRUPTED)
        answer(uploaded=place)
        print(f"Uploaded to {place}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_code(main))
