"""Trace a model into an ONNX graph, describe it, and compare it with the model."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import DependencyError, ExportError
from ..info import IGNORE, KEY, ModelInfo

if TYPE_CHECKING:
    import onnx
    import onnx_ir as ir


OPSET = 18  #: the newest that ONNX Runtime 1.14 and later, OpenVINO and TensorRT 10 all read


TOLERANCE = 1e-4  #: largest difference to the model, over its largest output


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


def difference(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference over the largest expected value; NaN where either has one."""
    return float(np.abs(found - expected).max() / np.maximum(np.abs(expected).max(), np.finfo(np.float32).tiny))


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
