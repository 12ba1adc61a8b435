"""make docs: every page is in the site, and a broken link is refused."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from scripts.build_docs import CONFIG, sources
from tests.scratch import ROOT, copy_files, project_files, python

NEEDS = ("README.md", "CONTRIBUTING.md", "docs", "scripts", "lib", "gpt2")
with_zensical = pytest.mark.skipif(
    find_spec("zensical") is None, reason="needs zensical: make setup EXTRAS=docs"
)


def test_the_menu_has_every_page() -> None:
    pages = {n for n in project_files() if re.fullmatch(r"(docs/)?[^/]+\.md", n)}
    menu = re.findall(r"^  - (?:.*: )?(\S+\.md)$", CONFIG.read_text(), re.M)
    assert pages <= set(menu) <= set(project_files())
    assert len(menu) == len(set(menu))


def test_pages_come_with_what_they_link_to() -> None:
    found = [path.relative_to(ROOT).as_posix() for path in sources(ROOT)]
    assert len(found) == len(set(found))
    wanted = {"README.md", "docs/api.md", "gpt2/report/summary.schema.json"}
    assert wanted <= {*found}


@pytest.mark.skipif(find_spec("zensical") is not None, reason="zensical is installed")
def test_a_missing_generator_is_named(tmp_path: Path) -> None:
    done = python(copy_files(tmp_path / "tree", NEEDS), "scripts/build_docs.py")
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "make setup EXTRAS=docs" in done.stderr


@with_zensical
def test_the_site_is_built_and_a_broken_link_is_refused(tmp_path: Path) -> None:
    tree = copy_files(tmp_path / "tree", NEEDS)
    for _ in range(2):  # the second replaces the first
        done = python(tree, "scripts/build_docs.py")
        assert done.returncode == 0, done.stderr
    page = (tree / "site/docs/guide/index.html").read_text()
    assert 'href="../mechanisms/#reciprocal-attention"' in page
    assert "MIN_LR_RATIO" in (tree / "site/search.json").read_text()
    # Nothing is loaded from other servers.
    assert not re.findall(r'<(?:script|img|iframe)[^>]* src="http[^"]*|@import', page)
    before = (tree / "site/index.html").read_bytes()
    with (tree / "docs/reading.md").open("a") as file:
        file.write("\n[gone](gone.md) [nowhere](glossary.md#nowhere)\n")
    done = python(tree, "scripts/build_docs.py")
    assert done.returncode == 1 and "gone.md" in done.stderr
    assert "2 issues found" in done.stderr
    assert (tree / "site/index.html").read_bytes() == before


@with_zensical
def test_a_folder_of_others_is_kept(tmp_path: Path) -> None:
    tree = copy_files(tmp_path / "tree", NEEDS)
    (tree / "site").mkdir()
    (tree / "site/notes.doc").write_text("mine")
    done = python(tree, "scripts/build_docs.py")
    assert done.returncode == 2 and "files of others: notes.doc" in done.stderr
    assert [path.name for path in (tree / "site").iterdir()] == ["notes.doc"]
