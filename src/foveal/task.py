"""The tasks that a model can have, and every property of a task that code outside its own files asks for.

A task is named in :attr:`foveal.ModelInfo.task`, in recipes and on the command line. Each room has one file per task
(``tasks/segment.py``, ``training/segment.py``, ``evaluation/segment.py``) and one table with a line per task. No other
code compares the name of a task.
"""

from __future__ import annotations

from dataclasses import dataclass

from .errors import ConfigError, nearest


@dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: as users write it.
        result: what a model of the task gives for an image or a text, for messages: "it gives ...".
        takes_images: whether its input is an image.
        takes_prompts: whether its answers depend on points, boxes or masks beside the image.
        has_classes: whether its output is a score per class.
        labels_pixels: whether each pixel has a class, or is ignored.
        output_name: name of the output in exported files.
    """

    name: str
    result: str
    takes_images: bool = True
    takes_prompts: bool = False
    has_classes: bool = False
    labels_pixels: bool = False
    output_name: str = "logits"


#: By name, in the order in which they are listed. "features" is a backbone without a head.
TASKS = {
    task.name: task
    for task in (
        Task("classify", "the class of an image", has_classes=True),
        Task("segment", "the class of each pixel", has_classes=True, labels_pixels=True),
        Task("upscale", "an image", output_name="upscaled"),
        Task("prompt", "masks of objects", takes_prompts=True),
        Task("language", "scores of tokens", takes_images=False),
        Task("features", "maps of features"),
    )
}


def find_task(name: str) -> Task:
    """The task of this name.

    Raises:
        ConfigError: there is none; the message has the nearest name.
    """
    if name not in TASKS:
        raise ConfigError(f"unknown task {name!r}{nearest(name, TASKS)}")
    return TASKS[name]
