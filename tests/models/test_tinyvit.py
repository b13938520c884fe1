"""TinyViT: its window attention against the definition, and images of any size."""

from __future__ import annotations

import pytest
import torch

from foveal.errors import InputError
from foveal.models.tinyvit import CONFIGS, TinyViT, WindowAttention


def test_window_attention_equals_its_definition() -> None:
    torch.manual_seed(0)
    attention = WindowAttention(8, 2, 3).double().eval()
    torch.nn.init.normal_(attention.biases)
    x = torch.randn(4, 9, 8, dtype=torch.float64)
    qkv = attention.qkv(attention.norm(x))
    out = []
    for head in range(2):
        q, k, v = qkv[..., 12 * head : 12 * head + 12].split(4, -1)
        bias = torch.tensor(
            [
                [attention.biases[head, abs(i // 3 - j // 3) * 3 + abs(i % 3 - j % 3)].item() for j in range(9)]
                for i in range(9)
            ],
            dtype=torch.float64,
        )
        out.append(torch.softmax(q @ k.transpose(-2, -1) / 2 + bias, -1) @ v)
    torch.testing.assert_close(attention(x), attention.project(torch.cat(out, -1)))


def test_tinyvit_takes_any_size() -> None:
    model = TinyViT(CONFIGS["tinyvit_5m"], in_chans=1).eval()
    maps = model(torch.randn(1, 1, 75, 130))
    assert [tuple(x.shape[1:]) for x in maps] == [(64, 19, 33), (128, 10, 17), (160, 5, 9), (320, 5, 9)]
    with pytest.raises(InputError, match="31"):
        model(torch.zeros(1, 1, 31, 64))
