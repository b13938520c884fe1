"""Data sets of every layout that is read, and what training does with one."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import foveal
from foveal.data.check import check_data
from foveal.data.labelled import LabelledTask, open_labelled
from foveal.data.synthetic import NAMES, write_shapes
from foveal.images.exr import write_exr

from .sample import MASK, PHOTO

LABELLED: tuple[LabelledTask, ...] = ("segment", "classify", "regress")


def write_maps(folder: Path) -> None:
    """Each split has depths in another format: integers with a scale, or floating-point values."""
    (folder / "dataset.yaml").write_text("target: {kind: depth, unit: m, scale: 0.001, invalid: 0}")
    steps = np.random.default_rng(0).integers(0, 5000, (40, 56), np.uint16)
    values = np.where(steps, steps / 1000, np.nan).astype(np.float32)
    for suffix in ("png", "tif", "npy", "exr"):
        for kind in ("images", "depth", "valid"):
            (folder / suffix / kind).mkdir(parents=True)
        Image.fromarray(PHOTO).save(folder / suffix / "images" / "a.jpg")
        Image.fromarray((steps > 0).astype(np.uint8)).save(folder / suffix / "valid" / "a.png")
        path = folder / suffix / "depth" / f"a.{suffix}"
        if suffix == "npy":
            np.save(path, values)
        elif suffix == "exr":
            write_exr(path, values[..., None])
        else:
            Image.fromarray(steps if suffix == "png" else values).save(path)


def write_pairs(folder: Path) -> None:
    write_shapes(folder, train=2, val=1, size=(32, 32))


def write_coco(folder: Path) -> None:
    (folder / "annotations").mkdir()
    for split in ("train", "val"):
        (folder / split).mkdir()
        Image.fromarray(PHOTO).save(folder / split / "a.jpg")
        polygon = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[3, 3, 30, 3, 30, 20]], "iscrowd": 0}
        runs = {"size": [40, 56], "counts": [100, 40, 2100]}
        crowd = {"id": 2, "image_id": 1, "category_id": 2, "segmentation": runs, "iscrowd": 1}
        content = {
            "images": [{"id": 1, "file_name": "a.jpg", "width": 56, "height": 40}],
            "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
            "annotations": [polygon, crowd],
        }
        (folder / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))


def write_yolo(folder: Path) -> None:
    for split in ("train", "val"):
        for kind in ("images", "labels"):
            (folder / kind / split).mkdir(parents=True)
        Image.fromarray(PHOTO).save(folder / "images" / split / "0.jpg")
        (folder / "labels" / split / "0.txt").write_text("0 0.1 0.1 0.5 0.1 0.5 0.5 0.1 0.5\n")
    (folder / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")


def write_voc(folder: Path) -> None:
    for name in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (folder / name).mkdir(parents=True)
    for name, split in (("one", "train"), ("two", "val")):
        Image.fromarray(PHOTO).save(folder / "JPEGImages" / f"{name}.jpg")
        mask = Image.fromarray(np.minimum(MASK, 1))
        mask.putpalette([0, 0, 0, 128, 0, 0])
        mask.save(folder / "SegmentationClass" / f"{name}.png")
        (folder / "ImageSets/Segmentation" / f"{split}.txt").write_text(f"{name}\n")
    (folder / "labelmap.txt").write_text("# label:color_rgb:parts:actions\nbackground:0,0,0::\ncat:128,0,0::\n")


def write_labelme(folder: Path) -> None:
    for name in ("a", "b"):
        Image.fromarray(PHOTO).save(folder / f"{name}.jpg")
        shape = {"label": "cat", "points": [[3, 3], [30, 3], [30, 20]], "shape_type": "polygon", "group_id": None}
        content = {"version": "5.4.1", "flags": {}, "shapes": [shape], "imagePath": f"{name}.jpg", "imageData": None}
        (folder / f"{name}.json").write_text(json.dumps({**content, "imageHeight": 40, "imageWidth": 56}))


def write_supervisely(folder: Path) -> None:
    part = io.BytesIO()
    Image.fromarray(np.full((5, 6), 255, np.uint8)).save(part, "PNG")
    packed = base64.b64encode(zlib.compress(part.getvalue())).decode()
    square = {"exterior": [[3, 3], [30, 3], [30, 20], [3, 20]], "interior": [[[5, 5], [9, 5], [9, 9]]]}
    objects = [
        {"classTitle": "cat", "geometryType": "polygon", "points": square},
        {"classTitle": "dog", "geometryType": "bitmap", "bitmap": {"data": packed, "origin": [8, 4]}},
    ]
    classes = [{"title": "cat", "color": "#FF0000"}, {"title": "dog", "color": "#00FF00"}]
    (folder / "meta.json").write_text(json.dumps({"classes": classes}))
    for split in ("train", "val"):
        for kind in ("img", "ann"):
            (folder / split / kind).mkdir(parents=True)
        Image.fromarray(PHOTO).save(folder / split / "img" / "a.jpg")
        content = {"size": {"height": 40, "width": 56}, "objects": objects}
        (folder / split / "ann" / "a.jpg.json").write_text(json.dumps(content))


def write_label_studio(folder: Path) -> None:
    # Four values of 56 x 40 pixels, in words of 8 bits, as one run of 255: the header, then the run.
    bits = f"{4 * 40 * 56:032b}{7:05b}" + "".join(f"{size - 1:04b}" for size in (3, 4, 8, 16))
    bits += f"111{4 * 40 * 56 - 1:016b}{255:08b}"
    bits += "0" * (-len(bits) % 8)
    rle = [int(bits[i : i + 8], 2) for i in range(0, len(bits), 8)]
    values: dict[str, dict[str, Any]] = {
        "brushlabels": {"format": "rle", "rle": rle},
        "polygonlabels": {"points": [[10, 10], [60, 10], [60, 60]]},
        "rectanglelabels": {"x": 10, "y": 20, "width": 30, "height": 40, "rotation": 5},
        "ellipselabels": {"x": 50, "y": 50, "radiusX": 20, "radiusY": 10, "rotation": 0},
    }
    size = {"original_height": 40, "original_width": 56, "image_rotation": 0}
    results = [{**size, "id": kind, "type": kind, "value": {**v, kind: [kind]}} for kind, v in values.items()]
    Image.fromarray(PHOTO).save(folder / "a.jpg")
    tasks = [{"id": 1, "data": {"image": "/data/upload/1/01234567-a.jpg"}, "annotations": [{"result": results}]}]
    (folder / "project-1.json").write_text(json.dumps(tasks))


def write_roboflow(folder: Path) -> None:
    for split in ("train", "valid"):
        (folder / split).mkdir()
        Image.fromarray(PHOTO).save(folder / split / "a.jpg")
        Image.fromarray(MASK).save(folder / split / "a_mask.png")
        rows = [f"{number}, {name}" for number, name in enumerate(NAMES)]
        (folder / split / "_classes.csv").write_text("\n".join(["Pixel Value, Class", *rows]))


def write_cityscapes(folder: Path) -> None:
    for kind in ("leftImg8bit", "gtFine"):
        (folder / kind / "train" / "ulm").mkdir(parents=True)
    Image.fromarray(PHOTO).save(folder / "leftImg8bit" / "train" / "ulm" / "a_leftImg8bit.png")
    objects = [{"label": name, "polygon": [[1, 1], [40, 2], [30, 30]]} for name in ("road", "cargroup", "static")]
    content = {"imgHeight": 40, "imgWidth": 56, "objects": objects}
    (folder / "gtFine" / "train" / "ulm" / "a_gtFine_polygons.json").write_text(json.dumps(content))


def write_tars(folder: Path) -> None:
    pairs = folder / "pairs"
    write_shapes(pairs, train=2, val=1, size=(32, 32))
    for split in ("train", "val"):
        with tarfile.open(folder / f"{split}-000000.tar", "w") as archive:
            for image in sorted((pairs / split).iterdir()):
                archive.add(image, f"{image.stem}.png")
                archive.add(pairs / f"{split}annot" / image.name, f"{image.stem}.mask.png")
    (pairs / "dataset.yaml").rename(folder / "dataset.yaml")
    for path in sorted(pairs.rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    pairs.rmdir()


def write_classes(folder: Path) -> None:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            Image.fromarray(PHOTO).save(folder / split / name / "0.png")


def use_data(folder: Path) -> None:
    """Check a data set; where the check finds no problem, read all of it as training does."""
    report = check_data(folder)
    task: LabelledTask | None = next((name for name in LABELLED if name in report.tasks), None)
    if report.problems or task is None:
        return
    for split in report.splits:
        try:
            data = open_labelled(folder, [split.name], task)
            for index in range(len(data)):
                data[index]
        except foveal.FovealError as error:
            raise AssertionError(f"the check found no problem, but {task} cannot read {split.name}: {error}") from error
