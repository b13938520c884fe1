"""Teachers of every kind: exported files, optimised models, other architectures, classifiers, upscalers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image

import foveal
from foveal import assets
from foveal.errors import ConfigError
from foveal.images.preparing import prepare
from foveal.info import Preprocess, info_of
from foveal.training import distil_losses
from foveal.training.config import build_settings
from foveal.training.distillation import DistillationJob
from foveal.training.jobs import make_job
from foveal.training.teacher import open_teacher, watched_maps
from helpers.brightness import write_brightness
from helpers.distillation import QUIET, config, normal, saved, train
from helpers.runs import SETTINGS, SMALL

CLASSIFIER = {name: value for name, value in SMALL["options"].items() if not name.startswith("head_")}


@pytest.fixture(scope="module")
def streets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two crops of the photograph in the package, with CamVid's classes."""
    root = tmp_path_factory.mktemp("streets")
    with Image.open(assets.path("street", ".jpg")) as street:
        for number in range(2):
            for kind, picture in (
                ("images", street.convert("RGB").crop((200 * number, 200, 200 * number + 160, 296))),
                ("masks", Image.new("L", (160, 96), number)),
            ):
                folder = root / kind / "train"
                folder.mkdir(parents=True, exist_ok=True)
                picture.save(folder / f"{number}.png")
    names = info_of(foveal.load_model("efficientvit_b0.camvid")).labels.names
    (root / "dataset.yaml").write_text(yaml.safe_dump({"names": list(names)}))
    return root


def test_an_exported_file_teaches_as_its_model(streets: Path) -> None:
    settings = {"crop": [96, 128], "val_split": "", "batch_size": 2}
    file = str(assets.path("efficientvit_b0.camvid", ".onnx"))
    jobs = [make_job(streets, config(teacher=ref, **settings), QUIET) for ref in ("efficientvit_b0.camvid", file)]
    image, target = (
        torch.stack(part)
        for part in zip(*(jobs[0].sample(i, np.random.default_rng(i), 0) for i in (0, 1)), strict=True)
    )
    found = []
    for job in jobs:
        torch.manual_seed(0)
        trainee = job.trainee(foveal.create_model("efficientvit_b0", "segment", num_classes=11)).eval()
        found.append(job.loss(trainee, image, target).item())
    assert found[0] == pytest.approx(found[1], rel=1e-3)
    with pytest.raises(ConfigError, match="an exported file gives no feature maps, which the term features compares"):
        make_job(streets, config(teacher=file, distil={"features": 1}, **settings), QUIET).trainee(
            foveal.create_model("efficientvit_b0", "segment", num_classes=11)
        )


def test_a_student_comes_closer_to_its_teacher(streets: Path, tmp_path: Path) -> None:
    """A student of another architecture with random weights, which learns from the teacher almost alone."""
    ref, distances = "efficientvit_b0.camvid", []
    with Image.open(streets / "images" / "train" / "0.png") as picture:
        image = torch.from_numpy(prepare(np.asarray(picture), Preprocess()))
    whole = {"crop": [96, 160], "scale": [1, 1], "flip": 0, "jitter": 0, "tint": 0, "batch_size": 2, "val_split": ""}
    more = {"teacher": ref, "distil": {"logits": 20}, "lr": 1e-2, "ema_decay": 0.0, "bn_batches": 2}
    for epochs in (1, 20):
        out = tmp_path / str(epochs)
        train(streets, out, **whole, **more, epochs=epochs)
        with torch.no_grad():
            a, b = (foveal.load_model(each)(image, upsample=False) for each in (out, ref))
        distances.append(distil_losses.logits(a, b).item())
    assert distances[1] < 0.5 * distances[0]


def test_an_optimised_teacher_has_the_same_maps() -> None:
    teacher = open_teacher(config(teacher="efficientvit_b0.camvid"))
    model = foveal.load_model("efficientvit_b0.camvid")
    image = normal(1, 3, 64, 96).float()
    lesson = teacher(image, Preprocess(), maps=True)
    with torch.no_grad(), watched_maps(model) as maps:
        output = model(image, upsample=False)
    for ours, theirs in zip([output, *maps], [lesson.output, *lesson.maps], strict=True):
        assert (ours - theirs).abs().max() < 1e-4 * ours.abs().max()
    assert not getattr(model.backbone, "_forward_hooks")  # noqa: B009


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes: dark and bright images."""
    return write_brightness(tmp_path_factory.mktemp("classes"), train=4, val=1)


def test_classifiers_learn_with_mixed_images(classes: Path, tmp_path: Path) -> None:
    ref = saved(tmp_path / "t.safetensors", "mambavision_t", "classify", ("bright", "dark"), **CLASSIFIER)
    more = {"task": "classify", "options": CLASSIFIER}
    for distil in ({}, {"logits": [1, 3], "hard": 1, "features": 1, "ema": 1}):
        out = tmp_path / f"run{len(distil)}"
        run = train(classes, out, teacher=ref, distil=distil, augment={"mixup": 0.5, "cutmix": 1.0}, **more)
        assert np.isfinite(run.losses).all()
    run = train(classes, tmp_path / "sizes", teacher=ref, sizes=[32, 64], **more)
    assert np.isfinite(run.losses).all()


@pytest.mark.parametrize("distil", [{"logits": 1.0}, {"hard": 1.0}])
def test_the_second_of_two_classifiers_learns_from_the_teacher_alone(
    distil: dict[str, float], classes: Path, tmp_path: Path
) -> None:
    """And the first one from the labels alone, as in DeiT; without a teacher both learn the labels."""
    ref = saved(tmp_path / "t.safetensors", "mambavision_t", "classify", ("bright", "dark"), **CLASSIFIER)
    settings = {**SETTINGS, "task": "classify", "crop": [64, 64], "teacher": ref}
    job = make_job(classes, build_settings({**settings, "distil": distil}), QUIET)
    model: Any = foveal.create_model("efficientvit_m0", "classify", num_classes=2, distilled=True)
    trainee = job.trainee(model).train()
    image = normal(4, 3, 64, 64).float()
    labels = torch.tensor([0, 1, 0, 1])
    (first, second), _ = trainee(image)
    assert isinstance(job, DistillationJob)
    assert job.teacher is not None
    taught = job.teacher(image, job.preprocess).output
    distance = distil_losses.DISTANCES[next(iter(distil))](second, taught, 2.0, None)  # type: ignore[index]
    total = job.loss(trainee, image, labels)
    assert total.item() == pytest.approx((F.cross_entropy(first, labels) + distance).item(), rel=1e-4)
    heads = model.head.classifier.weight, model.head.classifier_distilled.weight
    before = torch.autograd.grad(total, heads)
    after = torch.autograd.grad(job.loss(trainee, image, 1 - labels), heads)  # other labels
    assert not torch.allclose(before[0], after[0])
    torch.testing.assert_close(before[1], after[1], rtol=1e-3, atol=1e-6)


def test_images_are_learnt_too(tmp_path: Path) -> None:
    for number in range(4):
        (tmp_path / "data" / "train").mkdir(parents=True, exist_ok=True)
        pixels = np.random.default_rng(number).integers(0, 256, (48, 48, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "data" / "train" / f"{number}.png")
    settings = {
        **{name: value for name, value in SETTINGS.items() if name != "tint"},
        **{"task": "upscale", "model": "efficientvit_sr_w075", "epochs": 1, "val_split": "", "crop": [32, 32]},
    }
    ref = "efficientvit_sr.x2"
    run = foveal.train(tmp_path / "data", out=tmp_path / "run", teacher=ref, **settings)
    assert np.isfinite(run.losses).all()
    distil = {"output": 1, "features": 0.1, "ema": 1}
    foveal.train(tmp_path / "data", out=tmp_path / "all", teacher=ref, distil=distil, **settings)
    with pytest.raises(ConfigError, match=r"teacher=efficientvit_sr\.x4 has scale 4, the run 2: name one of scale 2"):
        foveal.train(tmp_path / "data", out=tmp_path / "x", teacher="efficientvit_sr.x4", **settings)
