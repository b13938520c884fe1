"""The format of ExecuTorch: a program whose operations XNNPACK runs on the CPUs of phones."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..prediction.executorch_runner import EXECUTORCH_FILES
from ..prediction.file_network import Settings
from ..prediction.sealed import seal, with_outputs
from .graph import Graph, Options, RunFile, Written, exporter_errors, metadata, trace

if TYPE_CHECKING:
    from torch import fx
    from torch.export import ExportedProgram


def write_executorch(graph: Graph, files: Sequence[Path], options: Options) -> Written:
    """Write a network as a program.

    The description is the constant method ``foveal`` of the program; its parts are constant methods, too.

    Raises:
        ExportError: ExecuTorch cannot convert it.
        DependencyError: a package is missing.
    """
    info = with_outputs(graph.info, graph.outputs)
    with exporter_errors(info.model, "ExecuTorch", "executorch"):
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
        from executorch.exir.passes.constant_prop_pass import constant_prop_pass

        # XNNPACK takes convolutions with constant weights only, and the kernels of bicubic upsampling are computed.
        program = constant_prop_pass(trace(graph).run_decompositions({torch.ops.aten.gelu.default: _gelu}))
        _lay_out_constants(program)
        edge = to_edge_transform_and_lower(
            program, partitioner=[XnnpackPartitioner()], constant_methods=dict(metadata(info))
        )
        delegated, operations = _delegated(edge.exported_program())
        content = seal(edge.to_executorch().buffer, info.to_json())
    files[0].write_bytes(content)
    return Written(delegated, notes=(f"{operations:.0%} of the operations by number",))


def open_executorch(files: Sequence[Path]) -> RunFile:
    """Open a file with ExecuTorch, to compare it with the model."""
    network = EXECUTORCH_FILES.open(files[0], Settings(files[0].name))
    return lambda feed: list(network(feed).values())


def _gelu(x: torch.Tensor, *, approximate: str = "none") -> torch.Tensor:
    """GELU's approximation by tanh as products and a sigmoid: XNNPACK computes the exact GELU in its place."""
    if approximate != "tanh":
        return NotImplemented
    return x * torch.sigmoid(2 * math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))


def _lay_out_constants(program: ExportedProgram) -> None:
    """Give all constants the order of dimensions of new tensors.

    A computed constant may be a view with other strides, which count for ExecuTorch even where a side is 1: at run time
    it refuses operations whose input and output have dimensions of different orders.
    """
    for node in program.graph.nodes:
        name = program.graph_signature.inputs_to_lifted_tensor_constants.get(node.name, "")
        constant = program.constants.get(name)
        if isinstance(constant, torch.Tensor) and constant.ndim:
            program.constants[name] = torch.empty(constant.shape, dtype=constant.dtype).copy_(constant.detach())
            node.meta["val"] = node.meta["val"].new_empty(constant.shape)


def _delegated(program: ExportedProgram) -> tuple[float, float]:
    """Shares of the multiply-accumulates and of the operations that XNNPACK runs."""
    graph: Any = program.graph_module
    inside = [
        node
        for place in graph.graph.nodes
        if place.op == "get_attr" and hasattr(getattr(graph, place.target), "original_module")
        for node in getattr(graph, place.target).original_module.graph_module.graph.nodes
    ]
    inner, outer = (np.sum([_costs(node) for node in nodes], axis=0) for nodes in (inside, graph.graph.nodes))
    macs, operations = inner / np.maximum(inner + outer, 1)
    return (float(macs) if (inner + outer)[0] else float(operations)), float(operations)


def _costs(node: fx.Node) -> tuple[float, int]:
    """Floating point operations of a node's matrix products, and whether it is an operation."""
    from torch import SymInt
    from torch.fx import Node
    from torch.utils._pytree import tree_map
    from torch.utils.flop_counter import flop_registry

    operator = getattr(getattr(node.target, "_op", None), "overloadpacket", None)
    if node.op != "call_function" or operator is None:  # no operation on tensors
        return 0.0, 0
    if (count := flop_registry.get(operator)) is None:
        return 0.0, 1
    values = tree_map(lambda value: value.meta["val"] if isinstance(value, Node) else value, (node.args, node.kwargs))
    number: Any = count(*values[0], **values[1], out_val=node.meta["val"])
    hint: Any = number.node.hint if isinstance(number, SymInt) else number  # at the traced size
    return float(hint), 1
