"""The layout holds: imports go down without circles, light modules import no torch, files and functions stay short."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

from helpers.import_graph import find_circles, read_imports, room_of, rooms

PACKAGE = Path(__file__).parents[1] / "src" / "foveal"

#: The rooms from the top down: each may import from those below it. The package itself ("", the public interface) only
#: loads names when they are used, and its files without a folder that serve users stand directly below.
ORDER = [
    "__main__", "cli", "commands", "", "losses", "costs",
    "training", "evaluation", "exporting", "measuring", "prediction", "timm",
    "factory", "tasks", "weights", "models", "data", "layers", "images",
    "config", "info", "task", "progress", "files", "assets", "errors",
]  # fmt: skip
RANK = {room: len(ORDER) - place for place, room in enumerate(ORDER)}

#: Modules that `pip install foveal` uses without torch: these, and all of the rooms `commands`, `data` and `images`.
LIGHT = [
    "assets", "cli", "config", "errors", "files", "info", "progress", "task",
    "evaluation.boundary", "evaluation.classify", "evaluation.clicks", "evaluation.coco", "evaluation.compare",
    "evaluation.evaluate", "evaluation.fidelity", "evaluation.metrics", "evaluation.prompt", "evaluation.protocols",
    "evaluation.report", "evaluation.segment", "evaluation.sheet", "evaluation.upscale",
    "measuring.benchmark", "measuring.machine",
    "prediction.argmax", "prediction.everything", "prediction.everything_options", "prediction.interpolation",
    "prediction.load", "prediction.mask_results", "prediction.onnx_runner", "prediction.predictor",
    "prediction.prompting", "prediction.results", "prediction.runner", "prediction.runtimes",
    "prediction.segment_anything", "prediction.tiles", "prediction.torch_runner",
    "weights.hub", "weights.packages", "weights.references",
]  # fmt: skip
NEEDS_TORCH = {"data.torch_stream"}

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60

GRAPH = read_imports(PACKAGE)
FILES = sorted(PACKAGE.rglob("*.py"))


def upward_imports(graph: dict[str, set[str]], rank: dict[str, int]) -> list[str]:
    """Imports of a room that stands higher than the importing one, or beside it."""
    return [
        f"{module or 'the package'} imports {other or 'the package'}"
        for module, imported in graph.items()
        for other in sorted(imported)
        if room_of(other) != room_of(module) and rank[room_of(other)] >= rank[room_of(module)]
    ]


def long_functions(text: str, limit: int) -> list[str]:
    """Functions of more than ``limit`` lines, their docstrings left out."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                docstring = node.body[0]
                lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
            if lines > limit:
                found.append(f"{node.name} ({lines} lines)")
    return found


def test_every_room_has_its_place() -> None:
    assert {room_of(module) for module in GRAPH} == set(RANK)


def test_contributing_draws_the_rooms_in_this_order() -> None:
    text = (PACKAGE.parents[1] / "CONTRIBUTING.md").read_text(encoding="utf-8")
    drawing = text[text.index("\nsrc/foveal/\n") :].partition("```")[0]
    drawn = re.findall(r"^  (\w+)(?:/|\.py) +\S", drawing, re.MULTILINE)
    assert ["" if name == "__init__" else name for name in drawn] == ORDER


def test_imports_go_down() -> None:
    assert not upward_imports(GRAPH, RANK)


def test_no_circles_between_files_or_rooms() -> None:
    assert not find_circles(GRAPH)
    assert not find_circles(rooms(GRAPH))


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("from ..models import vit", "layers.conv imports models.vit"),
        ("from foveal.models import vit", "layers.conv imports models.vit"),
        ("import foveal.models.vit", "layers.conv imports models.vit"),
        ("def f():\n    from ..models.vit import x", "layers.conv imports models.vit"),
        ("if TYPE_CHECKING:\n    from .. import models", "layers.conv imports models"),
    ],
)
def test_added_upward_imports_and_circles_are_found(tmp_path: Path, text: str, found: str) -> None:
    """On a made-up tree: ``models`` imports ``layers``, so that any import back is both upward and a circle."""
    package = tmp_path / "foveal"
    for name, content in {
        "__init__.py": "",
        "models/__init__.py": "from ..layers import conv" if found.endswith("models") else "",
        "models/vit.py": "from ..layers.conv import Conv",
        "layers/__init__.py": "",
        "layers/conv.py": "class Conv: ...",
    }.items():
        (package / name).parent.mkdir(exist_ok=True, parents=True)
        (package / name).write_text(content)
    rank = {"": 3, "models": 2, "layers": 1}
    assert not upward_imports(read_imports(package), rank)
    assert not find_circles(read_imports(package))
    (package / "layers" / "conv.py").write_text(text)
    graph = read_imports(package)
    assert upward_imports(graph, rank) == [found]
    assert find_circles(graph) == [["layers.conv", found.rpartition(" ")[2]]]
    assert find_circles(rooms(graph)) == [["layers", "models"]]


def test_circles_inside_one_room_are_found(tmp_path: Path) -> None:
    package = tmp_path / "foveal"
    package.mkdir()
    for name, text in {"__init__": "", "a": "from .b import x", "b": "from . import c", "c": "import foveal.a"}.items():
        (package / f"{name}.py").write_text(text)
    assert find_circles(read_imports(package)) == [["a", "b", "c"]]


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_and_functions_are_short(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    assert not long_functions(text, MAX_FUNCTION_LINES)


def test_long_functions_are_found() -> None:
    text = "def f():\n" + '    """Docstring,\n\n    not counted."""\n' + "    x = 1\n" * 5
    assert long_functions(text, 5) == ["f (6 lines)"]
    assert not long_functions(text, 6)


def test_light_modules_import_no_torch() -> None:
    whole = [m for m in GRAPH if room_of(m) in ("commands", "data", "images") and m not in NEEDS_TORCH]
    code = f"import sys, importlib\nfor name in {LIGHT + whole}: importlib.import_module('foveal.' + name)\n"
    code += "heavy = {'torch', 'accelerate', 'onnxruntime', 'onnx'} & set(sys.modules)\nassert not heavy, heavy"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_importing_foveal_imports_almost_nothing() -> None:
    code = "import sys, foveal\nheavy = {'torch', 'numpy', 'PIL', 'onnxruntime', 'yaml', 'rich'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", code + "assert not heavy, heavy"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_public_names_resolve_and_unknown_ones_do_not() -> None:
    import foveal

    for name in foveal.__all__:
        assert getattr(foveal, name) is not None
    assert set(foveal.__all__) <= set(dir(foveal))
    with pytest.raises(AttributeError, match="no attribute 'creat_model'"):
        foveal.creat_model  # noqa: B018


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_public_names_have_docstrings(path: Path) -> None:
    """Modules, public classes and public functions at the top of a module say what they are."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "module docstring"
    bare = [
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and not node.name.startswith("_")
        and not ast.get_docstring(node)
        and not any(isinstance(decorator, ast.Name) and decorator.id == "overload" for decorator in node.decorator_list)
    ]
    assert not bare
