"""Published evaluation protocols of public data sets: input size and interpolation, to reproduce published figures.

Both protocols are those of EfficientViT (Cai et al., ICCV 2023, arXiv 2205.14756). Whole images are evaluated one by
one, at one scale, without flips. The image is resized by cubic convolution without antialiasing, the logits are
upsampled bicubically from the network's stride to the label's size, and the argmax comes last. The data set defines the
labels, the class ids and the ignored pixels.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, nearest
from ..images.bands import RGB
from ..images.resampling import cubic_samples, resize_cubic
from ..info import Labels
from ..prediction.exported import NetworkRunner
from ..prediction.predictor import Predictor

_BAND = 16  # rows of upsampled logits in memory at a time


@dataclass(frozen=True)
class Protocol:
    """How publications evaluate on one data set.

    Attributes:
        name: name of the data set.
        num_classes: number of classes that are evaluated.
        split: the split that figures are published for.
        input_size: function from the (H, W) of an image to the (H, W) of the network's input.
    """

    name: str
    num_classes: int
    split: str
    input_size: Callable[[int, int], tuple[int, int]]

    def check(self, labels: Labels) -> None:
        """Check that the data has the protocol's number of classes.

        Raises:
            ConfigError: it has another number.
        """
        if len(labels.names) != self.num_classes:
            raise ConfigError(
                f"protocol {self.name!r} is for data with its {self.num_classes} classes, "
                f"this has {len(labels.names)}: use 'plain'"
            )

    def prepare_predictor(self, predictor: Predictor) -> Predictor:
        """The same model without the resizing of its own preprocessing.

        Raises:
            ConfigError: the model is an exported file that upsamples its logits itself, bilinearly, or is not for RGB
            images.
        """
        if isinstance(predictor.runner, NetworkRunner) and predictor.info.output_stride == 1:
            raise ConfigError(
                f"protocol {self.name!r} upsamples the logits bicubically, but this file upsamples them itself, "
                "bilinearly: export without --upsample"
            )
        if predictor.bands != RGB:
            raise ConfigError(f"protocol {self.name!r} is for RGB, this model takes {predictor.bands}: use 'plain'")
        own = dataclasses.replace(predictor.info.preprocess, size=None, max_side=None, crop_ratio=0.0)
        return Predictor(predictor.runner, predictor.info.replace(preprocess=own), predictor.runtime)

    def mask(self, predictor: Predictor, image: NDArray[np.uint8]) -> NDArray[np.integer]:
        """Class of every pixel, ``(H, W)``, of an ``(H, W, 3)`` image, by the result of :meth:`prepare_predictor`."""
        height, width = image.shape[:2]
        size = self.input_size(height, width)
        if size != (height, width):
            resized = resize_cubic(resize_cubic(image, size[1], axis=1), size[0], axis=0)
            image = np.clip(np.rint(resized), 0, 255).astype(np.uint8)
        return bicubic_argmax(predictor.segment(image).logits, (height, width))


def bicubic_argmax(logits: NDArray[np.floating], size: tuple[int, int]) -> NDArray[np.integer]:
    """Argmax over the classes of ``(C, h, w)`` logits upsampled bicubically to ``size`` (H, W).

    Works on bands of rows: the upsampled logits of 150 classes do not fit into memory for a large photograph.
    """
    wide = resize_cubic(logits, size[1], axis=2)
    scale = logits.shape[1] / size[0]
    mask = np.empty(size, np.uint8 if len(logits) <= 256 else np.int32)
    for top in range(0, size[0], _BAND):
        rows = np.arange(top, min(top + _BAND, size[0]))
        mask[rows] = cubic_samples(wide, (rows + 0.5) * scale - 0.5, axis=1).argmax(0)
    return mask


def _cityscapes_size(height: int, width: int) -> tuple[int, int]:
    return 1024, 2048


def _ade20k_size(height: int, width: int) -> tuple[int, int]:
    """Short side 512, long side rounded up to a multiple of 32, which changes the aspect ratio slightly."""
    if height < width:
        return 512, -(-width * 512 // (height * 32)) * 32
    return -(-height * 512 // (width * 32)) * 32, 512


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("cityscapes", 19, "val", _cityscapes_size),
        Protocol("ade20k", 150, "val", _ade20k_size),
    )
}
PLAIN = "plain"


def find_protocol(name: str) -> Protocol | None:
    """The protocol of a name; ``None`` for "plain", which keeps the predictor's own preprocessing.

    Raises:
        ConfigError: there is no protocol of this name.
    """
    if name == PLAIN:
        return None
    if name not in PROTOCOLS:
        raise ConfigError(f"unknown protocol {name!r}{nearest(name, (PLAIN, *PROTOCOLS))}")
    return PROTOCOLS[name]
