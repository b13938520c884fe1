"""Images are found through links, once each, and what is left out is counted and named."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest
from PIL import Image

from foveal.data.check import check_data
from foveal.data.unlabelled import UnlabelledData
from foveal.errors import InputError
from foveal.images.folders import has_images, images_below, list_images
from helpers.commands import Command


def picture(path: Path, colour: str = "red") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 6), colour).save(path, "JPEG")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, one folder behind two links, two links that lead back, a broken link, other files."""
    inside = tmp_path / "in"
    for name in ("a.JFIF", "deep/b.jpe", ".hidden/c.jpg"):
        picture(inside / name)
    picture(tmp_path / "store" / "d.jpg")
    for link, target in (("more", "../store"), ("again", "../store"), ("deep/loop", ".."), ("root", "/")):
        os.symlink(target, inside / link)
    os.symlink("nowhere.jpg", inside / "broken.jpg")
    os.mkfifo(inside / "pipe.png")
    (inside / "e.heic").write_bytes(b"")
    return inside


def test_links_are_followed_once(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        found = list_images(folder)
    assert [path.relative_to(folder).as_posix() for path in found] == ["a.JFIF", "again/d.jpg", "deep/b.jpe"]
    assert found == images_below(folder)
    (text,) = caplog.messages
    assert text.startswith(
        f"{folder}: 6 files are left out: broken.jpg (a broken link), deep/loop (a link to a folder "
    )
    assert "pipe.png (not a regular file)" in text
    assert text.endswith(", ...")  # e.heic is the sixth
    assert len(UnlabelledData.open(folder, ["all"])) == 3


def test_folders_of_links_alone(tmp_path: Path) -> None:
    picture(tmp_path / "store" / "x" / "a.jpg")
    (tmp_path / "in").mkdir()
    assert (images_below(tmp_path / "none"), has_images(tmp_path / "none")) == ([], False)
    os.symlink("gone", tmp_path / "in" / "gone")
    with pytest.raises(InputError, match=r"no images .* in this folder: 1 file is left out: gone \(a broken link\)"):
        list_images(tmp_path / "in")
    os.symlink("../store", tmp_path / "in" / "link")
    assert has_images(tmp_path / "in")


def test_commands_name_what_they_leave_out(
    folder: Path, tmp_path: Path, cli: Command, caplog: pytest.LogCaptureFixture
) -> None:
    ended = cli("upscale", folder, "--out", tmp_path / "out")
    assert ended.returncode == 0
    assert "3 of 3 images" in ended.stdout
    assert "6 files are left out: broken.jpg (a broken link)" in caplog.text


def test_data_check_names_what_no_sample_uses(tmp_path: Path) -> None:
    for path, colour in (("train/cat", "red"), ("train/dog", "blue"), ("val/cat", "green"), ("val/dog", "white")):
        picture(tmp_path / path / "1.jfif", colour)
    assert check_data(tmp_path).notes == []
    picture(tmp_path / "stray.jpg")
    (tmp_path / "train" / "cat" / "x.heic").write_bytes(b"")
    (tmp_path / "README.md").write_text("")
    assert check_data(tmp_path).notes == ["2 files are left out: stray.jpg, train/cat/x.heic"]
