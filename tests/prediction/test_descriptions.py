"""What ``print`` shows of predictors and results: a line that names the task, the size and the classes, cheaply."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import foveal
from foveal.errors import CheckpointError
from foveal.info import Labels, ModelInfo, Preprocess
from foveal.prediction.predictor import Predictor

IMAGE = np.zeros((40, 60, 3), np.uint8)
LOW_RES = np.zeros((2, 3, 256, 256), np.float32)


def predictor(task: str, runner: Any = None, **values: Any) -> Predictor:
    return Predictor(runner or (lambda batch: batch), ModelInfo("net", task, tag="data", **values), "torch on cpu")


@pytest.mark.parametrize(
    ("thing", "text"),
    [
        (
            predictor("segment", num_classes=4, labels=Labels(("a", "b\x1b[2J", "c", "d"))),
            "Predictor(net.data, segment, 4 classes ('a', 'b\ufffd[2J', 'c', ...), images of any size, torch on cpu)",
        ),
        (
            predictor("classify", num_classes=2, preprocess=Preprocess(size=(32, 48))),
            "Predictor(net.data, classify, 2 classes ('class 0', 'class 1'), images resized to 48x32, torch on cpu)",
        ),
        (
            predictor("upscale", options={"scale": 3}, preprocess=Preprocess(max_side=99)),
            "Predictor(net.data, upscale, x3, images of any size, torch on cpu)",
        ),
        (
            predictor("regress", preprocess=Preprocess(max_side=99)),
            "Predictor(net.data, regress, images of up to 99 pixels, torch on cpu)",
        ),
        (
            predictor("prompt", preprocess=Preprocess.of_prompts(64)),
            "Predictor(net.data, prompt, images resized to 64x64, with padding, torch on cpu)",
        ),
        (
            foveal.SegmentResult(IMAGE, np.zeros((5, 4, 6), np.float32), (0.1, 0.1), Labels()),
            "SegmentResult(image 60x40, 5 classes; .mask, .scores, .shares(), .overlay())",
        ),
        (
            foveal.ClassifyResult(np.array([0, 0], np.float32), Labels(("cat", "dog"))),
            "ClassifyResult(2 classes: 'cat' 50.0%, 'dog' 50.0%; .top(), .scores)",
        ),
        (foveal.UpscaleResult(IMAGE, 2), "UpscaleResult(image 60x40, x2, uint8; .image, .save())"),
        (
            foveal.MaskResult(LOW_RES[:1], np.array([0.5, 0.25, 1], np.float32), (40, 60)),
            "MaskResult(image 60x40, 3 masks with a predicted IoU of 0.500, 0.250, 1.000; "
            ".masks, .iou, .best, .overlay())",
        ),
        (
            foveal.MaskResult(LOW_RES, np.zeros((2, 3), np.float32), (40, 60)),
            "MaskResult(image 60x40, 3 masks for each of 2 prompts; .masks, .iou, .best, .overlay())",
        ),
        (
            foveal.EverythingResult([], (40, 60), IMAGE, 9),
            "EverythingResult(image 60x40, 0 masks of 9 prompts; .records, .overlay())",
        ),
    ],
)
def test_one_line_says_what_it_is(thing: object, text: str) -> None:
    assert repr(thing) == str(thing) == text


def test_names_of_the_classes() -> None:
    assert foveal.load("efficientvit_b0.camvid").names[:2] == ("sky", "building")
    assert predictor("classify", num_classes=2).names == ("class 0", "class 1")
    assert predictor("upscale", options={"scale": 2}).names == ()


@pytest.mark.parametrize(("task", "shape"), [("classify", (1, 5)), ("segment", (1, 5, 4, 4)), ("segment", (1, 7))])
def test_an_output_that_does_not_fit_the_description(task: str, shape: tuple[int, ...]) -> None:
    wrong = predictor(task, lambda batch: np.zeros(shape, np.float32), num_classes=7)
    with pytest.raises(CheckpointError, match=r"net\.data: the network gives an output of shape .* for 7 classes"):
        wrong(IMAGE)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("task", ["classify", "segment", "upscale", "regress"])
def test_outputs_that_are_not_finite_are_no_results(task: str, value: float) -> None:
    def runner(batch: np.ndarray) -> np.ndarray:
        output = np.zeros((1, 3), np.float32) if task == "classify" else batch.copy()
        output.flat[1] = value
        return output

    options = {"scale": 1} if task == "upscale" else {}
    with pytest.raises(foveal.InputError, match="not finite numbers: compute in float32"):
        predictor(task, runner, num_classes=0 if task == "upscale" else 3, options=options)(IMAGE)


@pytest.mark.parametrize("method", ["classify", "segment", "regress", "upscale"])
def test_methods_for_other_tasks_are_refused(method: str) -> None:
    for task in ("classify", "segment", "upscale", "prompt"):
        if task != method:
            with pytest.raises(foveal.ConfigError, match=f"is for '{task}': call predictor"):
                getattr(predictor(task, options={"scale": 2}), method)(IMAGE)
