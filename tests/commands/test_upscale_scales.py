"""``foveal upscale --scale``: the scales that a name has weights for, and the message for others."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from helpers.commands import Command


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small image in the working directory."""
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (9, 7), "red").save("x.png")
    return "x.png"


SCALES = "efficientvit_sr has weights for scale 1, 2 or 4; --model bicubic enlarges 1 to 8 times"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--scale", 7), f"--scale 7: {SCALES}"),
        (("--scale", 0), f"--scale 0: {SCALES}"),
        (
            ("--scale", 3, "--model", "efficientvit_sr", "--exact", "--format", "tif"),
            "has weights for scale 1, 2 or 4",
        ),
        (("--scale", 9, "--model", "bicubic"), "--scale 9: bicubic enlarges 1 to 8 times\n"),
        (("--scale", 3, "--model", "efficientvit_sr.x2"), "efficientvit_sr.x2 enlarges 2 times"),
    ],
    ids=str,
)
def test_a_scale_without_weights(cli: Command, image: str, options: tuple[object, ...], message: str) -> None:
    done = cli("upscale", image, *options)
    assert done.returncode == 2
    assert message in done.stderr
    assert not Path("foveal-out").exists()


@pytest.mark.parametrize(("kernel", "scale"), [("bicubic", 1), ("lanczos", 8)])
def test_interpolation_has_the_scales_that_are_named(cli: Command, image: str, kernel: str, scale: int) -> None:
    assert cli("upscale", image, "--scale", scale, "--model", kernel).returncode == 0
    with Image.open("foveal-out/x.png") as picture:
        assert picture.size == (9 * scale, 7 * scale)
