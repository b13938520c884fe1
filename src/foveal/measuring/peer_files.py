"""Run torch networks of others in ONNX Runtime and OpenVINO: they are exported once, for one size, and kept in a cache.

The files are in ``$XDG_CACHE_HOME/foveal/peers`` (``~/.cache/foveal/peers``), each under a hash of what decides its
content: the module that makes the network, the size of the images, and the versions of the packages.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, ExportError
from ..files import atomic_folder
from ..prediction.file_network import Settings
from ..prediction.openvino_runner import OpenVinoNetwork, check_type, openvino_core
from ..prediction.runtimes import RUNTIMES
from .candidates import Candidate

#: Runtimes that run exported peers.
FILE_RUNTIMES = ("onnxruntime", "openvino")
_INPUT = "images"
_PACKAGES = ("foveal", "onnxscript", "timm", "torch", "transformers")


def open_peer_file(
    candidate: Candidate, threads: int, model: Any, source: Path | None, image: NDArray[np.float32]
) -> Callable[[], NDArray[np.float32]]:
    """Export a torch network for the images of the benchmark, unless that was done before, and open the file.

    Args:
        candidate: its runtime is one of :data:`FILE_RUNTIMES`.
        threads: threads of the runtime.
        model: the network.
        source: file of the code that made it; a change of it makes earlier exports invalid.
        image: the images.

    Returns:
        A function that runs the network on the images and returns its first output.

    Raises:
        ConfigError: a device or a type that the runtime does not have.
        ExportError: the network cannot be exported.
        DependencyError: a package is missing.
    """
    runtime = RUNTIMES[candidate.runtime]
    if candidate.device != "cpu" or not runtime.runs("cpu", candidate.dtype):
        raise ConfigError(
            f"{candidate.ref}: {runtime.name} runs networks of others on cpu in {' or '.join(runtime.dtypes)}, not "
            f"with device={candidate.device}, dtype={candidate.dtype}"
        )
    path = _export(candidate, model, source, image)
    settings = Settings(candidate.ref, threads, "cpu", "float32" if candidate.dtype == "auto" else candidate.dtype)
    return _OPEN[candidate.runtime](path, settings, image)


def _export(candidate: Candidate, model: Any, source: Path | None, image: NDArray[np.float32]) -> Path:
    """The network as an ONNX file of fixed size, in the cache."""
    key = hashlib.sha256(repr((candidate.ref, candidate.task, image.shape, _versions())).encode())
    key.update(b"" if source is None else source.read_bytes())
    name = f"{candidate.ref.rpartition(':')[2]}-{'x'.join(map(str, image.shape))}-{key.hexdigest()[:20]}"
    folder = cache_folder() / name
    if not folder.exists():
        with atomic_folder(folder) as temporary:
            temporary.mkdir(exist_ok=True)
            _write(candidate.ref, model, image, temporary / "network.onnx")
    return folder / "network.onnx"


def cache_folder() -> Path:
    """Where exported networks are kept."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "foveal" / "peers"


def _versions() -> list[tuple[str, str]]:
    versions = []
    for package in _PACKAGES:
        try:
            versions.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:
            continue
    return versions


def _write(ref: str, model: Any, image: NDArray[np.float32], path: Path) -> None:
    """Write an ONNX file, whose weights are in a second one if they are too large for one."""
    import torch

    size = sum(p.numel() * p.element_size() for p in model.parameters())
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")  # of the tracer, about code of others
            program = torch.onnx.export(
                model.eval().float().cpu(), (torch.from_numpy(image),), input_names=[_INPUT], dynamo=True, verbose=False
            )
        assert program is not None
        program.save(path, external_data=size > 1 << 30)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # whatever the tracer raises for code of others
        reason = " ".join(str(error).split())[:200]
        raise ExportError(f"{ref}: it cannot be exported to ONNX ({type(error).__name__}: {reason})") from error


def _open_onnx(path: Path, settings: Settings, image: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    """Open the file as Foveal opens its own, but it may have weights in a second file: it was written here."""
    import onnxruntime

    from ..prediction.onnx_runner import session_options

    options = session_options(settings.threads)
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    output = session.get_outputs()[0].name
    return lambda: np.asarray(session.run([output], {_INPUT: image})[0])


def _open_openvino(path: Path, settings: Settings, image: NDArray[np.float32]) -> Callable[[], NDArray[np.float32]]:
    check_type(settings.name, settings.dtype)
    network = OpenVinoNetwork(openvino_core(settings.name).read_model(str(path)), settings)
    return lambda: network({_INPUT: image})[network.outputs[0]]


_OPEN: dict[str, Callable[..., Callable[[], NDArray[np.float32]]]] = {
    "onnxruntime": _open_onnx,
    "openvino": _open_openvino,
}
