"""Where results go: distinct names by one rule, no input is replaced, a result is done when all of its files exist."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

import foveal.commands.outputs as outputs
from foveal.commands.outputs import OVERLAY, Job, Request, list_jobs
from foveal.commands.segment import _agreement
from foveal.commands.segment import run as run_segment
from foveal.commands.tables import MaskTable
from foveal.commands.upscale import run as run_upscale
from foveal.errors import ConfigError
from foveal.factory.create import create_model
from foveal.info import Labels, info_of
from foveal.prediction.input_limits import ANY_IMAGES, InputLimits
from foveal.prediction.predictor import Predictor
from foveal.prediction.results import SegmentResult
from foveal.prediction.torch_runner import TorchRunner
from helpers.commands import Command


def touch(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(name.encode())


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    return tmp_path / "work"


@pytest.mark.parametrize(
    ("files", "images", "results"),
    [
        ("x.jpg y.png", "x.jpg y.png", "x.png y.png"),
        ("x.jpg x.png z.bmp", "x.jpg x.png z.bmp", "x.jpg.png x.png.png z.png"),
        ("x.jpg x.png", "x.png x.jpg", "x.png.png x.jpg.png"),
        ("x.jpg", "x.jpg ./x.jpg", "x.png"),
        ("a/x.jpg a/b/x.jpg", "a", "b/x.png x.png"),
        ("a/x.jpg b/x.jpg", "a b", "a/x.jpg.png b/x.jpg.png"),
        ("a/x.jpg b/x.jpg b/x.png", "a/x.jpg b", "a/x.jpg.png b/x.jpg.png x.png.png"),
        ("a/c/x.jpg b/c/x.jpg", "a/c b/c", "a/c/x.jpg.png b/c/x.jpg.png"),
        ("X.jpg x.png", "X.jpg x.png", "X.jpg.png x.png.png"),
        ("X.jpg x.jpg", "X.jpg x.jpg", "X.jpg.png x.jpg.png"),
        ("x.jpg x.jpg.jpg x.png", "x.jpg x.jpg.jpg x.png", "work/x.jpg.png x.jpg.jpg.png x.png.png"),
    ],
)
def test_names_of_results(files: str, images: str, results: str) -> None:
    touch(*files.split())
    jobs = list_jobs([Path(image) for image in images.split()], Path("out"), picture=OVERLAY)
    assert [str(job.target.relative_to("out")) for job in jobs] == results.split()
    assert len({file for job in jobs for file in job.files}) == 2 * len(jobs)


@pytest.mark.parametrize(
    ("files", "images", "out", "suffix", "picture"),
    [
        ("x.overlay.jpg", "x.overlay.jpg", "x.png", ".png", OVERLAY),
        ("x.jpg x.overlay.jpg", "x.jpg x.overlay.jpg", ".", ".png", OVERLAY),
        ("x.png", "x.png", ".", ".png", ""),
        ("x.jpg link.png>x.jpg", "x.jpg", "link.png", ".png", ""),
        ("x.jpg out/x.png>x.jpg", "x.jpg", "out", ".png", ""),
        ("x.jpg here>.", "x.jpg", "here/x.jpg", ".jpg", ""),
        ("in/x.jpg in/sub/x.png", "in", "in/sub", ".png", ""),
    ],
)
def test_no_input_is_replaced(files: str, images: str, out: str, suffix: str, picture: str) -> None:
    for name in files.split():
        link, _, target = name.partition(">")
        Path(link).parent.mkdir(exist_ok=True)
        if target:
            Path(link).symlink_to(Path(target).absolute())
        else:
            touch(link)
    with pytest.raises(ConfigError, match="would overwrite the image"):
        Request([Path(image) for image in images.split()], Path(out)).plan(suffix, picture)


def test_a_hard_link_is_an_input_too() -> None:
    touch("x.jpg")
    Path("other.png").hardlink_to("x.jpg")
    with pytest.raises(ConfigError, match=r"other\.png would overwrite the image x\.jpg"):
        Request([Path("x.jpg")], Path("other.png")).plan()
    touch("label.png")
    with pytest.raises(ConfigError, match="would overwrite"):
        Request([Path("x.jpg")], Path("label.png")).plan(also_read=[Path("label.png")])


def test_names_that_a_file_system_takes_for_one(monkeypatch: pytest.MonkeyPatch) -> None:
    touch("X.jpg", "x.jpg")
    monkeypatch.setattr(outputs, "ignores_case", lambda folder: True)
    with pytest.raises(ConfigError, match="are one file on this file system"):
        Request([Path("X.jpg"), Path("x.jpg")]).plan()


def test_done_means_all_files(capsys: pytest.CaptureFixture[str]) -> None:
    touch("in/a.jpg", "in/b.jpg", "in/c.jpg", "out/a.png", "out/a.overlay.jpg", "out/b.png")
    plan = Request([Path("in")], Path("out"), resume=True).plan(picture=OVERLAY)
    assert [job.source.name for job in plan.jobs] == ["b.jpg", "c.jpg"]
    assert plan.tally(2) == "3 of 3 images, 1 done before"
    plan = Request([Path("in")], Path("out"), resume=True).plan()
    assert [job.source.name for job in plan.jobs] == ["c.jpg"]
    touch("foveal-out/old.png")
    assert len(Request([Path(".")]).plan().jobs) == 6
    assert capsys.readouterr().err == "1 image in foveal-out is left out, as results of earlier runs\n"


@pytest.mark.parametrize("words", [("--label", "l.png"), ("--tile", "64", "--check-tiles")], ids=" ".join)
def test_what_is_compared_is_not_resumed(cli: Command, words: tuple[str, ...]) -> None:
    """If the mask is there, there is nothing to compare with."""
    touch("a.png", "l.png")
    done = cli("segment", "a.png", "--resume", *words)
    assert done.returncode == 2
    assert done.stderr == "foveal: --label and --check-tiles compare what is computed: leave out --resume\n"


def test_classes_of_one_name_have_columns_of_their_own(tmp_path: Path) -> None:
    table = MaskTable(("a", "a", "b"))
    job = Job(Path("x.png"), Path("m.png"))
    table.add(job, np.array([[0, 1, 1, 2, 2, 2]], np.uint8))
    table.write(tmp_path / "t.csv", [job])
    header, row = (line.split(",") for line in (tmp_path / "t.csv").read_text().splitlines())
    assert header[4:] == ["a (class 0)", "a (class 1)", "b"]
    assert [float(value) for value in row[4:]] == pytest.approx([1 / 6, 1 / 3, 1 / 2], abs=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("segment", "--min-area", "50"), "--encoding and --min-area go with --coco"),
        (("segment", "--exact", "--overlap", "0"), "--overlap does not go with --exact"),
        (("upscale", "--resume", "--check-tiles"), "leave out --resume"),
        (
            ("upscale", "--model", "efficientvit_sr.x2", "--scale", "3", "--exact", "--format", "tif"),
            "enlarges 2 times",
        ),
        (("prompt", "--everything", "--out", "o/a.json", "--cutout", "d"), "would overwrite"),
    ],
)
def test_options_that_would_be_ignored(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("d").mkdir()
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("d/a.001.png")
    before = Path("d/a.001.png").read_bytes()
    done = cli(words[0], "d/a.001.png", *words[1:])
    assert done.returncode == 2
    assert message in done.stderr
    assert Path("d/a.001.png").read_bytes() == before


def test_a_label_of_ignored_pixels_has_nothing_to_compare_with(
    cli: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save("a.png")
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save("l.png")
    done = cli("segment", "a.png", "--label", "l.png", "--json")
    assert done.returncode == 2
    assert "nothing to compare with" in done.stderr


def refused(run: Callable[..., int], model: nn.Module, limits: InputLimits = ANY_IMAGES, **options: bool) -> str:
    """What a command that gets this model says about an image, before it computes or writes anything."""
    Image.new("RGB", (80, 64)).save("a.png")
    predictor = Predictor(TorchRunner(model.eval()), info_of(model), "torch")
    predictor.limits = limits
    with pytest.raises(ConfigError) as error:
        run(predictor, Request([Path("a.png")], Path("out")), **options)
    assert not Path("out").exists()
    return str(error.value)


def test_a_png_holds_256_classes() -> None:
    model = create_model("efficientvit_b0", "segment", num_classes=300)
    said = refused(run_segment, model)
    assert "has 300 classes, and the PNG files of masks hold 256: foveal batch --result rle" in said


def test_tiles_are_not_compared_with_an_image_that_the_file_does_not_take() -> None:
    limits = InputLimits(size=(80, 80))
    said = refused(run_upscale, create_model("efficientvit_sr_w075"), limits, check_tiles=True)
    assert said.startswith("--check-tiles needs the whole image, and this file takes ")


def test_the_ignored_id_of_a_label_is_that_of_the_classes(tmp_path: Path) -> None:
    """With 256 classes, 255 is one of them, and 65535 is ignored."""
    logits = np.zeros((256, 1, 3), np.float32)
    logits[[0, 255, 3], 0, [0, 1, 2]] = 1
    result = SegmentResult(np.zeros((1, 3, 3), np.uint8), logits, (1.0, 1.0), Labels())
    Image.fromarray(np.array([[0, 7, 65535]], np.uint16)).save(tmp_path / "label.png")
    assert _agreement(result, tmp_path / "label.png") == 0.5
