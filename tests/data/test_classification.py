"""Class folders are read; folders that only look like classes are refused with their names."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.data.classification import ClassificationData
from foveal.errors import DataError


def put(path: Path, colour: object = "red", mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (6, 4), colour).save(path)  # pyright: ignore[reportArgumentType]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    for split, count in (("train", 3), ("val", 1)):
        for name in ("dog", "cat"):
            for index in range(count):
                put(tmp_path / split / name / f"{index}.jpg")
    return tmp_path


def test_splits_of_classes(tree: Path) -> None:
    put(tree / "train" / "bird" / "0.png", (0, 0, 255))
    train, val = ClassificationData.open(tree, ["train"]), ClassificationData.open(tree, ["val"])
    assert train.labels == val.labels  # a class without images in val keeps its index
    assert train.labels.names == ("bird", "cat", "dog")
    assert [label for _, label in train.files] == [0, 1, 1, 1, 2, 2, 2]
    image, label = train[0]
    assert (image.shape, image.dtype, label) == ((4, 6, 3), np.uint8, 0)
    assert (image == (0, 0, 255)).all()
    assert len(ClassificationData.open(tree, ["train", "val"])) == 9


def test_synonyms_of_splits(tree: Path) -> None:
    (tree / "val").rename(tree / "validation")
    assert len(ClassificationData.open(tree, ["val"])) == 2
    with pytest.raises(DataError, match=r"no split 'trian' .*; did you mean 'train'\?"):
        ClassificationData.open(tree, ["trian"])


def test_names_give_the_order(tree: Path) -> None:
    (tree / "dataset.yaml").write_text("names: [dog, cat]")
    data = ClassificationData.open(tree, ["train"])
    assert data.labels.names == ("dog", "cat")
    assert data.files[0] == (tree / "train" / "dog" / "0.jpg", 0)
    (tree / "dataset.yaml").write_text("names: [dog]")
    with pytest.raises(DataError, match=r"folders without a class in dataset.yaml, first: cat"):
        ClassificationData.open(tree, ["train"])
    (tree / "dataset.yaml").write_text("names: [dog, cat, cow]")
    with pytest.raises(DataError, match=r"classes of dataset.yaml without a folder, first: cow"):
        ClassificationData.open(tree, ["train"])


def test_flat_classes_draw_their_splits(tmp_path: Path) -> None:
    """Each class gives its share to val; the draw depends on the seed alone, and no image is lost."""
    for name, count in (("cat", 10), ("dog", 20)):
        for index in range(count):
            put(tmp_path / name / f"{index}.jpg")
    assert len(ClassificationData.open(tmp_path, ["all"])) == 30
    with pytest.raises(DataError, match=r"no split 'train' .*'val_share: 0.1' into dataset.yaml"):
        ClassificationData.open(tmp_path, ["train"])
    (tmp_path / "dataset.yaml").write_text("val_share: 0.2")
    train, val = (ClassificationData.open(tmp_path, [split]) for split in ("train", "val"))
    assert [label for _, label in val.files] == [0] * 2 + [1] * 4
    assert not set(train.files) & set(val.files)
    assert len(train) + len(val) == 30
    assert ClassificationData.open(tmp_path, ["val"]) == val
    (tmp_path / "dataset.yaml").write_text("val_share: 0.2\nseed: 1")
    assert ClassificationData.open(tmp_path, ["val"]).files != val.files


@pytest.mark.parametrize("folders", [("images", "masks"), ("train", "trainannot"), ("Images", "other")])
def test_folders_of_masks_are_no_classes(tmp_path: Path, folders: tuple[str, str]) -> None:
    for name in folders:
        put(tmp_path / name / "0.png")
    with pytest.raises(DataError, match=r"not like a class; .*'layout: classes' into dataset.yaml"):
        ClassificationData.open(tmp_path, ["all"])
    (tmp_path / "dataset.yaml").write_text("layout: classes")
    assert ClassificationData.open(tmp_path, ["all"]).labels.names == tuple(sorted(folders))


def test_masks_under_any_name_are_no_class(tree: Path) -> None:
    """Index images with the stems of colour images in another folder are masks, whatever the folder is called."""
    for index in range(3):
        put(tree / "train" / "truth" / f"{index}.png", 1, "L")
    with pytest.raises(DataError, match=r"train/truth: seems to contain one mask for each image of '(cat|dog)'"):
        ClassificationData.open(tree, ["train"])


def test_grey_classes_with_equal_stems_are_classes(tmp_path: Path) -> None:
    """Images of digits are often grey and numbered from 0 in every class."""
    for name in ("0", "1"):
        put(tmp_path / name / "0.png", 1, "L")
    assert ClassificationData.open(tmp_path, ["all"]).labels.names == ("0", "1")


@pytest.mark.parametrize("inner", ["masks", "deep/masks"])
def test_folders_inside_a_class_are_refused(tree: Path, inner: str) -> None:
    put(tree / "train" / "cat" / inner / "0.png", 1, "L")
    with pytest.raises(DataError, match=r"a folder of images inside the class folder 'cat'"):
        ClassificationData.open(tree, ["train"])


def test_empty_and_broken(tree: Path, tmp_path: Path) -> None:
    (tree / "train" / "cat" / "0.jpg").write_bytes(b"\xff\xd8 broken")
    with pytest.raises(DataError, match=r"cat/0\.jpg"):
        ClassificationData.open(tree, ["train"])[0]
    (tree / "bad.txt").write_text("train/cat/0.jpg\n")
    (tree / "dataset.yaml").write_text("exclude: bad.txt")
    assert len(ClassificationData.open(tree, ["train"])) == 5
    (tree / "dataset.yaml").write_text("layout: folders")
    with pytest.raises(DataError, match="layout 'folders' is not for classification"):
        ClassificationData.open(tree, ["train"])
    (tree / "dataset.yaml").unlink()
    with pytest.raises(DataError, match="no such folder"):
        ClassificationData.open(tree / "none", ["train"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no folders of images"):
        ClassificationData.open(tmp_path / "empty", ["train"])
    (tree / "test").mkdir()
    with pytest.raises(DataError, match="no images in test"):
        ClassificationData.open(tree, ["test"])
