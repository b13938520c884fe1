"""Overlays: colours of the classes, contours that are visible on any colour, a legend of the classes that occur."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from foveal.errors import InputError
from foveal.images.colours import distinct_colours
from foveal.images.overlay import add_legend, blend, draw_contours, draw_overlay, legend_entries
from foveal.info import Labels

LABELS = Labels(("road", "car", "absent"), ((128, 64, 128), (0, 0, 142), (220, 20, 60)))
IMAGE = np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)
CLASSES = np.zeros((60, 90), np.uint8)
CLASSES[20:40, 30:60] = 1


def count(picture: Image.Image, colour: tuple[int, int, int]) -> int:
    """Pixels of exactly this colour."""
    return int((np.asarray(picture) == colour).all(-1).sum())


def test_blend_mixes_image_and_colour() -> None:
    assert (blend(IMAGE, CLASSES, LABELS.palette, 0) == IMAGE).all()
    assert (blend(IMAGE, CLASSES, LABELS.palette, 1) == np.array(LABELS.palette)[CLASSES]).all()
    expected = IMAGE * 0.7 + np.array(LABELS.palette)[CLASSES] * 0.3
    assert np.abs(blend(IMAGE, CLASSES, LABELS.palette, 0.3) - expected).max() <= 0.5 + 1e-4
    for alpha in (-0.1, 1.5):
        with pytest.raises(InputError, match=r"0 \(image only\) to 1 \(colours only\)"):
            blend(IMAGE, CLASSES, LABELS.palette, alpha)


def test_without_contours_and_legend_an_overlay_is_the_blend() -> None:
    plain = draw_overlay(IMAGE, CLASSES, LABELS, alpha=0.4)
    assert (np.asarray(plain) == blend(IMAGE, CLASSES, LABELS.palette, 0.4)).all()
    made_up = draw_overlay(IMAGE, CLASSES, Labels(LABELS.names))
    assert (np.asarray(made_up) == blend(IMAGE, CLASSES, distinct_colours(3), 0.5)).all()


def test_contours_follow_the_boundaries_in_two_tones() -> None:
    """Between two grey regions both tones appear, near the boundary only, and not at the border of the image."""
    picture = Image.new("RGB", (90, 60), (128, 128, 128))
    drawn = np.asarray(draw_contours(picture, CLASSES))[..., 0].astype(int)
    rows, columns = np.nonzero(drawn != 128)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (18, 40, 28, 60)
    assert (drawn[24:36, 34:56] == 128).all()
    assert drawn[30, 28:31].tolist() == [0, 255, 0]
    assert drawn[18:21, 45].tolist() == [0, 255, 0]
    assert count(picture, (128, 128, 128)) == 90 * 60, "the given picture is not changed"
    assert count(draw_contours(picture, np.zeros((60, 90), np.int32)), (128, 128, 128)) == 90 * 60


def test_contours_grow_with_the_image() -> None:
    classes = np.zeros((1200, 1600), np.uint8)
    classes[:, 800:] = 1
    row = np.asarray(draw_contours(Image.new("RGB", (1600, 1200), (128, 128, 128)), classes))[600, :, 0]
    assert row[(row != 128)].tolist() == [0, 0, 255, 255, 255, 0, 0]


def test_legend_lists_the_classes_that_occur() -> None:
    assert legend_entries(CLASSES, LABELS.names, LABELS.palette) == [
        ("road", (128, 64, 128)),
        ("car", (0, 0, 142)),
    ]
    whole = np.full((4, 4), 2, np.int32)
    assert [name for name, _ in legend_entries(whole, LABELS.names, LABELS.palette)] == ["absent"]


def test_legend_stands_below_the_image() -> None:
    """Patches in the classes' colours and some ink; the image above is unchanged."""
    drawn = draw_overlay(IMAGE, CLASSES, LABELS, legend=True)
    assert drawn.width >= 90
    assert drawn.height > 60
    assert (np.asarray(drawn)[:60, :90] == blend(IMAGE, CLASSES, LABELS.palette, 0.5)).all()
    strip = drawn.crop((0, 60, drawn.width, drawn.height))
    assert count(strip, (128, 64, 128)) >= 30
    assert count(strip, (0, 0, 142)) >= 30
    assert count(strip, (220, 20, 60)) == 0
    assert count(strip, (255, 255, 255)) > 0.5 * strip.width * strip.height


@pytest.mark.parametrize(("size", "number"), [((2, 2), 3), ((40, 900), 12), ((3000, 200), 40)])
def test_legends_fit_whatever_the_size(size: tuple[int, int], number: int) -> None:
    """Every entry is drawn once, inside the strip: a patch in each colour, for any shape of image."""
    entries = [(f"a class with a long name {i}", colour) for i, colour in enumerate(distinct_colours(number))]
    picture = Image.new("RGB", size, (1, 2, 3))
    drawn = add_legend(picture, entries)
    assert all(count(drawn, colour) >= 30 for _, colour in entries)
    assert count(drawn, (1, 2, 3)) == size[0] * size[1]
    edge = np.asarray(drawn)[size[1] :, -2:]
    assert (edge == 255).all(), "no text is cut off at the right"


def test_legend_scales_with_the_image_and_draws_any_name() -> None:
    heights = [add_legend(Image.new("RGB", (side, side)), [("road", (1, 2, 3))]).height - side for side in (200, 2000)]
    assert heights[1] > 3 * heights[0]
    assert add_legend(Image.new("RGB", (50, 50)), [("道路 é", (1, 2, 3))]).height > 50
    assert add_legend(Image.new("RGB", (50, 50)), []).size == (50, 50)
