"""docs/api.md: its blocks run in order, and print what the page says."""

import contextlib
import io
import re
import shutil
from pathlib import Path

from tests.scratch import ROOT
from tests.scripts.inprocess import run_script

BLOCK = re.compile(r"^```python\n(.*?)^```$(?:\n\n```text\n(.*?)^```$)?", re.M | re.S)


def test_blocks_of_the_page(undisturbed: Path, tmp_path: Path) -> None:
    shutil.copytree(undisturbed / "results", tmp_path / "results")
    run_script("report.py", "--no-plots", "--quiet", "results", cwd=tmp_path)
    blocks = BLOCK.findall((ROOT / "docs/api.md").read_text())
    assert len(blocks) >= 9
    names: dict[str, object] = {}
    for code, printed in blocks:
        out = io.StringIO()
        with contextlib.chdir(tmp_path), contextlib.redirect_stdout(out):
            exec(compile(code, "docs/api.md", "exec"), names)  # noqa: S102
        assert out.getvalue() == printed, code
