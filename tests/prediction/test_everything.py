"""Automatic masks: closed forms of their parts, an oracle whose masks are known, SAM's calls on a real network."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from torchvision.ops import nms

import foveal
from foveal.errors import ConfigError, InputError
from foveal.images import regions
from foveal.images.sam_frame import frame_size
from foveal.prediction.everything import (
    EverythingOptions,
    crop_boxes,
    point_grid,
    stability_scores,
    suppress,
    touches_edge,
)
from foveal.prediction.mask_results import EverythingResult, Record
from foveal.prediction.segment_anything import SamAutomaticMaskGenerator, SamPredictor
from helpers import memory
from helpers.oracle import boxes_on_black, chequered, oracle, sure_network

#: Objects of all sizes, none of them hidden, one at the image's edge.
BOXES = [
    (10, 10, 60, 60),
    (80, 5, 240, 40),
    (100, 60, 140, 120),
    (150, 70, 250, 170),
    (0, 100, 80, 256),
    (100, 200, 130, 226),
]


@given(
    corners=st.lists(st.tuples(*[st.integers(0, 40)] * 4), max_size=20),
    seed=st.integers(0, 99),
    iou=st.sampled_from([0.0, 0.3, 0.7, 1.0]),
)
def test_suppression_is_torchvisions(corners: list[tuple[int, ...]], seed: int, iou: float) -> None:
    boxes = np.array([(x, y, x + w + 1, y + h + 1) for x, y, w, h in corners], np.float32).reshape(-1, 4)
    scores = np.random.default_rng(seed).permutation(len(boxes)).astype(np.float32)
    expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), iou).tolist()
    assert suppress(boxes.astype(float), scores, iou).tolist() == expected


def test_suppression_by_hand() -> None:
    """IoU of the first two boxes is 50 / 150; equal scores keep their order."""
    boxes = np.array([[0, 0, 10, 10], [0, 5, 10, 15], [50, 50, 60, 60]], float)
    scores = np.array([0.5, 0.9, 0.5])
    assert suppress(boxes, scores, 0.34).tolist() == [1, 0, 2]
    assert suppress(boxes, scores, 0.33).tolist() == [1, 2]


def test_stability_scores() -> None:
    """A ramp through 0 in steps of 0.5: with offset 1, three of its seven values above -1 are above 1."""
    ramp = np.linspace(-2, 2.5, 10)[None, None]
    assert stability_scores(ramp, 1.0) == pytest.approx([3 / 7])
    assert stability_scores(np.stack([ramp[0] * 100, ramp[0] - 9]), 1.0) == pytest.approx([5 / 6, 0.0])


def test_the_grid_holds_the_centres_of_equal_cells() -> None:
    assert point_grid(1).tolist() == [[0.5, 0.5]]
    assert point_grid(2).tolist() == [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]]
    assert len(np.unique(point_grid(32), axis=0)) == 1024


def test_crops_cover_the_image_and_overlap() -> None:
    """1500 pixels with 512 in common: two crops of 1006, 494 apart."""
    found = crop_boxes((1500, 1500), 1, 512 / 1500)
    sides = [(0, 1006), (494, 1500)]
    assert found[0] == ((0, 0, 1500, 1500), 0)
    assert [box for box, _ in found[1:]] == [(x1, y1, x2, y2) for x1, x2 in sides for y1, y2 in sides]
    for size in ((300, 411), (5, 7)):
        boxes = crop_boxes(size, 2, 0.3)
        for layer in (1, 2):
            seen = np.zeros(size, bool)
            for (x1, y1, x2, y2), of in boxes:
                seen[y1:y2, x1:x2] |= of == layer
            assert seen.all()


def test_edges_of_crops_cut_objects_and_those_of_the_image_do_not() -> None:
    crop, size = (0, 100, 200, 300), (300, 400)
    assert not touches_edge((0, 140, 100, 299), crop, size)  # at the image's left and bottom
    assert touches_edge((50, 120, 100, 200), crop, size)  # 20 from the crop's top
    assert not touches_edge((50, 121, 100, 200), crop, size)
    assert touches_edge((50, 150, 190, 200), crop, size)


def masks_of(found: EverythingResult) -> list[np.ndarray]:
    return [record["segmentation"] for record in found]  # pyright: ignore[reportReturnType]


def as_set(masks: list[np.ndarray]) -> set[bytes]:
    return {np.packbits(mask).tobytes() for mask in masks}


def test_masks_are_the_objects() -> None:
    image, objects = boxes_on_black(BOXES)
    predictor, runner = oracle()
    found = predictor.everything(image, points_per_side=16)
    assert len(found) == len(BOXES)
    assert as_set(masks_of(found)) == as_set(objects)
    assert found.prompts == 256 == sum(map(len, runner.asked))
    assert max(map(len, runner.asked)) == 64
    assert (found.size, found.image.shape) == ((256, 256), (256, 256, 3))
    sure = [record["predicted_iou"] for record in found]
    assert sure == sorted(sure, reverse=True)
    for record, mask in zip(found, masks_of(found), strict=True):
        ((x, y),) = record["point_coords"]
        assert mask[int(y), int(x)]
        assert mask.dtype == bool
        left, top, width, height = record["bbox"]
        assert (left, top, left + width + 1, top + height + 1) in BOXES
        assert record["area"] == mask.sum() == (width + 1) * (height + 1)
        assert record["predicted_iou"] == pytest.approx(0.9 + 0.1 * mask.mean())
        assert record["stability_score"] == 1
        assert record["crop_box"] == [0, 0, 256, 256]
    assert set(found[0]) == set(Record.__annotations__)
    assert json.dumps([{**record, "segmentation": 0} for record in found])


def test_thresholds_drop_masks() -> None:
    """The network's own doubts, and masks that another threshold would change."""
    image, objects = boxes_on_black(BOXES)
    predictor, _ = oracle()
    areas = [mask.mean() for mask in objects]
    for limit in (0.9 + 0.1 * np.sort(areas)[2] + 1e-6, 1.0):
        expected = sum(0.9 + 0.1 * area > limit for area in areas)
        assert len(predictor.everything(image, points_per_side=8, pred_iou_thresh=limit)) == expected
    assert len(predictor.everything(image, points_per_side=8, stability_score_offset=10.5)) == 0
    # The oracle's fainter copies and the background pass as well when nothing is asked of them.
    loose = predictor.everything(
        image, points_per_side=8, pred_iou_thresh=0.0, stability_score_thresh=0.0, box_nms_thresh=1.0
    )
    assert len(loose) > 100
    assert all(record["area"] for record in loose)


@pytest.mark.parametrize("mode", ["binary_mask", "uncompressed_rle", "coco_rle"])
def test_batches_and_forms_change_no_record(mode: str) -> None:
    image, _ = boxes_on_black(BOXES)
    predictor, runner = oracle()
    plain = predictor.everything(image, points_per_side=9)
    found = predictor.everything(image, points_per_side=9, points_per_batch=7, output_mode=mode)
    assert max(map(len, runner.asked[2:])) == 7
    for record, expected in zip(found, plain, strict=True):
        runs: Any = record["segmentation"]
        if mode == "uncompressed_rle":
            runs = coco_mask.frPyObjects(runs, *found.size)
        mask = runs if mode == "binary_mask" else regions.decoded({**runs, "counts": _text(runs["counts"])})
        np.testing.assert_array_equal(mask, expected["segmentation"])
        assert {**record, "segmentation": 0} == {**expected, "segmentation": 0}


def _text(counts: Any) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts


def test_crops_find_what_the_grid_misses() -> None:
    """A grid of 4 x 4 points steps over the small objects; the crops' own grids do not, and cut ones are dropped."""
    small, smaller = (213, 51, 233, 71), (188, 188, 208, 208)
    image, objects = boxes_on_black([*BOXES[:1], (80, 85, 180, 150), small, smaller])
    predictor, _ = oracle()
    assert len(predictor.everything(image, points_per_side=4)) == 2
    reports: list[int] = []
    found = predictor.everything(image, points_per_side=4, crop_n_layers=2, progress=reports.append)
    assert sum(reports) == found.prompts == EverythingOptions(points_per_side=4, crop_n_layers=2).points == 16 * 21
    assert len(found) == len(objects)
    for expected in objects:
        best = max(found, key=lambda r: iou(r["segmentation"], expected))
        assert iou(best["segmentation"], expected) > 0.85
        x, y, width, height = best["crop_box"]
        whole = [0, 0, 256, 256]
        assert (best["crop_box"] == whole) == (expected is objects[1])  # what no crop holds is found in the whole
        assert not expected[:y].any()
        assert not expected[y + height :].any()
        assert not expected[:, x + width :].any()
    thinned = EverythingOptions(points_per_side=32, crop_n_layers=2, crop_n_points_downscale_factor=2)
    assert thinned.sides == [32, 16, 8]
    assert thinned.points == 1024 + 4 * 256 + 16 * 64


def iou(first: Any, second: Any) -> float:
    return float((first & second).sum() / (first | second).sum())


def test_the_fast_mode_asks_less_and_finds_the_same() -> None:
    image, _ = boxes_on_black(BOXES)
    predictor, runner = oracle()
    full = predictor.everything(image, points_per_side=16)
    every = {tuple(point) for batch in runner.asked for point in batch.tolist()}
    runner.asked.clear()
    reports: list[int] = []
    found = predictor.everything(image, points_per_side=16, fast=True, progress=reports.append)
    asked = [tuple(point) for batch in runner.asked for point in batch.tolist()]
    assert as_set(masks_of(found)) == as_set(masks_of(full))
    assert found.prompts == len(asked) == len(set(asked)) < full.prompts == 256 == sum(reports)
    # What was not asked lies inside what was found.
    masks = np.any(masks_of(found), axis=0)
    assert set(asked) < every
    assert all(masks[int(y / 4), int(x / 4)] for x, y in every - set(asked))
    again = predictor.everything(image, points_per_side=16, fast=True, points_per_batch=5)
    assert again.prompts == found.prompts
    assert as_set(masks_of(again)) == as_set(masks_of(found))


def test_thresholds_that_are_given_hold_in_the_fast_mode() -> None:
    assert EverythingOptions().thresholds(()) == (0.88, 0.95)
    assert EverythingOptions(fast=True).thresholds(()) == (0.85, 0.92)
    assert EverythingOptions(fast=True, pred_iou_thresh=0.88).thresholds(()) == (0.88, 0.92)
    assert EverythingOptions(fast=True, stability_score_thresh=0.0).thresholds(()) == (0.85, 0.0)


def test_weights_bring_thresholds_of_their_own() -> None:
    """A model that is never sure of more than 0.8 finds its masks if its weights say so, and stays open to options."""
    assert EverythingOptions().thresholds((0.5, 0.7)) == (0.5, 0.7)
    assert EverythingOptions(fast=True).thresholds((0.5, 0.02)) == (0.47, 0.0)
    image, objects = boxes_on_black(BOXES)
    predictor, network = oracle()
    network.modesty = 0.2
    assert len(predictor.everything(image, points_per_side=16)) == 0
    predictor.info = predictor.info.replace(mask_thresholds=(0.6, 0.9))
    for fast in (False, True):
        found = predictor.everything(image, points_per_side=16, fast=fast)
        assert as_set(masks_of(found)) == as_set(objects)
    assert found.prompts < 16**2, "what was found covers points"
    assert len(predictor.everything(image, points_per_side=16, pred_iou_thresh=0.88)) == 0


def test_points_of_ones_own() -> None:
    image, objects = boxes_on_black(BOXES)
    predictor, network = oracle()
    middles = np.array([[(x1 + x2) / 2 / image.shape[1], (y1 + y2) / 2 / image.shape[0]] for x1, y1, x2, y2 in BOXES])
    found = predictor.everything(image, points_per_side=None, point_grids=[middles])
    assert as_set(masks_of(found)) == as_set(objects)
    assert found.prompts == len(BOXES) == len(np.concatenate(network.asked))
    scores = [record["predicted_iou"] for record in found]
    assert scores == sorted(scores, reverse=True)
    for options, message in (
        ({"point_grids": [middles]}, "points_per_side or point_grids"),
        ({"points_per_side": None}, "points_per_side or point_grids"),
        ({"points_per_side": None, "point_grids": [middles], "fast": True}, "a grid of its own"),
        ({"points_per_side": None, "point_grids": [middles], "crop_n_layers": 1}, "1 point_grids: give one for"),
        ({"points_per_side": None, "point_grids": [middles * 100]}, "x and y of 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=message):
            predictor.everything(image, **options)


@pytest.mark.parametrize("side", [1, 2, 3, 5])
def test_the_fast_mode_takes_any_grid(side: int) -> None:
    """With nothing to find, no point is left out."""
    predictor, _ = oracle()
    found = predictor.everything(np.zeros((60, 90, 3), np.uint8), points_per_side=side, fast=True)
    assert len(found) == 0
    assert found.prompts == side**2
    assert found.overlay().size == (90, 60)


def test_small_regions_are_removed() -> None:
    image, objects = boxes_on_black([(20, 20, 120, 120), (150, 20, 240, 120)])
    image[60:63, 60:63] = 0  # a hole
    image[200:203, 200:203] = image[20, 20]  # a part of the first object, far away
    predictor, _ = oracle()
    assert as_set(masks_of(predictor.everything(image, points_per_side=8))) != as_set(objects)
    found = predictor.everything(image, points_per_side=8, min_mask_region_area=10)
    assert as_set(masks_of(found)) == as_set(objects)
    assert sorted(record["bbox"] for record in found) == [[20, 20, 99, 99], [150, 20, 89, 99]]
    assert [record["area"] for record in found] == [100 * 100, 90 * 100], "highest predicted IoU first, changed or not"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"points_per_side": 0}, "points_per_side=0: give a whole number of 1 to 1024"),
        ({"points_per_side": 2.5}, "points_per_side=2.5: give a whole number"),
        ({"points_per_side": True}, "points_per_side=True: give a whole number"),
        ({"points_per_batch": -1}, "points_per_batch=-1"),
        ({"pred_iou_thresh": 88}, "pred_iou_thresh=88: give a number of 0 to 1"),
        ({"stability_score_thresh": math.nan}, "stability_score_thresh=nan"),
        ({"stability_score_offset": -1}, "stability_score_offset=-1: give a number of 0 or more"),
        ({"box_nms_thresh": "0.7"}, "box_nms_thresh='0.7'"),
        ({"crop_n_layers": 5}, "crop_n_layers=5: give a whole number of 0 to 4"),
        ({"crop_nms_thresh": None}, "crop_nms_thresh=None: give a number of 0 to 1"),
        ({"crop_overlap_ratio": 2}, "crop_overlap_ratio=2"),
        ({"points_per_side": 3, "crop_n_layers": 2, "crop_n_points_downscale_factor": 2}, "are none in layer 2"),
        ({"min_mask_region_area": -5}, "min_mask_region_area=-5"),
        ({"output_mode": "coco"}, "unknown output_mode 'coco'; did you mean 'coco_rle'?"),
        ({"fast": 1}, "fast=1: give True or False"),
        ({"point_per_side": 8}, "everything has no option 'point_per_side'; did you mean 'points_per_side'?"),
    ],
)
def test_wrong_options_are_one_clear_line(options: dict[str, Any], message: str) -> None:
    predictor, runner = oracle()
    with pytest.raises(ConfigError) as caught:
        predictor.everything(np.zeros((32, 32, 3), np.uint8), **options)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not runner.asked


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # pycocotools with NumPy 2
def test_a_result_is_a_sequence_with_a_picture_and_a_file(tmp_path: Path) -> None:
    image, objects = boxes_on_black(BOXES)
    predictor, _ = oracle()
    found = predictor(image)
    assert isinstance(found, EverythingResult)
    assert found.prompts == 1024
    assert list(found) == found.records
    assert len(found[:2]) == 2
    for mode in ("binary_mask", "uncompressed_rle", "coco_rle"):
        found = predictor.everything(image, points_per_side=8, output_mode=mode)
        dataset = COCO(found.save(tmp_path / f"{mode}.json", "boxes.png"))
        (entry,) = dataset.imgs.values()
        assert (entry["file_name"], entry["height"], entry["width"]) == ("boxes.png", 256, 256)
        assert as_set([dataset.annToMask(a).astype(bool) for a in dataset.anns.values()]) == as_set(objects)
        picture = np.asarray(found.overlay())
        changed = (picture != image).any(-1)
        assert changed[np.any(objects, axis=0)].mean() > 0.9
        assert changed[~np.any(objects, axis=0)].mean() < 0.1  # outlines are inside, scores a little larger
    with pytest.raises(InputError, match=r"\.json files"):
        found.save(tmp_path / "masks.png")
    with pytest.raises(InputError, match="crop_n_layers"):
        predictor(image, tile=64)


def test_memory_does_not_hold_all_masks() -> None:
    """Three masks of 25 points as logits would be 720 MB."""
    ((message, growth),) = memory.peak_growths("helpers.oracle", "everything_at", ["1200x2000"])
    assert message == "done"
    assert growth < 400


def test_equals_the_papers_steps_on_a_network() -> None:
    """Prompt by prompt in torch, nothing shared with the module but the network."""
    predictor, photo = SamPredictor(sure_network()).predictor, chequered()
    found = predictor.everything(photo, points_per_side=3, stability_score_thresh=0.5, box_nms_thresh=0.99)
    embedding = predictor.encode(photo)
    boxes, scores, masks = [], [], []
    for point in point_grid(3) * (120, 90):
        answer = embedding.prompt([point], [1])
        high, wide = frame_size((90, 120))
        frame = F.interpolate(torch.from_numpy(answer.low_res), (1024, 1024), mode="bilinear")[..., :high, :wide]
        for logits, score in zip(F.interpolate(frame, (90, 120), mode="bilinear")[0], answer.iou, strict=True):
            if score > 0.88 and (logits > 1).sum() / (logits > -1).sum() >= 0.5:
                y, x = torch.nonzero(logits > 0, as_tuple=True)
                boxes.append([x.min(), y.min(), x.max(), y.max()])
                scores.append(float(score))
                masks.append((logits > 0).numpy())
    kept = nms(torch.tensor(boxes).double(), torch.tensor(scores).double(), 0.99).tolist()
    assert len(found) == len(kept) > 1
    for record, index in zip(found, kept, strict=True):
        assert record["predicted_iou"] == pytest.approx(scores[index], abs=1e-5)
        assert (record["segmentation"] != masks[index]).mean() < 1e-3


def test_sam_automatic_mask_generator() -> None:
    image, objects = boxes_on_black(BOXES)
    found = SamAutomaticMaskGenerator(oracle()[0], points_per_side=16).generate(image)
    assert isinstance(found, list)
    assert as_set([r["segmentation"] for r in found]) == as_set(objects)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ConfigError, match="did you mean 'points_per_side'"):
        foveal.SamAutomaticMaskGenerator(oracle()[0], points_per_sid=16)
