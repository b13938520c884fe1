"""Run TensorRT engines on NVIDIA GPUs; torch holds the GPU's memory.

An engine file begins with a description of the model: its length as four bytes, little endian, then the JSON. The
engine follows.
"""

from __future__ import annotations

import importlib
import importlib.util
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, DependencyError
from ..info import MAX_JSON
from .devices import gpu_possible
from .exported import PARTS, FileKind, open_exported
from .file_network import Content, FileNetwork, Outputs, Settings, first_line
from .runner import Opened, Runtime


class TensorRTNetwork:
    """An engine that TensorRT has loaded.

    Args:
        engine: content of the engine.
        settings: with the device, "cuda" or "cuda:N".

    Raises:
        CheckpointError: the engine is of another GPU or version, or damaged.
    """

    def __init__(self, engine: bytes, settings: Settings) -> None:
        try:
            trt: Any = importlib.import_module("tensorrt")
            import torch
        except ModuleNotFoundError as error:
            raise DependencyError(f"{settings.name}: TensorRT engines need {error.name}") from error
        self.device = torch.device(settings.device)
        with torch.cuda.device(self.device):
            self.engine: Any = trt.Runtime(trt.Logger(trt.Logger.ERROR)).deserialize_cuda_engine(engine)
            if self.engine is None:
                raise CheckpointError(
                    f"{settings.name}: this engine is of another GPU or version of TensorRT: export the model again"
                )
            self.context: Any = self.engine.create_execution_context()
        self._lock = threading.Lock()  # the context holds the shapes and addresses of one run
        names = [self.engine.get_tensor_name(i) for i in range(self.engine.num_io_tensors)]
        self.outputs = [name for name in names if self.engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT]

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> Outputs:
        with self._lock:
            return self._run(feed)

    def _run(self, feed: Mapping[str, NDArray[Any]]) -> Outputs:
        import torch

        tensors = {name: torch.from_numpy(np.ascontiguousarray(value)).to(self.device) for name, value in feed.items()}
        for name, tensor in tensors.items():
            if not self.context.set_input_shape(name, tuple(tensor.shape)):
                raise ValueError(f"{name} of {tuple(tensor.shape)} is outside the range of the engine")
        for name in self.outputs:
            tensors[name] = torch.empty(tuple(self.context.get_tensor_shape(name)), device=self.device)
        for name, tensor in tensors.items():
            self.context.set_tensor_address(name, tensor.data_ptr())
        stream = torch.cuda.current_stream(self.device)
        if not self.context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError("TensorRT could not run the engine")
        return {name: tensors[name].cpu().numpy() for name in self.outputs}


def with_description(engine: bytes, text: str) -> bytes:
    """The content of an engine file."""
    description = text.encode()
    return len(description).to_bytes(4, "little") + description + engine


def split_description(content: bytes, name: str) -> tuple[str, bytes]:
    """The description and the engine of a file.

    Raises:
        CheckpointError: there is no description.
    """
    size = int.from_bytes(content[:4], "little")
    if not 0 < size <= MAX_JSON or content[4:5] != b"{" or len(content) <= 4 + size:
        raise CheckpointError(f"{name}: no Foveal description at its start; export the model with foveal export")
    try:
        return content[4 : 4 + size].decode(), content[4 + size :]
    except UnicodeDecodeError as error:
        raise CheckpointError(f"{name}: its description is damaged ({error.reason}); export it again") from None


def open_tensorrt_network(files: Sequence[Content], settings: Settings) -> TensorRTNetwork:
    """Open an engine file; see :data:`foveal.prediction.file_network.OpenNetwork`."""
    content = files[0] if isinstance(files[0], bytes) else files[0].read_bytes()
    try:
        return TensorRTNetwork(split_description(content, settings.name)[1], settings)
    except RuntimeError as error:  # of CUDA
        raise CheckpointError(f"{settings.name}: TensorRT cannot load it ({first_line(error)})") from error


def tensorrt_network(path: Path, settings: Settings) -> FileNetwork:
    """Open an engine file."""
    return FileNetwork(open_tensorrt_network, [path], settings)


def read_tensorrt_description(path: Path) -> str | None:
    """The description in an engine file, see :attr:`foveal.prediction.exported.FileKind.describe`."""
    with path.open("rb") as file:
        return split_description(file.read(5 + MAX_JSON), str(path))[0]


def why_not() -> str:
    """The reason why engines cannot run here; empty if they can."""
    if missing := next((name for name in ("tensorrt", "torch") if importlib.util.find_spec(name) is None), ""):
        return f"{missing} is not installed"
    return "" if gpu_possible() else "no GPU found"


TENSORRT_FILES = FileKind(".engine", read_tensorrt_description, tensorrt_network, PARTS)


def open_tensorrt(ref: str, device: str, dtype: str, threads: int | None) -> Opened:
    """Open an engine; see :attr:`foveal.prediction.runner.Runtime.open`. It computes in the type it was built in.

    Raises:
        CheckpointError: as :func:`foveal.prediction.exported.open_exported`.
    """
    chosen = "cuda" if device == "auto" else device
    runner, info = open_exported(TENSORRT_FILES, Path(ref), Settings(ref, threads or 0, chosen))
    return Opened(runner, info, chosen, "engines run on the GPU that they were built on" if device == "auto" else "")


TENSORRT = Runtime(
    "tensorrt", suffixes=(".engine",), devices=("cuda",), dtypes=("float32", "float16"), open=open_tensorrt,
    why_not=why_not,
)  # fmt: skip
