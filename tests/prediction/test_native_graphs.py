"""Plans of the package, which take their weights from a checkpoint: the native engine runs them without torch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_tensors

import foveal
from foveal import assets
from foveal.engine.lowering import make_plan
from foveal.engine.plan import STEPS
from foveal.errors import CheckpointError
from foveal.exporting.weightless_plans import write_plans
from foveal.info import KEY
from foveal.prediction.native_graphs import (
    SOURCES_KEY,
    fill_plan,
    fill_plans,
    graph_file,
    pack_places,
    unpack_places,
)
from foveal.prediction.native_runner import NativeRunner
from foveal.prediction.onnx_graphs import find_weights
from foveal.weights.arrays import read_arrays

STREET = assets.path("street", ".jpg")
PROMPT, CLASSIFY = assets.DEFAULTS["prompt"], assets.DEFAULTS["classify"]


@pytest.mark.parametrize("part", ["encoder", "prompts", "masks"])
def test_a_filled_plan_is_that_of_the_model(part: str) -> None:
    expected = make_plan(foveal.load_model(PROMPT), part)
    (found,) = fill_plans([assets.path(PROMPT, f".{part}.plan")])
    assert found.steps == expected.steps
    assert set(found.weights) == set(expected.weights)
    for name, array in expected.weights.items():
        assert found.weights[name].shape == array.shape
        np.testing.assert_allclose(found.weights[name], array, atol=1e-5 * np.abs(array).max())


def test_writing_again_gives_the_files_of_the_package(tmp_path: Path) -> None:
    """A change of the lowering shows here: `python benchmarks/bundled_graphs.py` writes them."""
    for path in write_plans(PROMPT, assets.path(PROMPT, ".safetensors"), tmp_path):
        packaged = assets.FOLDER / path.name
        assert load_file(path).keys() == load_file(packaged).keys()
        for name, array in load_file(path).items():
            np.testing.assert_array_equal(array, load_file(packaged)[name])


def test_torch_is_not_imported() -> None:
    code = (
        "import sys, foveal; from foveal import assets; p = foveal.load('tf_efficientnet_lite0.sam');"
        "p.encode(assets.FOLDER / 'street.jpg').prompt(points=[[860, 560]], labels=[1]);"
        "assert p.runtime.startswith('native'), p.runtime; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_checkpoint_may_have_the_keys_of_foveal(tmp_path: Path) -> None:
    """The published file has others; `foveal convert` writes these."""
    torch.manual_seed(0)
    model = foveal.create_model("tf_efficientnet_lite0").eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(module.running_mean, std=0.1)  # pyright: ignore[reportArgumentType]
            torch.nn.init.uniform_(module.running_var, 0.5, 1.5)  # pyright: ignore[reportArgumentType]
    save_tensors(model.state_dict(), tmp_path / "own.safetensors")
    path = graph_file(CLASSIFY)
    assert path is not None
    runner = NativeRunner(fill_plan(path, load_file(tmp_path / "own.safetensors")))
    image = np.random.default_rng(0).standard_normal((2, 3, 224, 224)).astype(np.float32)
    with torch.inference_mode():
        expected = model(torch.from_numpy(image)).numpy()
    np.testing.assert_allclose(runner(image), expected, atol=1e-5 * np.abs(expected).max())
    with pytest.raises(CheckpointError, match="the weights lack "):
        fill_plan(path, {"other": np.zeros(2, np.float32)})


def test_only_plans_of_the_package_are_filled(tmp_path: Path) -> None:
    """What such a file says is not bounded, unlike in a .foveal file."""
    path = graph_file(CLASSIFY)
    assert path is not None
    copied = tmp_path / path.name
    copied.write_bytes(path.read_bytes())
    with pytest.raises(CheckpointError, match=path.name):
        foveal.load(copied, runtime="native")


def test_places_are_packed_without_loss() -> None:
    rng = np.random.default_rng(0)
    for shape in ((1,), (7, 3), (64, 32, 3, 3)):
        places = rng.integers(0, 1 << 30, shape)
        np.testing.assert_array_equal(unpack_places(pack_places(places)), places.ravel())


@pytest.mark.parametrize("damage", ["no sources", "cut places", "no plan"])
def test_a_damaged_file_is_one_line(tmp_path: Path, damage: str) -> None:
    from safetensors import safe_open

    path = graph_file(PROMPT)
    assert path is not None
    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
    arrays = load_file(path)
    if damage == "no sources":
        del metadata[SOURCES_KEY]
    elif damage == "no plan":
        del metadata[STEPS]
        assert KEY in metadata
    else:
        name = max(arrays, key=lambda name: arrays[name].size)
        arrays[name] = arrays[name][:-9]
    save_file(arrays, tmp_path / path.name, metadata=metadata)
    with pytest.raises(CheckpointError, match="the plan cannot be used"):
        fill_plan(tmp_path / path.name, read_arrays(find_weights(path), path.name))
