"""Tasks of EleutherAI's lm-evaluation-harness on a trained model.

Needs the extra eval. Requests are split into tokens, shortened and scored as by the
harness' own "hf" model, so that its numbers for an exported folder are the same.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.evaluator import evaluate
from lm_eval.models.utils import handle_stop_sequences
from lm_eval.tasks import TaskManager
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from gpt2.data.tokenizer import END_OF_TEXT
from gpt2.infer.sampling import Sampling, next_tokens
from gpt2.infer.scores import Scores, token_scores
from gpt2.infer.trained import TrainedModel
from lib.suggestions import hint

SHIPPED = Path(__file__).parent / "tasks"
FEWSHOT_SEED = 1234  # of the harness' command line
NEW_TOKENS = 256  # of a request that names no number, as in the harness
# Metrics of one document that the harness sums before it takes a mean or a power:
# (log-likelihood, words or bytes), or a log-likelihood alone. Here they are means of
# documents, in these units.
PER_UNIT = {
    "word_perplexity": ("nats per word", 1.0),
    "byte_perplexity": ("nats per byte", 1.0),
    "bits_per_byte": ("bits per byte", math.log(2)),
}
LogLikelihood = tuple[float, bool]


class KablateLM(TemplateLM):
    """Requests of the harness answered by a trained model, decoding with its cache.

    shortened: how many texts lost their beginning to the context.
    """

    def __init__(self, trained: TrainedModel) -> None:
        super().__init__()
        self.trained = trained
        self.max_length = trained.model.block_size
        self.shortened = 0

    @property
    def eot_token_id(self) -> int:
        return self.trained.encoding.eot_token

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **_: object
    ) -> list[int]:
        return self.trained.encoding.encode_ordinary(string)

    def loglikelihood(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[LogLikelihood]:
        """(log-likelihood in nats, whether greedy decoding gives it) of continuations.

        Raises ValueError for a continuation without tokens, or longer than the context.
        """
        found: list[LogLikelihood] = super().loglikelihood(requests, disable_tqdm=True)
        return found

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = True,
        **_: object,
    ) -> list[LogLikelihood]:
        rows = []
        for _, context, own in requests:
            if not 0 < len(own) <= self.max_length:
                raise ValueError(
                    f"a continuation has {len(own)} tokens, but {self.trained.label} "
                    f"scores 1 to {self.max_length}, its context"
                )
            row = [*context, *own][-(self.max_length + 1) :]
            self.shortened += len(row) < len(context) + len(own)
            rows.append(row)
        scores = token_scores(self.trained, rows)
        return [
            (-float(nats[-len(own) :].sum()), bool(likeliest[-len(own) :].all()))
            for (_, _, own), (nats, likeliest) in zip(requests, scores, strict=True)
        ]

    def loglikelihood_rolling(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[float]:
        """Log-likelihood of whole texts, in nats; every token is scored once, the last
        ones of a long text with a full context."""
        found = []
        for request in requests:
            pieces = map(
                make_disjoint_window,
                get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.prefix_token_id,
                    max_seq_len=self.max_length,
                    context_len=1,
                ),
            )
            windows = [(None, before, own) for before, own in pieces]
            scores = self._loglikelihood_tokens(windows)
            found.append(math.fsum(nats for nats, _ in scores))
        return found

    def generate_until(
        self, requests: list[Instance], disable_tqdm: bool = True
    ) -> list[str]:
        """Continuations up to a stop text, through the cache.

        Raises ValueError for options of generation that there are not here.
        """
        generator = torch.Generator(self.trained.device).manual_seed(0)
        asked = ((*request.args,) for request in requests)
        return [self._continue(text, how, generator) for text, how in asked]

    def _continue(
        self, context: str, options: Mapping[str, Any], generator: torch.Generator
    ) -> str:
        stops, count, sampling = generation_options(options)
        if count >= self.max_length:
            raise ValueError(
                f"a task generates {count} tokens, but {self.trained.label} has a "
                f"context of {self.max_length}"
            )
        room = self.max_length - count
        tokens = self.tok_encode(context) or [self.eot_token_id]
        self.shortened += len(tokens) > room
        prompt = torch.tensor([tokens[-room:]], device=self.trained.device)
        new: list[int] = []
        said = ""
        drawn = next_tokens(self.trained.decoder, prompt, sampling, generator)
        for token in islice(drawn, count):
            if int(token) == self.eot_token_id:
                break
            new.append(int(token))
            said = self.trained.encoding.decode(new)
            if any(stop in said for stop in stops):
                break
        return said[
            : min((at for s in stops if (at := said.find(s)) >= 0), default=len(said))
        ]


def generation_options(options: Mapping[str, Any]) -> tuple[list[str], int, Sampling]:
    """(stop texts, number of tokens, sampling) of a request; without do_sample the
    likeliest token is taken.

    Raises ValueError for an option that would have no effect.
    """
    rest = dict(options)
    stops = handle_stop_sequences(rest.pop("until", None), eos=END_OF_TEXT)
    count = NEW_TOKENS
    for name in ("max_gen_toks", "max_new_tokens", "max_tokens"):
        count = rest.pop(name, count)
    temperature = float(rest.pop("temperature", 1.0))
    if not rest.pop("do_sample", False):
        temperature = 0.0
    top_k, top_p = int(rest.pop("top_k", 0)), float(rest.pop("top_p", 1.0))
    if rest:
        raise ValueError(f"a task asks for {', '.join(sorted(rest))} in generation")
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p)
    return [stop for stop in stops if stop], int(count), sampling


# ---- tasks ----------------------------------------------------------------------


@dataclass(slots=True)
class Tasks:
    """Tasks by name or file, to be loaded again for each model: they keep its answers.

    Files are those of the harness, which may run code that is next to them.
    """

    names: Sequence[str]
    _manager: Any = field(default=None)

    def load(self) -> dict[str, Any]:
        """As TaskManager.load(); raises ValueError, naming the task, if one cannot be
        had."""
        logging.getLogger("lm_eval").setLevel(logging.ERROR)
        found: dict[str, Any] = {"tasks": {}, "groups": {}, "group_map": {}}
        for name in self.names:
            for kind, loaded in self._load(name).items():
                found[kind] |= loaded
        for task in found["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=FEWSHOT_SEED)
        return found

    def _load(self, name: str) -> dict[str, Any]:
        path = next((p for p in _files(name) if p.is_file()), None)
        manager: Any = self._manager
        place: AbstractContextManager[None] = contextlib.nullcontext()
        if path is None and name.endswith((".yaml", ".yml")):
            raise ValueError(f"TASKS={name}: there is no such file")
        if path is not None:  # its data files are found from its folder
            name, place = str(path), contextlib.chdir(path.parent)
            manager = TaskManager(include_defaults=False)
        elif manager is None:
            manager = self._manager = TaskManager()
        if path is None and name not in manager.all_tasks:
            raise ValueError(
                f"TASKS={name}: neither a file nor a task of lm-evaluation-harness "
                f"{version('lm_eval')}{hint(name, [*manager.all_tasks, *shipped()])}"
            )
        try:
            with place:
                loaded: dict[str, Any] = manager.load([name])
        except Exception as error:  # of the task's own code, its data or the network
            line = " ".join(f"{type(error).__name__}: {error}".split())[:300]
            raise ValueError(f"TASKS={name} cannot be loaded: {line}") from None
        return loaded


def _files(name: str) -> Iterator[Path]:
    """Places of a task's file."""
    yield Path(name).absolute()
    yield SHIPPED / f"{name}.yaml"


def shipped() -> list[str]:
    """Names of the tasks that come with kablate."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def score_tasks(
    trained: TrainedModel, tasks: Tasks, count: int, into: Scores
) -> dict[str, Any]:
    """Score the first ``count`` documents of each task, one number per document and
    metric; the harness' own results, as it reports them.

    Raises ValueError if a task cannot be had, asks for what there is not here, or
    executes generated code.
    """
    model = KablateLM(trained)
    found = evaluate(
        model,
        tasks.load(),
        limit=count,
        bootstrap_iters=0,
        log_samples=True,
    )
    for task, samples in found["samples"].items():
        _add_samples(task, samples, into)
        total = found["n-samples"][task]
        if total["effective"] < total["original"]:
            into.notes.append(
                f"{task}: the first {total['effective']} of {total['original']} "
                "documents (ITEMS)"
            )
    if model.shortened:
        into.notes.append(
            f"TASKS: {model.shortened} texts lost their beginning to the context of "
            f"{model.max_length} tokens"
        )
    kept = ("results", "groups", "versions", "n-shot", "n-samples", "higher_is_better")
    return {"lm_eval": version("lm_eval"), **{k: found[k] for k in kept if k in found}}


def _add_samples(task: str, samples: Sequence[Mapping[str, Any]], into: Scores) -> None:
    filters = dict.fromkeys(sample["filter"] for sample in samples)
    for chosen in filters:
        own = [sample for sample in samples if sample["filter"] == chosen]
        asked = [
            [x[k] for k in ("doc_hash", "prompt_hash", "target_hash")] for x in own
        ]
        for metric in own[0]["metrics"]:
            values = [sample[metric] for sample in own if metric in sample]
            name, numbers = per_document(metric, values)
            if len(numbers) != len(own):
                into.notes.append(
                    f"{task}: {metric} is not a number per document, so arms are not "
                    "compared by it; OUT has the harness' result"
                )
                continue
            suffix = "" if chosen == "none" or len(filters) == 1 else f" ({chosen})"
            into.add(f"{task}, {name}{suffix}", numbers, [task, asked])


def per_document(metric: str, values: Sequence[Any]) -> tuple[str, list[float]]:
    """(name, number of each document) of a metric; no numbers if it has none."""
    if metric in PER_UNIT and all(_is_pair(value) for value in values):
        name, scale = PER_UNIT[metric]
        return name, [-float(nats) / float(units) / scale for nats, units in values]
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        return metric, []
    if not all(map(math.isfinite, numbers)):
        return metric, []
    if metric == "perplexity":  # exp of the mean of what is given here
        return "nats", [-number for number in numbers]
    return metric, numbers


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple) and len(value) == 2 and float(value[1]) > 0
