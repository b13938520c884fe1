"""Operations of the native engine on tokens equal torch in float64; so do the networks that are made of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

import foveal
from engine.test_operations import _ACTS, Case
from foveal.engine.builder import Builder
from foveal.engine.engine import Engine
from foveal.engine.lowering import NotCoveredError, make_plan
from foveal.engine.plan import ACTS, Plan, Step, check
from foveal.errors import InputError
from foveal.info import ModelInfo
from foveal.layers.scan.reference import loop
from foveal.models.vit import Positions

CASES = 60  #: random shapes of each operation
TYPES = (("float32", 1e-5, CASES), ("bfloat16", 1e-2, 10))  #: with the largest error and the number of random shapes


def in_windows(x: Tensor, size: int, function: Callable[[Tensor], Tensor]) -> Tensor:
    """Apply a function of tokens ``(B, L, C)`` to every window of a map; windows end with the map."""
    size_y, size_x = size or x.shape[2], size or x.shape[3]
    rows = []
    for band in x.split(size_y, 2):
        parts = [function(part.flatten(2).mT).mT.unflatten(2, part.shape[2:]) for part in band.split(size_x, 3)]
        rows.append(torch.cat(parts, 3))
    return torch.cat(rows, 2)


def attention(case: Case) -> None:
    """One map of queries, keys and values, in windows, with shared heads."""
    shared, group, dim = case.pick(1, 2, 3), case.pick(1, 1, 2), case.pick(3, 8, 16, 20, 40)
    window = case.pick(0, 0, 5, 14)
    heads, scale = shared * group, float(case.rng.uniform(0.1, 1))
    x = case.image((heads + 2 * shared) * dim)

    def attend(tokens: Tensor) -> Tensor:
        parts = tokens.unflatten(-1, (-1, dim)).transpose(1, 2).split((heads, shared, shared), 1)
        q, k, v = parts[0], *(part.repeat_interleave(group, 1) for part in parts[1:])
        return ((q @ k.mT * scale).softmax(-1) @ v).transpose(1, 2).flatten(2)

    params = {"heads": heads, "kv_heads": shared, "head_dim": dim, "window": window, "scale": scale}
    case.step("attention", (1,), params=params)
    case.check(in_windows(x, window, attend))


def biased_attention(case: Case) -> None:
    """In windows that are cut from the map and joined, with addends by distance; values of another width than keys."""
    heads, dim, width, side = case.pick(1, 2, 3), case.pick(3, 8, 16), case.pick(5, 16, 20, 48), case.pick(1, 4, 7, 11)
    firsts = dict(zip(("query_first", "key_first", "value_first"), case.rng.integers(0, 20, 3).tolist(), strict=True))
    needed = [first + heads * size for first, size in zip(firsts.values(), (dim, dim, width), strict=True)]
    channels = max(*needed, heads * width)
    scale, table = float(case.rng.uniform(0.1, 1)), case.array(heads, side**2)
    x = case.image(channels)
    residual = 1 if channels == heads * width else None
    windows = case.step("cut_windows", (1,), params={"side": side})
    params = {"heads": heads, "head_dim": dim, "value_dim": width, **firsts, "scale": scale}
    attended = case.step("biased_attention", (windows,) * 3, params=params, weights={"bias": table})
    case.step("join_windows", (attended, 1), residual=residual)
    y, places = torch.arange(side), torch.cartesian_prod(torch.arange(side), torch.arange(side))
    distances = (places[:, None] - places).abs()
    addends = case.tensor(table)[:, distances[..., 0] * len(y) + distances[..., 1]]

    def attend(tokens: Tensor) -> Tensor:
        q, k, v = (
            tokens[..., first : first + heads * size].unflatten(-1, (heads, size)).transpose(1, 2)
            for first, size in zip(firsts.values(), (dim, dim, width), strict=True)
        )
        return ((q @ k.mT * scale + addends).softmax(-1) @ v).transpose(1, 2).flatten(2)

    padded = F.pad(x, (0, -x.shape[3] % side, 0, -x.shape[2] % side))
    expected = in_windows(padded, side, attend)[..., : x.shape[2], : x.shape[3]]
    case.check(expected if residual is None else expected + x)


def slices(case: Case) -> None:
    """Parts of the channels, each plus the one before where both are as wide, one after the other."""
    channels, act = case.pick(1, 8, 19, 40), case.pick(*ACTS)
    x = case.image(channels)
    parts, numbers = list[Tensor](), list[int]()
    for _ in range(case.pick(1, 2, 3, 4)):
        count = case.pick(1, channels, max(1, channels // 2))
        first = int(case.rng.integers(0, channels - count + 1))
        fits = bool(parts) and parts[-1].shape[1] == count
        params = {"first": first, "count": count}
        numbers.append(case.step("slice", (1,), residual=numbers[-1] if fits else None, params=params))
        parts.append(x[:, first : first + count] + (parts[-1] if fits else 0))
    case.step("concat", tuple(numbers), act=act)
    case.check(_ACTS[act](torch.cat(parts, 1)))


def token_conv(case: Case) -> None:
    channels, kernel, window = case.pick(1, 8, 19, 40), case.pick(1, 3, 5, 31), case.pick(0, 3, 7)
    act = case.pick(*ACTS)
    weights = {"weight": case.array(channels, 1, kernel), "bias": case.array(channels)}
    x = case.image(channels)
    case.step("token_conv", (1,), act=act, params={"kernel": kernel, "window": window}, weights=weights)
    weight, bias = case.tensor(weights["weight"]), case.tensor(weights["bias"])
    pad = kernel // 2
    case.check(
        _ACTS[act](in_windows(x, window, lambda t: F.conv1d(t.mT, weight, bias, padding=pad, groups=channels).mT))
    )


def scan(case: Case) -> None:
    """The scan with its inputs taken from one map by 1x1 convolutions; further channels are kept."""
    inner, kept, states = case.pick(1, 8, 13, 40), case.pick(0, 3, 24), case.pick(1, 3, 4, 5, 8, 9, 16)
    window, first = case.pick(0, 4, 8), case.pick(0, 2)
    x = case.image(inner + kept)
    tensors = []
    for outputs, act in ((inner, "softplus"), (first + 2 * states, "none")):
        weights = {"weight": case.array(outputs, inner + kept, 1, 1), "bias": case.array(outputs)}
        params = {"kernel": 1, "stride": 1, "groups": 1, "padding": "symmetric"}
        case.step("conv", (1,), act=act, params=params, weights=weights)
        y = _ACTS[act](F.conv2d(x, case.tensor(weights["weight"]), case.tensor(weights["bias"])))
        tensors.append(y)
    case.weights["decay"] = -np.exp(case.rng.uniform(-2, 2, (states, inner))).astype(np.float32)
    weights = {"decay": "decay", "skip": case.array(inner)}
    case.step("scan", (1, 2, 3), params={"window": window, "first": first}, weights=weights)

    def run(tokens: Tensor) -> Tensor:
        u, rest, step, _, b, c = tokens.split((inner, kept, inner, first, states, states), -1)
        y, _ = loop(u.mT, step.mT, case.tensor("decay").T, b.mT[:, None], c.mT[:, None])
        return torch.cat([y.mT + u * case.tensor(weights["skip"]), rest], -1)

    case.check(in_windows(torch.cat([x, *tensors], 1), window, run))


def small(case: Case) -> None:
    """Padding, positions, means of 2x2, cropping, and sums with a table."""
    channels, multiple = case.pick(4, 8, 20, 36), case.pick(1, 2, 7)
    x = case.image(channels)
    padded = case.step("pad", (1,), params={"multiple": multiple})
    y = F.pad(x, (0, -x.shape[3] % multiple, 0, -x.shape[2] % multiple))
    case.step("positions", (padded,))
    y = Positions()(y)
    mean = case.step("average", (padded + 1,))
    y = F.avg_pool2d(y, 2, ceil_mode=True)
    case.weights["table"] = case.rng.standard_normal((*y.shape[2:], channels)).astype(np.float32)
    table = case.step("table", (mean,), weights={"table": "table"})
    y = y + case.tensor("table").permute(2, 0, 1)
    smaller = case.step("average", (table,))
    case.step("crop", (table, smaller))
    case.check(y[..., : -(-y.shape[2] // 2), : -(-y.shape[3] // 2)], tolerance=1e-4 if channels == 4 else 1e-5)


@pytest.mark.parametrize("operation", [attention, biased_attention, slices, token_conv, scan, small])
def test_operation_equals_float64(operation: Callable[[Case], None]) -> None:
    for seed in range(CASES):
        operation(Case(seed))


def run_prompt(
    steps: list[Step], weights: dict[str, Any], *arrays: NDArray[np.float32], dtype: str = "float32"
) -> list[NDArray[np.float32]]:
    """Run a plan of several inputs with one and with three threads, which give the same bits."""
    plan = Plan(ModelInfo(), tuple(steps), weights)
    check(plan)
    one, three = (Engine(plan, threads, dtype=dtype).run(*arrays)[0] for threads in (1, 3))
    for a, b in zip(one, three, strict=True):
        np.testing.assert_array_equal(a, b)
    return one


def _arrays(channels: int) -> dict[str, NDArray[np.float32]]:
    return {"one": np.ones(channels, np.float32), "zero": np.zeros(channels, np.float32)}


def in_bfloat16(array: NDArray[np.float32]) -> NDArray[np.float32]:
    """Numbers of bfloat16."""
    return torch.from_numpy(array).bfloat16().float().numpy()


_INPUT: dict[str, Any] = {"params": {"multiple": 1}, "weights": {"scale": "one", "shift": "zero"}}


def close(output: NDArray[np.float32], expected: Tensor, tolerance: float = 1e-5) -> None:
    """Within a share of the largest value."""
    assert output.shape == tuple(expected.shape)
    assert np.abs(output - expected.numpy()).max() <= tolerance * expected.abs().max().item()


@pytest.mark.parametrize(("dtype", "tolerance", "cases"), TYPES)
def test_attention_between_tokens_and_map_equals_float64(dtype: str, tolerance: float, cases: int) -> None:
    """Tokens read a map, and the map reads them; of a map of one image and of several."""
    rng = np.random.default_rng(0)
    for _ in range(cases):
        prompts, heads, count = (int(rng.integers(1, n)) for n in (4, 9, 12))
        channels, height, width = int(rng.choice([8, 19, 64])), int(rng.integers(1, 20)), int(rng.integers(1, 20))
        image = rng.standard_normal((rng.choice([1, prompts]), channels, height, width)).astype(np.float32)
        tokens = rng.standard_normal((prompts, channels, 1, count * heads)).astype(np.float32)
        addends = rng.standard_normal((prompts, heads, 1, count)).astype(np.float32)
        bias = rng.standard_normal(channels).astype(np.float32)
        steps = [
            Step("input", (0,), 1, **_INPUT),
            Step("array", (), 2, params={"number": 1}),
            Step("array", (), 3, params={"number": 2}),
            Step("read_map", (2, 1, 1), 4),
            Step("output", (4,), 5, params={"stride": 0}),
            Step("write_map", (1, 2, 4, 3), 6, residual=1, weights={"bias": "bias"}),
            Step("output", (6,), 7, params={"stride": 0}),
        ]
        if dtype == "bfloat16":
            image, tokens, addends = (in_bfloat16(array) for array in (image, tokens, addends))
        read, written = run_prompt(steps, {**_arrays(channels), "bias": bias}, image, tokens, addends, dtype=dtype)
        x, t, a = (torch.from_numpy(array).double().flatten(2).mT for array in (image, tokens, addends))
        averages = (t @ x.mT).softmax(-1) @ x
        close(read[:, :, 0], averages.mT, tolerance)
        scores = (x @ t.mT + a.flatten(1)[:, None]).unflatten(2, (count, heads)).softmax(2).flatten(2)
        y = x + scores @ averages + torch.from_numpy(bias).double()
        close(written, y.mT.unflatten(2, (height, width)), tolerance)


@pytest.mark.parametrize(("dtype", "tolerance", "cases"), TYPES)
def test_masks_and_groups_equal_float64(dtype: str, tolerance: float, cases: int) -> None:
    """The masks are those of the image, or of a convolution that multiplies its channels with factors."""
    rng = np.random.default_rng(1)
    plain = {"kernel": 1, "stride": 1, "padding": "symmetric", "groups": 1}
    for _ in range(cases):
        gated = bool(rng.integers(2))
        prompts, count, height, width = (int(rng.integers(1, n)) for n in (4, 6, 12, 12))
        channels = int(rng.choice([4, 16, 32]))
        image = rng.standard_normal((prompts, 4 * channels, height, width)).astype(np.float32)
        tokens = rng.standard_normal((prompts, channels, 1, count + 1)).astype(np.float32)
        size = count * channels
        weight = (rng.standard_normal((4 * channels,) * 2) / np.sqrt(4 * channels)).astype(np.float32)[..., None, None]
        steps = [
            Step("input", (0,), 1, **_INPUT),
            Step("array", (), 2, params={"number": 1}),
            Step("regroup", (2,), 3, params={"first": channels, "count": size, "channels": size}),
            Step("split", (3,), 4, params={"parts": count}),
            Step("join", (4,), 5, params={"parts": count}),
            Step("vector", (5,), 6),
            Step("mean", (1,), 7),
            Step("conv", (1, 7), 8, params=plain, weights={"weight": "w", "bias": "zero"}),
            Step("masks", (8 if gated else 1, 4), 9),
        ]
        if dtype == "bfloat16":
            image, tokens, weight = in_bfloat16(image), in_bfloat16(tokens), in_bfloat16(weight)
        joined, masks = run_prompt(steps, _arrays(4 * channels) | {"w": weight}, image, tokens, dtype=dtype)
        np.testing.assert_array_equal(joined, tokens[:, :, 0, 1:].transpose(0, 2, 1).reshape(prompts, -1))
        x = torch.from_numpy(image).double()
        if gated:
            x = F.conv2d(x * x.mean((2, 3), keepdim=True), torch.from_numpy(weight).double())
        features = F.pixel_shuffle(x.unflatten(1, (4, channels)).transpose(1, 2).flatten(1, 2), 2)
        close(
            masks, torch.einsum("pchw,pcm->pmhw", features, torch.from_numpy(tokens[:, :, 0, 1:]).double()), tolerance
        )


def test_arrays_that_do_not_fit_are_refused() -> None:
    steps = [Step("input", (0,), 1, **_INPUT), Step("array", (), 2, params={"number": 2}), Step("add", (1, 2), 3)]
    plan = Plan(ModelInfo(), (*steps, Step("output", (3,), 4, params={"stride": 0})), _arrays(8))
    check(plan)
    image = np.zeros((1, 8, 4, 4), np.float32)
    for arrays, message in (((image,), "array 2 of 1"), ((image, image, image), "order")):
        with pytest.raises(InputError, match=message):
            Engine(plan)(*arrays)


def test_a_pixel_shuffle_with_a_residual_of_another_batch_is_refused() -> None:
    steps = [
        Step("input", (0,), 1, **_INPUT),
        Step("array", (), 2, params={"number": 1}),
        Step("pixel_shuffle", (1,), 3, residual=2, params={"factor": 2}),
        Step("output", (3,), 4, params={"stride": 0}),
    ]
    plan = Plan(ModelInfo(), tuple(steps), _arrays(16))
    check(plan)
    image = np.zeros((2, 16, 3, 5), np.float32)
    Engine(plan)(image, np.zeros((2, 4, 6, 10), np.float32))
    for batch in (1, 3):
        with pytest.raises(InputError, match=r"step 2 \(pixel_shuffle\) of the plan: the residual is"):
            Engine(plan)(image, np.zeros((batch, 4, 6, 10), np.float32))


def test_masks_of_features_with_values_between_the_pixels_are_refused() -> None:
    """Groups of three channels are no whole vectors: the last group of a pixel runs over its end."""
    weights = _arrays(48) | {"weight": np.ones((48, 3, 1, 1), np.float32)}
    window = {"kernel": 1, "stride": 1, "padding": "symmetric"}
    steps = [
        Step("input", (0,), 1, **_INPUT),
        Step("array", (), 2, params={"number": 1}),
        Step("conv", (1,), 3, params={**window, "groups": 16}, weights={"weight": "weight", "bias": "zero"}),
        Step("masks", (3, 2), 4),
    ]
    plan = Plan(ModelInfo(), tuple(steps), weights)
    check(plan)
    with pytest.raises(InputError, match="with values between the pixels"):
        Engine(plan)(np.zeros((1, 48, 4, 5), np.float32), np.zeros((1, 12, 1, 2), np.float32))


_NARROW: dict[str, Any] = {"depths": (1, 1, 2, 3), "num_heads": (2, 4), "stem_dim": 8}


@pytest.mark.parametrize(
    ("name", "task", "size", "options"),
    [
        ("mambavision_t", None, (70, 104), {**_NARROW, "embed_dim": 16}),
        ("mambavision_b", None, (70, 104), {**_NARROW, "embed_dim": 12, "neutral_padding": True}),
        ("mambavision_t", "segment", (65, 90), {**_NARROW, "embed_dim": 16, "window_size": "whole", "out_norm": True}),
        ("efficientvit_m0", "classify", (150, 40), {}),
        ("efficientvit_m0", "classify", (64, 96), {"distilled": True, "window_sizes": (5, 3, 2)}),
        ("efficientvit_m1", "segment", (70, 230), {"num_classes": 3}),
        ("tinyvit_5m", "segment", (70, 230), {"num_classes": 3}),
        ("vit_tiny", None, (48, 80), {}),
        ("vit_tiny", None, (80, 112), {"attention": "gqa", "shared_layers": 2}),
    ],
)
def test_networks_of_tokens_equal_float64(name: str, task: str | None, size: tuple[int, int], options: Any) -> None:
    torch.manual_seed(0)
    model: Any = foveal.create_model(name, task, **options).eval()
    for parameter in model.parameters():  # factors of residual branches begin near zero
        parameter.data += 0.05 * torch.randn_like(parameter)
    x = np.random.default_rng(0).standard_normal((2, 3, *size)).astype(np.float32)
    plan = make_plan(model)
    output, half = Engine(plan, 2)(x), Engine(plan, 2, dtype="bfloat16")(x)
    arguments = {"upsample": False} if task == "segment" else {}
    with torch.inference_mode():
        expected = copy.deepcopy(model).double()(torch.from_numpy(x).double(), **arguments)
        in_torch = copy.deepcopy(model).bfloat16()(torch.from_numpy(x).bfloat16(), **arguments).double()
    close(output, expected)
    # Of the random weights, some amplify the rounding of bfloat16: torch is then off by more than 1e-2, too.
    close(half, expected, max(1e-2, float((in_torch - expected).abs().max() / expected.abs().max())))


def test_convolutions_without_padding_are_refused() -> None:
    with pytest.raises(NotCoveredError, match="Conv2d"):
        Builder(ModelInfo(), {}).conv(torch.nn.Conv2d(3, 8, 3), 0)


def test_other_kinds_of_attention_are_named() -> None:
    with pytest.raises(NotCoveredError, match="LinformerAttention"):
        make_plan(foveal.create_model("vit_tiny", attention="linformer"))
