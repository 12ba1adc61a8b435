"""Headings of menuconfig, and the words that its search finds."""

import re

import kconfiglib
import pytest

from gpt2.mechanisms import mechanisms
from gpt2.plan.steps import STEPS
from gpt2.settings.configuration import strict_kconfig
from gpt2.settings.schema import SYMBOL_OF


@pytest.fixture(scope="module")
def nodes():
    return [*strict_kconfig().open([]).kconf.node_iter()]


def matches(nodes, words):
    """As the search of kconfiglib's menuconfig (key /): every word is in the name or in
    the prompt of a symbol, choice, menu or comment."""
    for node in nodes:
        name = getattr(node.item, "name", None) or ""
        prompt = node.prompt[0] if node.prompt else ""
        texts = name.lower(), prompt.lower()
        if all(any(re.search(w, t) for t in texts) for w in words.lower().split()):
            yield name


@pytest.mark.parametrize(
    ("words", "symbol"),
    [
        ("lr", "LEARNING_RATE"),
        ("learning rate", "LEARNING_RATE"),
        ("355M", "GPT2_MODEL_350M"),
        ("350M", "GPT2_MODEL_350M"),
        ("medium", "GPT2_MODEL_350M"),
        ("gpt-2 small", "GPT2_MODEL_124M"),
        ("dropout", "GPT2_DROPOUT"),
        ("sequence length", "GPT2_BLOCK_SIZE"),
        ("context", "GPT2_BLOCK_SIZE"),
        ("hidden size", "GPT2_N_EMBD"),
        ("d_model", "GPT2_N_EMBD"),
        ("batch size", "BATCH_SIZE"),
        ("accumulation", "GPT2_GRADIENT_ACCUMULATION"),
        ("warmup", "GPT2_WARMUP_STEPS"),
        ("warm-up", "GPT2_WARMUP_STEPS"),
        ("iterations", "GPT2_MAX_ITERS"),
        ("dataset", "GPT2_DATASET_STDLIB"),
        ("vocab", "GPT2_TOKENIZER_GPT2"),
        ("flash", "RA_MLA_ATTENTION_BACKEND_SDPA"),
        ("pretrained", "INIT_FROM"),
        ("mlp ratio", "RA_MLA_MLP_RATIO"),
        ("wandb", "ENABLE_WANDB"),
        ("bf16", "MIXED_PRECISION_BF16"),
        ("window", "RA_MLA_RA_WINDOW"),
    ],
)
def test_the_search_of_menuconfig_finds_it(nodes, words, symbol):
    assert symbol in matches(nodes, words)


@pytest.mark.parametrize("mechanism", mechanisms(), ids=lambda m: m.name)
def test_each_mechanism_has_a_heading_with_its_steps_above_its_settings(
    nodes, mechanism
):
    """generate_docs.py --check holds the text; here: where it is, and that the steps
    that set its switch are named."""
    below: dict[str, list[str]] = {}
    heading = ""
    for node in nodes:
        if node.item == kconfiglib.MENU:
            heading = ""
        elif node.item == kconfiglib.COMMENT:
            heading = node.prompt[0]
        elif heading and getattr(node.item, "name", None):
            below.setdefault(heading, []).append(node.item.name)
    (title,) = (text for text in below if text.startswith(f"{mechanism.title} (step"))
    mine = {SYMBOL_OF[name] for name in vars(mechanism.Fields)["__annotations__"]}
    assert mine <= {*below[title]}, title
    switch, off = next(iter(mechanism.off.items()))
    named = numbers_in(title)
    for step in STEPS.values():
        if step.changes.get(switch, off) not in (off, "mha", "mla", "mla_rope"):
            assert step.id in named, (title, step.id)


def numbers_in(text):
    found = re.findall(r"(\d+)(?:-(\d+))?", text.partition("(step")[2])
    return {n for a, b in found for n in range(int(a), int(b or a) + 1)}
