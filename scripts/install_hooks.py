"""Install or remove the git hooks that check each commit (`make install-hooks`).

The hooks are in scripts/hooks, and core.hooksPath of this repository points there.
Other hooks are refused, since git would no longer run them. Exit status: 0
done, 1 refused.
"""

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from lib.house_rules import HouseRulesError, git
from lib.output import exit_code

ROOT = Path(__file__).resolve().parents[1]
HOOKS = "scripts/hooks"  # from the top of each worktree
SETTING = ("config", "--local", "core.hooksPath")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("action", choices=("install", "remove"))
    action = parser.parse_args(arguments).action
    try:
        is_installed = hooks_folder() == ROOT / HOOKS
        if action == "install" and not is_installed:
            require_own_repository()
            require_no_other_hooks()
            git(ROOT, *SETTING, HOOKS)
        elif action == "remove" and is_installed:
            git(ROOT, "config", "--local", "--unset", "core.hooksPath")
    except (HouseRulesError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"{action}: git takes its hooks from {hooks_folder()}")
    return 0


def hooks_folder() -> Path:
    """The folder git takes the hooks of this worktree from."""
    return ROOT / git(ROOT, "rev-parse", "--git-path", "hooks").strip()


def require_own_repository() -> None:
    """HouseRulesError where the project is a folder of another repository: its hooks
    see all commits of that repository."""
    top = Path(git(ROOT, "rev-parse", "--show-toplevel").rstrip("\n")).resolve()
    if top != ROOT:
        raise HouseRulesError(
            f"{ROOT} is a folder of the repository {top}, whose hooks see all of its "
            "commits: nothing was installed. Clone kablate as a repository of its own"
        )


def require_no_other_hooks() -> None:
    """HouseRulesError where git runs hooks already, which it would stop running."""
    folder = hooks_folder()
    own = ROOT / git(ROOT, "rev-parse", "--git-common-dir").strip() / "hooks"
    is_shared = folder.resolve() != own.resolve()
    others = [path for path in folder.glob("*") if path.suffix != ".sample"]
    if is_shared or others:
        which = ", ".join(path.name for path in sorted(others)) or "nothing yet"
        raise HouseRulesError(
            f"git already takes hooks from {folder} ({which}): nothing was installed. "
            f"Move them away (git config --unset core.hooksPath), or call the scripts "
            f"in {HOOKS} from them"
        )


if __name__ == "__main__":
    sys.exit(exit_code(main))
