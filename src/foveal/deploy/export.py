"""Exporting a model to a file that runs without torch, and proving that it still computes the same.

One ``torch.export`` program with symbolic batch, height and width is the source; padding and cropping are in the graph,
so the file takes any size that the model takes. The file holds the model's description (preprocessing, class names,
palette, licence) and is compared with the model at three sizes before anyone sees it.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ConfigError, DependencyError, ExportError, nearest
from ..files import written_whole
from ..info import IGNORE, KEY, ModelInfo, info_of
from ..layers.optimize import fold_norms
from ..layers.reparam import fuse_branches
from ..layers.resample import ceil_div
from ..registry import check_sees_images
from ..run.load import load_model
from ..run.onnx_runner import OnnxRunner
from ..tasks.prompt import PromptModel
from ..tasks.segment import SegmentationModel

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir

FORMATS = ("onnx",)
OPSET = 18  #: the newest that ONNX Runtime 1.14 and later, OpenVINO and TensorRT 10 all read
TOLERANCE = 1e-4  #: largest difference to the model, over its largest output
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
        beside: further files, of a promptable model: the decoder in SAM's contract, and the one for many prompts.
    """

    path: Path
    format: str
    opset: int
    bytes: int
    sizes: tuple[tuple[int, int, int], ...]
    max_difference: float
    agreement: float
    beside: tuple[Path, ...] = ()

    def __fspath__(self) -> str:
        """The report stands for its file wherever a path is expected."""
        return str(self.path)

    def __str__(self) -> str:
        if self.beside:
            names = " + ".join(str(path) for path in (self.path, *self.beside))
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
    check_sees_images(info.model)
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
        from .export_prompt import write_prompt_files

        worst, files = write_prompt_files(frozen, folded, info, output)
        size_on_disk = sum(file.stat().st_size for file in files)
        return ExportReport(files[0], to, OPSET, size_on_disk, (), worst, 1.0, tuple(files[1:]))
    graph = _Graph(folded, upsample)
    with written_whole(output) as temporary:
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


def traced(
    graph: nn.Module,
    example: tuple[Tensor, ...],
    dynamic_shapes: tuple[Any, ...],
    inputs: list[str],
    outputs: list[str],
    info: ModelInfo,
) -> onnx.ModelProto:
    """Trace ``graph`` on ``example`` into ONNX.

    Raises:
        ExportError: it cannot be traced.
        DependencyError: a package is missing.
    """
    try:
        with _quiet():
            # Traced here, not by torch.onnx.export: where this fails, that would go on to methods that fix the size.
            exported = torch.export.export(graph, example, dynamic_shapes=dynamic_shapes, strict=False)
            program = torch.onnx.export(
                exported,
                dynamo=True,
                input_names=inputs,
                output_names=outputs,
                opset_version=OPSET,
                optimize=False,
                verbose=False,
            )
            assert program is not None
            _simplify(program.model)
    except ModuleNotFoundError as error:
        raise DependencyError(f"exporting needs {error.name}: pip install 'foveal[torch]'") from error
    except Exception as error:  # the exporter raises many kinds; each means that this model has no such file
        raise ExportError(f"{info.model}: cannot be traced for ONNX ({reason(error)})") from error
    return program.model_proto


def reason(error: BaseException) -> str:
    """First line of the innermost error: the exporter's own is about the exporter."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next(iter(str(error).splitlines()), type(error).__name__)


def described(proto: onnx.ModelProto, info: ModelInfo) -> onnx.ModelProto:
    """Put the description in, and take out the tracer's notes: a tenth of the file, with paths of this machine."""
    graph = proto.graph
    for part in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output):
        del part.metadata_props[:]
    del graph.value_info[:]
    for node in graph.node:
        node.doc_string = ""
    proto.doc_string = f"{info.model}, {info.task}, exported by Foveal"
    for key, value in _readable(info).items():
        proto.metadata_props.add(key=key, value=value)
    return proto


def _simplify(model: ir.Model) -> None:
    """Fold constants and drop what is unused.

    The exporter's own optimiser also removes "additions of zero", and takes the attention's epsilon of 1e-15 for one:
    queries without a positive feature would then give 0/0. So only the passes that keep every number run here.
    """
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer

    optimizer.fold_constants(model)
    passes.CommonSubexpressionEliminationPass()(model)
    optimizer.remove_unused_nodes(model)


def _readable(info: ModelInfo) -> dict[str, str]:
    """The description, and its parts in plain text for people and other clients."""
    return {
        KEY: info.to_json(),
        "model": info.model,
        "task": info.task,
        "names": ", ".join(info.labels.names),
        "palette": ", ".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in info.labels.palette),
        **({"ignore_index": str(IGNORE)} if info.task == "segment" else {}),
        "mean": ", ".join(map(str, info.preprocess.mean)),
        "std": ", ".join(map(str, info.preprocess.std)),
        "output_stride": str(info.output_stride),
        "licence": info.licence,
    }


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


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest expected value; NaN where either has one."""
    return float(np.abs(found - expected).max() / np.maximum(np.abs(expected).max(), np.finfo(np.float32).tiny))


def _agreement(expected: np.ndarray, found: np.ndarray) -> float:
    """Share of equal argmax over dimension 1, leaving out positions whose two best differ by less than rounding."""
    if expected.shape[1] < 2:
        return 1.0
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > 1e-5 * np.abs(expected).max()
    return float((expected.argmax(1) == found.argmax(1))[clear].mean()) if clear.any() else 1.0


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's chatter and its own deprecation warnings from the user."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
