"""Labels, arithmetic and bytes of operations, for reports."""

from __future__ import annotations

import math

from .binder import (
    ATTENTION,
    CHAIN,
    CONV,
    DENSE_PROJECT,
    DEPTHWISE,
    EXPAND_DEPTHWISE,
    EXPAND_DEPTHWISE_PROJECT,
    MASKS,
    READ_MAP,
    SOFTMAX,
    WRITE_MAP,
    Binder,
    Operation,
)

_NAMES = (
    "conv", "depthwise", "chain", "attention", "mean", "layer_norm", "combine", "upsample", "input", "output",
    "pixel_shuffle", "enlarge", "softmax_attention", "token_conv", "scan", "pad", "table", "average",
    "read_map", "write_map", "regroup", "masks", "cut_windows", "join_windows", "slice", "concat",
)  # fmt: skip


def label(binder: Binder, operation: Operation) -> str:
    """Kind and shapes of an operation."""
    source, out = binder.shape(operation.inputs[0]), binder.shape(operation.out)
    name = _NAMES[operation.kind]
    if operation.kind in (CONV, DEPTHWISE, CHAIN):
        name = f"{name} {operation.p[0]}x{operation.p[0]}"
    hidden = f" -> {operation.p[4]}" if operation.kind == CHAIN else ""
    return f"{name} {source.height}x{source.width}x{source.channels}{hidden} -> {out.height}x{out.width}x{out.channels}"


def count_bytes(binder: Binder, operation: Operation) -> int:
    """Bytes of the maps and weights of an operation, each counted once."""
    item = binder.library.values.itemsize
    maps = {*operation.inputs, operation.out, *([] if operation.residual is None else [operation.residual])}
    arrays = sum(array.nbytes for pair in operation.arrays for array in pair if array is not None)
    return arrays + sum(math.prod(binder.shape(index)) * (4 if binder.maps[index].planar else item) for index in maps)


def count_macs(binder: Binder, operation: Operation) -> int:
    """Multiply-accumulates of the products; small operations count as none."""
    source, out = binder.shape(operation.inputs[0]), binder.shape(operation.out)
    pixels = out.batch * out.height * out.width
    if operation.kind == CONV:
        return pixels * out.channels * (source.channels // operation.p[5]) * operation.p[0] ** 2
    if operation.kind == DEPTHWISE:
        return pixels * out.channels * operation.p[0] ** 2
    if operation.kind == CHAIN:
        kernel, hidden, mode, groups = *operation.p[:1], *operation.p[4:6], operation.p[9]
        before = source.batch * source.height * source.width * source.channels * hidden
        spatial = pixels * hidden * kernel**2 * (source.channels if mode == DENSE_PROJECT else 1)
        if mode == EXPAND_DEPTHWISE:
            return before + spatial
        return before * (mode == EXPAND_DEPTHWISE_PROJECT) + spatial + pixels * hidden * out.channels // groups
    if operation.kind == ATTENTION:
        return 2 * pixels * out.channels * (operation.p[1] + 1)
    if operation.kind == SOFTMAX:
        keys = binder.shape(operation.inputs[1])
        window = operation.p[3] or max(keys.height, keys.width)
        products = operation.p[0] * operation.p[2] + out.channels  # with a key, and with its value
        return pixels * products * min(window, keys.height) * min(window, keys.width)
    if operation.kind == READ_MAP:
        keys = binder.shape(operation.inputs[1])
        return 2 * pixels * out.channels * keys.height * keys.width
    if operation.kind == WRITE_MAP:
        return 2 * pixels * out.channels * binder.shape(operation.inputs[1]).width
    if operation.kind == MASKS:
        features = binder.shape(operation.inputs[1]).channels
        return pixels * features * (out.channels + source.channels * bool(operation.arrays))
    return 0
