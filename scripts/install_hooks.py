"""Install or remove the git hooks that run the house checks (`make install-hooks`).

Plain shell hooks: pre-commit checks what is staged, commit-msg the message. A hook
that somebody else put there is never overwritten nor removed. Exit status: 0 done,
1 refused.
"""

import _signal  # before all other imports, see lib/output.py

if __name__ == "__main__" and callable(_signal.getsignal(_signal.SIGINT)):
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import os
import sys

sys.path[0] = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))
from lib.output import begin, exit_code

if __name__ == "__main__":
    begin()

import argparse
from collections.abc import Sequence
from pathlib import Path

from lib.house_rules import HouseRulesError, git

ROOT = Path(__file__).resolve().parents[1]
MARK = "# kablate: written by make install-hooks, removed by make remove-hooks"
HOOK = """#!/bin/sh
{mark}
cd "$(git rev-parse --show-toplevel)" || exit 1
if [ ! -f scripts/{script} ]; then
    echo "{hook}: no scripts/{script} in this checkout, nothing checked" >&2
    exit 0
fi
python=.venv/bin/python
[ -x "$python" ] || python='{python}'
exec "$python" scripts/{script} {arguments}
"""
HOOKS = {
    "commit-msg": ("check_commit.py", '"$1"'),
    "pre-commit": ("check.py", "--staged"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("action", choices=("install", "remove"))
    action = parser.parse_args(arguments).action
    try:
        folder = hooks_folder()
        if action == "install":
            require_own_repository()
            install(folder)
        else:
            remove(folder)
    except (HouseRulesError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def hooks_folder() -> Path:
    """The folder git takes this repository's hooks from.

    HouseRulesError where core.hooksPath points outside of the repository: hooks there
    would run in other repositories too.
    """
    folder = (ROOT / git(ROOT, "rev-parse", "--git-path", "hooks").strip()).resolve()
    common = ROOT / git(ROOT, "rev-parse", "--git-common-dir").strip()
    if not any(folder.is_relative_to(home.resolve()) for home in (ROOT, common)):
        raise HouseRulesError(
            f"core.hooksPath is {folder}, outside of this repository; unset it here "
            "with: git config --local core.hooksPath .git/hooks"
        )
    return folder


def require_own_repository() -> None:
    """HouseRulesError where the project is a folder of another repository: hooks
    there see all commits of that, and look for our scripts at its top."""
    top = Path(git(ROOT, "rev-parse", "--show-toplevel").rstrip("\n")).resolve()
    if top != ROOT:
        raise HouseRulesError(
            f"{ROOT} is a folder of the repository {top}, whose hooks see all of its "
            "commits: nothing was installed. Clone kablate as a repository of its own"
        )


def install(folder: Path) -> None:
    """Write both hooks, or none where one would overwrite a foreign hook."""
    for hook in HOOKS:
        if is_foreign(folder / hook):
            raise HouseRulesError(
                f"{folder / hook} is not ours; move it away, or call "
                f"scripts/{HOOKS[hook][0]} {HOOKS[hook][1]} from it"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for hook, (script, passed) in HOOKS.items():
        path = folder / hook
        python = sys.executable.replace("'", "'\\''")
        text = HOOK.format(
            mark=MARK, hook=hook, script=script, arguments=passed, python=python
        )
        path.unlink(missing_ok=True)  # a link would lead elsewhere
        path.write_text(text, encoding="utf-8")
        path.chmod(0o755)
        print(f"installed {path}")


def remove(folder: Path) -> None:
    for hook in HOOKS:
        path = folder / hook
        if is_foreign(path):
            print(f"kept {path}: not ours")
        elif path.exists():
            path.unlink()
            print(f"removed {path}")


def is_foreign(path: Path) -> bool:
    present = path.exists() or path.is_symlink()
    return present and MARK not in path.read_text(encoding="utf-8", errors="replace")


if __name__ == "__main__":
    sys.exit(exit_code(main))
