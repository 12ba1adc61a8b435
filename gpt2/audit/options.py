"""Options of an audit: where its text is, and where and on how much to compute.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


def _silent(text: str) -> None:
    """Report no progress."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditOptions:
    """data_dirs: where the prepared text is looked for, after the folder that the run
    itself names unless ``own_data`` is off. device: as torch names it. windows: how
    many validation windows to score, 0 for all. say: reports progress.
    """

    data_dirs: tuple[Path, ...] = ()
    own_data: bool = True
    device: str = "cpu"
    windows: int = 0
    say: Callable[[str], None] = _silent
