"""Results: the mask is the argmax of the upsampled logits, at any size, and pictures and files agree with it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from foveal.errors import ConfigError, InputError
from foveal.images.reading import read_mask
from foveal.images.writing import save_picture
from foveal.info import Labels
from foveal.prediction.results import ClassifyResult, SegmentResult


def result(logits: NDArray[np.float32], size: tuple[int, int], scale: tuple[float, float]) -> SegmentResult:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    return SegmentResult(image, logits, scale, Labels())


def test_classes_of_one_name_are_told_apart() -> None:
    logits = np.zeros((3, 4, 4), np.float32)
    logits[2, :, 1:], logits[0, :, 0] = 5, 5
    pixels = np.zeros((4, 4, 3), np.uint8)
    found = SegmentResult(pixels, logits, (1.0, 1.0), Labels(("road", "other", "other")))
    assert [(index, share) for index, share, _ in found.indexed_shares()] == [(2, 0.75), (0, 0.25)]
    assert [name for name, *_ in found.shares()] == ["other", "road"]


def check_mask(mask: NDArray, upsampled: torch.Tensor) -> None:
    """``mask`` is the argmax of ``(C, H, W)``, but where the two best classes are equal to the last bits."""
    best = upsampled.argmax(0).numpy()
    assert mask.shape == best.shape
    lost = upsampled.amax(0) - upsampled.gather(0, torch.from_numpy(mask[None].astype(np.int64)))[0]
    assert lost.max() <= 1e-5
    assert (mask != best).sum() <= 1 + mask.size // 1000


def random_logits(seed: int, shape: tuple[int, int, int], smooth: bool) -> NDArray[np.float32]:
    """Noise, or blobs several positions wide, as networks give them."""
    height, width = shape[1:]
    noise = torch.randn(1, *shape, generator=torch.Generator().manual_seed(seed))
    if smooth:
        abbreviate = noise[..., : max(1, height // 4), : max(1, width // 4)]
        noise = F.interpolate(abbreviate, size=(height, width), mode="bicubic", align_corners=False)
    return noise[0].numpy()


@given(
    classes=st.integers(1, 24),
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    cut=st.integers(0, 7),
    smooth=st.booleans(),
    seed=st.integers(0, 99),
)
def test_mask_at_the_networks_stride(classes: int, height: int, width: int, cut: int, smooth: bool, seed: int) -> None:
    """Upsample by 8 and crop, as torch does it."""
    logits = random_logits(seed, (classes, height, width), smooth)
    size = (8 * height - cut, 8 * width - cut // 2)
    wide = torch.from_numpy(logits[None]).double()
    upsampled = F.interpolate(wide, scale_factor=8, mode="bilinear", align_corners=False)
    check_mask(result(logits, size, (1 / 8, 1 / 8)).mask, upsampled[0, :, : size[0], : size[1]])


@given(
    height=st.integers(2, 40), width=st.integers(2, 40), out_h=st.integers(1, 90), out_w=st.integers(1, 90),
    smooth=st.booleans(), seed=st.integers(0, 99),
)  # fmt: skip
def test_mask_of_a_resized_image(height: int, width: int, out_h: int, out_w: int, smooth: bool, seed: int) -> None:
    """Any size to any size in one step, up or down."""
    logits = random_logits(seed, (5, height, width), smooth)
    wide = torch.from_numpy(logits[None]).double()
    upsampled = F.interpolate(wide, size=(out_h, out_w), mode="bilinear", align_corners=False)
    check_mask(result(logits, (out_h, out_w), (height / out_h, width / out_w)).mask, upsampled[0])


@pytest.mark.parametrize(("coarse", "size"), [((45, 60), (360, 480)), ((96, 128), (360, 480)), ((44, 60), (360, 480))])
@pytest.mark.parametrize("smooth", [True, False])
def test_mask_of_real_sizes(coarse: tuple[int, int], size: tuple[int, int], smooth: bool) -> None:
    """CamVid's: at its own size, fed at 1024x768, and at 480x352, where the factors differ."""
    logits = random_logits(5, (11, *coarse), smooth)
    wide = torch.from_numpy(logits[None]).double()
    upsampled = F.interpolate(wide, size=size, mode="bilinear", align_corners=False)
    check_mask(result(logits, size, (coarse[0] / size[0], coarse[1] / size[1])).mask, upsampled[0])


def test_more_than_256_classes(tmp_path: Path) -> None:
    logits = random_logits(0, (300, 6, 7), False)
    found = result(logits, (48, 56), (1 / 8, 1 / 8))
    assert found.mask.dtype == np.int32
    assert found.mask.max() > 255
    check_mask(found.mask, F.interpolate(torch.from_numpy(logits[None]).double(), scale_factor=8, mode="bilinear")[0])
    with pytest.raises(InputError, match="256 classes"):
        found.save(tmp_path / "mask.png")


def test_scores_are_softmax_of_the_upsampled_logits() -> None:
    logits = random_logits(1, (7, 9, 11), True)
    found = result(logits, (70, 85), (1 / 8, 1 / 8))
    upsampled = F.interpolate(torch.from_numpy(logits[None]), scale_factor=8, mode="bilinear")[0, :, :70, :85]
    assert np.abs(found.scores - upsampled.softmax(0).amax(0).numpy()).max() < 1e-5


def test_shares_add_up() -> None:
    found = result(random_logits(2, (4, 8, 8), True), (64, 64), (1 / 8, 1 / 8))
    shares = found.shares()
    assert sum(share for _, share, _ in shares) == pytest.approx(1)
    assert [share for _, share, _ in shares] == sorted((share for _, share, _ in shares), reverse=True)
    name, share, confidence = shares[0]
    chosen = found.mask == int(name.removeprefix("class "))
    assert share == pytest.approx(chosen.mean())
    assert confidence == pytest.approx(found.scores[chosen].mean(), rel=1e-5)


def test_saved_mask_reads_back_with_its_palette(tmp_path: Path) -> None:
    labels = Labels(("sky", "road"), ((1, 2, 3), (200, 100, 50)))
    logits = random_logits(3, (2, 5, 5), True)
    found = SegmentResult(np.zeros((40, 40, 3), np.uint8), logits, (1 / 8, 1 / 8), labels)
    path = found.save(tmp_path / "deep" / "mask.png")
    assert (read_mask(path) == found.mask).all()
    with Image.open(path) as image:
        assert image.mode == "P"
        assert (np.asarray(image.convert("RGB")) == np.array(labels.palette)[found.mask]).all()


def test_overlay_mixes_image_and_colours() -> None:
    found = result(random_logits(4, (3, 4, 4), True), (32, 32), (1 / 8, 1 / 8))
    assert (np.asarray(found.overlay(0.0)) == found.image).all()
    assert (np.asarray(found.overlay(1.0)) == np.array(found.palette, np.uint8)[found.mask]).all()
    colours = np.array(found.palette)[found.mask]
    assert np.abs(np.asarray(found.overlay(0.25)) - (0.75 * found.image + 0.25 * colours)).max() <= 0.5
    with pytest.raises(InputError, match=r"alpha=1\.5"):
        found.overlay(1.5)


def test_classification_ranks_and_normalises() -> None:
    found = ClassifyResult(np.array([0.0, 1000.0, 1001.0], np.float32), Labels(("a", "b", "c")))
    assert [name for name, _ in found.top(2)] == ["c", "b"]
    assert sum(score for _, score in found.top(3)) == pytest.approx(1)


def test_bad_files_and_labels_are_explained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown picture format"):
        save_picture(Image.new("RGB", (2, 2)), tmp_path / "picture.xyz")
    with pytest.raises(ConfigError, match="2 class names but 1 colours"):
        Labels(("a", "b"), ((0, 0, 0),))
