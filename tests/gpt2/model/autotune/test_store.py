"""Choices of kernels that the next matrix finds next to the compiled code."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpt2.model.autotune import store
from gpt2.model.autotune.store import Tuning
from lib.gpu.compile_cache import INDUCTOR

PLACE = "a GPU, torch 2.13"
FIRST = Tuning(ranks={"attention 8": ["triton"]}, choices={"tile": 1}, arms=["a"])
LATER = Tuning(ranks={"attention 8": ["sdpa"]}, choices={"other": 2}, arms=["b"])


def test_another_matrix_takes_what_it_lacks_and_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "compiled"))
    assert store.kept(PLACE) == Tuning()
    store.keep(PLACE, FIRST)
    assert store.kept(PLACE) == FIRST
    assert store.kept("another GPU") == Tuning()
    found = store.add(tmp_path / "kernels.json", PLACE, LATER)
    found = store.add(tmp_path / "kernels.json", PLACE, store.kept(PLACE))
    assert found == store.read(tmp_path / "kernels.json", PLACE)
    assert found.ranks == LATER.ranks and found.arms == ["a", "b"]
    assert found.choices == {"tile": 1, "other": 2}


def test_other_kernels_have_other_choices(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(INDUCTOR, str(tmp_path))
    store.keep(PLACE, FIRST)
    monkeypatch.setattr(store, "operators_version", lambda: "changed")
    assert store.kept(PLACE) == Tuning()


def test_a_folder_that_cannot_be_written_or_read_keeps_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv(INDUCTOR, str(tmp_path / "file"))
    store.keep(PLACE, FIRST)
    assert store.kept(PLACE) == Tuning()
    monkeypatch.setenv(INDUCTOR, str(tmp_path))
    file = store.kept_file()
    assert file is not None
    file.write_text("{damaged")
    assert store.kept(PLACE) == Tuning()
    monkeypatch.delenv(INDUCTOR)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.delenv("HOME")
    assert store.kept_file() is None
