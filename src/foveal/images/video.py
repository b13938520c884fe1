"""Read and write videos frame by frame, with OpenCV, whose packages have an FFmpeg under the LGPL.

What a file is shows its content, not its name: FFmpeg also reads lists that name further files, which are refused.
Sound is neither read nor written.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DependencyError, InputError
from ..files import atomic_write
from .formats import pixel_limit

#: How a video is encoded, by the suffix of its file: FourCC codes of MPEG-4 and of Motion JPEG.
CODECS = {".mp4": "mp4v", ".mkv": "mp4v", ".avi": "MJPG"}
_MAX_SIDE = 8192  # of a written frame
_FPS = 25.0  # of a video that states none


@dataclass(frozen=True)
class Video:
    """A video file. Iterating reads its frames from the beginning, upright, ``(H, W, 3)`` RGB uint8.

    Attributes:
        path: of the file.
        size: (H, W) of a frame.
        fps: frames per second.
        frames: number of frames as the file states it, which may be wrong; 0: it states none.
    """

    path: Path
    size: tuple[int, int]
    fps: float
    frames: int

    def __iter__(self) -> Iterator[NDArray[np.uint8]]:
        cv2 = _opencv()
        capture = _open(self.path)
        try:
            while True:
                read, frame = capture.read()
                if not read:
                    return
                if frame.shape != (*self.size, 3):
                    raise InputError(f"{self.path}: a frame of another size than the first: cut the video there")
                yield cv2.cvtColor(frame, cv2.COLOR_BGR2RGB)
        finally:
            capture.release()


def open_video(path: str | Path) -> Video:
    """Open a video file.

    Raises:
        InputError: no such file, no video, without a frame, or of too many pixels.
        DependencyError: OpenCV is not installed.
    """
    path = Path(path)
    cv2 = _opencv()
    capture = _open(path)
    try:
        read, frame = capture.read()
        fps, frames = capture.get(cv2.CAP_PROP_FPS), capture.get(cv2.CAP_PROP_FRAME_COUNT)
    finally:
        capture.release()
    if not read:
        raise InputError(f"{path}: no frame can be read: damaged, or in a coding that OpenCV does not read")
    fps = fps if math.isfinite(fps) and 0 < fps <= 1000 else _FPS
    return Video(path, (frame.shape[0], frame.shape[1]), fps, int(frames) if 0 < frames < 1 << 40 else 0)


def write_video(path: str | Path, frames: Iterable[NDArray[np.uint8]], fps: float) -> int:
    """Write a video, frame by frame; if that fails, no partial file is left.

    Args:
        path: .mp4 or .mkv (MPEG-4), or .avi (Motion JPEG).
        frames: ``(H, W, 3)`` RGB, all of one size. Odd sides are cut by one pixel, since MPEG-4 has even ones.
        fps: frames per second.

    Returns:
        The number of frames.

    Raises:
        ConfigError: another suffix.
        InputError: no frames, frames that are too large, or the file cannot be written.
        DependencyError: OpenCV is not installed.
    """
    path = Path(path)
    check_video_name(path)
    cv2 = _opencv()
    count, writer = 0, None
    with atomic_write(path) as temporary:
        try:
            for frame in frames:
                height, width = (side // 2 * 2 for side in frame.shape[:2])
                if writer is None:
                    if not 0 < max(height, width) <= _MAX_SIDE or not min(height, width):
                        raise InputError(f"{path}: frames of {width}x{height}; a video has sides of 2 to {_MAX_SIDE}")
                    code = cv2.VideoWriter_fourcc(*CODECS[path.suffix.lower()])
                    writer = cv2.VideoWriter(str(temporary), cv2.CAP_FFMPEG, code, fps, (width, height))
                    if not writer.isOpened():
                        raise InputError(f"{path}: OpenCV cannot write this video")
                writer.write(cv2.cvtColor(np.ascontiguousarray(frame[:height, :width]), cv2.COLOR_RGB2BGR))
                count += 1
        finally:
            if writer is not None:
                writer.release()
        if not count:
            raise InputError(f"{path}: there are no frames to write")
    return count


def check_video_name(path: Path) -> None:
    """Check the suffix of a video that is to be written.

    Raises:
        ConfigError: another one than those of :data:`CODECS`.
    """
    if path.suffix.lower() not in CODECS:
        raise ConfigError(f"{path}: videos are written as {', '.join(CODECS)}")


def _open(path: Path) -> Any:
    cv2 = _opencv()
    try:
        with path.open("rb") as file:
            start = file.read(12)
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    if not (start[4:8] == b"ftyp" or start[:4] in (b"\x1a\x45\xdf\xa3", b"RIFF") or start[4:8] in (b"moov", b"mdat")):
        raise InputError(f"{path}: not a video of MP4, MOV, MKV, WebM or AVI")
    capture = cv2.VideoCapture(str(path.absolute()), cv2.CAP_FFMPEG)
    sides = [capture.get(which) for which in (cv2.CAP_PROP_FRAME_HEIGHT, cv2.CAP_PROP_FRAME_WIDTH)]
    if not capture.isOpened():
        capture.release()
        raise InputError(f"{path}: cannot be read as a video: damaged, or in a coding that OpenCV does not read")
    if sides[0] * sides[1] > (limit := pixel_limit()):
        capture.release()
        raise InputError(f"{path}: frames of {sides[1]:g}x{sides[0]:g} pixels, above the limit of {limit}")
    return capture


def _opencv() -> Any:
    """The module of OpenCV, which then prints no warnings of its own."""
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when OpenCV is loaded; FFmpeg then prints nothing
    try:
        import cv2
    except ImportError as error:
        raise DependencyError("videos need OpenCV: pip install 'foveal[video]'") from error
    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
    return cv2
