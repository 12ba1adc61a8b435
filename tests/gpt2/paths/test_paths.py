"""gpt2/paths: trials, and the paths of the MLP."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from gpt2.mlp import through_gelu
from gpt2.model import GPT
from gpt2.paths import mlp
from gpt2.paths.chosen import built_with, choose, serving
from gpt2.paths.trials import Trial, ranked
from tests.gpt2.helpers import tiny_step

CPU = torch.device("cpu")


def test_right_paths_are_ranked_by_time() -> None:
    slow, fast = Trial("flex", 2.0), Trial("triton", 1.0)
    assert ranked([slow, fast], "reference") == ["triton", "flex", "reference"]
    wrong = replace(fast, problem="differs")
    assert ranked([slow, wrong], "reference") == ["flex", "reference"]
    assert ranked([wrong], "reference") == ["reference"]
    assert ranked([replace(slow, path="torch")], "torch") == ["torch"]


@pytest.mark.parametrize("path", mlp.PATHS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_path_of_the_mlp_is_compared_and_timed(path: str, bias: bool) -> None:
    trial = mlp.attempt(path, tiny_step(0, bias=bias), CPU, 2)
    assert trial.problem == ""
    assert trial.seconds > 0


def test_a_wrong_path_of_the_mlp_is_found_out(monkeypatch) -> None:
    def without_bias(
        x: Tensor, into: Tensor, bias: Tensor | None, outof: Tensor, backend: str
    ) -> Tensor:
        zero = None if bias is None else 0 * bias
        wrong = zero if backend == "cublaslt" else bias
        return through_gelu(x, into, wrong, outof, "torch")

    monkeypatch.setattr(mlp, "through_gelu", without_bias)
    trial = mlp.attempt("cublaslt", tiny_step(0), CPU, 2)
    assert "differs from the reference" in trial.problem


def test_a_path_that_cannot_serve_is_said_and_replaced() -> None:
    asked = tiny_step(5, mlp_backend="cublaslt", attention_backend="sdpa")
    chosen, told = choose(asked, CPU, 4)
    assert told == [
        "attention by 'sdpa': no band; reference serves instead",
        "MLP by 'cublaslt': needs an NVIDIA GPU; torch serves instead",
    ]
    assert chosen.resources.mlp_backend == "torch"
    built = built_with(GPT(chosen), asked)
    assert serving(built, "cpu") == {
        "attention_backend": "reference",
        "mlp_backend": "torch",
    }
    assert choose(tiny_step(5), CPU, 4)[1] == []


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_cublaslt_is_missing_without_cuda() -> None:
    why = mlp.refusal(tiny_step(0, mixed_precision="bf16"), torch.device("cuda"))
    assert why == "cuBLASLt belongs to CUDA, which this torch was not built for"
