"""What Label Studio exports, by its documented format; test_exporters.py reads files of the tool itself."""

from __future__ import annotations

import itertools
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from foveal.data.check import check_data
from foveal.data.instances import InstanceData
from foveal.data.label_studio import brush_runs
from foveal.data.segmentation import SegmentationData
from foveal.errors import DataError
from foveal.images.regions import mask_of
from helpers.commands import Command
from helpers.tool_exports import SIZE, only_problem, photo, rectangle, write_json


def brush(mask: np.ndarray, sizes: tuple[int, ...] = (3, 4, 8, 16)) -> list[int]:
    """Pack a mask as Label Studio does (rle-pack): runs of equal values, and single values one by one."""
    values = np.repeat(mask.ravel().astype(np.uint8) * 255, 4)
    bits = f"{len(values):032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in sizes)
    edges = [0, *(np.flatnonzero(np.diff(values)) + 1).tolist(), len(values)]
    for start, end in itertools.pairwise(edges):
        while start < end:
            kind = next((k for k, size in enumerate(sizes) if end - start <= 1 << size), len(sizes) - 1)
            count = min(end - start, 1 << sizes[kind])
            literal = count < 6  # of different values in general; here they are equal
            bits += f"{int(not literal)}{kind:02b}{count - 1:0{sizes[kind]}b}"
            bits += "".join(f"{value:08b}" for value in values[start : start + (count if literal else 1)])
            start += count
    bits += "0" * (-len(bits) % 8)
    return [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]


@pytest.mark.parametrize("seed", range(4))
def test_brush_masks_are_unpacked(seed: int) -> None:
    rng = np.random.default_rng(seed)
    size = (int(rng.integers(1, 40)), int(rng.integers(1, 40)))
    mask = rng.random(size) < rng.random()
    assert np.array_equal(mask_of(brush_runs(brush(mask), size), size), mask)
    assert np.array_equal(mask_of(brush_runs(brush(mask, (1, 2, 5, 9)), size), size), mask)


def result(kind: str, label: str, **value: object) -> dict[str, Any]:
    return {
        "id": "r1", "type": kind, "original_width": SIZE[1], "original_height": SIZE[0], "image_rotation": 0,
        "value": {**value, kind: [label]},
    }  # fmt: skip


def task(image: str, *results: dict[str, Any], **more: object) -> dict[str, Any]:
    return {"id": 1, "data": {"image": image}, "annotations": [{"id": 2, "result": results, **more}]}


def label_studio(root: Path, *tasks: dict[str, Any]) -> Path:
    write_json(root / "project-1-at-2026-01-31.json", tasks)
    return root


def test_label_studio(tmp_path: Path) -> None:
    """Later results are in front of earlier ones; images are found with and without the prefix of an upload."""
    photo(tmp_path / "images" / "a.png")
    photo(tmp_path / "photos" / "b.png")
    outline = result("polygonlabels", "cat", points=[[10, 10], [50, 10], [50, 50], [10, 50]])
    mask = rectangle(10, 10, 30, 20)
    box = {"x": 75, "y": 50, "width": 20, "height": 20, "rotation": 0}
    first = task("/data/upload/1/0123abcd-a.png", outline, result("brushlabels", "dog", format="rle", rle=brush(mask)))
    second = task("/data/local-files/?d=photos/b.png", result("rectanglelabels", "cat", **box))
    label_studio(tmp_path, first, second)
    report = check_data(tmp_path)
    assert (report.layout, report.problems) == ("label_studio", [])
    data = SegmentationData.open(tmp_path, ["all"])
    assert (data.labels.names, [path.name for path, _ in data.pairs]) == (
        ("background", "cat", "dog"),
        ["a.png", "b.png"],
    )
    assert np.array_equal(data[0][1], np.where(mask, 2, rectangle(4, 3, 20, 15)))
    assert np.array_equal(data[1][1], rectangle(30, 15, 38, 21))
    assert len(InstanceData.open(tmp_path, ["all"])[0][1]) == 2


@pytest.mark.parametrize(
    ("images", "masks"),
    [
        ("images", "masks"),
        ("images/train", "masks/train"),
        ("train", "trainannot"),
        ("images", "."),
        (".", "."),
        ("", "."),
        ("images", "project-1-at-2026-01-31/png"),
    ],
)
@pytest.mark.parametrize("suffix", [".png", ".npy"])
def test_label_studio_masks_that_name_no_image(tmp_path: Path, images: str, masks: str, suffix: str) -> None:
    """Its exports "Brush labels to PNG" and "to NumPy" are refused; beside its JSON file, that file is read."""
    mask = rectangle(10, 10, 30, 20)
    if images:
        photo(tmp_path / images / "0123abcd-a.jpg")
    (tmp_path / masks).mkdir(parents=True, exist_ok=True)
    for number in range(2):
        file = tmp_path / masks / f"task-1-annotation-7-by-ann@x.org-brush-big dog-{number}{suffix}"
        np.save(file, mask) if suffix == ".npy" else Image.fromarray(mask.astype(np.uint8) * 255).save(file)
    kind = "NumPy" if suffix == ".npy" else "PNG"
    words = f"'task-1-annotation-7-by-ann@x.org-brush-big dog-0{suffix}' is of Label Studio's export 'Brush labels to"
    error = only_problem(tmp_path)
    assert f"{words} {kind}'" in error
    assert "choose the export 'JSON'" in error
    for opened in (SegmentationData, InstanceData):
        with pytest.raises(DataError, match=re.escape(words)):
            opened.open(tmp_path, ["train"])
    if images in ("images", "."):  # where the images of that export are looked for
        results = task("/data/upload/1/0123abcd-a.jpg", result("brushlabels", "dog", format="rle", rle=brush(mask)))
        label_studio(tmp_path, results)
        data = SegmentationData.open(tmp_path, ["all"])
        assert (data.layout, np.array_equal(data[0][1], mask)) == ("label_studio", True)


def test_training_with_masks_that_name_no_image(tmp_path: Path, cli: Command) -> None:
    photo(tmp_path / "images" / "a.jpg")
    Image.fromarray(np.ones(SIZE, np.uint8)).save(tmp_path / "task-3-annotation-3-by-1-tag-tree-0.png")
    for arguments, code in ((["train", tmp_path, "--out", tmp_path / "run"], 2), (["data", "check", tmp_path], 1)):
        done = cli(*arguments)
        assert done.returncode == code
        assert "choose the export 'JSON'" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_masks_that_were_renamed_with_their_images(tmp_path: Path) -> None:
    """Where images have the names of such masks, the pairs are known."""
    name = "task-1-annotation-7-by-1-brush-cat-0"
    photo(tmp_path / "images" / f"{name}.jpg")
    (tmp_path / "masks").mkdir()
    Image.fromarray(rectangle(2, 3, 12, 13).astype(np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    (tmp_path / "dataset.yaml").write_text("names: [background, cat]")
    assert np.array_equal(SegmentationData.open(tmp_path, ["all"])[0][1], rectangle(2, 3, 12, 13))
    assert check_data(tmp_path).problems == []


def test_label_studio_turns_shapes(tmp_path: Path) -> None:
    """Rectangles turn around their upper left corner, ellipses around their middle, clockwise."""
    photo(tmp_path / "a.png")
    box = result("rectanglelabels", "cat", x=50, y=10, width=25, height=20, rotation=90)
    oval = result("ellipselabels", "dog", x=25, y=60, radiusX=20, radiusY=10, rotation=90)
    label_studio(tmp_path, task("a.png", box, oval))
    mask = SegmentationData.open(tmp_path, ["all"])[0][1]
    assert np.array_equal(mask == 1, rectangle(14, 3, 20, 13))  # 10 x 6 pixels, turned around (20, 3)
    rows, columns = np.nonzero(mask == 2)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (10, 25, 7, 12)  # radii of 8 and 3 around (10, 18)


def test_label_studio_chooses_annotations(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    photo(tmp_path / "b.png")
    wrong, right = (result("brushlabels", "cat", rle=brush(rectangle(x, 2, x + 4, 6))) for x in (2, 20))
    several = {"id": 1, "data": {"image": "a.png", "note": "http://[x"}, "annotations": []}
    several["annotations"] = [
        {"result": [wrong]}, {"result": [wrong], "was_cancelled": True}, {"result": [right], "ground_truth": True},
    ]  # fmt: skip
    cancelled = {"data": {"image": "b.png"}, "annotations": [{"result": [], "was_cancelled": True}]}
    label_studio(tmp_path, several, cancelled)
    data = SegmentationData.open(tmp_path, ["all"])
    assert data.notes == (
        "1 images have no annotation and are left out",
        "1 images have several annotations; the ground truth counts, else the first one",
    )
    assert np.array_equal(data[0][1], rectangle(20, 2, 24, 6))


SHORT = brush(rectangle(2, 2, 9, 9))


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"rle": SHORT[:20]}, "ends too early"),
        ({"rle": brush(np.ones((3, 3), bool))}, "a brush mask of 36 values, an image of 40x30 pixels"),
        ({"rle": [*SHORT[:4], 255, *SHORT[5:]]}, "a brush mask of 32 bits per value"),
        ({"rle": [1, 2, 999]}, "not a list of bytes"),
        ({"rle": "abc"}, "not a list of bytes"),
        ({"points": [[1, 2]]}, "three points or more"),
        ({}, "there is no 'width'"),
    ],
)
def test_label_studio_problems(tmp_path: Path, change: dict[str, Any], problem: str) -> None:
    photo(tmp_path / "a.png")
    label_studio(tmp_path, task("a.png", result("brushlabels", "cat", **change)))
    assert problem in only_problem(tmp_path)


def test_label_studio_files_that_are_missing_or_turned(tmp_path: Path) -> None:
    photo(tmp_path / "a.png")
    turned = {**result("brushlabels", "cat", rle=SHORT), "image_rotation": 90}
    label_studio(tmp_path, task("a.png", turned), task("/data/upload/1/gone.png"), task("../../etc/x.png"))
    errors = [problem.error for problem in check_data(tmp_path).problems]
    assert sum("is neither in" in error for error in errors) == 2
    assert any("rotated in Label Studio" in error for error in errors)
