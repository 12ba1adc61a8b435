"""The environment before torch, from fake trees of /proc and /sys."""

from pathlib import Path

import pytest

from lib.gpu.env import check_allocator, child_environment, gfx_versions

NVIDIA = "proc/driver/nvidia/gpus/0000:1b:00.0/information"


def machine(root: Path, *targets: int, nvidia: bool = False) -> Path:
    """A node of a CPU, then AMD GPUs of these gfx_target_versions."""
    if nvidia:
        write(root / NVIDIA, "Model: NVIDIA H100")
    for number, target in enumerate((0, *targets)):
        node = root / f"sys/class/kfd/kfd/topology/nodes/{number}"
        write(node / "properties", f"simd_count 1\ngfx_target_version {target}\n")
        if target:
            write(root / f"sys/class/drm/card{number}/device/vendor", "0x1002\n")
    return root


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_a_gpu_nothing_is_set(tmp_path: Path) -> None:
    assert child_environment({}, root=machine(tmp_path)) == {}


def test_architectures_as_the_kernel_tells_them(tmp_path: Path) -> None:
    machine(tmp_path, 110000, 90010, 120001, 90402)
    assert gfx_versions(tmp_path) == ["gfx1100", "gfx90a", "gfx1201", "gfx942"]


@pytest.mark.parametrize(
    ("target", "needs"),
    [
        (110000, True),  # W7900, RX 7900 XTX
        (120001, True),  # RX 9070
        (100300, False),  # RDNA2: there is nothing to switch on
        (90010, False),  # MI250
        (90402, False),  # MI300X
    ],
)
def test_experimental_attention_where_it_is_needed(tmp_path, target, needs) -> None:
    added = child_environment({}, root=machine(tmp_path, target))
    name = "TORCH_ROCM_AOTRITON_ENABLE_EXPERIMENTAL"
    assert added == ({name: "1"} if needs else {})
    if needs:
        assert child_environment({name: "0"}, root=tmp_path) == {}


def test_segments_grow_on_nvidia_unless_told_otherwise(tmp_path: Path) -> None:
    machine(tmp_path, nvidia=True)
    expected = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}
    assert child_environment({}, root=tmp_path) == expected
    assert child_environment({}, "", root=tmp_path) == {}
    asked = child_environment({}, "max_split_size_mb:128", root=tmp_path)
    assert asked == {"PYTORCH_ALLOC_CONF": "max_split_size_mb:128"}
    own = {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}
    assert child_environment(own, "max_split_size_mb:128", root=tmp_path) == {}


def test_the_allocator_is_told_only_what_torch_reads() -> None:
    for text in (
        "",
        "auto",
        "expandable_segments:True",
        "garbage_collection_threshold:0.8, max_split_size_mb:128",
        "roundup_power2_divisions:[256:1,512:2,>:4],backend:native",
        "per_process_memory_fraction:.5",
    ):
        check_allocator(text)
    for text, says in (
        ("yes", "'yes' is not an option with a value"),
        ("max_split_size_mb:128,", "'' is not an option"),
        ("banana:1", "no option 'banana'.*PYTORCH_ALLOC_CONF"),
        ("expandable_segment:True", "nearest: expandable_segments"),
        ("expandable_segments:true", "expandable_segments cannot be 'true'"),
        ("max_split_size_mb:5", "max_split_size_mb cannot be '5'"),
        ("garbage_collection_threshold:1.5", "cannot be '1.5'"),
    ):
        with pytest.raises(ValueError, match=says):
            check_allocator(text)
