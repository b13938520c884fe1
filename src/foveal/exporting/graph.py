"""Networks that become files: what a format needs to know of one, how it is traced, and how its file is checked.

Nothing here belongs to one format: every file of this folder that writes a format uses it.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from ..errors import DependencyError, ExportError, FovealError
from ..info import IMAGENET_MEAN, KEY, ModelInfo, Preprocess
from ..prediction.exported import file_facts
from ..prediction.input_limits import ANY_IMAGES, InputLimits
from ..task import TASKS

TOLERANCE = 1e-4  #: largest difference between a file and its model, relative to the model's largest output
AGREEMENT = 0.9999  #: smallest share of positions at which both have the same class, near ties left out
_ROUNDING = 1e-5  # relative to the largest score: what two orders of the same sums differ by
#: The same two numbers for files of other types; those of images are compared on a photograph (:mod:`.photograph`).
LIMITS = {"float16": (0.02, 0.985)}
IMAGE_NDIM = 4  #: of batches of images of 8 bits; batches of classes have fewer dimensions
OPSET = 18  #: of ONNX: the newest that ONNX Runtime 1.14 and later, OpenVINO and TensorRT 10 all read

Feed: TypeAlias = Mapping[str, NDArray[Any]]  #: inputs of a network by name, in order
RunFile: TypeAlias = Callable[[Feed], list[NDArray[Any]]]  #: runs an exported file on a feed


@dataclass(frozen=True)
class Options:
    """How files are written.

    Attributes:
        half: float16 instead of float32.
        opset: version of ONNX's operator set.
        onnx_folder: where to keep the ONNX model of each network besides, under :attr:`Graph.file_name`.
    """

    half: bool = False
    opset: int = OPSET
    onnx_folder: Path | None = None

    @property
    def dtype(self) -> str:
        """Type of the files' weights, a key of :data:`LIMITS`, or "float32"."""
        return "float16" if self.half else "float32"


@dataclass(frozen=True)
class Written:
    """What the writer of a format reports about the files of a network.

    Attributes:
        delegated: share of the operations that the format's fast backend runs.
        kept_float: layers that stayed in float32 in a file of another type.
        notes: further facts in words.
    """

    delegated: float = 1.0
    kept_float: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Source:
    """A model prepared for export.

    Attributes:
        model: copy of the model on the CPU, in float32 and evaluation mode: what the files are compared with.
        folded: the same model with its batch norms folded into its convolutions: what is exported.
        info: description of the model.
        upsample: whether the file of a segmentation model upsamples its logits to the size of the image.
        size: (H, W) of the image to trace with.
        limits: of the images that the file takes.
    """

    model: nn.Module
    folded: nn.Module
    info: ModelInfo
    upsample: bool
    size: tuple[int, int]
    limits: InputLimits = ANY_IMAGES


@dataclass(frozen=True)
class Graph:
    """One network that becomes one file.

    Attributes:
        part: what this file is among several files of one model, for example "encoder"; empty if it is the only one.
        network: the module to export. Its inputs are positional.
        reference: the module that the file must equal, with the same inputs and outputs.
        info: the description that goes into the file.
        example: inputs to trace with.
        inputs: names of the inputs, in order, each with the names of its dimensions: free dimensions have a name,
            fixed ones the empty string. Fixed dimensions at the end may be left out.
        outputs: the same for the outputs.
        feeds: inputs on which the file is compared with the reference.
        repeats: how many of these in a row are alike. They count together, so that one of them may be an accident.
        variants: inputs of further shapes, which a format without free dimensions also takes.
        bounds: largest values of free dimensions by name; those that are not here are unbounded.
        has_classes: whether dimension 1 of the output holds one score per class, so that the classes are compared too.
        model: the model that the network is a part of, for formats that derive it from there.
        notes: facts in words, for the report.
    """

    part: str
    network: nn.Module
    reference: nn.Module
    info: ModelInfo
    example: tuple[Tensor, ...]
    inputs: dict[str, tuple[str, ...]]
    outputs: dict[str, tuple[str, ...]]
    feeds: tuple[Feed, ...]
    repeats: int = 1
    variants: tuple[tuple[Tensor, ...], ...] = ()
    bounds: Mapping[str, int] = field(default_factory=dict)
    has_classes: bool = False
    model: nn.Module | None = None
    notes: tuple[str, ...] = ()

    @property
    def file_name(self) -> str:
        """A name for the network's ONNX model."""
        return f"{self.part or 'network'}.onnx"


def trace(graph: Graph) -> ExportedProgram:
    """Trace a network with ``torch.export``; the dimensions that have a name stay symbolic."""
    # DYNAMIC, not named ranges: windows give conditions (for example 7 * n % n == 0) that always hold and that the
    # tracer cannot prove. A side that became a constant is still an error, and the file is compared at other sizes.
    bounds = {name: Dim.DYNAMIC(max=bound) for name, bound in graph.bounds.items()}
    free = [
        {i: bounds.get(name, Dim.DYNAMIC) for i, name in enumerate(names) if name} or None
        for names in graph.inputs.values()
    ]
    with _no_smallest_size():
        return torch.export.export(graph.network.eval(), graph.example, dynamic_shapes=tuple(free), strict=False)


def _no_smallest_size() -> contextlib.AbstractContextManager[Any]:
    """Let the tracer take a side for any number where it would tell 1 from larger ones.

    Else a program of a network whose last maps have one row or column for the smallest images is bound to larger ones.
    """
    settings: Any = importlib.import_module("torch.fx.experimental._config")
    known = hasattr(settings, "backed_size_oblivious")  # not in every version of torch
    return settings.patch(backed_size_oblivious=True) if known else contextlib.nullcontext()


@contextlib.contextmanager
def exporter_errors(model: str, title: str, extra: str = "torch") -> Iterator[None]:
    """Silence the exporter of a format and turn its exceptions into typed ones of one line.

    Args:
        model: name of the model, for the message.
        title: name of the format, for the message.
        extra: the extra of Foveal's installation that brings its packages.

    Raises:
        ExportError: the model cannot be written in this format.
        DependencyError: a package is missing.
    """
    try:
        with _quiet():
            yield
    except FovealError:
        raise
    except ModuleNotFoundError as error:
        raise DependencyError(f"exporting needs {error.name}: pip install 'foveal[{extra}]'") from error
    except Exception as error:  # exporters raise many kinds; each means that this model has no such file
        raise ExportError(f"{model}: cannot be traced for {title} ({first_line(error)})") from error


def first_line(error: BaseException) -> str:
    """First line with words of the innermost error: an exporter's own error is about itself, not about the cause."""
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def metadata(info: ModelInfo) -> dict[str, str]:
    """What a file says about its model: the description as JSON, and its parts as plain text for other programs.

    The keys are documented in docs/deploy.md. What differs between the files of a model is the note "file".
    """
    file, limits = file_facts(info), InputLimits.of(info)
    prepare, baked = info.preprocess, file.get("baked", False)
    resizes = baked and TASKS[info.task].has_classes and bool(prepare.size or limits.fixed)
    return {
        KEY: info.to_json(),
        "model": info.model,
        "task": info.task,
        "names": ", ".join(info.labels.names),
        "palette": ", ".join(f"#{r:02x}{g:02x}{b:02x}" for r, g, b in info.labels.palette),
        **({"ignore_index": str(info.ignored)} if TASKS[info.task].labels_pixels else {}),
        "mean": ", ".join(map(str, info.preprocess.mean)),
        "std": ", ".join(map(str, info.preprocess.std)),
        "output_stride": str(info.output_stride),
        "licence": info.licence,
        "dtype": file.get("dtype", "float32"),
        "image_type": prepare.dtype,
        "input_type": prepare.dtype if baked else "float32",
        "layout": "NHWC" if baked else "NCHW",
        "channel_order": "RGB" if info.in_chans == len(IMAGENET_MEAN) else "as in training",
        "value_range": f"0..{prepare.peak}" if baked else "0..1, then (value - mean) / std",
        "input_size": "any" if resizes else limits.to_text(),
        "multiple": "1",
        "resize": "inside" if resizes else _resize_rule(prepare),
        "resample": prepare.resample,
    }


def _resize_rule(prepare: Preprocess) -> str:
    """How images are resized before they are normalised, as a word with sizes as HxW."""
    if prepare.size is None:
        return f"longest side at most {prepare.max_side}" if prepare.max_side else "none"
    size = "x".join(map(str, prepare.size))
    if prepare.pad:
        return f"longest side to {max(prepare.size)}, zeros at right and bottom after normalisation to {size}"
    if prepare.crop_ratio > 0 and prepare.squash:
        sides = "x".join(str(math.floor(side / prepare.crop_ratio)) for side in prepare.size)
        return f"to {sides}, centre crop of {size}"
    if prepare.crop_ratio > 0:
        return f"shortest side to {math.ceil(min(prepare.size) / prepare.crop_ratio)}, centre crop of {size}"
    return f"to {size}"


def compare(graph: Graph, run_file: RunFile, dtype: str = "float32") -> tuple[float, float]:
    """Run a file and the network that it must equal on the same inputs.

    Args:
        graph: the network.
        run_file: runs the file.
        dtype: of the file, which decides how large a difference may be.

    Returns:
        Largest difference relative to the network's largest output, of inputs that are alike the median, and smallest
        share of positions with the same class, of inputs that are alike the share of all (1 without classes).

    Raises:
        ExportError: the file does not run, or its outputs have other shapes or other values.
    """
    tolerance, least = LIMITS.get(dtype, (TOLERANCE, AGREEMENT))
    differences, shares, positions = [], [], []
    for feed in graph.feeds:
        expected = _run_reference(graph.reference, feed)
        outputs = _run_file(graph, run_file, feed)
        found = []
        for name, output, reference in zip(graph.outputs, outputs, expected, strict=True):
            if output.shape != reference.shape:
                shapes = f"{name} of {output.shape} for {_shapes(feed)}, the model {reference.shape}"
                raise ExportError(f"the {_label(graph)} gives {shapes}: not written")
            found.append(difference(output, reference))
        differences.append(np.max(found))
        shares.append(_agreement(graph, feed, expected[0], outputs[0], least) if graph.has_classes else 1.0)
        positions.append(expected[0].size)
    worst = float(np.max(np.median(np.reshape(differences, (-1, graph.repeats)), axis=1)))
    agreement = float(np.average(shares, weights=positions) if graph.repeats > 1 else np.min(shares))
    if not worst <= tolerance or agreement < least:  # "not <=" also refuses NaN
        classes = f", same class on {agreement:.3%}" if graph.has_classes else ""
        cause = _overflow(graph, dtype)
        raise ExportError(f"the {_label(graph)} differs from the model by {worst:.1e}{classes}{cause}: not written")
    return worst, agreement


@torch.inference_mode()
def _overflow(graph: Graph, dtype: str) -> str:
    """What the message says of a model whose layers give values that float16 cannot hold; else nothing."""
    if dtype != "float16":
        return ""
    largest = 0.0

    def watch(module: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal largest
        if isinstance(output, Tensor) and output.is_floating_point() and output.numel():
            largest = max(largest, float(output.abs().max()))

    hooks = [module.register_forward_hook(watch) for module in graph.reference.modules()]
    try:
        for feed in graph.feeds:
            _run_reference(graph.reference, feed)
    finally:
        for hook in hooks:
            hook.remove()
    limit = torch.finfo(torch.float16).max
    return f" (values inside reach {largest:,.0f}, float16 ends at {limit:,.0f})" if largest > limit else ""


def difference(output: NDArray[Any], expected: NDArray[Any]) -> float:
    """Largest difference over the largest expected value; NaN where either has one.

    Images of 8 bits may differ by one level, where values lie between two. Classes are not compared here.
    """
    if np.issubdtype(expected.dtype, np.integer):
        levels = np.abs(output.astype(np.int64) - expected).max() if expected.ndim == IMAGE_NDIM else 1
        return float(max(0, levels - 1) / np.iinfo(expected.dtype).max)
    return float(np.abs(output - expected).max() / np.maximum(np.abs(expected).max(), np.finfo(np.float32).tiny))


def _agreement(graph: Graph, feed: Feed, expected: NDArray[Any], output: NDArray[Any], least: float) -> float:
    """Share of equal classes; if it is too small, without the ties that the model itself decides by rounding."""
    agreement = class_agreement(expected, output)
    if agreement >= least or np.issubdtype(expected.dtype, np.integer):
        return agreement
    doubled = {name: array.astype(np.float64) if array.dtype == np.float32 else array for name, array in feed.items()}
    exact = _run_reference(deepcopy(graph.reference).double(), doubled)[0]
    rounding = difference(expected, exact)  # of a network in float32, against the same in float64
    return class_agreement(expected, output, max(_ROUNDING, 2 * rounding))  # each of two scores may be off by it


def class_agreement(expected: NDArray[Any], output: NDArray[Any], rounding: float = _ROUNDING) -> float:
    """Share of equal classes, of scores the argmax over dimension 1.

    Positions whose two best scores differ by less than ``rounding``, relative to the largest score, do not count.
    """
    if np.issubdtype(expected.dtype, np.integer):
        return float((expected == output).mean())
    if expected.shape[1] < 2:
        return 1.0
    best = np.sort(expected, axis=1)
    clear = best[:, -1] - best[:, -2] > rounding * np.abs(expected).max()
    return float((expected.argmax(1) == output.argmax(1))[clear].mean()) if clear.any() else 1.0


@torch.inference_mode()
def _run_reference(reference: nn.Module, feed: Feed) -> list[NDArray[Any]]:
    outputs = reference(*map(torch.from_numpy, feed.values()))
    return [output.numpy() for output in (outputs if isinstance(outputs, tuple) else (outputs,))]


def _run_file(graph: Graph, run_file: RunFile, feed: Feed) -> list[NDArray[Any]]:
    try:
        return run_file(feed)
    except Exception as error:  # the runtimes' exceptions are not public
        message = f"the {_label(graph)} does not run on {_shapes(feed)} ({first_line(error)}): not written"
        raise ExportError(message) from error


def _label(graph: Graph) -> str:
    return graph.part or "file"


def _shapes(feed: Feed) -> str:
    return ", ".join(f"{name} {'x'.join(map(str, value.shape))}" for name, value in feed.items())


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide what exporters print and log, and their own deprecation warnings."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        level = logging.root.manager.disable
        logging.disable(logging.WARNING)
        try:
            yield
        finally:
            logging.disable(level)
