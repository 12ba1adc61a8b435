"""README.md of an exported model: what it is, how it was trained, what was found."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from gpt2.audit.stamp import audit_state
from gpt2.infer.trained import TrainedModel
from gpt2.plan.jobs import Job
from gpt2.settings.schema import IDENTITY_PARTS, SYMBOL_OF
from lib.human import count
from lib.jobs.run_files import MANIFEST_FILE, STATUS_FILE
from lib.safe_json import Unusable, as_dict, clean, number, read_foreign_json, text

RESULTS = {  # column of the result: how the card calls it, and its digits
    "val_loss": ("validation loss, nats per token", ".4f"),
    "val_perplexity": ("validation perplexity", ".2f"),
    "val_accuracy": ("validation accuracy", ".3f"),
    "bits_per_byte": ("bits per byte", ".4f"),
}


def model_card(trained: TrainedModel, native: bool) -> str:
    """The card in Markdown; native: whether transformers loads it without our code."""
    run_dir, job = trained.run_dir, trained.job
    manifest, status = (_read(run_dir / n) for n in (MANIFEST_FILE, STATUS_FILE))
    result = as_dict(status.get("result"))
    lines = [
        *_head(),
        f"# {_name(job)}",
        "",
        f"{_plain(job.title)}, {count(_parameters(trained))} parameters, trained with "
        "kablate, a laboratory for ablation studies of GPT-2 style models.",
        "",
        *_usage(trained, native),
        *_section("Results", _results(result, status)),
        *_section("Verdict", _verdict(run_dir, job)),
        *_section("Certificates", _certificates(run_dir, manifest)),
        *_section("Data", _data(job, manifest)),
        *_section("Settings", _settings(job)),
        *_section("Licence", _licence()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _head() -> Iterator[str]:
    yield "---"
    yield "license: mit"
    yield "library_name: transformers"
    yield "pipeline_tag: text-generation"
    yield "tags:\n- kablate\n- gpt2"
    yield "---"
    yield ""


def _usage(trained: TrainedModel, native: bool) -> Iterator[str]:
    trust = "" if native else ", trust_remote_code=True"
    yield "```python"
    yield "from transformers import AutoModelForCausalLM, AutoTokenizer"
    yield ""
    yield f'model = AutoModelForCausalLM.from_pretrained("FOLDER"{trust})'
    yield f'tokenizer = AutoTokenizer.from_pretrained("FOLDER"{trust})'
    yield 'prompt = tokenizer("Once upon a time", return_tensors="pt")'
    yield "new = model.generate(**prompt, max_new_tokens=40, do_sample=True)"
    yield "print(tokenizer.decode(new[0]))"
    yield "```"
    yield ""
    yield f"Its context is {trained.model.block_size} tokens."
    if not native:
        yield (
            "\nSequences of a batch must have one length: padding is refused. The code "
            "in this folder was copied from kablate's own sources."
        )
    yield ""


def _section(title: str, lines: Iterator[str]) -> Iterator[str]:
    yield from ["", f"## {title}", "", *lines]


def _results(result: Mapping[str, Any], status: Mapping[str, Any]) -> Iterator[str]:
    yield from _table("measure", "value")
    for column, (words, digits) in RESULTS.items():
        value = number(result.get(column))
        if value is not None:
            yield f"| {words} | {value:{digits}} |"
    for words, found in {
        "optimizer updates": number(status.get("step")),
        "training tokens": number(result.get("tokens")),
    }.items():
        if found is not None:
            yield f"| {words} | {found:,.0f} |"


def _verdict(run_dir: Path, job: Job) -> Iterator[str]:
    """Section with the report's results for the arm, over all of its seeds."""
    found = _comparison(run_dir, job)
    if found is None:
        yield "None: no report has compared this arm with another."
        return
    partner = as_dict(found.get("partner"))
    verdict = as_dict(found.get("at_equal_steps"))
    yield f"**{text(verdict.get('grade'))}** against {_label(partner)}."
    mean, interval = number(verdict.get("mean")), verdict.get("interval")
    if mean is not None:
        line = f"Its validation loss differs by {mean:+.4f} nats per token"
        if isinstance(interval, list) and len(interval) == 2:
            low, high = (number(end) for end in interval)
            if low is not None and high is not None:
                line += f" (95%: {low:+.4f} to {high:+.4f})"
        seeds = verdict.get("seeds")
        yield line + f", over {len(seeds) if isinstance(seeds, list) else 0} seeds."
    reasons = verdict.get("reasons")
    yield from (f"{clean(r)}." for r in (reasons if isinstance(reasons, list) else []))


def _comparison(run_dir: Path, job: Job) -> dict[str, Any] | None:
    depth = len(Path(job.run_dir).parts)
    root = run_dir.absolute().parents[depth - 1]
    verdicts = as_dict(_read(root / "summary.json").get("verdicts"))
    listed = verdicts.get("comparisons")
    for one in map(as_dict, listed if isinstance(listed, list) else []):
        if (one.get("step"), one.get("name")) == (job.step, job.name):
            return one
    return None


def _certificates(run_dir: Path, manifest: Mapping[str, Any]) -> Iterator[str]:
    yield f"- before training: {text(manifest.get('verified')) or 'not run'}"
    compared = as_dict(manifest.get("as_trained"))
    said = "compared with the plain formulas" if compared else "not compared"
    yield f"- gradients of the code that trained: {said}"
    yield f"- audit of the results by other code: {clean(audit_state(run_dir))}"
    yield "- this folder: logits equal those of the trained model within 1e-5 (fp32)"


def _data(job: Job, manifest: Mapping[str, Any]) -> Iterator[str]:
    data = job.settings.data
    yield f"- data set: {_plain(data.dataset)}"
    yield f"- tokenizer: {data.tokenizer}, {job.settings.vocab_size} tokens"
    fingerprint = text(manifest.get("data_fingerprint"))
    yield f"- fingerprint of the training text: {fingerprint}"


def _settings(job: Job) -> Iterator[str]:
    """Settings of the model and its training that are not Kconfig's defaults."""
    yield f"Run {job.hash}, seed {job.seed}. What differs from kablate's defaults:"
    yield ""
    yield from _table("setting", "value")
    parts = job.settings.to_dict()
    for part in IDENTITY_PARTS:
        for name, value in parts[part].items():
            is_set = job.origins.get(name, "default") != "default"
            if is_set and value not in (False, "", "none") and name != "text_path":
                yield f"| {SYMBOL_OF[name]} | {_plain(value)} |"


def _licence() -> Iterator[str]:
    yield "Code and weights: MIT, see LICENSE. The training text has a licence of its"
    yield "own, which may say more about what may be done with the weights."


def _table(*columns: str) -> Iterator[str]:
    yield f"| {' | '.join(columns)} |"
    yield "|---" * len(columns) + "|"


def _name(job: Job) -> str:
    return f"kablate {_label({'step': job.step, 'name': job.name})}, seed {job.seed}"


def _label(arm: Mapping[str, Any]) -> str:
    step = "" if arm.get("step") is None else f"step {arm['step']} "
    return f"{step}{_plain(arm.get('name'))}"


def _plain(value: object) -> str:
    """Within a table or a sentence of Markdown, without effect."""
    return clean(value).replace("|", "\\|").replace("<", "&lt;")


def _parameters(trained: TrainedModel) -> int:
    return sum(p.numel() for p in trained.model.parameters())


def _read(path: Path) -> dict[str, Any]:
    try:
        return as_dict(read_foreign_json(path))
    except Unusable:
        return {}
