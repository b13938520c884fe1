"""Results of earlier runs below a folder of images are left out and counted; files named one by one are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.batch.inputs import Search
from foveal.batch.manifest import Job, Manifest
from foveal.commands.earlier_results import leave_out
from foveal.commands.outputs import OVERLAY, Request, list_jobs
from foveal.images.colours import palette_of
from foveal.images.palettes import has_palette
from foveal.images.tiff_writing import TiffImage, write_tiff
from helpers.commands import Command

COLOURS = ((0, 0, 0), (200, 10, 10), (10, 200, 10))
FAST = ("--model", "efficientvit_b0.camvid", "--runtime", "onnxruntime")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two photographs."""
    monkeypatch.chdir(tmp_path)
    for name in ("a.png", "sub/b.jpg"):
        Path(name).parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 48, 3), np.uint8)).save(name)
    return tmp_path


def write_palette(path: Path, colours: tuple[tuple[int, int, int], ...] = COLOURS) -> Path:
    """A PNG or TIFF of class indices with a palette."""
    path.parent.mkdir(exist_ok=True)
    indices = np.arange(24, dtype=np.uint8).reshape(4, 6) % len(colours)
    if path.suffix == ".tif":
        write_tiff(path, TiffImage(4, 6, 1, palette=colours), [indices[..., None]])
    else:
        picture = Image.fromarray(indices)
        picture.putpalette(np.asarray(colours, np.uint8).ravel().tolist())
        picture.save(path)
    return path


def test_masks_of_an_earlier_run_are_no_photographs(cli: Command) -> None:
    """Masks, overlays next to them, and TIFFs as --exact writes them."""
    assert cli("segment", ".", *FAST, "--out", "masks", "--overlay").returncode == 0
    write_palette(Path("exact.tif"), palette_of(foveal.load("efficientvit_b0.camvid").info.labels, 11))
    again = cli("segment", ".", *FAST)
    assert again.returncode == 0
    written = sorted(path.relative_to("foveal-out").as_posix() for path in Path("foveal-out").rglob("*.*"))
    assert written == ["a.png", "sub/b.png"]
    assert again.stderr.splitlines()[0] == (
        "5 images are left out, as masks of earlier runs, in the colours of this model's classes: exact.tif, ..."
    )
    named = cli("segment", "masks/a.png", *FAST, "--out", "named.png")
    assert named.returncode == 0, named.stderr


def test_results_of_batch(capsys: pytest.CaptureFixture[str]) -> None:
    """They are known by the manifest in their folder, unless this folder is what is asked for."""
    Manifest.open("results", Job("sub", "efficientvit_b0.camvid", "", "masks", {}), Search("sub", "results"))
    Image.new("RGB", (8, 8)).save("results/b.jpg.png")
    jobs = list_jobs([Path()], Path("out"))
    assert sorted(str(job.source) for job in jobs) == ["a.png", "sub/b.jpg"]
    assert capsys.readouterr().err == "1 image is left out, as results of foveal batch: results/b.jpg.png\n"
    assert [job.source for job in list_jobs([Path("results")], Path("out"))] == [Path("results/b.jpg.png")]


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_a_palette_is_known_by_all_of_its_colours(name: str) -> None:
    path = write_palette(Path(name))
    assert has_palette(path, COLOURS)
    assert not has_palette(path, COLOURS[:2])
    assert not has_palette(path, (*COLOURS, (1, 2, 3)))
    assert not has_palette(path, (*COLOURS[:2], (10, 200, 11)))
    greys = ((0, 0, 0), (255, 255, 255))
    assert not has_palette(write_palette(Path(name), greys), greys)  # as scanners write pages


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"text", b"\x89PNG\r\n\x1a\n", b"II*\0", b"MM\0*\xff\xff\xff\xff"),
        b"II+\0\x08\0\0\0" + b"\xff" * 8,  # the first page is where no file has a byte
    ],
)
def test_damaged_files_have_no_palette(content: bytes) -> None:
    for name in ("x.png", "x.tif", "x.jpg"):
        Path(name).write_bytes(content)
        assert not has_palette(Path(name), COLOURS)
    assert not has_palette(Path("nowhere.png"), COLOURS)


@pytest.mark.parametrize("name", ["x.png", "x.tif"])
def test_truncated_files_have_no_palette(name: str) -> None:
    path = write_palette(Path(name))
    whole = path.read_bytes()
    end = whole.index(b"PLTE") + 12 if name == "x.png" else 300  # in the middle of the palette, of the tags
    for length in range(0, end, 5):
        path.write_bytes(whole[:length])
        assert not has_palette(path, COLOURS)


def test_files_with_other_suffixes_are_not_opened(monkeypatch: pytest.MonkeyPatch) -> None:
    photo = write_palette(Path("x.tif")).rename("x.jpg")
    monkeypatch.setattr(Path, "open", lambda *_: pytest.fail("it was opened"))
    assert not has_palette(photo, COLOURS)


def test_masks_in_other_colours_are_images(capsys: pytest.CaptureFixture[str]) -> None:
    write_palette(Path("masks/a.png"))
    other = (*COLOURS[:2], (9, 9, 200))
    sources = [(Path("masks/a.png"), Path()), (Path("masks/a.overlay.jpg"), Path())]
    assert leave_out(sources, Path("out"), other, OVERLAY) == sources
    assert leave_out(sources, Path("out"), (), OVERLAY) == sources
    assert capsys.readouterr().err == ""
    assert leave_out(sources, Path("out"), COLOURS, OVERLAY) == []
    assert "2 images are left out" in capsys.readouterr().err


def test_a_mask_next_to_its_image_is_its_result(capsys: pytest.CaptureFixture[str]) -> None:
    """Results in the folder of the images are done before, and not images of their own."""
    write_palette(Path("sub/b.png"))
    plan = Request([Path("sub")], Path("sub"), resume=True).plan(palette=COLOURS)
    assert (plan.jobs, [job.source for job in plan.finished]) == ([], [Path("sub/b.jpg")])
    assert capsys.readouterr().err.endswith("of this model's classes: sub/b.png\n")
