"""Run kconfiglib's menuconfig, guiconfig or oldconfig without tracebacks.

python -P lib/kconfig/editor.py TOOL; with -P no module of ours or of the working
directory can stand in for kconfiglib's.
"""

from __future__ import annotations

import glob
import importlib
import locale
import os
import runpy
import sys
from typing import Any

NOTHING_SAVED = "so nothing was saved"


def main(tool: str) -> None:
    """Run a tool; exits with a message if it fails."""
    try:
        locale.setlocale(locale.LC_ALL, "")
    except locale.Error:  # LANG names a locale that does not exist here
        os.environ["LC_ALL"] = "C.UTF-8"
    sys.argv = [tool]
    read_tree_path_literally()
    try:
        if tool == "menuconfig":
            menuconfig()
        else:
            if tool == "oldconfig":
                ignore_closed_output()
            runpy.run_module(tool, run_name="__main__", alter_sys=True)
    except (EOFError, KeyboardInterrupt):
        sys.exit(f"\n{tool}: not all questions were answered, {NOTHING_SAVED}")
    except Exception as error:
        if type(error).__module__ not in ("_curses", "_tkinter"):
            raise
        sys.exit(f"{tool}: {error}: {way_out(tool)}")


def ignore_closed_output() -> None:
    """Go on when the reader of the output has left, as all other commands do."""
    sys.path.append(os.environ["srctree"])  # the last place to import from
    from lib.output import begin

    begin()


def read_tree_path_literally() -> None:
    """Keep kconfiglib from reading the path of the tree as part of a glob."""
    module: Any = importlib.import_module("kconfiglib")
    root = os.path.join(os.path.realpath(os.environ["srctree"]), "")
    module.iglob = lambda p: glob.iglob(glob.escape(root) + p.removeprefix(root))


def menuconfig() -> None:
    """Run menuconfig until the user ends it or the terminal disappears."""
    module: Any = importlib.import_module("menuconfig")
    read = module._getch_compat

    def read_or_leave(window: object) -> object:
        key = read(window)
        if key == -1 and not os.isatty(0):  # kconfiglib would loop forever
            sys.exit(f"menuconfig: the terminal has gone, {NOTHING_SAVED}")
        return key

    module._getch_compat = read_or_leave
    module._main()


def way_out(tool: str) -> str:
    """Advice where a tool finds no terminal or display."""
    if tool == "guiconfig":
        return "it needs a display, which DISPLAY names; or use menuconfig"
    term = os.environ.get("TERM", "")
    return f"TERM={term} is unknown here; set TERM=xterm, or edit .config and type make"


if __name__ == "__main__":
    main(sys.argv[1])
