"""Build the documentation as a searchable site in site/: make docs.

README.md is its start page. The Markdown files, and the files that they link to, are
copied with their layout into a folder of their own, since the generator takes pages
from one folder only. A link or an anchor that leads nowhere is an error.
Exit codes: 0 built; 1 a fault in the pages; 2 the generator is not installed, or site/
has files of others.
"""

from __future__ import annotations

if __name__ == "__main__":
    import _bootstrap  # noqa: F401

import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

from gpt2.settings.rerun_commands import show_next
from lib.files import remove_folder
from lib.output import EXIT_FAILED, EXIT_OK, EXIT_USAGE, exit_code

ROOT = Path(__file__).resolve().parents[1]
CONFIG, SITE = ROOT / "docs" / "mkdocs.yml", ROOT / "site"
LINK = re.compile(r"\]\(([^)#\s]+)")
OURS = re.compile(r".*\.(html|js|json|css|svg|png|xml|ico|map|txt|md)|.*/LICENSE")


def main() -> int:
    if find_spec("zensical") is None:
        return refuse("Zensical is missing: make setup EXTRAS=docs")
    if SITE.is_symlink():
        return refuse(f"{SITE} is a link")
    with tempfile.TemporaryDirectory(prefix="kablate-docs-") as name:
        folder = Path(name)
        copy_pages(ROOT, folder / "pages")
        shutil.copy(CONFIG, folder)
        command = ("-m", "zensical", "build", "--strict", "-f", CONFIG.name)
        done = subprocess.run(
            [sys.executable, *command],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        if done.returncode:
            print(findings(done.stdout), file=sys.stderr)
            return EXIT_FAILED
        if SITE.exists() and (others := remove_folder(SITE, OURS)):
            return refuse(f"{SITE} has files of others: {', '.join(others[:3])}")
        shutil.copytree(folder / "site", SITE)
    print("Built site/")
    show_next("python -m http.server --directory site", "to read it")
    return EXIT_OK


def refuse(reason: str) -> int:
    print(f"docs: {reason}", file=sys.stderr)
    return EXIT_USAGE


def findings(printed: str) -> str:
    """Output of the generator without colours and the traceback of a strict build."""
    return re.sub(r"\x1b\[[0-9;]*m", "", printed).partition("\nTraceback")[0].strip()


def copy_pages(root: Path, folder: Path) -> None:
    for path in sources(root):
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, target)


def sources(root: Path) -> Iterator[Path]:
    """The pages, and the files of the project that they link to, each once."""
    pages = [
        root / "README.md",
        root / "CONTRIBUTING.md",
        *sorted(root.glob("docs/**/*.md")),
    ]
    found = dict.fromkeys(pages)
    for page in pages:
        links = LINK.findall(page.read_text(encoding="utf-8"))
        found |= dict.fromkeys((page.parent / link).resolve() for link in links)
    yield from (path for path in found if path.is_file() and path.is_relative_to(root))


if __name__ == "__main__":
    sys.exit(exit_code(main))
