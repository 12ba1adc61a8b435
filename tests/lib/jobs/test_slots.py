"""lib/jobs/slots.py on fake trees of what drivers show."""

from __future__ import annotations

import os
import time
from pathlib import Path

import psutil
import pytest

from lib.jobs import slots
from lib.jobs.slots import (
    GPUS,
    Gpus,
    architectures,
    are_shared,
    card_memory,
    choose_gpus,
    find_gpus,
    gpu_sets,
    place_of,
    share_cores,
)
from tests.scratch import write


def nvidia(root: Path, count: int) -> Path:
    for n in range(count):
        write(root, f"proc/driver/nvidia/gpus/0000:0{n}:00.0/information", "Model: X\n")
    return root


def amd(root: Path, count: int) -> Path:
    nodes = root / "sys/class/kfd/kfd/topology/nodes"
    write(nodes, "0/properties", "cpu_cores_count 16\nsimd_count 0\n")
    for n in range(count):
        write(nodes, f"{n + 1}/properties", "cpu_cores_count 0\nsimd_count 256\n")
    return root


def test_gpus_are_found_by_what_their_drivers_show(tmp_path: Path) -> None:
    assert find_gpus({}, tmp_path) is None
    assert find_gpus({"CUDA_VISIBLE_DEVICES": "0"}, tmp_path) is None
    assert find_gpus({}, nvidia(tmp_path / "n", 3)) == Gpus("cuda", ("0", "1", "2"))
    assert find_gpus({}, amd(tmp_path / "a", 2)) == Gpus("rocm", ("0", "1"))


def test_what_the_environment_restricts_stays_restricted(tmp_path: Path) -> None:
    root = nvidia(tmp_path / "n", 4)
    for text, names in (("2,3", ("2", "3")), ("GPU-1f, 0", ("GPU-1f", "0"))):
        found = find_gpus({"CUDA_VISIBLE_DEVICES": text}, root)
        assert found == Gpus("cuda", names)
    for text in ("", "-1"):
        assert find_gpus({"CUDA_VISIBLE_DEVICES": text}, root) is None
    root = amd(tmp_path / "a", 2)
    both = {"HIP_VISIBLE_DEVICES": "1", "CUDA_VISIBLE_DEVICES": "0"}
    assert find_gpus(both, root) == Gpus("rocm", ("1",))


def test_a_list_of_gpus_chooses_among_those_visible() -> None:
    gpus = Gpus("cuda", ("2", "3", "5"))
    assert choose_gpus(gpus, "") == gpus
    assert choose_gpus(gpus, "5, 2").names == ("5", "2")
    for wrong, says in (
        ("0", "there is no GPU 0; those visible are 2,3,5"),
        ("2,2", "names GPU 2 twice"),
        ("2,,3", "'' is neither a number nor a UUID"),
    ):
        with pytest.raises(ValueError, match=says):
            choose_gpus(gpus, wrong)
    named = Gpus("cuda", ("GPU-1f", "MIG-8c2b/1/0"))
    assert choose_gpus(named, "MIG-8c2b/1/0").names == ("MIG-8c2b/1/0",)


def test_gpus_are_split_into_sets() -> None:
    gpus = Gpus("cuda", ("0", "1", "2"))
    single = gpu_sets(gpus, 1)
    assert [slot["CUDA_VISIBLE_DEVICES"] for slot in single] == ["0", "1", "2"]
    pairs = gpu_sets(Gpus("rocm", tuple("01234")), 2)
    assert [slot["HIP_VISIBLE_DEVICES"] for slot in pairs] == ["0,1", "2,3"]
    assert pairs[1]["KABLATE_GPUS"] == place_of(pairs[1]) == "2,3"
    assert are_shared([*single, single[0]]) and not are_shared(single)
    assert not are_shared([{}, {}])  # no GPU at all
    with pytest.raises(ValueError, match="only 3 GPUs"):
        gpu_sets(gpus, 4)


def test_cores_are_shared_by_all_processes() -> None:
    slots = share_cores([{}, {"X": "1"}], cores=16, processes=2)
    assert slots == [{"OMP_NUM_THREADS": "4"}, {"X": "1", "OMP_NUM_THREADS": "4"}]
    assert share_cores([{}] * 4, cores=2, processes=1)[3] == {"OMP_NUM_THREADS": "1"}


def test_the_memory_of_the_smallest_card_is_read_from_its_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = amd(tmp_path / "a", 2)
    for number, size in ((1, 48 << 30), (2, 32 << 30)):
        place = f"sys/class/kfd/kfd/topology/nodes/{number}/mem_banks/0/properties"
        write(root, place, f"heap_type 1\nsize_in_bytes {size}\nflags 0\n")
    (rocm,) = gpu_sets(Gpus("rocm", ("0",)), 1)
    assert card_memory(rocm, root) == 32 << 30
    assert card_memory(rocm, tmp_path / "nothing") == 0

    tool = tmp_path / "bin" / "nvidia-smi"
    write(tool.parent, tool.name, "#!/bin/sh\necho 143771\necho 81559\necho '[N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    one, part = gpu_sets(Gpus("cuda", ("0", "MIG-1f")), 1)
    assert card_memory(one) == 81559 << 20
    assert card_memory(part) == 0, "a slice has less than its card"
    monkeypatch.setenv("PATH", str(tmp_path))
    assert card_memory(one) == 0


def test_architectures_are_read_from_the_driver(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = amd(tmp_path / "a", 2)
    assert architectures("rocm", root) == []  # an old driver does not say
    for number, version in ((0, 0), (1, 90010), (2, 110000)):
        place = f"sys/class/kfd/kfd/topology/nodes/{number}/properties"
        write(root, place, f"simd_count 256\ngfx_target_version {version}\n")
    assert architectures("rocm", root) == ["gfx90a", "gfx1100"]
    tool = write(tmp_path, "bin/nvidia-smi", "#!/bin/sh\necho 7.5\necho '[N/A]'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(tool.parent))
    assert architectures("cuda") == ["sm_75"]
    monkeypatch.setenv("PATH", str(tmp_path))
    assert architectures("cuda") == []


@pytest.mark.skipif(
    Path("/proc/driver/nvidia/gpus").exists(), reason="the driver shows its GPUs"
)
def test_nvidia_smi_lists_gpus_and_is_asked_each_question_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text(
        f"#!/bin/sh\necho $1 >> {tmp_path}/asked\necho 'GPU 0: A'\necho 'GPU 1: B'\n"
    )
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    for _ in range(3):
        assert find_gpus({}) == Gpus("cuda", ("0", "1"))
        assert architectures("cuda") == []
    asked = (tmp_path / "asked").read_text().split()
    assert asked == ["-L", "--query-gpu=compute_cap"]


def test_an_nvidia_smi_that_hangs_is_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = tmp_path / "nvidia-smi"
    script.write_text("#!/bin/sh\necho 80000\nexec sleep 99\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.setattr(slots, "PATIENCE", 0.5)
    began = time.monotonic()
    assert card_memory({GPUS: "0"}) == 0
    assert time.monotonic() - began < 60.0
    left = [child.cmdline() for child in psutil.Process().children()]
    assert not [words for words in left if {str(script), "sleep"} & set(words)]
