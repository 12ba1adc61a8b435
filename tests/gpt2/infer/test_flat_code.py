"""gpt2/infer/flat_code.py: copies of the sources compute what the sources do."""

from __future__ import annotations

import ast
import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from gpt2.infer.flat_code import ROOT, flat_modules
from gpt2.infer.hf_export import published_settings
from gpt2.plan.steps import STEPS
from gpt2.settings.schema import Settings
from tests.gpt2.helpers import generic, tiny_model, tiny_step, tokens_of

ENTRIES = {"gpt2.model.gpt": "gpt"}


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The copy of gpt2/model/gpt.py, next to the modules that it imports."""
    folder = tmp_path_factory.mktemp("flat") / "flat_copy"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    for name, text in flat_modules(ENTRIES).items():
        (folder / name).write_text(text)
    sys.path.insert(0, str(folder.parent))
    yield importlib.import_module("flat_copy.gpt")
    sys.path.remove(str(folder.parent))
    for name in [name for name in sys.modules if name.startswith("flat_copy")]:
        del sys.modules[name]


def same(flat: ModuleType, settings: Settings, heads: tuple[int, ...] | None) -> None:
    plain = sys.modules["flat_copy.gpt2_infer_plain_settings"]
    read = plain.Settings(published_settings(settings), settings.vocab_size)
    ours = generic(settings, dtype=torch.float32)
    if heads is not None:
        ours = type(ours)(settings, heads).eval()
    theirs = flat.GPT(read, heads).eval()
    theirs.load_state_dict(ours.state_dict())
    tokens = tokens_of(settings, 2, 9)
    with torch.no_grad():
        assert torch.equal(theirs.logits(tokens), ours.logits(tokens))
    cache, mine = theirs.new_cache(), ours.new_cache()
    for part in tokens.split([6, 1, 2], 1):
        assert torch.equal(theirs.decode(part, cache), ours.decode(part, mine))


@pytest.mark.parametrize("number", STEPS)
def test_every_step_computes_the_same_bits(flat: ModuleType, number: int) -> None:
    same(flat, tiny_step(number), None)


def test_a_model_without_some_heads_does_too(flat: ModuleType) -> None:
    same(flat, tiny_model(), (3, 1, 4))


def test_copies_import_torch_and_what_python_has_alone() -> None:
    for name, text in flat_modules(ENTRIES).items():
        for node in ast.walk(ast.parse(text)):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            for found in names:
                top = found.split(".")[0]
                assert top == "torch" or top in sys.stdlib_module_names, (name, found)
        assert "find_spec(" not in text, name


def test_what_is_copied_is_the_source_word_for_word() -> None:
    texts = flat_modules(ENTRIES)
    for file in ("block", "context"):
        source = (ROOT / f"gpt2/model/{file}.py").read_text()
        _, start, rest = source.partition("\n\n\n")
        assert start + rest.rstrip() in texts[f"gpt2_model_{file}.py"]
    # Of a module that is needed for one function, that function alone.
    assert texts["lib_gpu_device.py"].count("\ndef ") == 1


def test_files_have_names_that_transformers_can_copy(tmp_path: Path) -> None:
    utils = pytest.importorskip("transformers.dynamic_module_utils")
    for name, text in flat_modules(ENTRIES).items():
        (tmp_path / name).write_text(text)
    seen = {Path(p).name for p in utils.get_relative_import_files(tmp_path / "gpt.py")}
    assert seen | {"gpt.py"} == {path.name for path in tmp_path.iterdir()}
