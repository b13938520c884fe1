"""ALBERT: outputs of transformers, published sizes, shared layers, tied weights, config.json, checkpoints."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import Tensor, nn

from foveal.errors import CheckpointError, ConfigError, InputError
from foveal.factory.create import create_model, list_models
from foveal.factory.identify import identify
from foveal.factory.load_model import load_model
from foveal.factory.pretrained import save_pretrained
from foveal.info import info_of
from foveal.layers.sharing import SharedLayers, shared_layers
from foveal.measuring.costs import count_tokens
from foveal.models.albert import Albert
from foveal.tasks.language import LanguageModel
from foveal.weights.loading import load_checkpoint
from helpers import golden, golden_arch
from helpers.hub_client import Session
from helpers.hub_server import running

REFERENCE = golden.read("albert")
ENCODERS = ("small", "groups2_inner2", "small_gelu")
NAMES = ("albert_base", "albert_large", "albert_xlarge", "albert_xxlarge")


def inputs(case: dict[str, Any]) -> tuple[Tensor, Tensor, Tensor]:
    """Return ids, mask and token types of the reference."""
    ids = torch.tensor(case["input_ids"])
    mask, types = torch.ones_like(ids), torch.zeros_like(ids)
    mask[1, 9:], types[:, 7:] = 0, 1
    return ids, mask, types


def weights(case: dict[str, Any]) -> dict[str, Tensor]:
    """Return the weights with the names of transformers; a tensor with two names has the values of the second."""
    state = golden_arch.state(case["manifest"])
    for first, second in case.get("tied", ()):
        state[first] = state[second]
    return state


@torch.no_grad()
@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_equal_transformers(name: str) -> None:
    """Every hidden state and the pooled vector in float64, for groups, inner layers and both activations."""
    case = REFERENCE[name]
    model = create_model("albert_base", features_only=True, **case["config"]).double().eval()
    assert isinstance(model, Albert)
    report = load_checkpoint(model, weights(case))
    assert (report.layout, report.ignored, report.reinitialized) == ("albert", (), ())
    assert sum(p.numel() for p in model.parameters()) == case["params"]
    states = model.hidden_states(*inputs(case))
    for output, expected in zip(states, case["hidden_states"], strict=True):
        assert golden_arch.difference(output, expected) <= 2e-6
    assert golden_arch.difference(model(*inputs(case)), case["last_hidden_state"]) <= 2e-6
    assert golden_arch.difference(model.pooled(states[-1]), case["pooler_output"]) <= 2e-6


@torch.no_grad()
def test_masked_language_model_equals_transformers(tmp_path: Path) -> None:
    """Logits computed with the tied embeddings; our own checkpoint stores each tensor once."""
    case = REFERENCE["mlm_small"]
    model = create_model("albert_base", **case["config"]).double().eval()
    load_checkpoint(model, weights(case))
    assert golden_arch.difference(model(*inputs(case)), case["logits"]) <= 2e-6
    model.float()
    save_pretrained(model, tmp_path / "saved")
    assert torch.equal(load_model(tmp_path / "saved")(*inputs(case)), model(*inputs(case)))


def test_head_and_embeddings_are_one_tensor() -> None:
    """One name of a tied tensor is enough; two different tensors are refused; the gradient is the sum of both uses."""
    case = REFERENCE["mlm_small"]
    model, whole = create_model("albert_base", **case["config"]).double(), weights(case)
    expected = None
    for dropped in ((), *((name,) for pair in case["tied"] for name in pair)):
        load_checkpoint(model, {key: value for key, value in whole.items() if key not in dropped})
        output = model.eval()(*inputs(case))
        assert expected is None or torch.equal(output, expected)
        expected = output
    state = {**whole, "predictions.decoder.weight": whole["predictions.decoder.weight"] + 1}
    with pytest.raises(CheckpointError, match="must be one tensor"):
        load_checkpoint(model, state)
    assert isinstance(model, LanguageModel)
    embeddings = model.backbone.word_embeddings.weight
    model(*inputs(case)).sum().backward()
    assert embeddings.grad is not None
    assert embeddings.grad[3].abs().sum() > 0  # a word that no input has: through the head alone


def test_published_sizes() -> None:
    """As many parameters as transformers' AlbertModel, and the names and shapes of its checkpoint."""
    for name in NAMES:
        with torch.device("meta"):
            model = create_model(name, features_only=True)
        expected = REFERENCE["sizes"][name.removeprefix("albert_")]["params"]
        assert sum(p.numel() for p in model.parameters()) == expected
    manifest = {key: torch.empty(shape, device="meta") for key, shape in REFERENCE["base_manifest"].items()}
    result = identify(manifest)
    assert (result.model, result.task, result.options) == ("albert_base", "features", {})


@pytest.mark.parametrize("name", NAMES)
def test_variants_are_inferred_from_shapes(name: str) -> None:
    for arguments in ({}, {"features_only": True}, {"vocab_size": 120, "num_hidden_groups": 3, "type_vocab_size": 5}):
        with torch.device("meta"):
            state = create_model(name, **arguments).state_dict()
        result = identify(state)
        bare = "features_only" in arguments
        assert (result.model, result.task) == (name, "features" if bare else "language")
        assert result.options == ({} if bare else arguments)


def test_sharing_reduces_parameters_but_not_macs() -> None:
    """MACs of BERT-base: 12 layers of 12 h^2 + 2 n h per token; without sharing, 12 times the parameters of a layer."""
    with torch.device("meta"):
        shared = create_model("albert_base", features_only=True)
        apart = create_model("albert_base", features_only=True, num_hidden_groups=12)
    costs, unshared = count_tokens(shared, 512), count_tokens(apart, 512)
    h, n = 768, 512
    assert costs.macs == unshared.macs == n * 128 * h + 12 * (n * 12 * h * h + 2 * n * n * h)
    layer = 12 * h * h + 13 * h
    assert unshared.params - costs.params == 11 * layer
    (stack,) = shared_layers(shared)
    assert stack.summary() == (
        "12 layers share 1 block: 7.09 M parameters instead of 85.05 M; MACs and activations are those of 12 layers"
    )
    assert stack.summary() in repr(shared)
    assert not shared_layers(apart)


@given(st.integers(1, 12), st.data())
def test_any_block_can_be_shared(times: int, data: st.DataObject) -> None:
    """Layer l is block l // (times / groups), gradients of its layers add up; blocks from modules and functions."""
    groups = data.draw(st.integers(1, times))
    stack = SharedLayers(lambda: nn.Linear(3, 3), times, groups)
    order = [list(stack).index(block) for block in stack.layers()]
    assert order == [int(i / (times / groups)) for i in range(times)]
    assert set(order) == set(range(groups))
    plain = nn.Sequential(*(nn.Linear(3, 3) for _ in range(times)))
    for i, block in enumerate(order):
        plain[i].load_state_dict(stack[block].state_dict())
    x = torch.randn(2, 3)
    assert torch.equal(stack(x), plain(x))
    stack(x).sum().backward()
    plain(x).sum().backward()
    for block in range(groups):
        parts = [plain[i].weight.grad for i in range(times) if order[i] == block]
        assert torch.allclose(stack[block].weight.grad, torch.stack(parts).sum(0), atol=1e-6)
    copies = SharedLayers(nn.Linear(3, 3), times, groups)
    assert len({id(block) for block in copies}) == groups
    assert SharedLayers(nn.Linear(3, 3), times, times).state_dict().keys() == plain.state_dict().keys()


def saved_by_transformers(folder: Path, case: dict[str, Any], **changes: Any) -> Path:
    """Write a folder as transformers does."""
    folder.mkdir(parents=True)
    state = {key: value.float() for key, value in weights(case).items()}
    tied = [name for pair in case.get("tied", ()) for name in pair[1:]]  # safetensors hold a tensor once
    save_file({key: value for key, value in state.items() if key not in tied}, folder / "model.safetensors")
    text = json.dumps({"model_type": "albert", "architectures": ["Albert"], **case["config"], **changes})
    (folder / "config.json").write_text(text)
    return folder


@torch.no_grad()
@pytest.mark.parametrize("name", [*ENCODERS, "mlm_small"])
def test_config_json_sets_what_shapes_do_not_show(name: str, tmp_path: Path) -> None:
    """Heads, layers and activation are read from a folder of transformers by load_model and create_model."""
    case = REFERENCE[name]
    folder = saved_by_transformers(tmp_path / name, case)
    model = load_model(folder)
    assert info_of(model).task == ("language" if name == "mlm_small" else "features")
    expected = case.get("logits") or case["last_hidden_state"]
    assert golden_arch.difference(model(*inputs(case)), expected) <= 1e-5
    again = create_model("albert_base", weights=folder, features_only=name != "mlm_small").eval()
    assert torch.equal(again(*inputs(case)), model(*inputs(case)))


LOAD = """
import json, sys, foveal, torch
model = foveal.load_model(sys.argv[1])
ids = torch.tensor(json.loads(sys.argv[2]))
found = model(ids).flatten()[:16].tolist()
print(json.dumps([foveal.info.info_of(model).task, model.backbone.config.hidden_act, found]))
"""


@pytest.mark.parametrize("ref", ["albert_base.v1", pytest.param("albert/albert-base-v1", marks=pytest.mark.long)])
def test_published_weights_come_with_their_config(ref: str, tmp_path: Path) -> None:
    """By tag and by hub id, both files are downloaded once; sizes and activation are those of config.json."""
    case = REFERENCE["mlm_small"]
    folder = saved_by_transformers(tmp_path / "made", case)
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "FOVEAL_"))}
    arguments = (ref, json.dumps(case["input_ids"]))
    with running() as hub:
        for path in folder.iterdir():
            hub.files["albert/albert-base-v1", path.name] = path.read_bytes()
        cache = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
        with Session({**kept, **cache, "NO_PROXY": "127.0.0.1"}, "-W", "error") as python:
            done = python.run(LOAD, *arguments)
    with Session({**kept, **cache, "HF_HUB_OFFLINE": "1"}, "-W", "error") as python:
        again = python.run(LOAD, *arguments)
    assert done.returncode == 0, done.stderr
    task, activation, output = json.loads(done.stdout)
    assert (task, activation) == ("language", "gelu_new")
    expected = load_model(folder)(torch.tensor(case["input_ids"])).flatten()[:16]
    assert torch.allclose(torch.tensor(output), expected, atol=1e-6)
    assert again.stdout == done.stdout


def test_the_activation_matters_and_is_read(tmp_path: Path) -> None:
    case = REFERENCE["small"]
    ids = torch.tensor(case["input_ids"])
    exact = load_model(saved_by_transformers(tmp_path / "exact", case, hidden_act="gelu"))
    tanh = load_model(saved_by_transformers(tmp_path / "tanh", case))
    assert (exact(ids) - tanh(ids)).abs().max() > 1e-4
    for text in ("[]", "{", '{"hidden_act": "swish"}'):
        folder = saved_by_transformers(tmp_path / f"bad{len(text)}", case)
        (folder / "config.json").write_text(text)
        with pytest.raises((CheckpointError, ConfigError)) as caught:
            load_model(folder)
        assert "\n" not in str(caught.value)
    # without config.json, no variant has these small sizes, and nothing is guessed
    (folder / "config.json").unlink()
    with pytest.raises(CheckpointError, match="build it with create_model"):
        load_model(folder)


def test_encoder_and_language_model_load_their_parts(tmp_path: Path) -> None:
    """A pretraining checkpoint (pooler, head, sentence order) fits both; an encoder can start a language model."""
    small, whole = REFERENCE["small"], REFERENCE["mlm_small"]
    state = {f"albert.{key}": value for key, value in weights(small).items()} | {
        key: value for key, value in weights(whole).items() if key.startswith("predictions.")
    }
    state["predictions.decoder.weight"] = state["albert.embeddings.word_embeddings.weight"]
    state["predictions.bias"] = state["predictions.decoder.bias"]
    state |= {"sop_classifier.classifier.weight": torch.zeros(2, 32), "sop_classifier.classifier.bias": torch.zeros(2)}
    model = create_model("albert_base", **small["config"])
    assert load_checkpoint(model, state).ignored == ("backbone.pooler.weight", "backbone.pooler.bias")
    encoder = create_model("albert_base", features_only=True, **small["config"])
    report = load_checkpoint(encoder, state)
    assert all(key.startswith("head.") for key in report.ignored)
    with pytest.raises(CheckpointError, match=r"2 missing: pooler.weight, pooler.bias"):
        load_checkpoint(encoder, weights(whole))
    started = create_model("albert_base", weights=saved_by_transformers(tmp_path / "encoder", small), task="language")
    assert isinstance(started, LanguageModel)
    started_words = started.backbone.word_embeddings.weight
    assert torch.equal(started_words, weights(small)["embeddings.word_embeddings.weight"].float())


def test_learns() -> None:
    """A tiny model learns to repeat its input."""
    torch.manual_seed(0)
    config = {"vocab_size": 20, "embedding_size": 16, "hidden_size": 32, "num_hidden_layers": 2}
    model = create_model("albert_base", num_attention_heads=4, intermediate_size=64, **config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        ids = torch.randint(20, (16, 8))
        loss = nn.functional.cross_entropy(model(ids).flatten(0, 1), ids.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 1.5  # from log(20) = 3


def test_names_and_weights_of_the_list() -> None:
    assert list_models("albert*", task="language") == list(NAMES)
    assert list_models("albert_base*", pretrained=True) == ["albert_base.v2", "albert_base.v1"]
    assert not list_models("albert*", task="segment")


def small(**changes: Any) -> nn.Module:
    config = {**REFERENCE["small"]["config"], **changes}
    return create_model("albert_base", **config)


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: small(hidden_act="gelu_ne"), "did you mean 'gelu_new'"),
        (lambda: small(num_attention_heads=5), "embed_dim=32 does not divide into num_heads=5"),
        (lambda: small(num_hidden_groups=9), "times=4, groups=9"),
        (lambda: small(hidden_sizes=9), "did you mean 'hidden_size'"),
        (lambda: small(task="classify"), "albert_base is a language model, not for 'classify'; valid: language"),
        (lambda: create_model("efficientvit_b0", "language"), "efficientvit_b0 is not for 'language'; valid: classify"),
        (lambda: small()(torch.zeros(1, 65, dtype=torch.long)), "65 tokens: this model takes at most 64"),
        (lambda: small()(torch.full((1, 2), -1)), "token -1 is out of range: give 0 to 199"),
        (
            lambda: small()(torch.zeros(1, 2, dtype=torch.long), token_type_ids=torch.zeros(1, 3, dtype=torch.long)),
            r"token_type_ids has shape \(1, 3\); expected \(1, 2\)",
        ),
        (lambda: small().backbone.pooled(torch.zeros(1, 2, 32)), "no pooler"),
        (lambda: SharedLayers(nn.Identity(), 0), "give times of 1 or more"),
    ],
)
def test_mistakes_are_one_line(mistake: Callable[[], object], message: str) -> None:
    with pytest.raises((InputError, ConfigError), match=message) as caught:
        mistake()
    assert "\n" not in str(caught.value)
