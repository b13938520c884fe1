"""Images of every kind with bytes damaged at random: read, or refused in one line."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from numpy.typing import NDArray

from foveal.errors import InputError
from foveal.images.reading import read_image, read_mask
from helpers.pictures import kinds
from helpers.spoil import spoil

KINDS = kinds()


def _fuzz(tmp_path: Path, name: str, count: int) -> None:
    """The good file is read; ``count`` damaged copies are read or refused in one line, as images and as masks."""
    path, rng = tmp_path / name, random.Random(0)
    path.write_bytes(KINDS[name])
    good = read_image(path)
    assert good.shape in {(40, 56, 3), (56, 40, 3)}
    readers: tuple[Callable[[Path], NDArray], ...] = (
        read_image, read_mask, lambda path: read_image(path, allow_truncated=True),
    )  # fmt: skip
    for _ in range(count):
        path.write_bytes(spoil(KINDS[name], rng))
        for read in readers:
            try:
                result = read(path)
            except InputError as error:
                message = str(error)
                assert message.startswith(str(path))
                assert "\n" not in message
            else:
                assert result.size


@pytest.mark.filterwarnings("ignore")  # Pillow warns of some damage
@pytest.mark.parametrize("name", KINDS)
def test_damaged_bytes_never_give_another_error(tmp_path: Path, name: str) -> None:
    _fuzz(tmp_path, name, 1000 // len(KINDS) + 1)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", KINDS)
def test_damaged_bytes_never_give_another_error_many(tmp_path: Path, name: str) -> None:
    _fuzz(tmp_path, name, 100_000 // len(KINDS) + 1)
