"""One function for each kind of step: it checks the shapes and adds the operations of the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

from .binder import (
    ADD,
    ATTENTION,
    ATTENTION_ROWS,
    CHAIN,
    COMBINE,
    CONV,
    DENSE_PROJECT,
    DEPTHWISE,
    DEPTHWISE_PROJECT,
    ENLARGE,
    EXPAND_DEPTHWISE,
    EXPAND_DEPTHWISE_PROJECT,
    FIRST,
    INPUT,
    MULTIPLY,
    NORM,
    OUTPUT,
    POOL,
    SHUFFLE,
    UPSAMPLE,
    Binder,
    Operation,
    Shape,
    expect,
)
from .packing import pack_taps
from .plan import ACTS, Step

_FEW = 8  # input channels of a product, see _parts


def _conv(binder: Binder, step: Step, *, in_chain: bool = False) -> None:
    """A convolution.

    In a chain, its products are added in one fixed order, so that the result does not depend on how it is divided.
    """
    weight, groups = binder.packed.raw(step, "weight"), step.params["groups"]
    out, top, left = binder.spatial(step, step.inputs[0])
    if weight.ndim == 2:
        weight = weight[:, :, None, None]
    expect(weight, (None, out.channels // groups, step.params["kernel"], step.params["kernel"]))
    if len(weight) % groups or out.channels % groups:
        raise ValueError(f"{out.channels} to {len(weight)} channels do not divide into {groups} groups")
    expect(binder.packed.raw(step, "bias"), (len(weight),))
    if len(step.inputs) == 2:
        _check_gate(binder, step, out)
    side = _winograd_side(binder, step, out)
    if side:  # the last tiles reach beyond the map
        binder.needs_border = 1 + max(-out.height % side, -out.width % side)
    binder.give_border(step.inputs[0])
    parts, pack = _parts(binder, out.channels // groups), binder.packed
    packed = pack.winograd(step, "weight", side) if side else pack.panels(step, "weight", groups, parts)
    arrays = ((packed, binder.packed.padded(step, "bias")),)
    window = step.params["kernel"], step.params["kernel"], step.params["stride"], top, left
    p = (*window, groups, side, parts, not in_chain)
    operation = Operation(CONV, step.inputs, step.out, step.residual, step.act, p, arrays=arrays)
    binder.add(operation, out._replace(channels=len(weight)))
    _leave_room(binder, step.out, len(weight) // groups, groups)


def _check_gate(binder: Binder, step: Step, size: Shape) -> None:
    """Check the map with the factor of each channel: it has one position, and the kernel is 1x1."""
    gate, params = binder.shape(step.inputs[1]), step.params
    if (params["kernel"], params["stride"], params["groups"]) != (1, 1, 1):
        raise ValueError("factors of channels in another convolution than one of 1x1")
    if gate != size._replace(height=1, width=1):
        raise ValueError(f"factors of {gate} for a map of {size}")


def _leave_room(binder: Binder, out: int, group: int, groups: int) -> None:
    """Reserve memory behind the channels of a map where a group does not fill whole vectors: kernels write those."""
    if groups > 1 and group % binder.width:
        binder.maps[out].overhang = binder.width


def _winograd_side(binder: Binder, step: Step, size: Shape) -> int:
    """Side of the tiles with which Winograd's algorithm is fastest; 0: it is not.

    It takes a 3x3 kernel with stride 1, whole vectors of channels, and several tiles. Its products are of floats in
    bfloat16, too: the factors would lose too much.
    """
    if binder.library.parts_apart:
        return 0  # the direct sum in tiles is faster
    params, outputs = step.params, len(binder.packed.raw(step, "weight"))
    plain = params["kernel"] == 3 and params["stride"] == 1 and params["groups"] == 1
    wide = size.channels % binder.width == 0 and size.channels >= 16 and binder.library.padded(outputs) >= 16
    if not (plain and wide) or min(size.height, size.width) < 8:
        return 0
    # Tiles of an image, so that a batch gives what its images give. Tiles of 4 have more weights, 36 of them for each
    # pair of channels, which few tiles would read for little.
    small, large = (-(-size.height // side) * -(-size.width // side) for side in (2, 4))
    if large >= 36 and 36 * large <= 0.8 * 16 * small:
        return 4
    return 2 if binder.library.dtype == "float32" else 0  # the direct sum in bfloat16 is as fast


def _parts(binder: Binder, channels: int) -> int:
    """Numbers that a weight is the sum of, in a product of this many input channels.

    In bfloat16, two where rounding to one changes the results most: with few channels, where errors do not average out,
    and in the last steps of a network that gives a class to each place, where no later layer averages them.
    """
    return 2 if binder.library.dtype == "bfloat16" and (channels <= _FEW or binder.near_end) else 1


def _depthwise(binder: Binder, step: Step) -> None:
    out, top, left = binder.spatial(step, step.inputs[0])
    kernel = step.params["kernel"]
    expect(binder.packed.raw(step, "weight"), (out.channels, 1, kernel, kernel))
    expect(binder.packed.raw(step, "bias"), (out.channels,))
    binder.give_border(step.inputs[0])
    arrays = ((binder.packed.taps(step, "weight"), binder.packed.padded(step, "bias")),)
    p = (kernel, step.params["stride"], top, left)
    binder.add(Operation(DEPTHWISE, step.inputs, step.out, None, step.act, p, arrays=arrays), out)


def _chain(binder: Binder, step: Step) -> None:
    """An inverted residual, with or without expansion, or a fused one: one operation, or two or three."""
    source, packed, kernel = step.inputs[0], binder.packed, step.params["kernel"]
    expands, dense = step.kind == "inverted_residual", step.kind == "fused_inverted_residual"
    size, top, left = binder.spatial(step, source)
    hidden, outputs = len(packed.raw(step, "weight")), len(packed.raw(step, "project_weight"))
    if expands:
        _expect_expansion(binder, step, size.channels, hidden)
    elif not dense and hidden != size.channels:
        raise ValueError(f"{hidden} depthwise kernels for {size.channels} channels")
    expect(packed.raw(step, "weight"), (hidden, size.channels if dense else 1, kernel, kernel))
    expect(packed.raw(step, "bias"), (hidden,))
    groups = step.params.get("groups", 1)
    if hidden % groups or outputs % groups:
        raise ValueError(f"{hidden} to {outputs} channels do not divide into {groups} groups")
    expect(packed.raw(step, "project_weight"), (outputs, hidden // groups, 1, 1))
    expect(packed.raw(step, "project_bias"), (outputs,))
    parts, first_parts = _parts(binder, hidden // groups), _parts(binder, size.channels)
    way = _way(binder, step, size, hidden, outputs)
    if way == "steps":
        return _unfused(binder, step, size, hidden)
    if not expands:
        binder.give_border(source)
    weight = packed.panels(step, "weight", parts=first_parts) if dense else packed.taps(step, "weight")
    arrays = [
        (None, None),
        (weight, packed.padded(step, "bias")),
        (packed.panels(step, "project_weight", groups, parts), packed.padded(step, "project_bias")),
    ]
    if expands:
        arrays[0] = packed.panels(step, "expand_weight", parts=first_parts), packed.padded(step, "expand_bias")
    mode = EXPAND_DEPTHWISE_PROJECT if expands else DENSE_PROJECT if dense else DEPTHWISE_PROJECT
    acts = (ACTS.index(step.params.get("expand_act", "none")), ACTS.index(step.params["act"]))
    block = 0
    if way == "channels":  # blocks of nearly equal size
        count = -(-hidden // _channel_block(binder, step, size))
        block = -(-hidden // (count * binder.library.panel)) * binder.library.panel
    p = (kernel, step.params["stride"], top, left, hidden, mode, *acts, block, groups, parts, first_parts)
    operation = Operation(CHAIN, step.inputs, step.out, step.residual, step.act, p, arrays=tuple(arrays))
    binder.add(operation, size._replace(channels=outputs))
    _leave_room(binder, step.out, outputs // groups, groups)


def _expect_expansion(binder: Binder, step: Step, channels: int, hidden: int) -> None:
    expect(binder.packed.raw(step, "expand_weight"), (hidden, channels, 1, 1))
    expect(binder.packed.raw(step, "expand_bias"), (hidden,))


def _expand_depthwise(binder: Binder, step: Step) -> None:
    """An inverted residual without its last convolution: one operation, or two."""
    packed, kernel = binder.packed, step.params["kernel"]
    size, top, left = binder.spatial(step, step.inputs[0])
    hidden = len(packed.raw(step, "weight"))
    _expect_expansion(binder, step, size.channels, hidden)
    expect(packed.raw(step, "weight"), (hidden, 1, kernel, kernel))
    expect(packed.raw(step, "bias"), (hidden,))
    if _way(binder, step, size, hidden, 0) == "steps":
        expanded = _expanded(binder, step, hidden)
        return _depthwise(binder, replace(step, inputs=(expanded,), act=step.params["act"]))
    parts = _parts(binder, size.channels)
    arrays = (
        (packed.panels(step, "expand_weight", parts=parts), packed.padded(step, "expand_bias")),
        (packed.taps(step, "weight"), packed.padded(step, "bias")),
    )
    acts = ACTS.index(step.params["expand_act"]), ACTS.index(step.params["act"])
    p = (kernel, step.params["stride"], top, left, hidden, EXPAND_DEPTHWISE, *acts, 0, 1, 1, parts)
    binder.add(Operation(CHAIN, step.inputs, step.out, p=p, arrays=arrays), size._replace(channels=hidden))


def _way(binder: Binder, step: Step, size: Shape, hidden: int, outputs: int) -> str:
    """How to run a chain: "rows" of the map in one pass, blocks of hidden "channels", or separate "steps".

    A chain without a last convolution has no ``outputs``, and only its first map can stay in the cache.

    In rows, the weights are read again for every piece; in blocks of channels, the result is; in steps, the
    intermediate maps are written and read. The way with the fewest bytes is taken.
    """
    cache, item = binder.library.cache // 2, binder.library.values.itemsize
    inputs, stride = binder.shape(step.inputs[0]), step.params["stride"]
    if step.kind == "separable":
        return "rows"  # nothing is computed twice
    if step.kind == "inverted_residual":
        block = _channel_block(binder, step, size)
        divides = binder.threads == 1 or size.height * size.batch >= 7 * binder.threads  # rows for every thread
        if binder.library.parts_apart:  # blocks end where the sums of tiles do
            divides = divides and hidden % binder.library.panel == 0 and _parts(binder, hidden) == 1
        if divides and block >= min(hidden, 2 * binder.library.panel) and size.height >= 7 and hidden >= 2 * outputs:
            whole = size.height * size.width * (hidden + outputs) * item
            if whole > cache // 2 or size.width < 16:
                return "channels"
    dense = step.kind == "fused_inverted_residual"
    expand = hidden * inputs.channels * (step.params["kernel"] ** 2 if dense else 1)
    weights = (expand + hidden * outputs) * item
    step_rows = max(1, cache // (size.width * hidden * item * (1 + stride**2)))
    pieces = -(-size.height // step_rows) * size.batch
    middle, expanded = size.height * size.width * (outputs > 0), inputs.height * inputs.width * (not dense)
    maps = 2 * (middle + expanded) * hidden * item * size.batch
    return "rows" if weights * pieces < maps and maps > cache else "steps"


def _channel_block(binder: Binder, step: Step, size: Shape) -> int:
    """Hidden channels of a block whose maps fill half of the second-level cache; a multiple of a panel."""
    kernel, stride = step.params["kernel"], step.params["stride"]
    inner = ((size.height - 1) * stride + kernel) * ((size.width - 1) * stride + kernel) + size.height * size.width
    return (
        binder.library.cache
        // 2
        // (binder.library.values.itemsize * inner)
        // binder.library.panel
        * binder.library.panel
    )


def _unfused(binder: Binder, step: Step, size: Shape, hidden: int) -> None:
    source = step.inputs[0]
    common = {"groups": 1, "padding": "symmetric"}
    if step.kind == "inverted_residual":
        source = _expanded(binder, step, hidden)
    middle = binder.new_map(size._replace(channels=hidden))
    weights = {"weight": step.weights["weight"], "bias": step.weights["bias"]}
    inner = Step("", (source,), middle, None, step.params["act"], {**step.params, "groups": 1}, weights)
    if step.kind == "fused_inverted_residual":
        _conv(binder, inner, in_chain=True)
    else:
        _depthwise(binder, inner)
    weights = {"weight": step.weights["project_weight"], "bias": step.weights["project_bias"]}
    params = {"kernel": 1, "stride": 1, **common}
    _conv(binder, Step("conv", (middle,), step.out, step.residual, step.act, params, weights), in_chain=True)


def _expanded(binder: Binder, step: Step, hidden: int) -> int:
    """The expansion of a chain as an operation of its own; returns the number of its map."""
    (source,) = step.inputs
    out = binder.new_map(binder.shape(source)._replace(channels=hidden))
    params = {"kernel": 1, "stride": 1, "groups": 1, "padding": "symmetric"}
    weights = {"weight": step.weights["expand_weight"], "bias": step.weights["expand_bias"]}
    _conv(binder, Step("conv", (source,), out, None, step.params["expand_act"], params, weights), in_chain=True)
    return out


def _attention(binder: Binder, step: Step) -> None:
    first = binder.shape(step.inputs[0])
    dim, heads = step.params["head_dim"], step.params["heads"]
    for index in step.inputs:
        if binder.shape(index) != first or first.channels != 3 * dim * heads:
            raise ValueError(f"maps of {binder.shape(index)} for {heads} heads of {dim} channels")
    lanes = binder.library.padded(dim)
    if lanes // binder.width not in (1, 2, 3, 4, 8):
        raise ValueError(f"head_dim={dim}: this library has no kernel for it")
    parts = -(-first.height // ATTENTION_ROWS)
    work = first.batch * heads * len(step.inputs) * parts * (dim + 1) * lanes
    p = (len(step.inputs), dim, heads, ATTENTION_ROWS)
    operation = Operation(ATTENTION, step.inputs, step.out, p=p, f=(step.params["eps"],), work=work)
    binder.add(operation, first._replace(channels=len(step.inputs) * heads * dim))
    for index in (*step.inputs, step.out):
        binder.maps[index].overhang = max(binder.maps[index].overhang, lanes - dim)


def _mean(binder: Binder, step: Step) -> None:
    shape = binder.shape(step.inputs[0])
    work = shape.batch * shape.height * binder.library.padded(shape.channels)  # the sums of the rows
    binder.add(Operation(POOL, step.inputs, step.out, work=work), Shape(shape.batch, 1, 1, shape.channels))


def _layer_norm(binder: Binder, step: Step) -> None:
    shape = binder.shape(step.inputs[0])
    for role in ("weight", "bias"):
        expect(binder.packed.raw(step, role), (shape.channels,))
    arrays = ((binder.packed.padded(step, "weight"), binder.packed.padded(step, "bias")),)
    operation = Operation(NORM, step.inputs, step.out, None, step.act, f=(step.params["eps"],), arrays=arrays)
    binder.add(operation, shape)


def _combine(binder: Binder, step: Step) -> None:
    first = binder.shape(step.inputs[0])
    mode = {"add": ADD, "multiply": MULTIPLY, "affine": FIRST}[step.kind]
    if mode != FIRST and binder.shape(step.inputs[1]) not in (first, first._replace(height=1, width=1)):
        raise ValueError(f"maps of {first} and {binder.shape(step.inputs[1])}")
    f = (step.params.get("factor", 1.0), step.params.get("addend", 0.0))
    binder.add(Operation(COMBINE, step.inputs, step.out, None, step.act, (mode,), f), first)


def _upsample(binder: Binder, step: Step) -> None:
    factor = step.params["factor"]
    batch, height, width, channels = binder.shape(step.inputs[0])
    arrays = ((pack_taps(factor, step.params["a"]), None),)
    operation = Operation(UPSAMPLE, step.inputs, step.out, step.residual, p=(factor,), arrays=arrays)
    binder.add(operation, Shape(batch, factor * height, factor * width, channels))


def _shuffle(binder: Binder, step: Step) -> None:
    factor = step.params["factor"]
    batch, height, width, channels = binder.shape(step.inputs[0])
    if channels % factor**2:
        raise ValueError(f"{channels} channels for the factor {factor}")
    shape = Shape(batch, factor * height, factor * width, channels // factor**2)
    if step.residual is not None:
        target = binder.shape(step.residual)
        smaller = target.height <= shape.height and target.width <= shape.width
        if not (smaller and (target.batch, target.channels) == (shape.batch, shape.channels)):
            raise ValueError(f"the residual is {target}, the result {shape}")
        shape = target
    binder.add(Operation(SHUFFLE, step.inputs, step.out, step.residual, p=(factor,)), shape)


def _enlarge(binder: Binder, step: Step) -> None:
    factor, (batch, height, width, channels) = step.params["factor"], binder.image
    detail = binder.shape(step.inputs[0])
    if step.inputs[1] != 0 or detail != (batch, height, width, channels * factor**2):
        raise ValueError(f"details of {detail} for the image {binder.image}")
    arrays = ((pack_taps(factor, step.params["a"]), None),)
    operation = Operation(ENLARGE, step.inputs, step.out, p=(factor,), arrays=arrays)
    binder.add(operation, Shape(batch, factor * height, factor * width, channels), planar=True)


def _input(binder: Binder, step: Step) -> None:
    batch, height, width, channels = binder.image
    if step.inputs != (0,):
        raise ValueError("the input does not read the image")
    for role in ("scale", "shift"):
        array = binder.packed.raw(step, role)
        if array.shape != (channels,):
            raise ValueError(f"an image of {channels} channels, the network takes {len(array)}")
    height, width = (-(-side // step.params["multiple"]) * step.params["multiple"] for side in (height, width))
    arrays = ((binder.packed.padded(step, "scale"), binder.packed.padded(step, "shift")),)
    binder.add(Operation(INPUT, step.inputs, step.out, arrays=arrays), Shape(batch, height, width, channels))


def _output(binder: Binder, step: Step) -> None:
    shape, stride = binder.shape(step.inputs[0]), step.params.get("stride", 0)
    if step.kind == "vector" and shape[1:3] != (1, 1):
        raise ValueError(f"a vector of a map of {shape}")
    if stride:
        height, width = (min(-(-a // stride), b) for a, b in zip(binder.image[1:3], shape[1:3], strict=True))
        shape = shape._replace(height=height, width=width)
    binder.add(Operation(OUTPUT, step.inputs, step.out), shape, planar=True, flat=step.kind == "vector")


STEPS: Mapping[str, Callable[[Binder, Step], None]] = {
    "input": _input,
    "conv": _conv,
    "depthwise": _depthwise,
    "inverted_residual": _chain,
    "expand_depthwise": _expand_depthwise,
    "separable": _chain,
    "fused_inverted_residual": _chain,
    "linear_attention": _attention,
    "mean": _mean,
    "layer_norm": _layer_norm,
    "affine": _combine,
    "add": _combine,
    "multiply": _combine,
    "upsample": _upsample,
    "pixel_shuffle": _shuffle,
    "enlarge": _enlarge,
    "output": _output,
    "vector": _output,
}
