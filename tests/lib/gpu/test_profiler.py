"""Kinds of kernels, busy time, and a profile of real operators on this machine."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from lib.gpu import device as devices
from lib.gpu.profiler import (
    SNAPSHOT_FILE,
    SUMMARY_FILE,
    TRACE_FILE,
    Operator,
    StepProfiler,
    busy,
    kind_of,
    shares,
    summary,
)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("aten::addmm", "matrix products"),
        ("aten::mm", "matrix products"),
        ("nvjet_tst_128x256_64x4_1x2_h_bz_coopA_NTT", "matrix products"),
        ("Cijk_Alik_Bljk_HHS_BH_MT128x128x32", "matrix products"),
        (
            "sm90_xmma_gemm_bf16bf16_bf16f32_f32_tn_n_tilesize128x128x64",
            "matrix products",
        ),
        ("triton_tem_fused_mm_3", "matrix products"),
        ("void pytorch_flash::flash_fwd_kernel<Flash_fwd_kernel_traits>", "attention"),
        ("aten::_scaled_dot_product_flash_attention_for_cpu_backward", "attention"),
        ("triton_tem_fused_flex_attention_0", "attention"),
        ("columns_kernel", "attention"),
        ("triton_poi_fused_add_gelu_3", "elementwise"),
        (
            "void at::native::vectorized_elementwise_kernel<4, AddFunctor>",
            "elementwise",
        ),
        ("aten::gelu_backward", "elementwise"),
        ("triton_red_fused_native_layer_norm_5", "reductions"),
        ("aten::_softmax", "reductions"),
        ("Memcpy DtoD (Device -> Device)", "copies"),
        ("Memset (Device)", "copies"),
        ("aten::copy_", "copies"),
        ("void multi_tensor_apply_kernel<FusedAdamMathFunctor>", "optimizer"),
        ("aten::_foreach_norm", "optimizer"),
        ("ncclDevKernel_AllReduce", "communication"),
        ("void some_kernel<4>", "other"),
    ],
)
def test_kinds_by_the_names_that_profiles_show(name: str, kind: str) -> None:
    assert kind_of(name) == kind


def test_busy_time_counts_what_overlaps_once() -> None:
    spans = [(0, 10), (2, 5), (8, 12), (20, 21)]
    operators = [Operator("aten::mm", a, b, b - a) for a, b in spans]
    assert busy(operators) == 13 and busy([]) == 0


def test_shares_are_of_own_time() -> None:
    outer = Operator("aten::linear", 0, 100, 25)
    inner = Operator("aten::copy_", 0, 75, 75)
    assert shares([outer, inner]) == {"copies": 0.75, "matrix products": 0.25}
    text = summary("title", [outer, inner], 400e-6, 2, gpu=True)
    assert text.startswith("title: 0.2 ms each")
    assert "copies 75.0%, matrix products 25.0%" in text
    assert "idle 75.0% of the time: no kernel ran" in text
    assert shares([]) == {} and "idle 100.0%" in summary("t", [], 1.0, 1, gpu=True)


def profiler(folder: Path, updates: range, said: list[str]) -> StepProfiler:
    return StepProfiler(folder, updates, devices.select_device("auto"), said.append)


def work() -> None:
    device = devices.select_device("auto").torch_device
    x = torch.randn(200, 200, device=device, requires_grad=True)
    (x @ x).square().sum().backward()


def test_only_the_chosen_updates_are_profiled(tmp_path: Path) -> None:
    said: list[str] = []
    with profiler(tmp_path / "p", range(2, 4), said) as one:
        for number in range(1, 6):
            with one.update(number):
                work()
            assert len(said) == (number >= 3)
    assert "updates 2 to 3" in said[0] and "matrix products" in said[0]
    text = (tmp_path / "p" / SUMMARY_FILE).read_text()
    assert "aten::mm" in text or torch.cuda.is_available()
    with gzip.open(tmp_path / "p" / TRACE_FILE) as file:
        events = json.load(file)["traceEvents"]
    names = {event.get("name") for event in events}
    assert {"update 2", "update 3"} <= names and "update 4" not in names
    assert not list(tmp_path.glob("p/.*"))
    assert (tmp_path / "p" / SNAPSHOT_FILE).exists() == torch.cuda.is_available()


def test_an_end_in_the_midst_writes_what_there_is(tmp_path: Path) -> None:
    said: list[str] = []
    with profiler(tmp_path, range(2, 9), said) as one:
        for number in range(1, 4):
            with one.update(number):
                work()
    assert len(said) == 1 and "updates 2 to 3" in said[0]


def test_an_error_leaves_torch_able_to_profile_again(tmp_path: Path) -> None:
    said: list[str] = []
    with pytest.raises(RuntimeError, match="out of memory"):
        with profiler(tmp_path, range(1, 3), said) as one, one.update(1):
            raise RuntimeError("out of memory")
    assert not said and not list(tmp_path.iterdir())
    with profiler(tmp_path, range(1, 2), said) as one, one.update(1):
        work()
    assert "updates 1 to 1" in said[0]


def test_what_cannot_be_written_is_said_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    said: list[str] = []
    done = []
    with profiler(tmp_path / "file", range(1, 2), said) as one:
        with one.update(1):
            work()
        done.append(1)
    assert done and len(said) == 1 and said[0].startswith("no profile: ")


@pytest.mark.gpu
def test_kernels_and_memory_of_a_gpu(tmp_path: Path) -> None:
    said: list[str] = []
    with profiler(tmp_path, range(1, 2), said) as one, one.update(1):
        for _ in range(20):
            work()
    assert (tmp_path / SNAPSHOT_FILE).stat().st_size > 1000
    text = (tmp_path / SUMMARY_FILE).read_text()
    assert "matrix products" in text and "no kernel ran" in text, text
    assert "aten::" not in text, text
