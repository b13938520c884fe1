"""The imports of a package, read from its source: those inside functions and under TYPE_CHECKING too."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

Graph = dict[str, set[str]]


def read_imports(package: Path) -> Graph:
    """Module -> the modules of the same package that it imports, by dotted names below the package ("" is the package).

    ``from . import x`` counts as an import of module ``x`` where that is a module, else of the package itself.
    """
    files = {_dotted(path.relative_to(package)): path for path in sorted(package.rglob("*.py"))}
    return {name: set(_imports(path, package, files)) - {name} for name, path in files.items()}


def find_circles(graph: Mapping[str, set[str]]) -> list[list[str]]:
    """Groups of two or more names that reach each other (strongly connected components, Tarjan 1972)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    circles: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in sorted(graph.get(name, ())):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                circles.append(sorted(group))

    for name in sorted(graph):
        if name not in number:
            visit(name)
    return circles


def room_of(module: str) -> str:
    """First part of a dotted name: a folder of the package or a file at its top; "" for the package itself."""
    return module.partition(".")[0]


def rooms(graph: Graph) -> Graph:
    """The same graph between rooms."""
    found: Graph = {room_of(module): set() for module in graph}
    for module, imported in graph.items():
        found[room_of(module)] |= {room_of(other) for other in imported} - {room_of(module)}
    return found


def _dotted(relative: Path) -> str:
    parts = relative.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imports(path: Path, package: Path, files: Mapping[str, Path]) -> Iterator[str]:
    folders = path.relative_to(package).parts[:-1]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                first, _, rest = alias.name.partition(".")
                if first == package.name:
                    yield _module(rest, files)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                base = [*folders[: len(folders) + 1 - node.level], *module.split(".")]
            elif module.partition(".")[0] == package.name:
                base = module.split(".")[1:]
            else:
                continue
            origin = ".".join(part for part in base if part)
            for alias in node.names:
                yield _module(f"{origin}.{alias.name}".strip("."), files)


def _module(name: str, files: Mapping[str, Path]) -> str:
    """The longest part of a dotted name that is a module."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name
