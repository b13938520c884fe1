"""Every operation of the native engine equals torch in float64, at random shapes and for any number of threads."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from foveal.engine.engine import Engine
from foveal.engine.packing import pack_taps
from foveal.engine.plan import ACTS, Plan, Step, check
from foveal.info import ModelInfo
from foveal.layers.linear_attention import linear_attention

CASES = 60  #: random shapes of each operation

_ACTS: dict[str, Callable[[Tensor], Tensor]] = {
    "none": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "hardswish": F.hardswish,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu": F.gelu,
    "silu": F.silu,
    "sigmoid": torch.sigmoid,
    "hardsigmoid": F.hardsigmoid,
    "tanh": torch.tanh,
    "softplus": F.softplus,
}


class Case:
    """A plan of one operation between an input and an output, and the same computation in torch.

    With ``bfloat16``, the largest error that is allowed, the engine computes in that type, and weights and images are
    numbers of that type.
    """

    def __init__(self, seed: int, bfloat16: float | None = None) -> None:
        self.rng, self.bfloat16 = np.random.default_rng(seed), bfloat16
        self.batch = self.pick(1, 1, 2, 5)
        self.height, self.width = int(self.rng.integers(1, 40)), int(self.rng.integers(1, 40))
        self.weights: dict[str, Any] = {}
        self.steps: list[Step] = []

    def pick(self, *values: Any) -> Any:
        return values[self.rng.integers(len(values))]

    def array(self, *shape: int) -> str:
        """Random weights; sums over their inputs are about 1."""
        name, inputs = f"w{len(self.weights)}", int(np.prod(shape[1:]))
        self.weights[name] = self.rounded(self.rng.standard_normal(shape) / np.sqrt(inputs))
        return name

    def rounded(self, array: Any) -> Any:
        array = array.astype(np.float32)
        return array if self.bfloat16 is None else torch.from_numpy(array).bfloat16().float().numpy()

    def tensor(self, name: str) -> Tensor:
        return torch.from_numpy(self.weights[name]).double()

    def step(self, kind: str, inputs: tuple[int, ...], **fields: Any) -> int:
        self.steps.append(Step(kind, inputs, len(self.steps) + 1, **fields))
        return len(self.steps)

    def image(self, channels: int) -> Tensor:
        """Begin with an input of this number of channels."""
        self.weights |= {"one": np.ones(channels, np.float32), "zero": np.zeros(channels, np.float32)}
        self.step("input", (0,), params={"multiple": 1}, weights={"scale": "one", "shift": "zero"})
        self.x = self.rounded(self.rng.standard_normal((self.batch, channels, self.height, self.width)))
        return torch.from_numpy(self.x).double()

    def check(self, expected: Tensor, *, tolerance: float = 1e-5) -> None:
        """Run the plan and compare."""
        if self.steps[-1].kind != "enlarge":
            self.step("output", (len(self.steps),), params={"stride": 0})
        plan = Plan(ModelInfo(), tuple(self.steps), self.weights)
        check(plan)
        dtype = "float32" if self.bfloat16 is None else "bfloat16"
        one, three = (Engine(plan, threads, dtype=dtype)(self.x) for threads in (1, 3))
        tolerance = tolerance if self.bfloat16 is None else self.bfloat16
        reference = expected.numpy()
        assert one.shape == reference.shape
        scale = max(np.abs(reference).max(), 1e-3)
        assert np.abs(one - reference).max() <= tolerance * scale, self.steps
        np.testing.assert_array_equal(one, three)


def window(case: Case) -> dict[str, Any]:
    return {
        "kernel": case.pick(1, 3, 3, 5, 7),
        "stride": case.pick(1, 1, 2, 3),
        "padding": case.pick("symmetric", "symmetric", "same"),
    }


def convolve(x: Tensor, weight: Tensor, bias: Tensor, params: dict[str, Any], groups: int = 1) -> Tensor:
    kernel, stride = params["kernel"], params["stride"]
    if params["padding"] == "same" and stride > 1:
        pads: list[int] = []
        for side in (x.shape[-1], x.shape[-2]):
            total = max(0, (-(-side // stride) - 1) * stride + kernel - side)
            pads += [total // 2, total - total // 2]
        return F.conv2d(F.pad(x, pads), weight, bias, stride, groups=groups)
    return F.conv2d(x, weight, bias, stride, kernel // 2, groups=groups)


def conv(case: Case) -> None:
    groups = case.pick(1, 1, 1, 2, 3)
    channels, outputs = groups * case.pick(1, 3, 8, 12, 31, 64), groups * case.pick(1, 5, 8, 12, 24, 33, 100)
    convolution(case, channels, outputs, {**window(case), "groups": groups})


def winograd(case: Case) -> None:
    """Sizes and channels for tiles of 2x2 and of 4x4 pixels."""
    case.height, case.width = case.pick((8, 9), (17, 20), (24, 24), (30, 33), (27, 50), (70, 25))
    channels = case.pick(16, 32, 48)
    params = {"kernel": 3, "stride": 1, "padding": "symmetric", "groups": 1}
    convolution(case, channels, case.pick(channels, 12, 40, 100), params)


def convolution(case: Case, channels: int, outputs: int, params: dict[str, Any]) -> None:
    groups = params["groups"]
    weight, bias = case.array(outputs, channels // groups, params["kernel"], params["kernel"]), case.array(outputs)
    act, x = case.pick(*ACTS), case.image(channels)
    y = _ACTS[act](convolve(x, case.tensor(weight), case.tensor(bias), params, groups))
    residual = None
    if params["stride"] == 1 and channels == outputs and params["kernel"] % 2:
        residual, y = 1, y + x
    case.step("conv", (1,), residual=residual, act=act, params=params, weights={"weight": weight, "bias": bias})
    case.check(y)


def depthwise(case: Case) -> None:
    channels, params, act = case.pick(1, 8, 13, 40), window(case), case.pick(*ACTS)
    weight, bias = case.array(channels, 1, params["kernel"], params["kernel"]), case.array(channels)
    x = case.image(channels)
    case.step("depthwise", (1,), act=act, params=params, weights={"weight": weight, "bias": bias})
    case.check(_ACTS[act](convolve(x, case.tensor(weight), case.tensor(bias), params, channels)))


def into_a_border(case: Case) -> None:
    """A 1x1 convolution into a map with a border, which the depthwise convolution after it needs."""
    channels, outputs, act = case.pick(8, 13, 40), case.pick(8, 40, 100), case.pick(*ACTS)
    if case.pick(True, False):
        outputs = channels
    case.height, case.width = case.height // 3 + 1, case.width // 3 + 1  # a tile covers several rows, and images
    weight, bias = case.array(outputs, channels, 1, 1), case.array(outputs)
    taps, zeros = case.array(outputs, 1, 3, 3), case.array(outputs)
    x = case.image(channels)
    y = _ACTS[act](F.conv2d(x, case.tensor(weight), case.tensor(bias)))
    residual = None
    if channels == outputs:
        residual, y = 1, y + x
    params = {"kernel": 1, "stride": 1, "padding": "symmetric", "groups": 1}
    case.step("conv", (1,), residual=residual, act=act, params=params, weights={"weight": weight, "bias": bias})
    params = {"kernel": 3, "stride": 1, "padding": "symmetric"}
    case.step("depthwise", (2,), act="none", params=params, weights={"weight": taps, "bias": zeros})
    case.check(F.conv2d(y, case.tensor(taps), case.tensor(zeros), padding=1, groups=outputs))


def chain(case: Case) -> None:
    kind = case.pick("inverted_residual", "inverted_residual", "separable", "fused_inverted_residual")
    case.height, case.width = case.pick((14, 14), (7, 9), (60, 130), (case.height, case.width))
    channels = case.pick(4, 8, 17, 32)
    hidden = channels if kind == "separable" else case.pick(16, 40, 64, 300)
    params, inner, act = window(case), case.pick(*ACTS), case.pick("none", "relu")
    outputs = case.pick(channels, 8, 19, 48)
    weights = {"weight": case.array(hidden, channels if kind[0] == "f" else 1, params["kernel"], params["kernel"])}
    weights |= {"bias": case.array(hidden)}
    x = case.image(channels)
    y = x
    if kind == "inverted_residual":
        weights |= {"expand_weight": case.array(hidden, channels, 1, 1), "expand_bias": case.array(hidden)}
        y = _ACTS[inner](F.conv2d(x, case.tensor(weights["expand_weight"]), case.tensor(weights["expand_bias"])))
    parts = case.pick(1, 2) if kind == "separable" and hidden % 2 == outputs % 2 == 0 else 1
    weights |= {"project_weight": case.array(outputs, hidden // parts, 1, 1), "project_bias": case.array(outputs)}
    groups = 1 if kind == "fused_inverted_residual" else hidden
    y = _ACTS[inner](convolve(y, case.tensor(weights["weight"]), case.tensor(weights["bias"]), params, groups))
    y = _ACTS[act](
        F.conv2d(y, case.tensor(weights["project_weight"]), case.tensor(weights["project_bias"]), groups=parts)
    )
    residual = None
    if params["stride"] == 1 and channels == outputs:
        residual, y = 1, y + x
    params |= {"groups": parts} if kind == "separable" else {}
    params |= {"act": inner} | ({"expand_act": inner} if kind == "inverted_residual" else {})
    case.step(kind, (1,), residual=residual, act=act, params=params, weights=weights)
    case.check(y)


def squeezed(case: Case) -> None:
    """An inverted residual whose last convolution multiplies each channel with a factor, into a border or none."""
    case.height, case.width = case.pick((14, 14), (7, 9), (60, 130), (case.height, case.width))
    channels, hidden, act = case.pick(4, 8, 17, 32), case.pick(16, 40, 64, 300), case.pick(*ACTS)
    outputs, params = case.pick(channels, 8, 19, 48), window(case)
    weights = {"expand_weight": case.array(hidden, channels, 1, 1), "expand_bias": case.array(hidden)}
    weights |= {"weight": case.array(hidden, 1, params["kernel"], params["kernel"]), "bias": case.array(hidden)}
    x = case.image(channels)
    y = _ACTS[act](F.conv2d(x, case.tensor(weights["expand_weight"]), case.tensor(weights["expand_bias"])))
    y = _ACTS[act](convolve(y, case.tensor(weights["weight"]), case.tensor(weights["bias"]), params, hidden))
    wide = case.step("expand_depthwise", (1,), params={**params, "act": act, "expand_act": act}, weights=weights)
    plain = {"kernel": 1, "stride": 1, "padding": "symmetric", "groups": 1}
    arrays = {"weight": case.array(hidden, hidden, 1, 1), "bias": case.array(hidden)}
    gate = case.step("conv", (case.step("mean", (wide,)),), act="sigmoid", params=plain, weights=arrays)
    factors = torch.sigmoid(
        F.conv2d(y.mean((2, 3), keepdim=True), case.tensor(arrays["weight"]), case.tensor(arrays["bias"]))
    )
    arrays = {"weight": case.array(outputs, hidden, 1, 1), "bias": case.array(outputs)}
    residual, added = (1, x) if params["stride"] == 1 and channels == outputs and params["kernel"] % 2 else (None, 0)
    out = case.step("conv", (wide, gate), residual=residual, act=act, params=plain, weights=arrays)
    y = _ACTS[act](F.conv2d(y * factors, case.tensor(arrays["weight"]), case.tensor(arrays["bias"]))) + added
    if case.pick(True, False):
        taps = {"weight": case.array(outputs, 1, 3, 3), "bias": case.array(outputs)}
        params = {"kernel": 3, "stride": 1, "padding": "symmetric"}
        case.step("depthwise", (out,), params=params, weights=taps)
        y = F.conv2d(y, case.tensor(taps["weight"]), case.tensor(taps["bias"]), padding=1, groups=outputs)
    case.check(y)


def attention(case: Case) -> None:
    dim, heads, scales = case.pick(4, 8, 12, 16, 32), case.pick(1, 2, 3), case.pick(1, 2, 3)
    eps, channels = case.pick(1e-15, 1e-5), 3 * dim * heads
    x = case.image(channels)
    maps, tensors = [1], [x]
    for _ in range(scales - 1):
        factor = float(case.rng.uniform(0.5, 2))
        maps.append(case.step("affine", (1,), params={"factor": factor, "addend": 0.1}))
        tensors.append(x * float(np.float32(factor)) + float(np.float32(0.1)))
    case.step("linear_attention", tuple(maps), params={"head_dim": dim, "heads": heads, "eps": eps})
    stacked = torch.cat(tensors, 1).flatten(2).unflatten(1, (-1, 3 * dim)).transpose(-2, -1)
    y = linear_attention(*stacked.split(dim, -1), eps=eps)
    case.check(y.transpose(-2, -1).reshape(case.batch, -1, case.height, case.width))


def pooling(case: Case) -> None:
    """Mean, layer norm, and a product with one value for each channel."""
    channels, act = case.pick(1, 8, 19, 64), case.pick(*ACTS)
    weights = {"weight": case.array(channels), "bias": case.array(channels)}
    x = case.image(channels)
    case.step("layer_norm", (1,), act=act, params={"eps": 1e-5}, weights=weights)
    y = F.layer_norm(x.movedim(1, -1), (channels,), case.tensor(weights["weight"]), case.tensor(weights["bias"]), 1e-5)
    y = _ACTS[act](y.movedim(-1, 1))
    mean = case.step("mean", (2,))
    case.step("multiply", (1, mean))
    case.step("add", (mean + 1, 2), act="sigmoid")
    case.check(torch.sigmoid(x * y.mean((2, 3), keepdim=True) + y), tolerance=3e-5 if channels == 1 else 1e-5)


def resampling(case: Case) -> None:
    """Bicubic upsampling with a residual, and a pixel shuffle."""
    factor, channels = case.pick(1, 2, 3, 4), case.pick(16, 32)
    case.height, case.width = min(case.height, 12), min(case.width, 12)
    x = case.image(channels * factor**2)
    shuffled = case.step("pixel_shuffle", (1,), params={"factor": factor})
    y = F.pixel_shuffle(x.unflatten(1, (factor**2, channels)).transpose(1, 2).flatten(1, 2), factor)
    case.step("upsample", (shuffled,), params={"factor": 2, "a": -0.75})
    up = F.interpolate(y, scale_factor=2, mode="bicubic", align_corners=False)
    case.step("upsample", (shuffled,), residual=shuffled + 1, params={"factor": 2, "a": -0.75})
    case.check(2 * up)


def enlarging(case: Case) -> None:
    factor, channels = case.pick(1, 2, 3, 4), case.pick(1, 3)
    x = case.image(channels)
    weight, bias = case.array(channels * factor**2, channels, 3, 3), case.array(channels * factor**2)
    params = {"kernel": 3, "stride": 1, "padding": "symmetric", "groups": 1}
    details = case.step("conv", (1,), params=params, weights={"weight": weight, "bias": bias})
    case.step("enlarge", (details, 0), params={"factor": factor, "a": -0.5})
    y = F.pixel_shuffle(convolve(x, case.tensor(weight), case.tensor(bias), params), factor)
    taps = torch.from_numpy(pack_taps(factor, -0.5)).double()
    padded = F.pad(x, (2, 2, 2, 2), mode="replicate").flatten(0, 1).unsqueeze(1)
    phases = F.conv2d(padded, (taps[:, None, :, None] * taps[None, :, None, :]).reshape(-1, 1, 5, 5))
    case.check(y + F.pixel_shuffle(phases, factor).reshape(y.shape))


@pytest.mark.parametrize(
    "operation", [conv, winograd, into_a_border, depthwise, chain, squeezed, attention, pooling, resampling, enlarging]
)
def test_operation_equals_float64(operation: Callable[[Case], None]) -> None:
    for seed in range(CASES * (3 if operation in (conv, chain) else 1)):
        operation(Case(seed))
