"""Files for phones are checked before their runtime, which a damaged file would crash, sees them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import foveal
from foveal.errors import CheckpointError
from foveal.info import ModelInfo
from foveal.prediction.executorch_runner import PROGRAM
from foveal.prediction.litert_runner import MODEL
from foveal.prediction.sealed import open_sealed, seal

KINDS = {".pte": PROGRAM, ".tflite": MODEL}
INFO = ModelInfo("efficientvit_b0", "segment", 3)


def sealed(suffix: str) -> bytes:
    """A sealed file of a kind, whose content no runtime could read."""
    text = INFO.to_json()
    rubbish = np.random.default_rng(0).bytes(300)
    return seal(b"\x10\0\0\0" + KINDS[suffix].identifier + rubbish + text.encode() + rubbish, text)


@pytest.mark.parametrize("suffix", KINDS)
def test_the_description_is_read_from_a_whole_file(suffix: str, tmp_path: Path) -> None:
    (path := tmp_path / f"a{suffix}").write_bytes(content := sealed(suffix))
    assert open_sealed(KINDS[suffix], path, "a") == (content, INFO.to_json())
    assert open_sealed(KINDS[suffix], content, "a") == (content, INFO.to_json())


@pytest.mark.parametrize("suffix", KINDS)
def test_every_cut_and_every_changed_byte_is_refused(suffix: str) -> None:
    content = sealed(suffix)
    for end in range(len(content)):
        with pytest.raises(CheckpointError, match=r"^a: (cut off|it is no)"):
            open_sealed(KINDS[suffix], content[:end], "a")
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(CheckpointError, match=r"^a: (cut off|damaged|it is no)"):
            open_sealed(KINDS[suffix], bytes(damaged), "a")


@pytest.mark.parametrize("suffix", KINDS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x10\0\0\0ONNX" + bytes(200), "it is no (ExecuTorch|LiteRT) file"),
        (b"<html>", "is a web page"),
        (b"\x10\0\0\0ET12" + bytes(200), "cut off, or not exported by Foveal|it is no LiteRT file"),
        (b"\x10\0\0\0TFL3" + bytes(200), "cut off, or not exported by Foveal|it is a TensorFlow Lite model"),
    ],
)
def test_foreign_files_are_one_line(suffix: str, content: bytes, message: str, tmp_path: Path) -> None:
    (path := tmp_path / f"a{suffix}").write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        foveal.load(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_missing_files_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"a\.tflite"):
        foveal.load(tmp_path / "a.tflite")


def test_a_description_that_is_not_inside_cannot_be_sealed() -> None:
    with pytest.raises(ValueError, match="not found"):
        seal(b"\x10\0\0\0TFL3", "description")
