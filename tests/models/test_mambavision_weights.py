"""MambaVision's weights: published ones by name, hub and official layouts, strict loading, licence notices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import foveal
from foveal.errors import CheckpointError
from foveal.factory.create import create_model
from foveal.factory.identify import identify
from foveal.info import info_of
from foveal.models.mambavision import CONFIGS
from foveal.models.registry import published, variants
from foveal.weights.checkpoints import save_checkpoint
from foveal.weights.loading import fill, load_checkpoint
from foveal.weights.reading import as_checkpoint
from helpers import golden
from helpers.golden import largest
from helpers.mambavisions import LICENCE, published_state


@pytest.fixture(scope="module")
def tiny_state() -> dict[str, torch.Tensor]:
    return published_state("mambavision_t")


@pytest.fixture(scope="module")
def tiny(tiny_state: dict[str, torch.Tensor]) -> Any:
    """MambaVision-T with the reference's weights."""
    model = create_model("mambavision_t").eval()
    load_checkpoint(model, tiny_state)
    return model


def test_published_weights_have_names_with_their_settings() -> None:
    """Eleven released checkpoints; those for 512 pixels set their windows, image size and cropping."""
    output = {ref: entry for ref, (family, _, entry) in published().items() if family.name == "mambavision"}
    assert len(output) == 11
    large = output["mambavision_l3.512_21k_in1k"]
    assert large.options == {"window_size": (32, 16)}
    assert (large.size, large.crop_ratio, large.squash, large.value) == ("512", 0.93, True, 88.1)
    assert large.repo == "nvidia/MambaVision-L3-512-21K"
    assert output["mambavision_b.21k_in1k"].value == 84.9
    assert variants()["mambavision_t2"][1].crop_ratio == 0.98
    assert variants()["mambavision_l3"][0].licence == LICENCE


def detector(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same weights as in a published segmenter: no classifier, norms on the maps, another family's head."""
    backbone = {f"backbone.{key}": value for key, value in state.items() if not key.startswith(("norm.", "head."))}
    for i in range(4):
        for last in ("weight", "bias"):
            key = f"backbone.outnorm{i}.{last}"
            backbone[key] = torch.from_numpy(golden.weight(key, (80 << i,))).float()
    return backbone | {"decode_head.conv_seg.weight": torch.zeros(150, 512, 1, 1)}


def test_hub_and_official_files_load(tiny: Any, tiny_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """Safetensors with the prefix of the wrapper, and a pickle with other entries next to the weights."""
    from safetensors.torch import save_file

    save_file({f"model.{key}": value.contiguous() for key, value in tiny_state.items()}, tmp_path / "model.safetensors")
    torch.save({"epoch": 300, "state_dict": tiny_state, "arch": "x"}, tmp_path / "mambavision_tiny_1k.pth.tar")
    x = golden.normal_input((1, 3, 64, 64))
    for path in tmp_path.iterdir():
        model = foveal.load_model(path)
        info = info_of(model)
        assert (info.model, info.task, info.num_classes, info.licence) == ("mambavision_t", "classify", 1000, LICENCE)
        assert (info.preprocess.size, info.preprocess.crop_ratio) == ((224, 224), 1.0)
        with torch.no_grad():
            assert torch.equal(model(x), tiny(x))


def test_backbone_of_a_published_segmenter_loads(
    tiny: Any, tiny_state: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """It is inferred from the keys; returned maps pass through their norms, the input of the next stage does not."""
    state = detector(tiny_state)
    torch.save({"meta": {"epoch": 1}, "state_dict": state}, tmp_path / "segmenter.pth")
    backbone = foveal.load_model(tmp_path / "segmenter.pth")
    assert info_of(backbone).task == "features"
    assert info_of(backbone).options == {"out_norm": True}
    x = golden.normal_input((1, 3, 64, 96))
    with torch.no_grad():
        for i, (output, plain) in enumerate(zip(backbone(x), tiny.backbone(x), strict=True)):
            gain, shift = (state[f"backbone.outnorm{i}.{last}"] for last in ("weight", "bias"))
            expected = F.layer_norm(plain.movedim(1, -1), gain.shape, gain, shift).movedim(-1, 1)
            assert largest(output - expected) < 1e-4
    report = load_checkpoint(create_model("mambavision_t", features_only=True, out_norm=True), state)
    assert report.ignored == ("decode_head.conv_seg.weight",)
    with pytest.raises(CheckpointError, match="unexpected"):
        load_checkpoint(create_model("mambavision_t", features_only=True), state)


def test_other_tasks_start_from_these_weights(tiny_state: dict[str, torch.Tensor], tmp_path: Path) -> None:
    """A segmenter from a classifier and the reverse: the backbone is loaded, new parts are named in the report."""
    torch.save(tiny_state, tmp_path / "classifier.pth")
    torch.save(detector(tiny_state), tmp_path / "segmenter.pth")
    expected = tiny_state["levels.2.blocks.0.mixer.A_log"]
    segmenter: Any = create_model("mambavision_t", "segment", weights=tmp_path / "classifier.pth", out_norm=True)
    assert torch.equal(segmenter.backbone.stages[2].blocks[0].mixer.A_log, expected)
    classifier: Any = create_model("mambavision_t", num_classes=3, weights=tmp_path / "segmenter.pth")
    assert torch.equal(classifier.backbone.stages[2].blocks[0].mixer.A_log, expected)
    assert info_of(segmenter).licence == info_of(classifier).licence == LICENCE
    fresh = fill(segmenter, as_checkpoint(tiny_state), finetune=True).reinitialized
    assert {key.split(".")[1] for key in fresh if key.startswith("backbone.")} == {"out_norms"}


def test_loading_is_strict(tiny_state: dict[str, torch.Tensor]) -> None:
    model = create_model("mambavision_t", window_size="whole")
    load_checkpoint(model, tiny_state)  # any window
    for change in ({"levels.2.blocks.0.mixer.conv1d_x.bias": torch.zeros(160)}, {"extra": torch.zeros(1)}):
        with pytest.raises(CheckpointError, match="1 unexpected"):
            load_checkpoint(model, tiny_state | change)
    without = {key: value for key, value in tiny_state.items() if key != "levels.3.blocks.1.mixer.D"}
    with pytest.raises(CheckpointError, match=r"1 missing: backbone\.stages\.3\.blocks\.1\.mixer\.D"):
        load_checkpoint(model, without)
    with pytest.raises(CheckpointError, match="of another shape"):
        load_checkpoint(create_model("mambavision_t2", num_classes=10), tiny_state)


def test_files_of_every_variant_are_told_apart() -> None:
    for name, config in CONFIGS.items():
        with torch.device("meta"):
            state = create_model(name, features_only=True, out_norm=True).state_dict()
        result = identify(state)
        assert (result.model, result.options) == (name, {"out_norm": True})
        assert len(config.depths) == 4


def test_licence_is_said_when_weights_load(
    tiny_state: dict[str, torch.Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error for every way of loading, also for fine-tuned weights; none for free weights."""
    path = tmp_path / "tiny.pth"
    torch.save(tiny_state, path)
    model = create_model("mambavision_t", num_classes=3, weights=path)
    own = tmp_path / "own.safetensors"
    save_checkpoint(own, model.state_dict(), info_of(model))
    capsys.readouterr()
    uses: tuple[Callable[[Path], object], ...] = (
        foveal.load_model,
        lambda ref: foveal.load(str(ref)),
        lambda ref: create_model("mambavision_t", num_classes=5, weights=ref),
        lambda ref: load_checkpoint(create_model("mambavision_t", features_only=True), ref),
    )
    for ref in (path, own):
        for use in uses:
            use(ref)
            out, err = capsys.readouterr()
            assert not out
            assert len(err.splitlines()) == 1
            assert LICENCE in err
            assert "non-commercial" in err
    foveal.load("efficientvit_b0.camvid", runtime="torch")
    assert not capsys.readouterr().err
