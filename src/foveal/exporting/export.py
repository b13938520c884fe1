"""Export a model to a file that runs without torch, and check that the file computes the same.

The file takes any batch and image size that the model takes: padding and cropping are inside. It holds the model's
description (preprocessing, class names, palette, licence), and it is compared with the model before it gets its name.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from ..errors import ConfigError
from ..factory.load_model import load_model
from ..files import atomic_write
from ..info import info_of
from ..layers.optimize import fold_norms
from ..layers.reparam import fuse_branches
from ..models.registry import check_takes_images
from ..prediction.onnx_runner import prompt_part
from ..task import TASKS
from .formats import Format, find_format
from .graph import Graph, Source, compare
from .image import image_graphs
from .prompt import prompt_graphs

#: The networks that a model of a task is exported as. Models of other tasks cannot be exported.
GRAPHS: dict[str, Callable[[Source], list[Graph]]] = {
    "classify": image_graphs,
    "segment": image_graphs,
    "upscale": image_graphs,
    "prompt": prompt_graphs,
}


@dataclass(frozen=True)
class ExportReport:
    """The file that was written, and how it was checked.

    Attributes:
        path: the file.
        format: its format, for example "onnx".
        opset: version of ONNX's operator set; 0 for formats that have none.
        bytes: size of the file, or of all files.
        sizes: (batch, height, width) of the images on which it was compared with the model; for promptable models: ().
        max_difference: largest difference between the outputs of file and model, relative to the model's largest
            output, over all inputs that were compared.
        agreement: smallest share of positions with the same class over all inputs; 1 for outputs without classes.
        extra_files: further files of a promptable model: the decoder in SAM's contract, and the one for many prompts.
    """

    path: Path
    format: str
    opset: int
    bytes: int
    sizes: tuple[tuple[int, int, int], ...]
    max_difference: float
    agreement: float
    extra_files: tuple[Path, ...] = ()

    def __fspath__(self) -> str:
        """The path of the file, so that the report can be used as a path."""
        return str(self.path)

    def __str__(self) -> str:
        opset = f", opset {self.opset}" if self.opset else ""
        size = f"{self.bytes / 1e6:.2f} MB{opset}"
        if self.extra_files:
            names = " + ".join(str(path) for path in (self.path, *self.extra_files))
            return f"{names}  {size}; equal the model to {self.max_difference:.1e}"
        sizes = ", ".join(f"{b}x{h}x{w}" for b, h, w in self.sizes)
        return (
            f"{self.path}  {size}; equals the model to {self.max_difference:.1e}, "
            f"same class on {self.agreement:.2%} (batch x height x width: {sizes})"
        )


def export(
    model_or_ref: nn.Module | str | Path,
    to: str = "onnx",
    *,
    output: str | Path | None = None,
    upsample: bool = False,
    size: tuple[int, int] = (256, 320),
) -> ExportReport:
    """Write a model as a file with dynamic batch, height and width; a promptable model as three files.

    Of a promptable model, ``NAME.encoder.onnx`` makes embeddings of images, ``NAME.decoder.onnx`` answers one prompt in
    the contract of SAM's own export, and ``NAME.prompts.onnx`` answers many prompts without a mask input.
    The native format has ``NAME.masks.foveal``, which encodes mask inputs, in place of the second.
    ``foveal.load`` takes the first and finds the others in the same folder.

    Args:
        model_or_ref: a model from ``create_model`` or ``load_model``, or a reference that ``load_model`` takes.
        to: format, "onnx" or "native".
        output: file to write; default: the model's name in the current folder.
        upsample: for segmentation: put the upsampling to the image's size into the file. By default the file gives
            logits at the model's own stride, and Foveal's predictor upsamples them.
        size: (H, W) to trace at, each at least twice the model's coarsest stride; the file takes any size from 32 up.
            A promptable model is traced at its own size.

    Returns:
        ExportReport: with ``path`` and how the file compares with the model.

    Raises:
        ConfigError: unknown format, impossible size, an option of another task, or a model that Foveal did not make.
        InputError: ``output`` cannot be written.
        ExportError: the model cannot be traced, the native engine lacks one of its layers, or the file differs from it;
            then no file is written.
    """
    format = find_format(to)
    model = model_or_ref if isinstance(model_or_ref, nn.Module) else load_model(model_or_ref)
    _check_request(model, upsample, size)
    source = _prepare(model, upsample, size)
    graphs = [graph for graph in GRAPHS[source.info.task](source) if graph.part in ("", *format.parts)]
    paths = _paths(Path(output) if output is not None else Path(f"{source.info.ref}{format.suffix}"), graphs)
    difference, agreement = _write_files(format, graphs, paths)
    return ExportReport(
        path=paths[0],
        format=format.name,
        opset=format.opset,
        bytes=sum(path.stat().st_size for path in paths),
        sizes=_compared_sizes(graphs),
        max_difference=difference,
        agreement=agreement,
        extra_files=tuple(paths[1:]),
    )


def _check_request(model: nn.Module, upsample: bool, size: tuple[int, int]) -> None:
    """Refuse a size that cannot be traced, and options and models that cannot be exported."""
    smallest = _smallest_traced_side(model)
    if min(size) < smallest:
        raise ConfigError(f"size={size}: trace at {smallest} pixels or more; the file takes smaller images too")
    info = info_of(model)
    check_takes_images(info.model)
    if info.task not in GRAPHS:
        raise ConfigError(
            f"{info.model} for {info.task!r} gives {TASKS[info.task].result}, which no format holds: "
            f"create the model for one of {', '.join(GRAPHS)}"
        )
    if upsample and not TASKS[info.task].labels_pixels:
        raise ConfigError(f"upsample is for segmentation, {info.model} is for {info.task!r}: leave it out")


def _smallest_traced_side(model: nn.Module) -> int:
    """Smallest side to trace at, in pixels.

    Where a feature map has one row or column, the tracer would take that number for a constant.
    """
    maps = getattr(getattr(model, "backbone", None), "feature_info", ())
    return 2 * max((info.stride for info in maps), default=32)


def _prepare(model: nn.Module, upsample: bool, size: tuple[int, int]) -> Source:
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
    return Source(model, folded, info, upsample, size)


def _paths(output: Path, graphs: Sequence[Graph]) -> list[Path]:
    """The file of each network: ``NAME.onnx``, or ``NAME.PART.onnx`` where there are several."""
    return [prompt_part(output, graph.part) if graph.part else output for graph in graphs]


def _write_files(format: Format, graphs: Sequence[Graph], paths: Sequence[Path]) -> tuple[float, float]:
    """Write and compare all files under temporary names; rename them only when all are right."""
    worst, agreement = 0.0, 1.0
    with ExitStack() as stack:
        for graph, path in zip(graphs, paths, strict=True):
            temporary = stack.enter_context(atomic_write(path))
            format.write(graph, temporary)
            difference, same = compare(graph, format.open(temporary))
            worst, agreement = max(worst, difference), min(agreement, same)
    return worst, agreement


def _compared_sizes(graphs: Sequence[Graph]) -> tuple[tuple[int, int, int], ...]:
    """(batch, height, width) of the images that a model's only file was compared on."""
    if len(graphs) > 1:
        return ()
    shapes = (feed["image"].shape for feed in graphs[0].feeds)
    return tuple((batch, height, width) for batch, _, height, width in shapes)
