"""Masks of prompts at the image's size: their edges, their order, and thresholds that no mask passes."""

from __future__ import annotations

import dataclasses
import logging

import numpy as np
import pytest

import foveal
from foveal.prediction.everything_options import EverythingOptions
from foveal.prediction.mask_results import MaskResult
from helpers.oracle import boxes_on_black, oracle


@pytest.mark.parametrize("size", [(200, 150), (743, 1280), (3000, 2001)])
def test_edges_follow_the_logits_at_the_images_size(size: tuple[int, int]) -> None:
    """Logits that are a plane: the mask's edge is a straight line to the pixel, not steps of the network's pixels."""
    scale = 256 / max(size)
    y, x = (np.arange(256) + 0.5)[:, None] / scale, (np.arange(256) + 0.5) / scale
    plane = (0.7 * x - 0.4 * y - 0.1 * size[1]).astype(np.float32)
    mask = MaskResult(plane[None, None], np.ones(1, np.float32), size).best
    rows, columns = (np.arange(length) + 0.5 for length in size)
    exact = 0.7 * columns - 0.4 * rows[:, None] - 0.1 * size[1]
    inside = (slice(round(1 / scale), -round(1 / scale)),) * 2  # the network's outer pixels repeat beyond their centres
    assert (mask == (exact > 0))[inside][abs(exact[inside]) > 1].all()


def test_the_largest_first() -> None:
    low_res = np.full((2, 3, 256, 256), -1, np.float32)
    for prompt, sizes in enumerate([(10, 99, 50), (50, 20, 20)]):
        for mask, size in enumerate(sizes):
            low_res[prompt, mask, :size, :size] = 1
    iou = np.array([[0.9, 0.5, 0.1]] * 2, np.float32)
    many = MaskResult(low_res, iou, (64, 64))
    assert many.by_area.tolist() == [[1, 2, 0], [0, 1, 2]]
    one = MaskResult(low_res[:1], iou[0], (64, 64))
    assert one.by_area.tolist() == [1, 2, 0]
    np.testing.assert_array_equal(one.best, one.masks[0])


def test_thresholds_above_the_weights_own_are_named_once(caplog: pytest.LogCaptureFixture) -> None:
    predictor, runner = oracle()
    runner.modesty = 0.3
    predictor.info = dataclasses.replace(predictor.info, mask_thresholds=(0.5, 0.6))
    image, _ = boxes_on_black([(10, 10, 100, 100)])
    notebook = foveal.SamAutomaticMaskGenerator(
        predictor, points_per_side=2, pred_iou_thresh=0.86, stability_score_thresh=0.5
    )
    with caplog.at_level(logging.WARNING):
        assert [notebook.generate(image), notebook.generate(image)] == [[], []]
    (message,) = caplog.messages
    assert message == (
        "oracle: no masks, with thresholds above those of these weights: pred_iou_thresh=0.86 "
        "(its own: 0.5, the default)"
    )
    assert foveal.SamAutomaticMaskGenerator(predictor, points_per_side=2).generate(image)
    assert EverythingOptions(pred_iou_thresh=0.4, stability_score_thresh=0.6).above_own((0.5, 0.6)) == ""
    assert EverythingOptions().above_own(()) == ""
