"""Continue a text with trained models, several of them side by side.

The prompt is continued token by token through each model's decode cache; without one,
prompts are read line by line. The text goes to standard output, and how it ended, with
the speed, to standard error. One seed gives every model the same noise, and the same
text on the same device each time.
Exit codes: 0 done; 2 no such run, no usable model in it, or an option that makes no
sense.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import math
import re
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpt2.infer.chosen_runs import add_run_options, chosen_runs
from gpt2.settings.rerun_commands import make_command, show_next
from lib.jobs.import_gc import collector_at_rest
from lib.json_answer import add_json, answer, answers_json, is_json, refuse
from lib.number_option import COUNT, COUNT_OR_0, Allowed, add_number
from lib.output import exit_code

if TYPE_CHECKING:
    from gpt2.infer.text import Request
    from gpt2.infer.trained import TrainedModel

TEMPERATURE = Allowed(
    float, lambda x: 0 <= x < math.inf, "a number of at least 0, as in 0.8"
)
SEED = 1
PROBABILITY = Allowed(float, lambda x: 0 < x <= 1, "above 0 and at most 1, as in 0.9")


@answers_json("sample")
def main(arguments: Sequence[str] | None = None) -> int:
    try:
        options = parser().parse_args(arguments)
        chosen = chosen_runs(options)
        note_options(options)
        with collector_at_rest():
            from gpt2.infer.trained import load_trained, prepare_device

        device = prepare_device(chosen.resources).device
        texts: list[dict[str, object]] = []
        models = [load_trained(folder, device) for folder in chosen.folders]
        number = -1
        for number, prompt in enumerate(prompts(options.prompt)):
            try:
                texts += sample(models, prompt, request(options, number))
            except ValueError as error:
                if options.prompt:
                    raise
                print(f"sample: {error}", file=sys.stderr)
        if number < 0:
            raise ValueError("there is no PROMPT, and standard input is empty")
    except (ValueError, OSError) as error:
        return refuse("sample", error)
    answer(texts=texts)
    words = f"RUNS={options.run}", f"RESULTS={chosen.results or ''}"
    command = make_command("eval", words)
    show_next(command, "scores on text, repetition, questions", sys.stderr)
    return 0


def parser() -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(prog="sample.py", description=__doc__)
    add = found.add_argument
    add_run_options(found)
    add("--prompt", default="", help="the text to continue; default: ask for prompts")
    words = "divides the logits; 0: the likeliest token (default %(default)s)"
    add_number(found, "TEMPERATURE", TEMPERATURE, default=0.8, help=words)
    words = "only so many of the likeliest tokens (default: all)"
    add_number(found, "TOP_K", COUNT_OR_0, default=0, help=words)
    words = "only the likeliest tokens that reach this probability (default: all)"
    add_number(found, "TOP_P", PROBABILITY, default=1.0, help=words)
    words = "of the noise; later prompts count up from it (default %(default)s)"
    add_number(found, "SEED", COUNT_OR_0, default=SEED, help=words)
    words = "at most so many tokens, as far as the context reaches (default 200)"
    add_number(found, "COUNT", COUNT, default=200, help=words)
    words = (
        r"end before this text; \n, \t and \\ are a line break, a tab and a backslash"
    )
    add("--stop", type=unescaped, default="", help=words)
    add_json(found)
    return found


def unescaped(text: str) -> str:
    r"""The text with \n, \t, \r and \\ replaced, as printf reads them; any other
    backslash stays as it is."""
    signs = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}
    return re.sub(r"\\([ntr\\])", lambda found: signs[found[1]], text)


def note_options(options: argparse.Namespace) -> None:
    """Print which options have no effect where the likeliest token is taken, and that
    a prompt is taken as it is."""
    if r"\n" in options.prompt:
        how = r"in bash, PROMPT=$'...\n...' has a line break"
        print(rf"note: \n in PROMPT is a backslash and an n; {how}", file=sys.stderr)
    usual = {"top_k": 0, "top_p": 1.0, "seed": SEED}
    given = {name: getattr(options, name) for name in usual}
    unused = [f"{k.upper()}={v}" for k, v in given.items() if v != usual[k]]
    if unused and not options.temperature:
        words = f"no effect of {', '.join(unused)}: TEMPERATURE=0 takes the likeliest"
        print(f"note: {words} token", file=sys.stderr)


def request(options: argparse.Namespace, number: int) -> Request:
    """The request for the prompt of that number."""
    from gpt2.infer.sampling import Sampling
    from gpt2.infer.text import Request

    sampling = Sampling(
        temperature=options.temperature, top_k=options.top_k, top_p=options.top_p
    )
    return Request(
        count=options.count,
        sampling=sampling,
        seed=options.seed + number,
        stop=options.stop,
    )


def prompts(given: str) -> Iterator[str]:
    """The prompt given, or one per line of standard input until it ends."""
    if given:
        yield given
        return
    asks = sys.stdin.isatty() and sys.stdout.isatty()
    if asks:
        import readline  # noqa: F401  edits the line and recalls earlier ones

        print("A prompt per line; Ctrl-C ends a text, Ctrl-D all.", file=sys.stderr)
    while True:
        try:
            yield input("> " if asks else "")
        except EOFError:
            return


def sample(
    models: Sequence[TrainedModel], prompt: str, asked: Request
) -> list[dict[str, object]]:
    """Print how each model continues a prompt; with --json the texts instead.

    Raises ValueError for a prompt that is too long.
    """
    from gpt2.infer import show
    from gpt2.infer.text import Continuation

    texts = [Continuation(model, prompt, asked) for model in models]
    if is_json():
        return [show.to_json(prompt, text) for text in texts]
    if len(texts) == 1:
        show.streaming(prompt, texts[0])
    else:
        show.side_by_side(prompt, texts)
    return []


if __name__ == "__main__":
    sys.exit(exit_code(main))
