"""Check the options of an export, before anything is written."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError
from ..progress import Progress
from .formats import FORMATS, Format
from .graph import OPSET
from .quantise import CALIBRATION_IMAGES, Request

MAX_OPSET = 23  #: of ONNX: the newest that the exporter writes


def check_options(
    format: Format,
    *,
    upsample: bool = False,
    input_size: tuple[int, int] | None = None,
    batch: int | None = None,
    opset: int | None = None,
    half: bool = False,
    bake: bool = False,
    int8: str | Path | None = None,
    max_loss: float | None = None,
    calibration_images: int | None = None,
    progress: Progress | None = None,
) -> Request | None:
    """Refuse options of :func:`foveal.export` that a format does not have, or that exclude each other.

    Returns:
        What is asked of an int8 file; ``None``: no int8 is asked for.

    Raises:
        ConfigError: one line about the option, with the name of the format if the option is of others.
    """
    request = _int8_request(int8, max_loss, calibration_images, progress)
    if request is not None:
        _check_int8(format, half)
    _check_format_options(format, opset, half, bake)
    if batch is not None and batch < 1:
        raise ConfigError(f"batch={batch}: give 1 or more")
    if input_size is not None and format.any_size:
        height, width = input_size
        raise ConfigError(
            f"images of {height}x{width}: {format.name} files take images of every size: leave the size out"
        )
    if bake and (upsample or request):
        raise ConfigError("bake gives classes at the image's size, in float32 or float16: leave upsample and int8 out")
    return request


def _int8_request(
    data: str | Path | None, max_loss: float | None, calibration_images: int | None, progress: Progress | None
) -> Request | None:
    """What is asked of an int8 file; ``None``: no int8 is asked for."""
    if data is not None:
        images = CALIBRATION_IMAGES if calibration_images is None else calibration_images
        return Request(data, max_loss, images, progress or Progress(enabled=False))
    for name, value in (("max_loss", max_loss), ("calibration_images", calibration_images)):
        if value is not None:
            raise ConfigError(f"{name}={value} is for int8: give int8=DATA, too, or leave it out")
    return None


def _check_int8(format: Format, half: bool) -> None:
    """Refuse int8 where there is none."""
    if half:
        raise ConfigError("half and int8: a file has one type: leave one out")
    if format.quantizer is None:
        able = ", ".join(other.name for other in FORMATS.values() if other.quantizer is not None)
        raise ConfigError(f"{format.name} files have no int8: export to one of {able}")


def _check_format_options(format: Format, opset: int | None, half: bool, bake: bool) -> None:
    """Refuse options that a format does not have."""
    if opset is not None:
        if not format.onnx:
            raise ConfigError(f"opset={opset}: {format.name} files have no choice of ONNX's operator set: leave it out")
        if not OPSET <= opset <= MAX_OPSET:
            raise ConfigError(f"opset={opset}: give {OPSET} to {MAX_OPSET}")
    for asked, ability, what in ((half, "halves", "no float16"), (bake, "bakes", "no preparation of images inside")):
        if asked and not getattr(format, ability):
            able = ", ".join(other.name for other in FORMATS.values() if getattr(other, ability))
            raise ConfigError(f"{format.name} files have {what}: export to one of {able}")
