"""scripts/check_defconfigs.py: the shipped presets pass, and planted faults do not."""

from pathlib import Path

import pytest

from tests.scratch import ROOT, copy_tree, python

CHECK = "scripts/check_defconfigs.py"


def test_the_shipped_presets_pass() -> None:
    done = python(ROOT, CHECK)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_tree(tmp_path_factory.mktemp("tree"), ["Kconfig", "gpt2", "lib", CHECK])


@pytest.mark.parametrize(
    ("hardware", "memory", "batch", "said"),
    [
        ("one L4 (24 GB)", 24, 8, ""),
        ("any GPU of 16 GB or more", 16, 8, ""),
        ("one L4", 24, 8, "does not say '24 GB'"),
        ("any GPU", 0, 8, "GPU_MEMORY_GB tells what it is for"),
        ("one H100 (24 GB)", 24, 8, "H100: 80 GB, not GPU_MEMORY_GB=24"),
        ("one H100 (80 GB)", 80, 1024, "by estimate, and GPU_MEMORY_GB=80"),
    ],
)
def test_hardware_of_a_preset(
    tree: Path, hardware: str, memory: int, batch: int, said: str
) -> None:
    preset = tree / "defconfigs" / "gpt2-mine"
    preset.parent.mkdir(exist_ok=True)
    preset.write_text(
        f"# Mine.\n# Hardware: {hardware}. Time: minutes on an H200.\n"
        + (f"CONFIG_BATCH_SIZE={batch}\n" if batch != 8 else "")
        + "CONFIG_COMPILE_MODEL=y\n"
        + (f"CONFIG_GPU_MEMORY_GB={memory}\n" if memory else "")
    )
    done = python(tree, CHECK)
    assert (done.returncode == 0) == (not said), done.stdout + done.stderr
    assert said in done.stdout
