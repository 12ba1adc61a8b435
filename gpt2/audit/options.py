"""Options of an audit: where the text is, on which device, and how many windows.

Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True, slots=True)
class AuditOptions:
    """Options of an audit.

    data_dirs: folders to search for the prepared text, after the one recorded by the
    run unless ``own_data`` is off. device: as torch names it. windows: number of
    validation windows to score, 0 for all. say: reports progress.
    """

    data_dirs: tuple[Path, ...] = ()
    own_data: bool = True
    device: str = "cpu"
    windows: int = 0
    say: Callable[[str], object] = str  # reports nothing
