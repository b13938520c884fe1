"""What a runner is: the network's computation behind a predictor."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Runner = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # (1, C, H, W) -> the network's output


class PromptRunner(Protocol):
    """What runs a promptable model: called with an image it encodes.

    Attributes:
        at_once: prompts that one run of the decoder should have at most.
        encoder_id: tells image encoders apart; empty: unknown.
    """

    at_once: int
    encoder_id: str

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """``(1, 3, size, size) -> (1, 256, 64, 64)``."""
        ...

    def decode(
        self,
        embedding: NDArray[np.float32],
        coords: NDArray[np.float32],
        labels: NDArray[np.int64],
        masks: NDArray[np.float32] | None,
        least_iou: float,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """``(P, N, 2)`` points in the frame and ``(P, N)`` labels, boxes as two of them, ``(P, 1, 256, 256)`` logits.

        Where no mask for an ambiguous prompt promises more than ``least_iou``, the masks may be left empty.

        Returns:
            Logits ``(P, 4, 256, 256)`` and predicted IoU ``(P, 4)``: the mask for a clear prompt, then the three for an
            ambiguous one.
        """
        ...
