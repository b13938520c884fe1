"""A layout that the check recognises is trained, or the error names the task that it is for."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.data.check import check_data
from foveal.data.layout import describe
from foveal.data.recognition import explain_wrong_layout, recognise, tasks_of
from foveal.errors import DataError, FovealError
from helpers.commands import Command
from helpers.tars import encoded, shard


def picture(path: Path, *ids: int) -> None:
    """An image, or a mask with one id per row."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.tile(np.array(ids, np.uint8)[:, None], (1, 8)) if ids else np.full((6, 8, 3), 90, np.uint8)
    Image.fromarray(pixels).save(path)


def make(root: Path, layout: str) -> None:
    for split in ("train", "val"):
        if layout == "classes":
            for name in ("cat", "dog"):
                picture(root / split / name / "1.png")
        elif layout == "folders":
            picture(root / "images" / split / "1.png")
            picture(root / "masks" / split / "1.png", 0, 1)
            (root / "dataset.yaml").write_text("names: [a, b]")
        elif layout == "high_low":
            picture(root / split / "1.png")
        elif layout == "tars":
            shard(root / f"{split}-0.tar", [("1.jpg", encoded(np.zeros((8, 8, 3), np.uint8), "JPEG"))])


@pytest.mark.parametrize(
    ("layout", "tasks"),
    [
        ("classes", ("classify",)),
        ("folders", ("segment",)),
        ("high_low", ("upscale",)),
        ("tars", ("segment", "classify")),
    ],
)
def test_tasks_of_layouts(tmp_path: Path, layout: str, tasks: tuple[str, ...]) -> None:
    make(tmp_path, layout)
    assert recognise(tmp_path, describe(tmp_path)) == layout
    assert tasks_of(layout) == tasks
    report = check_data(tmp_path)
    assert (report.layout, report.to_dict()["tasks"]) == (layout, list(tasks))


@pytest.mark.parametrize(
    ("layout", "task"),
    [("classes", "segment"), ("classes", "prompt"), ("folders", "classify"), ("high_low", "segment")],
)
def test_training_names_the_task(tmp_path: Path, cli: Command, layout: str, task: str) -> None:
    make(tmp_path, layout)
    ended = cli("train", tmp_path, "--task", task, "--out", tmp_path / "run")
    assert ended.returncode == 2
    wanted = tasks_of(layout)[0]
    assert f"has the layout '{layout}', which is for the task '{wanted}', not for '{task}'" in ended.stderr
    assert f"train with --task {wanted}, or evaluate a model of that task" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


def test_evaluation_names_the_task(tmp_path: Path, cli: Command) -> None:
    make(tmp_path, "classes")
    ended = cli("evaluate", "efficientvit_b0.camvid", tmp_path, "--split", "val")
    assert ended.returncode == 2
    assert "has the layout 'classes', which is for the task 'classify', not for 'segment'" in ended.stderr


def test_other_errors_stay_as_they_are(tmp_path: Path) -> None:
    make(tmp_path, "classes")
    with pytest.raises(DataError, match=r"^no split$"), explain_wrong_layout(tmp_path, "classify"):
        raise DataError("no split")
    with pytest.raises(DataError, match=r"^nothing$"), explain_wrong_layout(tmp_path / "none", "classify"):
        raise DataError("nothing")
    with pytest.raises(FovealError, match=r"^other$"), explain_wrong_layout(tmp_path, "segment"):
        raise FovealError("other")


def test_an_image_beside_folders_of_classes(tmp_path: Path) -> None:
    for name in ("cat", "dog"):
        picture(tmp_path / name / "1.png")
    picture(tmp_path / "stray.png")
    report = check_data(tmp_path)
    assert (report.layout, report.splits[0].items) == ("classes", 2)
    assert "1 file is left out: stray.png" in report.notes


@pytest.mark.parametrize(
    "text",
    [
        '{"version": "1", "images": 3}',
        '{"foveal": {"images": [{}]}, "names": ["images", [{}]]}',  # lists of that name further inside
        '{"categories": ["a", "b"]}',
        '{"a": "\\"images\\": [{}]", "b": "' + '\\"' * 30_000,  # inside texts, one of which is cut
    ],
)
def test_json_of_other_programs_beside_the_data(tmp_path: Path, text: str) -> None:
    make(tmp_path, "folders")
    (tmp_path / "info.json").write_text(text)
    assert recognise(tmp_path, describe(tmp_path)) == "folders"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-be"])
def test_json_of_coco_under_any_name(tmp_path: Path, encoding: str) -> None:
    picture(tmp_path / "images" / "1.png")
    text = (
        '{"info": {"by": "\\"{Ģ"}, "images" : [ {"id": 1, "file_name": "1.png"}], "annotations": [], "categories": []}'
    )
    (tmp_path / "export.json").write_text(text, encoding)
    assert recognise(tmp_path, describe(tmp_path)) == "coco_instances"
