"""Names that documents and notebooks use, and the list of those that users may import."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path
from types import ModuleType
from typing import Any

API = Path(__file__).parents[2] / "docs" / "python_api.md"
NAME = re.compile(r"foveal(?:\.\w+)+")


def resolve(name: str) -> Any:
    """The object of a dotted name; attributes of objects that are no module or class are not looked at.

    Raises:
        AttributeError: there is none.
    """
    first, *rest = name.split(".")
    value: Any = importlib.import_module(first)
    path = first
    for part in rest:
        if not isinstance(value, ModuleType | type):
            return value
        path = f"{path}.{part}"
        if isinstance(value, ModuleType) and not hasattr(value, part):
            try:
                value = importlib.import_module(path)
                continue
            except ModuleNotFoundError:
                raise AttributeError(f"no {path}") from None
        value = getattr(value, part)
    return value


def imported_names(code: str) -> set[str]:
    """Full names of what a snippet imports from the package, or takes as an attribute of it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "foveal":
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names if alias.name.startswith("foveal.")}
        elif isinstance(node, ast.Attribute) and NAME.fullmatch(ast.unparse(node)):
            names.add(ast.unparse(node))
    return names


def unlisted(names: set[str], public: set[str]) -> set[str]:
    """Those that are neither public, nor an attribute of a public name, nor a module on the way to one."""
    beginnings = {name.rsplit(".", count)[0] for name in public for count in range(name.count("."))}
    return {name for name in names if not {name, *_beginnings(name)} & public and name not in beginnings}


def _beginnings(name: str) -> set[str]:
    return {name.rsplit(".", count)[0] for count in range(1, name.count("."))}


def public_names() -> list[str]:
    """The names of the list: those in the first column of its tables."""
    return re.findall(r"^\| `(foveal[\w.]+)` \|", API.read_text(encoding="utf-8"), re.MULTILINE)
