"""Tiles that no model can use: the message is about the number that was given, and names the rule."""

from __future__ import annotations

import pytest

from foveal.errors import InputError
from foveal.prediction.tiles import check_segment_tiles, check_upscale_tiles
from helpers.commands import Command


@pytest.mark.parametrize(
    ("tile", "overlap", "stride", "message"),
    [
        (-5, None, 8, "tile=-5: tile must be a multiple of 32 from 64 up"),
        (32, None, 8, "tile=32: tile must be a multiple of 32 from 64 up"),
        (96, None, 64, "tile=96: tile must be a multiple of 64 from 128 up"),
        (100, 8, 8, "tile=100: tile must be a multiple of 32 from 64 up"),
        (128, -1, 8, "tile=128, overlap=-1: tile must be a multiple of 32 from 64 up, and overlap 0 to 96"),
        (128, 97, 8, "tile=128, overlap=97: tile must be a multiple of 32 from 64 up, and overlap 0 to 96"),
    ],
)
def test_impossible_tiles_for_segmentation(tile: int, overlap: int | None, stride: int, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_segment_tiles(tile, overlap, stride)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("tile", "overlap", "message"),
    [
        (-5, None, "tile=-5: tile must be a multiple of 8 from 64 up"),
        (65, None, "tile=65: tile must be a multiple of 8 from 64 up"),
        (64, 40, "tile=64, overlap=40: tile must be a multiple of 8 from 64 up, and overlap 0 to half of it"),
    ],
)
def test_impossible_tiles_for_upscaling(tile: int, overlap: int | None, message: str) -> None:
    with pytest.raises(InputError) as caught:
        check_upscale_tiles(tile, overlap)
    assert str(caught.value) == message


def test_usable_tiles() -> None:
    assert check_segment_tiles(64, None, 8) == 21
    assert check_segment_tiles(128, 96, 8) == 96
    assert check_upscale_tiles(64, None) == 16
    assert check_upscale_tiles(None, None) == 32


@pytest.mark.parametrize(("verb", "step"), [("segment", 32), ("predict", 32), ("regress", 32), ("upscale", 8)])
def test_the_help_names_the_rule(cli: Command, verb: str, step: int) -> None:
    words = " ".join(cli(verb, "--help").stdout.replace("│", " ").split())
    assert f"a multiple of {step} from 64 up" in words
