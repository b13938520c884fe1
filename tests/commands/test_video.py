"""Videos in and out: frames, size and rate are kept, memory is bounded, mistakes are one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import foveal
from foveal import assets
from foveal.commands.video import smoothed
from foveal.errors import InputError
from foveal.images.reading import read_image
from foveal.images.video import CODECS, open_video, write_video
from foveal.prediction.results import SegmentResult
from helpers.commands import Command

PHOTO = read_image(assets.path("street", ".jpg"))


def pan(frames: int = 6, height: int = 96, width: int = 128) -> list[NDArray[np.uint8]]:
    """A camera that turns over the photograph."""
    return [PHOTO[400 : 400 + height, 8 * i + 300 : 8 * i + 300 + width] for i in range(frames)]


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    write_video(tmp_path / "clip.mp4", pan(), 12.5)
    return tmp_path / "clip.mp4"


@pytest.mark.parametrize("suffix", CODECS)
def test_frames_come_back(tmp_path: Path, suffix: str) -> None:
    frames = pan()
    assert write_video(tmp_path / f"x{suffix}", frames, 12.5) == len(frames)
    video = open_video(tmp_path / f"x{suffix}")
    assert (video.size, video.fps, video.frames) == ((96, 128), 12.5, len(frames))
    read = list(video)
    assert len(read) == len(frames)
    for frame, written in zip(read, frames, strict=True):
        assert np.abs(frame.astype(int) - written).mean() < 12  # lossy; channels in another order differ by more


def test_odd_sides_lose_a_pixel(tmp_path: Path) -> None:
    write_video(tmp_path / "x.mp4", [frame[:95, :127] for frame in pan()], 25)
    assert open_video(tmp_path / "x.mp4").size == (94, 126)


def test_segmented_video(cli: Command, clip: Path, tmp_path: Path) -> None:
    done = cli("video", clip, tmp_path / "out" / "x.avi", "--alpha", "1", "--json")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["frames"], report["fps"]) == (6, 12.5)
    predictor = foveal.load(assets.DEFAULTS["segment"])
    for frame, drawn in zip(open_video(clip), open_video(tmp_path / "out" / "x.avi"), strict=True):
        expected = np.asarray(predictor.segment(frame).overlay(1.0)).astype(int)
        assert np.abs(drawn - expected).mean() < 12


def test_upscaled_video(cli: Command, clip: Path, tmp_path: Path) -> None:
    done = cli("video", clip, tmp_path / "x.mp4", "--model", "efficientvit_sr.x2")
    assert done.returncode == 0, done.stderr
    assert open_video(tmp_path / "x.mp4").size == (192, 256)
    assert "the sound of the source" in done.stderr


def test_frames_are_read_one_by_one(clip: Path) -> None:
    """A frame is read when the result before it was taken."""
    read = 0

    def counted() -> object:
        nonlocal read
        for frame in open_video(clip):
            read += 1
            yield frame

    results = foveal.load(assets.DEFAULTS["segment"]).stream(counted())  # type: ignore[arg-type]
    next(results)
    assert read == 1
    next(results)
    assert read == 2


def test_smoothing_is_an_exponential_average() -> None:
    rng = np.random.default_rng(0)
    empty, scale = np.zeros((8, 8, 3), np.uint8), (0.5, 0.5)
    earlier, expected = None, None
    for _ in range(4):
        logits = rng.standard_normal((3, 4, 4)).astype(np.float32)
        share = np.exp(logits) / np.exp(logits).sum(0)
        expected = share if expected is None else 0.7 * expected + 0.3 * share
        result, earlier = smoothed(SegmentResult(empty, logits, scale, foveal.Labels()), earlier, 0.7)
        np.testing.assert_allclose(np.exp(result.logits), expected, atol=1e-6)


def test_a_list_that_names_other_files_is_no_video(tmp_path: Path, clip: Path) -> None:
    for name, text in (("x.mp4", f"ffconcat version 1.0\nfile {clip.name}\n"), ("y.m3u8", f"#EXTM3U\n{clip.name}\n")):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match="not a video of MP4, MOV, MKV, WebM or AVI"):
            open_video(tmp_path / name)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("clip.mp4", "x.gif"), "x.gif: videos are written as .mp4, .mkv, .avi"),
        (("clip.mp4", "clip.mp4"), "would overwrite the video"),
        (("clip.mp4", "x.mp4", "--smooth", "1"), "--smooth 1.0: give 0 to 0.95"),
        (("clip.mp4", "x.mp4", "--alpha", "2"), "--alpha 2.0: give 0 to 1"),
        (("missing.mp4", "x.mp4"), "missing.mp4: No such file"),
        (("cut.mp4", "x.mp4"), "cut.mp4: "),
        (("clip.mp4", "x.mp4", "--model", "bicubic.x2", "--smooth", "0.5"), "they are for segmentation"),
    ],
)
def test_mistakes(
    cli: Command, clip: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], message: str
) -> None:
    monkeypatch.chdir(clip.parent)
    Path("cut.mp4").write_bytes(clip.read_bytes()[:60])
    done = cli("video", *words)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert not Path("x.mp4").exists()
