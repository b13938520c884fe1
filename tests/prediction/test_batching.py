"""Several images: batches give the results of single images in order, threads read ahead within bounds."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.errors import ConfigError, InputError, OutOfMemoryError, is_out_of_memory
from foveal.info import ModelInfo, Preprocess, info_of
from foveal.prediction import batching
from foveal.prediction.predictor import Predictor
from foveal.prediction.torch_runner import TorchRunner
from helpers.commands import Command
from helpers.narrow import narrow

RANDOM = np.random.default_rng(0)
IMAGES = [RANDOM.integers(0, 256, (40 + 8 * (index % 2), 64, 3), dtype=np.uint8) for index in range(7)]
BUNDLED = "efficientvit_b0.camvid"


def torch_predictor(task: str) -> Predictor:
    model = narrow(task)
    return Predictor(TorchRunner(model), info_of(model), "torch on cpu")


def mean_colours(runner: Callable[[np.ndarray], np.ndarray] = lambda batch: batch.mean((2, 3))) -> Predictor:
    """A classifier whose scores are the mean of each channel, without resizing."""
    info = ModelInfo("means", "classify", num_classes=3, preprocess=Preprocess((0.0,) * 3, (1.0,) * 3))
    return Predictor(runner, info, "numpy")


@pytest.mark.parametrize("ref", [BUNDLED, "efficientvit_sr.x2", "bicubic.x2"])
def test_exported_files_give_the_same_bits(ref: str) -> None:
    """Two sizes in turn: the images of each are stacked, and the results have the order of the images."""
    predictor = foveal.load(ref, threads=1)
    shapes: list[tuple[int, ...]] = []
    runner = predictor.runner
    predictor.runner = lambda batch: (shapes.append(batch.shape), runner(batch))[1]
    single = [predictor(image) for image in IMAGES]
    shapes.clear()
    for found, expected in zip(predictor(IMAGES, batch_size=6), single, strict=True):
        name = "logits" if hasattr(found, "logits") else "image"
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert [shape[0] for shape in shapes] == [3, 3, 1]
    assert {shape[2] for shape in shapes} == {40, 48}


@pytest.mark.parametrize("task", ["classify", "segment"])
def test_torch_gives_the_same_within_rounding(task: str) -> None:
    predictor = torch_predictor(task)
    for found, image in zip(predictor(IMAGES, batch_size=4), IMAGES, strict=True):
        expected = predictor(image).logits
        np.testing.assert_allclose(found.logits, expected, atol=1e-5 * np.abs(expected).max(), rtol=0)
    for found, image in zip(predictor(IMAGES), IMAGES, strict=True):  # batches of one, read ahead
        np.testing.assert_array_equal(found.logits, predictor(image).logits)


def test_memory_for_a_batch_that_was_too_large_is_no_fault_of_the_network() -> None:
    """The images run one by one, and the next batch is stacked again."""
    sizes: list[int] = []

    def runner(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        if sizes == [4]:
            raise OutOfMemoryError("not enough memory")
        return batch.mean((2, 3))

    predictor = mean_colours(runner)
    results = predictor([IMAGES[0]] * 8, batch_size=4)
    assert sizes == [4, 1, 1, 1, 1, 4]
    np.testing.assert_array_equal(results[0].logits, results[7].logits)


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (MemoryError(), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"), True),
        (RuntimeError("could not create a primitive"), True),
        (RuntimeError("shape '[2]' is invalid for input of size 3"), False),
        (InputError("not enough memory"), False),
    ],
)
def test_errors_for_want_of_memory_are_known(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) is expected


@pytest.mark.skipif(sys.platform != "linux", reason="limits of Linux")
def test_memory_that_does_not_suffice_is_told_by_every_runtime() -> None:
    """In a process with little address space: each runtime says so with the same type of error."""
    code = (
        "import resource, numpy as np, foveal\n"
        "from foveal.errors import OutOfMemoryError\n"
        "names = 'onnxruntime', 'torch', 'native'\n"
        "runners = [foveal.load('efficientvit_b0.camvid', runtime=name).runner for name in names]\n"
        "[runner(np.zeros((1, 3, 64, 64), np.float32)) for runner in runners]\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "image = np.zeros((1, 3, 2048, 4096), np.float32)\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20),) * 2)\n"
        "for runner in runners:\n"
        "    try:\n"
        "        runner(image)\n"
        "    except OutOfMemoryError:\n"
        "        print('told')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout == "told\n" * 3, done.stderr


def test_a_bad_image_is_reported_alone(tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_bytes(b"no image")
    images: list[Any] = [IMAGES[0], tmp_path / "bad.png", Image.fromarray(IMAGES[0]), tmp_path / "none.png", IMAGES[0]]
    predictor = mean_colours()
    results = list(predictor.stream(images, batch_size=8, errors="return"))
    expected = predictor(IMAGES[0]).logits
    for index in (0, 2, 4):
        np.testing.assert_array_equal(results[index].logits, expected)
    for index, name in ((1, "bad.png"), (3, "none.png")):
        assert isinstance(results[index], InputError)
        assert name in str(results[index])
    before = []
    with pytest.raises(InputError, match=r"bad\.png"):
        before.extend(predictor.stream(images, batch_size=8))
    with pytest.raises(InputError, match=r"bad\.png"):
        predictor(images)


@pytest.mark.parametrize("complaint", ["error", "other output"])
def test_a_network_for_single_images(complaint: str, caplog: pytest.LogCaptureFixture) -> None:
    """The images of a batch that fails run one by one, as do those after it; the log says so once."""
    sizes: list[int] = []

    def run(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        if len(batch) > 1 and complaint == "error":
            raise InputError("the network cannot run")
        return batch[:1].mean((2, 3))

    with caplog.at_level(logging.WARNING):
        found = mean_colours(run)([IMAGES[0]] * 6, batch_size=3)
    assert len(found) == 6
    assert sizes == [3, 1, 1, 1, 1, 1, 1]
    assert [record.message for record in caplog.records] == [
        "the network cannot run on 3 images at once: they run one by one"
    ]


class Watched(os.PathLike[str]):
    """A path that says when its image is read."""

    def __init__(self, path: Path) -> None:
        self.path, self.read = path, threading.Event()

    def __fspath__(self) -> str:
        self.read.set()
        return str(self.path)


def test_the_next_image_is_read_while_the_network_runs(tmp_path: Path) -> None:
    """In each run, the network waits until the image after its batch is read."""
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    images = [Watched(tmp_path / "a.png") for _ in range(6)]
    done = 0

    def run(batch: np.ndarray) -> np.ndarray:
        nonlocal done
        done += len(batch)
        assert done == len(images) or images[done].read.wait(60)
        return batch.mean((2, 3))

    assert len(mean_colours(run)(images, batch_size=2)) == 6


@pytest.mark.parametrize(("limit", "most"), [(1 << 40, 2 * 3 + 4), (1, 3)])
def test_images_read_ahead_are_few(limit: int, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """At most a batch and four images wait, and none beyond the batch where they are large."""
    monkeypatch.setattr(batching, "_HELD", limit)
    asked = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal asked
        for _ in range(40):
            asked += 1
            yield IMAGES[0]

    ahead = []
    for count, _ in enumerate(mean_colours().stream(images(), batch_size=3)):
        ahead.append(asked - count)
    assert len(ahead) == 40
    assert 3 <= max(ahead) <= most


def test_an_iterator_is_not_read_ahead_without_batch_size() -> None:
    """A camera is asked for its next picture only when the result of the one before was taken."""
    asked: list[int] = []
    stream = mean_colours().stream(asked.append(index) or IMAGES[0] for index in range(5))
    for count in range(1, 6):
        next(stream)
        assert len(asked) == count


def test_options_that_do_not_apply() -> None:
    predictor = torch_predictor("segment")
    for images, options, message in [
        (IMAGES, {"batch_size": 0}, "batch_size=0: give 1 or more"),
        (IMAGES[0], {"batch_size": 2}, "batch_size=2 is for several images: give a list"),
        (IMAGES, {"batch_size": 2, "tile": 64}, "batch_size=2: tiles run one by one; leave it out"),
        (IMAGES, {"exact": True}, "exact tiles are for upscaling; efficientvit_b0 is for 'segment'"),
    ]:
        with pytest.raises(ConfigError, match=message):
            predictor(images, **options)
    with pytest.raises(TypeError, match="unknown option 'tiles'; did you mean 'tile'"):
        predictor(IMAGES[0], tiles=64)  # pyright: ignore[reportCallIssue]
    with pytest.raises(ConfigError, match="errors='skip': give 'raise' or 'return'"):
        next(predictor.stream(IMAGES, errors="skip"))  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match="a classifier sees the whole image"):
        mean_colours()(IMAGES[0], tile=64)
    prompter = Predictor(lambda batch: batch, ModelInfo("net", "prompt"), "numpy")
    with pytest.raises(ConfigError, match="images of promptable models run one by one"):
        prompter(IMAGES, batch_size=2)


def test_folders_in_batches(tmp_path: Path, cli: Command) -> None:
    """The masks of a folder are those of images one by one; a damaged file is named, and the exit code is 1."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{index}.png")
    (folder / "3.png").write_bytes(b"no image")
    for options in (["--out", tmp_path / "single"], ["--out", tmp_path / "batches", "--batch-size", 4]):
        done = cli("segment", folder, *options, "--threads", 1, "--json")
        report = json.loads(done.stdout)
        assert (done.returncode, report["done"], len(report["failed"])) == (1, 6, 1), done.stderr
        assert report["failed"][0]["image"].endswith("3.png")
    names = sorted(path.name for path in (tmp_path / "single").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "batches").iterdir())
    for name in names:
        assert (tmp_path / "single" / name).read_bytes() == (tmp_path / "batches" / name).read_bytes()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["segment", "PHOTO", "--batch-size", 2], "--batch-size 2 is for several images"),
        (["segment", "FOLDER", "--batch-size", 0], "--batch-size 0: give 1 or more"),
        (["predict", "FOLDER", "--model", "bicubic.x2", "--batch-size", 2], "images to upscale run one by one"),
        (["segment", "FOLDER", "--batch-size", 2, "--tile", 64], "batch_size=2: tiles run one by one"),
    ],
)
def test_impossible_batches_are_one_line(words: list[Any], message: str, tmp_path: Path, cli: Command) -> None:
    Image.fromarray(IMAGES[0]).save(tmp_path / "a.png")
    places = {"PHOTO": tmp_path / "a.png", "FOLDER": tmp_path}
    done = cli(*(places.get(word, word) for word in words), "--out", tmp_path / "out")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr
