"""The end of a process that has imported torch.

An interpreter that ends takes its modules apart one by one, which for torch's takes
it a second of CPU and more after a training. The kernel frees all at once.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import NoReturn

from lib.output import exit_code


def run_to_end(main: Callable[[], int]) -> NoReturn:
    """Exit with what main returns once all else that is to be done at exit is done.

    Call it before torch is imported: what is registered first comes last. An
    exception out of main ends the interpreter as ever.
    """
    codes: list[int] = []
    atexit.register(_end, codes)
    codes.append(exit_code(main))
    sys.exit(codes[0])


def _end(codes: list[int]) -> None:
    if not codes:
        return
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # a full disk, a closed pipe
            stream.flush()
    os._exit(codes[0])
