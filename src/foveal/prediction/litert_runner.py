"""Run exported files with LiteRT (TensorFlow Lite) on numpy arrays, without torch."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, DependencyError
from .devices import cpu_count, why_cpu
from .exported import open_exported
from .file_network import Outputs, Settings, first_line
from .runner import Opened, Runtime
from .sealed import SealedKind, sealed_files

MODEL = SealedKind("LiteRT", b"TFL3")


class LiteRtNetwork:
    """The signatures of a model of LiteRT, one for each shape of its inputs.

    Args:
        content: of the file.
        outputs: names of the outputs, in their order.
        settings: of the network.

    Raises:
        CheckpointError: LiteRT cannot load it.
        DependencyError: LiteRT is not installed.
    """

    def __init__(self, content: bytes, outputs: Sequence[str], settings: Settings) -> None:
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ModuleNotFoundError as error:
            raise DependencyError(
                f"{settings.name}: .tflite files need LiteRT: pip install 'foveal[litert]'"
            ) from error
        try:
            interpreter = Interpreter(model_content=content, num_threads=settings.threads or cpu_count())
            self._runs = [interpreter.get_signature_runner(name) for name in interpreter.get_signature_list()]
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"{settings.name}: LiteRT cannot load it ({first_line(error)})") from error
        self.shapes = [
            {name: tuple(map(int, detail["shape"])) for name, detail in run.get_input_details().items()}
            for run in self._runs
        ]
        self.outputs = tuple(outputs)
        self._lock = threading.Lock()  # an interpreter has one set of intermediate values

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> Outputs:
        given = {name: value.shape for name, value in feed.items()}
        if given not in self.shapes:
            raise ValueError(f"the file takes {' or '.join(map(_words, self.shapes))}")
        with self._lock:
            run = self._runs[self.shapes.index(given)]
            results = run(**{name: np.ascontiguousarray(value) for name, value in feed.items()})
        return {name: results[name] for name in self.outputs}


def _words(shapes: dict[str, tuple[int, ...]]) -> str:
    return " and ".join(str(shape) for shape in shapes.values())


LITERT_FILES = sealed_files(".tflite", MODEL, LiteRtNetwork)


def open_litert(ref: str, device: str, dtype: str, threads: int | None) -> Opened:
    """Open an exported file; see :attr:`foveal.prediction.runner.Runtime.open`. It runs in float32 on the CPU.

    Raises:
        CheckpointError: as :func:`foveal.prediction.exported.open_exported`.
    """
    runner, info = open_exported(LITERT_FILES, Path(ref), Settings(ref, threads or 0))
    return Opened(runner, info, "cpu", why_cpu(LITERT.name) if device == "auto" else "")


LITERT = Runtime("litert", suffixes=(".tflite",), devices=("cpu",), dtypes=("float32",), open=open_litert)
