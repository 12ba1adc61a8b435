"""Run a command that needs no checkout, as in `kablate report bundle.zip`.

`pip install` puts it on PATH; in a checkout `make` runs the same scripts. Each prints
its options with --help, and its exit codes are in its docstring.
"""

from __future__ import annotations

import ast
import runpy
import sys
from pathlib import Path

# Those that read results and models. Configuring and training need the checkout, whose
# commit identifies the code of a run.
COMMANDS = {
    "report": "report",
    "compare": "compare",
    "plan": "plan_seeds",
    "audit": "audit",
    "bundle": "bundle",
    "sample": "sample",
    "eval": "eval",
    "attention": "attention",
    "export": "export",
}


def main() -> int:
    """Run the script that the first argument names, as if it had been started."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in COMMANDS:
        print(f"kablate: there is no command {name!r}\n\n{usage()}", file=sys.stderr)
        return 2
    del sys.argv[1]
    folder = Path(__file__).parent
    sys.path.insert(0, str(folder))  # as Python does for a script
    runpy.run_path(str(folder / f"{COMMANDS[name]}.py"), run_name="__main__")
    return 0


def usage() -> str:
    """The commands with the first line of their docstrings."""
    lines = ["usage: kablate COMMAND [OPTIONS]; kablate COMMAND --help lists them", ""]
    for name, script in COMMANDS.items():
        text = Path(__file__).with_name(f"{script}.py").read_text(encoding="utf-8")
        first = (ast.get_docstring(ast.parse(text)) or "").split("\n")[0]
        lines.append(f"  {name:<9} {first}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
