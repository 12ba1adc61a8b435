"""gpt2/run/placement.py: slots by the settings, and refusals that name them."""

from __future__ import annotations

import pytest

from gpt2.run.placement import connect, gpu_slots, local_slots, price_of_gpus
from gpt2.settings.schema import Resources
from lib.jobs.options import Options
from lib.jobs.slots import Gpus, are_shared, place_of
from tests.gpt2.helpers import full_size
from tests.lib.jobs.test_ray_engine import needs_ray


def asked(**changes: object) -> Resources:
    return full_size().replace(**changes).resources


def test_jobs_are_dealt_out_over_the_gpus() -> None:
    gpus = Gpus("cuda", ("0", "1", "2"))
    slots = gpu_slots(asked(parallel_jobs=4), gpus)
    assert [place_of(slot) for slot in slots] == ["0", "1", "2", "0"]
    assert are_shared(slots) and not are_shared(slots[:3])
    chosen = gpu_slots(asked(parallel_jobs=2, gpus="2"), gpus)
    assert [place_of(slot) for slot in chosen] == ["2", "2"]
    pairs = gpu_slots(asked(parallel_jobs=1, ddp_gpus_per_job=2), gpus)
    assert [place_of(slot) for slot in pairs] == ["0,1"]


def test_gpus_are_paid_until_the_last_run_ends() -> None:
    shared = gpu_slots(asked(parallel_jobs=4), Gpus("cuda", ("0", "1", "2")))
    options = Options(slots=shared)
    assert price_of_gpus(options, 1800, None) == "1.50 GPU hours"
    costs = "1.50 GPU hours, 3.75 at 2.5 per hour"
    assert price_of_gpus(options, 1800, 2.5) == costs
    pair = gpu_slots(asked(parallel_jobs=1, ddp_gpus_per_job=2), Gpus("cuda", "01"))
    assert price_of_gpus(Options(slots=pair), 3600, None) == "2.00 GPU hours"
    assert price_of_gpus(Options(slots=[{}]), 3600, 2.5) == ""


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"gpus": "7"}, "GPUS='7': there is no GPU 7"),
        ({"ddp_gpus_per_job": 4}, "DDP_GPUS_PER_JOB=4: only 2 GPUs"),
        (
            {"parallel_jobs": 5, "jobs_per_gpu": 2},
            r"PARALLEL_JOBS=5 \(JOBS\).*only 4 jobs have a place: raise JOBS_PER_GPU",
        ),
    ],
)
def test_a_refusal_names_the_setting(changes: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        gpu_slots(asked(**changes), Gpus("cuda", ("0", "1")))


def test_on_a_cpu_the_cores_are_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS")
    shares = local_slots(asked(device="cpu", parallel_jobs=10_000))
    assert shares == [{"OMP_NUM_THREADS": "1"}] * 10_000
    assert local_slots(asked(device="cpu", threads=2)) == [{}]
    with pytest.raises(ValueError, match="DEVICE='cpu' no GPU can be used"):
        local_slots(asked(device="cpu", gpus="0"))


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("address", ["127.0.0.1:9", "rubbish", "no.such.host:6379"])
def test_an_unreachable_cluster_is_reported(address: str) -> None:
    with pytest.raises(ValueError, match=r"RAY_ADDRESS=.*`ray start --head`"):
        connect(asked(engine="ray", ray_address=address))
