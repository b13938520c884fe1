"""The verb ``video``: segment or upscale a video frame by frame."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from .. import assets
from ..errors import ConfigError
from ..files import check_overwrites, ensure_folder
from ..progress import Progress
from ..text import notice
from .console import ANY_ENGINE, Engines, Json, print_json, say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..images.video import Video
    from ..prediction.predictor import Predictor
    from ..prediction.results import SegmentResult


def video(
    source: Path,
    target: Path,
    /,
    *,
    model: str = assets.DEFAULTS["segment"],
    alpha: float | None = None,
    distinct: Annotated[bool, Parameter(negative="")] = False,
    smooth: float = 0.0,
    engine: Engines = ANY_ENGINE,
    json: Json = False,
) -> int:
    """Segment or upscale a video, one frame after the other, in bounded memory. The sound is dropped.

    Parameters
    ----------
    source
        Video: MP4, MOV, MKV, WebM or AVI.
    target
        Video to write: .mp4 or .mkv (MPEG-4), or .avi (Motion JPEG), with the frame rate of the source.
    model
        Model that segments (the classes are drawn over the frames) or upscales.
    alpha
        Opacity of the classes' colours: 0 the frames alone, 1 the colours alone; default: 0.5.
    distinct
        Clearly different colours, in place of the model's palette.
    smooth
        Share of the earlier frames in the class probabilities, 0 to 0.95: less flicker, and a trail behind what moves.
    """
    from ..images.video import check_video_name, open_video, write_video
    from ..measuring import machine

    check_video_name(target)
    if not 0 <= smooth <= 0.95:
        raise ConfigError(f"--smooth {smooth}: give 0 to 0.95")
    if alpha is not None and not 0 <= alpha <= 1:
        raise ConfigError(f"--alpha {alpha}: give 0 to 1")
    check_overwrites([target], [source], "video")
    opened = open_video(source)
    ensure_folder(target.parent)
    predictor = engine.load(model)
    if predictor.info.task not in _FRAMES:
        raise ConfigError(f"{model} is for {predictor.info.task!r}: give a model for {' or '.join(_FRAMES)}")
    drawing = {"alpha": alpha, "smooth": smooth, "distinct": distinct}
    started = time.perf_counter()
    frames = _FRAMES[predictor.info.task](predictor, opened, drawing)
    count = write_video(target, _with_progress(frames, opened.frames), opened.fps)
    seconds = time.perf_counter() - started
    if json:
        about = {"model": predictor.info.ref, "runtime": predictor.runtime, "machine": machine.describe()}
        print_json({**about, "frames": count, "fps": opened.fps, "seconds": round(seconds, 3), "file": str(target)})
        return 0
    say(f"{count} frames at {opened.fps:g} per second with {predictor.info.ref}, {predictor.runtime}")
    say(f"{seconds:.1f} s, {count / seconds:.1f} frames per second on {machine.one_line()}")
    say(target)
    notice("the sound of the source, if any, is not in the new video")
    return 0


def _segmented(predictor: Predictor, source: Video, options: dict[str, Any]) -> Iterator[NDArray[np.uint8]]:
    """Frames with their classes drawn over them."""
    import numpy as np

    from ..images.colours import contrasting_colours

    count, earlier = len(predictor.names), None
    palette = contrasting_colours(count) if options["distinct"] else predictor.info.labels.palette
    for result in predictor.stream(iter(source)):
        if options["smooth"]:
            result, earlier = smoothed(result, earlier, options["smooth"])
        labelled = replace(result, labels=replace(result.labels, names=result.names, palette=palette))
        yield np.asarray(labelled.overlay(0.5 if options["alpha"] is None else options["alpha"]))


def smoothed(
    result: SegmentResult, earlier: NDArray[np.float32] | None, share: float
) -> tuple[SegmentResult, NDArray[np.float32]]:
    """A result whose class probabilities are mixed with those of the earlier frames.

    Args:
        result: of this frame.
        earlier: what this function returned for the frame before; ``None``: there is none.
        share: of the earlier frames.

    Returns:
        The result, and its probabilities ``(C, h, w)``, an exponential average over the frames.
    """
    import numpy as np

    shifted = np.exp(result.logits - result.logits.max(0))
    now = shifted / shifted.sum(0)
    mean = now if earlier is None else share * earlier + (1 - share) * now
    return replace(result, logits=np.log(np.maximum(mean, 1e-12))), mean


def _upscaled(predictor: Predictor, source: Video, options: dict[str, Any]) -> Iterator[NDArray[np.uint8]]:
    """Enlarged frames."""
    if options["smooth"] or options["distinct"] or options["alpha"] is not None:
        raise ConfigError(f"--alpha, --smooth, --distinct: {predictor.info.ref} upscales; they are for segmentation")
    for result in predictor.stream(iter(source)):
        yield result.image


#: The frames of the new video, by the task of the model.
_FRAMES = {"segment": _segmented, "upscale": _upscaled}


def _with_progress(frames: Iterator[NDArray[np.uint8]], total: int) -> Iterator[NDArray[np.uint8]]:
    """The same frames with a bar; of a video that states no number of frames, with a count only."""
    with Progress().bar("video", max(total, 1)) as bar:
        for number, frame in enumerate(frames, 1):
            yield frame
            if number <= total:
                bar.advance()
