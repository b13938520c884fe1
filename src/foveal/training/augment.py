"""The augmentations that the settings add: by name, and a function of the user's own."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from ..data.augmentations import AUGMENTATIONS, MIXES, TRANSFORMS, Fill, Mixed
from ..data.warping import ignored_in
from ..errors import ConfigError, FovealError, nearest
from .common_settings import CommonSettings

Own = Callable[[Any, Any, np.random.Generator], tuple[Any, Any]]


def check_augment(values: Mapping[str, Any], task: str) -> None:
    """Check the setting ``augment``.

    Raises:
        ConfigError: a name is unknown or for other tasks, or a value is out of range.
    """
    for name, value in values.items():
        if name not in AUGMENTATIONS:
            raise ConfigError(f"augment: there is no {name!r}{nearest(name, AUGMENTATIONS)}")
        augmentation = AUGMENTATIONS[name]
        if task not in augmentation.tasks:
            raise ConfigError(f"augment: {name} is for {' and '.join(augmentation.tasks)}, not {task!r}: leave it out")
        if not augmentation.valid.contains(value):
            raise ConfigError(f"augment: {name}={value!r} is out of range: give {augmentation.valid.text}")
    if (total := sum(mix_probabilities(values).values())) > 1 + 1e-6:
        raise ConfigError(f"augment: the probabilities of {' and '.join(MIXES)} add up to {total:g}: give at most 1")


def import_function(reference: str) -> Own:
    """Import ``module:function``, from the working directory, too.

    Raises:
        ConfigError: it cannot be imported, or is no function.
    """
    module, _, name = reference.partition(":")
    if not module or not name:
        raise ConfigError(f"transform={reference!r}: give module:function, for example augment:darker for augment.py")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # last, so that it hides no package
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # whatever the module raises
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        raise ConfigError(f"transform={reference!r} cannot be imported: {reason}") from error
    if not callable(function):
        raise ConfigError(f"transform={reference!r} is a {type(function).__name__}, not a function")
    return cast("Own", function)


@dataclass(frozen=True)
class Augment:
    """What is done to a training sample after its crop.

    Attributes:
        values: strength of each augmentation by name.
        fill: colour of pixels outside the image, one value per channel.
        reference: the user's own function as ``module:function``; empty for none. It gets an image ``(H, W, C)``, the
            mask ``(H, W)`` or the class, and a random generator, and returns the first two with the same sizes and
            types. It comes last.
        classes: number of classes, which the user's function must keep to.
    """

    values: Mapping[str, Any]
    fill: Fill
    reference: str = ""
    classes: int = 0

    @classmethod
    def of(cls, config: CommonSettings, fill: Fill, classes: int) -> Augment:
        """The augmentations of a run.

        Raises:
            ConfigError: the user's function cannot be imported.
        """
        if config.transform:
            import_function(config.transform)
        return cls(dict(config.augment), fill, config.transform, classes)

    @property
    def mixes(self) -> list[str]:
        """The augmentations that make one image of two; one of them is drawn for each sample."""
        return [name for name in MIXES if name in self.values]

    def __call__(self, image: NDArray[Any], target: Any, rng: np.random.Generator) -> tuple[NDArray[Any], Any]:
        """Augment an image and its mask or class.

        Raises:
            ConfigError: the user's function raised an error, or returned something else than it got, or ids that are no
                classes of the data.
        """
        mask = target if isinstance(target, np.ndarray) else None
        for name, transform in TRANSFORMS.items():
            if name in self.values:
                image, mask = transform.apply(image, mask, self.values[name], rng, self.fill)
        target = target if mask is None else np.ascontiguousarray(mask)
        image = np.ascontiguousarray(image)
        return self._apply_own(image, target, rng) if self.reference else (image, target)

    def _apply_own(self, image: NDArray[Any], target: Any, rng: np.random.Generator) -> tuple[NDArray[Any], Any]:
        try:
            changed, label = import_function(self.reference)(image.copy(), _copy(target), rng)
        except FovealError:
            raise
        except Exception as error:  # whatever the function raises
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise ConfigError(f"transform={self.reference!r} failed: {reason}") from error
        for what, old, new in (("image", image, changed), ("mask or class", target, label)):
            if _kind(new) != _kind(old):
                raise ConfigError(f"transform={self.reference!r} made {_kind(new)} of the {what}, {_kind(old)}")
        self._check_classes(label)
        return np.ascontiguousarray(changed), label

    def _check_classes(self, label: Any) -> None:
        """Check that the user's function returned classes of the data.

        Raises:
            ConfigError: it returned another number.
        """
        valid = f"the data has {self.classes} classes, 0 to {self.classes - 1}"
        if not isinstance(label, np.ndarray):
            if not 0 <= label < self.classes:
                raise ConfigError(f"transform={self.reference!r} returned the class {label}: {valid}")
            return
        ignored = ignored_in(label)
        wrong = label[(label >= self.classes) & (label != ignored)]
        if wrong.size:
            raise ConfigError(
                f"transform={self.reference!r} returned a mask with {wrong[0]}: {valid}, and {ignored} is for ignored "
                "pixels"
            )

    def draw_mix(self, rng: np.random.Generator) -> str:
        """Draw one of :attr:`mixes`; empty if there is none, or by their probabilities none for this image."""
        draw = rng.random() if self.mixes else 1.0
        for name, probability in mix_probabilities(self.values).items():
            if draw < probability:
                return name
            draw -= probability
        return ""

    def mix(self, name: str, first: NDArray[Any], second: NDArray[Any], rng: np.random.Generator) -> Mixed:
        """Make one image of two by the augmentation ``name``, one of :attr:`mixes`."""
        return MIXES[name].apply(first, second, mix_parameter(self.values[name]), rng)


def mix_parameter(value: Any) -> float:
    """The parameter of the Beta distribution, of ``parameter`` or ``[parameter, probability]``."""
    return float(value[0] if isinstance(value, list | tuple) else value)


def mix_probabilities(values: Mapping[str, Any]) -> dict[str, float]:
    """The probability of each augmentation that mixes two images; those without one share what the others leave."""
    given = {name: values[name] for name in MIXES if name in values}
    fixed = {name: float(value[1]) for name, value in given.items() if isinstance(value, list | tuple)}
    rest = max(0.0, 1 - sum(fixed.values()))
    return {name: fixed.get(name, rest / max(1, len(given) - len(fixed))) for name in given}


def _copy(target: Any) -> Any:
    return target.copy() if isinstance(target, np.ndarray) else target


def _kind(value: Any) -> str:
    """A value in words: size and type of arrays, the type of others."""
    if isinstance(value, np.ndarray):
        return f"an array {value.shape} of {value.dtype}"
    return "a whole number" if isinstance(value, int | np.integer) else f"a {type(value).__name__}"
