"""Linear attention: reference outputs, an explicit matrix of weights, sequences in pieces, constant memory."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from foveal.errors import ConfigError, InputError
from foveal.layers.linear_attention import (
    FEATURE_MAPS,
    LinearAttentionState,
    LinearSelfAttention,
    elu_plus_one,
    linear_attention,
    squared_relu,
)
from helpers import golden, golden_arch

LINEAR = [name for name, case in golden.read("attention").items() if "feature" in case]
MAPS = {**FEATURE_MAPS, "a function": lambda x: (x - 1).exp()}
ALL = [*MAPS, "softmax"]


def qkv(n: int, m: int, d: int, e: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    shapes = ((n, d), (m, d), (m, e))
    return tuple(torch.randn(2, 3, *shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes)


def written_out(q: Tensor, k: Tensor, v: Tensor, feature_map: str, causal: bool, eps: float) -> Tensor:
    """Compute attention with an explicit n x m matrix of weights."""
    n, m = q.shape[-2], k.shape[-2]
    visible = (torch.arange(m) <= torch.arange(n)[:, None] + m - n) if causal else torch.ones(n, m, dtype=torch.bool)
    if feature_map == "softmax":
        of_keys = k.unsqueeze(-3).expand(*k.shape[:-2], n, m, k.shape[-1])
        of_keys = of_keys.masked_fill(~visible.unsqueeze(-1), -math.inf).softmax(-2)  # (..., n, m, d)
        return (q.softmax(-1).unsqueeze(-2) * of_keys).sum(-1) @ v
    phi = MAPS[feature_map]
    weights = (phi(q) @ phi(k).transpose(-2, -1)).masked_fill(~visible, 0)
    return weights / (weights.sum(-1, keepdim=True) + eps) @ v


@pytest.mark.parametrize("name", LINEAR)
def test_equals_the_reference(name: str) -> None:
    """ELU + 1 and ReLU, causal and not causal: float64, to seven printed digits."""
    case = golden.read("attention")[name]
    *batch, n, d = case["shape"]
    q, k = (golden_arch.raw(f"attn.{name}.{part}", (*batch, n, d)) for part in "qk")
    v = golden_arch.raw(f"attn.{name}.v", (*batch, n, case["v_dim"]))
    feature_map = case["feature"]
    output = linear_attention(q, k, v, feature_map=feature_map, causal=case["causal"], eps=case["eps"])
    assert golden_arch.difference(output, case["output"]) <= 1e-6


def chosen(name: str) -> str | Callable[[Tensor], Tensor]:
    return name if name in FEATURE_MAPS or name == "softmax" else MAPS[name]


@settings(deadline=None)
@given(
    st.sampled_from(ALL), st.integers(1, 40), st.integers(0, 40), st.integers(1, 6), st.integers(1, 6),
    st.booleans(), st.integers(1, 50), st.integers(0, 999),
)  # fmt: skip
def test_equals_the_explicit_matrix(
    name: str, n: int, earlier: int, d: int, e: int, causal: bool, chunk_size: int, seed: int
) -> None:
    """Every feature map and any chunk size, also with keys before the first query."""
    q, k, v = qkv(n, n + earlier, d, e, seed)
    output = linear_attention(q, k, v, feature_map=chosen(name), causal=causal, eps=1e-6, chunk_size=chunk_size)
    assert (output - written_out(q, k, v, name, causal, 1e-6)).abs().max() <= 1e-10


@settings(deadline=None)
@given(
    st.sampled_from(ALL), st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(1, 40), st.integers(0, 99)
)
def test_pieces_with_a_state_equal_the_whole_sequence(name: str, sizes: list[int], chunk_size: int, seed: int) -> None:
    """Causal attention in any pieces gives the same outputs and the same last state."""
    q, k, v = qkv(sum(sizes), sum(sizes), 4, 3, seed)
    whole, end = linear_attention(q, k, v, feature_map=chosen(name), causal=True, eps=1e-6, return_state=True)
    outs, state = [], None
    for piece in zip(*(x.split(sizes, dim=-2) for x in (q, k, v)), strict=True):
        out, state = linear_attention(
            *piece,
            feature_map=chosen(name),
            causal=True,
            eps=1e-6,
            state=state,
            return_state=True,
            chunk_size=chunk_size,
        )
        outs.append(out)
    assert state is not None
    assert (torch.cat(outs, dim=-2) - whole).abs().max() <= 1e-10
    for a, b in zip(state, end, strict=True):
        assert (a is None and b is None) or torch.allclose(a, b, atol=1e-10)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("m", [0, 3])
def test_an_empty_piece_adds_only_its_keys(name: str, m: int) -> None:
    options: Any = {"feature_map": chosen(name), "causal": True, "return_state": True}
    _, state = linear_attention(*qkv(5, 5, 4, 3), **options)
    q, k, v = qkv(3, 3, 4, 3, seed=1)
    _, expected = linear_attention(q[..., :m, :], k[..., :m, :], v[..., :m, :], state=state, **options)
    out, end = linear_attention(q[..., :0, :], k[..., :m, :], v[..., :m, :], state=state, **options)
    assert out.shape == (2, 3, 0, 3)
    for a, b in zip(end, expected if m else state, strict=True):
        assert a is b is None or torch.allclose(a, b, atol=1e-12)
    assert linear_attention(q[..., :0, :], k[..., :0, :], v[..., :0, :], **options)[0].shape == (2, 3, 0, 3)


@pytest.mark.parametrize("name", ALL)
def test_keys_in_pieces_without_causal_mask(name: str) -> None:
    """Not causal: queries after the last piece of keys attend to the keys of all pieces."""
    q, k, v = qkv(7, 20, 4, 3)
    state = None
    for keys, values in zip(k.split(6, dim=-2), v.split(6, dim=-2), strict=True):
        out, state = linear_attention(
            q, keys, values, feature_map=chosen(name), eps=1e-6, state=state, return_state=True
        )
    assert (out - linear_attention(q, k, v, feature_map=chosen(name), eps=1e-6)).abs().max() <= 1e-12


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("causal", [False, True])
def test_gradients(name: str, causal: bool) -> None:
    q, k, v = (x[0, 0].requires_grad_() for x in qkv(6, 6, 3, 2, seed=5))
    torch.autograd.gradcheck(
        lambda *x: linear_attention(*x, feature_map=chosen(name), causal=causal, eps=1e-3, chunk_size=4), (q, k, v)
    )


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_error_in_16_bits_is_the_rounding_of_the_result(name: str, causal: bool, dtype: torch.dtype) -> None:
    """Sums over 4096 positions are computed in float32, also under autocast."""
    q, k, v = qkv(4096, 4096, 8, 8, dtype=dtype)
    v = v + 2
    exact = linear_attention(q.double(), k.double(), v.double(), feature_map=chosen(name), causal=causal, eps=1e-6)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, state = linear_attention(q, k, v, feature_map=chosen(name), causal=causal, eps=1e-6, return_state=True)
    assert output.dtype == dtype
    assert state.context.dtype == torch.float32
    assert (output.double() - exact).abs().max() <= 2 * torch.finfo(dtype).eps * exact.abs().max()


def test_softmax_features_stay_finite() -> None:
    """Keys that rise or fall by hundreds, where separate factors for query and key would overflow or underflow."""
    q, k, v = qkv(64, 64, 4, 3)
    for slope in (-50.0, 50.0):
        steep = k + slope * torch.arange(64.0)[:, None]
        output = linear_attention(q.float(), steep.float(), v.float(), feature_map="softmax", causal=True)
        expected = written_out(q, steep.float().double(), v, "softmax", True, 0)
        assert (output - expected).abs().max() <= 1e-5


def test_maps_by_name() -> None:
    x = torch.linspace(-3, 3, 7, dtype=torch.float64)
    assert torch.allclose(elu_plus_one(x), torch.where(x > 0, x + 1, x.exp()))
    assert torch.equal(squared_relu(x), F.relu(x) ** 2)
    q, k, v = qkv(5, 5, 3, 2)
    default = linear_attention(q, k, v)
    assert torch.equal(default, linear_attention(q, k, v, feature_map="relu"))


def test_scale_does_not_grow_with_the_number_of_keys() -> None:
    """Because of the normaliser, constant values are returned unchanged, for 10 keys and for 10,000."""
    for m in (10, 10_000):
        q, k, _ = qkv(3, m, 4, 1)
        out = linear_attention(q, k, torch.full((2, 3, m, 1), 7.0, dtype=torch.float64), feature_map="elu1")
        assert torch.allclose(out, torch.full_like(out, 7.0), rtol=1e-12)


@torch.no_grad()
def test_100000_tokens_in_constant_memory() -> None:
    """A sequence in pieces: the size of the state is constant, and the last outputs are those of the whole."""
    torch.manual_seed(0)
    layer = LinearSelfAttention(16, 4, causal=True)
    x = torch.randn(1, 100_000, 16)
    state, sizes, out = None, set(), x
    for piece in x.split(2000, dim=1):
        out, state = layer.step(piece, state)
        sizes.add(state.nbytes)
    assert sizes == {4 * 4 * (4 * 4 + 4)}  # heads, bytes, D x E and D
    whole = layer.double()(x.double())
    assert (out - whole[:, -2000:]).abs().max() <= 1e-5


def test_exported_graph_runs_at_any_length() -> None:
    """Attention without a causal mask, as in vision models, is exported once and run at other lengths."""

    class Attend(torch.nn.Module):
        def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            return linear_attention(q, k, v, feature_map="elu1", eps=1e-6)

    n = torch.export.Dim("n", min=2, max=4096)
    q, k, v = qkv(6, 6, 4, 4)
    program = torch.export.export(Attend(), (q, k, v), dynamic_shapes=({2: n}, {2: n}, {2: n})).module()
    q, k, v = qkv(31, 31, 4, 4)
    assert torch.allclose(program(q, k, v), Attend()(q, k, v))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda: linear_attention(*qkv(3, 4, 5, 6)[:2], qkv(3, 5, 5, 6)[2]), r"expected \(\.\.\., N, D\)"),
        (lambda: linear_attention(qkv(3, 4, 5, 6)[0], *qkv(3, 4, 4, 6)[1:]), r"q \(2, 3, 3, 5\), k \(2, 3, 4, 4\)"),
        (lambda: linear_attention(*qkv(5, 4, 3, 2), causal=True), "more queries than keys"),
        (lambda: linear_attention(*qkv(4, 4, 3, 2), feature_map="elu_1"), "did you mean 'elu1'"),
        (
            lambda: linear_attention(
                *qkv(4, 4, 3, 2), state=LinearAttentionState(torch.zeros(2, 3, 4, 2), torch.zeros(2, 3, 4))
            ),
            r"the state has \(D, E\) = \(4, 2\); expected \(3, 2\)",
        ),
        (
            lambda: linear_attention(
                *qkv(4, 4, 3, 2), feature_map="softmax",
                state=LinearAttentionState(torch.zeros(2, 3, 3, 2), torch.zeros(2, 3, 3)),
            ),
            "another feature map",
        ),
        (
            lambda: linear_attention(
                *qkv(4, 4, 3, 2), feature_map="elu1",
                state=LinearAttentionState(*(torch.zeros(2, 3, *shape) for shape in ((3, 2), (3,), (3,)))),
            ),
            "the state was made with feature_map='softmax': give the same",
        ),
        (lambda: linear_attention(*qkv(4, 4, 3, 2), causal=True, chunk_size=0), "chunk_size=0: give 1 or more"),
        (lambda: LinearSelfAttention(10, 4), "embed_dim=10 does not divide into 4 heads"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line(arguments: Callable[[], object], message: str) -> None:
    with pytest.raises((InputError, ConfigError), match=message) as caught:
        arguments()
    assert "\n" not in str(caught.value)
