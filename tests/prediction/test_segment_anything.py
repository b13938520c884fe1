"""SAM's own calls: SamPredictor and its transforms give what our calls give, and refuse with one line."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from foveal.errors import ConfigError, InputError
from foveal.prediction.predictor import Predictor
from foveal.prediction.segment_anything import SamPredictor
from helpers.oracle import chequered, oracle, sure_network


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return SamPredictor(sure_network()).predictor


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return chequered()


def test_sizes_that_programs_for_sam_read() -> None:
    encoder = sure_network().prompt_encoder
    assert (encoder.embed_dim, encoder.image_embedding_size) == (256, (64, 64))


def test_sam_predictor(predictor: Predictor, photo: np.ndarray) -> None:
    sam = SamPredictor(predictor)
    assert not sam.is_image_set
    for call in (sam.predict, sam.get_image_embedding, lambda: sam.predict_torch(None, None)):
        with pytest.raises(RuntimeError, match="call set_image"):
            call()
    sam.set_image(photo)
    assert sam.is_image_set
    assert (sam.original_size, sam.input_size) == ((90, 120), (768, 1024))
    embedding = predictor.encode(photo)
    np.testing.assert_array_equal(sam.get_image_embedding().numpy(), embedding.features)

    expected = embedding.prompt([[30, 40], [60, 70]], [1, 0], [20, 20, 100, 80])
    points, labels, box = np.array([[30, 40], [60, 70]]), np.array([1, 0]), np.array([20, 20, 100, 80])
    masks, scores, low_res = sam.predict(points, labels, box)
    assert masks.dtype == bool
    assert (masks.shape, scores.shape, low_res.shape) == ((3, 90, 120), (3,), (3, 256, 256))
    np.testing.assert_array_equal(masks, expected.masks)
    np.testing.assert_array_equal(low_res, expected.low_res[0])
    logits, *_ = sam.predict(points, labels, box[None], return_logits=True)
    np.testing.assert_array_equal(logits > 0, masks)
    (again,), _, _ = sam.predict(points, labels, mask_input=low_res[:1], multimask_output=False)
    np.testing.assert_array_equal(again, embedding.prompt(points, labels, masks=low_res[0], multimask=False).masks[0])

    # Many at once, in the frame, each with a box; then the same pixels by another way in.
    coords = sam.transform.apply_coords_torch(torch.from_numpy(np.stack([points, points])), (90, 120))
    boxes = sam.transform.apply_boxes_torch(torch.from_numpy(np.stack([box, box])), (90, 120))
    many, iou, low = sam.predict_torch(coords, torch.tensor([[1, 0], [1, 0]]), boxes)
    assert (many.shape, iou.shape, low.shape) == (
        (2, 3, 90, 120),
        (2, 3),
        (2, 3, 256, 256),
    )
    assert many.dtype == torch.bool
    np.testing.assert_allclose(low[1].numpy(), low_res, rtol=1e-4, atol=1e-2)  # of about 100
    single, *_ = sam.predict_torch(coords[:1], torch.tensor([[1, 0]]), multimask_output=False, return_logits=True)
    np.testing.assert_allclose(
        single[0].numpy(), embedding.prompt(points, labels, multimask=False).logits, rtol=1e-4, atol=1e-2
    )
    sam.set_image(photo[..., ::-1], image_format="BGR")
    np.testing.assert_array_equal(sam.get_image_embedding().numpy(), embedding.features)
    side = predictor.info.preprocess.size
    assert side is not None
    small = type(sam.transform)(side[0]).apply_image(photo)
    sam.set_torch_image(torch.from_numpy(small).permute(2, 0, 1)[None], (90, 120))
    np.testing.assert_allclose(sam.get_image_embedding().numpy(), embedding.features, rtol=1e-3, atol=1e-3)
    sam.reset_image()
    assert not sam.is_image_set


def test_sam_predictor_refuses_with_one_line(predictor: Predictor, photo: np.ndarray) -> None:
    sam = SamPredictor(predictor)
    with pytest.raises(InputError, match="did you mean 'RGB'"):
        sam.set_image(photo, image_format="RBG")  # pyright: ignore[reportArgumentType]
    with pytest.raises(InputError, match=r"expected \(H, W, 3\)"):
        sam.set_image(photo[..., 0])
    with pytest.raises(InputError, match="long side of 1024"):
        sam.set_torch_image(torch.zeros(1, 3, 90, 120), (90, 120))
    sam.set_image(photo)
    with pytest.raises(InputError, match="no prompt"):
        sam.predict()
    with pytest.raises(InputError, match="predict_torch takes more"):
        sam.predict(box=np.zeros((2, 4)))
    with pytest.raises(InputError, match="prompts for 1, 2 objects"):
        sam.predict_torch(torch.zeros(2, 1, 2), torch.zeros(2, 1), torch.zeros(1, 4))
    with pytest.raises(InputError, match="go together"):
        sam.predict_torch(torch.zeros(2, 1, 2), None)
    with pytest.raises(InputError, match="give \\(B, N, 2\\)"):
        sam.predict_torch(torch.zeros(2, 2), torch.zeros(2, 1))
    with pytest.raises(InputError, match="the prompts are empty"):
        sam.predict_torch(None, None, torch.zeros(0, 4))
    one = torch.ones(1, 1)
    for label in (-2, 0.5, 5):
        with pytest.raises(InputError, match="1 on the object, 0 on the background, -1 for no point"):
            sam.predict_torch(torch.ones(1, 1, 2), label * one)
    for place in (5000, -1, torch.nan):
        with pytest.raises(InputError, match="outside of the image, which is 1024x768 where transform"):
            sam.predict_torch(torch.full((1, 1, 2), place), one)
    with pytest.raises(InputError, match="left top corner"):
        sam.predict_torch(None, None, torch.tensor([[300, 20, 100, 90.0]]))
    with pytest.raises(ConfigError, match="takes no prompts"):
        SamPredictor(torch.nn.Identity())
    with pytest.raises(ConfigError, match="'segment', it takes no prompts"):
        SamPredictor("efficientvit_b0.camvid")


def test_what_transform_makes_can_be_set(predictor: Predictor, photo: np.ndarray) -> None:
    """SAM's frame has 1024 pixels and this encoder's input 512: ``set_torch_image`` resizes the image."""
    sam = SamPredictor(predictor)
    resized = torch.as_tensor(sam.transform.apply_image(photo)).permute(2, 0, 1)[None]
    assert max(resized.shape) == 1024
    sam.set_torch_image(resized, photo.shape[:2])
    found = sam.features
    sam.set_image(photo)
    assert found.shape == sam.features.shape
    assert (found - sam.features).abs().mean() < 0.05 * sam.features.abs().mean()
    boxes = torch.tensor([[10, 10, 100, 80.0]], device=sam.device)
    masks, _, _ = sam.predict_torch(None, None, sam.transform.apply_boxes_torch(boxes, photo.shape[:2]))
    same, _, _ = sam.predict(box=np.array([10, 10, 100, 80]))
    assert (masks[0].numpy() == same).all()


def test_transforms_are_those_of_the_encoder(photo: np.ndarray) -> None:
    transform = SamPredictor(oracle()[0]).transform
    assert transform.apply_image(photo).shape == (768, 1024, 3)
    assert transform.apply_coords(np.array([[120, 90]]), (90, 120)).tolist() == [[1024, 768]]
    assert transform.apply_boxes(np.array([[0, 0, 60, 45]]), (90, 120)).tolist() == [[0, 0, 512, 384]]
    resized = transform.apply_image_torch(torch.from_numpy(photo).permute(2, 0, 1)[None].float())
    assert np.abs(resized[0].permute(1, 2, 0).numpy() - transform.apply_image(photo)).max() <= 1
