"""The model's own sources as modules in one flat folder, for other programs.

transformers loads custom code from files that lie side by side and import each other
relatively. These are written from our modules: of each, only the top-level statements
that the entry module needs, word for word, with imports of this project rewritten as
relative ones. So they cannot drift from what was trained. Kernels in Triton stay
behind, as they are imported inside functions alone: find_spec("triton") becomes None
in the copies, which makes the same code take torch's own operations.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from gpt2.mechanisms import names

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("gpt2", "lib")
LEFT_OUT = "lib.kernels"  # written in Triton, or around a GPU's libraries
TRITON = 'find_spec("triton")'
# Modules whose names are there under another one's.
INSTEAD = {"gpt2.settings.schema": "gpt2.infer.plain_settings"}
MECHANISMS = "gpt2.mechanisms"  # which finds its folders and imports from them by name
PARTS = ("spec", "layer")  # of a mechanism, that a model is made of


@dataclass
class _Source:
    """A module: its text, and which top-level statement binds each name."""

    name: str
    lines: list[str]
    body: list[ast.stmt]
    binds: dict[str, int] = field(default_factory=dict)
    wanted: set[int] = field(default_factory=set)  # statements to copy

    def effects(self) -> Iterator[int]:
        """Statements that bind nothing and are there for their effect."""
        for place, statement in enumerate(self.body):
            if isinstance(statement, ast.Expr) and not _is_text(statement):
                yield place


def flat_name(module: str) -> str:
    """File name, without .py, of a module in the flat folder."""
    return module.replace(".", "_")


def flat_modules(entries: Mapping[str, str]) -> dict[str, str]:
    """File name to text of the modules that the entry modules need.

    entries: dotted name to the file name of each entry; these are copied whole.
    """
    sources: dict[str, _Source] = {}
    for entry in entries:
        _want_all(sources, entry)
    names = {name: entries.get(name, flat_name(name)) for name in sources}
    texts = {}
    for name, source in sources.items():
        text = _render(source, names)
        texts[f"{names[name]}.py"] = text
    # transformers copies the files that it sees imported, and it overlooks
    # `from . import module`: the first entry names them all.
    first = f"{next(iter(entries.values()))}.py"
    others = sorted(set(names.values()) - set(entries.values()))
    listed = "".join(
        f"from .{name} import __name__ as _  # noqa: F401\n" for name in others
    )
    comment = "# All modules of this folder, so that each is copied."
    texts[first] += f"\n\n{comment}\n{listed}"
    return texts


# ---- what is needed ---------------------------------------------------------------


def _source(sources: dict[str, _Source], name: str) -> _Source:
    if name not in sources:
        path = _path(name)
        assert path is not None, f"{name} is not a module of this project"
        text = path.read_text(encoding="utf-8").replace(TRITON, "None")
        for function, code in _without_folders(name).items():
            text = _with_function(text, function, code)
        found = _Source(name, text.split("\n"), ast.parse(text).body)
        for place, statement in enumerate(found.body):
            for bound in _bound_by(statement):
                found.binds.setdefault(bound, place)
        sources[name] = found
        for place in found.effects():
            _want(sources, found, place)
    return sources[name]


def _want_all(sources: dict[str, _Source], name: str) -> None:
    source = _source(sources, name)
    for place in range(len(source.body)):
        _want(sources, source, place)


def _want_name(sources: dict[str, _Source], module: str, name: str) -> None:
    """A name of a module, which may be a module itself."""
    module = INSTEAD.get(module, module)
    inner = f"{module}.{name}"
    if _path(inner) is not None:
        _source(sources, inner)
        return
    source = _source(sources, module)
    assert name in source.binds, f"{module} has no {name}"
    _want(sources, source, source.binds[name])


def _want(sources: dict[str, _Source], source: _Source, place: int) -> None:
    if place in source.wanted or _is_for_types(source.body[place]):
        return
    source.wanted.add(place)
    statement = source.body[place]
    if source.name == MECHANISMS and "module_of" in _bound_by(statement):
        for module in _parts_of_mechanisms():
            _want_all(sources, module)
    for imported in _imports_of(statement):
        module = imported.module or ""
        if not _is_left_out(module):
            # A module's own from-import is narrowed to what is used when rendered.
            if imported is not statement:
                for alias in imported.names:
                    _want_name(sources, module, alias.name)
    used = {node.id for node in ast.walk(statement) if isinstance(node, ast.Name)}
    for name in sorted(used & source.binds.keys()):
        _want(sources, source, source.binds[name])
    for module, attribute in _through_modules(source, statement):
        if attribute is None:
            _want_all(sources, module)
        else:
            _want_name(sources, module, attribute)
    _want_imported(sources, source, used)


def _want_imported(
    sources: dict[str, _Source], source: _Source, used: set[str]
) -> None:
    """Names of a statement that refer to other modules."""
    for statement in source.body:
        if isinstance(statement, ast.ImportFrom) and _is_ours(statement.module):
            for alias in statement.names:
                if (alias.asname or alias.name) in used:
                    _want_name(sources, statement.module or "", alias.name)


def _through_modules(
    source: _Source, statement: ast.stmt
) -> Iterator[tuple[str, str | None]]:
    """(module, name) for each module.name in a statement, (module, None) for a module
    that is used as a value."""
    modules = dict(_imported_modules(source, statement))
    inner = set()
    for node in ast.walk(statement):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            inner.add(node.value)
            if node.value.id in modules:
                yield modules[node.value.id], node.attr
    for node in ast.walk(statement):
        if isinstance(node, ast.Name) and node.id in modules and node not in inner:
            if isinstance(node.ctx, ast.Load):
                yield modules[node.id], None


def _imported_modules(
    source: _Source, statement: ast.stmt
) -> Iterator[tuple[str, str]]:
    for one in [*source.body, *_imports_of(statement)]:
        if isinstance(one, ast.ImportFrom) and _is_ours(one.module):
            for alias in one.names:
                inner = f"{one.module}.{alias.name}"
                if _path(inner) is not None and not _is_left_out(one.module or ""):
                    yield alias.asname or alias.name, inner


def _imports_of(statement: ast.stmt) -> list[ast.ImportFrom]:
    """Imports from this project in a statement, at whatever depth."""
    nodes = [node for node in ast.walk(statement) if isinstance(node, ast.ImportFrom)]
    return [node for node in nodes if _is_ours(node.module)]


def _bound_by(statement: ast.stmt) -> Iterator[str]:
    match statement:
        case ast.FunctionDef() | ast.ClassDef():
            yield statement.name
        case ast.Import() | ast.ImportFrom():
            for alias in statement.names:
                yield alias.asname or alias.name.split(".")[0]
        case _:
            for node in ast.walk(statement):
                if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                    yield node.id


def _is_text(statement: ast.stmt) -> bool:
    return isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant)


def _is_for_types(statement: ast.stmt) -> bool:
    """`if TYPE_CHECKING:`, of which nothing is there at run time."""
    if not isinstance(statement, ast.If) or statement.orelse:
        return False
    return ast.unparse(statement.test) == "TYPE_CHECKING"


def _is_ours(module: str | None) -> bool:
    return module is not None and module.split(".")[0] in PACKAGES


def _is_left_out(module: str) -> bool:
    return module == LEFT_OUT or module.startswith(f"{LEFT_OUT}.")


@cache
def _path(module: str) -> Path | None:
    """The file of a module of this project, None if there is none."""
    if not _is_ours(module):
        return None
    base = ROOT.joinpath(*module.split("."))
    files = (base.with_suffix(".py"), base / "__init__.py")
    return next((path for path in files if path.is_file()), None)


# ---- mechanisms, which are found at run time -----------------------------------------


def _parts_of_mechanisms() -> list[str]:
    modules = [f"{MECHANISMS}.{name}.{part}" for name in names() for part in PARTS]
    return [module for module in modules if _path(module) is not None]


def _without_folders(module: str) -> dict[str, str]:
    """Functions of a module that look into folders, as they are in the flat folder."""
    if module != MECHANISMS:
        return {}
    flat = flat_name(MECHANISMS)
    return {
        "names": f"def names() -> list[str]:\n    return {sorted(names())}",
        "module_of": "def module_of(name: str, part: str) -> Any:\n"
        f'    return import_module(f"{{__package__}}.{flat}_{{name}}_{{part}}")',
    }


def _with_function(text: str, name: str, code: str) -> str:
    """The text of a module with one function replaced."""
    body = ast.parse(text).body
    (old,) = (s for s in body if isinstance(s, ast.FunctionDef) and s.name == name)
    lines = text.split("\n")
    lines[old.lineno - 1 : old.end_lineno] = code.split("\n")
    return "\n".join(lines)


# ---- the copies -------------------------------------------------------------------


def _render(source: _Source, names: Mapping[str, str]) -> str:
    """The text of a module's copy; names: the file name of each module."""
    parts = [
        f"# From {source.name} of kablate, by gpt2/infer/flat_code.py: do not edit."
    ]
    used = {
        node.id
        for place in source.wanted
        for node in ast.walk(source.body[place])
        if isinstance(node, ast.Name)
    }
    for place, statement in enumerate(source.body):
        is_future = (
            isinstance(statement, ast.ImportFrom) and statement.module == "__future__"
        )
        if place == 0 and _is_text(statement) or is_future:
            parts.append(_text_of(source, place))
        elif isinstance(statement, ast.Import | ast.ImportFrom):
            parts += _import_text(statement, names, used)
        elif place in source.wanted:
            parts.append(_rewritten(_text_of(source, place), statement, names))
    return "\n".join(parts) + "\n"


def _text_of(source: _Source, place: int) -> str:
    """A statement with the comment lines above it and, before a definition, blanks."""
    statement = source.body[place]
    decorators = getattr(statement, "decorator_list", [])
    first = min([statement.lineno, *(d.lineno for d in decorators)]) - 1
    assert statement.end_lineno is not None
    start = first
    while start and source.lines[start - 1].startswith("#"):
        start -= 1
    is_definition = isinstance(statement, ast.FunctionDef | ast.ClassDef)
    blanks = ["", ""] if is_definition else []
    return "\n".join([*blanks, *source.lines[start : statement.end_lineno]])


def _import_text(
    statement: ast.Import | ast.ImportFrom, names: Mapping[str, str], used: set[str]
) -> Iterator[str]:
    """A top-level import, narrowed to the names that are used."""
    module = statement.module if isinstance(statement, ast.ImportFrom) else None
    for alias in statement.names:
        bound = alias.asname or alias.name.split(".")[0]
        if bound not in used:
            continue
        said = f" as {alias.asname}" if alias.asname else ""
        if module is None:
            yield f"import {alias.name}{said}"
        elif not _is_ours(module):
            yield f"from {module} import {alias.name}{said}"
        else:
            yield _relative(module, alias, names)


def _relative(module: str, alias: ast.alias, names: Mapping[str, str]) -> str:
    said = f" as {alias.asname}" if alias.asname else ""
    inner = f"{module}.{alias.name}"
    if _path(inner) is not None:
        return f"from . import {names[inner]} as {alias.asname or alias.name}"
    return f"from .{names[INSTEAD.get(module, module)]} import {alias.name}{said}"


def _rewritten(text: str, statement: ast.stmt, names: Mapping[str, str]) -> str:
    """The text of a statement with the imports inside it rewritten."""
    lines = text.split("\n")
    offset = statement.end_lineno or 0
    for inner in reversed(_imports_of(statement)):
        assert inner.end_lineno is not None and inner.module is not None
        start = len(lines) - 1 - (offset - inner.lineno)
        end = len(lines) - (offset - inner.end_lineno)
        blanks = " " * inner.col_offset
        if _is_left_out(inner.module):
            said = f"{inner.module} stays behind in an exported model"
            new = [f'{blanks}raise ImportError("{said}")']
        else:
            new = [blanks + _relative(inner.module, a, names) for a in inner.names]
        lines[start:end] = new
    return "\n".join(lines)
