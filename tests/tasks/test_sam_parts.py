"""SAM's checkpoints: their decoders load strictly, whatever the encoder; every part of a model finds its tensors."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import foveal
from foveal.info import info_of
from foveal.tasks.prompt import PromptModel
from foveal.weights.loading import fill, load_checkpoint
from foveal.weights.reading import as_checkpoint


def prompt_model() -> PromptModel:
    model = foveal.create_model("efficientvit_b0", "prompt")
    assert isinstance(model, PromptModel)
    return model


def sam_like(model: nn.Module) -> dict[str, Tensor]:
    """State dict of a model whose image encoder is of no known family, like SAM's ViT."""
    state = {key: value.clone() for key, value in model.state_dict().items() if not key.startswith("image_encoder.")}
    encoder = {"pos_embed": (1, 64, 64, 8), "patch_embed.proj.weight": (8, 3, 16, 16), "blocks.0.norm1.weight": (8,)}
    return {f"image_encoder.{key}": torch.zeros(shape) for key, shape in encoder.items()} | state


@pytest.mark.parametrize("prefix", ["", "module."])
def test_decoders_of_unknown_encoders_load(prefix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    origin = foveal.create_model("efficientvit_b0", "prompt")
    path = tmp_path / "sam.pth"
    torch.save({"model": {prefix + key: value for key, value in sam_like(origin).items()}}, path)
    torch.manual_seed(1)
    model = foveal.create_model("efficientvit_b0", "prompt", weights=path)
    torch.manual_seed(1)
    start = foveal.create_model("efficientvit_b0", "prompt").state_dict()
    for key, value in model.state_dict().items():
        assert value.equal((start if key.startswith("image_encoder.") else origin.state_dict())[key]), key
    report = fill(foveal.create_model("efficientvit_b0", "prompt"), as_checkpoint(path), finetune=True)
    assert {key.split(".")[0] for key in report.reinitialized} == {"image_encoder"}
    assert len(report.ignored) == 3
    other = prompt_model()
    for part in ("prompt_encoder", "mask_decoder"):
        load_checkpoint(getattr(other, part), path)
        for key, value in getattr(other, part).state_dict().items():
            assert value.equal(origin.state_dict()[f"{part}.{key}"])
    with pytest.raises(foveal.CheckpointError, match="layout not recognised"):
        load_checkpoint(other.image_encoder, path)
    with pytest.raises(foveal.CheckpointError, match="layout not recognised"):
        load_checkpoint(other, path)


def test_parts_load_strictly() -> None:
    model = prompt_model()
    state = sam_like(model)
    del state["mask_decoder.iou_token.weight"]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(foveal.CheckpointError, match=r"1 missing: iou_token\.weight"):
        load_checkpoint(model.mask_decoder, state)
    with pytest.raises(foveal.CheckpointError, match=r"1 missing: mask_decoder\.iou_token\.weight"):
        fill(model, as_checkpoint(state), finetune=True)
    assert all(before[key].equal(value) for key, value in model.state_dict().items())


def test_encoders_and_backbones_find_their_part() -> None:
    """In the weights of a promptable model; a damaged encoder is not taken for another architecture."""
    torch.manual_seed(0)
    origin = foveal.create_model("efficientvit_b0", "prompt")
    state = origin.state_dict()
    encoder = prompt_model().image_encoder
    load_checkpoint(encoder, state)
    assert all(value.equal(state[f"image_encoder.{key}"]) for key, value in encoder.state_dict().items())
    segmenter = foveal.create_model("efficientvit_b0", "segment", num_classes=3)
    report = fill(segmenter, as_checkpoint(state), finetune=True)
    assert all(key.startswith("head.") for key in report.reinitialized)
    assert segmenter.state_dict()["backbone.stem.0.conv.weight"].equal(
        state["image_encoder.backbone.stem.0.conv.weight"]
    )
    fresh = foveal.create_model("efficientvit_b0", "prompt")
    report = fill(fresh, as_checkpoint(segmenter.state_dict()), finetune=True)
    assert fresh.state_dict()["image_encoder.backbone.stem.0.conv.weight"].equal(
        state["image_encoder.backbone.stem.0.conv.weight"]
    )
    assert {key.split(".")[0] for key in report.reinitialized} == {"image_encoder", "prompt_encoder", "mask_decoder"}
    assert not any("backbone" in key for key in report.reinitialized)
    damaged = {key: value for key, value in state.items() if key != "image_encoder.neck.norm.weight"}
    with pytest.raises(foveal.CheckpointError, match=r"1 missing: image_encoder\.neck\.norm\.weight"):
        fill(fresh, as_checkpoint(damaged), finetune=True)
    other = foveal.create_model("efficientvit_b1", "prompt")
    report = fill(other, as_checkpoint(state), finetune=True)
    assert {key.split(".")[0] for key in report.reinitialized} == {"image_encoder"}
    assert dataclasses.asdict(info_of(other).preprocess)["size"] == (512, 512)
