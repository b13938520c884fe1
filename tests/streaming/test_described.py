"""Weights of the package in pieces with ONNX Runtime: without torch, and with the results of the torch runtime."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from numpy.typing import NDArray
from PIL import Image

import foveal
from foveal import assets
from foveal.errors import ConfigError, DependencyError
from foveal.exporting.described import write_description
from foveal.images.preparing import prepare
from foveal.prediction import streamed_networks
from foveal.prediction.streamed_networks import STEPS, network_of, runtime_of
from foveal.streaming import run as running
from foveal.streaming.passes import coarsest_stride, plan
from foveal.streaming.run import run
from helpers.streams import ArrayInput, stripes

DESCRIBED = [ref for ref in assets.WEIGHTS if assets.path(ref, ".onnx").is_file()]
SEGMENT, UPSCALE = assets.DEFAULTS["segment"], "efficientvit_sr.x2"
#: Runs commands in a process in which importing torch fails and nobody finds it.
WITHOUT_TORCH = "import sys; sys.modules['torch'] = None\nfrom foveal.cli import main\nmain(sys.argv[1:])"


def without_torch(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run ``foveal ARGUMENTS`` in a process of its own that has no torch."""
    command = [sys.executable, "-c", WITHOUT_TORCH, *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


@pytest.mark.parametrize("ref", DESCRIBED)
def test_the_files_are_what_the_command_writes(ref: str, tmp_path: Path) -> None:
    """Which also compares the results of each with those of its model."""
    file = write_description(ref, assets.path(ref, ".safetensors"), tmp_path / "x.json")
    assert file.read_bytes() == assets.path(ref, STEPS).read_bytes()
    assert file.stat().st_size < 30_000


def test_masks_without_torch(tmp_path: Path) -> None:
    """The command on an image of odd sides, by pieces of the smallest side; and what has no description."""
    tifffile.imwrite(tmp_path / "x.tif", stripes(133, 171), photometric="rgb", tile=(64, 64))
    done = without_torch(tmp_path, "segment", "x.tif", "--exact", "--tile", 32, "--out", "mask.npy", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["runtime"].startswith("onnxruntime on cpu")
    predictor = foveal.load(SEGMENT, runtime="torch")
    expected = foveal.stream(predictor, tmp_path / "x.tif")
    assert (np.load(tmp_path / "mask.npy") == expected.outputs[0]).mean() >= 0.9999
    found = [each["name"] for each in report["images"][0]["classes"]]
    assert found == [name for name, _ in expected.shares]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mask.npy", "x.tif"]


def test_larger_images_without_torch(tmp_path: Path) -> None:
    """To a TIFF, and with the alpha and the 16 bits of a PNG."""
    colours = stripes(41, 53)
    tifffile.imwrite(tmp_path / "x.tif", colours, photometric="rgb", tile=(16, 16))
    Image.fromarray(np.dstack([colours, colours[..., 1]])).save(tmp_path / "y.png")
    done = without_torch(tmp_path, "upscale", "x.tif", "--exact", "--tile", 16, "--format", "tif", "--out", "x2.tif")
    assert done.returncode == 0, done.stderr
    done = without_torch(tmp_path, "upscale", "y.png", "--exact", "--out", "y2.png")
    assert done.returncode == 0, done.stderr
    predictor = foveal.load(UPSCALE, runtime="torch")
    assert np.abs(tifffile.imread(tmp_path / "x2.tif").astype(int) - predictor.upscale(colours).image).max() <= 1
    picture = np.asarray(Image.open(tmp_path / "y2.png")).astype(int)
    assert np.abs(picture - predictor.upscale(tmp_path / "y.png").image).max() <= 1


def test_other_models_say_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(stripes(64, 64)).save(tmp_path / "x.png")
    for options, message in {
        ("--model", "efficientvit_b1.cityscapes"): "exact streaming divides networks with torch",
        ("--runtime", "native"): "exact streaming with native needs torch",
    }.items():
        done = without_torch(tmp_path, "segment", "x.png", "--exact", *options)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert f"{message}: pip install 'foveal[torch]'" in done.stderr
    monkeypatch.setattr(streamed_networks, "torch_installed", lambda: False)
    assert [runtime_of(ref) for ref in DESCRIBED] == ["onnxruntime"] * len(DESCRIBED)
    with pytest.raises(DependencyError, match=f"weights.pt: .*without it, {DESCRIBED[0]}"):
        runtime_of("weights.pt")


@pytest.mark.parametrize(
    ("ref", "size", "sides"),
    [(SEGMENT, (131, 197), (1, 2, None)), (SEGMENT, (32, 90), (1,)), (UPSCALE, (45, 61), (9, None)),
     ("efficientvit_sr.x4", (33, 18), (5,)), ("efficientvit_sr.x1", (45, 71), (7,))],
    ids=str,
)  # fmt: skip
def test_outputs_are_those_of_the_whole_image(ref: str, size: tuple[int, int], sides: tuple[int | None, ...]) -> None:
    """Odd sides, a map of one row, pieces as small as the coarsest stride."""
    predictor = foveal.load(ref, runtime="torch")
    x = prepare(stripes(*size), predictor.info.preprocess)
    expected = predictor.runner(x)[0]
    network = network_of(foveal.load(ref, runtime="onnxruntime"))
    program = network.program(*size)
    for side in sides:
        divided = plan(program, side=None if side is None else side * coarsest_stride(program))
        (found,) = run(divided, _Pixels(x), executor=network.executor(divided)).arrays()
        assert found.shape == expected.shape
        assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
        if ref == SEGMENT:
            assert (found.argmax(0) == expected.argmax(0)).mean() >= 0.9999


class _Pixels(ArrayInput):
    """A network's input in memory, as an array."""

    def __init__(self, x: NDArray[np.float32]) -> None:
        super().__init__(torch.from_numpy(x))

    def read(self, region: Any) -> Any:
        return super().read(region).numpy()


def test_areas_without_data(tmp_path: Path) -> None:
    """They are left out of the sums, as with torch."""
    image = stripes(150, 201)
    image[60:, :120] = 0
    image[:, 180:] = 0
    tifffile.imwrite(
        tmp_path / "x.tif", image, photometric="rgb", tile=(64, 64), extratags=[(42113, "s", 0, "0", True)]
    )
    runtimes = ("torch", "onnxruntime")
    one, other = (foveal.stream(SEGMENT, tmp_path / "x.tif", tile=64, runtime=name).outputs[0] for name in runtimes)
    assert np.array_equal(other == 255, (image == 0).all(2))
    assert (one == other).mean() >= 0.9999


class StopError(Exception):
    pass


def test_an_interrupted_image_is_continued(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the same bytes; but not with the other runtime, whose rounding differs."""
    np.save(tmp_path / "x.npy", stripes(96, 100))
    predictor = foveal.load(SEGMENT, runtime="onnxruntime")
    expected = foveal.stream(predictor, tmp_path / "x.npy", tile=32).outputs[0]
    begun: list[float] = []

    def stop(share: float, text: str) -> None:
        begun.append(share)
        if share > 0.5:
            raise StopError

    monkeypatch.setattr(running, "SAVE_SECONDS", 0)
    out = tmp_path / "mask.npy"
    with pytest.raises(StopError):
        foveal.stream(predictor, tmp_path / "x.npy", out, tile=32, progress=stop)
    with pytest.raises(ConfigError, match="begun with another device"):
        foveal.stream(SEGMENT, tmp_path / "x.npy", out, tile=32, resume=True, runtime="torch")
    shares: list[float] = []
    foveal.stream(
        predictor, tmp_path / "x.npy", out, tile=32, resume=True, progress=lambda share, _: shares.append(share)
    )
    assert begun[0] < 0.2 < 0.5 < shares[0]
    assert np.array_equal(np.load(out), expected)


def test_other_networks_are_refused_by_name(tmp_path: Path) -> None:
    """An exported file of anybody, and a model of torch, are not the weights of the package in ONNX Runtime."""
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(assets.path(SEGMENT, ".onnx").read_bytes())
    for predictor, message in (
        (foveal.load(copy, runtime="onnxruntime"), f"exact streaming with ONNX Runtime is for {DESCRIBED[0]}"),
        (foveal.load(SEGMENT, runtime="torch"), f"{SEGMENT} was loaded with torch: load it with runtime='onnxruntime'"),
    ):
        with pytest.raises(ConfigError, match=message):
            foveal.stream(predictor, stripes(64, 64), runtime="onnxruntime")
    with pytest.raises(ConfigError, match="needs the torch runtime"):
        foveal.stream(foveal.load(copy, runtime="onnxruntime"), stripes(64, 64))


def test_several_processes_need_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a scheduler of jobs sets the variable that torchrun sets."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    Image.fromarray(stripes(64, 64)).save(tmp_path / "x.png")
    done = without_torch(tmp_path, "segment", "x.png", "--exact")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert "WORLD_SIZE=2: several processes need torch: pip install 'foveal[torch]'" in done.stderr
    assert [path.name for path in tmp_path.iterdir() if not path.is_dir()] == ["x.png"]
