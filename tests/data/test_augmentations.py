"""Each augmentation changes images and masks alike, or images alone where that is right."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.data.augmentations import MIXES, TRANSFORMS
from foveal.data.rand_augment import OPERATIONS, operate
from foveal.data.warping import affine, rotation

FILL = (9.0, 8.0, 7.0)
VALUES: dict[str, Any] = {"vertical_flip": 1.0, "rotate": 40.0, "rand_augment": [3, 8.0], "erase": 1.0}
IMAGE_ALONE = {"erase"}  #: masks stay, as what is erased must be inferred
COLOURS = {name for name in OPERATIONS if not name.startswith(("rotate", "shear", "translate"))}


def scene(size: tuple[int, int] = (48, 64), dtype: Any = np.uint8) -> tuple[np.ndarray, np.ndarray]:
    """Blocks of one colour each, whose mask is 0 to 11, in two types; the image's red is 20 times the class."""
    ids = (np.arange(size[0])[:, None] // 16 * 4 + np.arange(size[1]) // 16).astype(np.uint8)
    image = np.repeat((20 * ids)[..., None], 3, 2).astype(dtype)
    return image, ids if dtype == np.uint8 else ids.astype(np.uint16)


def agree(image: np.ndarray, mask: np.ndarray, ignore: int = 255) -> float:
    """Share of the labelled pixels away from edges whose colour is that of their class."""
    inner = np.ones(mask.shape, bool)
    for shift, axis in itertools.product((-2, -1, 1, 2), (0, 1)):
        inner &= np.roll(mask, shift, axis) == mask
    inner[:3], inner[-3:], inner[:, :3], inner[:, -3:] = False, False, False, False
    inner &= mask != ignore
    assert inner.sum() > 20
    return float((np.abs(image[inner][:, 0].astype(float) - 20.0 * mask[inner]) <= 3).mean())


@pytest.mark.parametrize("name", [name for name in TRANSFORMS if name not in ("rand_augment", *IMAGE_ALONE)])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_geometry_moves_image_and_mask_alike(name: str, dtype: Any) -> None:
    image, mask = scene(dtype=dtype)
    changed, ids = TRANSFORMS[name].apply(image, mask, VALUES[name], np.random.default_rng(1), FILL)
    assert ids is not None
    assert (changed.shape, changed.dtype, ids.shape, ids.dtype) == (image.shape, image.dtype, mask.shape, mask.dtype)
    assert not np.array_equal(changed, image)
    assert not np.array_equal(ids, mask)
    assert agree(changed, ids, np.iinfo(mask.dtype).max) == 1
    alone, none = TRANSFORMS[name].apply(image, None, VALUES[name], np.random.default_rng(1), FILL)
    assert none is None
    assert np.array_equal(alone, changed)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_draws_depend_on_the_generator_alone(name: str) -> None:
    image, mask = scene()
    results = [TRANSFORMS[name].apply(image, mask, VALUES[name], np.random.default_rng(s), FILL) for s in (3, 3, 4)]
    assert np.array_equal(results[0][0], results[1][0])
    assert name == "vertical_flip" or not np.array_equal(results[0][0], results[2][0])
    assert np.array_equal(image, scene()[0]), "the image that was given is unchanged"


def test_what_comes_from_outside_is_ignored() -> None:
    image, mask = scene()
    turned, ids = TRANSFORMS["rotate"].apply(image, mask, 45.0, np.random.default_rng(5), FILL)
    assert ids is not None
    assert (ids == 255).any()
    assert np.array_equal(turned[0, 0], FILL)
    assert ids[0, 0] == 255


@pytest.mark.parametrize("angle", [-90, -30, 0, 10, 90])
def test_rotations_are_those_of_pillow(angle: float) -> None:
    image, _ = scene()
    expected = Image.fromarray(image).rotate(angle, Image.Resampling.BICUBIC, fillcolor=(9, 8, 7))
    turned = affine(image, rotation(angle, image.shape[:2]), Image.Resampling.BICUBIC, FILL)
    assert np.array_equal(turned, np.asarray(expected))


@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_of_rand_augment(name: str) -> None:
    """Operations of colour leave the mask alone; the others move both alike; at strength 0 all but two do nothing."""
    image, mask = scene()
    colourful = np.random.default_rng(0).integers(40, 200, (48, 64, 3), np.uint8)
    changed, same = operate(name, colourful, mask, 0.6, FILL)
    assert np.array_equal(changed, colourful) == (name == "identity")
    assert np.array_equal(same, mask) == (name in COLOURS)
    if name not in COLOURS:
        moved, ids = operate(name, image, mask, 0.6, FILL)
        assert ids is not None
        assert agree(moved, ids) == 1
    still, ids = operate(name, colourful, mask, 0.0, FILL)
    assert np.array_equal(still, colourful) or name in ("auto_contrast", "equalize")
    assert np.array_equal(ids, mask)
    bands = np.zeros((48, 64, 5), np.uint16)
    assert np.array_equal(operate(name, bands, mask, 0.6, (0.0,) * 5)[0], bands)


def test_rand_augment_draws_so_many_operations() -> None:
    image, mask = scene()
    counts = [0, 0]
    for seed in range(60):
        changed, ids = TRANSFORMS["rand_augment"].apply(image, mask, [1, 8], np.random.default_rng(seed), FILL)
        counts[0] += not np.array_equal(changed, image)
        counts[1] += not np.array_equal(ids, mask)
        assert ids is not None
        if np.array_equal(ids, mask):
            continue
        assert agree(changed, ids) == 1
    assert 40 < counts[0] < 60  # all but identity
    assert 10 < counts[1] < 35  # 5 of 14


def test_erasing_leaves_the_mask() -> None:
    image, mask = scene((96, 96))
    shares = []
    for seed in range(40):
        erased, ids = TRANSFORMS["erase"].apply(image, mask, 1.0, np.random.default_rng(seed), FILL)
        assert ids is mask
        rows, columns = np.nonzero((erased != image).any(2))
        shares.append((np.ptp(rows) + 1) * (np.ptp(columns) + 1) / mask.size)
    assert 0.005 < min(shares) < max(shares) < 0.4
    assert TRANSFORMS["erase"].apply(image, mask, 0.0, np.random.default_rng(0), FILL)[0] is image


def test_cutmix_takes_a_box_from_the_other_image() -> None:
    first, second = np.zeros((40, 60, 3), np.uint8), np.full((40, 60, 3), 200, np.uint8)
    shares = []
    for seed in range(40):
        mixed = MIXES["cutmix"].apply(first, second, 1.0, np.random.default_rng(seed))
        assert mixed.region is not None
        inside = np.zeros((40, 60), bool)
        inside[mixed.region] = True
        assert np.array_equal(mixed.image[..., 0] == 200, inside)
        assert mixed.share == pytest.approx(1 - inside.mean())
        shares.append(mixed.share)
    assert min(shares) < 0.2 < 0.8 < max(shares)
    assert not first.any()


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
def test_mixup_is_a_mean(dtype: Any) -> None:
    first, second = np.full((4, 4, 3), 10, dtype), np.full((4, 4, 3), 110, dtype)
    mixed = MIXES["mixup"].apply(first, second, 0.4, np.random.default_rng(0))
    assert mixed.region is None
    assert mixed.image.dtype == dtype
    assert np.allclose(mixed.image, 10 * mixed.share + 110 * (1 - mixed.share), atol=0.5)


@pytest.mark.parametrize(
    ("name", "value", "valid"),
    [
        ("rotate", 181, False), ("rotate", 0, True), ("rotate", True, False), ("vertical_flip", 1.1, False),
        ("erase", "1", False), ("rand_augment", [2, 9], True), ("rand_augment", [0, 9], False),
        ("rand_augment", [2, 11], False), ("rand_augment", 2, False), ("rand_augment", [2.5, 9], False),
        ("mixup", 0, False), ("cutmix", 1, True),
    ],
)  # fmt: skip
def test_values(name: str, value: Any, valid: bool) -> None:
    assert {**TRANSFORMS, **MIXES}[name].valid.contains(value) == valid
