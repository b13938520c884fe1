"""A plan: the operations of a network with their weights, as plain data, and the file that holds it.

A plan is independent of the size of the image, of the machine and of the number of threads. Maps are numbered: each
step reads some and writes one. Weights are float32 arrays in torch's layouts, with norms folded into them.

The file is a safetensors file whose metadata hold the steps and the description of the model as JSON; large arrays may
be stored in float16. It is input from outside: everything that it says is checked before use.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError
from ..files import parse_json
from ..info import KEY, ModelInfo

SUFFIX = ".foveal"  #: of plan files
#: Activations by their number in the library (the enum Act in csrc/vector.h).
ACTS = (
    "none", "relu", "relu6", "hardswish", "gelu_tanh", "gelu", "silu", "sigmoid", "hardsigmoid", "tanh", "softplus",
)  # fmt: skip
PADDINGS = ("symmetric", "same")
#: Names of the arrays that turn points into tokens, in the plan for prompts (prediction/native_runner.py).
POINT_ARRAYS = ("point_frequencies", "point_embeddings", "own_tokens")
STEPS = "foveal_plan"  #: metadata key of the steps
_ENDS = ("output", "vector", "enlarge", "masks")  # kinds that write an array of the caller
_LARGE = 1024  # values of an array that can be stored in float16
_MAX_STEPS, _MAX_MAPS, _MAX_CHANNELS, _MAX_JSON = 1024, 2048, 1 << 16, 8 << 20


@dataclass(frozen=True)
class Step:
    """One operation.

    Attributes:
        kind: what it computes, a key of :data:`KINDS`.
        inputs: numbers of the maps that it reads.
        out: number of the map that it writes; each map is written once.
        residual: number of a map that is added to the result, after the activation; ``None`` for none.
        act: activation of the result, one of :data:`ACTS`.
        params: numbers and names that the kind has, see :data:`KINDS`.
        weights: names of its arrays in :attr:`Plan.weights`, by their role.
    """

    kind: str
    inputs: tuple[int, ...]
    out: int
    residual: int | None = None
    act: str = "none"
    params: dict[str, Any] = field(default_factory=dict)
    weights: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """Steps in order, and their weights. Map 0 is the image ``(B, in_chans, H, W)``, the last step's map is the result.

    Further inputs are steps of the kind "array", further results steps of the kinds "output" and "vector".

    Attributes:
        info: description of the model.
        steps: the operations, in the order in which they run.
        weights: float32 arrays by name.
    """

    info: ModelInfo
    steps: tuple[Step, ...]
    weights: Mapping[str, NDArray[np.float32]]

    def save(self, path: Path, half: bool = False) -> None:
        """Write the plan as a file, with ``half`` the large arrays in float16; reading gives float32 again."""
        from safetensors.numpy import save_file

        arrays = {
            name: np.ascontiguousarray(array, np.float16 if half and array.size >= _LARGE and array.ndim > 1 else None)
            for name, array in self.weights.items()
        }
        save_file(arrays, path, metadata=self.metadata())

    def metadata(self) -> dict[str, str]:
        """The metadata of its file: the steps and the description of the model."""
        return {STEPS: json.dumps([dataclasses.asdict(step) for step in self.steps]), KEY: self.info.to_json()}


def load_plan(path: Path) -> Plan:
    """Read and check the file of a plan.

    Raises:
        CheckpointError: the file cannot be read, is no plan, or contradicts itself.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: _wide(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            return parse_plan(file.metadata() or {}, arrays)
    except (OSError, ValueError, TypeError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{path}: the plan cannot be used: {error}") from None


def parse_plan(metadata: Mapping[str, str], arrays: Mapping[str, NDArray[np.float32]]) -> Plan:
    """The plan of a file's metadata and arrays, checked.

    Raises:
        ValueError: there is no plan, or it contradicts itself.
        ConfigError: the description of the model cannot be used.
    """
    if STEPS not in metadata or KEY not in metadata:
        raise ValueError("it holds no plan: export it with foveal export --to native")
    plan = Plan(ModelInfo.from_json(metadata[KEY]), _read_steps(metadata[STEPS]), arrays)
    check(plan)
    return plan


def _wide(array: NDArray[Any]) -> NDArray[Any]:
    """An array in the type in which the engine computes, if it was stored in float16."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _read_steps(text: str) -> tuple[Step, ...]:
    data = parse_json(text, _MAX_JSON)
    if not isinstance(data, list) or not all(isinstance(item, dict) for item in data):
        raise ValueError("the steps are no list of objects")
    names = {entry.name for entry in dataclasses.fields(Step)}
    for item in data:
        if unknown := next((key for key in item if key not in names), None):
            raise ValueError(f"a step has the unknown key {unknown[:60]!r}")
        if not isinstance(item.get("inputs"), list):
            raise ValueError("the inputs of a step are no list")
    return tuple(Step(**{**item, "inputs": tuple(item["inputs"])}) for item in data)


# ---- checking


@dataclass(frozen=True)
class Kind:
    """What a kind of step needs.

    Attributes:
        inputs: smallest and largest number of inputs.
        ranges: its whole numbers, with the smallest and largest value of each.
        numbers: its other numbers.
        names: its names, with the allowed ones.
        weights: the roles of its arrays.
        residual: whether a residual can be added.
        act: whether it has an activation.
    """

    inputs: tuple[int, int] = (1, 1)
    ranges: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    numbers: Sequence[str] = ()
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)
    weights: Sequence[str] = ()
    residual: bool = False
    act: bool = True


_WINDOW = {"kernel": (1, 31), "stride": (1, 31)}
_PAD = {"padding": PADDINGS}
_SIDE = (0, 1 << 16)  # of square windows; 0: one window, the map
#: Every kind of step. Arrays: "weight" ``(out, in / groups, K, K)``, "bias" ``(out,)``.
KINDS: dict[str, Kind] = {
    # the image, times "scale" plus "shift" per channel, with repeated edges up to a multiple of `multiple`
    "input": Kind(ranges={"multiple": (1, 1024)}, weights=("scale", "shift"), act=False),
    # of 1x1, it may have a second input of one position: the factor of each channel of the first
    "conv": Kind(
        inputs=(1, 2),
        ranges={**_WINDOW, "groups": (1, _MAX_CHANNELS)},
        names=_PAD,
        weights=("weight", "bias"),
        residual=True,
    ),
    "depthwise": Kind(ranges=_WINDOW, names=_PAD, weights=("weight", "bias")),
    # a spatial step (with an expansion in front of it, or none), then a 1x1 convolution
    "inverted_residual": Kind(
        ranges=_WINDOW,
        names={**_PAD, "expand_act": ACTS, "act": ACTS},
        weights=("expand_weight", "expand_bias", "weight", "bias", "project_weight", "project_bias"),
        residual=True,
    ),
    "separable": Kind(
        ranges={**_WINDOW, "groups": (1, _MAX_CHANNELS)},  # groups of the 1x1 convolution
        names={**_PAD, "act": ACTS},
        weights=("weight", "bias", "project_weight", "project_bias"),
        residual=True,
    ),
    "fused_inverted_residual": Kind(
        ranges=_WINDOW,
        names={**_PAD, "act": ACTS},
        weights=("weight", "bias", "project_weight", "project_bias"),
        residual=True,
    ),
    # an inverted residual without its last convolution
    "expand_depthwise": Kind(
        ranges=_WINDOW,
        names={**_PAD, "expand_act": ACTS, "act": ACTS},
        weights=("expand_weight", "expand_bias", "weight", "bias"),
        act=False,
    ),
    # multi-scale ReLU linear attention; one input for each scale, with q, k, v of each head
    "linear_attention": Kind(
        inputs=(1, 4), ranges={"head_dim": (1, 256), "heads": (1, 4096)}, numbers=("eps",), act=False
    ),
    "mean": Kind(act=False),  # over all positions
    "layer_norm": Kind(numbers=("eps",), weights=("weight", "bias")),
    "affine": Kind(numbers=("factor", "addend")),
    "add": Kind(inputs=(2, 2)),
    "multiply": Kind(inputs=(2, 2)),  # the second may have one position
    "upsample": Kind(ranges={"factor": (1, 16)}, numbers=("a",), residual=True, act=False),  # bicubic
    # channels ordered (row, column, channel); cropped to the residual's size if there is one
    "pixel_shuffle": Kind(ranges={"factor": (1, 16)}, residual=True, act=False),
    # pixel shuffle of the first input plus the bicubic enlargement of the image, as an image
    "enlarge": Kind(inputs=(2, 2), ranges={"factor": (1, 16)}, numbers=("a",), act=False),
    # softmax attention of the tokens of a window to each other; inputs: queries, keys and values of all heads in one
    # map, or a map for each, where keys and values of one image may serve several
    "attention": Kind(
        inputs=(1, 3),
        ranges={"heads": (1, 4096), "kv_heads": (1, 4096), "head_dim": (1, 4096), "window": _SIDE},
        numbers=("scale",),
        act=False,
    ),
    # softmax attention of all pixels of a square map to each other; queries, keys and values begin at these channels of
    # the inputs. "bias" (heads, side * side), for each distance (|dy|, |dx|), is added to the scores
    "biased_attention": Kind(
        inputs=(3, 3),
        ranges={
            "heads": (1, 4096),
            **dict.fromkeys(("head_dim", "value_dim"), (1, 4096)),
            **dict.fromkeys(("query_first", "key_first", "value_first"), (0, _MAX_CHANNELS)),
        },
        numbers=("scale",),
        weights=("bias",),
        act=False,
    ),
    # square windows as images, row by row, with zeros beyond the map; and a map of such windows, of the second input's
    # height and width
    "cut_windows": Kind(ranges={"side": (1, 4096)}, act=False),
    "join_windows": Kind(inputs=(2, 2), residual=True, act=False),
    "slice": Kind(  # `count` channels from `first` on
        ranges={"first": (0, _MAX_CHANNELS), "count": (1, _MAX_CHANNELS)}, residual=True, act=False
    ),
    "concat": Kind(inputs=(1, 4)),  # the channels of the inputs, one input after the other
    # depthwise convolution along the tokens of a window, with zeros beyond; "weight" (channels, 1, K)
    "token_conv": Kind(ranges={"kernel": (1, 31), "window": _SIDE}, weights=("weight", "bias")),
    # selective scan; inputs: u, followed by channels that are kept; step sizes; a map with B and C of each token from
    # the channel `first` on. "decay" (states, channels): exponents A, "skip" (channels,): factors D
    "scan": Kind(
        inputs=(3, 3), ranges={"window": _SIDE, "first": (0, _MAX_CHANNELS)}, weights=("decay", "skip"), act=False
    ),
    "pad": Kind(ranges={"multiple": (1, 4096)}, act=False),  # rows and columns of zeros, up to a multiple
    "crop": Kind(inputs=(2, 2), act=False),  # to the size of the second input
    "positions": Kind(act=False),  # plus sines and cosines of column and row (models/vit.py)
    "average": Kind(act=False),  # mean over 2x2, stride 2, sides rounded up
    # a further array of the caller, by its number from 1 on
    "array": Kind(inputs=(0, 0), ranges={"number": (1, 7)}, act=False),
    "table": Kind(weights=("table",), act=False),  # plus "table" (H, W, channels)
    # pixels of a row in other groups of `channels`: `count` values for each, from value `first` of the row on
    "regroup": Kind(ranges={"first": (0, 1 << 24), "count": (1, 1 << 24), "channels": (1, 1 << 20)}, act=False),
    "split": Kind(ranges={"parts": (1, 4096)}, act=False),  # (H, W, parts * C) to (H, W * parts, C)
    "join": Kind(ranges={"parts": (1, 4096)}, act=False),  # the reverse
    # softmax attention of tokens to the pixels of a map. Inputs: queries (1, rows, channels), with a row for each head
    # of each token; keys; values
    "read_map": Kind(inputs=(3, 3), act=False),
    # softmax attention of the pixels of a map to tokens. Inputs: queries; keys and values, (1, rows, channels), with a
    # row for each head of each token; addends of the scores (1, tokens, heads). "bias" is added to the result
    "write_map": Kind(inputs=(4, 4), weights=("bias",), residual=True, act=False),
    # masks of twice the size. Inputs: features of 2x2 pixels for each pixel; factors of the features (1, masks, C)
    "masks": Kind(inputs=(2, 2), act=False),
    "output": Kind(ranges={"stride": (0, 1024)}, act=False),  # planar; cropped to ceil(image / stride), 0: as it is
    "vector": Kind(act=False),  # the output (B, C) of a map with one position
}


def check(plan: Plan) -> None:
    """Check that every step is complete and refers to maps and arrays that exist.

    Shapes are checked when the plan is bound to a size.

    Raises:
        ValueError: what is wrong, with the number of the step.
    """
    if not 0 < len(plan.steps) <= _MAX_STEPS:
        raise ValueError(f"{len(plan.steps)} steps: give 1 to {_MAX_STEPS}")
    for name, array in plan.weights.items():
        if array.dtype != np.float32:
            raise ValueError(f"array {name[:60]!r} has the type {array.dtype}, not float32")
        if not 1 <= array.ndim <= 4 or array.size == 0:
            raise ValueError(f"array {name[:60]!r} has the shape {array.shape}")
    written = {0}
    for number, step in enumerate(plan.steps):
        try:
            _check_step(step, plan.weights, written)
        except (ValueError, TypeError) as error:
            raise ValueError(f"step {number}: {error}") from None
        written.add(step.out)
    if plan.steps[0].kind != "input" or plan.steps[-1].kind not in _ENDS:
        raise ValueError(f"the first step is no input, or the last one is none of {', '.join(_ENDS)}")


def _check_step(step: Step, weights: Mapping[str, Any], written: set[int]) -> None:
    if not isinstance(step.kind, str) or (kind := KINDS.get(step.kind)) is None:
        raise ValueError(f"unknown kind {step.kind!r:.60}")
    if not kind.inputs[0] <= len(step.inputs) <= kind.inputs[1]:
        raise ValueError(f"{step.kind} with {len(step.inputs)} inputs")
    reads = [*step.inputs, *([] if step.residual is None else [step.residual])]
    if any(type(index) is not int or index not in written for index in reads):
        raise ValueError(f"it reads a map that is not written before: {reads!r:.80}")
    if type(step.out) is not int or not 0 <= step.out < _MAX_MAPS or step.out in written:
        raise ValueError(f"it writes the map {step.out!r:.20}, which is written already or out of range")
    # The image has no padded channels and no border, which the other kinds rely on.
    images = {"input": step.inputs, "enlarge": step.inputs[1:]}.get(step.kind, ())
    if any(images) or reads.count(0) != len(images):
        raise ValueError(f"{step.kind} with the maps {reads!r:.80}: map 0 is the image, which input and enlarge read")
    if step.residual is not None and not kind.residual:
        raise ValueError(f"{step.kind} with a residual")
    if step.act not in ACTS or (step.act != "none" and not kind.act):
        raise ValueError(f"{step.kind} with the activation {step.act!r:.60}")
    _check_params(step, kind)
    if not isinstance(step.weights, dict) or set(step.weights) != set(kind.weights):
        raise ValueError(f"{step.kind} needs the arrays {', '.join(kind.weights) or 'none'}")
    if missing := [name for name in step.weights.values() if not isinstance(name, str) or name not in weights]:
        raise ValueError(f"the array {missing[0]!r:.60} is missing")


def _check_params(step: Step, kind: Kind) -> None:
    if not isinstance(step.params, dict) or set(step.params) != {*kind.ranges, *kind.numbers, *kind.names}:
        raise ValueError(f"{step.kind} needs {', '.join([*kind.ranges, *kind.numbers, *kind.names]) or 'no parameter'}")
    for name, (low, high) in kind.ranges.items():
        if type(step.params[name]) is not int or not low <= step.params[name] <= high:
            raise ValueError(f"{name}={step.params[name]!r:.60}: a whole number from {low} to {high} is needed")
    for name in kind.numbers:
        value = step.params[name]
        if type(value) not in (int, float) or not abs(value) <= 1e30:  # NaN is not either
            raise ValueError(f"{name}={value!r:.60}: a finite number is needed")
    for name, allowed in kind.names.items():
        if step.params[name] not in allowed:
            raise ValueError(f"{name}={step.params[name]!r:.60}: one of {', '.join(allowed)} is needed")
