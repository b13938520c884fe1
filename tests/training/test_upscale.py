"""Training of super-resolution and restoration: it learns, crops grow, impossible settings are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import foveal
from foveal import assets
from foveal.data.degradation import degraded
from foveal.errors import ConfigError
from foveal.evaluation.fidelity import fidelity, psnr
from foveal.images.reading import read_image
from foveal.images.resampling import bicubic_downscale
from foveal.progress import Progress
from foveal.training.config import TrainConfig
from foveal.training.upscale import PIXEL_LOSSES, UpscaleJob


def folder_of_photos(root: Path) -> Path:
    """A real photograph, the one in the package: the left half in four parts, and a piece of the right."""
    street = read_image(assets.path("street", ".jpg"))[:740]
    parts = [street[top : top + 185, :640] for top in range(0, 740, 185)]
    for split, images in (("train", parts), ("val", [street[200:520, 700:1020]])):
        (root / split).mkdir(parents=True)
        for number, image in enumerate(images):
            Image.fromarray(image).save(root / split / f"{number}.png")
    return root


def settings(**more: Any) -> TrainConfig:
    common = {
        "model": "efficientvit_sr_w075",
        "task": "upscale",
        "epochs": 1,
        "samples_per_epoch": 240,
        "batch_size": 4,
    }
    common |= {"crop": (64, 64), "lr": 3e-3, "weight_decay": 0.0, "ema_decay": 0.9, "workers": 0}
    return TrainConfig(**(common | more))


def test_training_beats_bicubic(tmp_path: Path) -> None:
    """After 60 steps the network is better than the bicubic image to which it adds, on the other half."""
    data = folder_of_photos(tmp_path / "data")
    result = foveal.train(data, config=settings(), out=tmp_path / "run")
    assert result.metric == "psnr"
    assert result.value > foveal.evaluate("bicubic.x2", data, split="val")["val"].psnr + 0.1
    again = foveal.evaluate(tmp_path / "run", data)  # all but the training split
    assert [part.name for part in again.sets] == ["val"]
    assert again["val"].psnr == pytest.approx(result.value, abs=0.01)


def test_the_same_engine_removes_noise(tmp_path: Path) -> None:
    data = folder_of_photos(tmp_path / "data")
    config = settings(
        model="realtime_sr",
        options={"scale": 1},
        degradation={"noise": (25, 25)},
        pixel_loss="charbonnier",
        crop=(32, 32),
    )
    result = foveal.train(data, config=config, out=tmp_path / "run")
    true = read_image(data / "val" / "0.png")
    noisy = degraded(true, 1, {"noise": (25, 25)}, np.random.default_rng(0))
    repaired = foveal.load(result.folder)(noisy).image
    assert psnr(repaired, true) > psnr(noisy, true) + 2
    report = foveal.evaluate(tmp_path / "run", data, split="val")
    assert report.sets[0].small == "noise 25..25"
    assert report["val"].psnr == pytest.approx(result.value, abs=0.01)


@pytest.mark.parametrize("ref", ["efficientvit_sr.x2", "efficientvit_sr.x4"])
def test_weights_in_the_package_restore_what_shrinking_took(ref: str) -> None:
    """They are far better than interpolation on a photograph outside all training sets, on every runtime alike."""
    scale = int(ref.rpartition("x")[2])
    large = read_image(assets.path("street", ".jpg"))[300:540, 400:760]
    small = bicubic_downscale(large, scale)

    def quality(name: str, **options: Any) -> float:
        return fidelity(foveal.load(name, **options)(small).image, large, scale)[0]

    quick = quality(ref, runtime="onnxruntime")
    assert quick > quality(f"bicubic.x{scale}") + {2: 1.5, 4: 0.7}[scale]
    assert quality(ref, runtime="torch") == pytest.approx(quick, abs=0.02)
    assert quality(ref, runtime="torch", dtype="float16") == pytest.approx(quick, abs=0.02)


@pytest.mark.parametrize("damage", [{"jpeg": (40, 40)}, {"noise": (10, 10)}])
def test_weights_in_the_package_repair(damage: dict[str, tuple[float, float]]) -> None:
    """They remove most of what JPEG and noise did to a photograph outside the training sets, and leave a good one."""
    clean = read_image(assets.path("street", ".jpg"))[300:540, 400:760]
    repair = foveal.load("efficientvit_sr.x1", runtime="onnxruntime")
    damaged = degraded(clean, 1, damage, np.random.default_rng(0))
    assert psnr(repair(damaged).image, clean) > psnr(damaged, clean) + 0.7
    assert psnr(repair(clean).image, clean) > 34
    on_torch = foveal.load("efficientvit_sr.x1", runtime="torch")(damaged).image
    assert np.abs(on_torch.astype(int) - repair(damaged).image).max() <= 1


def test_crops_grow_in_the_last_quarter(tmp_path: Path) -> None:
    config = TrainConfig(task="upscale", splits=("train",), val_split="", crop=(32, 32), late_crop=(48, 64))
    job = UpscaleJob(folder_of_photos(tmp_path), config, Progress(enabled=False))
    sides = {done: job.sample(0, np.random.default_rng(0), done)[1].shape[1:] for done in (0.0, 0.74, 0.75, 1.0)}
    assert sides == {0.0: (32, 32), 0.74: (32, 32), 0.75: (48, 64), 1.0: (48, 64)}
    with pytest.raises(ConfigError, match=r"late_crop=\(64, 64\) is for 'upscale', not 'segment': leave it out"):
        TrainConfig(task="segment", late_crop=(64, 64))
    with pytest.raises(
        ConfigError, match=r"late_crop=\(16, 16\) is out of range: give 0 and 0, or two sides of 32 or more"
    ):
        TrainConfig(task="upscale", late_crop=(16, 16))


def test_losses_of_pixels() -> None:
    error = torch.tensor([[0.0, -3.0, 4.0]])
    values = {name: loss(error).item() for name, loss in PIXEL_LOSSES.items()}
    assert values == pytest.approx({"l1": 7 / 3, "charbonnier": 7 / 3 + 1e-3 / 3, "mse": 25 / 3}, abs=1e-4)


def test_a_last_phase_with_the_loss_that_psnr_measures(tmp_path: Path) -> None:
    """The weights go on from the first phase, and the logged loss is the other one."""
    data = folder_of_photos(tmp_path / "data")
    common: dict[str, Any] = {"samples_per_epoch": 24, "pixel_loss": "charbonnier", "val_split": ""}
    first = foveal.train(data, config=settings(**common), out=tmp_path / "run")
    both = foveal.train(data, out=tmp_path / "run", resume=True, new_phase=True, epochs=2, lr=1e-4, pixel_loss="mse")
    assert both.losses[:1] == first.losses
    assert both.losses[1] < 0.5 * first.losses[0]  # squares of differences below 1
    assert foveal.evaluate(tmp_path / "run", data)["val"].psnr > 20


def test_impossible_training_is_refused(tmp_path: Path) -> None:
    data = folder_of_photos(tmp_path / "data")
    common = {"model": "realtime_sr", "task": "upscale", "out": tmp_path / "run"}
    with pytest.raises(ConfigError, match="at scale 1 a model repairs images: say how to degrade"):
        foveal.train(data, options={"scale": 1}, crop=(32, 32), **common)
    with pytest.raises(ConfigError, match="divisible by the scale 3"):
        foveal.train(data, options={"scale": 3}, crop=(64, 64), **common)
    with pytest.raises(ConfigError, match=r"late_crop=\[97, 97\]: .* divisible by the scale 2"):
        foveal.train(data, crop=(64, 64), late_crop=(97, 97), **common)
    with pytest.raises(ConfigError, match=r"out of range: give ranges, .* jpeg 1 to 100"):
        foveal.train(data, degradation={"jpeg": (0, 300)}, **common)
