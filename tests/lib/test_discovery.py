"""lib/discovery.py: modules that describe themselves, and those that do not."""

from pathlib import Path

import pytest

from lib.discovery import specs_in

SPEC = """from types import SimpleNamespace
SPEC = SimpleNamespace(name={name!r}, place={place})
"""


def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict) -> str:
    name = f"plugins_{tmp_path.name}"
    folder = tmp_path / name
    folder.mkdir()
    for file, text in {"__init__.py": "", **files}.items():
        (folder / file).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    return name


def both(name: str, place: int = 1) -> dict[str, str]:
    return {f"{name}.py": SPEC.format(name=name, place=place), f"{name}.kconfig": ""}


def test_specs_are_sorted_by_place_and_name(tmp_path, monkeypatch) -> None:
    files = both("b") | both("c", 0) | both("a")
    assert list(specs_in(package(tmp_path, monkeypatch, files))) == ["c", "a", "b"]


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({"a.py": SPEC.format(name="a", place=1)}, "/a.kconfig is missing"),
        ({"a.kconfig": ""}, "/a.py is missing"),
        ({"a.py": "", "a.kconfig": ""}, "/a.py must define SPEC with name='a'"),
        (both("a") | {"a.py": SPEC.format(name="b", place=1)}, "name='a'"),
    ],
)
def test_half_a_plugin_is_refused(tmp_path, monkeypatch, files, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        specs_in(package(tmp_path, monkeypatch, both("z") | files))
