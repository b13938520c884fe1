"""Programs without Foveal read the metadata of exported files and get Foveal's masks."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal import assets
from foveal.exporting.graph import metadata
from foveal.info import ModelInfo, Preprocess
from foveal.prediction.input_limits import InputLimits

EXAMPLES = Path(__file__).parents[2] / "examples"
MODEL = assets.path("efficientvit_b0.camvid", ".onnx")


def test_the_python_client_gives_the_same_mask(tmp_path: Path) -> None:
    """Of an image that is reduced first, too large for these weights."""
    image = tmp_path / "street.png"
    Image.open(assets.path("street", ".jpg")).convert("RGB").crop((0, 200, 1100, 560)).save(image)
    command = [sys.executable, EXAMPLES / "python_client.py", MODEL, image, tmp_path / "mask.png"]
    process = subprocess.run(command, capture_output=True, text=True, check=True)
    expected = foveal.load(MODEL)(image)
    with Image.open(tmp_path / "mask.png") as mask:
        assert (np.asarray(mask) == expected.mask).mean() >= 0.9999
        assert tuple(mask.getpalette() or ())[:3] == expected.palette[0]
    assert process.stdout.startswith(f"{expected.names[0]}: ")


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The examples with the packages of those in JavaScript."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("client")
    shutil.copytree(EXAMPLES, folder, dirs_exist_ok=True)
    install = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts"]
    if subprocess.run(install, cwd=folder, capture_output=True).returncode:
        pytest.skip("npm cannot install onnxruntime-web here")
    return folder


@pytest.fixture(scope="module")
def small_street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("photo") / "street.png"
    Image.open(assets.path("street", ".jpg")).convert("RGB").resize((321, 239)).save(path)
    return path


@pytest.fixture(scope="module")
def baked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return foveal.export("efficientvit_b0.camvid", output=tmp_path_factory.mktemp("baked") / "a.onnx", bake=True).path


@pytest.mark.long
@pytest.mark.parametrize("program", ["short_client.py", "short_client.mjs"])
def test_short_clients_give_the_same_classes(
    program: str, baked: Path, small_street: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if program.endswith(".mjs"):
        command = ["node", request.getfixturevalue("node_folder") / program]
    else:
        command = [sys.executable, EXAMPLES / program]
    mask = tmp_path / "mask.png"
    process = subprocess.run([*command, baked, small_street, mask], capture_output=True, text=True, check=True)
    expected = foveal.load("efficientvit_b0.camvid")(small_street)
    with Image.open(mask) as written:
        assert (np.asarray(written) == expected.mask).mean() >= 0.9999
    assert program.endswith(".mjs") or process.stdout.startswith(f"{expected.names[0]}: ")


@pytest.mark.long
def test_the_javascript_client_gives_the_same_mask(node_folder: Path, small_street: Path, tmp_path: Path) -> None:
    command = ["node", "javascript_client.mjs", MODEL, small_street, tmp_path / "mask.png"]
    subprocess.run(command, cwd=node_folder, capture_output=True, check=True)
    expected = foveal.load(MODEL)(small_street)
    colours = np.array(expected.palette, np.uint8)[expected.mask]
    with Image.open(tmp_path / "mask.png") as mask:
        assert (np.asarray(mask.convert("RGB")) == colours).all(-1).mean() >= 0.9999


@pytest.mark.parametrize(
    ("preprocess", "rule"),
    [
        (Preprocess(), "none"),
        (Preprocess(max_side=1024), "longest side at most 1024"),
        (Preprocess(size=(256, 320)), "to 256x320"),
        (Preprocess(size=(224, 224), crop_ratio=0.875), "shortest side to 256, centre crop of 224x224"),
        (Preprocess(size=(224, 224), crop_ratio=0.9, squash=True), "to 248x248, centre crop of 224x224"),
        (
            Preprocess.of_prompts(512),
            "longest side to 512, zeros at right and bottom after normalisation to 512x512",
        ),
    ],
)
def test_the_rule_of_the_resize_is_text(preprocess: Preprocess, rule: str) -> None:
    facts = metadata(ModelInfo("x", "segment", 3, preprocess=preprocess))
    assert facts["resize"] == rule
    assert [facts[key] for key in ("layout", "channel_order", "input_size")] == ["NCHW", "RGB", "any"]


def test_the_file_says_its_fixed_size() -> None:
    notes = {"file": {"dtype": "float16"}, **InputLimits((512, 1024), 1, fixed=True).to_notes()}
    facts = metadata(ModelInfo("x", "segment", 3, notes=notes))
    assert (facts["input_size"], facts["dtype"], facts["input_type"]) == ("512x1024", "float16", "float32")


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
def test_the_file_says_the_type_of_images(dtype: str) -> None:
    assert metadata(ModelInfo("x", "segment", 3, preprocess=Preprocess(dtype=dtype)))["image_type"] == dtype
