"""The registry refuses what would replace or hide a model, and a variant that a user registers is a full member."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import foveal
from foveal.data.synthetic import NAMES, write_shapes
from foveal.errors import CheckpointError, ConfigError
from foveal.factory.identify import identify
from foveal.info import info_of
from foveal.models.efficientvit import CONFIGS, EfficientViT, register_variant
from foveal.models.registry import FAMILIES, Family, Variant, published, register, variants
from helpers.narrow import CONVOLUTIONS, NARROW

NAME = "efficientvit_mine"


def family(name: str, *names: str, **fields: Any) -> Family:
    members = {member: Variant(lambda in_chans: EfficientViT(NARROW, in_chans)) for member in names}
    return Family(**{"name": name, "paper": "none", "variants": members, "convert": convert, **fields})


def convert(state: Any) -> dict[str, Tensor] | None:
    return dict(state) if "backbone.stem.0.conv.weight" in state else None


@pytest.fixture
def mine(request: pytest.FixtureRequest) -> Iterator[str]:
    register_variant(NAME, getattr(request, "param", NARROW))
    yield NAME
    del CONFIGS[NAME], FAMILIES["efficientvit"].variants[NAME]


@pytest.mark.parametrize(
    ("added", "message"),
    [
        (
            family("efficientvit", "new"),
            "a model family 'efficientvit' is registered already; give this one another name",
        ),
        (family("new", "efficientvit_b0"), "'efficientvit_b0' is registered already, in the family 'efficientvit'"),
        (family("new", "new.large"), "'new.large' cannot be a model's name: what follows a dot is the tag"),
        (family("new", ""), "'' cannot be a model's name"),
    ],
)
def test_names_are_registered_once(added: Family, message: str) -> None:
    before = (dict(FAMILIES), dict(variants()))
    with pytest.raises(ConfigError, match=message):
        register(added)
    assert (dict(FAMILIES), dict(variants())) == before


def test_names_of_variants_are_registered_once(mine: str) -> None:
    for name in (mine, "efficientvit_b0", "mambavision_t", "a.b"):
        with pytest.raises(ConfigError, match=r"registered already|cannot be a model's name"):
            register_variant(name, NARROW)
    assert CONFIGS[mine] is NARROW


def test_another_stem_is_an_error_and_not_three_channels() -> None:
    register(family("renamed", "renamed_a", stem="backbone.stem.first.weight"))
    others = {name: FAMILIES.pop(name) for name in list(FAMILIES) if name != "renamed"}
    try:
        state = foveal.create_model("renamed_a", features_only=True, in_chans=5).state_dict()
        with pytest.raises(CheckpointError, match=r"renamed: no tensor backbone\.stem\.first\.weight.*Family\.stem"):
            identify(state)
        FAMILIES["renamed"] = dataclasses.replace(FAMILIES["renamed"], stem="backbone.stem.0.conv.weight")
        assert identify(state).in_chans == 5
    finally:
        del FAMILIES["renamed"]
        FAMILIES.update(others)


def test_published_weights_of_one_task() -> None:
    assert published("classify").keys() < published().keys()
    assert all(entry.task == "classify" for _, _, entry in published("classify").values())


def test_maps_are_selected_again_among_those_selected() -> None:
    with torch.device("meta"):
        net: Any = foveal.create_model("efficientvit_b0", features_only=True, out_indices=3)
        net.select_maps([0, -1])
        maps = net(torch.empty(1, 3, 64, 64))
    assert [64 // m.shape[-1] for m in maps] == [info.stride for info in net.feature_info] == [8, 32]
    for indices in ([2], [-3], []):
        with pytest.raises(ConfigError, match="give numbers of -2 to 1"):
            net.select_maps(indices)
    for count in (3, 0, -1):
        with pytest.raises(ConfigError, match=f"out_indices={count}: give 1 to 2, for so many of the coarsest"):
            net.select_maps(count)


def test_a_registered_variant_is_created_and_identified(mine: str, tmp_path: Path) -> None:
    assert mine in foveal.list_models("efficientvit_*", task="segment")
    model = foveal.create_model(mine, num_classes=5, in_chans=4).eval()
    info = identify(model.state_dict())
    assert (info.model, info.task, info.num_classes, info.in_chans) == (mine, "classify", 5, 4)
    torch.save(model.state_dict(), tmp_path / "mine.pt")
    loaded = foveal.load_model(tmp_path / "mine.pt")
    x = torch.randn(1, 4, 64, 96)
    with torch.no_grad():
        assert torch.equal(loaded(x), model(x))
    with pytest.raises(ConfigError, match=f"{mine} is an architecture without weights: give a checkpoint"):
        foveal.load(mine)


@pytest.mark.parametrize("mine", [CONVOLUTIONS], indirect=True, ids=["without attention"])  # tracing it takes long
def test_a_registered_variant_trains_a_step_and_is_exported(mine: str, tmp_path: Path) -> None:
    data = write_shapes(tmp_path / "shapes", train=2, val=1, size=(32, 32))
    settings = {"epochs": 1, "batch_size": 2, "crop": [32, 32], "workers": 0, "class_weights": "none"}
    run = foveal.train(data, out=tmp_path / "run", model=mine, **settings)
    assert np.isfinite(run.losses).all()
    model = foveal.load_model(run.folder)
    assert (info_of(model).model, info_of(model).labels.names) == (mine, NAMES)
    report = foveal.export(model, output=tmp_path / "mine.onnx", size=(64, 64))
    image = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
    masks = [foveal.load(source)(image).mask for source in (report.path, run.folder)]
    assert (masks[0] == masks[1]).mean() > 0.99
