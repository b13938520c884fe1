"""Lists and patterns of others cost little time and memory; masks that are no masks say what to do."""

from __future__ import annotations

import os
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.data.check import check_data
from foveal.data.layout import describe
from foveal.data.masks import IdMasks, plain_ids
from foveal.data.shards import find_shards
from foveal.errors import ConfigError, DataError


@pytest.mark.parametrize("name", ["/dev/zero", "folder", "pipe", "large", "a\0b"])
def test_lists_of_excluded_files(tmp_path: Path, name: str) -> None:
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with (tmp_path / "large").open("wb") as file:
        file.truncate(1 << 40)  # takes no space
    (tmp_path / "dataset.yaml").write_text(f'exclude: "{name}"'.replace("\0", "\\0"))
    with pytest.raises(DataError, match=r"'exclude' names .*, which cannot be read"):
        describe(tmp_path).excluded(tmp_path)


def test_a_description_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "dataset.yaml")
    with pytest.raises(ConfigError, match="not a regular file"):
        describe(tmp_path)


def test_patterns_that_expand_without_end(tmp_path: Path) -> None:
    start = time.process_time()
    for pattern in ("{0..999999}{0..999999}.tar", "{0..999}{0..999}{0..999}.tar", "{5..1}.tar"):
        with pytest.raises(DataError, match="is no rising range of at most"):
            find_shards(str(tmp_path / pattern))
    assert time.process_time() - start < 5


@pytest.mark.parametrize(
    ("name", "pixels", "message"),
    [
        ("a.tif", np.zeros((4, 4), np.float32), "a F image where .*; save the ids as PNG of 8 or 16 bits"),
        ("a.png", np.ones((4, 4, 3), np.uint8), r"a RGB image .* \(if its equal channels are ids: save one of them\)"),
        ("a.png", np.full((4, 4), 9, np.uint8), r"id 9 \(16 pixels\), but there are 2 classes"),
    ],
)
def test_masks_that_are_none(tmp_path: Path, name: str, pixels: np.ndarray, message: str) -> None:
    Image.fromarray(pixels).save(tmp_path / name)
    with pytest.raises(DataError, match=message):
        IdMasks(plain_ids(2), 2)(tmp_path / name, tmp_path / name)


def test_an_unpacked_archive_with_a_folder_of_its_own(tmp_path: Path) -> None:
    for kind, shape in (
        ("JPEGImages", (4, 4, 3)),
        ("SegmentationClass", (4, 4)),
    ):
        (tmp_path / "VOC2012" / kind).mkdir(parents=True)
        Image.fromarray(np.zeros(shape, np.uint8)).save(tmp_path / "VOC2012" / kind / "1.png")
    (problem,) = check_data(tmp_path).problems
    assert problem.error.endswith(f"; VOC2012 inside it has a layout: give {tmp_path / 'VOC2012'}")
