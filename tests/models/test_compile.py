"""Every family is one graph for ``torch.compile``: nothing falls back to Python, and the outputs are the same.

MambaVision is in ``test_mambavision_graphs.py``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from foveal.factory.create import create_model, list_models
from foveal.layers.linear_attention import MultiScaleLinearAttention
from foveal.models.registry import variants
from foveal.models.vit import Config as ViTConfig
from foveal.models.vit import ViT
from helpers import golden
from helpers.narrow import narrow


def as_one_graph(model: nn.Module, *inputs: Tensor) -> tuple[Any, int]:
    """Return the output of the compiled model, and the number of graphs; a break is an error."""
    graphs: list[int] = []

    def backend(graph: Any, _: object) -> Callable[..., Any]:
        graphs.append(1)
        return graph.forward

    torch.compiler.reset()
    output = torch.compile(model, fullgraph=True, backend=backend)(*inputs)
    return output, len(graphs)


CASES: dict[str, Callable[[], nn.Module]] = {
    "segment": lambda: narrow("segment"),
    "vit": lambda: ViT(ViTConfig(32, 1, 2)),
    "attention": lambda: nn.Sequential(nn.Conv2d(3, 16, 8, 8), MultiScaleLinearAttention(16, head_dim=8)),
    "realtime_sr": lambda: create_model("realtime_sr", "upscale", scale=2),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CASES)
def test_one_graph(name: str) -> None:
    model, x = golden.fill(CASES[name](), 0.7).eval(), torch.randn(1, 3, 64, 96)
    output, graphs = as_one_graph(model, x)
    expected = model(x)
    pairs = zip(output, expected, strict=True) if isinstance(output, list) else [(output, expected)]
    assert graphs == 1
    assert all((a - b).abs().max() <= 1e-5 * b.abs().max() for a, b in pairs)


def test_one_graph_in_training() -> None:
    model = narrow("segment").train()
    output, graphs = as_one_graph(model, torch.randn(2, 3, 64, 64))
    output.sum().backward()
    assert graphs == 1
    assert all(p.grad is not None for p in model.parameters())


FIRST = [name for name in list_models() if name == next(iter(variants()[name][0].variants))]


@torch.no_grad()
@pytest.mark.long
@pytest.mark.parametrize("name", FIRST)
def test_every_family_is_one_graph(name: str) -> None:
    """Without data: the graph is traced on the meta device."""
    task = variants()[name][1].tasks[0]
    size = 1024 if task == "prompt" else 96
    with torch.device("meta"):
        model = create_model(name, task).eval()
        image = torch.empty(1, 3, size, size)
        x = torch.zeros(1, 16, dtype=torch.long) if task == "language" else image
    part: Any = model.image_encoder if task == "prompt" else model
    assert as_one_graph(part, x)[1] == 1
