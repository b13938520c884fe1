"""Quantise OpenVINO files with NNCF: weights in int8, and a FakeQuantize before each layer."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..info import ModelInfo
from ..prediction.openvino_runner import read_model
from .graph import Feed, exporter_errors
from .openvino import save_openvino

if TYPE_CHECKING:
    import openvino

_LAYERS = ("Convolution", "GroupConvolution", "ConvolutionBackpropData", "GroupConvolutionBackpropData", "MatMul")
_INPUTS, _QUICK_INPUTS = 1000, 4  # to calibrate on, at most


class OpenVinoQuantizer:
    """Writes OpenVINO files in int8, with any of its layers left in float32.

    The layers are those of :class:`~foveal.exporting.quantise_onnx.OnnxQuantizer`. Their inputs are quantised, and NNCF
    corrects their biases.

    Args:
        files: the graph and the weights in float32.
        feeds: inputs to calibrate on.

    Attributes:
        layers: bytes of the weights of each layer in float32, by name.

    Raises:
        ExportError: it cannot be quantised.
        DependencyError: a package is missing.
    """

    def __init__(self, files: Sequence[Path], feeds: Iterable[Feed]) -> None:
        self.name, self.feeds = files[0].name, feeds
        with exporter_errors(self.name, "int8", "openvino"):
            import nncf  # noqa: F401 - a missing package is an error before the work

            self.model = read_model([path.read_bytes() for path in files], self.name)
            self.nodes, self.layers = _find_layers(self.model)

    def write(self, files: Sequence[Path], names: Collection[str], info: ModelInfo, *, quick: bool = False) -> None:
        """Write the files with the layers ``names`` in int8; see :class:`foveal.exporting.quantise.Quantizer`."""
        with exporter_errors(self.name, "int8", "openvino"):
            import nncf

            chosen = {self.nodes[name] for name in names}
            others = [op.get_friendly_name() for op in self.model.get_ordered_ops() if _may_be_quantised(op, chosen)]
            model = nncf.quantize(
                self.model,
                nncf.Dataset(self.feeds),
                subset_size=_QUICK_INPUTS if quick else _INPUTS,
                fast_bias_correction=True,
                ignored_scope=nncf.IgnoredScope(names=others, validate=False),
                advanced_parameters=nncf.AdvancedQuantizationParameters(disable_bias_correction=quick),
            )
            save_openvino(model, files, info)


def _may_be_quantised(op: openvino.Node, chosen: Collection[str]) -> bool:
    """Whether NNCF might quantise an operation that is not one of the ``chosen``."""
    return op.get_type_name() not in ("Parameter", "Result", "Constant") and op.get_friendly_name() not in chosen


def _find_layers(model: openvino.Model) -> tuple[dict[str, str], dict[str, int]]:
    """Names of the operations that can be quantised and bytes of their weights, by the names of the layers."""
    nodes: dict[str, str] = {}
    sizes: dict[str, int] = {}
    for op in model.get_ordered_ops():
        weights = _weights(op) if op.get_type_name() in _LAYERS else None
        if weights is None:
            continue
        name, size = weights
        is_parameter = name.endswith(".weight")
        if is_parameter or op.get_type_name() == "MatMul":  # other filters are fixed ones
            layer = name.removeprefix("model.").removesuffix(".weight") if is_parameter else op.get_friendly_name()
            nodes[layer], sizes[layer] = op.get_friendly_name(), size
    return nodes, sizes


def _weights(op: Any) -> tuple[str, int] | None:
    """Name and bytes of the constant that an operation multiplies with; ``None``: there is none."""
    source = op.input_value(1).get_node()
    while source.get_type_name() in ("Reshape", "Transpose", "Convert"):
        source = source.input_value(0).get_node()
    if source.get_type_name() != "Constant":
        return None
    return source.get_friendly_name(), 4 * math.prod(source.get_output_shape(0))
