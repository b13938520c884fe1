"""Run exported files with OpenVINO on numpy arrays, without torch."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, ConfigError, DependencyError
from ..info import KEY
from .devices import cpu_count, why_cpu
from .exported import FileKind, is_int8, open_exported
from .file_network import Content, FileNetwork, Outputs, Settings, first_line
from .runner import Opened, Runtime

if TYPE_CHECKING:
    import openvino

#: Names of types in OpenVINO.
_TYPES = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}


class OpenVinoNetwork:
    """A network that OpenVINO compiled for the CPU.

    Args:
        model: the network.
        settings: of the compiled network. OpenVINO's own default computes in bfloat16 where the CPU has it; here the
            type is what the caller chose.

    Raises:
        CheckpointError: OpenVINO cannot compile it.
    """

    def __init__(self, model: openvino.Model, settings: Settings) -> None:
        options = {
            "INFERENCE_PRECISION_HINT": _TYPES[settings.dtype],
            "INFERENCE_NUM_THREADS": settings.threads or cpu_count(),
            "NUM_STREAMS": 1,
            "ENABLE_CPU_PINNING": False,  # the process may share its CPUs with others
        }
        try:
            self.compiled = openvino_core(settings.name).compile_model(model, "CPU", options)
        except RuntimeError as error:
            raise CheckpointError(f"{settings.name}: OpenVINO cannot compile it ({first_line(error)})") from error
        self.outputs = [output.any_name for output in self.compiled.outputs]
        self._requests: deque[Any] = deque()  # free ones: each runs one call at a time

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> Outputs:
        try:
            request = self._requests.pop()
        except IndexError:
            request = self.compiled.create_infer_request()
        results = request.infer(dict(feed), share_inputs=True)
        outputs = {name: np.array(results[i]) for i, name in enumerate(self.outputs)}
        self._requests.append(request)
        return outputs


def open_openvino_network(files: Sequence[Content], settings: Settings) -> OpenVinoNetwork:
    """Open the graph and the weights of a network; see :data:`foveal.prediction.file_network.OpenNetwork`."""
    return OpenVinoNetwork(read_model(files, settings.name), settings)


def read_model(files: Sequence[Content], name: str) -> openvino.Model:
    """Read the graph (.xml) and the weights (.bin) of a network.

    Raises:
        CheckpointError: OpenVINO cannot read them.
        DependencyError: OpenVINO is not installed.
    """
    core = openvino_core(name)
    graph, weights = (file if isinstance(file, bytes) else str(file) for file in files)
    try:
        return core.read_model(graph, weights)
    except RuntimeError as error:
        raise CheckpointError(f"{name}: OpenVINO cannot read it ({first_line(error)})") from error


def openvino_network(path: Path, settings: Settings) -> FileNetwork:
    """Open the file of a graph, and that of its weights in the same folder.

    Raises:
        CheckpointError: as :func:`read_model` and :class:`OpenVinoNetwork`, or the file of the weights is missing.
    """
    return FileNetwork(open_openvino_network, _files(path), settings)


def _files(path: Path) -> list[Path]:
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise CheckpointError(f"{path}: {weights.name}, which has its weights, is missing in its folder")
    return [path, weights]


def read_openvino_description(path: Path) -> str | None:
    """The description in a file, see :attr:`foveal.prediction.exported.FileKind.describe`."""
    model = read_model(_files(path), str(path))
    return str(model.get_rt_info([KEY]).value) if model.has_rt_info([KEY]) else None


OPENVINO_FILES = FileKind(".xml", read_openvino_description, openvino_network)


def open_openvino(ref: str, device: str, dtype: str, threads: int | None) -> Opened:
    """Open an exported file; see :attr:`foveal.prediction.runner.Runtime.open`. "auto" is float32.

    Raises:
        CheckpointError: as :func:`foveal.prediction.exported.open_exported`.
        ConfigError: a type that OpenVINO does not compute in on this CPU.
    """
    chosen = "float32" if dtype == "auto" else dtype
    check_type(ref, chosen)
    runner, info = open_exported(OPENVINO_FILES, Path(ref), Settings(ref, threads or 0, "cpu", chosen))
    return Opened(
        runner, info, f"cpu, {'int8' if is_int8(info) else chosen}", why_cpu(OPENVINO.name) if device == "auto" else ""
    )


def check_type(ref: str, dtype: str) -> None:
    """Refuse a type that OpenVINO would silently replace by float32 on this CPU.

    Raises:
        ConfigError: OpenVINO does not compute in ``dtype`` here.
    """
    if dtype == "float32":
        return
    able = openvino_core(ref).get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if {"bfloat16": "BF16", "float16": "FP16"}[dtype] not in able:
        raise ConfigError(f"{ref}: OpenVINO does not compute in {dtype} on this CPU; leave dtype out for float32")


_CORES: dict[int, openvino.Core] = {}  # by process: a forked one gets its own
_LOCK = threading.Lock()


def _after_fork() -> None:
    global _LOCK
    _LOCK = threading.Lock()  # another thread of the parent may hold the old one


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


def openvino_core(name: str) -> openvino.Core:
    """OpenVINO's core, one for all networks of a process, which is never freed.

    The CPU plugin of a core gives the thread that loads it a stack for signals, and unmaps that when the core is freed.
    If another thread frees the core, as garbage collection may, the next signal, such as that of Ctrl-C or of a child
    that ends, finds no stack and ends the process (OpenVINO 2026.4).

    Raises:
        DependencyError: OpenVINO is not installed; the message begins with ``name``.
    """
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise DependencyError(f"{name}: .xml files need OpenVINO: pip install 'foveal[openvino]'") from error
    with _LOCK:
        if os.getpid() not in _CORES:
            _CORES[os.getpid()] = openvino.Core()
        return _CORES[os.getpid()]


OPENVINO = Runtime(
    "openvino", suffixes=(".xml",), devices=("cpu",), dtypes=("float32", "float16", "bfloat16"), open=open_openvino
)
