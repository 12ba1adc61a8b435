"""What an attempt computes on and with, besides its job."""

from __future__ import annotations

from dataclasses import dataclass

from gpt2.training.batch_split import BatchSplit
from gpt2.training.data import TokenSplit
from gpt2.training.ranks import Ranks
from lib.device import DeviceInfo


@dataclass(frozen=True, kw_only=True, slots=True)
class Material:
    """What an attempt computes on and with, besides its job."""

    device: DeviceInfo
    split: BatchSplit
    train: TokenSplit
    val: TokenSplit
    ranks: Ranks = Ranks()
