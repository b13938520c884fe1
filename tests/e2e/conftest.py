"""One small model, trained and exported once, that the end-to-end tests of all worker processes share."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

import foveal
from foveal.data.synthetic import write_shapes
from foveal.training.train import TrainResult
from helpers.shared import make_once


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic data set with the splits train and val."""
    return make_once(tmp_path_factory, "shapes", lambda folder: write_shapes(folder, train=64, val=32))


@pytest.fixture(scope="session")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """The bundled EfficientViT-B0, trained on it: seconds, where training from scratch takes half a minute."""
    return make_once(tmp_path_factory, "runs", lambda folder: _train(shapes, folder / "shapes"))


@pytest.fixture(scope="session")
def exported(run: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model as an ONNX file."""
    return make_once(
        tmp_path_factory,
        "exported",
        lambda folder: foveal.export(str(run.folder), output=folder / "shapes.onnx").path,
    )


@pytest.fixture
def late_sigterm() -> Iterator[None]:
    """A SIGTERM that comes after the run which it is for has ended does not end the tests."""
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)
    yield
    signal.signal(signal.SIGTERM, before)


def _train(shapes: Path, out: Path) -> TrainResult:
    return foveal.train(
        shapes,
        out=out,
        weights="efficientvit_b0.camvid",
        epochs=6,
        batch_size=8,
        crop=[80, 80],
        scale=[0.8, 1.3],
        jitter=0.1,
        class_weights="none",
        lr=3e-3,
        ema_decay=0.9,
        eval_every=3,
        workers=1,
    )
