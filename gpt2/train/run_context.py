"""Runtime context of a run: device, batch split, data and ranks."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2.plan.jobs import Job
from gpt2.train.batch_split import BatchSplit
from gpt2.train.batches import Batches, BatchPlan, TokenSplit
from gpt2.train.distributed import Ranks
from lib.gpu.device import DeviceInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class RunContext:
    """Everything that training needs besides the job itself."""

    device: DeviceInfo
    split: BatchSplit
    train: TokenSplit
    val: TokenSplit
    ranks: Ranks = Ranks()

    def batches(self, job: Job, start_step: int) -> Batches:
        """This rank's micro batches from the update after start_step to the last."""
        settings, resources = job.settings, job.settings.resources
        length = settings.model.block_size
        plan = BatchPlan(self.train.tokens.size, length, self.split, job.seed)
        return Batches(
            self.train,
            plan,
            start_step,
            settings.optim.max_iters,
            device=self.device.torch_device,
            num_workers=resources.num_workers,
            pin_memory=resources.pin_memory,
            prefetch_factor=resources.prefetch_factor,
            persistent_workers=resources.persistent_workers,
        )
