"""Each layout is detected from its folders and read as its authors define it; errors name the file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import ArrayLike
from PIL import Image

from foveal.data.check import check_data
from foveal.data.labels import ADE20K, CAMVID, CITYSCAPES
from foveal.data.segmentation import SegmentationData
from foveal.errors import ConfigError, DataError
from helpers.masks import SIZE, describe, mask, only, picture

# ---- Cityscapes


def cityscapes(root: Path, kind: str, *rows: ArrayLike, split: str = "train") -> None:
    picture(root / "leftImg8bit" / split / "ulm" / "ulm_0_0_leftImg8bit.png")
    folder = root / "gtFine" / split / "ulm"
    mask(folder / f"ulm_0_0_gtFine_{kind}.png", *rows)
    mask(folder / "ulm_0_0_gtFine_instanceIds.png", 200)  # the real data set has these files next to the ids
    mask(folder / "ulm_0_0_gtFine_color.png", (1, 2, 3))


def test_cityscapes_label_ids_become_training_ids(tmp_path: Path) -> None:
    """Of all 34 ids, the published 19 are classes; the others and 255 (-1, a licence plate) are ignored."""
    published = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    ids = [*range(34), 255, 255, 255, 255, 255, 255]
    cityscapes(tmp_path, "labelIds", *np.array(ids).reshape(5, 8))
    result = only(tmp_path)
    expected = [published.index(i) if i in published else 255 for i in ids]
    assert result[:5].ravel().tolist() == expected
    data = SegmentationData.open(tmp_path, ["train"])
    assert (data.layout, data.labels) == ("cityscapes", CITYSCAPES)


def test_cityscapes_training_ids_are_taken_as_they_are(tmp_path: Path) -> None:
    cityscapes(tmp_path, "labelTrainIds", 0, 18, 255)
    assert only(tmp_path)[:, 0].tolist() == [0, 18, 255, 255, 255, 255]


def test_cityscapes_unknown_ids_and_missing_files(tmp_path: Path) -> None:
    cityscapes(tmp_path, "labelIds", 7, 34)
    with pytest.raises(DataError, match=r"ulm_0_0_gtFine_labelIds\.png: id 34 \(40 pixels\), but there are 19 classes"):
        only(tmp_path)
    picture(tmp_path / "leftImg8bit" / "train" / "bonn" / "bonn_0_0_leftImg8bit.png")
    with pytest.raises(DataError, match=r"bonn_0_0_leftImg8bit\.png: has no mask"):
        SegmentationData.open(tmp_path, ["train"])


# ---- ADE20K


def test_ade20k_shifts_ids_by_one(tmp_path: Path) -> None:
    root = tmp_path / "ADEChallengeData2016"
    for split, stem in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        picture(root / "images" / split / f"{stem}.jpg")
        mask(root / "annotations" / split / f"{stem}.png", 0, 1, 150)
    assert only(root, "train")[:, 0].tolist() == [255, 0, 149, 149, 149, 149]
    data = SegmentationData.open(root, ["val"])
    assert (data.layout, data.labels) == ("ade20k", ADE20K)
    assert (len(set(ADE20K.names)), ADE20K.names[0], ADE20K.names[12], ADE20K.names[149]) == (
        150, "wall", "person", "flag",
    )  # fmt: skip
    mask(root / "annotations" / "training" / "ADE_train_00000001.png", 151)
    with pytest.raises(DataError, match=r"id 151 \(48 pixels\), but there are 150 classes"):
        only(root, "train")


# ---- folders


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images/train", "masks/train"),
        ("images/train", "annotations/train"),
        ("images/train", "labels/train"),
        ("img/train", "gt/train"),
        ("train/images", "train/masks"),
        ("train", "train_labels"),
        ("images/train/deep", "masks/train/deep"),
    ],
)
@pytest.mark.parametrize("ending", ["", "_mask"])
def test_usual_folders(tmp_path: Path, images: str, masks: str, ending: str) -> None:
    picture(tmp_path / images / "a.jpg")
    mask(tmp_path / masks / f"a{ending}.png", 0, 1, 255)
    with pytest.raises(
        DataError, match=r"the masks have ids without class names; .*\(ids in the first 1 masks: 0, 1, 255"
    ):
        SegmentationData.open(tmp_path, ["train"])
    describe(tmp_path, names=["a", "b"])
    assert only(tmp_path)[:, 0].tolist() == [0, 1, 255, 255, 255, 255]
    assert SegmentationData.open(tmp_path, ["train"]).layout == "folders"


def test_text_labels_are_no_masks(tmp_path: Path) -> None:
    """Text files of boxes in labels/ do not compete with the masks in masks/."""
    picture(tmp_path / "images" / "train" / "a.jpg")
    mask(tmp_path / "masks" / "train" / "a.png", 1)
    (tmp_path / "labels" / "train").mkdir(parents=True)
    (tmp_path / "labels" / "train" / "a.txt").write_text("0 0.5 0.5 1 1")
    describe(tmp_path, names=["a", "b"])
    assert (only(tmp_path) == 1).all()
    mask(tmp_path / "labels" / "train" / "a.png", 0)
    with pytest.raises(DataError, match=r"masks of 'train' in .*: keep one of them"):
        only(tmp_path)


def test_flat_folders_draw_their_splits(tmp_path: Path) -> None:
    for index in range(20):
        picture(tmp_path / "images" / f"{index}.jpg")
        mask(tmp_path / "masks" / f"{index}.png", 1)
    describe(tmp_path, names=["a", "b"])
    assert len(SegmentationData.open(tmp_path, ["all"])) == 20
    with pytest.raises(DataError, match=r"no split 'train' .*'val_share: 0.1' into dataset.yaml"):
        SegmentationData.open(tmp_path, ["train"])
    describe(tmp_path, names=["a", "b"], val_share=0.25)
    train, val = (SegmentationData.open(tmp_path, [split]).pairs for split in ("train", "val"))
    assert (len(train), len(val), len({*train, *val})) == (15, 5, 20)
    describe(tmp_path, names=["a", "b"], val_share=0.25, seed=1)
    assert SegmentationData.open(tmp_path, ["val"]).pairs != val


def test_two_layouts_in_one_folder_need_a_name(tmp_path: Path) -> None:
    picture(tmp_path / "train" / "a.jpg")
    mask(tmp_path / "trainannot" / "a.png", 3)
    picture(tmp_path / "images" / "train" / "a.jpg")
    mask(tmp_path / "masks" / "train" / "a.png", 1)
    with pytest.raises(DataError, match=r"fits the layouts camvid and folders; name one in dataset\.yaml"):
        only(tmp_path)
    describe(tmp_path, layout="camvid")
    assert (only(tmp_path) == 3).all()
    describe(tmp_path, layout="folders", names=["a", "b"])
    assert (only(tmp_path) == 1).all()
    describe(tmp_path, layout="cityscapes")
    with pytest.raises(DataError, match="its folders are not those of layout 'cityscapes'"):
        only(tmp_path)
    describe(tmp_path, layout="cityscape")
    with pytest.raises(DataError, match=r"unknown layout 'cityscape'; did you mean 'cityscapes'\?"):
        only(tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"no layout fits \(camvid, cityscapes, "):
        SegmentationData.open(tmp_path / "empty", ["train"])
    (tmp_path / "empty" / "mask.gif").write_bytes(b"GIF89a")
    with pytest.raises(DataError, match=r"; mask\.gif has an unsupported format: save images and masks as PNG"):
        SegmentationData.open(tmp_path / "empty", ["train"])


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    picture(tmp_path / "images" / "train" / "a.jpg")
    mask(tmp_path / "masks" / "train" / "a.png", 0, 1)
    describe(tmp_path, names=["a", "b"])
    return tmp_path


def test_unknown_ids_may_be_left_out(folders: Path) -> None:
    mask(folders / "masks" / "train" / "a.png", 0, 1, 7)
    with pytest.raises(DataError, match=r"a\.png: id 7 \(32 pixels\), but there are 2 classes; .*'unknown: ignore'"):
        only(folders)
    describe(folders, names=["a", "b"], unknown="ignore")
    assert only(folders)[:, 0].tolist() == [0, 1, 255, 255, 255, 255]


def test_wide_ids(folders: Path) -> None:
    """In 16-bit masks, ids above 255 do not wrap around to smaller ids."""
    wide = np.full(SIZE, 65535, np.uint16)
    wide[0], wide[1] = 257, 1
    Image.fromarray(wide).save(folders / "masks" / "train" / "a.png")
    with pytest.raises(DataError, match=r"id 257 \(8 pixels\), 65535 \(32 pixels\)"):
        only(folders)
    describe(folders, names=["a", "b"], ignore=[257, 65535])
    assert only(folders)[:3, 0].tolist() == [255, 1, 255]
    describe(folders, names=["a", "b"], ignore=[70000])
    with pytest.raises(ConfigError, match="ids are -1 to 65535"):
        only(folders)


def test_more_than_255_classes(folders: Path) -> None:
    """Masks of 16 bits: id 255 is a class, 65535 is ignored; in outlines and colours, too."""
    ids = np.full(SIZE, 65535, np.uint16)
    ids[0], ids[1], ids[2] = 299, 255, 1
    Image.fromarray(ids).save(folders / "masks" / "train" / "a.png")
    names = [f"class {i}" for i in range(300)]
    describe(folders, names=names)
    found = only(folders)
    assert (found.dtype, found[:4, 0].tolist()) == (np.uint16, [299, 255, 1, 65535])
    report = check_data(folders)
    assert (report.problems, report.splits[0].ignored) == ([], 3 * SIZE[1])
    assert report.splits[0].pixels[[1, 255, 299]].tolist() == [SIZE[1]] * 3
    describe(folders, names=names, ids=[*range(1, 300), 65535])
    assert only(folders)[:4, 0].tolist() == [298, 254, 0, 299]
    colours = [(i // 256, i % 256, 7) for i in range(300)]
    describe(folders, names=names, palette=[list(c) for c in colours], masks="colours", unknown="ignore")
    Image.fromarray(np.array(colours, np.uint8)[ids.clip(max=299)]).save(folders / "masks" / "train" / "a.png")
    assert only(folders)[:4, 0].tolist() == [299, 255, 1, 299]


def test_partners(folders: Path) -> None:
    picture(folders / "images" / "train" / "b.jpg")
    mask(folders / "masks" / "train" / "c.png", 0)
    with pytest.raises(DataError, match=r"train/b\.jpg: has no mask; .* \(and 1 more problems: foveal data check"):
        only(folders)
    (folders / "bad.txt").write_text("images/train/b.jpg\nmasks/train/c.png\n")
    describe(folders, names=["a", "b"], exclude="bad.txt")
    assert only(folders).shape == SIZE
    picture(folders / "images" / "train" / "a.png")
    with pytest.raises(DataError, match=r"a\.png: has the same stem as a\.jpg"):
        only(folders)
    describe(folders, names=["a", "b"], exclude="none.txt")
    with pytest.raises(DataError, match=r"'exclude' names none.txt, which cannot be read"):
        only(folders)


def test_lossy_masks_are_refused(folders: Path) -> None:
    (folders / "masks" / "train" / "a.png").unlink()
    mask(folders / "masks" / "train" / "a.jpg", 1)
    with pytest.raises(DataError, match=r"masks/train/a\.jpg: JPEG and WebP masks do not keep the ids"):
        only(folders)


def test_whole_void_is_allowed(folders: Path) -> None:
    mask(folders / "masks" / "train" / "a.png", 255)
    assert (only(folders) == 255).all()


# ---- colours


def test_colours_where_ids_are_expected_offer_the_palette(folders: Path) -> None:
    mask(folders / "masks" / "train" / "a.png", (0, 0, 0), (9, 8, 7))
    with pytest.raises(
        DataError,
        match=r"a\.png: a RGB image where .*\(9, 8, 7\) \(40 pixels\), \(0, 0, 0\) \(8 pixels\); .*'masks: colours'",
    ):
        only(folders)


def test_colours_become_classes(folders: Path) -> None:
    palette = [[0, 0, 0], [9, 8, 7]]
    mask(folders / "masks" / "train" / "a.png", (9, 8, 7), (0, 0, 0), (255, 255, 255))
    describe(folders, names=["a", "b"], palette=palette, masks="colours")
    with pytest.raises(DataError, match=r"a\.png: colour \(255, 255, 255\) \(32 pixels\) without a class"):
        only(folders)
    describe(folders, names=["a", "b"], palette=palette, masks="colours", ignore_colours=[[255, 255, 255]])
    assert only(folders)[:3, 0].tolist() == [1, 0, 255]
    describe(folders, names=["a", "b"], palette=palette, masks="colours", unknown="ignore")
    assert only(folders)[:3, 0].tolist() == [1, 0, 255]
    assert SegmentationData.open(folders, ["train"]).labels.palette == ((0, 0, 0), (9, 8, 7))


def test_black_and_white_masks(folders: Path) -> None:
    """With masks of colours, white is a class and not ignored."""
    mask(folders / "masks" / "train" / "a.png", 0, 255)
    describe(folders, names=["a", "b"], palette=[[0, 0, 0], [255, 255, 255]], masks="colours")
    assert only(folders)[:2, 0].tolist() == [0, 1]


@pytest.mark.parametrize(
    ("names", "ids", "rows", "classes"),
    [
        (["a", "b"], [0, 255], [0, 255, 255], [0, 1, 1]),
        (["a", "b", "c"], [255, 128, 0], [0, 128, 255], [2, 1, 0]),
        (["a", "b"], [3, 7], [3, 7, 255], [0, 1, 255]),
    ],
)
def test_ids_of_the_names(folders: Path, names: list[str], ids: list[int], rows: list[int], classes: list[int]) -> None:
    mask(folders / "masks" / "train" / "a.png", *rows)
    describe(folders, names=names, ids=ids)
    assert only(folders)[:3, 0].tolist() == classes


def test_ids_without_a_name(folders: Path) -> None:
    mask(folders / "masks" / "train" / "a.png", 0, 128, 255)
    with pytest.raises(DataError, match=r"id 128 \(8 pixels\), but there are 2 classes; .* give the id of each"):
        only(folders)
    describe(folders, names=["a", "b"], ids=[0, 128], ignore=[])
    with pytest.raises(DataError, match=r"id 255 \(32 pixels\), but there are 2 classes"):
        only(folders)


@pytest.mark.parametrize(
    ("keys", "error", "message"),
    [
        ({"names": ["a", "b"], "ids": [1]}, ConfigError, "2 names but 1 ids; give one id per name"),
        ({"names": ["a", "b"], "ids": [1, 1]}, ConfigError, "ids: give different numbers from 0 to 65535"),
        ({"names": ["a", "b"], "ids": [-1, 1]}, ConfigError, "ids: give different numbers from 0 to 65535"),
        (
            {"names": ["a", "b"], "ids": [0, 1], "masks": "colours", "palette": [[0, 0, 0], [1, 1, 1]]},
            ConfigError,
            "'ids' is for masks of ids",
        ),
        ({"masks": "colours", "names": ["a", "b"]}, DataError, "'masks: colours' needs 'palette' and 'names'"),
        ({"masks": "colors"}, ConfigError, r"did you mean 'colours'\?"),
        ({"masks": "colours", "names": ["a", "b"], "palette": [[0, 0, 0]] * 2}, ConfigError, "two classes share"),
        ({"val_share": 1.0}, ConfigError, "val_share=1.0 is out of range"),
    ],
)
def test_impossible_descriptions(folders: Path, keys: dict, error: type[Exception], message: str) -> None:
    describe(folders, **keys)
    with pytest.raises(error, match=message):
        only(folders)


def test_camvid_in_colours(tmp_path: Path) -> None:
    """The palette of the layout is used if dataset.yaml has none."""
    picture(tmp_path / "train" / "a.png")
    mask(tmp_path / "trainannot" / "a.png", CAMVID.palette[3], (0, 0, 0))
    with pytest.raises(DataError, match="the classes then follow from its palette"):
        only(tmp_path)
    describe(tmp_path, masks="colours", ignore_colours=[[0, 0, 0]])
    assert only(tmp_path)[:2, 0].tolist() == [3, 255]
