"""The tasks that a model can have, and every property of a task that code outside the task's own files asks for.

A task is named in :attr:`foveal.ModelInfo.task`, in recipes and on the command line. Each room has one file per task
(``tasks/segment.py``, ``training/segment.py``, ``evaluation/segment.py``) and one table with a line per task. No other
code compares the name of a task.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from .errors import ConfigError, nearest


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: as users write it.
        result: what a model of the task gives for an image or a text, for messages: "it gives ...".
        takes_images: whether its input is an image; otherwise token ids.
        takes_prompts: whether its output depends on points, boxes or masks in addition to the image.
        has_head: whether its models have a head; without one they are backbones.
        has_classes: whether its output is a score per class.
        labels_pixels: whether each pixel has a class, or is ignored.
        has_maps: whether its output is a map at the network's stride, which is upsampled to the size of the image.
        output_name: name of the output in exported files.
        published_classes: number of classes of published weights, unless their head states another number.
        head_keys: prefixes of state-dict keys (in Foveal's layout) that only models of this task have; empty: the task
            cannot be identified by keys.
        option: option of ``create_model``, a whole number from 1, that a description must have; empty: none.
        output_layer: prefix of the keys of the layer whose shape depends on the number of classes or on the scale.
        tuned_head: prefixes of the keys of the parts that are trained whichever few parameters are tuned. Of
            classifiers and promptable models the last layers only: the rest of their heads is as large as the backbone.
    """

    name: str
    result: str
    takes_images: bool = True
    takes_prompts: bool = False
    has_head: bool = True
    has_classes: bool = False
    labels_pixels: bool = False
    has_maps: bool = False
    output_name: str = "logits"
    published_classes: int = 0
    head_keys: tuple[str, ...] = ()
    option: str = ""
    output_layer: str = "head.classifier"
    tuned_head: tuple[str, ...] = ("head.",)


#: By name, in the order in which they are listed. "features" is a backbone without a head.
TASKS = {
    task.name: task
    for task in (
        Task(
            "classify",
            "the class of an image",
            has_classes=True,
            published_classes=1000,
            tuned_head=("head.classifier.",),
        ),
        Task(
            "segment",
            "the class of each pixel",
            has_classes=True,
            labels_pixels=True,
            has_maps=True,
            head_keys=("head.laterals.",),
        ),
        Task(
            "upscale",
            "an image",
            output_name="upscaled",
            head_keys=("head.subpixel.weight",),
            option="scale",
            output_layer="head.subpixel",
        ),
        Task("regress", "values of each pixel", has_maps=True, output_name="values", head_keys=("head.target_std",)),
        Task(
            "prompt",
            "masks of objects",
            takes_prompts=True,
            head_keys=("prompt_encoder.", "mask_decoder."),
            tuned_head=("mask_decoder.output_upscaling.", "mask_decoder.mask_tokens.", "mask_decoder.iou_token."),
        ),
        Task("language", "scores of tokens", takes_images=False),
        Task("features", "feature maps", has_head=False),
    )
}


def find_task(name: str) -> Task:
    """Look up a task by name.

    Raises:
        ConfigError: there is no task of this name; the message has the nearest one.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}{nearest(name, TASKS)}")
    return TASKS[name]


def identify_task(keys: Iterable[str]) -> Task:
    """Identify the task of an image model by its state-dict keys (in Foveal's layout); "classify" if none decides."""
    names = list(keys)
    tasks = [task for task in TASKS.values() if any(name.startswith(task.head_keys) for name in names)]
    return tasks[-1] if tasks else TASKS["classify"]  # a regression head has the keys of a segmentation head and more
