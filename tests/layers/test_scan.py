"""The selective scan: every form against the loop in float64, values, gradients and graphs.

``goldens/selective_scan.json`` was made by a loop in float64; inputs are ``default_rng(sha256(name))``'s numbers.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from functools import partial
from importlib.util import find_spec
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.export import Dim
from torch.utils.checkpoint import checkpoint

from foveal.errors import ConfigError, InputError
from foveal.layers.scan import reference, selective_scan
from helpers import golden
from helpers.scans import COMPILER, difference, gradients, needs_compiler, rounded, scan, tensors

FORMS = ["loop", "parallel", "chunked", pytest.param("kernel", marks=needs_compiler)]
FAST = FORMS[1:]
TOLERANCE = {"loop": 1e-6, "kernel": 1e-6, "parallel": 3e-6, "chunked": 3e-6}


# ---- values


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("name", ["mambavision_like", "plain", "gated", "groups2", "length1"])
def test_goldens(name: str, method: str) -> None:
    case = golden.read("selective_scan")[name]
    b, d, length, n, groups = (case["shape"][key] for key in ("b", "d", "l", "n", "groups"))

    def raw(key: str, *shape: int) -> Tensor:
        seed = int.from_bytes(hashlib.sha256(f"scan.{name}.{key}".encode()).digest()[:8], "big")
        return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))

    B, C = raw("B", b, groups, n, length), raw("C", b, groups, n, length)
    delta = raw("delta", b, d, length)
    y, state = selective_scan(
        raw("u", b, d, length),
        0.1 * delta.abs() if name == "plain" else delta,
        -torch.exp(torch.arange(1, n + 1).double().log() + 0.1 * raw("A_log", d, n)),
        B if groups > 1 else B[:, 0],
        C if groups > 1 else C[:, 0],
        1 + 0.1 * raw("D", d) if case["has"]["D"] else None,
        raw("z", b, d, length) if case["has"]["z"] else None,
        -1 + 0.5 * raw("delta_bias", d) if case["has"]["delta_bias"] else None,
        delta_softplus=case["delta_softplus"],
        return_last_state=True,
        method=method,
    )
    np.testing.assert_allclose(y.numpy(), case["y"], atol=1e-10, rtol=0)
    np.testing.assert_allclose(state.numpy(), case["last_state"], atol=1e-10, rtol=0)


#: Shift and scale of the normal numbers whose softplus is the step.
STEPS = {
    "usual": (0, 1), "small": (-7, 1), "tiny": (-12, 1),
    "constant": (-11.3, 0), "huge": (0, 1e4), "mixed": (-4, 6),
}  # fmt: skip


@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("steps", STEPS)
@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 17, 15, 3), (1, 33, 129, 8), (1, 5, 1025, 16)], ids=str)
def test_float32_is_within_tolerance_of_float64(shape: Sequence[int], steps: str, method: str) -> None:
    shift, scale = STEPS[steps]
    batch, channels, length, states = shape
    inputs = rounded(tensors(batch, channels, length, states, shift=shift, scale=scale))
    for output, expected in zip(scan(inputs, method, torch.float32), scan(inputs, "loop"), strict=True):
        assert output.dtype == torch.float32
        assert difference(output, expected) < TOLERANCE[method]


def test_65536_tokens_do_not_accumulate_rounding() -> None:
    """One sequence of a batch for each kind of steps: the loop takes as long for all as for one."""
    kinds = ["usual", "tiny", "constant", "huge"]
    inputs = tensors(len(kinds), 2, 65536, 2)
    for row, steps in enumerate(kinds):
        shift, scale = STEPS[steps]
        inputs["delta"][row] = scale * inputs["delta"][row] + shift
        if steps == "constant":  # the same rounding at each token: it adds up, where it is not kept
            for name in ("u", "B", "C"):
                inputs[name][row] = 0.7
    inputs = rounded(inputs)
    expected = scan(inputs, "loop")
    for method in ("parallel", "chunked", *(["kernel"] if COMPILER else [])):
        for output, value in zip(scan(inputs, method, torch.float32), expected, strict=True):
            for row, steps in enumerate(kinds):
                assert difference(output[row], value[row]) < TOLERANCE[method], (method, steps)


def test_a_plain_float32_loop_is_inaccurate() -> None:
    """The reason for compensated sums: the plain loop in float32 is wrong in the fourth digit."""
    dt, one = torch.full((1, 1, 65536), 1.2e-5), torch.full((1, 1, 65536), 0.7)
    A, matrix = -torch.ones(1, 1), one[:, None]
    output = reference.loop(one, dt, A, matrix, matrix)[0]
    expected = reference.loop(one.double(), dt.double(), A.double(), matrix.double(), matrix.double())[0]
    assert difference(output, expected) > 1e-5


@given(
    st.integers(1, 3), st.integers(1, 3), st.integers(1, 19), st.integers(1, 140), st.integers(1, 9),
    st.booleans(), st.sets(st.sampled_from(["D", "z", "delta_bias"])), st.integers(0, 99),
)  # fmt: skip
def test_any_shape(
    batch: int, groups: int, per_group: int, length: int, states: int, softplus: bool, without: set[str], seed: int
) -> None:
    inputs: dict[str, Any] = tensors(batch, groups * per_group, length, states, groups, seed)
    if not softplus:
        inputs["delta"] = 0.1 * inputs["delta"].abs()
        inputs["delta_bias"] = inputs["delta_bias"].abs()
    inputs |= dict.fromkeys(without)
    if groups == 1:
        inputs |= {name: inputs[name][:, 0] for name in "BC"}
    expected = scan(inputs, "loop", softplus=softplus)
    for method in ("parallel", "chunked", *(["kernel"] if COMPILER else [])):
        for output, value in zip(scan(inputs, method, softplus=softplus), expected, strict=True):
            assert difference(output, value) < 1e-12


def test_the_loop_is_the_recurrence() -> None:
    """Equal to the recurrence with Python numbers for one channel."""
    inputs = tensors(1, 1, 6, 1)
    numbers = {name: tensor.flatten().tolist() for name, tensor in inputs.items()}
    h, expected = 0.0, []
    for u, delta, B, C, z in zip(*(numbers[name] for name in ("u", "delta", "B", "C", "z")), strict=True):
        dt = np.log1p(np.exp(delta + numbers["delta_bias"][0]))
        h = np.exp(dt * numbers["A"][0]) * h + dt * B * u
        expected.append((C * h + numbers["D"][0] * u) * z / (1 + np.exp(-z)))
    y, state = scan(inputs, "loop")
    np.testing.assert_allclose(y.flatten(), expected, rtol=1e-12)
    np.testing.assert_allclose(state.flatten(), [h], rtol=1e-12)


@pytest.mark.parametrize("method", FORMS)
def test_matrices_that_are_the_same_for_all_tokens(method: str) -> None:
    inputs = tensors(2, 3, 5, 4)
    inputs |= {"B": inputs["A"] + 1, "C": inputs["A"].cos()}
    spread = inputs | {name: inputs[name][None, :, :, None].expand(2, 3, 4, 5) for name in "BC"}
    assert difference(scan(inputs, method)[0], scan(spread, "loop")[0]) < 1e-14


@pytest.mark.parametrize("method", FORMS)
def test_views_of_any_strides(method: str) -> None:
    inputs = tensors(2, 20, 37, 4, 2)
    turned = {name: tensor.mT.contiguous().mT if tensor.dim() > 1 else tensor for name, tensor in inputs.items()}
    assert not turned["u"].is_contiguous()
    assert difference(scan(turned, method)[0], scan(inputs, method)[0]) < 1e-14


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_computes_in_float32(method: str, dtype: torch.dtype) -> None:
    inputs = {name: tensor.to(dtype) for name, tensor in tensors(1, 6, 300, 4, shift=-6).items()}
    expected, last = scan(inputs, "loop", torch.float64)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = selective_scan(**inputs, delta_softplus=True, return_last_state=True, method=method)
    assert (y.dtype, state.dtype) == (dtype, torch.float32)
    assert torch.equal(y, expected.to(dtype)) or difference(y, expected) < 2 * torch.finfo(dtype).eps
    assert difference(state, last) < TOLERANCE[method]


@pytest.mark.parametrize("method", FORMS)
def test_nan_and_overflow_are_not_hidden(method: str) -> None:
    inputs = tensors(1, 2, 40, 2)
    inputs["delta"][0, 1, 7] = torch.nan
    y = scan(inputs, method, torch.float32)[0]
    assert y[0, 0].isfinite().all()
    assert y[0, 1, :7].isfinite().all()
    assert y[0, 1, 7:].isnan().all()
    growing = tensors(1, 1, 40, 1, shift=200) | {"A": torch.ones(1, 1)}
    assert not scan(growing, method, torch.float32)[0][0, 0, 2:].isfinite().any()


@pytest.mark.parametrize("method", FORMS)
def test_empty_batch(method: str) -> None:
    inputs = {name: tensor[:0] if tensor.dim() > 2 else tensor for name, tensor in tensors(1, 3, 4, 2).items()}
    y, state = scan(inputs, method)
    assert (y.shape, state.shape) == ((0, 3, 4), (0, 3, 2))


@needs_compiler
def test_number_of_threads_does_not_change_results() -> None:
    inputs = {name: tensor.requires_grad_() for name, tensor in tensors(2, 100, 700, 8).items() if name != "z"}

    def computed() -> list[Tensor]:
        y, state = scan(inputs, "kernel", torch.float32)
        leaves = [inputs[name] for name in ("u", "delta", "A", "B", "C")]  # the others are sums of torch's
        return [y, state, *torch.autograd.grad(y.sum() + state.sum(), leaves)]

    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = computed()
        torch.set_num_threads(4)
        assert all(torch.equal(a, b) for a, b in zip(one, computed(), strict=True))
    finally:
        torch.set_num_threads(threads)


# ---- gradients


@pytest.mark.parametrize("method", FORMS)
@pytest.mark.parametrize("softplus", [True, False])
def test_gradcheck(method: str, softplus: bool) -> None:
    inputs = tensors(2, 4, 5, 3, 2)
    assert torch.autograd.gradcheck(
        lambda *values: scan(dict(zip(inputs, values, strict=True)), method, softplus=softplus),
        [tensor.requires_grad_() for tensor in inputs.values()],
    )


@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("shape", [(2, 3, 9, 8, 1), (1, 6, 33, 3, 2), (2, 40, 150, 5, 1), (1, 2, 2100, 2, 1)], ids=str)
def test_gradients_equal_those_of_the_loop(shape: Sequence[int], method: str) -> None:
    batch, channels, length, states, groups = shape
    inputs = rounded(tensors(batch, channels, length, states, groups, shift=-2, scale=2))
    expected = gradients(inputs, "loop", torch.float64)
    for dtype, limit in ((torch.float64, 1e-13), (torch.float32, 3e-6)):
        for name, output, value in zip(inputs, gradients(inputs, method, dtype), expected, strict=True):
            assert difference(output, value) < limit, name


@pytest.mark.parametrize("method", FORMS)
def test_gradient_checkpointing(method: str) -> None:
    """Recomputed activations give the same gradients; saved tensors may be read only once."""
    output = []
    for again in (False, True):
        arguments = {key: tensor.requires_grad_() for key, tensor in tensors(2, 3, 5, 2).items()}
        scan = partial(selective_scan, method=method, **arguments)
        y = checkpoint(scan, use_reentrant=False) if again else scan()
        output.append(torch.autograd.grad(y.square().sum(), list(arguments.values())))
    assert all(torch.equal(a, b) for a, b in zip(*output, strict=True))


@pytest.mark.parametrize("method", FAST)
@pytest.mark.parametrize("shift", [-12, 0, 5])
def test_gradients_of_65536_tokens(shift: float, method: str) -> None:
    inputs = rounded(tensors(1, 1, 65536, 1, shift=shift))
    expected = gradients(inputs, "parallel", torch.float64)
    for name, output, value in zip(inputs, gradients(inputs, method, torch.float32), expected, strict=True):
        assert difference(output, value) < 1e-5, name


# ---- graphs


class Scan(nn.Module):
    """A module with the scan and its parameters, as in a model."""

    def __init__(self) -> None:
        super().__init__()
        inputs = tensors(1, 6, 1, 3)
        self.A, self.D = nn.Parameter(inputs["A"].float()), nn.Parameter(inputs["D"].float())

    def forward(self, u: Tensor, delta: Tensor, B: Tensor, C: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        return selective_scan(u, delta, self.A, B, C, self.D, delta_softplus=True, return_last_state=True)


def model_inputs(batch: int, length: int) -> tuple[Tensor, ...]:
    inputs = tensors(batch, 6, length, 3, seed=length)
    return tuple(inputs[name].float() for name in ("u", "delta")) + tuple(inputs[name][:, 0].float() for name in "BC")


DYNAMIC = {name: {0: Dim("b"), 2: Dim("l", max=reference.LONGEST)} for name in ("u", "delta", "B", "C")}


def test_export_of_a_fixed_length_is_short_and_standard() -> None:
    program = torch.export.export(Scan(), model_inputs(2, 50)).run_decompositions()
    calls = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert calls.count("aten.exp.default") == 6 + 1  # 2^6 >= 50, and softplus
    assert all(call.startswith(("aten", "<built-in")) for call in calls)
    inputs = model_inputs(2, 50)
    for output, expected in zip(program.module()(*inputs), Scan()(*inputs), strict=True):
        assert difference(output, expected.double()) < 3e-6


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # of the exporter's own dependencies
def test_export_of_any_length() -> None:
    program = torch.export.export(Scan(), model_inputs(2, 50), dynamic_shapes=DYNAMIC)
    converted = torch.onnx.export(program, dynamo=True, verbose=False)
    assert converted is not None
    buffer = io.BytesIO()
    converted.save(buffer)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(buffer.getvalue(), options)
    names = [put.name for put in session.get_inputs()]
    for batch, length in ((1, 1), (3, 2), (2, 50), (1, 64), (1, 65), (2, 1000), (1, reference.LONGEST)):
        inputs = model_inputs(batch, length)
        expected = Scan()(*inputs)
        outputs = session.run(None, {name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)})
        for output, value in zip(outputs, expected, strict=True):
            assert difference(torch.from_numpy(np.asarray(output)), value.double()) < 3e-6, length
        if length > 1:
            assert difference(program.module()(*inputs)[0], expected[0].double()) < 3e-6
    too_long = dict(zip(names, (tensor.numpy() for tensor in model_inputs(1, reference.LONGEST + 1)), strict=True))
    with pytest.raises(Exception, match=r"broadcast|Non-zero status"):
        session.run(None, too_long)


@pytest.mark.filterwarnings("ignore")  # tracing is deprecated
def test_a_traced_graph_takes_other_lengths() -> None:
    traced = torch.jit.trace(Scan(), model_inputs(2, 50))
    for length in (1, 7, 300):
        inputs = model_inputs(1, length)
        assert difference(traced(*inputs)[0], Scan()(*inputs)[0].double()) < 3e-6


def test_compile_makes_one_graph() -> None:
    torch.compiler.reset()
    model, inputs = Scan(), model_inputs(2, 40)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    results = []
    for run in (model, compiled):
        y, state = run(*inputs)
        results.append([y, state, *torch.autograd.grad(y.sum() + state.sum(), list(model.parameters()))])
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


@needs_compiler
@pytest.mark.filterwarnings("ignore")  # of the checker itself
def test_the_operator_passes_opcheck() -> None:
    case = tensors(2, 4, 5, 3, 2)
    arguments = [case[name] for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")]
    outputs = [case["u"], case["A"].expand(2, 4, 3)]
    for operator, inputs in (("selective_scan", arguments), ("selective_scan_backward", [*outputs, *arguments])):
        results = torch.library.opcheck(getattr(torch.ops.foveal, operator).default, (*inputs, True, "kernel"))
        assert set(results.values()) == {"SUCCESS"}


def test_shapes_on_the_meta_device() -> None:
    inputs = {name: tensor.to("meta") for name, tensor in tensors(2, 4, 50, 3, 2).items()}
    y, state = scan(inputs, "auto")
    assert (y.shape, state.shape, y.device.type) == ((2, 4, 50), (2, 4, 3), "meta")


# ---- mistakes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"u": torch.zeros(2, 4)}, r"u has shape \(2, 4\); expected \(B, D, L\)"),
        ({"u": torch.zeros(2, 4, 0)}, "at least one token"),
        ({"A": torch.zeros(3, 3)}, r"A has shape \(3, 3\); expected \(D, N\) with D = 4"),
        ({"A": torch.zeros(4, 3, dtype=torch.complex64)}, "A is complex; only real"),
        ({"delta": torch.zeros(2, 4, 6)}, r"delta has shape \(2, 4, 6\); expected \(2, 4, 5\)"),
        ({"z": torch.zeros(2, 4, 6)}, "z has shape"),
        ({"B": torch.zeros(2, 3, 6)}, r"B has shape \(2, 3, 6\); expected \(2, 3, 5\), \(2, G, 3, 5\)"),
        ({"C": torch.zeros(2, 3, 3, 5)}, "with G dividing 4"),
        ({"D": torch.zeros(3)}, r"D has shape \(3,\); expected \(4,\)"),
        ({"delta_bias": torch.zeros(1, 4)}, "delta_bias has shape"),
        ({"u": torch.zeros(2, 4, 5, dtype=torch.int64)}, "u has dtype torch.int64"),
        ({"C": torch.zeros(2, 3, 5, device="meta")}, "C is on meta, u is on cpu"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_mistakes_are_one_line(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        selective_scan(**{**tensors(2, 4, 5, 3), **change})
    assert "\n" not in str(raised.value)


def test_unknown_and_misplaced_methods() -> None:
    with pytest.raises(
        ConfigError, match="method='kernal': no such method of the selective scan; did you mean 'kernel'"
    ):
        selective_scan(**tensors(1, 2, 3, 1), method="kernal")
    with pytest.raises(InputError, match="on the CPU; u is on meta"):
        selective_scan(**{k: v.to("meta") for k, v in tensors(1, 2, 3, 1).items()}, method="kernel")
    if find_spec("triton"):
        with pytest.raises(InputError, match="NVIDIA GPU; u is on cpu"):
            selective_scan(**tensors(1, 2, 3, 1), method="triton")
