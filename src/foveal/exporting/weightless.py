"""Write the ONNX graphs of :mod:`foveal.prediction.onnx_graphs`: networks without their weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from ..factory.load_model import load_model
from ..files import atomic_write
from ..info import info_of
from ..prediction.exported import SAM_PARTS
from ..prediction.file_network import FileNetwork, Settings
from ..prediction.onnx_graphs import SUFFIX, WEIGHTS_KEY
from ..prediction.onnx_runner import open_onnx_network
from ..weights.reading import read_checkpoint
from .export import GRAPHS
from .graph import Graph, Options, RunFile, Source, compare, exporter_errors
from .onnx import finish, translate

if TYPE_CHECKING:
    import onnx_ir as ir

_FOLDED = 4096  # numbers of the largest constant that is stored; larger ones are computed when the file is opened


def write_graphs(ref: str, weights: Path, folder: Path) -> list[Path]:
    """Write the graphs of a model, each of which equals the model when it is filled with its weights.

    Args:
        ref: name and tag of the weights.
        weights: their checkpoint, from which the graphs are filled when they are used.
        folder: for ``REF.graph``, or ``REF.PART.graph`` of a promptable model.

    Raises:
        ExportError: the model cannot be traced, or a graph differs from it; then that file is not written.
    """
    model = load_model(ref)
    info = info_of(model)
    info = info.replace(notes=info.notes | {"file": {"dtype": "float32"}}, output_stride=getattr(model, "stride", 1))
    source = Source(model, model, info, upsample=False, size=info.preprocess.size or (256, 320))
    keys = keys_in_file(ref)
    files = []
    for graph in GRAPHS[info.task](source):
        if graph.part in ("", *SAM_PARTS):
            files.append(folder / f"{ref}.{graph.part}{SUFFIX}".replace("..", "."))
            with atomic_write(files[-1]) as temporary:
                temporary.write_bytes(_translate(graph, keys))
                compare(graph, _open(temporary, weights))
    return files


def _open(file: Path, weights: Path) -> RunFile:
    network = FileNetwork(open_onnx_network, [file, weights], Settings(file.name))
    return lambda feed: list(network(feed).values())


def keys_in_file(ref: str) -> dict[str, str]:
    """Keys of a checkpoint's tensors by those of the model, which a published file has under other names."""
    checkpoint = read_checkpoint(ref)
    originals = {id(tensor): key for key, tensor in checkpoint.state.items()}
    return {key: originals[id(tensor)] for key, tensor in checkpoint.recognised.state.items()}


def _translate(graph: Graph, keys: dict[str, str]) -> bytes:
    """The content of the file of one network."""
    model = graph.model or graph.reference.get_submodule("model")
    names = {id(tensor): name for name, tensor in model.state_dict(keep_vars=True).items()}
    own = {name: names[id(tensor)] for name, tensor in graph.network.state_dict(keep_vars=True).items()}
    options = Options()
    with exporter_errors(graph.info.model, "ONNX"):
        program = translate(graph, options.opset)
        weights = _simplify(program.model, own)
    proto = program.model_proto
    kept = {value.name for value in proto.graph.input if value.name in weights}
    for value in [value for value in proto.graph.input if value.name in weights]:
        proto.graph.input.remove(value)
    finish(proto, graph, options)
    found = {name: list(dict.fromkeys((keys[own[name]], own[name]))) for name in sorted(kept)}
    proto.metadata_props.add(key=WEIGHTS_KEY, value=json.dumps(found))
    return proto.SerializeToString()


def _simplify(model: ir.Model, own: dict[str, str]) -> set[str]:
    """Fold what is constant whatever the weights are, and make the weights inputs; return their names."""
    import onnx_ir.passes.common as passes
    from onnxscript import optimizer

    weights = [value for name, value in model.graph.initializers.items() if name in own]
    for value in weights:
        del model.graph.initializers[str(value.name)]
        value.const_value = None
        model.graph.inputs.append(value)
    optimizer.fold_constants(model, output_size_limit=_FOLDED)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    optimizer.remove_unused_nodes(model)
    return {str(value.name) for value in weights if value.uses()}
