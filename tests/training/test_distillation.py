"""Learning from a teacher: the terms of the loss, the teacher's view of a batch, stored outputs, and whole runs."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from PIL import Image
from torch import Tensor

import foveal
from foveal import assets
from foveal.data.synthetic import write_shapes
from foveal.errors import CheckpointError, ConfigError
from foveal.images.preparing import prepare
from foveal.info import ModelInfo, Preprocess, attach, info_of
from foveal.models.registry import FeatureInfo
from foveal.progress import Progress
from foveal.training import distil_losses
from foveal.training.config import TrainConfig, build_settings
from foveal.training.ema import Averaged, meta_copy
from foveal.training.jobs import make_job
from foveal.training.segment import SegmentJob
from foveal.training.stored_outputs import Grid, StoredOutputs
from foveal.training.taught import TaughtJob
from foveal.training.teacher import open_teacher, renormalised, watched_maps
from foveal.training.tracking import Tracked
from foveal.weights.checkpoints import read_state, save_checkpoint
from helpers.runs import ONE_THREAD, SETTINGS, SMALL, furthest_weights, losses, same_weights, torchrun

QUIET = Progress(enabled=False)
CLASSIFIER = {name: value for name, value in SMALL["options"].items() if not name.startswith("head_")}
ALL = {"logits": [1, 4], "hard": 0.5, "channel": 3, "features": 1, "ema": 1}


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


# ---- terms


def test_probabilities_at_a_temperature() -> None:
    """Against the definition, for pixels and for images; the square of the temperature keeps the gradients' size."""
    a, b = 3 * normal(2, 4, 3, 5), 3 * normal(2, 4, 3, 5, seed=1)
    p, q = (b / 2).softmax(1), (a / 2).softmax(1)
    expected = 4 * (p * (p / q).log()).sum(1)
    assert distil_losses.logits(a, b, 2.0).item() == pytest.approx(expected.mean().item())
    assert distil_losses.logits(a[..., 0, 0], b[..., 0, 0], 2.0).item() == pytest.approx(
        expected[:, 0, 0].mean().item()
    )
    valid = torch.rand(2, 3, 5) < 0.5
    assert distil_losses.logits(a, b, 2.0, valid).item() == pytest.approx(expected[valid].mean().item())
    student = a.clone().requires_grad_()
    distil_losses.logits(student, b, 1000.0).backward()
    assert student.grad is not None
    zero_mean = [x - x.mean(1, keepdim=True) for x in (a, b)]  # at high temperature, Hinton et al., equation 4
    torch.testing.assert_close(student.grad, (zero_mean[0] - zero_mean[1]) / 4 / 30, rtol=0.02, atol=1e-4)


def test_channels_are_distributions_over_positions() -> None:
    a, b, total = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1), 0.0
    for image in range(2):
        for channel in range(3):
            p, q = ((x[image, channel].flatten() / 4).softmax(0) for x in (b, a))
            total += 16 * float((p * (p / q).log()).sum()) / 6
    assert distil_losses.channel(a, b).item() == pytest.approx(total)
    valid = torch.zeros(2, 4, 5, dtype=torch.bool)
    valid[..., :3] = True
    inside = distil_losses.channel(a[..., :3], b[..., :3])
    assert distil_losses.channel(a, b, valid=valid).item() == pytest.approx(inside.item())


def test_terms_vanish_where_nothing_is_to_be_learnt() -> None:
    a, nowhere = normal(2, 3, 4, 4), torch.zeros(2, 4, 4, dtype=torch.bool)
    for name, distance in distil_losses.DISTANCES.items():
        assert distance(a, normal(2, 3, 4, 4, seed=1), 2.0, nowhere).item() == pytest.approx(0, abs=1e-12)
        assert name == "hard" or distance(a, a.clone(), 2.0, None).item() == pytest.approx(0, abs=1e-12)
    labels = torch.tensor([[5.0, 1.0, 0.0]])
    assert distil_losses.hard(labels, labels).item() == pytest.approx(F.cross_entropy(labels, torch.tensor([0])).item())


def test_teachers_get_no_gradients() -> None:
    teacher = normal(2, 3, 4, 4, seed=1).requires_grad_()
    for distance in distil_losses.DISTANCES.values():
        student = normal(2, 3, 4, 4).requires_grad_()
        distance(student, teacher, 2.0, None).backward()
        assert student.grad is not None
        assert student.grad.abs().sum() > 0
    assert teacher.grad is None


def test_half_precision_is_compared_in_float32() -> None:
    a, b = normal(1, 3, 8, 8).half(), normal(1, 3, 8, 8, seed=1).half()
    for distance in distil_losses.DISTANCES.values():
        assert distance(a, b, 1.0, None).dtype == torch.float32


def test_projected_maps_learn_normalised_ones() -> None:
    """Whatever the scale of the teacher, a student that gives its normalised map has no error."""
    wanted = 1e4 * normal(2, 6, 3, 3) + 5e4
    own = (wanted - wanted.mean(1, keepdim=True)) / wanted.var(1, correction=0, keepdim=True).sqrt()
    assert distil_losses.features([own], [wanted]).item() == pytest.approx(0, abs=1e-9)
    assert distil_losses.features([torch.zeros_like(own)], [wanted]).item() == pytest.approx(1)


def test_maps_of_the_nearest_strides_are_compared() -> None:
    def info(*strides: int) -> list[FeatureInfo]:
        return [FeatureInfo(8, stride) for stride in strides]

    pairs = distil_losses.map_pairs
    assert pairs(info(4, 8, 16, 32), info(4, 8, 16, 32)) == [(1, 1), (2, 2), (3, 3)]
    assert pairs(info(16, 32, 64), info(4, 8, 16, 32)) == [(0, 2), (1, 3), (2, 3)]
    assert pairs(info(1), info(2, 4)) == [(0, 0)]


def test_grids_of_different_strides_meet_on_the_image() -> None:
    """A map that is linear in the place on the image is linear on every grid, but for the rim."""
    fine, coarse = (torch.arange(n) * stride + stride / 2 for n, stride in ((16, 4), (8, 8)))
    maps = (fine[:, None] + 100 * fine).expand(1, 2, -1, -1).double()
    read = distil_losses.on_grid(maps, 4, (8, 8), 8)
    torch.testing.assert_close(read, (coarse[:, None] + 100 * coarse).expand(1, 2, -1, -1).double())
    back = distil_losses.on_grid(read, 8, (16, 16), 4)
    torch.testing.assert_close(back[..., 1:-1, 1:-1], maps[..., 1:-1, 1:-1])


def test_the_teacher_gets_the_same_pixels() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    ours, theirs = Preprocess(), Preprocess((0.5, 0.4, 0.0), (0.5, 0.1, 1.0))
    image, expected = (torch.from_numpy(prepare(pixels, each)) for each in (ours, theirs))
    torch.testing.assert_close(renormalised(image, ours, theirs), expected, rtol=1e-6, atol=1e-6)
    assert renormalised(image, ours, Preprocess()) is image


# ---- stored outputs


@pytest.fixture(scope="module")
def shapes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_shapes(tmp_path_factory.mktemp("shapes"), train=8, val=2, size=(40, 40))


@pytest.fixture(scope="module")
def teacher(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose model is the teacher; it has a licence."""
    out = tmp_path_factory.mktemp("teacher") / "run"
    best = train(shapes, out, epochs=1).best
    state, info = read_state(best)
    assert info is not None
    save_checkpoint(best, state, info.replace(licence="CC-BY-4.0"))
    return out


def train(data: Path, out: Path, **settings: Any) -> Any:
    return foveal.train(data, out=out, **{**SETTINGS, **SMALL, "epochs": 2, **settings})


def config(**settings: Any) -> TrainConfig:
    return build_settings({**SETTINGS, **SMALL, **settings})


EVERY = {"rotate": 30, "vertical_flip": 0.5, "rand_augment": [3, 9], "cutmix": 1.0, "erase": 0.5}


def test_tracked_samples_are_those_of_other_runs(shapes: Path, teacher: Path, tmp_path: Path) -> None:
    """The same images and classes; and each pixel inside of an image has the class of the place that it names."""
    more = {"augment": EVERY, "rare_crop": 0.5, "class_weights": "median", "crop": [48, 40]}
    plain = SegmentJob(shapes, config(**more), QUIET)
    stored = {"teacher": str(teacher), "teacher_cache": str(tmp_path)}
    tracked = SegmentJob(shapes, config(**more, **stored), QUIET)
    masks = [plain.read[index][1] for index in range(8)]
    outside = mixed = 0
    for seed in range(24):
        image, ids = plain.sample(seed % 8, np.random.default_rng(seed), 0.0)
        same, target = tracked.sample(seed % 8, np.random.default_rng(seed), 0.0)
        parts = Tracked.of(target[None], 4)
        assert torch.equal(image, same)
        assert torch.equal(ids[None], parts.ids)
        inside = parts.inside
        places = (part[inside].numpy() for part in (parts.image, parts.row, parts.column))
        assert [masks[i][y, x] for i, y, x in zip(*places, strict=True)] == parts.ids[inside].tolist()
        outside, mixed = outside + int((~inside).sum()), mixed + (len(parts.image.unique()) > 1)
    assert outside
    assert mixed


def test_stored_outputs_are_read_where_pixels_come_from(shapes: Path, teacher: Path, tmp_path: Path) -> None:
    """Of a whole image in its own size, the teacher's output for it; of its mirror image, the mirrored output."""
    own = {"crop": [40, 40], "scale": [1, 1], "jitter": 0, "tint": 0, "flip": 0}
    job = make_job(shapes, config(**own, teacher=str(teacher), teacher_cache=str(tmp_path)), QUIET)
    assert isinstance(job, TaughtJob)
    assert job.stored is not None
    assert job.teacher is not None
    image, target = job.sample(3, np.random.default_rng(0), 0.0)
    parts = job.stored.split(target[None])
    logits, inside = job.stored(parts, (5, 5), 8)
    direct = job.teacher(image[None], job.preprocess).output
    assert inside.all()
    at_pixels = distil_losses.on_grid(direct, job.teacher.stride, (40, 40), 1)[..., 4::8, 4::8]
    torch.testing.assert_close(logits, at_pixels, rtol=2e-3, atol=2e-3)
    mirrored, _ = job.stored(job.stored.split(target[None].flip(-1)), (5, 5), 8)
    at_mirrored = distil_losses.on_grid(direct, job.teacher.stride, (40, 40), 1).flip(-1)[..., 4::8, 4::8]
    torch.testing.assert_close(mirrored, at_mirrored, rtol=2e-3, atol=2e-3)


def test_outputs_are_computed_once(
    shapes: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A truncated file is computed again; a changed bit, another teacher and another precision are one line."""
    settings = {"teacher": str(teacher), "teacher_cache": str(tmp_path / "cache")}
    make_job(shapes, config(**settings), QUIET)
    files = sorted((tmp_path / "cache").glob("*.npz"))
    assert len(files) == 8
    whole = files[0].read_bytes()
    files[0].write_bytes(whole[:100])
    computed: list[int] = []
    original = StoredOutputs._compute
    monkeypatch.setattr(
        StoredOutputs, "_compute", lambda self, i, *rest: computed.append(i) or original(self, i, *rest)
    )
    job = make_job(shapes, config(**settings), QUIET)
    assert len(computed) == 1
    assert files[0].read_bytes() == whole
    for file in files:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    assert isinstance(job, TaughtJob)
    assert job.stored is not None
    target = job.sample(0, np.random.default_rng(0), 0.0)[1]
    with pytest.raises(CheckpointError, match=r"damaged output .*delete it, and it is computed again"):
        job.stored(job.stored.split(target[None]), (4, 4), 8)
    with pytest.raises(ConfigError, match="holds outputs in fp32, not in bf16"):
        make_job(shapes, config(**settings, precision="bf16"), QUIET)
    other = train(shapes, tmp_path / "other", epochs=1, seed=5).folder
    with pytest.raises(ConfigError, match=r"holds the outputs of .* with other weights than"):
        make_job(shapes, config(**{**settings, "teacher": str(other)}), QUIET)


def test_the_grid_of_an_output_is_that_of_predictions() -> None:
    info = ModelInfo("efficientvit_b0", "segment", 11, output_stride=8, preprocess=Preprocess(max_side=100))
    assert Grid.of(info, 50, 90) == ((11, 7, 12), (1 / 8, 1 / 8))
    assert Grid.of(info, 100, 400) == ((11, 4, 13), (25 / 800, 100 / 3200))  # 25 rows are padded to 32


# ---- whole runs


def test_every_term_is_learnt_and_resumed_exactly(shapes: Path, teacher: Path, tmp_path: Path) -> None:
    """The training state has the projections, the checkpoint has not; both licences are noted."""
    settings = {"teacher": str(teacher), "distil": ALL, "deep_supervision": 0.4, "augment": {"cutmix": 1.0}}
    whole = train(shapes, tmp_path / "whole", epochs=4, **settings)
    assert whole.losses[-1] < whole.losses[0]
    state, info = read_state(whole.best)
    assert not [key for key in state if "projection" in key or "classifiers" in key]
    assert info is not None
    assert info.licence == "CC-BY-4.0"
    assert info.notes["config"]["teacher"] == "run"
    training = torch.load(tmp_path / "whole" / "state.pt", weights_only=False)["model"]
    assert len([key for key in training if key.startswith("projections.")]) == 6
    assert len(training) == len(set(training))
    assert not [key for key in training if key.startswith("model.")]  # each tensor is there once

    stop = tmp_path / "stopped"
    first = {**SETTINGS, **SMALL, **settings, "epochs": 4}
    _interrupted(shapes, stop, first)
    foveal.train(shapes, out=stop, resume=True)
    assert losses(stop) == losses(tmp_path / "whole")
    assert same_weights(stop, tmp_path / "whole")


def _interrupted(data: Path, out: Path, settings: dict[str, Any]) -> None:
    """Train until the third step, as if a signal came."""
    from foveal.training import loop

    original, calls = loop.Run._stop_or_save, 0

    def stop_at_third(self: Any, interrupted: Any) -> None:
        nonlocal calls
        calls += 1
        original(self, (lambda: 15) if calls == 3 else interrupted)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Run, "_stop_or_save", stop_at_third)
        with pytest.raises(SystemExit):
            foveal.train(data, out=out, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {"distil": {"ema": 1.0}, "teacher": ""},
        {"teacher_cache": "cache", "distil": {"logits": 1, "channel": 3}, "augment": EVERY, "workers": 1},
        {"precision": "fp64", "distil": {"features": 1, "ema": 1}, "accumulate": 2, "grad_checkpointing": True},
        {"precision": "bf16", "distil": ALL, "batch_size": "auto"},
    ],
    ids=["ema", "cache", "fp64", "bf16"],
)
def test_short_runs(settings: dict[str, Any], shapes: Path, teacher: Path, tmp_path: Path) -> None:
    settings = {"teacher": str(teacher), **settings}
    if "teacher_cache" in settings:
        settings["teacher_cache"] = str(tmp_path / settings["teacher_cache"])
    run = train(shapes, tmp_path / "run", **settings)
    assert np.isfinite(run.losses).all()


def test_the_average_follows_the_weights() -> None:
    """A live model has the averaged values at any time, without a copy."""
    model = foveal.create_model("efficientvit_b0", "segment", num_classes=3)
    averaged = Averaged(model, meta_copy(model), 0.9)
    live = averaged.live_model(torch.device("cpu"))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 1
    averaged.update()
    averaged.update()
    assert not live.training
    for key, value in live.state_dict().items():
        assert torch.equal(value, averaged.values[key])
        assert value.data_ptr() == averaged.values[key].data_ptr()


# ---- exported teachers, classifiers, images


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
    root = tmp_path_factory.mktemp("classes")
    for split, count in (("train", 4), ("val", 1)):
        for name, low in (("bright", 150), ("dark", 0)):
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.random.default_rng(index).integers(low, low + 80, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(folder / f"{name}{index}.png")
    return root


def saved(path: Path, name: str, task: str, labels: tuple[str, ...] = (), **options: Any) -> str:
    """A model with random weights in a file."""
    torch.manual_seed(1)
    count = {"num_classes": len(labels)} if labels else {}
    model: Any = foveal.create_model(name, task, **count, **options)
    info = info_of(model).replace(labels=foveal.Labels(labels))
    attach(model, info)
    save_checkpoint(path, model.state_dict(), info)
    return str(path)


def test_classifiers_learn_with_mixed_images(classes: Path, tmp_path: Path) -> None:
    ref = saved(tmp_path / "t.safetensors", "mambavision_t", "classify", ("bright", "dark"), **CLASSIFIER)
    more = {"task": "classify", "options": CLASSIFIER, "class_weights": "sqrt_median"}
    for distil in ({}, {"logits": [1, 3], "hard": 1, "features": 1, "ema": 1}):
        out = tmp_path / f"run{len(distil)}"
        run = train(classes, out, teacher=ref, distil=distil, augment={"mixup": 0.5, "cutmix": 1.0}, **more)
        assert np.isfinite(run.losses).all()


@pytest.mark.parametrize("distil", [{"logits": 1.0}, {"hard": 1.0}])
def test_the_second_of_two_classifiers_learns_from_the_teacher_alone(
    distil: dict[str, float], classes: Path, tmp_path: Path
) -> None:
    """And the first one from the labels alone, as in DeiT; without a teacher both learn the labels."""
    ref = saved(tmp_path / "t.safetensors", "mambavision_t", "classify", ("bright", "dark"), **CLASSIFIER)
    settings = {**SETTINGS, "task": "classify", "class_weights": "sqrt_median", "crop": [64, 64], "teacher": ref}
    job = make_job(classes, build_settings({**settings, "distil": distil}), QUIET)
    model: Any = foveal.create_model("efficientvit_m0", "classify", num_classes=2, distilled=True)
    trainee = job.trainee(model).train()
    image = normal(4, 3, 64, 64).float()
    labels = torch.tensor([0, 1, 0, 1])
    (first, second), _ = trainee(image)
    assert isinstance(job, TaughtJob)
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
        **{name: value for name, value in SETTINGS.items() if name not in ("class_weights", "tint")},
        **{"task": "upscale", "model": "efficientvit_sr_w075", "epochs": 1, "val_split": "", "crop": [32, 32]},
    }
    ref = "efficientvit_sr.x2"
    run = foveal.train(tmp_path / "data", out=tmp_path / "run", teacher=ref, **settings)
    assert np.isfinite(run.losses).all()
    distil = {"output": 1, "features": 0.1, "ema": 1}
    foveal.train(tmp_path / "data", out=tmp_path / "all", teacher=ref, distil=distil, **settings)
    with pytest.raises(ConfigError, match=r"teacher=efficientvit_sr\.x4 has scale 4, the run 2: name one of scale 2"):
        foveal.train(tmp_path / "data", out=tmp_path / "x", teacher="efficientvit_sr.x4", **settings)


# ---- mistakes


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"distil": {"logits": 1}}, "distil: logits needs teacher: give teacher too"),
        ({"teacher": "x", "distil": {"ema": 1}}, "teacher='x' is not used, since distil has only ema"),
        ({"distil": {"ema": 1}, "ema_decay": 0.0}, "ema learns from the averaged weights, which ema_decay=0 rules out"),
        ({"distil": {"ema": 1}, "fsdp": True}, "which fsdp=True rules out"),
        ({"teacher": "x", "distil": {"logits": 0}}, r"logits=0.* is out of range: give a factor above 0, or \[factor"),
        ({"teacher": "x", "distil": {"logits": [1, 0]}}, "is out of range: give a factor above 0, or"),
        ({"teacher": "x", "distil": {"features": [1, 2]}}, "is out of range: give a factor above 0$"),
        ({"teacher": "x", "distil": {"output": 1}}, "'segment' has no term 'output': it is for upscale"),
        ({"teacher": "x", "distil": {"channel": 1}, "task": "classify"}, "'channel': it is for segment"),
        ({"teacher": "x", "distil": {"logit": 1}}, "logit.*did you mean 'logits'"),
        ({"teacher": "x", "distil": {"logits": 1}, "task": "prompt"}, "is not for 'prompt': leave it out"),
        ({"teacher_cache": "c"}, "teacher_cache='c' needs teacher"),
        ({"teacher": "x", "teacher_cache": "c", "distil": {"features": 1}}, "teacher_cache has outputs only, no maps"),
        ({"teacher": "x", "teacher_cache": "c", "transform": "a:b"}, "cannot follow the pixels that transform='a:b'"),
        ({"teacher": "x", "teacher_cache": "c", "task": "classify"}, "teacher_cache='c' is for 'segment'"),
    ],
)
def test_impossible_settings_are_one_line(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        build_settings(settings)
    assert "\n" not in str(caught.value)


def test_teachers_that_do_not_fit_are_one_line(shapes: Path, tmp_path: Path) -> None:
    names = ("ground", "disc", "square", "triangle")
    make = {
        "order": (
            "efficientvit_b0",
            "segment",
            names[::-1],
            {},
            "other classes than the data: the same names in another",
        ),
        "other": ("efficientvit_b0", "segment", (*names[:3], "star"), {}, "'triangle' missing; 'star' added"),
        "more": ("efficientvit_b0", "segment", (*names, "star"), {}, r"5 instead of 4 \('star' added\)"),
        "nameless": (
            "efficientvit_b0",
            "segment",
            (),
            {"num_classes": 7},
            "other classes than the data: 7 instead of 4",
        ),
        "task": (
            "mobilenetv2_100",
            "classify",
            names,
            {},
            "is for 'classify', not 'segment': name a model for the same",
        ),
        "bands": ("efficientvit_b0", "segment", names, {"in_chans": 4}, "takes images of 4 channels of uint8"),
    }
    for key, (name, task, labels, options, message) in make.items():
        ref = saved(tmp_path / f"{key}.safetensors", name, task, labels, **options)
        with pytest.raises(ConfigError, match=message) as caught:
            make_job(shapes, config(teacher=ref), QUIET)
        assert "\n" not in str(caught.value)
    with pytest.raises(foveal.FovealError, match="nowhere"):
        make_job(shapes, config(teacher="nowhere.safetensors"), QUIET)


# ---- processes


def test_data_loading_processes_get_no_teacher(shapes: Path, teacher: Path) -> None:
    import pickle

    job = make_job(shapes, config(teacher=str(teacher)), QUIET)
    copy = pickle.loads(pickle.dumps(job))
    assert isinstance(copy, TaughtJob)
    assert copy.teacher is None
    for part, same in zip(
        job.sample(1, np.random.default_rng(0), 0.0), copy.sample(1, np.random.default_rng(0), 0.0), strict=True
    ):
        assert torch.equal(part, same)


@pytest.mark.long
def test_two_processes_learn_what_one_does(shapes: Path, teacher: Path, tmp_path: Path) -> None:
    """With equal shares of labelled pixels, losses agree to 1e-9: every term is a mean over the batch."""
    more = {"teacher": str(teacher), "distil": {"logits": 1, "features": 1, "ema": 1}, "precision": "fp64"}
    settings = {**SETTINGS, **SMALL, **more, "epochs": 2, "scale": [0.9, 1.0]}
    one = foveal.train(shapes, out=tmp_path / "one", **settings).folder
    subprocess.run(torchrun(shapes, tmp_path / "two", settings), check=True, capture_output=True, env=ONE_THREAD)
    first, second = losses(one), losses(tmp_path / "two")
    assert list(first.values()) == pytest.approx(list(second.values()), rel=1e-9)
    assert furthest_weights(one, tmp_path / "two") < 1e-6
