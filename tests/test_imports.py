"""The layout holds: imports go down without circles, light modules import no torch, files and functions stay short."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from foveal.task import TASKS
from helpers.import_graph import find_circles, read_imports, room_of, rooms

PACKAGE = Path(__file__).parents[1] / "src" / "foveal"

#: The rooms from the top down: each may import from those below it. The package itself ("", the public interface) only
#: loads names when they are used, and its files without a folder that serve users stand directly below.
ORDER = [
    "__main__", "cli", "commands", "serving", "", "losses", "costs",
    "training", "measuring", "exporting", "evaluation", "batch", "prediction", "streaming", "timm",
    "engine", "factory", "tasks", "weights", "models", "data", "layers", "images",
    "config", "info", "task", "progress", "timing", "compiling", "files", "page", "assets", "errors", "text",
]  # fmt: skip
RANK = {room: len(ORDER) - place for place, room in enumerate(ORDER)}

#: Modules that `pip install foveal` uses without torch: these, and all of the rooms `commands`, `data` and `images`.
LIGHT = [
    "assets", "batch.embeddings", "batch.inputs", "batch.manifest", "batch.plan", "batch.pool", "batch.ray_run",
    "batch.reading", "batch.results", "batch.run", "batch.sinks", "batch.stores", "batch.values", "batch.worker",
    "cli", "compiling", "config", "errors", "files", "info", "progress", "task", "text", "timing",
    "engine.binder", "engine.binding", "engine.costs", "engine.engine", "engine.library", "engine.packing",
    "engine.plan", "engine.steps", "engine.steps_tokens",
    "evaluation.boundary", "evaluation.classify", "evaluation.clicks", "evaluation.coco", "evaluation.compare",
    "evaluation.detections", "evaluation.evaluate", "evaluation.fidelity", "evaluation.metrics", "evaluation.prompt",
    "evaluation.regress", "evaluation.regression",
    "evaluation.protocols", "evaluation.report", "evaluation.segment", "evaluation.sheet", "evaluation.upscale",
    "measuring.benchmark", "measuring.candidates", "measuring.energy", "measuring.machine", "measuring.opening",
    "measuring.peer_files", "measuring.peers", "measuring.report", "measuring.rounds", "page", "prediction.areas",
    "prediction.argmax", "prediction.batching", "prediction.coreml_runner",
    "prediction.devices", "prediction.everything", "prediction.everything_options", "prediction.interpolation",
    "prediction.load", "prediction.mask_results", "prediction.native_runner", "prediction.onnx_file",
    "prediction.executorch_runner", "prediction.exported", "prediction.file_network", "prediction.input_limits",
    "prediction.litert_runner", "prediction.sealed",
    "prediction.native_graphs",
    "prediction.onnx_graphs", "prediction.onnx_pieces", "prediction.onnx_providers", "prediction.onnx_runner",
    "prediction.onnx_writing", "prediction.openvino_runner",
    "prediction.options", "prediction.predictor", "prediction.prompting", "prediction.regress",
    "prediction.results", "prediction.runner", "prediction.runtimes",
    "prediction.segment_anything", "prediction.segmenting",
    "prediction.streamed", "prediction.streamed_bands", "prediction.streamed_networks", "prediction.streamed_outputs",
    "prediction.tensorrt_runner", "prediction.tiles", "prediction.torch_runner", "prediction.upscaling",
    "serving.addresses", "serving.app", "serving.calls", "serving.classify", "serving.connections",
    "serving.embeddings", "serving.gate", "serving.inference_protocol", "serving.inputs", "serving.keys",
    "serving.lanes", "serving.limits", "serving.logs", "serving.metrics", "serving.models", "serving.openapi",
    "serving.prompt", "serving.replies", "serving.segment", "serving.server", "serving.service", "serving.tensors",
    "serving.upscale",
    "streaming.executor", "streaming.geometry", "streaming.maps", "streaming.passes", "streaming.regions",
    "streaming.run", "streaming.steps", "streaming.stored", "streaming.team", "streaming.validity", "streaming.windows",
    "weights.arrays", "weights.hub", "weights.kinds", "weights.packages", "weights.references", "weights.transfer",
]  # fmt: skip
NEEDS_TORCH = {"data.torch_stream"}

MAX_FILE_LINES = 450
MAX_FUNCTION_LINES = 60

GRAPH = read_imports(PACKAGE)
#: Text and syntax tree of each file.
FILES = {
    path.relative_to(PACKAGE).as_posix(): (text := path.read_text(encoding="utf-8"), ast.parse(text))
    for path in sorted(PACKAGE.rglob("*.py"))
}


def upward_imports(graph: dict[str, set[str]], rank: dict[str, int]) -> list[str]:
    """Imports of a room that stands higher than the importing one, or beside it."""
    return [
        f"{module or 'the package'} imports {other or 'the package'}"
        for module, imported in graph.items()
        for other in sorted(imported)
        if room_of(other) != room_of(module) and rank[room_of(other)] >= rank[room_of(module)]
    ]


def long_functions(tree: ast.Module, limit: int) -> list[str]:
    """Functions of more than ``limit`` lines, their docstrings left out."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            lines = (node.end_lineno or 0) - node.lineno + 1
            if ast.get_docstring(node) is not None:
                docstring = node.body[0]
                lines -= (docstring.end_lineno or 0) - docstring.lineno + 1
            if lines > limit:
                found.append(f"{node.name} ({lines} lines)")
    return found


def compared_tasks(tree: ast.Module) -> list[str]:
    """Comparisons with the name of a task: ``==``, ``!=``, ``in`` and ``match``."""
    found = []
    for node in ast.walk(tree):
        sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
        sides += [node.value] if isinstance(node, ast.MatchValue) else []
        constants = (part for side in sides for part in ast.walk(side) if isinstance(part, ast.Constant))
        if any(isinstance(constant.value, str) and constant.value in TASKS for constant in constants):
            found.append(ast.unparse(node))
    return found


def missing_docstrings(tree: ast.Module) -> list[str]:
    """Modules, and public classes and functions at the top of a module, without a docstring."""
    found = [] if ast.get_docstring(tree) else ["the module"]
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            decorators = {getattr(decorator, "id", "") for decorator in node.decorator_list}
            if not ast.get_docstring(node) and "overload" not in decorators:
                found.append(node.name)
    return found


def offences(rule: Callable[[ast.Module], list[str]]) -> dict[str, list[str]]:
    """What a rule finds in the files of the package, by file."""
    return {name: found for name, (_, tree) in FILES.items() if (found := rule(tree))}


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


def test_files_and_functions_are_short() -> None:
    assert not [name for name, (text, _) in FILES.items() if text.count("\n") > MAX_FILE_LINES]
    assert not offences(lambda tree: long_functions(tree, MAX_FUNCTION_LINES))


def test_tasks_are_compared_in_their_own_files_alone() -> None:
    """Elsewhere a property of :class:`foveal.task.Task` or a table with a line per task decides."""
    found = offences(compared_tasks)
    assert not {name: places for name, places in found.items() if Path(name).stem not in {"task", *TASKS}}


def test_compared_tasks_are_found() -> None:
    assert compared_tasks(ast.parse("if info.task == 'segment': pass")) == ["info.task == 'segment'"]
    assert compared_tasks(ast.parse("x = task not in ('classify', other)")) == ["task not in ('classify', other)"]
    assert compared_tasks(ast.parse("match task:\n    case 'prompt': pass"))
    assert not compared_tasks(ast.parse("run = JOBS['segment'] if task.has_classes else x == 'test'"))


def test_long_functions_are_found() -> None:
    text = "def f():\n" + '    """Docstring,\n\n    not counted."""\n' + "    x = 1\n" * 5
    assert long_functions(ast.parse(text), 5) == ["f (6 lines)"]
    assert not long_functions(ast.parse(text), 6)


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


def test_public_names_have_docstrings() -> None:
    assert not offences(missing_docstrings)
