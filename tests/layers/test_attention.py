"""Softmax attention: reference outputs, caches against a full pass, kernels, the tiled algorithm and its traffic."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from foveal.errors import ConfigError, InputError
from foveal.layers.attention import (
    Attention,
    AttentionPaths,
    GrowingCache,
    SlidingWindowCache,
    StaticCache,
    attention,
    attention_traffic,
    flash_attention_reference,
    rotate,
)
from foveal.layers.kv_cache import Cache, kv_cache_bytes
from helpers import golden, golden_arch

SOFTMAX = [name for name, case in golden.read("attention").items() if "heads" in case]


def heads(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("name", SOFTMAX)
def test_equals_the_reference(name: str) -> None:
    """Multi-head, multi-query and grouped; causal masks aligned at either corner; float64, to seven printed digits."""
    case = golden.read("attention")[name]
    batch, length, keys, dim = (case[key] for key in ("batch", "L", "S", "head_dim"))
    q = golden_arch.raw(f"attn.{name}.q", (batch, case["heads"], length, dim))
    k, v = (golden_arch.raw(f"attn.{name}.{part}", (batch, case["kv_heads"], keys, dim)) for part in "kv")
    start = 0 if case["causal"] == "upper_left" else None
    output = attention(q, k, v, causal=case["causal"] is not None, start=start)
    assert golden_arch.difference(output, case["output"]) <= 1e-6


def plain(q: Tensor, k: Tensor, v: Tensor, allowed: Tensor) -> Tensor:
    """Attention with an explicit matrix of weights; queries without any key give 0."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], dim=1) for x in (k, v))
    scores = (q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5).masked_fill(~allowed, -torch.inf)
    return scores.softmax(-1).nan_to_num(0.0) @ v


@given(
    st.integers(1, 9), st.integers(0, 9), st.sampled_from([(4, 4), (4, 2), (6, 1)]), st.integers(1, 12), st.booleans()
)
def test_causal_masks_are_aligned_with_the_last_key(
    length: int, earlier: int, grouping: tuple[int, int], window: int, padded: bool
) -> None:
    """For any number of earlier keys, with windows and padding masks, equal to an explicit matrix of weights."""
    keys = length + earlier
    q, k, v = (
        heads(2, h, n, 4, dtype=torch.float64, seed=n + h)
        for h, n in zip((grouping[0], *[grouping[1]] * 2), (length, keys, keys), strict=True)
    )
    own = torch.arange(length)[:, None] + earlier
    places = torch.arange(keys)
    valid = torch.ones(2, 1, 1, keys, dtype=torch.bool)
    if padded:
        valid[1, ..., : keys // 2] = False
    mask = valid if padded else None
    for size in (None, window):
        allowed = (places <= own) & (places > own - (size or keys)) & valid
        output = attention(q, k, v, causal=True, window=size, mask=mask)
        assert (output - plain(q, k, v, allowed)).abs().max() <= 1e-12
    assert (attention(q, k, v, mask=mask) - plain(q, k, v, valid)).abs().max() <= 1e-12


LAYERS: dict[str, dict[str, Any]] = {
    "multi-head": {},
    "multi-query": {"num_kv_heads": 1},
    "grouped, rope, norms": {"num_kv_heads": 2, "rope_base": 1e4, "qk_norm": True},
    "window": {"num_kv_heads": 2, "rope_base": 1e4, "window": 5},
}


def caches(layer: Attention) -> Iterator[Cache]:
    yield GrowingCache()
    yield StaticCache(2, layer.num_kv_heads, 20, layer.head_dim)
    if layer.window is not None:
        yield SlidingWindowCache(layer.window)


@torch.no_grad()
@pytest.mark.parametrize("sizes", [(1,) * 13, (7, 1, 1, 4)])
@pytest.mark.parametrize("name", LAYERS)
def test_pieces_with_a_cache_equal_the_full_pass(name: str, sizes: tuple[int, ...]) -> None:
    """Token by token, and a prompt followed by more tokens, through every cache: within 1e-6 in float32."""
    torch.manual_seed(0)
    layer = Attention(32, 4, causal=True, **LAYERS[name]).eval()
    x = torch.randn(2, 13, 32)
    whole = layer(x)
    for cache in caches(layer):
        output = torch.cat([layer(piece, cache=cache) for piece in x.split(list(sizes), dim=1)], dim=1)
        assert (output - whole).abs().max() <= 1e-6, type(cache).__name__
        assert int(cache.length) == 13


@torch.no_grad()
def test_caches_with_padding_on_the_left() -> None:
    """In a batch of a short and a long prompt, the next tokens are computed as for each prompt alone (no RoPE)."""
    torch.manual_seed(0)
    layer, cache = Attention(16, 2, causal=True).eval(), GrowingCache()
    x = torch.randn(2, 9, 16)
    valid = torch.ones(2, 9, dtype=torch.bool)
    valid[1, :4] = False
    layer(x[:, :8], valid[:, :8], cache)
    output = layer(x[:, 8:], valid, cache)
    assert (output[1] - layer(x[1:, 4:])[0, -1:]).abs().max() <= 1e-6


def test_bytes_of_caches() -> None:
    """The formula agrees with the memory of the caches: 2 * layers * batch * heads * channels * tokens * bytes."""
    layer = Attention(64, 8, 2, causal=True, window=6)
    x = torch.randn(3, 11, 64)
    growing, sliding = GrowingCache(), SlidingWindowCache(6)
    static = StaticCache(3, 2, 32, 8, dtype=torch.float16)
    for cache in (growing, sliding, static):
        layer(x, cache=cache)
    wide = Attention(64, 8, 2, causal=True)
    assert growing.nbytes == wide.cache_bytes(11, batch=3, dtype=torch.float32) == 2 * 3 * 2 * 8 * 11 * 4
    assert sliding.nbytes == layer.cache_bytes(11, batch=3, dtype=torch.float32) == 2 * 3 * 2 * 8 * 5 * 4
    assert static.nbytes == 2 * 3 * 2 * 8 * 32 * 2
    llama = kv_cache_bytes(num_layers=32, num_kv_heads=32, head_dim=128, length=4096)
    assert llama == 2 << 30  # Llama-2-7B at its full length in float16
    assert kv_cache_bytes(num_layers=32, num_kv_heads=8, head_dim=128, length=4096) == llama // 4


@torch.no_grad()
def test_100000_tokens_in_constant_memory() -> None:
    """Grouped queries with a window: the cache has a constant size, and the last output depends only on the window."""
    torch.manual_seed(0)
    layer = Attention(16, 4, 2, rope_base=1e4, causal=True, window=64).eval()
    cache, sizes = SlidingWindowCache(64), set()
    x = torch.randn(1, 1000, 16)
    last = torch.empty(0)
    for i in range(100):  # pieces differ
        last = layer(x.roll(i, 1), cache=cache)
        sizes.add((cache.nbytes, cache.k.untyped_storage().nbytes() if cache.k is not None else 0))
    for i in range(3):
        last = torch.cat([last, layer(x[:, i : i + 1], cache=cache)], dim=1)
    assert cache.length == 100_003
    assert sizes == {(layer.cache_bytes(100_000, dtype=torch.float32), 63 * 2 * 4 * 4)}
    # Positions count from the start of the sequence; rotations are relative, so the tail alone gives the same.
    alone = layer(torch.cat([x.roll(99, 1)[:, -200:], x[:, :3]], dim=1))
    assert (alone[:, -5:] - last[:, -5:]).abs().max() <= 2e-3  # float32 angles at position 100,000


class Step(nn.Module):
    def __init__(self, layer: Attention, cache: StaticCache) -> None:
        super().__init__()
        self.layer, self.cache = layer, cache

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, cache=self.cache)


@torch.no_grad()
def test_a_step_with_the_static_cache_exports() -> None:
    torch.manual_seed(0)
    layer = Attention(16, 4, 2, rope_base=1e4, causal=True).eval()
    x = torch.randn(1, 6, 16)
    step = torch.export.export(Step(layer, StaticCache(1, 2, 8, 4)), (x[:, :1],)).module()
    output = torch.cat([step(token) for token in x.split(1, dim=1)], dim=1)
    assert (output - layer(x)).abs().max() <= 1e-6


def test_attention_paths_records_the_kernel() -> None:
    """As torch documents for the CPU: flash, except with dropout or with values wider than keys."""
    layer = Attention(32, 4, 2, causal=True, dropout=0.1)
    x = torch.randn(2, 5, 32)
    with AttentionPaths() as ran:
        layer.eval()(x)
        layer.train()(x)
        attention(heads(1, 2, 3, 4), heads(1, 2, 3, 4), heads(1, 2, 3, 6))
    assert ran.paths == ["flash", "math", "math"]


def test_attention_paths_in_inference_mode() -> None:
    """In inference mode torch does not decompose the operator, so the kernel is visible only after decomposing it."""
    layer, x = Attention(32, 4).eval(), torch.randn(2, 5, 32)
    with torch.inference_mode(), AttentionPaths() as ran:
        out = layer(x)
        with sdpa_kernel(SDPBackend.MATH):
            layer(x)
    assert ran.paths == ["flash", "math"]
    assert torch.allclose(out, layer(x), atol=1e-6)


def test_grouping_heads_by_their_mean() -> None:
    """Keys and values are the means of their group; if all heads of a group are equal, the output does not change."""
    torch.manual_seed(0)
    layer = Attention(24, 6, qk_norm=True, rope_base=1e4, causal=True).double().eval()
    grouped = layer.grouped(2)
    q, k, v = layer.qkv.weight.unflatten(0, (3, 6, 4))
    expected = torch.cat([q, *(x.unflatten(0, (2, 3)).mean(1) for x in (k, v))]).flatten(0, 1)
    assert torch.allclose(grouped.qkv.weight, expected, atol=1e-15)
    with torch.no_grad():  # now all heads of a group alike
        for tensor in (layer.qkv.weight, layer.qkv.bias):
            parts = tensor.unflatten(0, (3, 2, 3, 4))
            parts[1:] = parts[1:, :, :1].clone()
    x = torch.randn(2, 7, 24, dtype=torch.float64)
    assert (layer.grouped(2)(x) - layer(x)).abs().max() <= 1e-12
    assert (layer.grouped(2).grouped(1).qkv.weight[24:28] - layer.grouped(1).qkv.weight[24:28]).abs().max() <= 1e-15
    with pytest.raises(ConfigError, match="num_kv_heads=4 does not divide the layer's 6: give a divisor"):
        layer.grouped(4)


def test_other_names_of_the_projections() -> None:
    """State dicts of Llama's layout and of torch.nn.MultiheadAttention load, the latter with torch's outputs."""
    torch.manual_seed(0)
    peer = nn.MultiheadAttention(24, 4, batch_first=True).double().eval()
    layer = Attention(24, 4).double()
    layer.load_state_dict(peer.state_dict())
    x = torch.randn(2, 5, 24, dtype=torch.float64)
    assert (layer(x) - peer(x, x, x)[0]).abs().max() <= 1e-12
    grouped = Attention(24, 4, 2, qkv_bias=False, proj_bias=False)
    own = grouped.state_dict()
    q, k, v = own["qkv.weight"].split([24, 12, 12])
    other = Attention(24, 4, 2, qkv_bias=False, proj_bias=False)
    other.load_state_dict(
        {"q_proj.weight": q, "k_proj.weight": k, "v_proj.weight": v, "o_proj.weight": own["proj.weight"]}
    )
    assert all(torch.equal(other.state_dict()[key], own[key]) for key in own)


def test_rotations_keep_lengths_and_depend_on_distance() -> None:
    q, k = heads(2, 3, 9, 8, dtype=torch.float64), heads(2, 3, 9, 8, dtype=torch.float64, seed=1)
    here, there = torch.arange(9), torch.arange(9) + 1234
    assert torch.allclose(rotate(q, here).norm(dim=-1), q.norm(dim=-1))
    near, far = (rotate(q, p) @ rotate(k, p).transpose(-2, -1) for p in (here, there))
    assert (near - far).abs().max() <= 1e-9
    angle = torch.tensor(2.0, dtype=torch.float64)
    turned = rotate(torch.tensor([[1.0, 0.0]], dtype=torch.float64), angle.reshape(1))
    assert torch.allclose(turned, torch.stack([angle.cos(), angle.sin()])[None])


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: Attention(30, 4), "embed_dim=30 does not divide into num_heads=4"),
        (lambda: Attention(32, 4, 3), "num_kv_heads=3 does not divide num_heads=4"),
        (lambda: Attention(12, 4, rope_base=1e4), "head_dim=3: rotary"),
        (lambda: Attention(32, 4, window=3), "window=3, causal=False"),
        (lambda: Attention(32, 4)(torch.randn(3, 31)), r"x has shape \(3, 31\); expected \(N, L, 32\)"),
        (
            lambda: Attention(32, 4)(torch.randn(2, 3, 32), torch.ones(2, 4)),
            r"valid has shape \(2, 4\); expected \(2, 3\)",
        ),
        (lambda: Attention(32, 4)(torch.randn(2, 3, 32), cache=GrowingCache()), "causal=True"),
        (lambda: attention(heads(1, 4, 2, 8), heads(1, 3, 2, 8), heads(1, 3, 2, 8)), "G a divisor of H"),
        (lambda: attention(*(heads(1, 4, 2, 8),) * 3, window=2), "window needs causal"),
        (lambda: SlidingWindowCache(0), "window=0"),
        (
            lambda: Attention(32, 4, causal=True)(torch.randn(2, 3, 32), cache=SlidingWindowCache(4)),
            "the cache has window=4 and the layer window=None",
        ),
        (
            lambda: Attention(32, 4, causal=True)(torch.randn(1, 5, 32), cache=StaticCache(1, 4, 4, 8)),
            r"0 \+ 5 tokens do not fit in max_length=4; call reset\(\)",
        ),
        (
            lambda: Attention(32, 4, causal=True)(torch.randn(2, 5, 32), cache=StaticCache(1, 4, 8, 8)),
            r"keys have shape \(2, 4, 5, 8\); expected \(1, 4, L, 8\)",
        ),
        (
            lambda: flash_attention_reference(heads(2, 3, 4), heads(2, 3, 5), heads(2, 3, 4)),
            r"expected \(\.\.\., N, D\)",
        ),
        (lambda: flash_attention_reference(*(heads(2, 3, 4),) * 3, tile=0), "give 1 or more rows"),
        (lambda: flash_attention_reference(*(heads(2, 3, 4),) * 3, memory=15), "give 16 or more"),
    ],
)
def test_mistakes_are_one_line(mistake: Callable[[], object], message: str) -> None:
    with pytest.raises((InputError, ConfigError), match=message) as caught:
        mistake()
    assert "\n" not in str(caught.value)


def test_a_layer_in_16_bits_deep_copied_and_on_the_meta_device() -> None:
    layer = Attention(32, 4, 2, rope_base=1e4, qk_norm=True, causal=True).eval()
    x = torch.randn(2, 5, 32)
    for dtype, tolerance in ((torch.bfloat16, 3e-2), (torch.float16, 3e-3)):
        output = copy.deepcopy(layer).to(dtype)(x.to(dtype))
        assert output.dtype == dtype
        assert (output.float() - layer(x)).abs().max() <= tolerance
    assert layer.to("meta")(x.to("meta")).shape == x.shape


# ---- the tiled reference


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(1, 6), st.integers(1, 25), st.integers(1, 25), st.booleans())
def test_tiles_equal_torch_with_gradients(n: int, m: int, d: int, rows: int, columns: int, causal: bool) -> None:
    """Any tile, also with more queries than keys: outputs and gradients within 1e-6 in float32."""
    q, k, v = (heads(2, 2, *shape, seed=i).requires_grad_() for i, shape in enumerate(((n, d), (m, d), (m, d + 1))))
    output = flash_attention_reference(q, k, v, causal=causal, tile=(rows, columns))
    own = torch.arange(n)[:, None] + m - n
    allowed = (torch.arange(m) <= own) if causal else torch.ones(n, m, dtype=torch.bool)
    expected = F.scaled_dot_product_attention(q, k, v, allowed)
    grad = heads(*expected.shape, seed=9)
    assert (output.output - expected).abs().max() <= 1e-6
    for a, b in zip(
        torch.autograd.grad(output.output, (q, k, v), grad), torch.autograd.grad(expected, (q, k, v), grad), strict=True
    ):
        assert (a - b).abs().max() <= 1e-6 * max(1.0, float(b.abs().max()))
    scores = (q @ k.transpose(-2, -1) * d**-0.5).masked_fill(~allowed, -torch.inf)
    assert torch.allclose(output.logsumexp, scores.logsumexp(-1), atol=1e-5)


def test_large_scores_do_not_overflow() -> None:
    """Scores in the thousands that rise along the keys, so that every tile has a new maximum."""
    q, k, v = heads(1, 8, 4), heads(1, 32, 4, seed=1).cumsum(-2), heads(1, 32, 4, seed=2)
    output = flash_attention_reference(100 * q, 10 * k, v, tile=3).output
    assert output.isfinite().all()
    assert (output - F.scaled_dot_product_attention(100 * q, 10 * k, v)).abs().max() <= 1e-5


@contextmanager
def counting() -> Iterator[list[int]]:
    """Record the size of the largest tensor that is created inside the block."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes: list[int] = []

    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.extend(x.numel() for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, Tensor))
            return out

    with Mode():
        yield sizes


def test_the_full_matrix_of_scores_is_never_created() -> None:
    """Forward and backward pass create no tensor larger than the inputs."""
    q, k, v = (heads(1, 60, 8, seed=i).requires_grad_() for i in range(3))
    with counting() as sizes:
        flash_attention_reference(q, k, v, causal=True, tile=20).output.sum().backward()
    assert max(sizes) == 60 * 8


def test_traffic_follows_the_theorem() -> None:
    """Standard: 4n^2 and linear terms for any memory M. Tiled: n^2 d^2 / M (arXiv 2205.14135, theorem 2)."""
    n, d = 4096, 64
    for memory in (1 << 14, 1 << 15, 1 << 16):
        traffic = attention_traffic(n, n, d, memory=memory)
        assert traffic.standard == 4 * n * n + 4 * n * d
        assert traffic.tiled == pytest.approx(8 * n * n * d * d / memory, rel=0.07)
        # q, out, k, v and the scores of a tile fit
        held = 2 * d * (traffic.row_tile + traffic.column_tile)
        assert held <= memory
        assert traffic.row_tile * traffic.column_tile <= memory // 4
    assert attention_traffic(n, n, d).ratio > 5
    assert attention_traffic(n, n, d, heads=12).tiled == 12 * attention_traffic(n, n, d).tiled
    assert attention_traffic(7, 9, 4, e=2, tile=(2, 3)) == (
        7 * 4 + 9 * 4 + 9 * 2 + 7 * 2 + 4 * 63,
        7 * 7 + 4 * 9 * 6,
        2,
        3,
    )
    run = flash_attention_reference(heads(2, 3, 7, 4), heads(2, 3, 9, 4), heads(2, 3, 9, 2), tile=(2, 3))
    assert run.traffic == attention_traffic(7, 9, 4, e=2, tile=(2, 3), heads=6)
