"""The verb ``export``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError, DependencyError, ExportError
from ..files import check_overwrites, ensure_folder
from ..text import notice
from .console import Json, parse_size, print_json, say

if TYPE_CHECKING:
    from torch import nn


def export(
    ref: str,
    /,
    *others: str,
    to: str = "onnx",
    output: Path | None = None,
    upsample: bool = False,
    size: str | None = None,
    batch: int | None = None,
    opset: int | None = None,
    half: bool = False,
    bake: bool = False,
    int8: Path | None = None,
    max_loss: float | None = None,
    calibration_images: int | None = None,
    json: Json = False,
) -> int:
    """Write a model as files that run without torch, checked against the model at several sizes.

    Parameters
    ----------
    ref
        Bundled name, checkpoint or training run.
    others
        Further models; their files, or the site of --to web, go to the same folder.
    to
        Formats, separated by commas: onnx, openvino, executorch, litert, coreml, tensorrt, native for the CPU engine,
        samexporter for annotation programs, or web: a folder with a page that runs models in the browser.
    output
        File to write; of several formats or models, and of web: the folder. If web is one of several formats, its site
        is the folder site in it. Default: the model's name in the current folder; web: the folder site.
    upsample
        For segmentation: put the upsampling to the image's size into the file.
    size
        Height and width of the only images that the file takes, as 512x1024, or the side of a square. Default: any
        size; executorch: up to 1024x2048; coreml and litert: that of the model's preprocessing, or 512x512.
    batch
        With --size: number of images that the file takes at once; default: 1.
    opset
        Version of ONNX's operator set; default: 18.
    half
        Write float16 instead of float32, except the layers that need the range of float32.
    bake
        Put all preparation and the argmax into the file: decoded images in, classes, probabilities or images out.
    int8
        Write int8 instead of float32: folder of a data set to calibrate on and, with other images, to measure the loss.
    max_loss
        With --int8: loss to stay within, in points of mIoU, top-1, box mIoU or similarity of maps, or dB of PSNR;
        default: 0.5, for super-resolution 0.1, for promptable models 1.
    calibration_images
        With --int8: number of images to calibrate on; default: 100.
    """
    from .. import export as export_model
    from .. import load_model
    from ..exporting.export import SITE
    from ..exporting.formats import FORMATS, find_format
    from ..progress import Progress

    formats = [find_format(name.strip()).name for name in to.split(",")]
    if len(set(formats)) < len(formats):
        raise ConfigError(f"--to {to}: a format is named twice")
    options = {"upsample": upsample, "opset": opset, "half": half, "bake": bake, "batch": batch}
    options |= {"int8": int8, "max_loss": max_loss, "calibration_images": calibration_images, "progress": Progress()}
    options |= {"input_size": parse_size(size) if size else None}
    refs, several = (ref, *others), bool(others) or len(formats) > 1
    if several and output is not None:
        _check_folder(output)
    check = _checker(formats, options)
    only = None if others else load_model(ref)
    if only is None:
        _check_models(refs, check)
    elif several:  # a mistake in the last one is found before the first file is written
        check(only)
    if output is not None:
        check_overwrites([output], [file for name in refs for file in (Path(name), *Path(name).glob("*.safetensors"))])
    reports, errors = [], {}
    with _folder_kept_if(reports, output if several else None):
        for each in refs:
            model = load_model(each) if only is None else only
            for name in formats:
                into = output / SITE if output and FORMATS[name].site and len(formats) > 1 else output
                try:
                    report = export_model(model, name, output=into, **options)
                except (ExportError, DependencyError) as error:
                    if not several:
                        raise
                    errors[f"{each}: {name}" if others else name] = str(error)
                    notice(f"{each}: {name}: {error}" if others else f"{name}: {error}")
                    continue
                reports.append(report.to_json())
                if not json:
                    say(report)
    if json:
        print_json({"files": reports, "errors": errors} if several else reports[0])
    return 1 if errors else 0


@contextmanager
def _folder_kept_if(written: Sequence[object], folder: Path | None) -> Iterator[None]:
    """Make a folder, and remove it in the end if it was not there before and nothing was written."""
    made = folder is not None and not folder.exists()
    if folder is not None:
        ensure_folder(folder)
    try:
        yield
    finally:
        if made and folder is not None and not written:
            with suppress(OSError):
                folder.rmdir()


def _checker(formats: Sequence[str], options: dict[str, Any]) -> Callable[[nn.Module], None]:
    """Check the options for all formats, and return the function that checks a model for all of them.

    Raises:
        ConfigError: an option of another format.
    """
    from ..exporting.checks import check_options
    from ..exporting.export import check_model
    from ..exporting.formats import FORMATS

    requests = {name: check_options(FORMATS[name], **options) for name in formats}
    of_model = {name: options[name] for name in ("upsample", "input_size", "batch", "bake")}

    def check(model: nn.Module) -> None:
        for name, request in requests.items():
            check_model(FORMATS[name], model, request=request, **of_model)

    return check


def _check_folder(output: Path) -> None:
    """Check that the name for a folder of several files is not that of a file.

    Raises:
        ConfigError: it is.
    """
    if _is_file_name(output) and not output.is_dir():
        raise ConfigError(f"--output {output}: several files are written, give a folder")


def _is_file_name(path: Path) -> bool:
    """Whether a path ends as the files of a format do."""
    from ..exporting.formats import FORMATS

    return path.suffix in {suffix for format in FORMATS.values() for suffix in format.suffixes}


def _check_models(refs: Sequence[str], check: Callable[[nn.Module], None]) -> None:
    """Open and check each of several models, and check that the files of no two of them have the same name.

    Raises:
        ConfigError: two models have the same name and tag, or one is the name of a file to write.
        FovealError: as :func:`foveal.load_model`, for a model that cannot be opened, and as ``check``.
    """
    from .. import load_model
    from ..info import info_of

    for each in refs[1:]:
        if _is_file_name(Path(each)) and not Path(each).exists():
            raise ConfigError(f"{each}: no such file; to choose the name of what is written, write --output {each}")
    names: dict[str, str] = {}
    for each in refs:
        model = load_model(each)
        check(model)
        name = info_of(model).file_stem
        if name in names:
            raise ConfigError(
                f"{names[name]} and {each} would be written to files of the same name, {name}: export one at a time, "
                "with --output"
            )
        names[name] = each
