"""Vision transformers with any attention: shapes, shared layers, checkpoints, sizes, training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from foveal.errors import ConfigError, InputError
from foveal.factory.create import create_model
from foveal.factory.identify import identify
from foveal.factory.load_model import load_model
from foveal.layers.attention import Attention, LinformerAttention
from foveal.layers.linear_attention import LinearSelfAttention
from foveal.measuring.costs import count
from foveal.models.vit import ATTENTIONS, Positions
from helpers import golden

KINDS: dict[str, type[nn.Module]] = {
    "softmax": Attention, "gqa": Attention, "mqa": Attention,
    "linear": LinearSelfAttention, "linformer": LinformerAttention,
}  # fmt: skip


def test_every_kind_is_tested() -> None:
    assert tuple(KINDS) == ATTENTIONS


@torch.no_grad()
@pytest.mark.parametrize("shared", [False, True, 4])
@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_attention(kind: str, shared: bool | int) -> None:
    """The right layer in every block, the number of blocks, any size, and all options inferred from a state dict."""
    model = create_model("vit_tiny", num_classes=5, in_chans=4, attention=kind, shared_layers=shared).eval()
    layers = [part for part in model.modules() if isinstance(part, KINDS[kind])]
    assert len(layers) == {False: 12, True: 1, 4: 4}[shared]
    if isinstance(layers[0], Attention):
        assert layers[0].num_kv_heads == {"softmax": 3, "gqa": 1, "mqa": 1}[kind]
    golden.fill(model)
    for h, w in ((32, 32), (65, 97)):
        assert model(torch.randn(2, 4, h, w)).isfinite().all()
    with torch.device("meta"):
        result = identify(model.state_dict())
        again = create_model(result.model, num_classes=5, in_chans=4, **result.options).eval()
    assert (result.model, result.num_classes, result.in_chans) == ("vit_tiny", 5, 4)
    again = again.to_empty(device="cpu")
    again.load_state_dict(model.state_dict())
    x = torch.randn(1, 4, 64, 48)
    assert torch.equal(again(x), model(x))


def test_sharing_reduces_parameters_but_not_macs() -> None:
    with torch.device("meta"):
        apart, shared, some = (
            create_model("vit_small", features_only=True, shared_layers=sharing) for sharing in (False, True, 3)
        )
    costs = [count(model, 3, (224, 224)) for model in (apart, shared, some)]
    assert len({cost.macs for cost in costs}) == 1
    block = 12 * 384**2 + 13 * 384
    assert costs[0].params - costs[1].params == 11 * block
    assert costs[2].params - costs[1].params == 2 * block


def test_costs_of_attention_at_a_large_size() -> None:
    """At 4096 tokens linear attention replaces the n x n products, 2 n^2 d MACs per block, by 2 n d (d / h + 1)."""
    with torch.device("meta"):
        softmax, linear = (
            count(create_model("vit_tiny", features_only=True, attention=kind), 3, (1024, 1024)).macs
            for kind in ("softmax", "linear")
        )
    n, d, h = 4096, 192, 3
    per_block = 2 * n * n * d - 2 * n * d * (d // h) - 2 * n * d  # the sums of keys, and their products with queries
    assert softmax - linear == 12 * per_block


def test_positions_differ_and_fit_any_size() -> None:
    """Every position has a different embedding, and the same one in a larger map."""
    add = Positions()
    small, large = add(torch.zeros(1, 16, 5, 7))[0], add(torch.zeros(1, 16, 40, 50))[0]
    assert torch.equal(small, large[:, :5, :7])
    places = large.flatten(1).T
    assert len(torch.unique(places, dim=0)) == 2000
    assert torch.allclose(places.norm(dim=1), torch.full((2000,), 8**0.5))


@pytest.mark.parametrize("kind", KINDS)
def test_a_step_lowers_the_loss(kind: str) -> None:
    """Every parameter has a gradient, and a small step lowers the loss as predicted."""
    torch.manual_seed(0)
    model = create_model("vit_tiny", num_classes=2, attention=kind, shared_layers=2).double()
    images, labels = torch.randn(4, 3, 32, 64, dtype=torch.float64), torch.arange(4) % 2
    before = nn.functional.cross_entropy(model(images), labels)
    before.backward()
    step, promised = 1e-6, 0.0
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            assert parameter.grad is not None, name
            promised += step * float(parameter.grad.square().sum())
            parameter -= step * parameter.grad
        after = nn.functional.cross_entropy(model(images), labels)
    assert (before - after).item() == pytest.approx(promised, rel=1e-2)


@torch.no_grad()
def test_a_checkpoint_without_description_loads(tmp_path: Path) -> None:
    model = golden.fill(create_model("vit_tiny", num_classes=3, attention="linear", shared_layers=True))
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    x = torch.randn(1, 3, 48, 64)
    assert torch.equal(load_model(tmp_path / "bare.safetensors")(x), model(x))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attention": "linearr"}, "did you mean 'linear'"),
        ({"num_kv_heads": 1}, "is only for attention='gqa'"),
        ({"attention": "gqa", "num_kv_heads": 2}, "num_kv_heads=2 does not divide num_heads=3"),
        ({"shared_layers": 13}, "times=12, groups=13"),
        ({"share_layers": True}, "did you mean 'shared_layers'"),
    ],
)
def test_mistakes_are_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        create_model("vit_tiny", **options)
    assert "\n" not in str(caught.value)


def test_images_that_are_too_small_or_too_large() -> None:
    model = create_model("vit_tiny", attention="linformer", max_tokens=20)
    assert model(torch.zeros(1, 3, 64, 80)).shape == (1, 1000)
    with pytest.raises(InputError, match="24 tokens: this Linformer was built for at most 20"):
        model(torch.zeros(1, 3, 64, 96))
    with pytest.raises(InputError, match="smaller than the model's minimum"):
        model(torch.zeros(1, 3, 31, 64))
