"""GPU readings and their monitor: recorded outputs of nvml and amdsmi, fake sysfs."""

import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from lib.atomic_files import read_jsonl
from lib.gpu import monitor
from lib.gpu.monitor import Monitor
from lib.gpu.sources import AmdSmi, NoSource, Nvml, Sysfs, open_source, pci_address
from tests.scratch import until

ROOT = Path(__file__).resolve().parents[3]


class NotSupported(Exception):
    """As nvml raises for what a card does not tell."""


def pynvml(gpus: int = 2, *, power: int | None = 412_345) -> SimpleNamespace:
    """Answers of nvidia-ml-py 12 on an H100, by its own names."""

    def power_usage(gpu: int) -> int:
        if power is None:
            raise NotSupported
        return power + gpu

    clocks = {1: 1755, 2: 2619}
    return SimpleNamespace(
        NVML_TEMPERATURE_GPU=0,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        nvmlInit=lambda: None,
        nvmlShutdown=lambda: None,
        nvmlDeviceGetCount=lambda: gpus,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetPciInfo=lambda gpu: SimpleNamespace(
            busId=f"00000000:{0x1B + gpu:02X}:00.0".encode()
        ),
        nvmlDeviceGetName=lambda gpu: b"NVIDIA H100 80GB HBM3",
        nvmlDeviceGetUtilizationRates=lambda gpu: SimpleNamespace(gpu=97, memory=40),
        nvmlDeviceGetMemoryInfo=lambda gpu: SimpleNamespace(
            used=31_000_000_000, total=85_520_809_984
        ),
        nvmlDeviceGetPowerUsage=power_usage,
        nvmlDeviceGetTemperature=lambda gpu, kind: 54,
        nvmlDeviceGetClockInfo=lambda gpu, kind: clocks[kind],
    )


def amdsmi(*, instinct: bool) -> SimpleNamespace:
    """Answers of amdsmi in ROCm 6 on an Instinct and a Radeon card."""
    power = {
        "current_socket_power": 561 if instinct else "N/A",
        "average_socket_power": "N/A" if instinct else 236,
    }

    def temperature(gpu: str, place: str, metric: str) -> int:
        if instinct and place == "edge":
            raise NotSupported
        return {"edge": 61, "hotspot": 72}[place]

    return SimpleNamespace(
        AmdSmiTemperatureType=SimpleNamespace(EDGE="edge", HOTSPOT="hotspot"),
        AmdSmiTemperatureMetric=SimpleNamespace(CURRENT="current"),
        AmdSmiClkType=SimpleNamespace(GFX="gfx", MEM="mem"),
        amdsmi_init=lambda: print("noise of the library"),
        amdsmi_shut_down=lambda: None,
        amdsmi_get_processor_handles=lambda: ["gpu"],
        amdsmi_get_gpu_device_bdf=lambda gpu: "0000:C3:00.0",
        amdsmi_get_gpu_asic_info=lambda gpu: {"market_name": "AMD Radeon PRO W7900"},
        amdsmi_get_gpu_activity=lambda gpu: {"gfx_activity": 99, "umc_activity": 31},
        amdsmi_get_gpu_vram_usage=lambda gpu: {"vram_total": 49136, "vram_used": 20480},
        amdsmi_get_power_info=lambda gpu: power,
        amdsmi_get_temp_metric=temperature,
        amdsmi_get_clock_info=lambda gpu, kind: (
            {"clk": 1800 if kind == "gfx" else 1124} if instinct else {"cur_clk": 1760}
        ),
    )


def card(root: Path, number: int, slot: str, **files: str) -> Path:
    """A card as the amdgpu driver shows it; of an integrated one much is absent."""
    device = root / f"sys/class/drm/card{number}/device"
    texts = {"vendor": "0x1002", "uevent": f"DRIVER=amdgpu\nPCI_SLOT_NAME={slot}"}
    for name, text in {**texts, **files}.items():
        path = device / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return device


W7900 = {
    "device": "0x7448",
    "product_name": "AMD Radeon PRO W7900",
    "gpu_busy_percent": "98",
    "mem_info_vram_used": "21474836480",
    "mem_info_vram_total": "48301604864",
    "hwmon__hwmon3__power1_average": "241000000",
    "hwmon__hwmon3__temp1_input": "63000",
    "hwmon__hwmon3__freq1_input": "1760000000",
    "hwmon__hwmon3__freq2_input": "1124000000",
}


def test_nvml_of_several_gpus() -> None:
    first, second = Nvml(library=pynvml()).read()
    assert first == {
        "index": 0,
        "name": "NVIDIA H100 80GB HBM3",
        "pci": "0000:1b:00.0",
        "utilisation": 97,
        "memory_used_bytes": 31e9,
        "memory_total_bytes": 85_520_809_984,
        "power_w": 412.345,
        "temperature_c": 54,
        "clock_mhz": 1755,
        "memory_clock_mhz": 2619,
    }
    assert (second["index"], second["power_w"]) == (1, 412.346)


def test_only_the_gpus_of_the_run_are_watched() -> None:
    (one,) = Nvml(["0000:1c:00.0"], library=pynvml()).read()
    assert (one["index"], one["pci"]) == (0, "0000:1c:00.0")
    with pytest.raises(NoSource, match="no GPU at 0000:99:00.0"):
        Nvml(["0000:99:00.0"], library=pynvml())


def test_what_a_card_does_not_tell_is_null() -> None:
    (gpu,) = Nvml(library=pynvml(1, power=None)).read()
    assert gpu["power_w"] is None and gpu["utilisation"] == 97


@pytest.mark.parametrize(
    ("instinct", "power", "temperature", "clock"),
    [(True, 561, 72, 1800), (False, 236, 61, 1760)],
)
def test_amdsmi(capsys, instinct, power, temperature, clock) -> None:
    (gpu,) = AmdSmi(["c3:00.0"], library=amdsmi(instinct=instinct)).read()
    assert (gpu["power_w"], gpu["temperature_c"]) == (power, temperature)
    assert (gpu["clock_mhz"], gpu["utilisation"]) == (clock, 99)
    assert gpu["memory_used_bytes"] == 20 << 30
    assert gpu["name"] == "AMD Radeon PRO W7900"
    assert capsys.readouterr().out == ""


def test_sysfs_reads_the_driver(tmp_path: Path) -> None:
    card(tmp_path, 0, "0000:03:00.0", vendor="0x8086")  # another vendor's
    card(tmp_path, 2, "0000:c3:00.0", **W7900)
    card(tmp_path, 10, "0000:e3:00.0", device="0x744c", gpu_busy_percent="3")
    (tmp_path / "sys/class/drm/card2-DP-1").mkdir()
    first, second = open_source("rocm", root=tmp_path).read()
    assert first == {
        "index": 0,
        "name": "AMD Radeon PRO W7900",
        "pci": "0000:c3:00.0",
        "utilisation": 98,
        "memory_used_bytes": 20 << 30,
        "memory_total_bytes": 48301604864,
        "power_w": 241.0,
        "temperature_c": 63.0,
        "clock_mhz": 1760.0,
        "memory_clock_mhz": 1124.0,
    }
    assert second["name"] == "AMD GPU 0x744c" and second["power_w"] is None
    (only,) = Sysfs(["0000:e3:00.0"], tmp_path).read()
    assert only["utilisation"] == 3


def test_newer_cards_have_power_input_only(tmp_path: Path) -> None:
    files = {k: v for k, v in W7900.items() if "power1" not in k}
    card(tmp_path, 0, "0000:c3:00.0", **files, hwmon__hwmon3__power1_input="88500000")
    assert Sysfs(None, tmp_path).read()[0]["power_w"] == 88.5


def test_no_gpu_is_told_with_every_reason(tmp_path: Path) -> None:
    with pytest.raises(NoSource, match="amdsmi: .*; sysfs: .*no AMD card in "):
        open_source("rocm", root=tmp_path)


def test_addresses_of_any_spelling() -> None:
    for text in ("00000000:1B:00.0", "0000:1b:00.0", "1b:00.0", "1b:00"):
        assert pci_address(text) == "0000:1b:00.0"
    with pytest.raises(ValueError, match="'GPU-0' is not a PCI address"):
        pci_address("GPU-0")


def test_monitor_writes_while_it_runs_and_goes_on_after_a_restart(tmp_path) -> None:
    card(tmp_path, 0, "0000:c3:00.0", **W7900)
    path = tmp_path / "gpu.jsonl"
    said: list[str] = []
    for _ in range(2):
        before = len(read_jsonl(path))
        with Monitor(Sysfs(None, tmp_path), path, said.append, interval=0.01):
            until(lambda: len(read_jsonl(path)) >= before + 3)  # noqa: B023
    records = read_jsonl(path)
    seconds = [record["seconds"] for record in records]
    assert seconds == sorted(seconds) and len(records) >= 6 and not said
    assert not [t for t in threading.enumerate() if t.name == "gpu-monitor"]
    # Between the attempts nothing was used, and nothing is counted.
    joules = monitor.energy(records)
    assert joules == pytest.approx(241.0 * seconds[-1])


def test_short_runs_have_a_record_at_each_end(tmp_path: Path) -> None:
    card(tmp_path, 0, "0000:c3:00.0", **W7900)
    path = tmp_path / "gpu.jsonl"
    with Monitor(Sysfs(None, tmp_path), path, print, interval=60):
        until(path.exists)
    assert len(read_jsonl(path)) == 2


def test_a_card_that_goes_away_is_said_once(tmp_path: Path) -> None:
    device = card(tmp_path, 0, "0000:c3:00.0", **W7900)
    source = Sysfs(None, tmp_path)
    said: list[str] = []
    device.rename(tmp_path / "elsewhere")
    with Monitor(source, tmp_path / "gpu.jsonl", said.append, interval=0.001):
        until(lambda: said)
    assert len(said) == 1 and "watched no more" in said[0]


def test_a_full_disk_or_missing_folder_fails_nothing(tmp_path: Path) -> None:
    card(tmp_path, 0, "0000:c3:00.0", **W7900)
    path = tmp_path / "no" / "gpu.jsonl"
    said: list[str] = []
    with Monitor(Sysfs(None, tmp_path), path, said.append, interval=0.001):
        until(lambda: said)


def record(seconds: float, *powers: float | None) -> dict:
    gpus = [{"index": i, "power_w": p} for i, p in enumerate(powers)]
    return {"seconds": seconds, "gpus": gpus}


def test_energy_is_the_integral_of_power_over_all_gpus() -> None:
    records = [record(0, 100, 50), record(2, 200, 50), record(3, 200, 50)]
    assert monitor.energy(records) == 300 + 100 + 200 + 50
    # A gap, and a GPU that reports nothing, add nothing.
    assert monitor.energy([*records, record(100, 200, 50)]) == 650
    assert monitor.energy([record(0, None), record(1, None)]) is None
    assert monitor.energy([record(0, 100)]) is None
