"""scripts/check_defconfigs.py: the shipped presets pass, and planted faults do not."""

from pathlib import Path

from tests.scratch import ROOT, copy_tree, python, write

CHECK = "scripts/check_defconfigs.py"


def test_the_shipped_presets_pass() -> None:
    done = python(ROOT, CHECK)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout + done.stderr


PRESETS = {  # hardware of a preset, its GPU_MEMORY_GB and batch, and what is reported
    "right": ("one L4 (24 GB)", 24, 8, ""),
    "any": ("any GPU of 16 GB or more", 16, 8, ""),
    "silent": ("one L4", 24, 8, "does not say '24 GB'"),
    "unset": ("any GPU", 0, 8, "GPU_MEMORY_GB tells what it is for"),
    "small": ("one H100 (24 GB)", 24, 8, "H100: 80 GB, not GPU_MEMORY_GB=24"),
    "full": ("one H100 (80 GB)", 80, 1024, "by estimate, and GPU_MEMORY_GB=80"),
}


def test_hardware_of_presets(tmp_path: Path) -> None:
    tree = copy_tree(tmp_path, ["Kconfig", "gpt2", "lib", CHECK])
    for name, (hardware, memory, batch, _) in PRESETS.items():
        text = f"# Mine.\n# Hardware: {hardware}. Time: minutes on an H200.\n"
        text += f"CONFIG_BATCH_SIZE={batch}\n" if batch != 8 else ""
        text += "CONFIG_COMPILE_MODEL=y\n"
        text += f"CONFIG_GPU_MEMORY_GB={memory}\n" if memory else ""
        write(tree, f"defconfigs/{name}", text)
    done = python(tree, CHECK)
    assert done.returncode == 1, done.stderr
    for name, (*_, said) in PRESETS.items():
        found = [x for x in done.stdout.splitlines() if f"defconfigs/{name}" in x]
        assert len(found) == (said != "") and said in "".join(found), done.stdout
