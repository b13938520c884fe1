"""Programs that were written for the package ``segment_anything``, reduced to what they read, call and assign."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

import foveal
from foveal.errors import ConfigError, InputError
from foveal.factory.create import create_model
from foveal.prediction.segment_anything import SamAutomaticMaskGenerator, SamPredictor
from helpers import golden
from helpers.narrow import registered
from helpers.oracle import boxes_on_black, chequered, oracle

BOXES = [(10, 10, 60, 60), (80, 5, 240, 40), (100, 60, 140, 120)]


@pytest.fixture(scope="module")
def sam() -> Iterator[SamPredictor]:
    with registered() as name:
        yield SamPredictor(golden.fill(create_model(name, "prompt").double()).float())


def test_a_labelling_backend(sam: SamPredictor) -> None:
    """Label Studio's: lists of numbers become float32 arrays, one mask, and the embedding as an array."""
    image = chequered()
    assert sam.model.to(device=sam.device) is sam.model
    sam.set_image(np.ascontiguousarray(image, dtype=np.uint8))
    embedding = sam.get_image_embedding().cpu().numpy()
    assert (embedding.shape, embedding.dtype) == ((1, 256, 64, 64), np.float32)
    points, labels = np.array([[30, 40], [60, 70]], np.float32), np.array([1, 0], np.float32)
    box = np.array([20, 20, 100, 80], np.float32)
    masks, scores, _ = sam.predict(point_coords=points, point_labels=labels, box=box, multimask_output=False)
    assert masks[0, :, :].astype(np.uint8).shape == (90, 120)
    assert np.isfinite(float(scores[0]))
    # Its ONNX path: corners of the box behind the points, all in the frame.
    coords = np.concatenate([points, box.reshape(2, 2)])[None]
    in_frame = sam.transform.apply_coords(coords, image.shape[:2]).astype(np.float32)
    kinds = torch.tensor([[1, 0, 2, 3]])
    with torch.no_grad():
        model = sam.model
        tokens, dense = model.prompt_encoder.tokens(torch.from_numpy(in_frame), kinds), model.prompt_encoder.dense(None)
        features = torch.from_numpy(embedding)
        low_res, _ = model.mask_decoder(features, model.prompt_encoder.get_dense_pe(), tokens, dense, False)
        logits = model.postprocess_masks(low_res, sam.input_size, sam.original_size)
    assert ((logits > model.mask_threshold).numpy()[0] == masks).mean() > 0.9999


def test_embeddings_that_are_put_back(sam: SamPredictor) -> None:
    """Programs that keep several images: read four attributes, assign them later in any order."""
    first, second = chequered(), np.ascontiguousarray(chequered()[::-1, :90])
    points, labels = np.array([[30, 40]]), np.array([1])
    sam.set_image(first)
    kept = {name: getattr(sam, name) for name in ("features", "original_size", "input_size")}
    expected = sam.predict(points, labels)
    sam.set_image(second)
    assert not np.array_equal(sam.predict(points, labels)[2], expected[2])
    for order in (("is_image_set", *kept), (*kept, "is_image_set")):
        sam.reset_image()
        assert (sam.is_image_set, sam.features, sam.original_size, sam.input_size) == (False, None, None, None)
        for name in order:
            setattr(sam, name, kept.get(name, True))
        assert sam.is_image_set
        for found, same in zip(sam.predict(points, labels), expected, strict=True):
            np.testing.assert_array_equal(found, same)
    sam.features = kept["features"].numpy()  # arrays, too
    np.testing.assert_array_equal(sam.predict(points, labels)[2], expected[2])
    sam.input_size = (1024, 1024)
    with pytest.raises(InputError, match=r"input_size \(1024, 1024\): for an image of .* it is \(768, 1024\)"):
        sam.predict(points, labels)
    with pytest.raises(InputError, match=r"features \(1, 2\)"):
        sam.features = torch.zeros(1, 2)
    sam.is_image_set = False
    with pytest.raises(RuntimeError, match="call set_image"):
        sam.predict(points, labels)


def test_a_program_that_runs_the_parts(sam: SamPredictor) -> None:
    """Fine-tuning scripts: the model's own preparation and parts, with SAM's names of arguments."""
    image = chequered()
    model, size = sam.model, sam.model.image_encoder.img_size
    assert (size, sam.transform.target_length, model.image_format, model.device.type) == (1024, 1024, "RGB", "cpu")
    resized = torch.as_tensor(type(sam.transform)(size).apply_image(image), device=model.device)
    resized = resized.permute(2, 0, 1).contiguous()[None]
    boxes = sam.transform.apply_boxes_torch(torch.tensor([[20, 20, 100, 80.0]]), image.shape[:2])
    with torch.no_grad():
        embedding = model.image_encoder(model.preprocess(resized))
        sparse, dense = model.prompt_encoder(points=None, boxes=boxes[:, None], masks=None)
        low_res, iou = model.mask_decoder(
            image_embeddings=embedding,
            image_pe=model.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=True,
        )
    masks = model.postprocess_masks(low_res, tuple(resized.shape[-2:]), image.shape[:2]) > model.mask_threshold
    sam.set_torch_image(resized, image.shape[:2])
    torch.testing.assert_close(sam.features, embedding)
    expected, scores, logits = sam.predict_torch(None, None, boxes)
    torch.testing.assert_close(low_res, logits, rtol=1e-4, atol=1e-2)  # of about 100
    torch.testing.assert_close(iou, scores)
    assert (masks == expected).float().mean() > 0.9999


def test_a_model_that_moves(sam: SamPredictor) -> None:
    """``predictor.model.to(...)`` after the predictor was made: the next image is encoded where the model is."""
    moved = SamPredictor(copy.deepcopy(sam.model).float())
    moved.model.to(torch.float64)
    for predictor in (sam, moved):
        predictor.set_image(chequered())
    scale = sam.get_image_embedding().abs().max()
    assert (moved.get_image_embedding() - sam.get_image_embedding()).abs().max() < 1e-4 * scale


def test_the_generator_takes_options_as_sam_does() -> None:
    """By position in SAM's order, and as attributes that programs read and assign."""
    image, _ = boxes_on_black(BOXES)
    predictor, runner = oracle()
    by_name = {
        "points_per_side": 8,
        "points_per_batch": 32,
        "pred_iou_thresh": 0.5,
        "stability_score_thresh": 0.6,
        "stability_score_offset": 0.9,
        "box_nms_thresh": 0.65,
        "crop_n_layers": 1,
        "crop_nms_thresh": 0.66,
        "crop_overlap_ratio": 0.3,
        "crop_n_points_downscale_factor": 2,
        "point_grids": None,
        "min_mask_region_area": 3,
        "output_mode": "uncompressed_rle",
    }
    positions: tuple[Any, ...] = tuple(by_name.values())
    generator = SamAutomaticMaskGenerator(predictor, *positions)
    named: Any = by_name
    assert generator.options == {**by_name, "fast": False}
    expected = foveal.SamAutomaticMaskGenerator(predictor, **named).generate(image)
    assert generator.generate(image) == expected
    assert len(expected) == len(BOXES)
    runner.asked.clear()
    assigned: Any = generator
    assigned.crop_n_layers, assigned.points_per_side = 0, 2
    generator.generate(image)
    assert sum(map(len, runner.asked)) == 4
    with pytest.raises(ConfigError, match=r"points_per_side, points_per_batch, .* each once"):
        SamAutomaticMaskGenerator(predictor, 8, 32, points_per_batch=64)
    with pytest.raises(ConfigError, match="each once"):
        SamAutomaticMaskGenerator(predictor, *positions, False, 1)
    assigned.pred_iou_thresh = 2
    with pytest.raises(ConfigError, match="pred_iou_thresh=2"):
        generator.generate(image)


def test_models_of_other_runtimes_have_what_programs_read() -> None:
    predictor = SamPredictor(oracle()[0])
    model = predictor.model
    assert (model.mask_threshold, model.image_format, model.image_encoder.img_size) == (0.0, "RGB", 1024)
    assert model.device == predictor.device
    generator = SamAutomaticMaskGenerator(predictor.predictor, 4)
    generator.predictor.set_image(chequered())
    assert generator.predictor.is_image_set
