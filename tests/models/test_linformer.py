"""Linformer: outputs of the package, the paper's sharing modes, padding, checkpoints, errors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from foveal.errors import CheckpointError, ConfigError, InputError
from foveal.factory.create import create_model, list_models
from foveal.factory.load_model import load_model
from foveal.factory.pretrained import save_pretrained
from foveal.info import info_of
from foveal.layers.attention import LinformerAttention, Sharing
from foveal.measuring.costs import count_tokens
from foveal.models.linformer import Linformer
from foveal.prediction.load import load
from foveal.weights.loading import load_checkpoint
from helpers import golden, golden_arch

SMALL: dict[str, Any] = {
    "vocab_size": 50, "embed_dim": 32, "depth": 2, "num_heads": 4, "max_length": 16, "proj_dim": 8
}  # fmt: skip


def ours(arguments: dict[str, Any]) -> dict[str, Any]:
    """Convert the arguments of the package to our names."""
    return {
        "max_length": arguments["seq_len"],
        "proj_dim": arguments["k"],
        "num_heads": arguments["heads"],
        "head_dim": arguments.get("dim_head"),
        "num_kv_heads": 1 if arguments.get("one_kv_head") else None,
        "values_are_keys": arguments.get("share_kv", False),
    }


def normal(shape: list[int]) -> Tensor:
    return torch.from_numpy(np.random.default_rng(0).standard_normal(shape))


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name, case in golden.read("linformer").items() if "cls" in case])
def test_equals_the_package(name: str, tmp_path: Path) -> None:
    """With the package's weights: short inputs, one head of keys, shared keys and values, wide heads, models."""
    case = golden.read("linformer")[name]
    arguments, state = case["args"], golden_arch.state(case["manifest"])
    if case["cls"] == "LinformerLM":
        save_file({key: value.float() for key, value in state.items()}, tmp_path / "package.safetensors")
        model = create_model("linformer", weights=tmp_path / "package.safetensors", num_heads=4).eval()
        assert info_of(model).options["max_length"] == 16
        output = model(torch.tensor(case["input_ids"]))
    elif case["cls"] == "Linformer":
        model = Linformer(embed_dim=arguments["dim"], depth=arguments["depth"], **ours(arguments)).double().eval()
        model.load_state_dict(state)
        output = model(normal(case["input"]))
    else:
        layer = LinformerAttention(arguments["dim"], **ours(arguments)).double().eval()
        layer.load_state_dict(state)
        output = layer(normal(case["input"]))
    assert golden_arch.difference(output, case["output"]) <= 1e-5


def projections(sharing: Sharing) -> int:
    """Count the parameters of the projections, for four heads and two layers."""
    names = ("proj_k", "proj_v", "projection")
    model = create_model("linformer", sharing=sharing, **SMALL)
    return sum(p.numel() for key, p in model.named_parameters() if key.rpartition(".")[2] in names)


def test_how_many_projections_there_are() -> None:
    """Section 4 of the paper: two projections per head and layer; two per layer; one per layer; one."""
    one = 16 * 8
    assert projections("none") == 2 * 4 * 2 * one
    assert projections("headwise") == 2 * 2 * one
    assert projections("key-value") == 2 * one
    assert projections("layerwise") == one


@pytest.mark.parametrize("sharing", get_args(Sharing))
def test_every_sharing_equals_the_formula(sharing: Sharing) -> None:
    """Equal to ``softmax(Q (E K)^T / sqrt(d)) F V`` head by head for every mode; shorter and padded inputs."""
    torch.manual_seed(0)
    layer = LinformerAttention(12, 3, max_length=10, proj_dim=5, sharing=sharing).double()
    projection = torch.randn(10, 5).double() if sharing == "layerwise" else None
    x, valid = torch.randn(2, 7, 12).double(), torch.ones(2, 7, dtype=torch.bool)
    valid[1, 4:] = False
    output = layer(x, valid, projection)
    outs = []
    assert layer.value is not None
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        q, k, v = (f(x)[..., part] for f in (layer.query, layer.key, layer.value))
        e = projection if layer.proj_k is None else layer.proj_k
        f = e if layer.proj_v is None else layer.proj_v
        assert e is not None
        assert f is not None
        e, f = (p[head] if p.ndim == 3 else p for p in (e, f))
        mixed_k, mixed_v = (p[:7].T @ (y * valid[..., None]) for p, y in ((e, k), (f, v)))
        outs.append((q @ mixed_k.transpose(1, 2) / 2).softmax(-1) @ mixed_v)
    assert (output - layer.proj(torch.cat(outs, -1))).abs().max() <= 1e-12
    # tokens that do not take part change nothing
    changed = x.clone()
    changed[1, 4:] = 99
    assert (layer(changed, valid, projection) - output)[valid].abs().max() <= 1e-12


@pytest.mark.parametrize("sharing", get_args(Sharing))
def test_files_and_gradients(sharing: Sharing, tmp_path: Path) -> None:
    """A saved model loads unchanged; every parameter has a gradient; the mode is inferred from the keys."""
    model = create_model("linformer", sharing=sharing, **SMALL)
    ids = torch.randint(50, (2, 16))
    model(ids).logsumexp(-1).sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())
    save_pretrained(model, tmp_path / "saved")
    again = load_model(tmp_path / "saved")
    assert torch.equal(again(ids), model.eval()(ids))
    save_file(model.state_dict(), tmp_path / "bare.safetensors")
    third = create_model("linformer", weights=tmp_path / "bare.safetensors", num_heads=4).eval()
    assert torch.equal(third(ids), model(ids))
    assert third.state_dict().keys() == model.state_dict().keys()


def test_costs_grow_linearly() -> None:
    """Twice the tokens cost twice the MACs; with softmax attention it would be more."""
    with torch.device("meta"):
        short, long = (
            count_tokens(create_model("linformer", max_length=n, embed_dim=64, num_heads=2, depth=2, vocab_size=9), n)
            for n in (1024, 2048)
        )
    assert long.macs == 2 * short.macs


def test_in_the_list_and_in_no_list_of_images() -> None:
    assert list_models("linformer") == list_models("linformer", task="language") == ["linformer"]
    assert not list_models("linformer", task="segment") + list_models("linformer", task="classify")
    encoder = create_model("linformer", features_only=True, **SMALL)
    assert encoder(torch.zeros(1, 3, dtype=torch.long)).shape == (1, 3, 32)


def failing(**options: Any) -> Callable[[], object]:
    return lambda: create_model("linformer", **{**SMALL, **options})


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (failing(sharing="headwize"), "did you mean 'headwise'"),
        (failing(num_heads=5), "embed_dim=32 does not divide into num_heads=5"),
        (failing(num_kv_heads=3), "num_kv_heads=3 does not divide num_heads=4"),
        (failing(proj_dim=0), "proj_dim=0"),
        (failing(task="segment"), "linformer is a language model, not for 'segment'"),
        (failing(num_classes=10), "num_classes and in_chans are for images"),
        (failing(dept=1), "did you mean 'depth'"),
        (lambda: failing()()(torch.zeros(1, 17, dtype=torch.long)), "17 tokens: this model takes at most 16"),
        (lambda: failing()()(torch.full((1, 4), 50)), "token 50 is out of range: give 0 to 49"),
        (lambda: failing()()(torch.zeros(1, 4)), r"give \(B, L\) integers"),
        (lambda: failing()()(torch.zeros(1, 4, dtype=torch.long), torch.ones(1, 5)), "give one for each token"),
        (
            lambda: LinformerAttention(8, 2, max_length=4)(torch.zeros(1, 5, 8)),
            "5 tokens: this Linformer was built for at most 4",
        ),
        (lambda: LinformerAttention(8, 2, max_length=4)(torch.zeros(5, 8)), r"expected \(B, N, 8\)"),
        (
            lambda: LinformerAttention(8, 2, max_length=4, sharing="layerwise")(torch.zeros(1, 4, 8)),
            "pass a projection",
        ),
        (lambda: load("linformer"), "linformer is a language model: it takes token ids, not images"),
    ],
)
def test_mistakes_are_one_line(mistake: Callable[[], object], message: str) -> None:
    with pytest.raises((InputError, ConfigError), match=message) as caught:
        mistake()
    assert "\n" not in str(caught.value)


def test_heads_are_not_guessed(tmp_path: Path) -> None:
    """The package's files do not show the number of heads, so no model is built without ``num_heads``."""
    case = golden.read("linformer")["lm"]
    state = golden_arch.state(case["manifest"])
    save_file(state, tmp_path / "package.safetensors")
    with pytest.raises(ConfigError, match="give num_heads"):
        create_model("linformer", weights=tmp_path / "package.safetensors")
    with pytest.raises(CheckpointError, match="build it with create_model"):
        load_model(tmp_path / "package.safetensors")
    model = create_model("linformer", **SMALL)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=r"1 missing: backbone\.position_embeddings\.weight"):
        load_checkpoint(model, {key: value for key, value in state.items() if key != "pos_emb.weight"})
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert load_checkpoint(model, state).layout == "linformer"
