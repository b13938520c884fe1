"""Random and damaged plans of the native engine, and runs in which every map and array has its own memory."""

from __future__ import annotations

import ctypes
import json
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

import foveal.engine.engine as engine_module
from foveal.engine.binding import Binding
from foveal.engine.plan import ACTS, KINDS, PADDINGS, Plan, Step
from foveal.info import ModelInfo
from fuzz.mutations import mutate_bytes, mutate_json, mutate_safetensors

_LIBC = ctypes.CDLL(None)
_LIBC.malloc.restype, _LIBC.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
_LIBC.free.argtypes = [ctypes.c_void_p]


# ---- random plans


class PlanWriter:
    """Writes a random plan for images of one size. Most of its steps fit together, some do not.

    Attributes:
        shape: batch, channels, height and width of the image.
    """

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.shape = (self.pick(1, 1, 2), self.pick(1, 3, 3, 4, 8, 20), *self.rng.integers(1, 34, 2).tolist())
        self.weights: dict[str, NDArray[np.float32]] = {}
        self.steps: list[Step] = []
        self.maps: dict[int, tuple[int, int, int]] = {}  # height, width, channels

    def pick(self, *values: Any) -> Any:
        return values[self.rng.integers(len(values))]

    def array(self, *shape: int) -> str:
        name = f"w{len(self.weights)}"
        scale = 1 / np.sqrt(max(1, int(np.prod(shape[1:]))))
        self.weights[name] = (self.rng.standard_normal(shape) * scale).astype(np.float32)
        return name

    def arrays(self, **shapes: tuple[int, ...]) -> dict[str, str]:
        return {role: self.array(*shape) for role, shape in shapes.items()}

    def step(self, kind: str, inputs: tuple[int, ...], shape: tuple[int, int, int], **fields: Any) -> int:
        out = len(self.steps) + 1
        params = dict.fromkeys(KINDS[kind].ranges, 1) | fields.pop("params", {})
        act = self.pick(*ACTS) if KINDS[kind].act and self.rng.random() < 0.7 else "none"
        residual = None
        if KINDS[kind].residual and self.rng.random() < 0.5:
            residual = self.pick(None, *(index for index, other in self.maps.items() if other == shape))
        self.steps.append(Step(kind, inputs, out, residual, act, params, **fields))
        self.maps[out] = shape
        return out

    def window(self, height: int, width: int) -> tuple[dict[str, Any], int, int]:
        """Parameters of a window, and the size of its result."""
        kernel, stride = self.pick(1, 2, 3, 3, 5, 7, 31), self.pick(1, 1, 1, 2, 3, 7)
        padding = self.pick(*PADDINGS)
        if padding == "same" and stride > 1:
            sizes = [-(-side // stride) for side in (height, width)]
        else:
            sizes = [(side + kernel // 2 * 2 - kernel) // stride + 1 for side in (height, width)]
        return {"kernel": kernel, "stride": stride, "padding": padding}, sizes[0], sizes[1]

    def write(self) -> Plan:
        channels, height, width = self.shape[1:]
        multiple = self.pick(1, 1, 4, 32)
        size = [-(-side // multiple) * multiple for side in (height, width)]
        arrays = self.arrays(scale=(channels,), shift=(channels,))
        self.step("input", (0,), (*size, channels), params={"multiple": multiple}, weights=arrays)
        for _ in range(self.rng.integers(1, 7)):
            source = self.pick(*self.maps, len(self.steps))
            getattr(self, self.pick(*_WRITERS))(source, *self.maps[source])
        last = len(self.steps)
        height, width, channels = self.maps[last]
        factor = self.pick(1, 2, 3)
        if self.rng.random() < 0.3 and (height, width) == self.shape[2:]:
            details = self.conv(last, height, width, channels, self.shape[1] * factor**2, kernel=1)
            params = {"factor": factor, "a": -0.75}
            self.step("enlarge", (details, 0), (height * factor, width * factor, self.shape[1]), params=params)
        elif self.rng.random() < 0.3:
            self.step("vector", (self.step("mean", (last,), (1, 1, channels)),), (1, 1, channels))
        else:
            self.step("output", (last,), self.maps[last], params={"stride": self.pick(0, 0, 1, 2, 8)})
        return Plan(ModelInfo(in_chans=self.shape[1]), tuple(self.steps), self.weights)

    # one method for each kind of step

    def conv(self, source: int, height: int, width: int, channels: int, outputs: int = 0, kernel: int = 0) -> int:
        params, out_height, out_width = self.window(height, width)
        if kernel:
            params, out_height, out_width = {"kernel": 1, "stride": 1, "padding": "symmetric"}, height, width
        groups = self.pick(*(n for n in (1, 1, 2, 3, 5, channels) if channels % n == 0))
        groups = 1 if outputs else groups
        outputs = outputs or groups * self.pick(1, 3, 8, 17) if groups < 40 else channels
        size = params["kernel"]
        arrays = self.arrays(weight=(outputs, channels // groups, size, size), bias=(outputs,))
        shape = (out_height, out_width, outputs)
        return self.step("conv", (source,), shape, params={**params, "groups": groups}, weights=arrays)

    def depthwise(self, source: int, height: int, width: int, channels: int) -> int:
        params, height, width = self.window(height, width)
        arrays = self.arrays(weight=(channels, 1, params["kernel"], params["kernel"]), bias=(channels,))
        return self.step("depthwise", (source,), (height, width, channels), params=params, weights=arrays)

    def chain(self, source: int, height: int, width: int, channels: int) -> int:
        kind = self.pick("inverted_residual", "inverted_residual", "separable", "fused_inverted_residual")
        params, height, width = self.window(height, width)
        hidden = channels if kind == "separable" else self.pick(1, 9, 32, 70)
        outputs = self.pick(channels, 5, 24)
        depth = channels if kind == "fused_inverted_residual" else 1
        arrays = self.arrays(weight=(hidden, depth, params["kernel"], params["kernel"]), bias=(hidden,))
        arrays |= self.arrays(project_weight=(outputs, hidden, 1, 1), project_bias=(outputs,))
        params["act"] = self.pick(*ACTS)
        if kind == "inverted_residual":
            params["expand_act"] = self.pick(*ACTS)
            arrays |= self.arrays(expand_weight=(hidden, channels, 1, 1), expand_bias=(hidden,))
        return self.step(kind, (source,), (height, width, outputs), params=params, weights=arrays)

    def squeezed(self, source: int, height: int, width: int, channels: int) -> int:
        """The first convolutions of an inverted residual, and the last one with factors of the channels."""
        params, height, width = self.window(height, width)
        hidden, outputs = self.pick(1, 9, 32, 70), self.pick(channels, 5, 24)
        params |= {"act": self.pick(*ACTS), "expand_act": self.pick(*ACTS)}
        arrays = self.arrays(weight=(hidden, 1, params["kernel"], params["kernel"]), bias=(hidden,))
        arrays |= self.arrays(expand_weight=(hidden, channels, 1, 1), expand_bias=(hidden,))
        wide = self.step("expand_depthwise", (source,), (height, width, hidden), params=params, weights=arrays)
        gate = self.step("mean", (wide,), (1, 1, hidden))
        arrays = self.arrays(weight=(outputs, hidden, 1, 1), bias=(outputs,))
        params = {"kernel": 1, "stride": 1, "padding": "symmetric", "groups": 1}
        return self.step("conv", (wide, gate), (height, width, outputs), params=params, weights=arrays)

    def attention(self, source: int, height: int, width: int, channels: int) -> int:
        dim, heads = self.pick(1, 3, 4, 8, 12, 16, 32), self.pick(1, 2, 3)
        scales = tuple(
            self.conv(source, height, width, channels, 3 * dim * heads, kernel=1) for _ in range(self.pick(1, 2, 3))
        )
        shape = (height, width, len(scales) * heads * dim)
        return self.step("linear_attention", scales, shape, params={"head_dim": dim, "heads": heads, "eps": 1e-5})

    def layer_norm(self, source: int, height: int, width: int, channels: int) -> int:
        arrays = self.arrays(weight=(channels,), bias=(channels,))
        return self.step("layer_norm", (source,), (height, width, channels), params={"eps": 1e-5}, weights=arrays)

    def combine(self, source: int, height: int, width: int, channels: int) -> int:
        shape = (height, width, channels)
        if self.rng.random() < 0.3:
            return self.step("affine", (source,), shape, params={"factor": 0.5, "addend": 1})
        mean = self.step("mean", (source,), (1, 1, channels))
        others = [index for index, other in self.maps.items() if other == shape]
        return self.step(self.pick("add", "multiply"), (source, self.pick(mean, *others)), shape)

    def resample(self, source: int, height: int, width: int, channels: int) -> int:
        factor = self.pick(1, 2, 3) if height * width < 4000 else 1
        if self.rng.random() < 0.5:
            shape = (height * factor, width * factor, channels)
            return self.step("upsample", (source,), shape, params={"factor": factor, "a": -0.75})
        outputs = self.pick(1, 5, 12, 16)
        details = self.conv(source, height, width, channels, outputs * factor**2, kernel=1)
        shape = (height * factor, width * factor, outputs)
        return self.step("pixel_shuffle", (details,), shape, params={"factor": factor})

    def tokens(self, source: int, height: int, width: int, channels: int) -> int:
        """Softmax attention, or a selective scan after a convolution along the tokens."""
        window, shape = self.pick(0, 0, 3, 8), (height, width, channels)
        if self.rng.random() < 0.5:
            heads, shared, dim = (*self.pick((1, 1), (2, 2), (4, 2), (3, 1)), self.pick(1, 4, 7, 16))
            params = {"heads": heads, "kv_heads": shared, "head_dim": dim, "window": window, "scale": 0.3}
            sizes = (
                [(heads + 2 * shared) * dim] if self.rng.random() < 0.5 else [heads * dim, shared * dim, shared * dim]
            )
            inputs = tuple(self.conv(source, *shape, size, kernel=1) for size in sizes)
            return self.step("attention", inputs, (height, width, heads * dim), params=params)
        params = {"kernel": self.pick(1, 2, 3, 4, 31), "window": window}
        arrays = self.arrays(weight=(channels, 1, params["kernel"]), bias=(channels,))
        x = self.step("token_conv", (source,), shape, params=params, weights=arrays)
        states, inner, first = self.pick(1, 4, 7, 8), int(self.rng.integers(1, channels + 1)), self.pick(0, 3)
        steps = self.conv(source, *shape, inner, kernel=1)
        self.steps[-1] = replace(self.steps[-1], act="sigmoid", residual=None)
        matrices = self.conv(source, *shape, first + 2 * states + self.pick(0, 2), kernel=1)
        arrays = self.arrays(decay=(states, inner), skip=(inner,))
        self.weights[arrays["decay"]] = -np.abs(self.weights[arrays["decay"]])
        params = {"window": window, "first": first}
        return self.step("scan", (x, steps, matrices), shape, params=params, weights=arrays)

    def windows(self, source: int, height: int, width: int, channels: int) -> int:
        """Attention with addends inside windows that are cut and joined, of slices of the channels."""
        side, heads, dim, value_dim = self.pick(1, 3, 7), self.pick(1, 3), self.pick(1, 4, 7, 16), self.pick(1, 5, 16)
        firsts = {f"{name}_first": self.pick(0, 0, 3) for name in ("query", "key", "value")}
        size = 3 + heads * max(dim, value_dim)
        wide = self.conv(source, height, width, channels, size, kernel=1)
        count, images = self.pick(1, size), self.maps[wide]
        other = self.step("slice", (wide,), (height, width, count), params={"first": size - count, "count": count})
        wide = self.step("concat", (other, wide), (height, width, size + count))
        windows = self.step("cut_windows", (wide,), (side, side, size + count), params={"side": side})
        params = {"heads": heads, "head_dim": dim, "value_dim": value_dim, **firsts, "scale": 0.3}
        arrays = self.arrays(bias=(heads, side**2))
        shape = (side, side, heads * value_dim)
        inputs = (windows, windows, windows)
        attended = self.step("biased_attention", inputs, shape, params=params, weights=arrays)
        joined = self.step("join_windows", (attended, wide), (*images[:2], heads * value_dim))
        del self.maps[windows], self.maps[attended]  # more images than the others
        return joined

    def sides(self, source: int, height: int, width: int, channels: int) -> int:
        """Steps that change the size of a map, and positions."""
        if self.rng.random() < 0.3:
            return self.step("average", (source,), (-(-height // 2), -(-width // 2), channels))
        if self.rng.random() < 0.3 and channels % 4 == 0:
            return self.step("positions", (source,), (height, width, channels))
        multiple = self.pick(1, 2, 7, 16)
        shape = (-(-height // multiple) * multiple, -(-width // multiple) * multiple, channels)
        padded = self.step("pad", (source,), shape, params={"multiple": multiple})
        return padded if self.rng.random() < 0.5 else self.step("crop", (padded, source), (height, width, channels))


_WRITERS = (
    "conv",
    "depthwise",
    "chain",
    "chain",
    "squeezed",
    "attention",
    "layer_norm",
    "combine",
    "resample",
    "tokens",
    "tokens",
    "windows",
    "sides",
)


def random_plan(seed: int) -> tuple[Plan, tuple[int, ...]]:
    """A plan, and the shape of an image for it."""
    writer = PlanWriter(seed)
    return writer.write(), writer.shape


# ---- damaged files


def damage(content: bytes, rng: random.Random) -> bytes:
    """The bytes of a plan file with changes: of its steps, of its header, or of any byte."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    action = rng.random()
    if action < 0.05:
        return mutate_bytes(content, rng)
    if action < 0.1:
        return mutate_safetensors(content, rng)
    steps = header["__metadata__"]["foveal_plan"]
    for _ in range(rng.choice([1, 1, 2, 4])):
        if rng.random() < 0.9:
            steps = _change_step(steps, rng)
        else:
            steps = mutate_json(steps.encode(), rng).decode("utf-8", "replace")
        try:
            json.loads(steps)
        except ValueError:
            break
    header["__metadata__"]["foveal_plan"] = steps
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + content[8 + length :]


def _change_step(text: str, rng: random.Random) -> str:
    """Change a step to another value that a step can have."""
    steps = [step for step in json.loads(text) if isinstance(step, dict)] if text.startswith("[") else []
    if not steps:
        return text
    step = rng.choice(steps)
    params, weights, inputs = (step.get(name) for name in ("params", "weights", "inputs"))
    written = [0, *(other.get("out") for other in steps[: steps.index(step)])]
    action = rng.random()
    if action < 0.2:
        step["residual"] = rng.choice([None, step.get("out"), *written])
    elif action < 0.45 and isinstance(inputs, list):
        step["inputs"] = [rng.choice(written) for _ in inputs]
    elif action < 0.75 and isinstance(params, dict) and params:
        name = rng.choice(list(params))
        texts = {"padding": PADDINGS, "act": ACTS, "expand_act": ACTS}
        params[name] = rng.choice(texts.get(name, (1, 2, 3, 4, 5, 7, 8, 16, 31, 64, 256, 4096, 0, 1e30, -1, 10**400)))
    elif action < 0.85 and isinstance(weights, dict) and weights:
        arrays = [other["weights"] for other in steps if isinstance(other.get("weights"), dict)]
        weights[rng.choice(list(weights))] = rng.choice([name for names in arrays for name in names.values()])
    elif action < 0.95:
        step["kind"] = rng.choice(list(KINDS))
    else:
        del steps[rng.randrange(len(steps))]
    return json.dumps(steps)


# ---- runs with memory of their own


class Block:
    """Memory from malloc, so that a sanitizer sees its ends. It begins with ``content`` or with ``fill``.

    Its type is float32, or uint16 for the bits of bfloat16.
    """

    def __init__(
        self, size: int, fill: float = 0.0, content: NDArray[Any] | None = None, dtype: DTypeLike = np.float32
    ) -> None:
        item = np.dtype(dtype).itemsize
        self.address = _LIBC.malloc(item * size)
        if not self.address:
            raise MemoryError("malloc")
        values = np.ctypeslib.as_array((ctypes.c_uint8 * (item * size)).from_address(self.address)).view(dtype)
        # The upper part of a float32 is the bfloat16.
        values[:] = np.full(1, fill, np.float32).view(dtype)[-1] if content is None else content

    def __del__(self) -> None:
        if self.address:
            _LIBC.free(self.address)


def isolate(binding: Binding, fill: float) -> Binding:
    """Give each map and each array of a binding memory of its own, without what the arena leaves around it."""
    kept: list[Any] = binding.keep
    known = {array.ctypes.data: array for array in kept}
    for entry in binding.maps:
        if entry.data:
            # Two vectors: sums of a group of channels may run over its end.
            dtype = np.dtype(np.float32) if entry.floats else binding.library.values
            block = Block(entry.batch * entry.image + 2 * binding.library.width, fill, dtype=dtype)
            entry.data = block.address + dtype.itemsize * entry.border * (entry.row + entry.pixel)
            kept.append(block)
    for op in binding.ops:
        for pointers in (op.weight, op.bias):
            for i, address in enumerate(pointers):
                if address:
                    array = known[address].reshape(-1)
                    kept.append(Block(array.size, content=array, dtype=array.dtype))
                    pointers[i] = kept[-1].address
        if op.work:
            kept.append(Block(known[op.work].size, fill))
            op.work = kept[-1].address
    return binding


@contextmanager
def isolated(fill: float = 0.0) -> Iterator[None]:
    """Engines bind plans with :func:`isolate` inside."""
    bind = engine_module.bind
    engine_module.bind = lambda *arguments: isolate(bind(*arguments), fill)
    try:
        yield
    finally:
        engine_module.bind = bind


def save_random(path: Path, seed: int) -> tuple[int, ...]:
    """Write a random plan; return the shape of an image for it."""
    plan, shape = random_plan(seed)
    plan.save(path)
    return shape
