"""Images that do not exist: the verbs say so before they look for the model, which may have to be downloaded."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from helpers.commands import Command

MODEL = ("--model", "nowhere.pt")  # whatever opens it says that it does not exist


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory: an image, a folder that has none, the folder of a training run, an exported file."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (8, 8)).save("here.png")
    (tmp_path / "texts").mkdir()
    (tmp_path / "run").mkdir()
    for name in ("texts/a.txt", "run/best.safetensors", "here.foveal"):
        (tmp_path / name).touch()
    Image.new("RGB", (8, 8)).save("run/curves.png")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ("classify", "nope.jpg"),
        ("predict", "nope.jpg"),
        ("segment", "nope.jpg"),
        ("segment", "nope.jpg", "--exact"),
        ("regress", "nope.jpg"),
        ("prompt", "nope.jpg", "--everything"),
        ("upscale", "nope.jpg"),
        ("upscale", "nope.jpg", "--exact", "--format", "tif"),
    ],
    ids=" ".join,
)
def test_a_missing_image_is_said_before_a_missing_model(cli: Command, words: tuple[str, ...]) -> None:
    done = cli(*words, *MODEL)
    assert (done.returncode, done.stderr) == (2, "foveal: nope.jpg: no such file or folder\n")
    assert not Path("foveal-out/nope.png").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("classify", "texts"), "texts: no images"),
        (("classify", "here.png", "texts"), "texts: no images"),
        (("predict", "a.jpg", "b/c.jpg"), "a.jpg: no such file or folder (nor is any of the other images there)"),
        (("predict", "https://example.org/a.jpg"), "images are not downloaded"),
        (("segment", "here.png", "--label", "nope.png"), "nope.png: no such file"),
        (("segment", "run", "here.png"), "run: a model, not an image: name it with --model run"),
        (("classify", "run/best.safetensors", "here.png"), "name it with --model run/best.safetensors"),
        (("upscale", "here.foveal"), "here.foveal: a model, not an image"),
    ],
    ids=str,
)
def test_nothing_to_work_on(cli: Command, words: tuple[str, ...], message: str) -> None:
    done = cli(*words, *MODEL)
    assert done.returncode == 2
    assert message in done.stderr
    assert "nowhere.pt" not in done.stderr


@pytest.mark.parametrize("words", [("classify", "here.png"), ("predict", "here.png", "nope.jpg"), ("segment", ".")])
def test_images_that_exist_need_the_model(cli: Command, words: tuple[str, ...]) -> None:
    done = cli(*words, *MODEL)
    assert done.returncode == 2
    assert "nowhere.pt: no such file or training run" in done.stderr
