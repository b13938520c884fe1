"""Training of regression: losses by their formulas, invalid pixels, each kind learns, settings that are refused."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveal
from foveal.errors import ConfigError, DataError
from foveal.info import Target, attach, info_of
from foveal.progress import Progress
from foveal.training.config import TrainConfig
from foveal.training.initial import notes_on_start
from foveal.training.job import compare_with_best
from foveal.training.regress import RegressJob
from foveal.training.regression_losses import REGRESSION_LOSSES, MapLoss
from foveal.weights.loading import LoadReport
from helpers.maps import maps_folder
from helpers.narrow import registered

STD = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)


def some(channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    """Positive predictions and targets with missing pixels; the second image has none that is valid."""
    generator = torch.Generator().manual_seed(0)
    made = [torch.rand(3, channels, 5, 6, generator=generator, dtype=torch.float64) + 0.5 for _ in range(2)]
    made[1][0, :, 1, 2] = math.nan
    made[1][2, 0, 3] = math.nan  # one channel is enough
    made[1][1] = math.nan
    return made[0], made[1]


def by_hand(name: str, found: torch.Tensor, true: torch.Tensor) -> float:
    """A loss, pixel by pixel."""
    spread = STD.tolist()
    total, count, images = 0.0, 0, []
    for b in range(3):
        logs = []
        for y in range(5):
            for x in range(6):
                p, t = found[b, :, y, x].tolist(), true[b, :, y, x].tolist()
                if any(math.isnan(v) for v in t):
                    continue
                errors = [(a - c) / s for a, c, s in zip(p, t, spread, strict=True)]
                if name == "l1":
                    total += sum(abs(e) for e in errors) / 3
                elif name == "huber":
                    total += sum(e * e / 2 if abs(e) <= 1 else abs(e) - 0.5 for e in errors) / 3
                elif name == "cosine":
                    total += 1 - sum(a * c for a, c in zip(p, t, strict=True)) / (math.hypot(*p) * math.hypot(*t))
                count += 1
                logs += [math.log(a / c) for a, c in zip(p, t, strict=True)]
        if logs:
            mean = sum(logs) / len(logs)
            images.append(sum(v * v for v in logs) / len(logs) - 0.5 * mean**2)
    return sum(images) / len(images) if name == "silog" else total / count


@pytest.mark.parametrize("name", ["l1", "huber", "silog", "cosine"])
def test_losses_follow_their_formulas(name: Any) -> None:
    found, true = some()
    assert float(MapLoss({name: 1.0}, STD)(found, true)) == pytest.approx(by_hand(name, found, true), rel=1e-9)


def test_the_gradient_loss_compares_neighbours_that_are_both_valid() -> None:
    found, true = torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 4)
    found[..., 1] = 6.0
    loss = MapLoss({"gradient": 1.0}, torch.tensor([2.0]))
    assert float(loss(found, true)) == pytest.approx((3 + 3 + 0) / 3 / 2)  # half of it across, none down
    true[..., 0] = math.nan
    assert float(loss(found, true)) == pytest.approx((3 + 0) / 2 / 2)
    assert float(loss(found + 7, true)) == pytest.approx((3 + 0) / 2 / 2)


@pytest.mark.parametrize("name", REGRESSION_LOSSES)
def test_invalid_pixels_have_no_gradient_and_equal_maps_no_loss(name: Any) -> None:
    found, true = some()
    found = found.clone().requires_grad_()
    loss = MapLoss({name: 2.0}, STD)
    loss(found, true).backward()
    assert found.grad is not None
    assert found.grad.isfinite().all()
    invalid = ~true.isfinite().all(1, keepdim=True).expand_as(true)
    assert not found.grad[invalid].any()
    assert found.grad[~invalid].any()
    assert float(loss(true.nan_to_num(5.0), true)) == pytest.approx(0, abs=1e-12)
    nothing = torch.full_like(true, math.nan)
    assert loss(found, nothing).item() == 0


def test_losses_do_not_depend_on_the_unit() -> None:
    found, true = some()
    for name in REGRESSION_LOSSES:
        metres = float(MapLoss({name: 1.0}, STD)(found, true))
        assert float(MapLoss({name: 1.0}, 1000 * STD)(1000 * found, 1000 * true)) == pytest.approx(metres, rel=1e-9)


def test_eigen_loss_forgives_half_of_a_common_factor() -> None:
    true = torch.rand(1, 1, 4, 4) + 1
    loss = MapLoss({"silog": 1.0}, torch.ones(1))
    assert float(loss(2 * true, true)) == pytest.approx(math.log(2) ** 2 / 2, rel=1e-5)


# ---- runs


def settings(**more: Any) -> TrainConfig:
    common: dict[str, Any] = {"task": "regress", "epochs": 20, "batch_size": 3, "crop": (48, 64), "workers": 0}
    common |= {"scale": (0.9, 1.1), "eval_every": 10, "ema_decay": 0.8, "lr": 1e-2, "jitter": 0.1}
    return TrainConfig(**(common | more))


@pytest.mark.parametrize(
    ("kind", "metric", "limit"),
    [("depth", "abs_rel", 0.25), ("normals", "mean_angle", 5), ("alpha", "sad", 0.3), ("values", "rmse", 35)],
)
def test_each_kind_learns(tmp_path: Path, kind: str, metric: str, limit: float) -> None:
    """40 steps of a network with few layers beat the mean clearly; the best checkpoint is the one with the least."""
    data = maps_folder(tmp_path / "data", kind)
    with registered(attention=False) as name:
        result = foveal.train(data, config=settings(model=name), out=tmp_path / "run")
        report = foveal.evaluate(tmp_path / "run", data, split="val")
        info = foveal.load(tmp_path / "run").info
    assert result.metric == metric
    assert result.value < limit
    assert report.scores.headline[1] == pytest.approx(result.value, rel=1e-4)
    assert info.target.kind == kind
    assert info.options["output"] == {"depth": "softplus", "normals": "unit", "alpha": "sigmoid"}.get(kind, "none")
    assert info.labels.names == info.target.names(info.num_classes)


def test_statistics_of_the_targets(tmp_path: Path) -> None:
    data = maps_folder(tmp_path / "data", "values")
    job = RegressJob(data, settings(), Progress(enabled=False))
    values = np.stack([np.load(path) for path in sorted((data / "train" / "targets").glob("*.npy"))])
    np.testing.assert_allclose(job.mean, values.mean((0, 1, 2), dtype=np.float64), rtol=1e-6)
    np.testing.assert_allclose(job.std, values.std((0, 1, 2), dtype=np.float64), rtol=1e-5)


@pytest.mark.parametrize(("unit", "kept"), [("m", True), ("", True), ("mm", False)])
def test_statistics_of_weights_are_kept_for_the_same_unit(unit: str, kept: bool, tmp_path: Path) -> None:
    """Otherwise predictions would begin a factor of 1000 off."""
    job = RegressJob(maps_folder(tmp_path / "data", "depth"), settings(), Progress(enabled=False))
    model = foveal.create_model("efficientvit_b0", "regress", num_classes=1)
    model.head.set_statistics([3000.0], [1000.0])
    attach(model, info_of(model).replace(target=Target("depth", unit)))
    notes = notes_on_start(job.config, job, LoadReport(1, "foveal"), info_of(model))
    job.trainee(model)
    assert model.head.target_mean.tolist() == pytest.approx([3000.0] if kept else job.mean)
    assert any("the weights predict depth in mm, the data has depth in m" in note for note in notes) != kept


def test_impossible_losses(tmp_path: Path) -> None:
    data = maps_folder(tmp_path / "data", "alpha", images=1)
    for loss, message in (("silog", "silog takes logarithms"), ("cosine", "cosine is for vectors")):
        with pytest.raises(ConfigError, match=message):
            RegressJob(data, settings(regression_loss={loss: 1.0}), Progress(enabled=False))
    with pytest.raises(ConfigError, match="regression_loss key='l3'; did you mean 'l1'"):
        foveal.train(data, config=None, out=tmp_path / "run", task="regress", regression_loss={"l3": 1.0})
    with pytest.raises(ConfigError, match="augment: rotate is for segment and classify, not 'regress'"):
        settings(augment={"rotate": 5})


def test_maps_without_a_valid_pixel(tmp_path: Path) -> None:
    data = maps_folder(tmp_path / "data", "values", images=1)
    for path in data.rglob("*.npy"):
        np.save(path, np.full((48, 64, 2), np.nan, np.float32))
    with pytest.raises(DataError, match="no valid pixel in the training maps"):
        RegressJob(data, settings(val_split=""), Progress(enabled=False))


class Figure:
    """Scores of one figure."""

    def __init__(self, value: float, lower: bool) -> None:
        self.headline, self.lower_is_better = ("x", value), lower


@pytest.mark.parametrize(
    ("lower", "figures", "best"),
    [(True, [40.0, 7.0, 9.0, math.nan, 7.0], 7.0), (False, [0.1, 0.4, 0.3, math.nan, 0.4], 0.4)],
)
def test_the_best_figure_is_the_lowest_of_errors(lower: bool, figures: list[float], best: float) -> None:
    kept, now, metric = [], -1.0, ""
    for value in figures:
        better, is_best, now = compare_with_best(Figure(value, lower), metric, now)  # pyright: ignore[reportArgumentType]
        metric = "x"
        kept.append((better, is_best))
    assert now == best
    assert kept == [(True, True), (True, True), (False, False), (False, True), (False, True)]
