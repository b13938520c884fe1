"""What a runner is (a network that runs on numpy arrays), and what a runtime is (a library that opens runners)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from .. import assets
from ..errors import InputError
from ..info import ModelInfo
from ..weights.references import find_local

#: Names of types that :func:`foveal.load` accepts. "auto" is float32.
DTYPES = ("auto", "float32", "float16", "bfloat16")


class Runner(Protocol):
    """Runs a network: called with a batch of images it returns the network's output."""

    def __call__(self, batch: NDArray[np.float32], /) -> NDArray[np.float32]:
        """Run the network on ``(B, C, H, W)``, images after resizing and normalisation.

        Returns:
            The output of the task: logits ``(B, num_classes)`` when classifying, ``(B, num_classes, h, w)`` at the
            model's stride when segmenting; images ``(B, 3, scale * H, scale * W)`` when upscaling; embeddings
            ``(B, 256, 64, 64)`` of promptable models. A backbone returns the list of its maps.
        """
        ...


def check_finite(output: NDArray[np.float32]) -> None:
    """Refuse the output of a network if it has NaN or infinite values, from which no result follows.

    Raises:
        InputError: it has.
    """
    if not (np.isfinite(output.max()) and np.isfinite(output.min())):  # faster than isfinite of every value
        raise InputError(
            "the network's output has values that are not finite numbers: compute in float32, or check its weights"
        )


class PromptRunner(Protocol):
    """Runs a promptable model: called with an image it returns the embedding, for which :meth:`decode` draws masks.

    Attributes:
        at_once: largest number of prompts for one call of :meth:`decode`.
        encoder_id: fingerprint of the image encoder's weights; empty: unknown.
    """

    at_once: int
    encoder_id: str

    def __call__(self, batch: NDArray[np.float32], /) -> NDArray[np.float32]:
        """Encode an image: ``(1, 3, size, size) -> (1, 256, 64, 64)``."""
        ...

    def decode(
        self,
        embedding: NDArray[np.float32],
        coords: NDArray[np.float32],
        labels: NDArray[np.int64],
        masks: NDArray[np.float32] | None,
        least_iou: float,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Predict the masks of P prompts.

        Args:
            embedding: ``(1, 256, 64, 64)``.
            coords: ``(P, N, 2)`` x and y in the frame, where the image's long side is 1024. A box is two points.
            labels: ``(P, N)``: 1 and 0 for points, 2 and 3 for the corners of a box, -1 for no point.
            masks: ``(P, 1, 256, 256)`` mask logits, or ``None``.
            least_iou: where none of a prompt's three masks has a higher predicted IoU, its masks may be left empty.

        Returns:
            Mask logits ``(P, 4, 256, 256)`` and predicted IoU ``(P, 4)``: first the mask for an unambiguous prompt,
            then the three masks for an ambiguous one.
        """
        ...


class Opened(NamedTuple):
    """What a runtime returns for a reference.

    Attributes:
        runner: the network.
        info: description of the model.
        place: where it runs and, if the runtime has a choice, in which type: "cpu", "cuda, float16".
        reason: why there, in a few words, if it was left to the runtime: "no GPU found".
    """

    runner: Runner
    info: ModelInfo
    place: str
    reason: str = ""


@dataclass(frozen=True)
class Runtime:
    """A library that runs networks; :data:`foveal.prediction.runtimes.RUNTIMES` lists all of them.

    Attributes:
        name: as users write it.
        suffixes: of the exported files that it opens; empty: it opens checkpoints.
        devices: kinds of device that it runs on, for example "cpu"; empty: every device that torch knows.
        dtypes: types that it computes in.
        open: (reference or path of the exported file, device, dtype, number of threads or ``None`` for as many as this
            process may use CPUs, :func:`~foveal.prediction.devices.cpu_count`) -> runner and description.
        more_devices: further kinds of device that the installed build has on this machine; called only if one of them
            could decide.
        checkpoints: whether it opens checkpoints as well as exported files.
        graph_file: the file in the package that runs weights of this name without torch, as :mod:`.onnx_graphs`;
            ``None``: there is none.
        why_not: the reason why it cannot run on this machine, empty if it can.
    """

    name: str
    suffixes: tuple[str, ...]
    devices: tuple[str, ...]
    dtypes: tuple[str, ...]
    open: Callable[[str, str, str, int | None], Opened]
    more_devices: Callable[[], tuple[str, ...]] = tuple
    checkpoints: bool = False
    graph_file: Callable[[str], Path | None] = lambda ref: None
    why_not: Callable[[], str] = lambda: ""

    def runs(self, device: str, dtype: str) -> bool:
        """Whether the runtime has this device and type; "auto" leaves the choice to it."""
        return dtype in ("auto", *self.dtypes) and (device == "auto" or not self.devices or self._has(device))

    def _has(self, device: str) -> bool:
        kind = device.partition(":")[0]
        return kind in self.devices or kind in self.more_devices()

    def exported_file(self, ref: str) -> Path | None:
        """The exported file that ``ref`` names: a path, or weights in the package. ``None``: there is none."""
        if Path(ref).suffix in self.suffixes:
            return Path(ref)
        if ref in assets.WEIGHTS and find_local(ref) is None:
            return next((file for suffix in self.suffixes if (file := assets.path(ref, suffix)).exists()), None)
        return None
