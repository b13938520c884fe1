"""``torch.func`` transforms of the compiled selective scan equal those of plain torch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import Tensor
from torch.func import grad, vmap

from foveal.layers.scan import cpu, selective_scan

NAMES = ("u", "delta", "A", "B", "C", "D", "delta_bias")
SHAPES = ((2, 4, 9), (2, 4, 9), (4, 3), (2, 2, 3, 9), (2, 2, 3, 9), (4,), (4,))


def loss(method: str, *tensors: Tensor) -> Tensor:
    inputs = dict(zip(NAMES, tensors, strict=True))
    y, state = selective_scan(**inputs, delta_softplus=True, return_last_state=True, method=method)
    return y.sin().sum() + state.cos().sum()


@pytest.mark.skipif(not cpu.available(), reason="no C++ compiler")
@pytest.mark.parametrize("mapped", [NAMES, ("u",), ("A", "D"), ("B", "delta_bias")], ids=str)
def test_vmap_of_gradients(mapped: tuple[str, ...]) -> None:
    """With items in all inputs or in some, along another dimension than the first where there is one."""
    torch.manual_seed(0)
    dims = tuple(min(1, len(shape)) if name in mapped else None for name, shape in zip(NAMES, SHAPES, strict=True))
    tensors = [
        torch.randn(shape if dim is None else (*shape[:dim], 3, *shape[dim:]), dtype=torch.float64)
        for shape, dim in zip(SHAPES, dims, strict=True)
    ]
    tensors[2] = -tensors[2].abs()
    found, expected = (
        vmap(grad(partial(loss, method), argnums=tuple(range(7))), in_dims=dims)(*tensors)
        for method in ("kernel", "chunked")
    )
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-11) for a, b in zip(found, expected, strict=True))
