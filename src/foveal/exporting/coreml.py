"""The format of Core ML: a package for Apple's devices, converted from the program that ``torch.export`` traced.

Images have a fixed size: coremltools does not convert paddings and windows of a symbolic size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..prediction.coreml_runner import open_coreml_network, why_not
from ..prediction.file_network import Settings
from .graph import Graph, Options, RunFile, Written, exporter_errors, metadata, trace

if TYPE_CHECKING:
    from torch import Tensor
    from torch.export import ExportedProgram


def write_coreml(graph: Graph, files: Sequence[Path], options: Options) -> Written:
    """Write a network as an ``.mlpackage`` for iOS 16, macOS 13 or newer.

    Raises:
        ExportError: coremltools cannot convert it.
        DependencyError: coremltools is not installed.
    """
    with exporter_errors(graph.info.model, "Core ML", "coreml"):
        import coremltools

        converted: Any = coremltools.convert(
            _program(graph),
            outputs=[coremltools.TensorType(name=name) for name in graph.outputs],
            minimum_deployment_target=coremltools.target.iOS16,
            compute_precision=coremltools.precision.FLOAT16 if options.half else coremltools.precision.FLOAT32,
            skip_model_load=True,
        )
        spec = converted.get_spec()
        for feature, name in zip(spec.description.input, graph.inputs, strict=True):
            coremltools.utils.rename_feature(spec, feature.name, name)
            _allow_one(feature.type.multiArrayType.shapeRange.sizeRanges)
        model = coremltools.models.MLModel(spec, weights_dir=converted.weights_dir, skip_model_load=True)
        model.short_description = f"{graph.info.model}, {graph.info.task}, exported by Foveal"
        model.license = graph.info.licence
        model.user_defined_metadata.update(metadata(graph.info))
        model.save(str(files[0]))
    return Written(notes=(f"not compared with the model: {why_not()}",) if why_not() else ())


def _program(graph: Graph) -> ExportedProgram:
    """The traced program, for one image, with attention as the products that it consists of.

    coremltools has an attention operator, but not for a symbolic number of tokens.
    """
    import torch

    if graph.part == "encoder":
        graph = replace(graph, example=tuple(value[:1] for value in graph.example), inputs={"image": ()})
    return trace(graph).run_decompositions({torch.ops.aten.scaled_dot_product_attention.default: _attention})


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    **rest: Any,
) -> Tensor:
    """``softmax(q k^T / sqrt(d) + mask) v``, in the memory layout of torch's own operator."""
    import torch

    if dropout_p or is_causal or any(rest.values()):
        raise NotImplementedError("attention with dropout, a causal mask or grouped heads")
    scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        no = torch.finfo(scores.dtype).min
        scores = scores.masked_fill(~attn_mask, no) if attn_mask.dtype == torch.bool else scores + attn_mask
    return (scores.softmax(-1) @ value).transpose(1, 2).contiguous().transpose(1, 2)


def _allow_one(ranges: Any) -> None:
    """Let symbolic dimensions begin at 1; the tracer takes 2 or more for granted, but uses that nowhere."""
    for size in ranges:
        if size.lowerBound == 2 and size.upperBound != 2:
            size.lowerBound = 1


def open_coreml(files: Sequence[Path]) -> RunFile:
    """Open a package with Core ML, to compare it with the model."""
    network = open_coreml_network(files, Settings(files[0].name))
    return lambda feed: list(network(feed).values())
