"""Windows are cut and joined as with explicit padding and slicing."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from foveal.layers.windows import Windows, cut_map, join_map


@torch.no_grad()
@settings(max_examples=30)
@given(
    size=st.integers(1, 9), height=st.integers(1, 20), width=st.integers(1, 20), neutral=st.booleans(), data=st.data()
)
def test_windows_are_cut_and_joined(size: int, height: int, width: int, neutral: bool, data: st.DataObject) -> None:
    """Equal to explicit padding and slicing; joining restores the map."""
    x = torch.randn(data.draw(st.integers(1, 3)), 2, height, width)
    windows = Windows(size, height, width, neutral=neutral, device=x.device)
    tokens = windows.cut(x)
    assert torch.equal(windows.join(tokens), x)
    padded = F.pad(x, (0, -width % size, 0, -height % size))
    inside = F.pad(torch.ones(1, 1, height, width), (0, -width % size, 0, -height % size))
    rows, columns = padded.shape[2] // size, padded.shape[3] // size
    for index, window in enumerate(tokens.unflatten(0, (len(x), -1)).unbind(1)):
        top, left = index // columns * size, index % columns * size
        expected = padded[:, :, top : top + size, left : left + size].flatten(2).transpose(1, 2)
        valid = inside[0, 0, top : top + size, left : left + size].flatten() > 0
        if neutral:  # the map's tokens first
            expected = torch.cat([expected[:, valid], expected[:, ~valid]], 1)
            valid = torch.arange(size * size) < valid.sum()
        assert torch.equal(window, expected)
        assert torch.equal(windows.valid(2).unflatten(0, (2, -1))[:, index], valid.expand(2, -1))
    assert len(windows.valid(1)) == rows * columns


class InWindows(nn.Module):
    """Numbers the places of windows, cut in both ways."""

    def __init__(self, neutral: bool) -> None:
        super().__init__()
        self.neutral = neutral

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        windows = Windows(7, *x.shape[-2:], neutral=self.neutral, device=x.device)
        tokens = windows.cut(x)
        places = torch.arange(49.0)[:, None] * windows.valid(len(x)).unsqueeze(-1)
        maps = cut_map(x, 7)
        return windows.join(tokens + places), join_map(maps + torch.arange(7.0), *x.shape[-2:])


@pytest.mark.parametrize("neutral", [False, True])
@pytest.mark.parametrize("size", [(9, 16), (14, 7)])
def test_files_of_a_fixed_size_compute_no_indices(neutral: bool, size: tuple[int, int]) -> None:
    """The indices are constants of the graph, and the same."""
    model, x = InWindows(neutral), torch.randn(2, 3, *size)
    program = torch.export.export(model, (x,), strict=False)
    operations = {str(node.target) for node in program.graph.nodes}
    assert not operations & {"aten.floor_divide.default", "aten.minimum.default", "aten.logical_and.default"}
    for found, expected in zip(program.module()(x), model(x), strict=True):
        assert torch.equal(found, expected)
