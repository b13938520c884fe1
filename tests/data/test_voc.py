"""Pascal VOC's folders are read as label tools write them: colours decide in palettes, lists name the samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.data.check import check_data
from foveal.data.segmentation import SegmentationData
from foveal.errors import DataError

PALETTE = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 7: (10, 20, 30), 255: (224, 224, 192)}
LABELMAP = "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\ndog:0,128,0::\n"


def sample(root: Path, stem: str, *ids: int, mode: str = "P", palette: dict[int, tuple[int, ...]] = PALETTE) -> None:
    """An image of 8 x 6 and its mask, with one id per column; the last one is repeated."""
    image, mask = root / "JPEGImages" / f"{stem}.jpg", root / "SegmentationClass" / f"{stem}.png"
    for path in (image, mask):
        path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(len(stem)).integers(0, 255, (6, 8, 3), np.uint8)).save(image)
    table = np.zeros((256, 3), np.uint8)
    for i, colour in palette.items():
        table[i] = colour
    rows = np.tile(np.array([*ids, *[ids[-1]] * (8 - len(ids))], np.uint8), (6, 1))
    if mode == "RGB":
        Image.fromarray(table[rows]).save(mask)
        return
    picture = Image.fromarray(rows)
    if mode == "P":
        picture.putpalette(table.ravel().tolist())
    picture.save(mask)


def lists(root: Path, **stems: str) -> None:
    folder = root / "ImageSets" / "Segmentation"
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in stems.items():
        (folder / f"{name}.txt").write_text(text)


def row(root: Path, split: str = "train") -> list[int]:
    return SegmentationData.open(root, [split])[0][1][0].tolist()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    sample(tmp_path, "a", 0, 1, 2, 255)
    sample(tmp_path, "bb", 0, 1)
    lists(tmp_path, train="a\n", val="bb.jpg\n\nbb\n", trainval="a\nbb\n")
    (tmp_path / "labelmap.txt").write_text(LABELMAP)
    return tmp_path


def test_lists_are_splits_and_borders_are_ignored(root: Path) -> None:
    report = check_data(root)
    assert (report.layout, report.problems, [(s.name, s.items) for s in report.splits]) == (
        "voc", [], [("train", 1), ("val", 1)],
    )  # fmt: skip
    assert row(root) == [0, 1, 2, 255, 255, 255, 255, 255]
    labels = SegmentationData.open(root, ["train", "val"]).labels
    assert (labels.names, labels.palette) == (("background", "cat", "dog"), ((0, 0, 0), (128, 0, 0), (0, 128, 0)))


@pytest.mark.parametrize("mode", ["P", "RGB"])
def test_colours_decide(root: Path, mode: str) -> None:
    """The palette has the classes in another order than labelmap.txt; id 255 is ignored whatever its colour."""
    palette = {0: (0, 128, 0), 1: (0, 0, 0), 2: (128, 0, 0), 255: (224, 224, 192)}
    sample(root, "a", 0, 1, 2, 255, mode=mode, palette=palette)
    assert row(root)[:4] == [2, 0, 1, 255]
    if mode == "P":
        sample(root, "a", 1, 255, palette=palette | {255: (0, 0, 0)})
        assert row(root)[:2] == [0, 255]
        sample(root, "a", 0, 7, palette=palette | {7: (9, 9, 9)})
        with pytest.raises(DataError, match=r"a\.png: id 7 has the colour \(9, 9, 9\), which is not in labelmap\.txt"):
            row(root)


def test_grey_masks_have_ids(root: Path) -> None:
    sample(root, "a", 0, 2, 255, mode="L")
    assert row(root)[:3] == [0, 2, 255]
    sample(root, "a", 3, mode="L")
    with pytest.raises(DataError, match=r"id 3 \(48 pixels\), but there are 3 classes"):
        row(root)


def test_names_without_labelmap(root: Path) -> None:
    (root / "labelmap.txt").unlink()
    with pytest.raises(DataError, match=r"ids without class names; .*: 0, 1, 2, 255\)"):
        row(root)
    (root / "class_names.txt").write_text("__ignore__\n_background_\ncat\ndog\n")
    assert row(root)[:4] == [0, 1, 2, 255]
    (root / "dataset.yaml").write_text("names: [x, y, z]")
    assert SegmentationData.open(root, ["train"]).labels.names == ("x", "y", "z")
    (root / "dataset.yaml").unlink()
    (root / "class_names.txt").unlink()
    sample(root, "2007_000032", 15)
    lists(root, train="2007_000032")
    data = SegmentationData.open(root, ["train"])
    assert data.labels.names[int(data[0][1][0, 0])] == "person"
    assert (data.labels.palette[1], data.labels.palette[15]) == ((128, 0, 0), (192, 128, 128))


def test_one_list_is_drawn_into_splits(root: Path) -> None:
    for name in ("train", "val"):
        (root / "ImageSets" / "Segmentation" / f"{name}.txt").unlink()
    with pytest.raises(DataError, match=r"no split 'train' .*'val_share: 0.1'"):
        row(root)
    (root / "dataset.yaml").write_text("val_share: 0.5")
    assert {len(SegmentationData.open(root, [split])) for split in ("train", "val")} == {1}
    (root / "ImageSets" / "Segmentation" / "trainval.txt").unlink()
    assert len(SegmentationData.open(root, ["all"])) == 2


def test_names_without_files_and_files_without_names(root: Path) -> None:
    sample(root, "unlisted", 0)
    sample(root, "no_mask", 0)
    (root / "SegmentationClass" / "no_mask.png").unlink()
    lists(root, train="a\nno_mask\n../../climbing\n")
    report = check_data(root)
    assert [(p.file.name, p.error) for p in report.problems] == [
        ("no_mask.jpg", "train.txt lists 'no_mask', which has no file in SegmentationClass"),
        ("train.txt", "train.txt lists '../../climbing', which has no file in JPEGImages or SegmentationClass"),
    ]
    assert "1 masks are in no list of ImageSets/Segmentation: unlisted" in report.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("background:0,0\n", r"labelmap\.txt: line 1: '0,0' is not a colour; write name:red,green,blue"),
        ("a:0,0,0::\na:1,1,1::\n", "two classes are called a"),
        ("a:0,0,0::\nb:0,0,0::\n", r"two classes are of the colour \(0, 0, 0\)"),
        ("# nothing\n", "no classes in it"),
    ],
)
def test_damaged_labelmap(root: Path, text: str, message: str) -> None:
    (root / "labelmap.txt").write_text(text)
    with pytest.raises(DataError, match=message):
        row(root)


def test_lists_in_utf_16_are_read(root: Path) -> None:
    """As PowerShell writes them."""
    path = root / "ImageSets" / "Segmentation" / "train.txt"
    path.write_bytes("a\n".encode("utf-16"))
    assert row(root) == [0, 1, 2, 255, 255, 255, 255, 255]


def test_grey_masks_of_0_and_255_are_noted(root: Path) -> None:
    """Their class has the colour white in labelmap.txt, but ids decide in grey masks, and 255 is ignored."""
    (root / "labelmap.txt").write_text("background:0,0,0::\ncrack:255,255,255::\n")
    for stem in ("a", "bb"):
        sample(root, stem, 0, 255, mode="L")
    assert any("only 255 besides 0, and it is ignored; is it the class?" in note for note in check_data(root).notes)
