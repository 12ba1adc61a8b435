"""Settings for GPUs on a machine that has none, where DEVICE=auto means the CPU.

Torch-free, except that another process asks torch before a refusal.
"""

from __future__ import annotations

import os
import subprocess
import sys

from gpt2.plan.jobs import Plan
from gpt2.plan.readers import READERS
from gpt2.settings.checks import check
from gpt2.settings.schema import SYMBOL_OF, Resources
from gpt2.settings.shown import shown_value
from lib.jobs.slots import find_gpus
from lib.kconfig.config_py import DEFAULT, Config


def without_effect_here(plan: Plan, config: Config) -> list[str]:
    """A line on the settings that only a GPU would read, if there is none here."""
    base = plan.base
    if not is_cpu_here(base.resources):
        return []
    on_cpu = base.replace(device="cpu")
    symbols = [
        SYMBOL_OF[name]
        for reader in READERS
        if reader.is_on(base) and not reader.is_on(on_cpu)
        for name in reader.fields
    ]
    given = [symbol for symbol in symbols if config.origin(symbol) != DEFAULT]
    if not given:
        return []
    words = ", ".join(f"{one}={shown_value(config.values[one])}" for one in given)
    why = "no GPU is found, and runs train on the CPU"
    return [f"{words}: no effect on this machine: {why}"]


def require_gpu(plan: Plan) -> None:
    """Raise ValueError for settings that need a GPU where DEVICE=auto finds none.

    Those of each job count, as steps and sweeps set values of their own.
    """
    if not is_cpu_here(plan.base.resources):
        return
    jobs = ((f"{job.cell}: ", job.settings) for job in plan.jobs)
    for where, settings in (("", plan.base), *jobs):
        try:
            check(settings.replace(device="cpu"))
        except ValueError as error:
            if torch_sees_a_gpu():
                return
            text = f"{where}DEVICE=auto is the CPU here, as torch sees no GPU: {error}"
            raise ValueError(text) from None


def is_cpu_here(asked: Resources) -> bool:
    """Whether DEVICE=auto is the CPU, as far as can be seen without torch."""
    is_local = asked.device == "auto" and asked.engine != "ray"
    return is_local and find_gpus(os.environ) is None


def torch_sees_a_gpu() -> bool:
    """Whether torch finds a GPU, asked in another process, as the runner does not
    import torch."""
    program = "import os, torch; os._exit(not torch.cuda.is_available())"
    return subprocess.run([sys.executable, "-c", program]).returncode == 0
