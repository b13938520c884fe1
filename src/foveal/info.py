"""The description of a model: how to build it, how to prepare its inputs, what its outputs mean.

Plain data, without torch and numpy. The same JSON is stored in checkpoints (safetensors metadata), in ONNX metadata and
in training runs, so that a file alone is enough to predict.
"""

from __future__ import annotations

import dataclasses
import json
import math
import numbers
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .errors import ConfigError, nearest
from .files import parse_json
from .task import TASKS
from .text import notice

if TYPE_CHECKING:
    from torch import nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
IGNORE = 255  #: ignore index of masks and metrics: pixels without a class, see :func:`ignore_id`
WIDE_IGNORE = 65535  #: the same with more than 255 classes
MAX_CLASSES = 4096  #: of masks; the confusion matrix of so many takes 128 MiB
#: Types of the values of images, and the value that is 1 on the scale of :attr:`Preprocess.mean`.
PEAKS = {"uint8": 255, "uint16": 65535, "float32": 1}
KEY = "foveal"  #: metadata key that holds the JSON in every file format
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  #: of a resize, Pillow's names
MAX_SIDE = 4096  #: largest side of a network's input that a description may ask for, in pixels
MAX_COUNT = 1 << 20  #: largest number of classes and of channels
MAX_JSON = 4 << 20  #: largest description, in bytes


def ignore_id(num_classes: int) -> int:
    """The id of pixels without a class in masks: 255, or 65535 in masks of 16 bits, for more than 255 classes."""
    return IGNORE if num_classes <= IGNORE else WIDE_IGNORE


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
        object.__setattr__(self, "names", tuple(_printable(str(name)) for name in self.names))
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
        if len(self.mean) != len(self.std) or not self.mean:
            raise ConfigError(f"{len(self.mean)} means but {len(self.std)} standard deviations: give one per channel")
        _check_range("mean", self.mean, -1e9, 1e9)
        _check_range("std", self.std, 1e-9, 1e9)
        _check_range("size", self.size or (), 1, MAX_SIDE)
        _check_range("max_side", () if self.max_side is None else (self.max_side,), 1, 1 << 20)
        if self.crop_ratio != 0:
            _check_range("crop_ratio", (self.crop_ratio,), max(0.05, max(self.size or (0,)) / (2 * MAX_SIDE)), 20)

    @property
    def peak(self) -> int:
        """The value of images that is 1 on the scale of ``mean`` and ``std``."""
        return PEAKS[self.dtype]

    def for_channels(self, count: int) -> Preprocess:
        """This preprocessing for ``count`` channels; if that is another number, mean and deviation become 0 and 1."""
        if count == len(self.mean):
            return self
        return dataclasses.replace(self, mean=(0.0,) * count, std=(1.0,) * count)

    @classmethod
    def of_prompts(cls, side: int) -> Preprocess:
        """Preprocessing of SAM and its descendants: resize the long side to ``side`` bilinearly, pad with zeros."""
        return cls(size=(side, side), resample="bilinear", pad=True)


#: What regression models predict: numbers of any kind, distances along the view, unit vectors, coverage.
TARGET_KINDS = ("values", "depth", "normals", "alpha")


@dataclass(frozen=True)
class Target:
    """What the maps of a regression model mean, and how integer files hold them.

    Attributes:
        kind: one of :data:`TARGET_KINDS`. "normals" are unit vectors with x to the right; "alpha" is 0..1.
        unit: of the values, for example "m"; empty: none.
        scale: value of one step of an integer file; 0: 1 for "values" and "depth". "alpha" files then hold 0..1 and
            "normals" files -1..1 over the whole range of their type. Values of floating-point files are taken as they
            are.
        invalid: stored value of pixels without a measurement; ``None``: every stored value is one.
    """

    kind: str = "values"
    unit: str = ""
    scale: float = 0.0
    invalid: float | None = None

    def __post_init__(self) -> None:
        if self.kind not in TARGET_KINDS:
            raise ConfigError(f"target: kind={self.kind[:60]!r}{nearest(self.kind[:60], TARGET_KINDS)}")
        object.__setattr__(self, "unit", _printable(self.unit))
        if self.scale != 0:
            _check_range("target: scale", (self.scale,), 1e-12, 1e12)
        if self.invalid is not None:
            _check_range("target: invalid", (self.invalid,), -1e38, 1e38)

    def means_what(self, other: Target) -> bool:
        """Whether values mean the same as those of ``other``: of one kind, and of one unit where both have one."""
        return self.kind == other.kind and (not self.unit or not other.unit or self.unit == other.unit)

    def in_words(self) -> str:
        """The kind and the unit, for messages."""
        return f"{self.kind} in {self.unit}" if self.unit else f"{self.kind} without a unit"

    def names(self, count: int) -> tuple[str, ...]:
        """Names of so many channels."""
        if self.kind == "normals" and count == len(_AXES):
            return _AXES
        if count == 1:
            return (self.kind.removesuffix("s"),)
        return tuple(f"{self.kind.removesuffix('s')} {index}" for index in range(count))


_AXES = ("x", "y", "z")


@dataclass(frozen=True)
class ModelInfo:
    """Everything that is needed to rebuild and to use a model.

    Attributes:
        model: architecture, a name of ``foveal.list_models``; empty for files that other software wrote.
        task: name of the task, see :data:`foveal.task.TASKS`.
        num_classes: outputs of the classifier; of regression models, channels of the map.
        in_chans: channels of the image.
        options: further keyword arguments of ``create_model``.
        preprocess: how images become the network's input.
        labels: names and colours of the classes.
        output_stride: input pixels per output position (exported files).
        tag: data set or setting of the weights, the part of their name after the dot.
        licence: of the weights, an SPDX name.
        target: for regression models: what the channels mean.
        mask_thresholds: for promptable models: predicted IoU and stability above which segmenting everything keeps a
            mask; empty: SAM's thresholds. The scale of these predictions depends on how a model was trained.
        notes: where the weights come from, figures and seeds; free form.
        base: of a file with a few tuned tensors: the weights that it belongs to, see :mod:`foveal.weights.tuned`;
            empty: the file is whole.
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
    target: Target = field(default_factory=Target)
    notes: dict[str, Any] = field(default_factory=dict)
    base: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mask_thresholds", tuple(self.mask_thresholds))
        for name in ("model", "tag", "licence"):
            object.__setattr__(self, name, _printable(getattr(self, name)))

    @property
    def ref(self) -> str:
        """``name.tag``, or the name alone where the weights have no tag."""
        return f"{self.model}.{self.tag}" if self.tag else self.model

    @property
    def file_stem(self) -> str:
        """:attr:`ref` as the beginning of a file name; its tag may come from a file, so separators are replaced."""
        return re.sub(r"[/\\:]|^\.", "_", self.ref)

    @property
    def ignored(self) -> int:
        """The id of pixels without a class in masks of these classes."""
        return ignore_id(max(self.num_classes, len(self.labels.names)))

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain values; ``base`` and ``target`` only where there are any, for older versions."""
        defaults = {"base": {}, "target": dataclasses.asdict(Target())}
        return {key: value for key, value in dataclasses.asdict(self).items() if defaults.get(key) != value}

    def to_json(self) -> str:
        """JSON of all fields; tasks that label pixels add ``ignore_index``, the value of pixels without a class."""
        ignored = {"ignore_index": self.ignored} if self.task in TASKS and TASKS[self.task].labels_pixels else {}
        return json.dumps({**self.to_dict(), **ignored})

    @classmethod
    def from_json(cls, text: str) -> ModelInfo:
        """Parse the text of :meth:`to_json`.

        Raises:
            ConfigError: the text is not such JSON.
        """
        try:
            data = parse_json(text, MAX_JSON)
            if not isinstance(data, dict):
                raise TypeError("it is no JSON object")
            ignored = data.pop("ignore_index", None)
            parts = {"preprocess": _build(Preprocess, data["preprocess"]), "labels": _build(Labels, data["labels"])}
            parts["target"] = _build(Target, data.get("target", {}))
            info = _build(cls, data | parts)
            _check_description(info)
            if ignored not in (None, IGNORE, info.ignored):  # before masks of 16 bits, it was 255 for any classes
                raise ValueError(f"ignore_index={ignored!r:.60}, not {info.ignored}")
            return info
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError, ConfigError) as error:
            raise ConfigError(
                f"model description cannot be read ({error}); if a newer Foveal wrote the file, update this one"
            ) from None

    def replace(self, **changes: Any) -> ModelInfo:
        """A copy with other values of these fields."""
        return dataclasses.replace(self, **changes)


# ---- checking what a file says


def _build(cls: Any, data: Any) -> Any:
    """Make a dataclass of a JSON object, whose values must have the types of the defaults."""
    if not isinstance(data, dict):
        raise TypeError(f"{cls.__name__} is no JSON object")
    known = {entry.name for entry in dataclasses.fields(cls)}
    if unknown := next((key for key in data if key not in known), None):
        raise ValueError(f"unknown key {unknown[:60]!r}")
    empty = cls()
    for name, value in data.items():
        default = getattr(empty, name)
        if name in _OPTIONAL:
            valid = value is None or _OPTIONAL[name](value)
        elif isinstance(default, tuple):
            valid = isinstance(value, list) and all(map(_ITEMS.get(name, _is_number), value))
        elif isinstance(default, float):
            valid = _is_number(value)
        else:
            valid = isinstance(value, type(default)) and not (type(default) is int and isinstance(value, bool))
        if not valid:
            raise TypeError(f"{name}={value!r:.60} is no {'pair' if name == 'size' else type(default).__name__}")
    return cls(**data)


def _check_description(info: ModelInfo) -> None:
    """Check the values of a description, as far as no tensors are needed; ValueError names the wrong one."""
    if "." in info.model:  # create_model would load the weights of that tag
        raise ValueError(f"model {info.model[:60]!r} is no name of an architecture")
    if info.task and info.task not in TASKS:
        raise ValueError(f"task {info.task[:60]!r}{nearest(info.task[:60], TASKS)}")
    if info.task and (option := TASKS[info.task].option):
        if not _is_int(info.options.get(option)):
            raise ValueError(f"options: the task {info.task!r} needs a whole number {option}")
        _check_range(option, (info.options[option],), 1, MAX_SIDE)
    _check_range("num_classes", (info.num_classes,), 0, MAX_COUNT)
    _check_range("in_chans", (info.in_chans,), 1, MAX_COUNT)
    _check_range("output_stride", (info.output_stride,), 1, MAX_SIDE)
    _check_range("mask_thresholds", info.mask_thresholds, 0, 1)
    if len(info.mask_thresholds) not in (0, 2):
        raise ValueError(f"{len(info.mask_thresholds)} mask_thresholds: give two or none")
    names = info.labels.names
    if names and info.task and len(names) != info.num_classes:
        raise ValueError(f"{len(names)} class names for num_classes={info.num_classes}: give one per class")
    prepare = info.preprocess
    if prepare.resample.lower() not in FILTERS:
        raise ValueError(f"resample {prepare.resample[:60]!r}{nearest(prepare.resample[:60], FILTERS)}")
    if len(prepare.mean) not in (len(IMAGENET_MEAN), info.in_chans):
        raise ValueError(f"{len(prepare.mean)} means for in_chans={info.in_chans}: give one per channel")
    if prepare.pad and (prepare.size is None or prepare.size[0] != prepare.size[1]):
        raise ValueError(f"pad=True with size={prepare.size}: give a square")
    if not isinstance(info.notes.get("config", {}), dict):
        raise ValueError("notes: config is no JSON object")
    for key, value in info.options.items():
        if key in _ARGUMENTS:
            raise ValueError(f"option {key!r} is no option of an architecture")
        if not _is_option(value):
            raise ValueError(f"option {key[:60]}={value!r:.60}: give a number, a text, or a short list of them")


#: Arguments of ``create_model`` that are no options of an architecture.
_ARGUMENTS = ("name", "task", "num_classes", "in_chans", "features_only", "weights", "pretrained", "out_indices")


def _is_option(value: Any) -> bool:
    """Whether a value can be an option of ``create_model``: plain, finite and of moderate size."""
    if isinstance(value, dict):
        return len(value) <= 100 and all(isinstance(item, str) for item in value.values())
    if isinstance(value, list):
        return len(value) <= 1000 and all(_is_option(item) for item in value)
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or (abs(value) <= 1 << 31 if isinstance(value, int) else isinstance(value, str))


def _check_range(name: str, values: Sequence[Any], low: float, high: float) -> None:
    for value in values:
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not is_number or not low <= value <= high:  # pyright: ignore[reportOperatorIssue] - no float: it may overflow
            raise ConfigError(f"{name}={value!r:.60}: give a number from {low:g} to {high:g}")


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return isinstance(value, float) or _is_int(value)


def _are_ints(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(map(_is_int, value))


#: What values must be that may be ``None``.
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "size": lambda size: _are_ints(size, 2),
    "max_side": _is_int,
    "invalid": _is_number,
}

#: What the items of a list must be, if not numbers.
_ITEMS: dict[str, Callable[[Any], bool]] = {
    "names": lambda name: isinstance(name, str),
    "palette": lambda colour: _are_ints(colour, 3),
}


def _printable(text: str) -> str:
    """Replace control characters, which a terminal would act on; joiners inside words are kept."""
    return "".join(c if c.isprintable() or c in "\u200c\u200d" else "\ufffd" for c in text)


def say_licence(name: object, licence: str) -> None:
    """State on standard error, in one line, if ``licence`` (an SPDX name) forbids commercial use of weights."""
    if "NC" in licence.upper().split("-"):
        notice(f"{name}: weights under {licence}, for non-commercial use only")


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
