"""Training promptable models: embeddings of a teacher, then masks."""

from __future__ import annotations

import json
import shutil
import signal
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

import foveal
from foveal.info import info_of
from foveal.models.registry import FAMILIES, Backbone, Family, FeatureInfo, Variant, register
from foveal.progress import Progress
from foveal.tasks.prompt import PromptModel
from foveal.training.config import TrainConfig
from foveal.training.embedding_distillation import EmbeddingJob, EmbeddingTrainee, extents
from foveal.training.embeddings import SHAPE
from foveal.training.prompt import PromptJob, PromptTrainee, pack_masks, unpack_masks
from foveal.training.teacher_folder import TeacherFolder, read_stored
from foveal.weights.checkpoints import read_state, save_checkpoint

SETTINGS: dict[str, Any] = {
    "model": "toy",
    "task": "prompt",
    "batch_size": 2,
    "workers": 0,
    "prompts": 1,
    "clicks": 1,
    "lr": 3e-3,
    "log_every": 1,
    "ema_decay": 0.5,
}


class Toy(Backbone):
    """Strides 2, 4 and 8, so that its image encoder takes 128 pixels: quick enough to train in a test.

    Attributes:
        stop_at: number of the training call at which SIGTERM comes; 0: none.
        calls: number of calls in training mode.
    """

    stop_at, calls = 0, 0

    def __init__(self, in_chans: int, width: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(in_chans, width, 3, 2, 1), nn.BatchNorm2d(width))
        self.stages = nn.ModuleList(
            nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, stride, 1), nn.BatchNorm2d(width))
            for stride in (1, 2, 2)
        )
        self.feature_info = [FeatureInfo(width, stride) for stride in (2, 4, 8)]

    def forward(self, x: Tensor) -> list[Tensor]:
        Toy.calls += self.training
        if self.training and Toy.calls == Toy.stop_at:
            signal.raise_signal(signal.SIGTERM)
        x, maps = self.stem(x), []
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


@pytest.fixture(autouse=True, scope="module")
def _toy() -> Iterator[None]:
    variants = {
        name: Variant(partial(Toy, width=width), tasks=("prompt",), prompt=NECK) for name, width in SIZES.items()
    }
    register(Family(name="toy", paper="none", variants=variants, convert=lambda state: None, licence="MIT"))
    yield
    del FAMILIES["toy"]


SIZES = {"toy": 8, "wide_toy": 12}
NECK = {"depth": 0, "expand_ratio": 1, "norm_eps": 1e-5}


def write_scenes(root: Path, split: str, count: int, seed: int) -> None:
    """Write images of two bright objects on a dark background, and masks with an id for each object."""
    rng = np.random.default_rng(seed)
    for kind in ("images", "masks"):
        (root / kind / split).mkdir(parents=True)
    for index in range(count):
        image, mask = Image.new("RGB", (96, 64), (20, 20, 30)), Image.new("L", (96, 64))
        for number in (1, 2):
            x, y, r = (
                float(v) for v in (48 * number - 24 + rng.uniform(-6, 6), rng.uniform(24, 40), rng.uniform(9, 15))
            )
            colour = tuple(int(c) for c in rng.integers(120, 256, 3))
            for canvas, fill in ((image, colour), (mask, number)):
                pen = ImageDraw.Draw(canvas)
                (pen.ellipse if number == 1 else pen.rectangle)((x - r, y - r, x + r, y + r), fill=fill)
        image.save(root / "images" / split / f"{index}.png")
        mask.save(root / "masks" / split / f"{index}.png")


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, "train", 4, 0)
    write_scenes(root, "val", 2, 1)
    return root


def saved(path: Path, name: str, seed: int = 0, task: str = "prompt") -> Path:
    """A model with random weights as a file."""
    torch.manual_seed(seed)
    model = foveal.create_model(name, task)
    save_checkpoint(path, model.state_dict(), info_of(model).replace(tag="test", licence="Apache-2.0"))
    return path


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("teacher") / "teacher.safetensors", "wide_toy", 7)


@pytest.fixture(scope="module")
def distilled(scenes: Path, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the first stage."""
    out = tmp_path_factory.mktemp("distilled") / "run"
    settings = {**SETTINGS, "epochs": 1, "samples_per_epoch": 8, "lr": 1e-2}
    foveal.train(scenes / "images", out=out, teacher=str(teacher), **settings)
    return out


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in lines(run) if "epoch" not in line]


# ---- distillation


@pytest.mark.long
def test_a_student_comes_close_to_its_teacher(scenes: Path, teacher: Path, tmp_path: Path) -> None:
    distilled = tmp_path / "run"
    settings = {**SETTINGS, "epochs": 3, "samples_per_epoch": 20, "eval_every": 1, "lr": 1e-2}
    foveal.train(scenes / "images", out=distilled, teacher=str(teacher), **settings)
    found = losses(distilled)
    assert np.mean(found[-4:]) < 0.6 * found[0]
    cosines = [line["cosine"] for line in lines(distilled) if "cosine" in line]
    assert len(cosines) == 3
    assert cosines[-1] > max(cosines[0], 0.5)
    student, master = foveal.load_model(distilled), foveal.load_model(teacher)
    for part in ("prompt_encoder", "mask_decoder"):
        pairs = zip(
            getattr(student, part).state_dict().values(), getattr(master, part).state_dict().values(), strict=True
        )
        assert all(a.equal(b) for a, b in pairs), part
    assert info_of(student).licence == "Apache-2.0"
    assert str(distilled) not in str(info_of(student).notes)


def test_a_new_students_embeddings_start_at_the_teachers_level(distilled: Path, scenes: Path, teacher: Path) -> None:
    """The neck gets mean and spread of the teacher's channels; a trained neck does not change."""
    config = TrainConfig(**SETTINGS, teacher=str(teacher), embeddings=str(distilled / "embeddings"))
    job = EmbeddingJob(scenes / "images", config, Progress(enabled=False))
    student = foveal.create_model("toy", "prompt")
    norm = job.trainee(student).get_submodule("model.image_encoder.neck.norm")
    known = np.stack([job.data[i][1][0] for i in range(4)]).astype(np.float64)
    assert np.allclose(norm.weight.numpy(force=True), known.std((0, 2, 3)), rtol=1e-5)
    assert np.allclose(norm.bias.numpy(force=True), known.mean((0, 2, 3)), atol=1e-6)
    learnt = foveal.load_model(distilled)
    before = learnt.image_encoder.neck.norm.weight.clone()
    job.trainee(learnt)
    assert learnt.image_encoder.neck.norm.weight.equal(before)


def test_a_student_learns_its_teachers_answers(distilled: Path, scenes: Path, teacher: Path) -> None:
    """The loss of the answers grows with the distance of the embeddings, and trains only the image encoder."""
    settings = {**SETTINGS, "teacher": str(teacher), "embeddings": str(distilled / "embeddings"), "teacher_prompts": 3}
    job = EmbeddingJob(scenes / "images", TrainConfig(**settings), Progress(enabled=False))
    torch.manual_seed(0)
    model = foveal.create_model("toy", "prompt")
    trainee = cast(EmbeddingTrainee, job.trainee(model))
    with torch.no_grad():  # a decoder that knows nothing is sure of nothing
        for perceptron in model.mask_decoder.output_hypernetworks_mlps:
            perceptron.layers[-1].weight *= 300
    image, target = (part[None] for part in job.sample(0, np.random.default_rng(0), 0.0))
    trainee(image, target).backward()
    assert all((p.grad is not None) == name.startswith("image_encoder.") for name, p in model.named_parameters())
    (extent,) = extents(image)
    assert extent.tolist() == [1024, 680]  # 96x64 pixels, at 128x85

    def apart(share: float) -> float:
        found = target[0].float() + share * torch.randn(target[0].shape, generator=torch.Generator().manual_seed(1))
        torch.manual_seed(2)
        return float(torch.stack([trainee.disagreement(found, target[0].float(), extent) for _ in range(2)]).mean())

    with torch.no_grad():
        none, some, much = map(apart, (0.0, 1.0, 3.0))
    assert none < 0.9 * some < 0.9 * 0.9 * much, (none, some, much)


def test_embeddings_are_the_teachers_and_computed_once(distilled: Path, scenes: Path, teacher: Path) -> None:
    """Four images and their mirror images, two images for validation; another run computes none of them again."""
    folder = distilled / "embeddings"
    files = {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")}
    assert len(files) == 2 * 4 + 2
    config = TrainConfig(**SETTINGS, teacher=str(teacher), embeddings=str(folder))
    job = EmbeddingJob(scenes / "images", config, Progress(enabled=False))
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*.npz")} == files
    predictor = foveal.load(teacher)
    image, (plain, mirrored) = job.data[1]
    for pixels, kept in ((image, plain), (image[:, ::-1].copy(), mirrored)):
        assert np.abs(predictor.encode(pixels).features[0] - kept).max() < 2e-3 * np.abs(kept).max()


def test_a_mirrored_sample_has_the_mirrored_embedding(distilled: Path, scenes: Path, teacher: Path) -> None:
    config = TrainConfig(**SETTINGS, teacher=str(teacher), embeddings=str(distilled / "embeddings"))
    job = EmbeddingJob(scenes / "images", config, Progress(enabled=False))
    drawn = [job.sample(0, np.random.default_rng(seed), 0.0) for seed in range(6)]
    _, (plain, mirrored) = job.data[0]
    kinds = {bool(torch.equal(target, torch.from_numpy(mirrored))) for _, target in drawn}
    assert kinds == {False, True}
    (first, _), *others = drawn
    for image, target in others:
        same = torch.equal(image, first)
        assert torch.equal(target, drawn[0][1]) == same
    assert not np.array_equal(plain, mirrored)


def test_damaged_embeddings(distilled: Path, scenes: Path, teacher: Path, tmp_path: Path) -> None:
    """A truncated file is computed again; a file with a changed bit is refused by name when it is read."""
    config = TrainConfig(**{**SETTINGS, "flip": 0.0}, teacher=str(teacher), embeddings=str(tmp_path), val_split="")
    data = EmbeddingJob(scenes / "images", config, Progress(enabled=False)).data
    (short,), (spoilt,) = data.files[:2]
    whole = short.read_bytes()
    short.write_bytes(whole[: len(whole) // 2])
    EmbeddingJob(scenes / "images", config, Progress(enabled=False))
    assert short.read_bytes() == whole
    content = bytearray(spoilt.read_bytes())
    content[len(content) // 2] ^= 1
    spoilt.write_bytes(content)
    with pytest.raises(foveal.CheckpointError, match=rf"{spoilt.name}: damaged embedding .*delete it") as caught:
        EmbeddingJob(scenes / "images", config, Progress(enabled=False))
    assert "\n" not in str(caught.value)


def test_a_bad_image_is_left_out_of_distilling(scenes: Path, teacher: Path, tmp_path: Path) -> None:
    """The teacher skips it, the run reports it."""
    shutil.copytree(scenes / "images" / "train", tmp_path / "images" / "train")
    (tmp_path / "images" / "train" / "0.png").write_bytes(b"no picture")
    settings = {**SETTINGS, "epochs": 1, "flip": 0.0, "val_split": "", "max_bad": 0.25}
    found = foveal.train(tmp_path / "images", out=tmp_path / "run", teacher=str(teacher), **settings)
    assert [Path(name).name for name in found.bad] == ["0.png"]
    assert len(list((tmp_path / "run" / "embeddings").glob("*.npz"))) == 3


def test_embeddings_of_another_teacher_are_refused(distilled: Path, scenes: Path, tmp_path: Path) -> None:
    other = saved(tmp_path / "other.safetensors", "wide_toy", 8)
    config = TrainConfig(**SETTINGS, teacher=str(other), embeddings=str(distilled / "embeddings"))
    with pytest.raises(foveal.ConfigError, match=r"holds the embeddings of wide_toy\.test with other weights"):
        EmbeddingJob(scenes / "images", config, Progress(enabled=False))


def test_a_teacher_looks_in_the_precision_of_the_run(
    distilled: Path, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    """bfloat16 embeddings are close to float32 embeddings but not equal; a folder has only one kind."""
    settings = {**SETTINGS, "teacher": str(teacher), "val_split": "", "precision": "bf16"}
    exact = distilled / "embeddings"
    with pytest.raises(foveal.ConfigError, match=r"holds embeddings in fp32, not in bf16.*precision=fp32"):
        EmbeddingJob(scenes / "images", TrainConfig(**settings, embeddings=str(exact)), Progress(enabled=False))
    one, folder = tmp_path / "images" / "train" / "0.png", tmp_path / "embeddings"
    one.parent.mkdir(parents=True)
    shutil.copy(scenes / "images" / "train" / "0.png", one)
    job = EmbeddingJob(tmp_path / "images", TrainConfig(**settings, embeddings=str(folder)), Progress(enabled=False))
    (files,) = job.data.files  # of the image and of its mirror image
    assert len(files) == 2
    for file in files:
        rough, fine = (read_stored(path, SHAPE).astype(np.float32) for path in (file, exact / file.name))
        assert 0 < np.abs(rough - fine).mean() < 0.02 * np.abs(fine).mean()


def test_an_embedding_folder_without_a_readable_note(tmp_path: Path) -> None:
    (tmp_path / "teacher.json").write_text("[]")
    with pytest.raises(foveal.ConfigError, match=r"teacher\.json: cannot be read"):
        TeacherFolder(tmp_path, "any", "0")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teacher": "classifier"}, "a model for 'classify', which has no embeddings of images"),
        ({"teacher": "good", "splits": ["nowhere"]}, "no split 'nowhere' in this folder"),
        ({"teacher": "good", "splits": ["empty"]}, "no images in empty"),
        ({"teacher": "good", "freeze_encoder": True}, "freeze_encoder=True leaves nothing to train with a teacher"),
        ({"teacher": "good", "task": "segment"}, "prompts=1 is for 'prompt', not 'segment'"),
        ({"teacher": "missing.safetensors"}, "no checkpoint at|no such file"),
        ({}, "no layout with objects fits"),
        ({"teacher": "good", "teacher_prompts": -1}, "teacher_prompts=-1 is out of range: give 0 or more"),
        ({"teacher_prompts": 2}, "teacher_prompts=2 needs teacher: give teacher too"),
        ({"prompts": 0}, "prompts=0 is out of range: give 1 or more"),
        ({"clicks": -1}, "clicks=-1 is out of range: give 0 or more"),
    ],
)
def test_wrong_requests_are_one_line(
    settings: dict[str, Any], message: str, scenes: Path, teacher: Path, tmp_path: Path
) -> None:
    (tmp_path / "images" / "empty").mkdir(parents=True)
    (tmp_path / "images" / "train").symlink_to(scenes / "images" / "train")
    known = {"good": teacher, "classifier": tmp_path / "classifier.safetensors"}
    if settings.get("teacher") == "classifier":
        saved(known["classifier"], "mobilenetv2_100", task="classify")
    settings = {**SETTINGS, "val_split": "", **settings}
    if (name := settings.get("teacher")) in known:
        settings["teacher"] = str(known[name])
    with pytest.raises(foveal.FovealError, match=message) as caught:
        foveal.train(tmp_path / "images", out=tmp_path / "run", **settings)
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


# ---- masks


@pytest.fixture(scope="module")
def tuned(scenes: Path, distilled: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of the second stage, from the first."""
    out = tmp_path_factory.mktemp("tuned") / "run"
    settings = {**SETTINGS, "epochs": 1, "samples_per_epoch": 10, "batch_size": 1, "lr": 6e-3}
    foveal.train(scenes, out=out, weights=str(distilled), **settings)
    return out


def test_masks_are_learnt(tuned: Path, distilled: Path, scenes: Path) -> None:
    found = losses(tuned)
    assert len(found) == 10
    assert np.mean(found[-3:]) < 0.7 * np.mean(found[:2])
    predictor, overlaps = foveal.load(tuned), []
    for name in ("0.png", "1.png"):
        ids = np.asarray(Image.open(scenes / "masks" / "val" / name))
        for mask in (ids == 1, ids == 2):
            (top, *_, bottom), (left, *_, right) = (np.flatnonzero(mask.any(axis)) for axis in (1, 0))
            box = [left, top, right + 1, bottom + 1]
            answer = predictor.encode(scenes / "images" / "val" / name).prompt(boxes=box).best
            overlaps.append((answer & mask).sum() / (answer | mask).sum())
    assert lines(tuned)[-1]["box_miou"] == pytest.approx(np.mean(overlaps), abs=0.01)  # norms are folded here
    before, after = (read_state(run / "last.safetensors")[0] for run in (distilled, tuned))
    changed = {key.split(".")[0] for key in before if not before[key].equal(after[key])}
    assert changed == {"image_encoder", "prompt_encoder", "mask_decoder"}
    assert not before["mask_decoder.iou_prediction_head.layers.2.weight"].equal(
        after["mask_decoder.iou_prediction_head.layers.2.weight"]
    )


def test_a_frozen_encoder_stays_to_the_bit(scenes: Path, distilled: Path, tmp_path: Path) -> None:
    """Weights of the encoder and statistics of its norms do not change; the rest is trained."""
    foveal.train(scenes, out=tmp_path, weights=str(distilled), epochs=1, freeze_encoder=True, val_split="", **SETTINGS)
    before, after = (read_state(run / "last.safetensors")[0] for run in (distilled, tmp_path))
    kept = [key for key in before if key.startswith("image_encoder.")]
    assert kept
    assert all(before[key].equal(after[key]) for key in kept)
    assert not before["mask_decoder.mask_tokens.weight"].equal(after["mask_decoder.mask_tokens.weight"])


@pytest.mark.parametrize(
    "stage",
    [
        "distil with prompts",
        pytest.param("distil", marks=pytest.mark.long),
        pytest.param("masks", marks=pytest.mark.long),
    ],
)
def test_a_resumed_run_is_the_undisturbed_one(
    stage: str, scenes: Path, distilled: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After SIGTERM within an epoch and resuming, losses and weights are exactly those of an undisturbed run."""
    more: dict[str, Any]
    settings = {**SETTINGS, "epochs": 2, "val_split": "", "bn_batches": 1, "batch_size": 1, "samples_per_epoch": 2}
    if stage.startswith("distil"):
        data, more = scenes / "images", {"teacher": str(teacher), "embeddings": str(distilled / "embeddings")}
        more["teacher_prompts"] = int(stage.endswith("prompts"))
    else:
        data, more = scenes, {"weights": str(distilled)}
    foveal.train(data, out=tmp_path / "whole", **(settings | more))
    monkeypatch.setattr(Toy, "calls", 0)
    monkeypatch.setattr(Toy, "stop_at", 3)
    with pytest.raises(SystemExit, match="143"):
        foveal.train(data, out=tmp_path / "cut", **(settings | more))
    assert len(losses(tmp_path / "cut")) == 3
    foveal.train(data, out=tmp_path / "cut", resume=True)
    assert losses(tmp_path / "cut") == losses(tmp_path / "whole")
    first, second = (read_state(tmp_path / name / "last.safetensors")[0] for name in ("whole", "cut"))
    assert all(first[key].equal(second[key]) for key in first)


def test_every_parameter_gets_its_gradient(scenes: Path) -> None:
    """So do the IoU head and the mask encoder; several processes wait for every gradient."""
    torch.manual_seed(0)
    job = PromptJob(scenes, TrainConfig(**SETTINGS), Progress(enabled=False))
    model = foveal.create_model("toy", "prompt")
    trainee = job.trainee(model).train()
    image, target = job.sample(0, np.random.default_rng(0), 0.0)
    job.loss(trainee, torch.stack([image] * 2), torch.stack([target] * 2)).backward()
    without = [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not without
    for name in ("mask_decoder.iou_prediction_head.layers.0.weight", "prompt_encoder.mask_downscaling.0.weight"):
        gradient = model.get_parameter(name).grad
        assert gradient is not None
        assert gradient.abs().max() > 0 or name.startswith("prompt_encoder")


def test_an_image_without_objects_counts_for_nothing(scenes: Path) -> None:
    torch.manual_seed(0)
    model = foveal.create_model("toy", "prompt")
    assert isinstance(model, PromptModel)
    trainee = PromptTrainee(model, 1, False)
    empty = torch.from_numpy(pack_masks(np.zeros((0, 64, 96), bool), 2))
    loss = trainee(torch.zeros(1, 3, 128, 128), empty[None])
    assert loss.item() == 0
    loss.backward()
    job = PromptJob(scenes, TrainConfig(**{**SETTINGS, "prompts": 2}), Progress(enabled=False))
    _, target = job.sample(0, np.random.default_rng(0), 0.0)
    assert job.weight(torch.stack([target, empty])).item() == 2


def test_objects_are_drawn_and_mirrored_together(scenes: Path) -> None:
    """A sample's masks fit its image, mirrored or not: they cover the bright pixels on the dark background."""
    config = TrainConfig(**{**SETTINGS, "jitter": 0.0})
    job = PromptJob(scenes, config, Progress(enabled=False))
    for seed in range(6):
        image, target = job.sample(seed % 4, np.random.default_rng(seed), 0.0)
        mask = unpack_masks(target)[0, ::8, ::8]
        assert mask.any()
        assert image.mean(0)[mask].mean() > image.mean(0)[~mask].mean() + 0.5
        assert image.mean(0)[mask].quantile(0.2) > 0
