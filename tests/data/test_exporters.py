"""Data sets that the labelling tools' own packages wrote are read as they were drawn."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from scipy.ndimage import maximum_filter, minimum_filter

from foveal.data.check import check_data
from foveal.data.segmentation import SegmentationData
from foveal.errors import DataError
from helpers.exporters import export


class Case(NamedTuple):
    """One export: the program, its packages and its format; what is found, and whether the masks are exact.

    Masks that were exported as outlines may differ by one pixel along the edges: tools disagree on whether a point is a
    corner or the middle of a pixel.
    """

    script: str
    packages: list[str]
    format: str
    layout: str
    splits: dict[str, int]
    exact: bool = True
    names: tuple[str, ...] = ("background", "cat", "dog")
    blank: int = 0  # class of pixels without an annotation


DATUMARO = ["datumaro>=1.10"]
LABEL_STUDIO = ["label-studio-sdk>=1"]
SPLIT = {"train": 2, "val": 1}
CASES = [
    Case("with_datumaro.py", DATUMARO, "voc_segmentation", "voc", SPLIT),
    Case("with_datumaro.py", DATUMARO, "coco_instances", "coco_instances", SPLIT),
    Case("with_datumaro.py", DATUMARO, "coco_panoptic", "coco_panoptic", SPLIT, blank=255),
    Case("with_datumaro.py", DATUMARO, "camvid", "camvid", SPLIT),
    Case("with_datumaro.py", DATUMARO, "cityscapes", "cityscapes", SPLIT),
    Case("with_labelme.py", ["labelme>=5"], "", "labelme", {"all": 2}, exact=False),
    Case("with_label_studio.py", LABEL_STUDIO, "json", "label_studio", {"all": 2}),
    Case("with_label_studio.py", LABEL_STUDIO, "coco", "coco_instances", {"all": 2}),
    Case("with_label_studio.py", LABEL_STUDIO, "brush_coco", "coco_instances", {"all": 2}, exact=False),
    Case("with_supervision.py", ["supervision>=0.25"], "yolo", "polygons", {"train": 2, "valid": 1}, exact=False),
    Case("with_supervision.py", ["supervision>=0.25"], "coco", "coco_instances", {"train": 2, "valid": 1}, exact=False),
    Case("with_cityscapes.py", ["cityscapesScripts>=2.2"], "", "cityscapes", SPLIT, names=()),
    Case("with_supervisely.py", ["supervisely>=6.70"], "", "supervisely", SPLIT, exact=False),
]


@pytest.mark.long
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.script[5:-3]} {case.format}".strip())
def test_exports_are_read(tmp_path: Path, case: Case) -> None:
    root = tmp_path / "data"
    export(case.script, case.packages, *([case.format] if case.format else []), root)
    report = check_data(root)
    assert (report.layout, report.problems) == (case.layout, [])
    assert {split.name: split.items for split in report.splits} == case.splits
    assert report.labels.names == case.names or not case.names
    for split in case.splits:
        data = SegmentationData.open(root, [split])
        for index in range(len(data)):
            _, mask = data[index]
            true = np.load(tmp_path / f"{data.name(index).stem.removesuffix('_leftImg8bit')}.npy")
            true = np.where(true == 0, case.blank, true) if case.names else true
            wrong = mask != true
            if not case.exact:
                wrong &= maximum_filter(true, 3) == minimum_filter(true, 3)
            assert not wrong.any()
            assert len(np.unique(mask)) > 1


@pytest.mark.long
@pytest.mark.parametrize(("kind", "name"), [("png", "PNG"), ("numpy", "NumPy")])
def test_exports_that_name_no_image_are_refused(tmp_path: Path, kind: str, name: str) -> None:
    root = tmp_path / "data"
    export("with_label_studio.py", LABEL_STUDIO, kind, root)
    (problem,) = check_data(root).problems
    assert f"is of Label Studio's export 'Brush labels to {name}'" in problem.error
    with pytest.raises(DataError, match="choose the export 'JSON'"):
        SegmentationData.open(root, ["all"])
