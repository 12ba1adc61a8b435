"""lib/kernels/ahead.py: launches that are compiled all at once, and not carried out."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from lib.kernels import ahead, choices


@pytest.fixture(autouse=True)
def nothing_chosen() -> Iterator[None]:
    choices.forget()
    yield
    choices.forget()


def test_noted_work_is_done_by_threads_once_for_each_key() -> None:
    done: list[str] = []

    def work(name: str) -> None:
        assert threading.current_thread() is not threading.main_thread()
        done.append(name)

    def fails() -> None:
        raise RuntimeError("a tile too large for the card")

    assert not ahead.is_collecting()
    with ahead.collected():
        assert ahead.is_collecting()
        for name in ("a", "b", "a"):
            ahead.note(name, partial(work, name))
        ahead.note("c", fails)
        assert not done
    assert not ahead.is_collecting()
    ahead.wait()
    assert sorted(done) == ["a", "b"]


def test_an_error_ends_the_collection_and_compiles_nothing() -> None:
    done: list[int] = []
    with pytest.raises(ValueError, match="refused"), ahead.collected():
        ahead.note("a", lambda: done.append(1))
        raise ValueError("refused")
    ahead.wait()
    assert not done and not ahead.is_collecting()


def test_settled_choices_are_the_only_open_ones() -> None:
    assert choices.still_open("key", (1, 2, 3)) == (1, 2, 3)
    choices.load({"key": 2, "old": 9})
    assert choices.still_open("key", (1, 2, 3)) == [2]
    assert choices.still_open("old", (1, 2, 3)) == (1, 2, 3)


@pytest.mark.parametrize("learned", [False, True])
def test_all_tiles_of_a_layers_kernels_are_compiled_and_none_is_launched(
    learned: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    from triton.runtime.jit import JITFunction

    from lib.kernels import causal, tiles
    from lib.kernels.causal_op import attention

    if not isinstance(causal.forward_kernel, JITFunction):
        pytest.skip("imported for the interpreter")
    compiled: set[tuple[str, int, int, int, int]] = set()

    def run(self: object, *arguments: object, warmup: bool, **named: int) -> None:
        assert warmup, "launched"
        tile = (named["BM"], named["BN"], named["num_warps"], named["num_stages"])
        compiled.add((self.fn.__name__, *tile))  # type: ignore[attr-defined]

    monkeypatch.setattr(JITFunction, "run", run)
    monkeypatch.setattr(tiles, "architecture", lambda device: "sm_90")
    q, k, v = (
        torch.zeros(1, 2, 64, 16, dtype=torch.bfloat16, requires_grad=True)
        for _ in range(3)
    )
    with ahead.collected():
        alpha = torch.zeros(2, requires_grad=True) if learned else 0.3
        out = attention(q, k, v, scale=0.25, window=4, alpha=alpha)[0]
        torch.autograd.grad(out, (q, k, v), torch.zeros_like(out))
    ahead.wait()
    kernels = ("forward_kernel", "rows_kernel", "columns_kernel")
    expected = {
        (name, *tile) for name in kernels for tile in tiles.TILES[name]["nvidia"]
    }
    assert compiled == expected
    assert choices.found() == {} and choices.by_default() == []
