"""docs/api.md: its blocks run in order, and print what the page says."""

import re
import shutil
import sys
from pathlib import Path

from tests.scratch import ROOT, run
from tests.scripts.inprocess import run_script

BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.M | re.S)
END = "---- end of a block"


def test_blocks_of_the_page(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed / "results", tmp_path / "results")
    run_script("report.py", "--no-plots", "--quiet", "results", cwd=tmp_path)
    blocks = BLOCK.findall((ROOT / "docs/api.md").read_text())
    assert len(blocks) >= 9
    program = "".join(f"{code}print({END!r})\n" for code, _ in blocks)
    (tmp_path / "page.py").write_text(program)
    done = run(tmp_path, sys.executable, "page.py", PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split(f"{END}\n") == [*(printed for _, printed in blocks), ""]
