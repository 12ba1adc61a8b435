"""Kernels that one recorded token launches in a layer: what a GPU's time depends on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from tests.gpt2.helpers import generic, tiny_step, tokens_of
from tests.interpreted import interpreted

# Of step 0, RA, RA-CT at the output and at the weights, the cross-token MLP alone, MLA
# with RA, all together, and MLA with latent reciprocity.
PER_LAYER = {0: 13, 5: 13, 13: 13, 17: 13, 22: 15, 11: 14, 16: 18, 25: 17}


class Launches(TorchDispatchMode):
    """Counts torch's operations that compute or copy numbers, which views do not, and
    programs by Triton's interpreter."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(
        self,
        func: Any,
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        returned = out[0] if isinstance(out, (tuple, list)) else out
        read = [x.untyped_storage()._cdata for x in args if isinstance(x, torch.Tensor)]
        is_view = returned.untyped_storage()._cdata in read
        is_view &= not func._schema.is_mutable
        self.count += not (is_view or "empty" in func._schema.name)
        return out


@torch.no_grad()
def launches(number: int, layers: int) -> int:
    from triton.runtime.interpreter import GridExecutor

    settings = tiny_step(number, n_layer=layers, block_size=32, ra_window=5)
    model = generic(settings, dtype=torch.float32)
    tokens, cache = tokens_of(settings, 1, 9), model.new_cache()
    model.decode(tokens, cache)
    true, counted = GridExecutor.__call__, Launches()

    def execute(self: Any, *args: Any, **kwargs: Any) -> None:
        counted.count += 1
        with _disable_current_modes():
            true(self, *args, **kwargs)

    model.decode_at(tokens[:, -1:], cache, 16)  # products of weights are made once
    with patch.object(GridExecutor, "__call__", execute), counted:
        model.decode_at(tokens[:, -1:], cache, 16)
    return counted.count


def per_layer() -> dict[int, int]:
    return {n: launches(n, 3) - launches(n, 2) for n in PER_LAYER}


def test_steps_launch_few_more_kernels_than_step_0() -> None:
    pytest.importorskip("triton", reason="Triton is not installed")
    assert interpreted(per_layer) == {str(n): k for n, k in PER_LAYER.items()}
