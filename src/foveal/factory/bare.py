"""What weights without a description are used for: their task, preprocessing and classes, as they were published."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..data.labels import of_tag
from ..info import Labels, ModelInfo, Preprocess
from ..task import TASKS, identify_task

if TYPE_CHECKING:
    from ..weights.reading import Checkpoint


def labels_of(data_set: str, num_classes: int) -> Labels:
    """Names and colours of a data set's classes; none if ``data_set`` is unknown or has another number of classes.

    Args:
        data_set: name of a published segmentation head, or a tag of weights, for example "cityscapes" or "r224_in1k".
        num_classes: of the model.
    """
    labels = of_tag(data_set)
    return labels if len(labels.names) == num_classes else Labels()


def describe_bare(checkpoint: Checkpoint, name: str, head: str) -> ModelInfo:
    """Describe the use of a classifier, segmenter or regressor without a description: task, preprocessing, classes.

    Args:
        checkpoint: the weights; of another family, or without a classifier, they give an empty description.
        name: architecture that they are for.
        head: name of the published segmentation head; empty: the variant's first.
    """
    from ..models.registry import variants
    from ..tasks.builders import BUILDERS
    from ..weights.published import published_preprocess

    family, variant = variants()[name]
    recognised = checkpoint.recognise_encoder()
    classes = 0 if recognised is None else len(recognised.state.get("head.classifier.weight", ()))
    if recognised is None or recognised.family is not family or not classes:
        return ModelInfo()
    task = identify_task(recognised.state).name
    head = head or BUILDERS[task].published_heads(variant)[0].get("head", "")
    return ModelInfo(
        task=task,
        num_classes=classes,
        preprocess=published_preprocess(task, variant) or Preprocess(),
        labels=known_labels(head, task, classes, recognised.was_converted),
    )


def known_labels(head: str, task: str, num_classes: int, was_converted: bool) -> Labels:
    """Names and colours of the classes of weights without a description; none if the data set is not known."""
    if not TASKS[task].has_classes:
        return Labels()
    # Converted classifiers with the usual number of classes are ImageNet's; ours may be of any data set.
    usual = was_converted and num_classes == TASKS[task].published_classes
    return labels_of(head or ("in1k" if usual else ""), num_classes)
