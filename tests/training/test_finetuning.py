"""Fine-tuning: what starts from weights and how fast it is trained, classifiers' own sizes, notices."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image

import foveal
from foveal.data.synthetic import NAMES, write_shapes
from foveal.factory.create import create_model
from foveal.info import Preprocess, info_of
from foveal.progress import Progress
from foveal.training.classify import ClassifyJob
from foveal.training.config import TrainConfig
from foveal.training.initial import notes_on_start
from foveal.training.parameter_groups import parameter_groups
from foveal.training.segment import SegmentJob
from foveal.weights.checkpoints import read_state, save_checkpoint
from foveal.weights.loading import LoadReport
from helpers.runs import SETTINGS

QUIET = Progress(enabled=False)


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=4, val=2, size=(32, 32))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder per class."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (root / split / name).mkdir(parents=True)
            Image.fromarray(rng.integers(0, 256, (40, 60, 3), np.uint8)).save(root / split / name / "0.png")
    return root


def save_weights(path: Path, task: str, num_classes: int, **description: Any) -> Path:
    model = create_model("efficientvit_b0", task, num_classes=num_classes)
    save_checkpoint(path, model.state_dict(), info_of(model).replace(**description))
    return path


def test_the_backbone_has_its_own_learning_rate() -> None:
    """With a scale of 1 the optimiser has the two groups that it always had."""
    model = create_model("efficientvit_b0", "segment", num_classes=2)
    assert len(parameter_groups(model, 0.05)) == 2
    groups = parameter_groups(model, 0.05, 1e-4)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert [group.get("lr") for group in groups] == [None, None, 1e-4, 1e-4]
    assert [group["weight_decay"] for group in groups] == [0.05, 0.0, 0.05, 0.0]
    for group in groups:
        prefix = "backbone." if "lr" in group else "head."
        assert all(names[id(parameter)].startswith(prefix) for parameter in group["params"])
    assert sum(len(group["params"]) for group in groups) == len(names)


def test_a_run_from_weights_says_how_it_trains_them(
    shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """A backbone with learning rate 0 stays as it is; notices and config.yaml say what was chosen."""
    weights = save_weights(tmp_path / "w.safetensors", "segment", 19)
    settings = {**SETTINGS, "epochs": 1, "weights": str(weights), "ema_decay": 0.0, "val_split": ""}
    out = foveal.train(shapes, out=tmp_path / "run", **settings).folder
    printed = capfd.readouterr().err
    assert "not from the weights, so trained from random values: head.classifier" in printed
    assert "peak learning rate 0.002, of the backbone 0.0002 (backbone_lr_scale)" in printed
    chosen = yaml.safe_load((out / "config.yaml").read_text())
    assert (chosen["backbone_lr_scale"], chosen["bn_batches"]) == (0.1, 10)
    frozen = foveal.train(shapes, out=tmp_path / "frozen", backbone_lr_scale=0.0, freeze_bn=True, **settings).folder
    before, after = (read_state(path)[0] for path in (weights, frozen / "last.safetensors"))
    assert all(after[key].equal(before[key]) for key in before if key.startswith("backbone."))
    assert not after["head.laterals.0.conv.weight"].equal(before["head.laterals.0.conv.weight"])


def test_a_classifier_of_other_names_is_not_kept_silently(
    shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    labels = foveal.Labels(("road", "disc", "square", "car"))
    weights = save_weights(tmp_path / "w.safetensors", "segment", 4, labels=labels)
    foveal.train(shapes, out=tmp_path / "run", **{**SETTINGS, "epochs": 1}, weights=str(weights), val_split="")
    assert NAMES == ("ground", "disc", "square", "triangle")
    expected = "the classifier of the weights is kept row by row: road -> ground, car -> triangle"
    assert expected in capfd.readouterr().err


@pytest.mark.parametrize(
    ("mean", "said"), [(Preprocess().mean, False), ((0.5, 0.4, 0.3), True), ((0.5, 0.4, 0.3, 0.2, 0.1), False)]
)
def test_other_statistics_than_those_of_the_weights_are_said(mean: tuple[float, ...], said: bool, shapes: Path) -> None:
    """Of the same bands; of others they would not fit."""
    config, std = TrainConfig(), Preprocess().std if len(mean) == 3 else (0.2,) * len(mean)
    job = SegmentJob(shapes, config, Progress(enabled=False))
    loaded = LoadReport(1, "foveal", info=foveal.ModelInfo(preprocess=Preprocess(mean, std)))
    expected = "mean 0.485 0.456 0.406, std 0.229 0.224 0.225, for the weights they were by mean 0.5 0.4 0.3, std"
    notes = [note for note in notes_on_start(config, job, loaded, foveal.ModelInfo()) if "normalised" in note]
    assert [expected in note for note in notes] == [True] * said


@pytest.mark.parametrize("classes", [["shape", "water", "ground", "sky"], ["shape", "water", "ground", "sky", "tree"]])
def test_classes_that_the_map_does_not_name_start_fresh(
    shapes: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], classes: list[str]
) -> None:
    """Also if the weights have as many classes. The log names the rows kept, the fresh ones, and the unused ones."""
    weights = save_weights(tmp_path / "w.safetensors", "segment", 4, labels=foveal.Labels(NAMES))
    for name in ("train", "trainannot", "val", "valannot"):
        (tmp_path / name).symlink_to(shapes / name)
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({"names": classes}))
    (tmp_path / "map.yaml").write_text("square: shape\n")
    config = TrainConfig(weights=str(weights), class_map=str(tmp_path / "map.yaml"))
    model = create_model(config.model, "segment", num_classes=len(classes), weights=config.weights)
    SegmentJob(tmp_path, config, Progress()).trainee(model)
    old, new = read_state(weights)[0]["head.classifier.weight"], model.get_parameter("head.classifier.weight")
    assert new[0].equal(old[NAMES.index("square")])
    assert all(not fresh.equal(row) for fresh in new[1:] for row in old)
    expected = f"starts fresh for {', '.join(classes[1:])}; does not use ground, disc, triangle"
    assert f"the classifier keeps shape from square; {expected}" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("matrix", "name"),
    [
        ([[9000, 0, 0, 0], [900, 0, 0, 0], [90, 0, 0, 0], [0, 0, 0, 0]], "ground"),
        ([[9000, 2, 0, 0], [900, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], "ground"),
        ([[0, 9000, 0, 0], [0, 900, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], "disc"),
        ([[9000, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], ""),
        ([[9_000_000, 0, 0, 0], [100, 50, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], ""),
        ([[9000, 900, 0, 0], [900, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]], ""),
        ([[0] * 4] * 4, ""),
    ],
)
def test_predictions_of_one_class_are_noticed(shapes: Path, matrix: list[list[int]], name: str) -> None:
    """Stray pixels do not hide it; it is right if the data has one class, or if the model finds rare pixels."""
    job = SegmentJob(shapes, TrainConfig(crop=(32, 32)), QUIET)
    assert job.only_class(np.array(matrix)) == name


@pytest.mark.parametrize(
    ("counts", "name"), [([5, 3, 5, 3, 2, 5, 0], "cat"), ([5, 2, 5, 3, 2, 0, 5], "dog"), ([5, 5, 5, 5, 0, 5, 0], ""),
                         ([5, 4, 5, 3, 2, 4, 1], "")]
)  # fmt: skip
def test_guesses_of_one_class_are_noticed(photos: Path, counts: list[int], name: str) -> None:
    job = ClassifyJob(photos, TrainConfig(task="classify"), QUIET)
    assert job.only_class(np.array(counts)) == name
    assert job.scores(np.array(counts)).images == 5


def test_the_log_says_that_all_predictions_are_one_class(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(SegmentJob, "only_class", lambda self, counts: "ground")
    out = foveal.train(shapes, out=tmp_path, **{**SETTINGS, "epochs": 1}).folder
    assert capfd.readouterr().err.count("practically all predictions on val are 'ground': ") == 1
    assert '"only_class": "ground"' in (out / "log.jsonl").read_text()


OWN = Preprocess((0.5, 0.5, 0.5), (0.2, 0.2, 0.2), (48, 48), resample="bilinear", crop_ratio=1.0, squash=True)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, Preprocess(size=(224, 224), crop_ratio=0.95)),
        ({"model": "tf_efficientnet_lite2"}, Preprocess(size=(260, 260), crop_ratio=0.89)),
        ({"crop_ratio": 1.0}, Preprocess(size=(224, 224), crop_ratio=1.0)),
        ({"crop": (64, 64)}, Preprocess(size=(64, 64), crop_ratio=0.875)),
        ({"crop": 96, "crop_ratio": 1.0}, Preprocess(size=(96, 96), crop_ratio=1.0)),
        ({"weights": "own"}, OWN),
        ({"weights": "own", "crop": 64}, dataclasses.replace(OWN, size=(64, 64), crop_ratio=0.875)),
        ({"weights": "masks"}, Preprocess(size=(224, 224), crop_ratio=0.95)),
    ],
)
def test_classifiers_have_their_own_size(
    photos: Path, tmp_path: Path, settings: dict[str, Any], expected: Preprocess
) -> None:
    """Training crops have the size at which images are evaluated: that of the weights, else of the architecture."""
    save_weights(tmp_path / "own", "classify", 2, preprocess=OWN)
    save_weights(tmp_path / "masks", "segment", 2)
    if "weights" in settings:
        settings = {**settings, "weights": str(tmp_path / settings["weights"])}
    job = ClassifyJob(photos, TrainConfig(task="classify", **settings), QUIET)
    assert job.preprocess == expected
    image, _ = job.sample(0, np.random.default_rng(0), 0.0)
    assert tuple(image.shape[1:]) == expected.size
