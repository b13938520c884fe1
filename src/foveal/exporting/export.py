"""Exporting a model to a file that runs without torch, and proving that it still computes the same.

One ``torch.export`` program with symbolic batch, height and width is the source; padding and cropping are in the graph,
so the file takes any size that the model takes. The file holds the model's description (preprocessing, class names,
palette, licence) and is compared with the model at three sizes before anyone sees it.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, ExportError, nearest
from ..factory.load_model import load_model
from ..files import atomic_write
from ..info import ModelInfo, info_of
from ..layers.optimize import fold_norms
from ..layers.reparam import fuse_branches
from ..layers.resample import ceil_div
from ..models.registry import check_takes_images
from ..prediction.onnx_runner import OnnxRunner
from ..tasks.prompt import PromptModel
from ..tasks.segment import SegmentationModel
from .graph import OPSET, TOLERANCE, described, difference, reason, traced

if TYPE_CHECKING:
    import onnx

FORMATS = ("onnx",)
AGREEMENT = 0.9999  #: smallest share of positions with the model's class, near ties left out


@dataclass(frozen=True)
class ExportReport:
    """What was written and how it was checked.

    Attributes:
        path: the file.
        format: "onnx".
        opset: version of ONNX's operator set.
        bytes: size of the file.
        sizes: (batch, height, width) at which it was compared with the model.
        max_difference: largest difference over the model's largest output, over all sizes.
        agreement: smallest share of equal argmax over all sizes.
        extra_files: further files, of a promptable model: the decoder in SAM's contract, and the one for many prompts.
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
        """The report stands for its file wherever a path is expected."""
        return str(self.path)

    def __str__(self) -> str:
        if self.extra_files:
            names = " + ".join(str(path) for path in (self.path, *self.extra_files))
            return (
                f"{names}  {self.bytes / 1e6:.2f} MB, opset {self.opset}; equal the model to {self.max_difference:.1e}"
            )
        sizes = ", ".join(f"{b}x{h}x{w}" for b, h, w in self.sizes)
        return (
            f"{self.path}  {self.bytes / 1e6:.2f} MB, opset {self.opset}; equals the model to "
            f"{self.max_difference:.1e}, same class on {self.agreement:.2%} (batch x height x width: {sizes})"
        )


def export(
    model_or_ref: nn.Module | str | Path,
    to: str = "onnx",
    *,
    output: str | Path | None = None,
    upsample: bool = False,
    size: tuple[int, int] = (256, 320),
) -> ExportReport:
    """Write a model as a file with dynamic batch, height and width; a promptable one as three.

    Of a promptable model, ``NAME.encoder.onnx`` makes embeddings of images, ``NAME.decoder.onnx`` answers one prompt in
    the contract of SAM's own export, and ``NAME.prompts.onnx`` many prompts without masks; ``foveal.load`` takes the
    first and finds the others beside it.

    Args:
        model_or_ref: model of ``create_model`` or ``load_model``, or a reference that ``load_model`` takes.
        to: format, "onnx".
        output: file to write; default: the model's name in the current folder.
        upsample: segmentation: put the upsampling to the image's size into the graph. Default: logits at the model's
            own stride, which Foveal's predictor upsamples.
        size: (H, W) to trace at, each at least twice the model's coarsest stride; the file takes any from 32 up. A
            promptable model is traced at its own size.

    Returns:
        ExportReport: with ``path`` and how the file compares with the model.

    Raises:
        ConfigError: unknown format, impossible size, an option of another task, or a model that Foveal did not make.
        InputError: ``output`` cannot be written.
        ExportError: the model cannot be traced, or the file differs from it; nothing is written then.
    """
    if to not in FORMATS:
        raise ConfigError(f"unknown format {to!r}{nearest(to, FORMATS)}")
    model = model_or_ref if isinstance(model_or_ref, nn.Module) else load_model(model_or_ref)
    least = _least_traced(model)
    if min(size) < least:
        raise ConfigError(f"size={size}: trace at {least} pixels or more; the file takes smaller images too")
    info = info_of(model)
    check_takes_images(info.model)
    if info.task == "features":
        raise ConfigError(f"{info.model}: a pyramid has several outputs; export a model for a task")
    if upsample and not isinstance(model, SegmentationModel):
        raise ConfigError(f"upsample is for segmentation, {info.model} is for {info.task!r}: leave it out")
    info = info.replace(output_stride=1 if upsample else getattr(model, "stride", 1))
    name = info.ref
    output = Path(output) if output is not None else Path(f"{name}.onnx")
    frozen = copy.deepcopy(model).cpu().float().eval()
    folded = copy.deepcopy(frozen)
    # Runtimes that do not fold then need not, and torch 2.6 with a current onnxscript cannot translate the norms.
    fold_norms(folded)
    fuse_branches(folded)
    if isinstance(frozen, PromptModel) and isinstance(folded, PromptModel):
        from .prompt import write_prompt_files

        worst, files = write_prompt_files(frozen, folded, info, output)
        size_on_disk = sum(file.stat().st_size for file in files)
        return ExportReport(files[0], to, OPSET, size_on_disk, (), worst, 1.0, tuple(files[1:]))
    graph = _Graph(folded, upsample)
    with atomic_write(output) as temporary:
        temporary.write_bytes(_trace(graph.eval(), info, size).SerializeToString())
        report = _compare(temporary, _Graph(frozen, upsample), info, size)
    return ExportReport(output, to, OPSET, output.stat().st_size, *report)


def _least_traced(model: nn.Module) -> int:
    """Smallest side to trace at, in pixels: the tracer takes a map of one row or column for one that always is."""
    maps = getattr(getattr(model, "backbone", None), "feature_info", ())
    return 2 * max((info.stride for info in maps), default=32)


class _Graph(nn.Module):
    """The computation that goes into the file: image to logits, nothing else."""

    def __init__(self, model: nn.Module, upsample: bool) -> None:
        super().__init__()
        self.model, self.upsample = model, upsample

    def forward(self, image: Tensor) -> Tensor:
        if not isinstance(self.model, SegmentationModel):
            return self.model(image)
        height, width = image.shape[-2:]
        logits = self.model.padded(image)
        if self.upsample:
            return _cropped(self.model.upsampled(logits), height, width)
        return _cropped(logits, ceil_div(height, self.model.stride), ceil_div(width, self.model.stride))


def _cropped(x: Tensor, height: int, width: int) -> Tensor:
    """The first rows and columns.

    Not slices: the tracer cannot prove that their symbolic ends lie inside, and would insist on multiples of 32.
    """
    return x.index_select(-2, torch.arange(height)).index_select(-1, torch.arange(width))


def _trace(graph: nn.Module, info: ModelInfo, size: tuple[int, int]) -> onnx.ModelProto:
    from torch.export import Dim

    image = torch.zeros(2, info.in_chans, *size)
    # DYNAMIC, not named ranges: windows give conditions (7 * n % n == 0, say) that always hold and that the tracer
    # cannot prove. A side that became a constant is still an error, and the file is compared at other sizes.
    sides = {0: Dim.DYNAMIC, 2: Dim.DYNAMIC, 3: Dim.DYNAMIC}
    output = "upscaled" if info.task == "upscale" else "logits"
    proto = described(traced(graph, (image,), (sides,), ["image"], [output], info), info)
    scale = info.options["scale"] if info.task == "upscale" else 1
    ratio = f"*{scale}" if scale > 1 else f"/{info.output_stride}" if info.output_stride > 1 else ""
    outer = [f"{side}{ratio}" for side in ("height", "width")]
    for value, names in ((proto.graph.input[0], ("height", "width")), (proto.graph.output[0], outer)):
        dims = value.type.tensor_type.shape.dim
        for dim, name in zip((dims[0], *dims[2:]), ("batch", *names), strict=False):
            dim.dim_param = name
    return proto


def _compare(
    path: Path, model: nn.Module, info: ModelInfo, size: tuple[int, int]
) -> tuple[tuple[tuple[int, int, int], ...], float, float]:
    """Run the file beside the model at the traced size, an odd one, and a small one; raise where they differ."""
    runner = OnnxRunner(path)
    sizes = ((1, *size), (2, size[0] // 2 + 5, size[1] + 13), (1, 33, 64))
    rng = np.random.default_rng(0)
    differences, agreement = [], 1.0
    for batch, height, width in sizes:
        image = rng.standard_normal((batch, info.in_chans, height, width)).astype(np.float32)
        with torch.inference_mode():
            expected = model(torch.from_numpy(image)).numpy()
        try:
            found = runner(image)
        except Exception as error:  # the runtime's exceptions are not public
            raise ExportError(f"the file does not run at {height}x{width} ({reason(error)}): not written") from error
        if found.shape != expected.shape:
            raise ExportError(f"the file gives {found.shape} at {height}x{width}, the model {expected.shape}")
        differences.append(difference(found, expected))
        if info.task != "upscale":  # which makes no classes
            agreement = min(agreement, _agreement(expected, found))
    worst = float(np.max(differences))
    if not worst <= TOLERANCE or agreement < AGREEMENT:  # nor where it is NaN
        raise ExportError(f"the file differs from the model by {worst:.1e}, same class on {agreement:.3%}: not written")
    return sizes, worst, agreement


def _agreement(expected: np.ndarray, found: np.ndarray) -> float:
    """Share of equal argmax over dimension 1, leaving out positions whose two best differ by less than rounding."""
    if expected.shape[1] < 2:
        return 1.0
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > 1e-5 * np.abs(expected).max()
    return float((expected.argmax(1) == found.argmax(1))[clear].mean()) if clear.any() else 1.0
