"""The house stays in order: imports go down, light modules stay light, public names are documented."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "src" / "foveal"

#: From the ground up: a module may import from its own floor's package and from lower floors only.
FLOORS = [
    {"errors"},
    {"info", "files", "machine", "assets"},
    {"config", "imaging", "preparing", "hub", "pictures", "plots"},
    {"results", "layers", "references", "packages", "regions", "checkpoints"},
    {"mask_results"},
    {"registry", "losses", "costs"},
    {"models"},
    {"tasks", "weights"},
    {"factory"},
    {"data"},
    {"run"},
    {"deploy", "timm"},
    {"commands"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, names in enumerate(FLOORS) for name in names}
#: Modules that `pip install foveal` uses: no torch when they are imported.
LIGHT = [
    "errors", "info", "files", "machine", "assets", "config", "imaging", "preparing", "hub", "references", "packages",
    "results",
    "cli", "commands.predicting", "commands.files", "commands.training", "commands.measuring", "commands.console",
    "commands.prompting", "commands.upscaling", "commands.demo",
    "data.classification", "data.coco", "data.instances", "data.labelled", "data.labels", "data.layout", "data.masks",
    "data.segmentation", "data.segmentation_layouts", "data.shards", "data.stream", "data.super_resolution",
    "data.degradation", "data.tar_samples", "data.transforms", "data.unlabelled", "run.check",
    "run.evaluate_upscaling", "run.fidelity",
    "run.interpolation", "run.upscaling", "pictures", "plots",
    "run.predict", "run.prompting", "run.everything", "run.sam_predictor", "mask_results", "regions",
    "run.load", "run.onnx_runner",
    "run.metrics", "run.evaluate", "run.progress", "run.clicks", "run.coco_scores", "run.evaluate_prompting",
    "run.boundary", "run.overview", "run.protocols", "run.samples", "run.compare", "deploy.benchmark",
]  # fmt: skip
MODULES = sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def imported_rooms(path: Path) -> Iterator[tuple[int, str]]:
    """(line, top-level module or package of ours) for each import in a file, inside functions too."""
    parts = ("foveal", *path.relative_to(PACKAGE).parts)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name.split(".") for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(parts[: len(parts) - node.level]) if node.level else []
            base += (node.module or "").split(".") if node.module else []
            # `from . import x` names modules; the package's own lazy names are no rooms.
            names = [[*base, alias.name] for alias in node.names] if len(base) == 1 else [base]
        else:
            continue
        yield from (
            (node.lineno, name[1]) for name in names if name[0] == "foveal" and len(name) > 1 and name[1] in RANK
        )


def test_every_room_has_a_floor() -> None:
    rooms = {path.relative_to(PACKAGE).parts[0].removesuffix(".py") for path in MODULES}
    assert rooms == set(RANK)


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_go_down_only(path: Path) -> None:
    room = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for line, other in imported_rooms(path):
        if other != room:
            assert RANK[other] < RANK[room], f"{path.name}:{line} imports {other} from {room}"


def test_the_rule_can_fail(tmp_path: Path) -> None:
    """The reader above sees upward imports in every form they are written in."""
    fake = PACKAGE / "layers" / "conv.py"
    for text in (
        "from ..models import efficientvit",
        "from foveal.models import x",
        "def f():\n from .. import models",
    ):
        node = ast.parse(text)
        assert node
        copy = tmp_path / "conv.py"
        copy.write_text(text)
        found = list(_rooms_of_text(text, fake))
        assert found == ["models"], text


def _rooms_of_text(text: str, place: Path) -> Iterator[str]:
    class Elsewhere(type(place)):
        def read_text(self, *_: object, **__: object) -> str:
            return text

    yield from (room for _, room in imported_rooms(Elsewhere(place)))


def test_light_modules_import_no_torch() -> None:
    code = f"import sys, importlib\nfor name in {LIGHT}: importlib.import_module('foveal.' + name)\n"
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


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
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
