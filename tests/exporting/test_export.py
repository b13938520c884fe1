"""A model of several files is exported whole, or no file is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from foveal.errors import ExportError, InputError
from foveal.exporting.export import _write_files
from foveal.exporting.formats import find_format
from foveal.exporting.graph import Graph
from foveal.info import ModelInfo

PARTS = ("encoder", "decoder", "prompts")


class Scale(nn.Module):
    """Multiply by a number."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(factor))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor


def graphs(**factors: float) -> list[Graph]:
    """Small networks, each of which doubles its input unless ``factors`` names another number for its part."""
    feed = {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}
    return [
        Graph(
            part=part,
            network=Scale(factors.get(part, 2.0)),
            reference=Scale(2.0),
            info=ModelInfo("scale", "prompt"),
            example=(torch.zeros(2, 4),),
            inputs={"x": ("batch", "")},
            outputs={"y": ("batch", "")},
            feeds=(feed,),
        )
        for part in PARTS
    ]


def test_all_files_are_written_or_none(tmp_path: Path) -> None:
    paths = [tmp_path / f"{part}.onnx" for part in PARTS]
    worst, agreement = _write_files(find_format("onnx"), graphs(), paths)
    assert (worst, agreement) == (0.0, 1.0)
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    for path in paths:
        path.unlink()
    paths[2].mkdir()  # in the way of the last file
    with pytest.raises(InputError, match=r"cannot write .*prompts\.onnx"):
        _write_files(find_format("onnx"), graphs(), paths)
    assert list(tmp_path.iterdir()) == [paths[2]]


@pytest.mark.parametrize("factor", [float("nan"), 2.001])
def test_no_file_is_left_if_one_differs(factor: float, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="the decoder differs from the model by"):
        _write_files(find_format("onnx"), graphs(decoder=factor), [tmp_path / f"{part}.onnx" for part in PARTS])
    assert not list(tmp_path.iterdir())
