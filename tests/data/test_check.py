"""A check reads a whole data set, continues after each problem, names the file, and sets the exit code."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import foveal
from foveal.cli import main
from foveal.data.check import check_data
from foveal.data.examples import Examples
from foveal.data.overview import draw_overview
from foveal.data.segmentation import SegmentationData
from foveal.data.synthetic import write_shapes
from foveal.errors import ConfigError, DataError
from foveal.info import Labels


def photo(path: Path, seed: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    return path


def mask(path: Path, *ids: int) -> Path:
    """A mask with one id per column; the last id is repeated."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.array([*ids, *[ids[-1]] * (8 - len(ids))], np.uint8)
    Image.fromarray(np.tile(row, (6, 1))).save(path)
    return path


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    with pytest.raises(SystemExit) as done:
        main(["data", "check", *map(str, arguments)])
    assert isinstance(done.value.code, int)
    return done.value.code, capsys.readouterr().out


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four pairs for training and one for validation, with three classes, of which the last does not occur."""
    for index in range(4):
        photo(tmp_path / "images" / "train" / f"{index}.png", index)
        mask(tmp_path / "masks" / "train" / f"{index}.png", 255, 255, 1, 0)
    photo(tmp_path / "images" / "val" / "9.png", 9)
    mask(tmp_path / "masks" / "val" / "9.png", 0)
    (tmp_path / "dataset.yaml").write_text(yaml.safe_dump({"names": ["a", "b", "c"]}))
    return tmp_path


def test_a_good_data_set(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, tree, "--json")
    result = json.loads(out)
    assert code == 0
    assert (result["layout"], result["classes"], result["problems"]) == ("folders", ["a", "b", "c"], [])
    train = result["splits"]["train"]
    assert (train["items"], train["readable"], train["ignored"]) == (4, 4, 0.25)
    assert train["sizes"] == [{"size": [6, 8], "images": 4}]
    assert train["classes"] == {
        "a": {"pixels": pytest.approx(5 / 6, abs=1e-6), "images": 4},
        "b": {"pixels": pytest.approx(1 / 6, abs=1e-6), "images": 4},
        "c": {"pixels": 0, "images": 0},
    }
    assert result["notes"] == [
        "train: no c; left out of means over classes",
        "val: no b, c; left out of means over classes",
    ]


def test_every_problem_is_named_by_file(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Five kinds of problems; the other files are counted, and with the list of bad files the data set is usable."""
    mask(tree / "masks" / "train" / "0.png", 0, 7)
    (tree / "images" / "train" / "1.png").write_bytes(b"\x89PNG broken")
    Image.new("L", (3, 3)).save(tree / "masks" / "train" / "2.png")
    photo(tree / "images" / "train" / "lonely.png")
    photo(tree / "masks" / "val" / "9.png")
    code, out = run(capsys, tree, "--quarantine", tree / "bad.txt")
    assert code == 1
    for text in (
        r"masks/train/0.png: id 7 (42 pixels), but there are 3 classes",
        "images/train/1.png: ",
        "masks/train/2.png: mask of 3x3 (W x H) for the image 2.png of 8x6",
        "images/train/lonely.png: has no mask",
        "masks/val/9.png: a RGB image where a mask of class indices is expected; colours found: ",
        "5 problems",
    ):
        assert text in out
    assert sorted((tree / "bad.txt").read_text().split()) == [
        *(f"images/train/{name}.png" for name in ("0", "1", "2", "lonely")),
        "images/val/9.png",
    ]
    with pytest.raises(DataError, match=r"lonely\.png: has no mask"):
        SegmentationData.open(tree, ["train"])
    (tree / "dataset.yaml").write_text(yaml.safe_dump({"names": ["a", "b", "c"], "exclude": "bad.txt"}))
    assert [image.name for image, _ in SegmentationData.open(tree, ["train"]).pairs] == ["3.png"]


def test_all_void_masks_and_twins_are_noted(tree: Path) -> None:
    mask(tree / "masks" / "val" / "9.png", 255)
    photo(tree / "images" / "val" / "9.png", 2)
    report = check_data(tree)
    assert not report.problems
    assert "val: no labelled pixel in 1 masks: 9.png" in report.notes
    assert "images/val/9.png (val) is images/train/2.png (train)" in report.notes


def test_images_that_are_turned_without_their_masks_are_noted(tree: Path) -> None:
    def tag(path: Path) -> None:
        with Image.open(path) as image:
            exif = image.getexif()
            exif[0x0112] = 3  # turned by half, which keeps the size
            image.save(path, exif=exif)

    for name in ("0", "1"):
        tag(tree / "images" / "train" / f"{name}.png")
    tag(tree / "masks" / "train" / "1.png")
    (note,) = (note for note in check_data(tree).notes if "orientation" in note)
    assert note.startswith("train: 1 images have an orientation tag and their masks have none: 0.png; ")


def test_many_absent_classes_are_counted(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "dataset.yaml").write_text(yaml.safe_dump({"names": [f"c{i}" for i in range(40)]}))
    _, out = run(capsys, tree)
    rows = [line.split() for line in out.partition("not in the table")[0].splitlines()]
    assert [name for row in rows for name in row if name in ("c0", "c1", "c2", "c39")] == ["c0", "c1"]
    assert "not in the table: 38 of 40 classes, which are in no image" in out
    assert "note: val: no c1, c2, c3, c4, ... (39); left out of means over classes" in out


def test_what_training_would_refuse_is_a_problem(tmp_path: Path) -> None:
    """No labelled pixel in any training mask, and a split without images."""
    root = write_shapes(tmp_path, train=3, val=1, size=(32, 32))
    for file in (root / "trainannot").iterdir():
        Image.new("L", (32, 32), 255).save(file)
    for folder in ("val", "valannot"):
        (root / folder / "0000.png").unlink()
    assert [(problem.file.name, problem.error) for problem in check_data(root).problems] == [
        ("train", "no labelled pixel in any of its masks, so nothing can be learnt"),
        ("val", "no samples in this split"),
    ]


def test_black_and_white_masks_are_noted(tree: Path) -> None:
    for index in range(4):
        mask(tree / "masks" / "train" / f"{index}.png", 0, 255)
    notes = check_data(tree).notes
    assert any("88% of the pixels are ignored; if id 255 is a class" in note for note in notes)
    question = (
        "the masks have only 255 besides 0, and it is ignored; is it the class? Then write 'ids: [0, 255]' and two"
        " 'names' into dataset.yaml"
    )
    assert question in notes
    keys = {"names": ["a", "b"], "ignore": [255, 7]}
    (tree / "dataset.yaml").write_text(yaml.safe_dump(keys))
    assert any("have only ignored ids besides 0; is 255 one of them" in note for note in check_data(tree).notes)
    (tree / "dataset.yaml").write_text(yaml.safe_dump(keys | {"ids": [0, 255]}))
    assert [note for note in check_data(tree).notes if "besides 0" in note] == []
    mask(tree / "masks" / "val" / "9.png", 0, 1, 255)  # 0, 1 and 255: the last is what is ignored
    (tree / "dataset.yaml").write_text(yaml.safe_dump({"names": ["a", "b"]}))
    assert [note for note in check_data(tree).notes if "besides 0" in note] == []


def test_one_bad_file_in_two_thousand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (2, 2)).save(buffer, "PNG")
    with tarfile.open(tmp_path / "train-0.tar", "w") as archive:
        for index in range(2_000):
            data = buffer.getvalue() if index != 1234 else b"not an image"
            info = tarfile.TarInfo(f"{index:05}.png")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    code, out = run(capsys, tmp_path, "--json", "--quarantine", tmp_path / "bad.txt")
    result = json.loads(out)
    assert code == 1
    assert (result["layout"], result["splits"]["train"]["items"], result["splits"]["train"]["readable"]) == (
        "tars", 2_000, 1_999,
    )  # fmt: skip
    assert [problem["file"] for problem in result["problems"]] == [str(tmp_path / "train-0.tar" / "01234")]
    assert (tmp_path / "bad.txt").read_text() == "train-0.tar/01234\n"
    (tmp_path / "dataset.yaml").write_text("exclude: bad.txt")
    report = check_data(tmp_path)
    assert (report.problems, report.splits[0].readable) == ([], 1_999)


def test_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index, name in enumerate(("cat", "dog")):
        photo(tmp_path / "train" / name / "0.png", index)
    photo(tmp_path / "val" / "cat" / "1.png", 5)
    code, out = run(capsys, tmp_path)
    assert code == 0
    assert "classes" in out.splitlines()[0]
    assert "note: val: no dog" in out
    (tmp_path / "val" / "cat" / "1.png").write_bytes(b"")
    code, out = run(capsys, tmp_path)
    assert code == 1
    assert "val/cat/1.png: empty file" in out
    photo(tmp_path / "train" / "cat" / "masks" / "0.png")
    code, out = run(capsys, tmp_path)
    assert code == 1
    assert "train/cat/masks: a folder of images inside the class folder 'cat'" in out


def test_pairs_of_images(tmp_path: Path) -> None:
    Image.new("RGB", (16, 8)).save(photo(tmp_path / "HR" / "a.png"))
    Image.new("RGB", (16, 8)).save(photo(tmp_path / "HR" / "b.png"))
    for stem, size in (("a", (8, 4)), ("b", (8, 5))):
        Image.new("RGB", size).save(photo(tmp_path / "LR" / "X2" / f"{stem}.png"))
    report = check_data(tmp_path)
    assert (report.layout, report.splits[0].name, report.splits[0].readable) == ("high_low", "all x2", 1)
    assert [problem.file.name for problem in report.problems] == ["b.png"]
    (tmp_path / "LR" / "X2").rename(tmp_path / "LR_x2")
    assert [problem.file.name for problem in check_data(tmp_path).problems] == ["b.png"]


def test_nothing_to_check(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out = run(capsys, tmp_path)
    assert code == 1
    assert "no layout fits (camvid, cityscapes," in out
    with pytest.raises(DataError, match="no such folder"):
        check_data(tmp_path / "none")
    assert run(capsys, tmp_path / "none")[0] == 2
    (tmp_path / "dataset.yaml").write_text("layuot: classes")
    with pytest.raises(ConfigError, match="did you mean 'layout'"):
        check_data(tmp_path)
    (tmp_path / "dataset.yaml").write_text("layout: clases")
    code, out = run(capsys, tmp_path)
    assert code == 1
    assert "unknown layout 'clases'; did you mean 'classes'?" in out
    for folder in ("images/train", "masks/train"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "dataset.yaml").write_text("names: [a]")
    assert run(capsys, tmp_path)[0] == 1


# ---- the picture


def _bars(picture: np.ndarray) -> list[int]:
    """Lengths of the bars, from top to bottom, in pixels."""
    lengths = (picture == (90, 120, 170)).all(-1).sum(1)
    starts = np.flatnonzero((lengths[1:] > 0) & (lengths[:-1] == 0)) + 1
    return lengths[starts].tolist()


def test_overview_shows_shares_and_samples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The bars are proportional to the shares; samples have the colours of the classes except on ignored pixels."""
    data = tmp_path / "data"
    data.mkdir()
    (data / "dataset.yaml").write_text("names: [few, many, none]\npalette: [[200, 0, 0], [0, 200, 0], [0, 0, 200]]")
    ids = np.full((4, 8), 255, np.uint8)
    ids[:, 0], ids[:, 1:4] = 0, 1  # one column, three columns, the rest ignored
    for split in ("train", "val"):
        for kind, picture in (("images", np.full((4, 8, 3), (100, 110, 120), np.uint8)), ("masks", ids)):
            (data / kind / split).mkdir(parents=True)
            Image.fromarray(picture).save(data / kind / split / "1.png")
    code, out = run(capsys, data, "--out", tmp_path / "result")
    assert code == 0
    assert "no problems" in out
    picture = np.asarray(Image.open(tmp_path / "result" / "overview.png").convert("RGB"))
    few, many = _bars(picture)
    assert many == pytest.approx(3 * few, abs=4)  # two splits, each rounded to a pixel
    for colour, count in (((150, 55, 60), 4), ((50, 155, 60), 12), ((100, 110, 120), 16)):
        assert (picture == colour).all(-1).sum() == 2 * count, colour


def test_overview_of_classes_and_of_nothing(tmp_path: Path) -> None:
    for index in range(70):
        photo(tmp_path / "train" / f"c{index:02}" / "0.png", index)
    report = foveal.check_data(tmp_path)
    assert {title for _, title, _ in report.splits[0].examples.chosen} <= {f"c{i:02}: 0.png" for i in range(70)}
    assert len(_bars(np.asarray(draw_overview(report)))) == 60  # of 70 classes
    report.splits.clear()
    assert draw_overview(report).width > 0


def test_examples_are_drawn_evenly() -> None:
    """Over many draws, every sample is chosen about equally often."""
    chosen = np.zeros(40)
    pixel = np.zeros((1, 1, 3), np.uint8)
    for seed in range(600):
        examples = Examples(most=8, rng=np.random.default_rng(seed))
        for number in range(40):
            examples.offer(str(number), pixel, None, Labels())
        chosen[[int(title) for _, title, _ in examples.chosen]] += 1
    assert chosen.sum() == 600 * 8
    assert chosen.min() > 80  # expected: 120, with a standard deviation of 10
    assert chosen.max() < 160
