"""gpt2/model/autotune: trials, and the backends of the MLP."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from gpt2.model.autotune import attention, controls, mlp
from gpt2.model.autotune.choice import (
    built_with,
    choose_backends,
    names_of,
    next_without,
    serving,
    suspects,
)
from gpt2.model.autotune.store import Tuning
from gpt2.model.autotune.trials import Trial, ranked
from gpt2.model.backends.call import Platform
from gpt2.model.gpt import GPT
from gpt2.model.mlp import through_gelu
from gpt2.settings.schema import Settings
from gpt2.train.choose_kernels import tune
from lib.gpu.device import select_device
from tests.gpt2.helpers import tiny_step

CPU = torch.device("cpu")


def test_right_backends_are_ranked_by_time() -> None:
    slow, fast = Trial("flex", 2.0), Trial("triton", 1.0)
    assert ranked([slow, fast], "reference") == ["triton", "flex", "reference"]
    wrong = replace(fast, problem="differs")
    assert ranked([slow, wrong], "reference") == ["flex", "reference"]
    assert ranked([wrong], "reference") == ["reference"]
    assert ranked([replace(slow, backend="torch")], "torch") == ["torch"]


@pytest.mark.parametrize("backend", mlp.BACKENDS)
@pytest.mark.parametrize("bias", [True, False])
def test_a_backend_of_the_mlp_is_compared_and_timed(backend: str, bias: bool) -> None:
    trial = mlp.try_mlp(backend, tiny_step(0, bias=bias), CPU, 2)
    assert trial.problem == ""
    assert trial.seconds > 0


def test_a_wrong_backend_of_the_mlp_is_detected(monkeypatch) -> None:
    def without_bias(
        x: Tensor, into: Tensor, bias: Tensor | None, outof: Tensor, backend: str
    ) -> Tensor:
        zero = None if bias is None else 0 * bias
        wrong = zero if backend == "cublaslt" else bias
        return through_gelu(x, into, wrong, outof, "torch")

    monkeypatch.setattr(mlp, "through_gelu", without_bias)
    trial = mlp.try_mlp("cublaslt", tiny_step(0), CPU, 2)
    assert "differs from the reference" in trial.problem


def test_a_backend_that_cannot_serve_is_named_and_replaced() -> None:
    asked = tiny_step(5, mlp_backend="cublaslt", attention_backend="sdpa")
    chosen, lines = choose_backends(asked, CPU, 4)
    assert lines == [
        "attention by 'sdpa': no band; reference serves instead",
        "MLP by 'cublaslt': needs an NVIDIA GPU; torch serves instead",
    ]
    assert chosen.resources.mlp_backend == "torch"
    built = built_with(GPT(chosen), asked)
    assert serving(built, "cpu") == {
        "attention_backend": "reference",
        "mlp_backend": "torch",
    }
    assert choose_backends(tiny_step(5), CPU, 4)[1] == []


@pytest.mark.skipif(torch.version.cuda is not None, reason="this torch has CUDA")
def test_cublaslt_is_missing_without_cuda() -> None:
    why = mlp.unsupported(tiny_step(0, mixed_precision="bf16"), torch.device("cuda"))
    assert why == "cuBLASLt belongs to CUDA, which this torch was not built for"


# ---- an A/A control ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "usual", "other"),
    [("auto", "sdpa", "reference"), ("reference", "reference", "sdpa")],
)
def test_a_control_on_a_cpu_takes_the_other_attention(
    named: str, usual: str, other: str
) -> None:
    baseline = tiny_step(0, attention_backend=named)
    control = baseline.replace(other_kernels=True)
    lines = [choose_backends(settings, CPU, 4)[1] for settings in (baseline, control)]
    assert lines == [[], [f"A/A control: attention {other} instead of {usual}"]]
    for settings, path in ((baseline, usual), (control, other)):
        built = built_with(GPT(choose_backends(settings, CPU, 4)[0]), settings)
        assert serving(built, "cpu")["attention_backend"] == path


def usual_on_a_gpu(**fields: str | bool) -> Settings:
    fields = {"attention_backend": "sdpa", "mlp_backend": "torch"} | fields
    return tiny_step(0, other_kernels=True, mixed_precision="bf16", **fields)


@pytest.mark.parametrize(
    ("ranks", "taken"),
    [
        (["sdpa", "flex", "triton", "reference"], ("flex", True)),
        (["triton", "sdpa", "reference"], ("triton", True)),
        (["sdpa", "reference"], ("sdpa", False)),  # nothing else differs: uncompiled
    ],
)
def test_a_control_on_a_gpu_takes_the_next_right_backend(
    ranks: list[str], taken: tuple[str, bool], monkeypatch
) -> None:
    monkeypatch.setattr(
        controls, "platform_for", lambda *_: Platform("cuda", True, True)
    )
    usual = usual_on_a_gpu(compile_model=True)
    changed, line = controls.choose_controls(
        usual, torch.device("cuda"), ranks, ["torch"]
    )
    resources = changed.resources
    assert (resources.attention_backend, resources.compile_model) == taken
    if not resources.compile_model:
        assert line == "A/A control: model eager instead of compiled"


def test_a_control_takes_the_other_backend_of_the_mlp_too() -> None:
    usual = usual_on_a_gpu(mlp_backend="cublaslt")
    ranks = ["sdpa", "reference"], ["cublaslt", "torch"]
    changed, line = controls.choose_controls(usual, torch.device("cuda"), *ranks)
    assert changed.resources.mlp_backend == "torch"
    assert line == "A/A control: MLP torch instead of cublaslt"


def test_a_control_without_any_other_kernel_is_refused() -> None:
    cuda = torch.device("cuda")
    changed, _ = controls.choose_controls(usual_on_a_gpu(), cuda)
    assert changed.resources.attention_backend == "reference"
    with pytest.raises(ValueError, match="set CONTROLS=n"):
        controls.choose_controls(usual_on_a_gpu(attention_backend="reference"), cuda)


# ---- from what trials found to what trains ------------------------------------------


def known(settings: Settings) -> Tuning:
    """Choices as trials on a GPU might find them."""
    return Tuning(
        ranks={
            attention.key(settings, 4): ["cudnn", "triton", "reference"],
            mlp.key(settings, 4): ["torch", "cublaslt"],
        }
    )


def test_a_dropped_backend_is_followed_by_the_next() -> None:
    settings, cuda = tiny_step(0, mixed_precision="bf16"), torch.device("cuda")
    built, _ = choose_backends(settings, cuda, 4, known(settings))
    assert names_of(built) == ("attention cudnn", "MLP torch")
    dropped = next_without(settings, built, ["attention cudnn"], frozenset())
    assert dropped == frozenset(["attention cudnn"])
    built, _ = choose_backends(settings, cuda, 4, known(settings), dropped)
    assert names_of(built) == ("attention triton", "MLP torch")
    dropped = next_without(settings, built, [], dropped)
    built, _ = choose_backends(settings, cuda, 4, known(settings), dropped)
    assert names_of(built) == ("attention reference", "MLP torch")
    assert next_without(settings, built, [], dropped) is None


def test_a_named_backend_is_never_dropped() -> None:
    settings = tiny_step(0, mixed_precision="bf16", attention_backend="cudnn")
    built, _ = choose_backends(settings, torch.device("cuda"), 4, known(settings))
    assert next_without(settings, built, ["attention cudnn"], frozenset()) is None


def test_backends_that_fail_their_trial_are_suspects() -> None:
    built = usual_on_a_gpu(mlp_backend="cublaslt")
    absent = torch.device("cuda", 99)  # on which everything fails
    assert suspects(built, absent, 2) == ["attention sdpa", "MLP cublaslt"]
    named = built.replace(attention_backend="reference", mlp_backend="torch")
    assert suspects(named, absent, 2) == []
    assert suspects(built, CPU, 2) == []


@pytest.mark.gpu
@pytest.mark.parametrize("compiled", [False, True])
def test_a_control_on_this_gpu_takes_other_kernels(compiled: bool) -> None:
    size = {"n_embd": 128, "head_dim": 32, "block_size": 128, "mlp_width": 512}
    fields = {"mixed_precision": "bf16", "compile_model": compiled, **size}
    baseline = tiny_step(0, **fields)
    control, info = baseline.replace(other_kernels=True), select_device("auto")
    found = tune(control, info, 4, Tuning())
    usual, _ = choose_backends(baseline, info.torch_device, 4, found)
    other, lines = choose_backends(control, info.torch_device, 4, found)
    assert lines[-1].startswith("A/A control: attention ")
    assert names_of(usual)[0] != names_of(other)[0]


def test_backends_are_compiled_before_the_device_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With real trials, on the CPU."""
    events: list[str] = []

    @contextmanager
    def alone() -> Iterator[None]:
        events.append("alone")
        yield

    def noted(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*given: Any) -> Any:
            events.append(name)
            return function(*given)

        return call

    for name in ("warm_up", "try_attention"):
        monkeypatch.setattr(attention, name, noted(name, getattr(attention, name)))
    settings = tiny_step(0)
    device = select_device("cpu")
    found = tune(settings, device, 2, Tuning(), alone=alone)
    served = len(found.ranks[attention.key(settings, 2)]) - 1  # besides the reference
    assert events == ["warm_up", "alone", *["try_attention"] * served, "alone"]
    events.clear()
    tune(settings, device, 2, found, alone=alone)
    assert events == ["alone", "alone"], "ranked already"
