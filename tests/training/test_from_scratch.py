"""What classifiers from random weights need: sizes by batch, copies, mixing, stochastic depth, zeroed branches."""

from __future__ import annotations

import itertools
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import foveal
from foveal.data.classification import ClassificationData
from foveal.errors import ConfigError
from foveal.info import Labels, info_of
from foveal.layers.drop_path import DropPath, spread_drop_path
from foveal.layers.zero_init import zero_init_last
from foveal.progress import Progress
from foveal.training import batch_size
from foveal.training.augment import Augment
from foveal.training.batches import Batches, Loader, batches_per_pass
from foveal.training.classify import ClassifyJob
from foveal.training.config import TrainConfig, build_settings
from foveal.training.distributed import make_accelerator
from foveal.training.initial import initialise_branches
from helpers.brightness import write_brightness
from helpers.narrow import registered
from helpers.runs import SETTINGS, losses, same_weights

QUIET = Progress(enabled=False)
TEN = ClassificationData(tuple((Path(f"{i}.jpg"), 0) for i in range(10)), Labels(("one",)))
COMMON: dict[str, Any] = {**SETTINGS, "task": "classify", "val_split": ""}
SCRATCH: dict[str, Any] = {
    **COMMON,
    "sizes": [32, 48, 64],
    "repeats": 2,
    "drop_path": 0.2,
    "zero_init_last": True,
    "augment": {"rand_augment": [1, 5], "mixup": [0.2, 0.3], "cutmix": [1.0, 0.3]},
    "bn_batches": 2,
}


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes: dark and bright images."""
    return write_brightness(tmp_path_factory.mktemp("classes"), train=6)


@pytest.fixture(scope="module")
def narrow() -> Iterator[str]:
    with registered() as name:
        yield name


# ---- sizes and copies


def test_the_size_of_a_batch_depends_on_its_place_alone() -> None:
    config = TrainConfig(task="classify", batch_size=4, sizes=(32, 48, 64), seed=5)
    sizes = [{place.size for place in batch} for batch in itertools.islice(Batches(TEN, config, 0, 0, 1), 40)]
    assert all(len(each) == 1 for each in sizes)
    assert set.union(*sizes) == {32, 48, 64}
    for position, rank in itertools.product((1, 2, 7), range(2)):
        later = itertools.islice(Batches(TEN, config, position, rank, 2), 40 - position)
        assert [{place.size for place in batch} for batch in later] == sizes[position:]
    other = TrainConfig(task="classify", batch_size=4, sizes=(32, 48, 64), seed=6)
    assert [{p.size for p in batch} for batch in itertools.islice(Batches(TEN, other, 0, 0, 1), 40)] != sizes


def test_batches_with_copies_still_have_every_image_once_in_a_pass() -> None:
    config = TrainConfig(task="classify", batch_size=4, repeats=2)
    assert batches_per_pass(10, config) == 5
    batches = list(itertools.islice(Batches(TEN, config, 0, 0, 1), 5))
    for batch in batches:
        assert Counter(place.image for place in batch).most_common() == [
            (i, 2) for i in dict.fromkeys(p.image for p in batch)
        ]
        assert {place.copy for place in batch} == {0, 1}
    assert sorted(place.image for batch in batches for place in batch) == sorted([*range(10)] * 2)
    later = Batches(TEN, config, 3, 0, 1)
    assert list(itertools.islice(later, 2)) == batches[3:]


def test_copies_are_augmented_differently_and_batches_have_their_sizes(classes: Path) -> None:
    config = build_settings({**SCRATCH, "augment": {}})
    loader = Loader(ClassifyJob(classes, config, QUIET), config, make_accelerator(config), torch.float32, QUIET)
    batches = list(itertools.islice(loader.batches(0), 12))
    assert {image.shape[2:] for _, image, _ in batches} == {(32, 32), (48, 48), (64, 64)}
    for indices, image, target in batches:
        assert indices[0] == indices[1]
        assert target[0] == target[1]
        assert not image[0].equal(image[1])
    indices, image, _ = next(loader.batches(7))
    assert indices == batches[7][0]
    assert image.equal(batches[7][1])
    crop = tuple(SCRATCH["crop"])
    assert {image.shape[2:] for _, image, _ in itertools.islice(loader.batches(0, one_size=True), 12)} == {crop}


def test_a_stopped_run_gives_the_numbers_of_an_undisturbed_one(
    classes: Path, narrow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With everything that draws random numbers."""
    settings = {**SCRATCH, "model": narrow, "epochs": 3, "batch_size": 4}
    foveal.train(classes, out=tmp_path / "whole", **settings)
    sample, calls = ClassifyJob.sample, itertools.count()

    def stop(self: Any, *args: Any, **kwargs: Any) -> Any:
        if next(calls) == 18:
            os.kill(os.getpid(), signal.SIGTERM)
        return sample(self, *args, **kwargs)

    monkeypatch.setattr(ClassifyJob, "sample", stop)
    with pytest.raises(SystemExit):
        foveal.train(classes, out=tmp_path / "stopped", **settings)
    monkeypatch.undo()
    assert 0 < len(losses(tmp_path / "stopped")) < len(losses(tmp_path / "whole"))
    foveal.train(out=tmp_path / "stopped", data=classes, resume=True)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert same_weights(tmp_path / "stopped", tmp_path / "whole")


def test_a_new_phase_begins_with_the_next_pass_also_with_copies(classes: Path, narrow: str, tmp_path: Path) -> None:
    """12 images, 2 of 4 places: a pass has 6 batches and an epoch 3, so two epochs are the first pass."""
    settings = {**COMMON, "model": narrow, "batch_size": 4, "repeats": 2, "epochs": 2}
    foveal.train(classes, out=tmp_path, **settings)
    foveal.train(classes, out=tmp_path, resume=True, new_phase=True, epochs=3)
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert _found(state, "phase_passes") == 1


def _found(state: Any, name: str) -> Any:
    """The value of a key at any depth of a saved state."""
    if isinstance(state, dict):
        if name in state:
            return state[name]
        return next((found for each in state.values() if (found := _found(each, name)) is not None), None)
    return None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 8, "repeats": 3}, "repeats=3 is out of range: give 1 to batch_size, of which it is a divisor"),
        ({"batch_size": "auto", "repeats": 2}, "repeats=2 needs a batch_size that is a number"),
        ({"sizes": [16, 32]}, "sizes=(16, 32) is out of range: give sides of 32 or more"),
    ],
)
def test_impossible_batches_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        build_settings({"task": "classify", **settings})
    assert str(error.value).startswith(message)


def test_the_largest_size_decides_how_many_images_fit(classes: Path, narrow: str) -> None:
    """Bytes per image are those of images of the largest size."""
    common = {**COMMON, "model": narrow, "batch_size": "auto"}
    each = {}
    for name, more in {"sizes": {"sizes": [32, 96]}, "large": {"crop": [96, 96]}, "small": {}}.items():
        config = build_settings({**common, **more})
        each[name] = batch_size._measure(config, ClassifyJob(classes, config, QUIET), make_accelerator(config))[1]
    assert each["sizes"] == each["large"] > 4 * each["small"]


# ---- mixing


@pytest.mark.parametrize(
    ("values", "shares"),
    [
        ({"mixup": 0.2, "cutmix": 1.0}, {"mixup": 0.5, "cutmix": 0.5}),
        ({"mixup": [0.2, 0.3], "cutmix": [1.0, 0.5]}, {"mixup": 0.3, "cutmix": 0.5, "": 0.2}),
        ({"mixup": [0.2, 0.25], "cutmix": 1.0}, {"mixup": 0.25, "cutmix": 0.75}),
        ({"cutmix": [1.0, 0.4]}, {"cutmix": 0.4, "": 0.6}),
        ({}, {"": 1.0}),
    ],
)
def test_mixes_are_drawn_with_their_probabilities(values: dict[str, Any], shares: dict[str, float]) -> None:
    augment, rng = Augment(values, (0.0, 0.0, 0.0)), np.random.default_rng(0)
    drawn = Counter(augment.draw_mix(rng) for _ in range(4000))
    assert set(drawn) == set(shares)
    for name, share in shares.items():
        assert abs(drawn[name] / 4000 - share) < 0.04


def test_images_that_are_not_mixed_keep_their_class(classes: Path) -> None:
    job = ClassifyJob(classes, build_settings({**COMMON, "augment": {"mixup": [1.0, 0.5]}}), QUIET)
    targets = torch.stack([job.sample(0, np.random.default_rng(seed), 0.0)[1] for seed in range(60)])
    torch.testing.assert_close(targets.sum(1), torch.ones(60))
    pure = (targets.max(1).values == 1).float().mean().item()
    assert 0.5 < pure < 0.95  # half are not mixed, and half of the others are mixed with their own class


@pytest.mark.parametrize("value", [[1.0], [0.0, 0.5], [1.0, 1.5], [1.0, 0.5, 0.5], "1.0"])
def test_impossible_mixes_are_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^augment: cutmix=.* give the parameter of a Beta distribution"):
        build_settings({"augment": {"cutmix": value}})
    with pytest.raises(ConfigError, match=r"probabilities of mixup and cutmix add up to 1\.2: give at most 1"):
        build_settings({"task": "classify", "augment": {"mixup": [0.2, 0.6], "cutmix": [1.0, 0.6]}})


# ---- branches


@pytest.mark.parametrize(("name", "count"), [("efficientvit_b0", 11), ("efficientvit_m0", 6), ("mobilenetv2_100", 10)])
def test_rates_of_dropped_branches_rise_linearly(name: str, count: int) -> None:
    with torch.device("meta"):
        backbone = foveal.create_model(name, features_only=True)
    assert spread_drop_path(backbone, 0.2) == count
    rates = [part.rate for part in backbone.modules() if isinstance(part, DropPath) and part.rate]
    assert rates == pytest.approx([0.2 * (i + 1) / count for i in range(count)])


@pytest.mark.parametrize("name", ["efficientvit_b0", "efficientvit_l1", "efficientvit_m0", "mobilenetv3_small_100"])
def test_zeroed_branches_leave_their_input(name: str) -> None:
    """Every block that keeps the shape returns its input, and its last norm learns."""
    backbone: Any = foveal.create_model(name, features_only=True)
    assert zero_init_last(backbone)
    kept = 0
    for stage in backbone.stages:
        for block in stage:
            if not getattr(block, "residual", type(block).__name__.endswith("Block")):
                continue
            weight = next(block.parameters())
            channels = weight.shape[1] if weight.shape[1] > 1 else weight.shape[0]
            x = torch.randn(2, channels, 8, 8)
            y = block.train()(x)
            torch.testing.assert_close(y, x, rtol=0, atol=0)
            y.square().sum().backward()
            zeroed = [norm.weight.grad for norm in _norms(block) if not norm.weight.any()]
            assert zeroed
            assert all(gradient.abs().sum() > 0 for gradient in zeroed)
            kept += 1
    assert kept >= 4


def _norms(module: torch.nn.Module) -> list[Any]:
    return [part for part in module.modules() if isinstance(part, torch.nn.BatchNorm2d)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "edifice_efficient_vit", "drop_path": 0.1}, "has no residual branches that can be dropped"),
        ({"model": "vit_tiny", "zero_init_last": True}, "has no residual branch that ends in a batch norm"),
        ({"model": "efficientvit_b0", "weights": "in1k", "zero_init_last": True}, "is for random weights"),
    ],
)
def test_models_without_such_branches_are_refused(settings: dict[str, Any], message: str) -> None:
    model = foveal.create_model(settings["model"])
    with pytest.raises(ConfigError, match=message):
        initialise_branches(model, TrainConfig(task="classify", **settings))


# ---- small images


@pytest.mark.parametrize("name", ["efficientvit_b0", "efficientvit_m0", "mobilenetv3_small_100", "tf_efficientnet_b0"])
def test_a_stem_of_stride_one_halves_the_stride_of_every_map(name: str) -> None:
    usual: Any = foveal.create_model(name, features_only=True).eval()
    dense: Any = foveal.create_model(name, features_only=True, stem_stride=1).eval()
    assert [i.stride for i in dense.feature_info] == [i.stride // 2 for i in usual.feature_info]
    assert [i.channels for i in dense.feature_info] == [i.channels for i in usual.feature_info]
    dense.load_state_dict(usual.state_dict())
    image = torch.randn(1, 3, 65, 97)
    with torch.no_grad():
        for found, info in zip(dense(image), dense.feature_info, strict=True):
            assert found.shape[2:] == (-(-65 // info.stride), -(-97 // info.stride))
        if not name.startswith("tf_"):  # TensorFlow's padding depends on the stride
            torch.testing.assert_close(dense.stem[0](image)[..., ::2, ::2], usual.stem[0](image))


def test_a_stem_of_another_stride_is_refused() -> None:
    for stride in (0, 4, True):
        with pytest.raises(ConfigError, match=r"^stem_stride=.*: give 1 or 2$"):
            foveal.create_model("efficientvit_b0", stem_stride=stride)


def test_checkpoints_describe_the_stem(classes: Path, narrow: str, tmp_path: Path) -> None:
    """A run on small images is predicted, and fine-tuned, with its own stride unless another one is asked for."""
    foveal.train(classes, out=tmp_path, **{**COMMON, "model": narrow, "epochs": 1, "options": {"stem_stride": 1}})
    model: Any = foveal.load_model(tmp_path / "last.safetensors")
    assert info_of(model).options["stem_stride"] == 1
    assert model.backbone.stem[0].conv.stride == (1, 1)
    usual: Any = foveal.create_model(
        narrow, "segment", weights=tmp_path / "last.safetensors", num_classes=2, stem_stride=2
    )
    assert usual.backbone.stem[0].conv.stride == (2, 2)
    onnx = foveal.export(tmp_path / "last.safetensors", to="onnx", output=tmp_path / "small.onnx")
    image = np.random.default_rng(0).integers(0, 256, (40, 40, 3), np.uint8)
    scores = [foveal.load(path)(image).scores for path in (tmp_path / "last.safetensors", onnx)]
    np.testing.assert_allclose(scores[0], scores[1], atol=1e-5)
