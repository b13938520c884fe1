"""The description of a model: how to build it, how to prepare its inputs, what its outputs mean.

Plain data, without torch and numpy. The same JSON is stored in checkpoints (safetensors metadata), in ONNX metadata and
in training runs, so that a file alone is enough to predict.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, nearest
from .task import TASKS

if TYPE_CHECKING:
    from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IGNORE = 255  #: ignore index of masks and metrics: pixels without a class
#: Types of the values of images, and the value that is 1 on the scale of :attr:`Preprocess.mean`.
PEAKS = {"uint8": 255, "uint16": 65535, "float32": 1}
KEY = "foveal"  #: metadata key that holds the JSON in every file format


@dataclass(frozen=True)
class Labels:
    """Names and colours of the classes, by index.

    Attributes:
        names: one name per class.
        palette: one (red, green, blue) of 0..255 per class; empty: colours are generated.
    """

    names: tuple[str, ...] = ()
    palette: tuple[tuple[int, int, int], ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(self.names))
        object.__setattr__(self, "palette", tuple((int(r), int(g), int(b)) for r, g, b in self.palette))
        if wrong := next((c for c in self.palette if not all(0 <= value <= 255 for value in c)), None):
            raise ConfigError(f"colour {list(wrong)} of the palette is out of range: red, green and blue are 0 to 255")
        if self.palette and len(self.palette) != len(self.names):
            raise ConfigError(f"{len(self.names)} class names but {len(self.palette)} colours: give one per class")


@dataclass(frozen=True)
class Preprocess:
    """How an image on the 0..1 scale becomes the network's input: ``(resized image - mean) / std`` per channel.

    Attributes:
        mean: per channel, on the 0..1 scale.
        std: per channel, on the 0..1 scale.
        dtype: type of the values of images, a key of :data:`PEAKS`: uint8 is divided by 255 and uint16 by 65535 for
            the 0..1 scale, float32 is taken as it is.
        size: (H, W) to resize to, ``None`` to keep the image's own size.
        max_side: if ``size`` is ``None``: images with a longer side are downscaled to it, with their aspect ratio. For
            weights that were trained on small images only.
        resample: filter of the resize, a Pillow name.
        crop_ratio: for classifiers: resize the short side to ``size / crop_ratio``, then crop the centre; 0: no crop.
        squash: resize both sides to ``size / crop_ratio`` before that crop, without keeping the aspect ratio.
        pad: resize the long side to the side of ``size``, which is a square, and pad with zeros at the right and bottom
            after mean and std are applied.
    """

    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD
    size: tuple[int, int] | None = None
    max_side: int | None = None
    resample: str = "bicubic"
    crop_ratio: float = 0.0
    squash: bool = False
    pad: bool = False
    dtype: str = "uint8"

    def __post_init__(self) -> None:
        if self.dtype not in PEAKS:
            raise ConfigError(f"dtype={self.dtype!r} of the images{nearest(str(self.dtype), PEAKS)}")
        object.__setattr__(self, "mean", tuple(self.mean))
        object.__setattr__(self, "std", tuple(self.std))
        if self.size is not None:
            object.__setattr__(self, "size", (int(self.size[0]), int(self.size[1])))

    @property
    def peak(self) -> int:
        """The value of images that is 1 on the scale of ``mean`` and ``std``."""
        return PEAKS[self.dtype]

    @classmethod
    def of_prompts(cls, side: int) -> Preprocess:
        """Preprocessing of SAM and its descendants: resize the long side to ``side`` bilinearly, pad with zeros."""
        return cls(size=(side, side), resample="bilinear", pad=True)


@dataclass(frozen=True)
class ModelInfo:
    """Everything that is needed to rebuild and to use a model.

    Attributes:
        model: architecture, a name of ``foveal.list_models``; empty for files that other software wrote.
        task: name of the task, see :data:`foveal.task.TASKS`.
        num_classes: outputs of the classifier.
        in_chans: channels of the image.
        options: further keyword arguments of ``create_model``.
        preprocess: how images become the network's input.
        labels: names and colours of the classes.
        output_stride: input pixels per output position (exported files).
        tag: data set or setting of the weights, the part of their name after the dot.
        licence: of the weights, an SPDX name.
        mask_thresholds: for promptable models: predicted IoU and stability above which segmenting everything keeps a
            mask; empty: SAM's thresholds. The scale of these predictions depends on how a model was trained.
        notes: where the weights come from, figures and seeds; free form.
    """

    model: str = ""
    task: str = ""
    num_classes: int = 0
    in_chans: int = 3
    options: dict[str, Any] = field(default_factory=dict)
    preprocess: Preprocess = field(default_factory=Preprocess)
    labels: Labels = field(default_factory=Labels)
    output_stride: int = 1
    tag: str = ""
    licence: str = ""
    mask_thresholds: tuple[float, ...] = ()
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask_thresholds", tuple(self.mask_thresholds))

    @property
    def ref(self) -> str:
        """``name.tag``, or the name alone where the weights have no tag."""
        return f"{self.model}.{self.tag}" if self.tag else self.model

    def to_json(self) -> str:
        """JSON of all fields; tasks that label pixels add ``ignore_index``, the value of pixels without a class."""
        ignored = {"ignore_index": IGNORE} if self.task in TASKS and TASKS[self.task].labels_pixels else {}
        return json.dumps({**dataclasses.asdict(self), **ignored})

    @classmethod
    def from_json(cls, text: str) -> ModelInfo:
        """Parse the text of :meth:`to_json`.

        Raises:
            ConfigError: the text is not such JSON.
        """
        try:
            data = json.loads(text)
            data["preprocess"] = Preprocess(**data["preprocess"])
            data["labels"] = Labels(**data["labels"])
            if (ignored := data.pop("ignore_index", IGNORE)) != IGNORE:
                raise ValueError(f"ignore_index={ignored}, not {IGNORE}")
            info, empty = cls(**data), cls()
            for entry in dataclasses.fields(cls):
                value, expected = getattr(info, entry.name), type(getattr(empty, entry.name))
                if not isinstance(value, expected):
                    raise TypeError(f"{entry.name} is a {type(value).__name__}, not a {expected.__name__}")
            return info
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(
                f"model description cannot be read ({error}); if a newer Foveal wrote the file, update this one"
            ) from None

    def replace(self, **changes: Any) -> ModelInfo:
        """A copy with other values of these fields."""
        return dataclasses.replace(self, **changes)


def say_licence(name: object, licence: str) -> None:
    """State on standard error, in one line, if ``licence`` (an SPDX name) forbids commercial use of weights."""
    if "NC" in licence.upper().split("-"):
        print(f"{name}: weights under {licence}, for non-commercial use only", file=sys.stderr, flush=True)


def attach(model: nn.Module, info: ModelInfo) -> None:
    """Set the description of ``model`` (its attribute ``foveal_info``)."""
    object.__setattr__(model, "foveal_info", info)


def info_of(model: nn.Module) -> ModelInfo:
    """The description of a model that ``create_model`` or ``load_model`` returned.

    Raises:
        ConfigError: the model has none.
    """
    info = getattr(model, "foveal_info", None)
    if not isinstance(info, ModelInfo):
        raise ConfigError(
            f"{type(model).__name__} was not made by foveal.create_model or foveal.load_model: it has no foveal_info"
        )
    return info
