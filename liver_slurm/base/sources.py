"""Modules looked at and not imported: where one is, and what it defines. Somebody else's code may do anything."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

_MAKES_NAMES = ("__path__", "sys.modules", "__getattr__", "globals(", "exec(", "setattr(", "vars(", "import *")
"""What a source has in it that adds names, or modules inside its own, in a way that cannot be read off it."""


def find_module(name: str, first: str | None = None) -> ModuleSpec | None:
    """Find a module without importing it or the packages that it is in; None: there is none.

    Args:
        first: folder that is looked in before all others.
    """
    importlib.invalidate_caches()
    spec: ModuleSpec | None = None
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        whole = ".".join(parts[:count])
        if count > 1 and (spec is None or spec.submodule_search_locations is None):
            return None
        within = None if spec is None else list(spec.submodule_search_locations or ())
        spec = PathFinder.find_spec(whole, [first]) if first is not None and within is None else None
        spec = spec or _found(whole, within)
    return spec


def may_have(name: str, first: str | None = None) -> bool:
    """Return whether there may be a module all the same where :func:`find_module` finds none.

    It is imported already, or a package that it is in makes modules as it is imported.
    """
    if name in sys.modules:
        return True
    outer = name.rpartition(".")[0]
    while outer:
        spec = find_module(outer, first)
        if spec is not None:
            source = source_of(spec)
            return source is None or any(word in source for word in _MAKES_NAMES)
        outer = outer.rpartition(".")[0]
    return False


def source_of(spec: ModuleSpec) -> str | None:
    """Return a module's source; None: it has none that can be read, as one in C."""
    if spec.origin is None or not spec.origin.endswith(".py"):
        return "" if spec.origin is None and spec.submodule_search_locations is not None else None
    try:
        return Path(spec.origin).read_bytes().decode()
    except (OSError, UnicodeDecodeError):
        return None


def names_of(source: str) -> set[str] | None:
    """Return the names that a module has once it is imported; None: its source does not say.

    Raises:
        SyntaxError: it is no Python.
    """
    tree = ast.parse(source)
    if any(word in source for word in _MAKES_NAMES):
        return None
    return set(_bound(tree.body)) | {
        name for node in ast.walk(tree) if isinstance(node, ast.Global) for name in node.names
    }


def fields_of(source: str, name: str) -> tuple[list[str], list[str]] | None:
    """Return the annotated names of a class, which are a dataclass's fields, and its bases; None: there is none."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            targets = [one.target for one in node.body if isinstance(one, ast.AnnAssign)]
            fields = [target.id for target in targets if isinstance(target, ast.Name)]
            return fields, [base.id for base in node.bases if isinstance(base, ast.Name)]
    return None


def _found(name: str, within: Sequence[str] | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        inside = within is not None and finder is PathFinder
        spec = _in_folders(name, within or ()) if inside else finder.find_spec(name, within, None)
        if spec is not None:
            return spec
    return None


def _in_folders(name: str, folders: Sequence[str]) -> ModuleSpec | None:
    """Find a module of a package as PathFinder does, which would want the package imported for one without a file."""
    portions: list[str] = []
    for folder in folders:
        finder = pkgutil.get_importer(folder)
        spec = finder.find_spec(name) if finder is not None else None
        if spec is not None and spec.loader is not None:
            return spec
        portions += list(spec.submodule_search_locations or ()) if spec is not None else []
    if not portions:
        return None
    spec = ModuleSpec(name, None, is_package=True)
    spec.submodule_search_locations = portions
    return spec


def _bound(body: Sequence[ast.stmt]) -> Iterator[str]:
    """Yield the names that statements bind at a module's level, also those inside ``if``, ``try`` and loops."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            yield from ((one.asname or one.name).partition(".")[0] for one in node.names)
        else:
            inner = [
                one
                for one in ast.iter_child_nodes(node)
                if isinstance(one, ast.stmt | ast.ExceptHandler | ast.match_case)
            ]
            for one in inner:
                yield from _bound([one] if isinstance(one, ast.stmt) else one.body)
            yield from _stored(node)


def _stored(node: ast.stmt) -> Iterator[str]:
    """Yield the names that the expressions of one statement store in."""
    for child in ast.walk(node):
        if isinstance(child, ast.Name) and isinstance(child.ctx, ast.Store):
            yield child.id
