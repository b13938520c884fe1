"""Run exported files with ExecuTorch on numpy arrays.

The Python package of ExecuTorch imports torch; on phones, its C++, Java and Swift libraries do not need it.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, ConfigError, DependencyError
from .devices import cpu_count, why_cpu
from .exported import open_exported
from .file_network import Outputs, Settings, first_line
from .runner import Opened, Runtime
from .sealed import SealedKind, sealed_files

PROGRAM = SealedKind("ExecuTorch", b"ET12")


class ExecuTorchNetwork:
    """The method ``forward`` of a program of ExecuTorch.

    Args:
        content: of the file.
        outputs: names of the outputs.
        settings: of the network.

    Raises:
        CheckpointError: ExecuTorch cannot load it.
        ConfigError: another number of threads than that of the networks that this process has open.
        DependencyError: ExecuTorch is not installed.
    """

    def __init__(self, content: bytes, outputs: Sequence[str], settings: Settings) -> None:
        runtime = _import(settings.name)
        _set_threads(settings)
        try:
            self._program = runtime.Runtime.get().load_program(content)
            self._forward = self._program.load_method("forward")
        except RuntimeError as error:
            raise CheckpointError(f"{settings.name}: ExecuTorch cannot load it ({first_line(error)})") from error
        self.outputs = tuple(outputs)
        meta = self._forward.metadata
        self.shapes = [meta.input_tensor_meta(index).sizes() for index in range(meta.num_inputs())]
        self._lock = threading.Lock()  # a method has one set of intermediate values
        _OPEN.add(self)

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> Outputs:
        import torch

        for shape, (name, value) in zip(self.shapes, feed.items(), strict=True):
            if len(shape) != value.ndim or any(a > b for a, b in zip(value.shape, shape, strict=True)):
                raise ValueError(f"the file takes {name} up to {tuple(shape)}")
        inputs = [torch.from_numpy(np.ascontiguousarray(value)) for value in feed.values()]
        with self._lock:
            results = self._forward.execute(inputs)
        return {name: result.numpy() for name, result in zip(self.outputs, results, strict=True)}


_OPEN: weakref.WeakSet[ExecuTorchNetwork] = weakref.WeakSet()


def _set_threads(settings: Settings) -> None:
    """Set the number of threads of the process, which all networks of ExecuTorch share.

    Raises:
        ConfigError: other networks are open with another number.
    """
    from executorch.extension.pybindings import portable_lib

    wanted, current = settings.threads or cpu_count(), portable_lib._threadpool_get_thread_count()
    if wanted == current:
        return
    if len(_OPEN):
        if not settings.threads:
            return
        raise ConfigError(
            f"{settings.name}: threads={wanted}: all networks of ExecuTorch in a process share their threads, and one "
            f"is open with {current}: give threads={current}"
        )
    portable_lib._unsafe_reset_threadpool(wanted)  # unsafe only while a network is open


EXECUTORCH_FILES = sealed_files(".pte", PROGRAM, ExecuTorchNetwork)


def open_executorch(ref: str, device: str, dtype: str, threads: int | None) -> Opened:
    """Open an exported file; see :attr:`foveal.prediction.runner.Runtime.open`. It runs in float32 on the CPU.

    Raises:
        CheckpointError: as :func:`foveal.prediction.exported.open_exported`.
        ConfigError: as :class:`ExecuTorchNetwork`.
    """
    runner, info = open_exported(EXECUTORCH_FILES, Path(ref), Settings(ref, threads or 0))
    return Opened(runner, info, "cpu", why_cpu(EXECUTORCH.name) if device == "auto" else "")


def _import(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # each import states that the interface is experimental
            from executorch import runtime
    except ModuleNotFoundError as error:
        raise DependencyError(f"{name}: .pte files need ExecuTorch: pip install 'foveal[executorch]'") from error
    return runtime


EXECUTORCH = Runtime("executorch", suffixes=(".pte",), devices=("cpu",), dtypes=("float32",), open=open_executorch)
