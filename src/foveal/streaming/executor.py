"""What computes the pieces of a pass, and what the passes ask of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .passes import Pass
from .regions import Region
from .steps import Step

#: Reads a region of a map that is kept, or of the image, as ``(1, C, h, w)``.
Read = Callable[[str, Region], NDArray[Any]]
#: By name of a kept map or a sum, for pieces in which some places have no data: which places have some, ``(h, w)``.
Valid = Mapping[str, NDArray[np.bool_]]


class Executor(Protocol):
    """Computes the steps of the passes of one plan, in their order."""

    def begin(self, part: Pass) -> None:
        """Prepare a pass, after the sums of those before it were finished."""
        ...

    def piece(self, part: Pass, index: int, read: Read, valid: Valid) -> dict[str, NDArray[Any]]:
        """Compute a piece: of each kept map its values ``(h, w, C)``, of each sum that of the piece in float64.

        Args:
            part: the pass, for which :meth:`begin` was called.
            index: of the piece.
            read: reads what the piece needs.
            valid: places without data are left out of sums.

        Returns:
            The values by name, without maps that have no places in this piece.
        """
        ...

    def finish(self, name: str, total: NDArray[np.float64], places: int) -> None:
        """Take the sum over all ``places`` places that count."""
        ...

    def compute(self, functions: Sequence[Step]) -> None:
        """Compute steps without places."""
        ...

    def tensor(self, name: str) -> NDArray[Any]:
        """The result of a step without places."""
        ...
