"""The format of Core ML: a package for Apple's devices, converted from the program that ``torch.export`` traced.

Images have a fixed size: coremltools does not convert paddings and windows of a symbolic size. In float16, quotients
with all from which they are computed, norms and sums stay in float32, as in ONNX files (:mod:`.half`).
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

#: Operations that are computed in float32 wherever they are.
_WIDE = {
    *("softmax", "layer_norm", "instance_norm", "l2_norm", "avg_pool", "inverse", "sqrt", "rsqrt", "pow", "exp", "log"),
    *("reduce_mean", "reduce_sum", "reduce_sum_square", "reduce_l1_norm", "reduce_l2_norm", "reduce_log_sum_exp"),
    *("reduce_prod", "softplus", "cumsum", "sin", "cos", "resize", "resize_bilinear", "upsample_bilinear", "range_1d"),
}
#: Operations that only move values: they give the same numbers in both types.
_MOVING = {
    *("transpose", "reshape", "squeeze", "expand_dims", "slice_by_index", "slice_by_size", "split", "concat", "stack"),
    *("gather", "identity", "tile", "pad", "depth_to_space", "space_to_depth", "pixel_shuffle", "relu"),
}
_CONVOLUTIONS = {"conv", "conv_transpose"}


def write_coreml(graph: Graph, files: Sequence[Path], options: Options) -> Written:
    """Write a network as an ``.mlpackage`` for iOS 16, macOS 13 or newer.

    Raises:
        ExportError: coremltools cannot convert it.
        DependencyError: coremltools is not installed.
    """
    with exporter_errors(graph.info.model, "Core ML", "coreml"):
        import coremltools

        program, kept = _program(graph), _KeptFloat()
        half = coremltools.transform.FP16ComputePrecision(op_selector=kept.takes_half)
        converted: Any = coremltools.convert(
            program,
            outputs=[coremltools.TensorType(name=name) for name in graph.outputs],
            minimum_deployment_target=coremltools.target.iOS16,
            compute_precision=half if options.half else coremltools.precision.FLOAT32,
            skip_model_load=True,
        )
        spec = converted.get_spec()
        for feature, name in zip(spec.description.input, graph.inputs, strict=True):
            coremltools.utils.rename_feature(spec, feature.name, name)
            _allow_one(feature.type.multiArrayType)
        model = coremltools.models.MLModel(spec, weights_dir=converted.weights_dir, skip_model_load=True)
        model.short_description = f"{graph.info.model}, {graph.info.task}, exported by Foveal"
        model.license = graph.info.licence
        model.user_defined_metadata.update(metadata(graph.info))
        model.save(str(files[0]))
    notes = (f"not compared with the model: {why_not()}",) if why_not() else ()
    return Written(kept_float=kept.layers(program), notes=notes)


class _KeptFloat:
    """The operations of a program that stay in float32; coremltools asks for each in the order of the program."""

    def __init__(self) -> None:
        self.kept: dict[str, str] | None = None  # types of the operations by name

    def takes_half(self, operation: Any) -> bool:
        """Whether an operation is computed in float16."""
        if self.kept is None:  # nothing is converted yet
            self.kept = _kept(operation.enclosing_block.operations)
        return operation.name not in self.kept

    def layers(self, program: ExportedProgram) -> tuple[str, ...]:
        """Names of the layers of the program that compute in float32."""
        names = [name for name, kind in (self.kept or {}).items() if kind not in _MOVING]
        stacks = {node.name: node.meta.get("nn_module_stack") or {} for node in program.graph.nodes}
        found = {name: [path for path, _ in stacks[name].values() if path] for name in names if name in stacks}
        return tuple(dict.fromkeys(path[-1].removeprefix("model.") if path else name for name, path in found.items()))


def _kept(operations: Sequence[Any]) -> dict[str, str]:
    """Names and types of the operations that stay in float32, in their order."""
    kept: set[str] = set()
    for operation in operations:
        kind = operation.op_type
        if not _is_float(operation):
            continue
        if kind in _WIDE:
            kept.add(operation.name)
        if (kind == "real_div" and operation.y.val is None) or kind in ("sin", "cos"):
            kept |= _sources(operation, through_products=kind != "real_div")
    for operation in operations:  # what only moves values of float16 can stay in float16
        if operation.op_type in _MOVING and not any(maker.name in kept for maker in _makers(operation)):
            kept.discard(operation.name)
    return {operation.name: operation.op_type for operation in operations if operation.name in kept}


def _sources(end: Any, through_products: bool) -> set[str]:
    """Names of an operation and of all from which it is computed, up to those with weights.

    Args:
        end: the operation.
        through_products: whether products with a constant matrix belong to them.
    """
    found, waiting = {end.name}, [end]
    while waiting:
        for maker in _makers(waiting.pop()):
            kind = maker.op_type
            product = kind == "linear" or (kind == "matmul" and any(v.val is not None for v in (maker.x, maker.y)))
            if maker.name in found or kind in _CONVOLUTIONS or (product and not through_products):
                continue
            found.add(maker.name)
            waiting.append(maker)
    return found


def _makers(operation: Any) -> list[Any]:
    """The operations that compute the inputs of an operation in float32."""
    inputs = (values if isinstance(values, list | tuple) else [values] for values in operation.inputs.values())
    made = (value.op for values in inputs for value in values if value.val is None)
    return [maker for maker in made if maker is not None and _is_float(maker)]


def _is_float(operation: Any) -> bool:
    return any(value.is_tensor_or_scalar_of(dtype="fp32") for value in operation.outputs)


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


def _allow_one(array: Any) -> None:
    """Let each size of an input that is not fixed be 1: torch writes 0 or 2 as the smallest one."""
    for index, size in enumerate(array.shapeRange.sizeRanges):
        if size.lowerBound != size.upperBound:
            size.lowerBound = 1
            array.shape[index] = max(1, array.shape[index])


def open_coreml(files: Sequence[Path]) -> RunFile:
    """Open a package with Core ML, to compare it with the model."""
    network = open_coreml_network(files, Settings(files[0].name))
    return lambda feed: list(network(feed).values())
