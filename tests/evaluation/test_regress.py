"""Errors of maps: against formulas written out pixel by pixel, and what is left out or refused."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.errors import ConfigError, DataError, InputError
from foveal.evaluation.regression import RegressionScores, in_unit, regression_sums
from foveal.info import Labels, ModelInfo, Target
from foveal.prediction.predictor import Predictor


def scores(found: np.ndarray, true: np.ndarray, kind: str, images: int = 1) -> RegressionScores:
    """Scores of a map in several images, which are bands of it."""
    parts = zip(np.array_split(found, images), np.array_split(true, images), strict=True)
    total = np.sum([regression_sums(a, b, kind) for a, b in parts], axis=0)
    target = Target(kind)
    return RegressionScores(total, target, target.names(found.shape[2]))


def some(channels: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, list[tuple[list[float], list[float]]]]:
    """A prediction, a target with missing pixels, and the pairs of valid pixels."""
    rng = np.random.default_rng(seed)
    true = rng.uniform(0.5, 6, (12, 9, channels)).astype(np.float32)
    found = (true * rng.uniform(0.6, 1.6, true.shape)).astype(np.float32)
    true[rng.random((12, 9)) < 0.2] = np.nan
    pairs = [
        ([float(v) for v in found[y, x]], [float(v) for v in true[y, x]])
        for y in range(12)
        for x in range(9)
        if not math.isnan(true[y, x, 0])
    ]
    return found, true, pairs


@pytest.mark.parametrize("images", [1, 3])
def test_depth(images: int) -> None:
    found, true, pairs = some(1)
    n = len(pairs)
    got = scores(found, true, "depth", images).figures
    expected = {
        "abs_rel": sum(abs(p - t) / t for (p,), (t,) in pairs) / n,
        "rmse": math.sqrt(sum((p - t) ** 2 for (p,), (t,) in pairs) / n),
        "mae": sum(abs(p - t) for (p,), (t,) in pairs) / n,
        "rmse_log": math.sqrt(sum((math.log(p) - math.log(t)) ** 2 for (p,), (t,) in pairs) / n),
    }
    for power in (1, 2, 3):
        expected[f"delta{power}"] = sum(max(p / t, t / p) < 1.25**power for (p,), (t,) in pairs) / n
    assert got == pytest.approx(expected, rel=1e-12)
    assert next(iter(got)) == "abs_rel"


def test_depths_at_or_below_0_are_misses_without_a_logarithm() -> None:
    true = np.full((2, 2, 1), 2.0)
    found = np.array([[[2.0], [0.0]], [[-1.0], [2.2]]])
    got = scores(found, true, "depth").figures
    assert got["delta3"] == 0.5
    assert math.isnan(got["rmse_log"])
    assert scores(found, true, "depth").to_dict()["rmse_log"] is None
    assert in_unit("rmse_log", got["rmse_log"]) == "-"


def test_normals() -> None:
    rng = np.random.default_rng(1)
    true, found = (rng.normal(size=(10, 8, 3)) for _ in range(2))
    found = 0.5 * found + 2 * true
    true, found = (each / np.linalg.norm(each, axis=2, keepdims=True) for each in (true, found))
    true[0, 0] = np.nan
    angles = [
        math.degrees(math.acos(min(1.0, sum(a * b for a, b in zip(found[y, x], true[y, x], strict=True)))))
        for y in range(10)
        for x in range(8)
        if (y, x) != (0, 0)
    ]
    got = scores(found, true, "normals", 2).figures
    assert got["mean_angle"] == pytest.approx(sum(angles) / 79, rel=1e-9)
    for name, limit in (("below_11", 11.25), ("below_22", 22.5), ("below_30", 30)):
        assert got[name] == sum(angle < limit for angle in angles) / 79
    same = scores(true, true, "normals").figures
    assert same["mean_angle"] < 1e-6  # arccos would give 1e-6 degrees and more


def test_alpha() -> None:
    rng = np.random.default_rng(2)
    true, found = rng.random((12, 8, 1)), rng.random((12, 8, 1))
    got = scores(found, true, "alpha", 3).figures
    assert got["sad"] == pytest.approx(np.abs(found - true).sum() / 3 / 1000)
    assert got["mse"] == pytest.approx(((found - true) ** 2).mean())


def test_values_and_their_channels() -> None:
    found, true, pairs = some(2, 3)
    got = scores(found, true, "values", 4)
    n = len(pairs)
    squares = [sum((p[c] - t[c]) ** 2 for p, t in pairs) for c in (0, 1)]
    assert got.figures["rmse"] == pytest.approx(math.sqrt(sum(squares) / (2 * n)))
    assert got.to_dict()["channels"]["value 1"]["rmse"] == pytest.approx(math.sqrt(squares[1] / n), abs=1e-6)
    spread = sum(np.var([t[c] for _, t in pairs]) * n for c in (0, 1))
    assert got.figures["r2"] == pytest.approx(1 - sum(squares) / spread)
    assert scores(true, true, "values").similarity == 1


def test_what_cannot_be_scored() -> None:
    with pytest.raises(DataError, match="does not fit a map"):
        regression_sums(np.ones((2, 2, 1)), np.ones((2, 3, 1)), "depth")
    with pytest.raises(DataError, match="NaN or infinite"):
        regression_sums(np.full((2, 2, 1), np.nan), np.ones((2, 2, 1)), "depth")
    assert regression_sums(np.full((2, 2, 1), np.nan), np.full((2, 2, 1), np.nan), "depth")[1] == 0


def identity_depth(batch: np.ndarray) -> np.ndarray:
    """A network whose depth is the red channel in metres, 0 to 1, at the image's own size."""
    return batch[:, :1] * np.float32(0.229) + np.float32(0.485)


def made_up(unit: str = "m", kind: str = "depth") -> Predictor:
    info = ModelInfo("made_up", "regress", 1, labels=Labels((kind,)), target=Target(kind, unit))
    return Predictor(identity_depth, info, "numpy")


def data(root: Path) -> Path:
    rng = np.random.default_rng(0)
    for split in ("val", "test"):
        for folder in ("images", "depth"):
            (root / split / folder).mkdir(parents=True)
        for index in range(3):
            red = rng.integers(50, 255, (40, 48), np.uint8)
            Image.fromarray(np.stack([red] * 3, 2)).save(root / split / "images" / f"{index}.png")
            depth = np.rint(red / 255 * 1000 * 1.1).astype(np.uint16)
            depth[:4] = 0
            Image.fromarray(depth if index else np.zeros_like(depth)).save(root / split / "depth" / f"{index}.png")
    (root / "dataset.yaml").write_text("target: {kind: depth, unit: m, scale: 0.001, invalid: 0}\n")
    return root


def test_evaluate_adds_up_all_images(tmp_path: Path) -> None:
    """A model that is 10 % too near everywhere; the image without a valid pixel is left out."""
    root = data(tmp_path / "data")
    report = foveal.evaluate(made_up(), root, out=tmp_path / "out")
    assert (report.split, report.images, report.scores.pixels) == ("test", 2, 2 * 36 * 48)
    assert report.abs_rel == pytest.approx(1 - 1 / 1.1, abs=1e-3)
    assert report.delta1 == 1
    saved = json.loads((tmp_path / "out" / "report.json").read_text())
    assert saved["abs_rel"] == pytest.approx(report.abs_rel, abs=1e-6)
    assert [row["image"] for row in saved["per_image"]] == ["test/images/1.png", "test/images/2.png"]
    assert (tmp_path / "out" / "per_image.csv").read_text().startswith("image,pixels,abs_rel,rmse,")
    tiled = foveal.evaluate(made_up(), root, split="val", tile=64, overlap=0)
    assert tiled.to_dict()["tile"] == 64
    with pytest.raises(InputError, match="overlap=8 needs tiles: give tile, too"):
        foveal.evaluate(made_up(), root, split="val", overlap=8)


def test_models_of_other_kinds_and_units_are_refused(tmp_path: Path) -> None:
    root = data(tmp_path / "data")
    with pytest.raises(ConfigError, match="the model predicts depth in mm, the data is in m"):
        foveal.evaluate(made_up("mm"), root)
    with pytest.raises(ConfigError, match="the model predicts alpha in 1 channels, the data has depth in 1"):
        foveal.evaluate(made_up("", "alpha"), root)
    with pytest.raises(ConfigError, match="boundary=True is for models of the task 'segment'"):
        foveal.evaluate(made_up(), root, boundary=True)
