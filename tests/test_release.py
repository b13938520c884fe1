"""The release: wheel and sdist are built, hold what they should, and the wheel works in an environment of its own.

That environment has the declared dependencies of the base install and nothing else, so it has no torch, and an import
that the metadata does not declare fails. Nothing is downloaded.
"""

from __future__ import annotations

import email
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from email.message import Message
from importlib import metadata
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from PIL import Image

import foveal
from foveal import assets
from foveal.page import FOLDER, page_files
from helpers.services import running

ROOT = Path(__file__).parents[1]
PHOTO = assets.FOLDER / "street.jpg"
OTHER_ASSETS = {"imagenet_classes.md", "imagenet_classes.txt", "street.jpg", "street.label.png", "street.md"}
MAX_WHEEL_MB = 40
#: Without what is importable here only. With the rest: without PATH, a compiler finds no linker, after its work.
ALONE = {**os.environ, "PYTHONPATH": "", "OMP_NUM_THREADS": "1"}


def run(*command: object, cwd: Path = ROOT) -> str:
    done = subprocess.run([str(word) for word in command], cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def build(target: str, source: Path, folder: Path) -> Path:
    run(sys.executable, "-m", "hatchling", "build", "-t", target, "-d", folder, cwd=source)
    (path,) = folder.iterdir()
    return path


def content(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build("wheel", ROOT, tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def description(wheel: Path) -> Message:
    """The metadata in the wheel."""
    files = content(wheel)
    (name,) = (name for name in files if name.endswith(".dist-info/METADATA"))
    return email.message_from_string(files[name].decode())


def test_the_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = set(content(wheel))
    size = wheel.stat().st_size / 1e6
    print(f"{wheel.name}: {len(names)} files, {size:.1f} MB")
    assert size < MAX_WHEEL_MB
    inside = {name.removeprefix("foveal/") for name in names if name.startswith("foveal/")}
    modules = {path.relative_to(ROOT / "src" / "foveal").as_posix() for path in (ROOT / "src").rglob("*.py")}
    assert {name for name in inside if name.endswith(".py")} == modules
    package = ROOT / "src" / "foveal"
    sources = {path.relative_to(package) for suffix in ("cpp", "h") for path in package.rglob(f"*.{suffix}")}
    expected = {"py.typed"} | {path.as_posix() for path in sources} | {f"assets/{name}" for name in OTHER_ASSETS}
    expected |= {f"page/{name}" for name in page_files()}
    for ref in assets.WEIGHTS:
        expected |= {f"assets/{ref}.md", f"assets/{ref}.safetensors"}
        exported = (f"assets/{ref}{suffix}" for suffix in (".onnx", ".foveal", ".encoder.onnx", ".prompts.onnx"))
        expected |= {name for name in exported if (ROOT / "src" / "foveal" / name).exists()}
    graphs = {
        path.name: path.stat().st_size for suffix in ("graph", "plan") for path in assets.FOLDER.glob(f"*.{suffix}")
    }
    assert len(graphs) == 8
    assert sum(graphs.values()) < 1e6  # they take their weights from the checkpoints
    expected |= {f"assets/{name}" for name in graphs}
    described = {path.name: path.stat().st_size for path in assets.FOLDER.glob("*.steps.json")}
    assert len(described) == 5
    assert sum(described.values()) < 100_000  # they take their weights from the checkpoints, too
    expected |= {f"assets/{name}" for name in described}
    recipes = {path.relative_to(ROOT).as_posix() for path in (ROOT / "recipes").rglob("*.yaml")}
    assert {name for name in inside if not name.endswith(".py")} == expected | recipes
    outside = {PurePosixPath(name).parts for name in names if not name.startswith("foveal/")}
    (folder,) = {parts[0] for parts in outside}
    assert {"/".join(parts[1:]) for parts in outside} == {
        "METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE",
    }  # fmt: skip
    assert folder.endswith(".dist-info")


def test_the_metadata_is_complete(description: Message) -> None:
    assert description["Name"] == "foveal"
    assert description["License-Expression"] == "Apache-2.0"
    assert description["Requires-Python"] == ">=3.11"
    assert str(description.get_payload()).startswith("# Foveal")
    classifiers = set(description.get_all("Classifier", ()))
    assert {f"Programming Language :: Python :: 3.{minor}" for minor in (11, 12, 13)} <= classifiers
    assert "serve" in description.get_all("Provides-Extra", ()), "a name that installs, although it adds nothing"


def test_the_version_is_in_the_changelog(description: Message) -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"\n## {description['Version']} (20" in changelog
    assert changelog.index("\n## Unreleased\n") < changelog.index(f"\n## {description['Version']} ")


def test_the_sdist_builds_the_same_wheel(wheel: Path, tmp_path: Path) -> None:
    sdist = build("sdist", ROOT, tmp_path / "sdist")
    with tarfile.open(sdist) as archive:
        archive.extractall(tmp_path, filter="data")
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    top = {path.name for path in source.iterdir()}
    assert {"src", "tests", "docs", "recipes", "benchmarks", "LICENSE", "README.md", "Makefile"} <= top
    assert not {path.name for path in source.rglob("*")} & {"__pycache__", "runs", "demo", "dist", ".git", ".venv"}
    assert content(build("wheel", source, tmp_path / "wheel")) == content(wheel)


# ---- the wheel in use


def required(description: Message) -> set[str]:
    """Names of the distributions that the base install needs, directly or not, as this environment has them."""
    names: set[str] = set()
    pending = description.get_all("Requires-Dist", ())
    while pending:
        wanted = [Requirement(text) for text in pending]
        wanted = [one for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]
        new = {canonicalize_name(one.name) for one in wanted} - names
        names |= new
        pending = [text for name in new for text in metadata.requires(name) or ()]
    return names


def link_dependencies(names: set[str], folder: Path) -> None:
    """Make ``folder`` hold links to everything that these distributions installed into site-packages."""
    folder.mkdir()
    for name in names:
        found = metadata.distribution(name)
        for top in {file.parts[0] for file in found.files or ()} - {"..", "__pycache__"}:
            if not (folder / top).exists():
                (folder / top).symlink_to(Path(str(found.locate_file(top))).resolve())


@pytest.fixture(scope="module")
def installed(wheel: Path, description: Message, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of the programs of a virtual environment with the wheel and its dependencies alone."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv")
    scripts = folder / "venv" / ("Scripts" if sys.platform == "win32" else "bin")
    python = scripts / "python"
    run(sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel)
    link_dependencies(required(description), folder / "dependencies")
    site = sysconfig.get_path("purelib", vars={"base": str(folder / "venv")})
    (Path(site) / "dependencies.pth").write_text(f"{folder / 'dependencies'}\n")
    return scripts


def test_the_environment_has_no_torch_and_the_package_of_the_wheel(installed: Path, tmp_path: Path) -> None:
    code = "import importlib.util as u, foveal; print(u.find_spec('torch'), foveal.__file__, foveal.__version__)"
    torch, file, version = run(installed / "python", "-I", "-c", code, cwd=tmp_path).split()
    assert torch == "None"
    assert Path(file).is_relative_to(installed.parent)
    assert version == foveal.__version__


def test_the_installed_command_gives_the_mask_of_the_source(
    installed: Path, description: Message, tmp_path: Path
) -> None:
    """With ONNX Runtime; the demo below runs the native engine."""
    command = [installed / "foveal", "--version"]
    done = subprocess.run(command, cwd=tmp_path, env=ALONE, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == description["Version"]
    command = [installed / "foveal", "segment", PHOTO, "--out", tmp_path / "mask.png", "--runtime", "onnxruntime"]
    subprocess.run(command, cwd=tmp_path, env=ALONE, capture_output=True, text=True, check=True)
    with Image.open(tmp_path / "mask.png") as mask:
        found = np.asarray(mask)
    expected = foveal.load(assets.DEFAULTS["segment"], runtime="onnxruntime")(PHOTO).mask
    np.testing.assert_array_equal(found, expected)


def test_the_base_install_serves_the_page_and_its_models_without_torch(installed: Path) -> None:
    with running(environment=ALONE, program=(installed / "foveal",)) as service:
        assert service.get("/").body == (FOLDER / "index.html").read_bytes()
        models = service.get("/api/models").json["models"]
        assert [model["task"] for model in models] == ["prompt", "segment", "upscale"]
        size = {"width": 1280, "height": 743}
        assert size.items() <= service.post(f"/api/{models[0]['name']}/encode", PHOTO.read_bytes()).json.items()


def test_the_base_install_predicts_without_torch(installed: Path, tmp_path: Path) -> None:
    """The demo runs, models are listed, and what needs torch says how to install it."""

    def use(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [str(installed / "foveal"), *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=ALONE, capture_output=True, text=True)

    done = use("demo", "--json", "--out", "demo")
    report = json.loads(done.stdout)
    assert report["agreement"] >= 0.8, done.stderr
    assert "cannot run here" not in done.stderr or not shutil.which("c++")  # the native engine needs a compiler
    assert report["upscaled"]["size"] == [1486, 2560]
    files = ["street.overlay.jpg", "street.png", "street.x2.compare.png", "street.x2.png"]
    assert sorted(path.name for path in (tmp_path / "demo").iterdir()) == files
    clicked = json.loads(use("prompt", PHOTO, "--point", "860,560", "--out", "car.png", "--json").stdout)
    assert clicked["model"] == assets.DEFAULTS["prompt"]
    assert clicked["runtime"].startswith("native" if shutil.which("c++") else "onnxruntime")
    assert clicked["masks"][2]["area"] > 10_000
    exact = use("segment", PHOTO, "--exact", "--out", "exact.png", "--json")
    assert exact.returncode == 0, exact.stderr
    assert json.loads(exact.stdout)["runtime"].startswith("onnxruntime")
    other = use("segment", PHOTO, "--exact", "--model", "efficientvit_b1.cityscapes")
    assert other.returncode == 2
    assert "exact streaming divides networks with torch: pip install 'foveal[torch]'" in other.stderr
    listed = use("models")
    assert "efficientvit_b0.camvid" in listed.stdout
    assert "pip install 'foveal[torch]'" in listed.stderr
    refused = use("train", tmp_path)
    assert refused.returncode == 2
    assert "pip install 'foveal[torch]'" in refused.stderr
