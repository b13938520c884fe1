"""One small model, trained and exported once, that the end-to-end tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

import foveal
from foveal.data.synthetic import write_shapes
from foveal.training.train import TrainResult


@pytest.fixture(scope="session")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A synthetic data set with the splits train and val."""
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=160, val=32)


@pytest.fixture(scope="session")
def run(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    """EfficientViT-B0 trained from scratch on it: about half a minute on two cores."""
    return foveal.train(
        shapes,
        out=tmp_path_factory.mktemp("runs") / "shapes",
        epochs=12,
        batch_size=16,
        crop=[96, 96],
        scale=[0.8, 1.3],
        jitter=0.1,
        class_weights="none",
        lr=4e-3,
        ema_decay=0.97,
        eval_every=6,
        workers=1,
    )


@pytest.fixture(scope="session")
def exported(run: TrainResult, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """That model as an ONNX file."""
    return foveal.export(str(run.folder), output=tmp_path_factory.mktemp("exported") / "shapes.onnx").path
