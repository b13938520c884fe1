"""Promptable models for tests: one that is right by construction, and a small network that is sure of what it says."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from foveal.factory.create import create_model
from foveal.info import ModelInfo, Preprocess
from foveal.prediction.predictor import Predictor
from helpers import golden

SIDE = 256  # of its input, and of its masks: at this size nothing is interpolated but edges


class Oracle:
    """Answers a point with all pixels of its colour, see :class:`foveal.prediction.runner.PromptRunner`.

    Attributes:
        asked: what it was asked, points in the frame, batch by batch.
        modesty: by how much all that it expects is lower.
    """

    at_once, encoder_id = 64, ""

    def __init__(self) -> None:
        self.asked: list[NDArray[np.float32]] = []
        self.modesty = 0.0

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        planes = batch[0].reshape(3, 64, 4, 64, 4).transpose(0, 2, 4, 1, 3).reshape(48, 64, 64)
        return np.concatenate([planes, np.zeros((208, 64, 64), np.float32)])[None]

    def decode(
        self,
        embedding: NDArray[np.float32],
        coords: NDArray[np.float32],
        labels: NDArray[np.int64],
        masks: NDArray[np.float32] | None,
        least_iou: float,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Masks of the point's colour; its predicted IoU rises with the area, and is low for black, the background."""
        self.asked.append(coords[:, 0])
        image = embedding[0, :48].reshape(3, 4, 4, 64, 64).transpose(0, 3, 1, 4, 2).reshape(3, SIDE, SIDE)
        colours = np.tensordot([1, 256, 65536], (image * 255 + 0.5).astype(np.int64), 1)
        x, y = (coords[:, 0] * (SIDE / 1024)).astype(int).clip(0, SIDE - 1).T
        inside = colours == colours[y, x][:, None, None]
        iou = np.where(colours[y, x] > 0, 0.9 + 0.1 * inside.mean((1, 2)), 0.1)
        logits = np.where(inside, 10, -10).astype(np.float32)
        # The first of the four is for clear prompts; two of the three others are worse.
        all_four = np.stack([logits, logits * 0.01, logits, -np.abs(logits)], 1)
        return all_four, np.stack([iou, iou, iou, iou], 1).astype(np.float32) - np.float32(self.modesty)


def oracle() -> tuple[Predictor, Oracle]:
    """A predictor and its runner."""
    preprocess = Preprocess((0.0,) * 3, (1.0,) * 3, (SIDE, SIDE), resample="nearest", pad=True)
    runner = Oracle()
    return Predictor(runner, ModelInfo("oracle", "prompt", preprocess=preprocess), "oracle"), runner


def boxes_on_black(
    boxes: list[tuple[int, int, int, int]], size: tuple[int, int] = (SIDE, SIDE)
) -> tuple[NDArray[np.uint8], list[NDArray[np.bool_]]]:
    """An image of boxes x1, y1, x2, y2 (the last two exclusive) in colours of their own, and the masks of them."""
    image, masks = np.zeros((*size, 3), np.uint8), []
    for number, (x1, y1, x2, y2) in enumerate(boxes, start=1):
        image[y1:y2, x1:x2] = (37 * number % 256, 255 - number, 130 + 30 * (number % 4))
        mask = np.zeros(size, bool)
        mask[y1:y2, x1:x2] = True
        masks.append(mask)
    return image, masks


def sure_network() -> Any:
    """A small torch model with deterministic weights, high predicted IoU and sharp edges."""
    model: Any = golden.fill(create_model("efficientvit_b0", "prompt").double()).float()
    decoder = model.mask_decoder
    with torch.no_grad():
        last = decoder.iou_prediction_head.layers[-1]
        last.weight *= 0.05
        last.bias.fill_(0.97)
        for mlp in decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight *= 100
            mlp.layers[-1].bias *= 100
    return model


def chequered() -> NDArray[np.uint8]:
    """A picture of 90 x 120 with fields of two colours over a ramp."""
    y, x = np.mgrid[:90, :120]
    return np.stack([x * 2, y * 2, (x // 20 + y // 15) % 2 * 200], -1).astype(np.uint8)


def everything_at(size: str) -> None:
    """What the test of memory does in a process of its own."""
    height, width = map(int, size.split("x"))
    image, _ = boxes_on_black([(100 * i, 0, 100 * i + 100, height) for i in range(width // 100)], (height, width))
    found = oracle()[0].everything(image, points_per_side=5, output_mode="uncompressed_rle", stability_score_thresh=0.0)
    assert len(found) > 4
