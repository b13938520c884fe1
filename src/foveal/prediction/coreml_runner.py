"""Run Core ML packages on Apple's computers, without torch: on the CPU, the GPU and the Neural Engine."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, DependencyError
from ..info import KEY
from .exported import FileKind, open_exported
from .file_network import Content, FileNetwork, Outputs, Settings, first_line
from .runner import Opened, Runtime

#: The files of a package, in its folder.
_FILES = ("Manifest.json", "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin")


class CoreMLNetwork:
    """A package that Core ML has compiled.

    Args:
        path: of the package.
        settings: the device "mps" stands for the GPU and the Neural Engine.

    Raises:
        CheckpointError: Core ML cannot load it.
    """

    def __init__(self, path: Path, settings: Settings) -> None:
        coremltools = _import(settings.name)
        units = coremltools.ComputeUnit
        try:
            self.model = coremltools.models.MLModel(
                str(path), compute_units=units.CPU_ONLY if settings.device == "cpu" else units.ALL
            )
        except Exception as error:  # Core ML's own exceptions are not public
            raise CheckpointError(f"{settings.name}: Core ML cannot load it ({first_line(error)})") from error
        self.outputs = [feature.name for feature in self.model.get_spec().description.output]

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> Outputs:
        results = self.model.predict({name: np.ascontiguousarray(value) for name, value in feed.items()})
        return {name: np.asarray(results[name], np.float32) for name in self.outputs}


def open_coreml_network(files: Sequence[Content], settings: Settings) -> CoreMLNetwork:
    """Open the files of a package; see :data:`foveal.prediction.file_network.OpenNetwork`."""
    if isinstance(files[0], Path):
        return CoreMLNetwork(files[0] if files[0].is_dir() else files[0].parent, settings)
    with tempfile.TemporaryDirectory() as folder:  # Core ML copies what it needs
        for name, content in zip(_FILES, files, strict=True):
            path = Path(folder) / "model.mlpackage" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content if isinstance(content, bytes) else content.read_bytes())
        return CoreMLNetwork(Path(folder) / "model.mlpackage", settings)


def coreml_network(path: Path, settings: Settings) -> FileNetwork:
    """Open a package.

    Raises:
        CheckpointError: a file of the package is missing, or Core ML cannot load it.
    """
    return FileNetwork(open_coreml_network, _files(path), settings)


def read_coreml_description(path: Path) -> str | None:
    """The description in a package, see :attr:`foveal.prediction.exported.FileKind.describe`."""
    files = _files(path)
    coremltools = _import(str(path))
    try:
        spec = coremltools.utils.load_spec(str(files[1]))
    except Exception as error:  # of protobuf, which is not imported here
        raise CheckpointError(f"{path}: not a Core ML model ({first_line(error)})") from error
    return dict(spec.description.metadata.userDefined).get(KEY)


def _files(path: Path) -> list[Path]:
    files = [path / name for name in _FILES]
    if missing := next((file for file in files if not file.is_file()), None):
        raise CheckpointError(f"{path}: not a Core ML package, it has no {missing.relative_to(path)}")
    return files


def _import(name: str) -> Any:
    try:
        import coremltools
    except ModuleNotFoundError as error:
        raise DependencyError(f"{name}: .mlpackage files need coremltools: pip install 'foveal[coreml]'") from error
    return coremltools


def why_not() -> str:
    """The reason why Core ML cannot run here; empty if it can."""
    return "" if sys.platform == "darwin" else "Core ML runs on macOS only"


COREML_FILES = FileKind(".mlpackage", read_coreml_description, coreml_network)


def open_coreml(ref: str, device: str, dtype: str, threads: int | None) -> Opened:
    """Open a package; see :attr:`foveal.prediction.runner.Runtime.open`. It computes in the type it was written in.

    Raises:
        CheckpointError: as :func:`foveal.prediction.exported.open_exported`.
        DependencyError: not on macOS, or without coremltools.
    """
    chosen = "mps" if device == "auto" else device
    runner, info = open_exported(COREML_FILES, Path(ref), Settings(ref, threads or 0, chosen))
    return Opened(runner, info, chosen, "Core ML chooses among CPU, GPU and Neural Engine" if device == "auto" else "")


COREML = Runtime(
    "coreml", suffixes=(".mlpackage",), devices=("cpu", "mps"), dtypes=("float32", "float16"), open=open_coreml,
    why_not=why_not,
)  # fmt: skip
