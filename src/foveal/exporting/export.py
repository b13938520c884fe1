"""Export a model to a file that runs without torch, and check that the file computes the same.

The file takes any batch and image size that the model takes: padding and cropping are inside. It holds the model's
description (preprocessing, class names, palette, licence), and it is compared with the model before it gets its name.
"""

from __future__ import annotations

import copy
import dataclasses
import math
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from torch import nn

from ..errors import ConfigError
from ..factory.load_model import load_model
from ..files import atomic_folder, atomic_write, ensure_folder
from ..info import ModelInfo, info_of
from ..layers.optimize import fold_norms
from ..layers.reparam import fuse_branches
from ..models.registry import check_takes_images
from ..prediction.exported import part_path
from ..prediction.input_limits import InputLimits
from ..progress import Progress
from ..task import TASKS
from .bake import bake as bake_graph
from .bake import check_bakes
from .checks import check_options
from .formats import Format, find_format
from .graph import OPSET, Graph, Options, Source, Written, compare
from .half_weights import with_half_weights
from .image import image_graphs
from .photograph import on_photograph
from .prompt import prompt_graphs
from .quantise import Request, quantise
from .report import ExportReport, current_command, report_path, versions_of
from .web import MODELS_FOLDER

TRACED_SIZE = (256, 320)  #: (H, W) to trace files of any size at
SMALLEST = 32  #: side of a fixed size, in pixels
FIXED_SIZE = (512, 512)  #: of formats that need a size, for models without one of their own
LARGEST = (1024, 2048)  #: (H, W) of the largest images of formats that need a bound
SITE = "site"  #: folder of formats that are one

#: The networks that a model of a task is exported as. Models of other tasks cannot be exported.
GRAPHS: dict[str, Callable[[Source], list[Graph]]] = {
    "classify": image_graphs,
    "segment": image_graphs,
    "upscale": image_graphs,
    "regress": image_graphs,
    "prompt": prompt_graphs,
}


def export(
    model_or_ref: nn.Module | str | Path,
    to: str = "onnx",
    *,
    output: str | Path | None = None,
    upsample: bool = False,
    size: tuple[int, int] = TRACED_SIZE,
    input_size: tuple[int, int] | None = None,
    batch: int | None = None,
    opset: int | None = None,
    half: bool = False,
    bake: bool = False,
    int8: str | Path | None = None,
    max_loss: float | None = None,
    calibration_images: int | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Write a model as a file with dynamic batch, height and width; a promptable model as three files.

    Of a promptable model, ``NAME.encoder.onnx`` makes embeddings of images, ``NAME.decoder.onnx`` answers one prompt in
    the contract of SAM's own export, and ``NAME.prompts.onnx`` answers many prompts without a mask input.
    The other formats have ``NAME.masks``, which encodes mask inputs, in place of the second.
    ``foveal.load`` takes the first and finds the others in the same folder.

    The report is stored beside the file, as ``NAME.onnx.json``.

    Args:
        model_or_ref: a model from ``create_model`` or ``load_model``, or a reference that ``load_model`` takes.
        to: format: "onnx", "openvino" (``NAME.xml`` and its weights ``NAME.bin``), "executorch", "litert", "coreml",
            "tensorrt", "native", "samexporter" (encoder and decoder for AnyLabeling and other programs of that
            layout), or "web" (a folder with a page that runs the model in the browser).
        output: file to write, or an existing folder; default: the model's name in the current folder. Of "web": a new
            or empty folder, or one that an earlier export wrote, to which the model is added; default: "site".
        upsample: for segmentation and regression: put the upsampling to the image's size into the file. By default the
            file gives logits or values at the model's own stride, and Foveal's predictor upsamples them.
        size: (H, W) to trace at, each at least twice the model's coarsest stride; the file takes any size from 32 up.
            A promptable model is traced at its own size.
        input_size: (H, W) of the only images that the file takes. Formats that need a size ("coreml", "litert") have by
            default that of the model's own preprocessing or 512x512; files of ExecuTorch take images up to 1024x2048.
            ``foveal.load`` pads smaller images and cuts larger ones into tiles.
        batch: number of images that a file of fixed size takes; default: 1.
        opset: version of ONNX's operator set; default: 18.
        half: float16 instead of float32, at half of the size. ONNX files compute in float16 too, except the layers that
            the report names in ``kept_float``; they are for GPUs and browsers, since CPUs convert to float32 and back.
            The other formats hold weights in float16, and the runtime decides in which type it computes.
        bake: put normalisation, the resize of fixed sizes, and the argmax at the image's size into the file: it takes
            decoded images, uint8 ``(1, H, W, 3)``, and gives classes ``(1, H, W)``, probabilities or images of uint8.
            ``foveal.load`` does not open such files.
        int8: int8 instead of float32, for layers with weights: a data set that :func:`foveal.evaluate` reads for the
            model's task. The file is calibrated on images of its training split and measured on others; layers are
            left in float32 until it loses little enough. Of a promptable model, the image encoder is quantised.
        max_loss: with ``int8``: what the file may lose. Default: 0.5 points of mIoU (segmentation), of top-1
            (classification) or of similarity (regression), 0.1 dB of PSNR (upscaling), 1 point of box mIoU (promptable
            models).
        calibration_images: with ``int8``: how many images to calibrate on; default: 100.
        progress: where to show progress; default: nowhere.

    Returns:
        ExportReport: with ``path`` and how the file compares with the model.

    Raises:
        ConfigError: unknown format, impossible size, an option of another task or format, or a model that Foveal did
            not make.
        DataError: the data set of ``int8`` cannot be used.
        InputError: ``output`` cannot be written.
        ExportError: the model cannot be traced, the native engine lacks one of its layers, the file differs from it, or
            int8 loses more than ``max_loss``; then no file is written.
        DependencyError: a package that the format needs is not installed.
    """
    format = find_format(to)
    request = check_options(
        format,
        upsample=upsample,
        input_size=input_size,
        batch=batch,
        opset=opset,
        half=half,
        bake=bake,
        int8=int8,
        max_loss=max_loss,
        calibration_images=calibration_images,
        progress=progress,
    )
    model = model_or_ref if isinstance(model_or_ref, nn.Module) else load_model(model_or_ref)
    check_model(
        format, model, upsample=upsample, size=size, input_size=input_size, batch=batch, bake=bake, request=request
    )
    limits = _input_limits(format, info_of(model), input_size, batch)
    source = _prepare(model, upsample, limits.size if limits.size and limits.fixed else size, limits)
    options = Options(half or format.site is not None, opset or OPSET)
    stem, suffix = source.info.file_stem, format.suffixes[0]
    path = Path(output or SITE, MODELS_FOLDER, stem + suffix) if format.site else _output_file(output, stem, format)
    with _without_new_folders(path.parent):
        site = format.site(Path(output or SITE), source.info) if format.site else None
        source = dataclasses.replace(source, info=_with_file(source.info, options, bake))
        make = format.graphs or GRAPHS[source.info.task]
        graphs = [graph for graph in make(source) if graph.part in ("", *format.parts)]
        if request is not None:
            return _write_int8(format, graphs, path, options, request)
        if bake:
            graphs = [bake_graph(graph, source) for graph in graphs]
        report = _write_all(format, graphs, path, options, progress)
        return site.finish(report) if site else report


@contextmanager
def _without_new_folders(folder: Path) -> Iterator[None]:
    """On failure, remove those of the folder and its parents that did not exist before, if nothing is in them."""
    new = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in new:
            with suppress(OSError):
                path.rmdir()
        raise


def _with_file(info: ModelInfo, options: Options, bake: bool) -> ModelInfo:
    """The description of a model with what is true of its file only, as the note "file"."""
    facts: dict[str, Any] = {"dtype": options.dtype}
    return info.replace(notes=info.notes | {"file": facts | ({"baked": True} if bake else {})})


def _output_file(output: str | Path | None, stem: str, format: Format) -> Path:
    """The file to write: of the model's name in the current folder, or in ``output`` if that is a folder."""
    path = Path(output) if output is not None else Path()
    if path.is_dir() and path.suffix != format.suffixes[0]:
        return path / f"{stem}{format.suffixes[0]}"
    if not path.name.endswith(format.suffixes[0]):
        raise ConfigError(f"output {path}: {format.name} files end in {format.suffixes[0]}")
    return path


def _write_all(
    format: Format, graphs: Sequence[Graph], output: Path, options: Options, progress: Progress | None = None
) -> ExportReport:
    """Write and compare the files of all networks, and their report, under temporary names; rename them at the end."""
    main = [part_path(output, graph.part) if graph.part else output for graph in graphs]
    files = [[path, *(path.with_suffix(suffix) for suffix in format.suffixes[1:])] for path in main]
    results: list[tuple[Written, float, float]] = []
    with ExitStack() as stack:
        report_file = stack.enter_context(atomic_write(report_path(main[0])))
        sizes = 0
        bar = stack.enter_context((progress or Progress(enabled=False)).bar("export", 2 * len(graphs)))
        for graph, paths in zip(graphs, files, strict=True):
            temporary = [
                stack.enter_context(atomic_folder(path) if format.folder else atomic_write(path)) for path in paths
            ]
            bar.part(0.0, f"write {paths[0].name}")
            if options.half:
                graph = _with_half_weights(on_photograph(graph), format.half_from)
            written = format.write(graph, temporary, options)
            bar.advance(f"compare {paths[0].name} with the model")
            difference, agreement = (
                compare(graph, format.open(temporary), options.dtype) if format.open else (math.nan, 1.0)
            )
            results.append((written, difference, agreement))
            sizes += sum(_bytes_of(path) for path in temporary)
            bar.advance(f"{paths[0].name} is written")
        report = ExportReport(
            path=main[0],
            format=format.name,
            opset=options.opset if format.onnx else 0,
            bytes=sizes,
            sizes=_compared_sizes(graphs),
            max_difference=max(difference for _, difference, _ in results),
            agreement=min(agreement for _, _, agreement in results),
            extra_files=tuple(path for paths in files for path in paths if path != main[0]),
            dtype=options.dtype,
            delegated=min(written.delegated for written, _, _ in results),
            kept_float=tuple(name for written, _, _ in results for name in written.kept_float),
            notes=_notes(graphs, [written for written, _, _ in results]),
            command=current_command(),
            versions=versions_of(format.packages),
        )
        report.write(report_file)
    return report


def _with_half_weights(graph: Graph, smallest: int) -> Graph:
    return dataclasses.replace(graph, network=with_half_weights(graph.network, graph.feeds[0], smallest))


def _notes(graphs: Sequence[Graph], written: Sequence[Written]) -> tuple[str, ...]:
    """Facts about all files, each once."""
    return tuple(dict.fromkeys(note for source in (*graphs, *written) for note in source.notes))


def _bytes_of(path: Path) -> int:
    """Size of a file, or of all files in a folder."""
    return (
        sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.is_dir() else path.stat().st_size
    )


def _write_int8(
    format: Format, graphs: Sequence[Graph], output: Path, options: Options, request: Request
) -> ExportReport:
    """Write the files in float32 to a temporary folder, quantise them there, and move them and their report."""
    assert format.quantizer is not None
    ensure_folder(output.parent)
    with TemporaryDirectory() as folder, ExitStack() as stack:
        options = dataclasses.replace(options, onnx_folder=Path(folder))
        report = _write_all(format, graphs, Path(folder) / "float32" / output.name, options, request.progress)
        source = Path(folder) / graphs[0].file_name  # of a promptable model: the image encoder
        report = quantise(report, source, format.suffixes, format.quantizer, request)
        files = [report.path, *report.extra_files]
        moved = [output.with_name(path.name) for path in files]
        for path, final in zip(files, moved, strict=True):
            shutil.copyfile(path, stack.enter_context(atomic_write(final)))
        report = dataclasses.replace(report, path=moved[0], extra_files=tuple(moved[1:]))
        report.write(stack.enter_context(atomic_write(report_path(report.path))))
    return report


def check_model(
    format: Format,
    model: nn.Module,
    *,
    upsample: bool = False,
    size: tuple[int, int] = TRACED_SIZE,
    input_size: tuple[int, int] | None = None,
    batch: int | None = None,
    bake: bool = False,
    request: Request | None = None,
) -> None:
    """Refuse a model that a format cannot hold, and options of :func:`export` that do not fit the model.

    Raises:
        ConfigError: one line about it.
        DataError: the data set of ``int8`` cannot be used.
    """
    info = info_of(model)
    _check_request(format, model, upsample, input_size or size, fixed=input_size is not None)
    if batch is not None:
        _check_batch(format, info, batch, fixed=input_size is not None or format.fixed)
    if request is not None:
        request.check(info)
    if bake:
        check_bakes(info)
    if format.site is not None:
        format.site.check(info)


def _check_batch(format: Format, info: ModelInfo, batch: int, fixed: bool) -> None:
    """Refuse a number of images that the file has no use for."""
    if TASKS[info.task].takes_prompts and (batch > 1 or not fixed):
        raise ConfigError(f"batch={batch}: a promptable model encodes one image at a time; leave it out")
    if fixed:
        return
    if format.any_size:
        raise ConfigError(f"batch={batch}: {format.name} files take any batch: leave it out")
    raise ConfigError(
        f"batch={batch}: {format.name} files have a number of images with a fixed size only: give a size, too, or "
        "leave it out"
    )


def _check_request(format: Format, model: nn.Module, upsample: bool, size: tuple[int, int], fixed: bool) -> None:
    """Refuse a size that cannot be traced, and options and models that cannot be exported."""
    smallest = SMALLEST if fixed else _smallest_traced_side(model)
    if min(size) < smallest:
        smaller = "; the file takes smaller images too" if smallest > _smallest_side(model) else ""
        raise ConfigError(
            f"images of {size[0]}x{size[1]}: the smallest fixed size is {smallest}x{smallest}"
            if fixed
            else f"size={size}: trace at {smallest} pixels or more{smaller}"
        )
    info = info_of(model)
    check_takes_images(info.model)
    if fixed and TASKS[info.task].takes_prompts:
        raise ConfigError(
            f"images of {size[0]}x{size[1]}: {info.model} is promptable and has a size of its own: leave it out"
        )
    if info.task not in GRAPHS:
        raise ConfigError(
            f"{info.model} for {info.task!r} gives {TASKS[info.task].result}, which no format holds: "
            f"create the model for one of {', '.join(GRAPHS)}"
        )
    if format.graphs and not TASKS[info.task].takes_prompts:
        raise ConfigError(f"{format.name} files are of promptable models, {info.model} is for {info.task!r}")
    if upsample and not TASKS[info.task].has_maps:
        raise ConfigError(
            f"upsample is for segmentation and regression, {info.model} is for {info.task!r}: leave it out"
        )


def _smallest_traced_side(model: nn.Module) -> int:
    """Smallest side to trace at, in pixels.

    Where a feature map has one row or column, the tracer would take that number for a constant.
    """
    maps = getattr(getattr(model, "backbone", None), "feature_info", ())
    return max(_smallest_side(model), 2 * max((info.stride for info in maps), default=32))


def _smallest_side(model: nn.Module) -> int:
    """Smallest side of an image that the model takes, in pixels."""
    return getattr(getattr(model, "backbone", None), "min_size", 1)


def _input_limits(
    format: Format, info: ModelInfo, input_size: tuple[int, int] | None, batch: int | None
) -> InputLimits:
    """What images the file takes: what the caller asks for, or else as many as the format can."""
    own = info.preprocess.size
    if TASKS[info.task].takes_prompts:
        limited = format.bounded or not format.free_prompts
        return InputLimits(own, 1, fixed=not format.free_prompts) if limited else InputLimits()
    if input_size is not None or format.fixed:
        return InputLimits(input_size or own or FIXED_SIZE, batch or 1, fixed=True)
    if not format.bounded:
        return InputLimits()
    return InputLimits(LARGEST, 1) if own is None else InputLimits(own, 1, fixed=True)


def _prepare(model: nn.Module, upsample: bool, size: tuple[int, int], limits: InputLimits) -> Source:
    """Copy the model to the CPU in float32, and fold the norms of a second copy.

    Runtimes that do not fold norms themselves are then as fast as others, and torch 2.6 with a current onnxscript
    cannot translate norms.
    """
    info = info_of(model)
    info = info.replace(output_stride=1 if upsample else getattr(model, "stride", 1))
    model = copy.deepcopy(model).cpu().float().eval()
    folded = copy.deepcopy(model)
    fold_norms(folded)
    fuse_branches(folded)
    if limits.fixed and TASKS[info.task].has_classes and not TASKS[info.task].has_maps:
        # A classifier's answer for a padded image would be another one: images are resized to the file's size.
        info = info.replace(preprocess=dataclasses.replace(info.preprocess, size=limits.size))
    return Source(model, folded, info, upsample, size, limits)


def _compared_sizes(graphs: Sequence[Graph]) -> tuple[tuple[int, int, int], ...]:
    """(batch, height, width) of the images that a model's only file was compared on."""
    if len(graphs) > 1:
        return ()
    images = (feed["image"] for feed in graphs[0].feeds)
    shapes = (image.transpose(0, 3, 1, 2).shape if image.dtype == np.uint8 else image.shape for image in images)
    return tuple((batch, height, width) for batch, _, height, width in shapes)
