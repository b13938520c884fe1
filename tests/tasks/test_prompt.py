"""Promptable models: SAM's parts around any backbone with torch, in pixels of the image."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import foveal
from foveal.errors import ConfigError, InputError
from foveal.factory.create import create_model, list_models
from foveal.factory.identify import identify
from foveal.images.sam_frame import at_image_size, frame_size
from foveal.prediction.mask_results import draw_masks
from foveal.prediction.predictor import Predictor
from foveal.prediction.torch_runner import TorchPrompter
from foveal.tasks.prompt import MaskDecoder, PromptEncoder
from foveal.weights.checkpoints import save_checkpoint
from foveal.weights.loading import load_checkpoint
from helpers import golden
from helpers.narrow import registered
from helpers.pictures import image_of_noise

NAME = "mit-sam-l0"
TOLERANCE = {"float64": 1e-9, "float32": 1e-5}


@pytest.fixture(scope="module")
def published() -> Any:
    """EfficientViT-SAM-L0 with the reference's weights, whose keys are translated, in float64."""
    model = create_model("efficientvit_l0", "prompt").double().eval()
    load_checkpoint(model, golden.state(golden.read("sam_keys")[NAME]))
    return model


@pytest.fixture(scope="module")
def small() -> Iterator[Any]:
    """A small promptable model whose masks depend on image and prompt."""
    with registered() as name:
        yield golden.fill(create_model(name, "prompt").double()).float()


@pytest.fixture(scope="module")
def predictor(small: Any) -> Predictor:
    return Predictor(TorchPrompter(small), small.foveal_info, "torch")


@pytest.mark.parametrize("precision", TOLERANCE)
def test_equals_the_published_network(published: Any, precision: str) -> None:
    expected = golden.read("sam_models")[NAME]
    model = published.to(getattr(torch, precision))
    assert sum(p.numel() for p in model.parameters()) == expected["params"]
    x = golden.image_input(expected["input"]).to(getattr(torch, precision))
    with torch.inference_mode():
        embedding = model.image_encoder(x)
        frame = torch.tensor([[[100.0, 70.0]]], dtype=x.dtype) * 6.4  # a point of the golden's image of 120 x 160
        box = torch.tensor([[40.0, 30.0, 120.0, 90.0]], dtype=x.dtype) * 6.4
        sparse, dense = model.prompt_encoder((frame, torch.tensor([[1]])), box)
    assert golden.difference(embedding, expected[precision]["output"]) <= TOLERANCE[precision]
    found = {"sparse": sparse, "dense": dense, "dense_pe": model.prompt_encoder.get_dense_pe()}
    for name, brief in expected[precision]["prompt"].items():
        assert golden.difference(found[name], brief) <= TOLERANCE[precision], name


def test_the_predictor_equals_the_published_one(published: Any) -> None:
    """From an image to masks of its size: points, boxes, and both with an earlier mask."""
    expected = golden.read("sam_models")[NAME]
    model = published.float()
    asked = expected["predictor_input"]
    predictor = Predictor(TorchPrompter(model), model.foveal_info, "torch")
    embedding = predictor.encode(image_of_noise())
    point: dict[str, Any] = {"points": [asked["point"]], "labels": [asked["point_label"]]}
    first = embedding.prompt(**point)
    answers = {
        "point": first,
        "box": embedding.prompt(boxes=asked["box_xyxy"], multimask=False),
        "point+box+mask": embedding.prompt(
            **point, boxes=asked["box_xyxy"], masks=first.low_res[0, 0], multimask=False
        ),
    }
    for name, answer in answers.items():
        brief = expected["float32"]["predict"][name]
        assert golden.difference(torch.from_numpy(answer.low_res), brief["low_res"]) <= 1e-5
        assert golden.difference(torch.from_numpy(answer.logits[None]), brief["mask_logits"]) <= 1e-5
        assert answer.iou == pytest.approx(brief["iou"], abs=1e-5)
        masks = answer.masks[None]
        assert list(masks.shape) == brief["mask"]["shape"]
        assert abs(int(masks.sum()) - brief["mask"]["true"]) <= 2  # logits within rounding of 0
    digest = hashlib.sha256(np.packbits(answers["box"].masks.reshape(-1)).tobytes()).hexdigest()
    assert digest == expected["float32"]["predict"]["box"]["mask"]["sha256"]


def test_the_published_layout_is_identified_by_its_keys() -> None:
    shapes = golden.read("sam_keys")[NAME]
    info = identify({key: torch.empty(shape, device="meta") for key, shape in shapes.items()})
    assert (info.model, info.task, info.preprocess.size) == ("efficientvit_l0", "prompt", (512, 512))


@pytest.mark.parametrize(
    "name", ["efficientvit_l1", "efficientvit_xl1", "tinyvit_5m", "mobilenetv2_100", "mambavision_t"]
)
def test_every_backbone_can_be_prompted(name: str) -> None:
    """The embedding has 64 x 64 positions for all strides; the model is identified by shapes alone."""
    with torch.device("meta"):
        model: Any = create_model(name, "prompt")
        size = model.image_encoder.size
        assert model.image_encoder(torch.zeros(1, 3, size, size)).shape == (1, 256, 64, 64)
        assert size in (512, 1024)
        info = identify(model.state_dict())
    assert (info.model, info.task) == (name, "prompt")


def test_list_models_for_prompting() -> None:
    names = list_models(task="prompt")
    assert {"efficientvit_xl1", "tinyvit_5m", "efficientvit_b1"} <= set(names)
    assert not {"efficientvit_sr", "albert_base"} & set(names)
    assert {"tinyvit_5m.mobilesam", "efficientvit_l0.sam"} <= set(list_models(task="prompt", pretrained=True))
    with pytest.raises(ConfigError, match="num_classes"):
        create_model("efficientvit_b0", "prompt", num_classes=3)


def test_many_prompts_equal_single_ones(predictor: Predictor) -> None:
    embedding = predictor.encode(image_of_noise())
    rng = np.random.default_rng(1)
    points, labels = rng.uniform(0, 120, (70, 2, 2)), rng.integers(0, 2, (70, 2))
    together = embedding.prompt(points, labels)
    assert together.iou.shape == (70, 3)
    for i in (0, 63, 64, 69):
        alone = embedding.prompt(points[i], labels[i])
        np.testing.assert_allclose(alone.low_res[0], together.low_res[i], atol=2e-4)
        np.testing.assert_allclose(alone.iou, together.iou[i], atol=1e-4)
    clear = embedding.prompt(points[:2], labels[:2], multimask=False)
    assert clear.masks.shape == (2, 1, 120, 160)
    assert clear.best.shape == (2, 120, 160)


def test_the_model_itself_takes_batches(small: Any) -> None:
    x = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    boxes = torch.tensor([[[0.0, 0, 500, 500], [100, 100, 900, 700]]]).repeat(2, 1, 1)
    masks, iou = small(x, boxes=boxes, multimask=False)
    assert (masks.shape, iou.shape) == ((2, 2, 1, 256, 256), (2, 2, 1))
    with torch.inference_mode():
        alone, _ = small.decode(small.image_encoder(x[1:]), boxes=boxes[1, 1:], multimask=False)
    torch.testing.assert_close(alone[0], masks[1, 1].detach(), atol=1e-4, rtol=1e-4)
    masks.sum().backward()
    unused = {name for name, p in small.named_parameters() if p.grad is None}
    assert all("mask_downscaling" in name or "point_embeddings" in name or "iou" in name for name in unused)


@pytest.mark.parametrize(("height", "width"), [(120, 160), (1, 1), (2000, 300), (1024, 1024), (33, 1500)])
def test_masks_are_resized_as_torch_does(height: int, width: int) -> None:
    low_res = np.random.default_rng(0).standard_normal((2, 256, 256)).astype(np.float32)
    inside = frame_size((height, width))
    frame = F.interpolate(torch.from_numpy(low_res)[None], (1024, 1024), mode="bilinear")[..., : inside[0], : inside[1]]
    expected = F.interpolate(frame, (height, width), mode="bilinear")[0].numpy()
    # torch rounds positions of up to 2000 to float32, by 6e-5 of a pixel; builds of torch differ in this.
    np.testing.assert_allclose(at_image_size(low_res, (height, width)), expected, atol=5e-5)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "no prompt"),
        ({"points": [[5, 5]]}, "labels"),
        ({"labels": [1]}, "points for the labels"),
        ({"points": [[5, 5]], "labels": [1, 0]}, "one for each point"),
        ({"points": [[5, 5]], "labels": [2]}, "1 for a point on the object"),
        ({"points": [[161, 5]], "labels": [1]}, "point 161,5 is outside of the image of 160x120"),
        ({"points": [[float("nan"), 5]], "labels": [1]}, "finite"),
        ({"points": [[5, 5, 5]], "labels": [1]}, "x and y"),
        ({"points": "here", "labels": [1]}, "numbers"),
        ({"boxes": [50, 20, 10, 90]}, "left top corner"),
        ({"boxes": [170, 20, 180, 90]}, "outside"),
        ({"boxes": [1, 2, 3]}, "x1, y1, x2, y2"),
        ({"masks": np.zeros((120, 160))}, "256"),
        ({"masks": np.zeros((0, 256, 256))}, "256"),
        ({"points": [[[1, 2]], [[1, 2], [3, 4]]], "labels": [[1], [1, 1]]}, "points: give numbers, as many for each"),
        ({"boxes": torch.ones(4, requires_grad=True)}, "boxes: give numbers"),
        ({"points": [[[5, 5]]], "labels": [[1]], "boxes": [[1, 1, 5, 5], [2, 2, 6, 6]]}, "1, 2 prompts"),
    ],
)
def test_wrong_prompts_are_one_line(predictor: Predictor, asked: dict[str, Any], words: str) -> None:
    embedding = predictor.encode(image_of_noise())
    with pytest.raises(InputError, match=words) as caught:
        embedding.prompt(**asked)
    assert "\n" not in str(caught.value)


def test_embeddings_survive_on_disk(predictor: Predictor, tmp_path: Path) -> None:
    embedding = predictor.encode(image_of_noise())
    path = embedding.save(tmp_path / "seen.npz")
    again = predictor.open_embedding(path)
    assert again.size == (120, 160)
    box = [10, 10, 100, 90]
    np.testing.assert_array_equal(again.prompt(boxes=box).masks, embedding.prompt(boxes=box).masks)
    with pytest.raises(InputError, match="without its image"):
        again.prompt(boxes=box).overlay()
    (tmp_path / "broken.npz").write_bytes(path.read_bytes()[:1000])
    np.save(tmp_path / "array.npy", embedding.features)
    (tmp_path / "array.npy").rename(tmp_path / "array.npz")
    told = dict(np.load(path))
    for name, change in (
        ("nan.npz", {"features": told["features"] * np.nan}),
        ("size.npz", {"size": np.array(["a", "b"])}),
        ("real.npz", {"size": np.array([np.nan, 120])}),
    ):
        np.savez(tmp_path / name, **told | change)
    for bad, message in {
        "broken.npz": "not an embedding that Foveal saved, or damaged: encode the image again$",
        "array.npz": "not an embedding that Foveal saved",
        "absent.npz": "no such file",
        "nan.npz": "damaged, its features",
        "size.npz": "damaged, its size",
        "real.npz": "damaged, its size",
    }.items():
        with pytest.raises(InputError, match=message):
            predictor.open_embedding(tmp_path / bad)
    with pytest.raises(InputError, match=r"\.npz"):
        embedding.save(tmp_path / "seen.png")
    other = Predictor(predictor.runner, predictor.info.replace(model="efficientvit_b1"), "torch")
    with pytest.raises(InputError, match="efficientvit_narrow, not of efficientvit_b1"):
        other.open_embedding(path)
    other = Predictor(predictor.runner, predictor.info.replace(tag="sam"), "torch")
    with pytest.raises(InputError, match=r"efficientvit_narrow, not of efficientvit_narrow\.sam"):
        other.open_embedding(path)


def test_weights_of_another_architecture_give_their_decoder() -> None:
    """Options of their own architecture, an epsilon and a padding, do not apply to the new one."""
    model: Any = foveal.create_model("mobilenetv2_100", "prompt", weights="tf_efficientnet_lite0.sam")
    plain: Any = foveal.create_model("mobilenetv2_100", "prompt")
    ours: Any = foveal.load_model("tf_efficientnet_lite0.sam")
    assert model.foveal_info.options == plain.foveal_info.options
    assert model.mask_decoder.iou_token.weight.equal(ours.mask_decoder.iou_token.weight)
    foveal.create_model("efficientvit_b0", "prompt", weights="tf_efficientnet_lite0.sam")


def test_a_state_dict_of_a_twin_prints_the_alternative(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save(foveal.load_model("tf_efficientnet_lite0.sam").state_dict(), tmp_path / "bare.pt")
    assert foveal.load(tmp_path / "bare.pt").info.model == "efficientnet_lite0"
    assert "identified as efficientnet_lite0, but tf_efficientnet_lite0 has the same tensors" in capsys.readouterr().err


def test_batches_that_do_not_fit_are_one_line(small: Any) -> None:
    x, boxes = torch.zeros(2, 3, 256, 256), torch.tensor([[1.0, 1, 9, 9]])
    with pytest.raises(InputError, match="boxes for 3 images, but 2 are given"):
        small(x, boxes=boxes.expand(3, 1, 4))
    with pytest.raises(InputError, match="no images: give one or more"):
        small(x[:0], boxes=boxes.expand(0, 1, 4))
    with pytest.raises(InputError, match="different numbers of prompts"):
        small.decode(torch.zeros(1, 256, 64, 64), (torch.zeros(2, 1, 2), torch.ones(2, 1)), boxes)


def test_results_are_pictures(predictor: Predictor, tmp_path: Path) -> None:
    embedding = predictor.encode(image_of_noise())
    result = embedding.prompt(boxes=[[10, 10, 100, 90], [20, 20, 60, 70]])
    assert result.overlay().size == (160, 120)
    saved = foveal.images.reading.read_mask(result.save(tmp_path / "masks.png"))
    np.testing.assert_array_equal(saved == 2, result.best[1])
    assert set(np.unique(saved)) <= {0, 1, 2}
    alone = embedding.prompt(boxes=[10, 10, 100, 90])
    np.testing.assert_array_equal(foveal.images.reading.read_mask(alone.save(tmp_path / "mask.png")) == 255, alone.best)
    with pytest.raises(InputError, match=r"\.png"):
        result.save(tmp_path / "masks.jpg")


def test_overlays_leave_what_is_outside_alone() -> None:
    image, mask = image_of_noise(), np.zeros((1, 120, 160), bool)
    mask[0, 40:80, 50:110] = True
    drawn = np.asarray(draw_masks(image, mask, np.array([0.9]), alpha=1.0))
    np.testing.assert_array_equal(drawn[~mask[0]], image[~mask[0]])
    assert (drawn[40, 50:110] == 255).all()
    with pytest.raises(InputError, match="alpha"):
        draw_masks(image, mask, np.array([0.9]), alpha=2)


def test_a_dense_predictor_takes_no_prompts() -> None:
    with pytest.raises(ConfigError, match="takes no prompts"):
        foveal.load("efficientvit_b0.camvid").encode(image_of_noise())


def test_checkpoints_round_trip(small: Any, predictor: Predictor, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, small.state_dict(), small.foveal_info)
    again = foveal.load(path).encode(image_of_noise()).prompt(boxes=[10, 10, 90, 90])
    here = predictor.encode(image_of_noise()).prompt(boxes=[10, 10, 90, 90])
    np.testing.assert_allclose(again.low_res, here.low_res, atol=1e-3)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_distinguishes_pixels(small: Any, tmp_path: Path, dtype: str) -> None:
    """Coordinates of up to 1024 with halves do not fit into 16 bits, so that they are kept in 32."""
    encoder = PromptEncoder().to(getattr(torch, dtype))
    near = torch.tensor([[[1000.0, 600.0]], [[1001.0, 600.0]]])
    tokens = encoder.tokens(near, torch.ones(2, 1)).detach()
    assert not torch.equal(tokens[0], tokens[1])
    path = tmp_path / "small.safetensors"
    save_checkpoint(path, small.state_dict(), small.foveal_info)
    answer = foveal.load(path, dtype=dtype).encode(image_of_noise()).prompt([[50, 50]], [1])
    assert np.isfinite(answer.low_res).all()


def test_images_of_another_size_are_refused(small: Any) -> None:
    with pytest.raises(InputError, match="takes images of 256x256 pixels, not 240x256"):
        small.image_encoder(torch.zeros(1, 3, 240, 256))
    with pytest.raises(InputError, match="no prompt"):
        small(torch.zeros(1, 3, 256, 256))


def test_parts_share_what_prompts_share() -> None:
    """One embedding for all prompts gives the same masks as a copy for each prompt."""
    torch.manual_seed(0)
    encoder, decoder = PromptEncoder(), MaskDecoder()
    embedding = torch.randn(1, 256, 64, 64)
    sparse, dense = encoder(boxes=torch.tensor([[0.0, 0, 99, 99], [5, 5, 600, 700]]))
    pe = encoder.get_dense_pe()
    with torch.inference_mode():
        shared = decoder(embedding, pe, sparse, dense[:1])
        copied = decoder(embedding.expand(2, -1, -1, -1), pe, sparse, dense)
    for a, b in zip(shared, copied, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
