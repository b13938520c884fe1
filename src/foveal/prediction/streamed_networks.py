"""What computes an image in pieces: a model of torch, or a network that the package describes for ONNX Runtime."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .. import assets
from ..errors import CheckpointError, ConfigError, DependencyError, InputError
from ..files import parse_json
from ..info import ModelInfo
from ..streaming.executor import Executor
from ..streaming.passes import PIECE_BYTES, Plan, coarsest_stride, plan
from ..streaming.steps import Program
from ..streaming.stored import stored_program
from ..weights.arrays import read_arrays
from .devices import torch_installed
from .file_network import FileNetwork
from .onnx_pieces import OnnxExecutor
from .torch_runner import TorchRunner

RUNTIMES = ("torch", "native", "onnxruntime")  #: what computes the pieces
STEPS = ".steps.json"  #: end of the name of a described network, see :mod:`foveal.streaming.stored`
_ON_GPU = 1 << 30  # bytes for the maps of a piece


class StreamedNetwork(Protocol):
    """A network that can be computed in pieces.

    Attributes:
        memory: bytes for the maps of a piece.
        place: where and in which type it computes.
    """

    memory: int
    place: str

    def program(self, height: int, width: int, channels: int = 3) -> Program:
        """The steps that compute an image of this size.

        Raises:
            ConfigError: a layer that cannot be computed in pieces.
            InputError: an image smaller than the network takes.
        """
        ...

    def executor(self, plan: Plan) -> Executor:
        """What computes the pieces of the passes."""
        ...

    def digest(self) -> str:
        """A fingerprint of the weights: it changes when they change."""
        ...


class TorchNetwork:
    """The model of a runner, recorded as a graph.

    Args:
        runner: of the model.
        native: whether the native engine computes the convolutions; it is compiled if it is not yet.

    Raises:
        ConfigError: the native engine, and not float32 on the CPU.
        DependencyError: the native engine cannot be built.
    """

    def __init__(self, runner: TorchRunner, native: bool = False) -> None:
        import torch

        from ..engine.library import load_library

        self.runner, self.native = runner, native
        on_cpu = runner.device.type == "cpu"
        self.memory = PIECE_BYTES if on_cpu else _ON_GPU  # what fits into caches is too little for a GPU
        self.place = f"{runner.device}, {runner.dtype}"
        if native:
            if not on_cpu or runner.dtype != torch.float32:
                raise ConfigError(
                    f"runtime='native' computes in float32 on the CPU, and the model is {runner.dtype} on "
                    f"{runner.device}"
                )
            load_library()

    def program(self, height: int, width: int, channels: int = 3) -> Program:
        from ..streaming.trace import derive

        return derive(self.runner.model, height, width, channels=channels, **self.runner.options)

    def executor(self, plan: Plan) -> Executor:
        from ..streaming.torch_executor import TorchExecutor

        return TorchExecutor(plan, self.native)

    def digest(self) -> str:
        digest = hashlib.sha256()
        for name, tensor in self.runner.model.state_dict().items():
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(tensor.detach().float().cpu().numpy()).tobytes())
        return digest.hexdigest()


class DescribedNetwork:
    """A network of the package, of which it has the steps and the weights.

    Args:
        steps: file of the description; the weights are beside it.
        network: opened by ONNX Runtime, whose settings hold.
    """

    memory = PIECE_BYTES

    def __init__(self, steps: Path, network: FileNetwork) -> None:
        self.steps, self.settings = steps, network.settings
        self.place = f"{network.settings.device}, ONNX Runtime"

    @cached_property
    def _contents(self) -> tuple[bytes, bytes]:
        weights = self.steps.with_name(self.steps.name.removesuffix(STEPS) + ".safetensors")
        try:
            return self.steps.read_bytes(), weights.read_bytes()
        except OSError as error:
            raise CheckpointError(f"{error.filename}: cannot be read ({error.strerror}): install again") from error

    def program(self, height: int, width: int, channels: int = 3) -> Program:
        steps, weights = self._contents
        description: Any = parse_json(steps)
        return stored_program(description, height, width, read_arrays(weights, self.settings.name))

    def executor(self, plan: Plan) -> Executor:
        return OnnxExecutor(plan, plan.program.weights, self.settings)

    def digest(self) -> str:
        return hashlib.sha256(b"".join(self._contents)).hexdigest()


def runtime_of(ref: str, runtime: str = "auto") -> str:
    """The runtime for :func:`foveal.load` of a model whose images are computed in pieces.

    Args:
        ref: as for :func:`foveal.load`.
        runtime: one of :data:`RUNTIMES`, or "auto": torch where it is installed, otherwise ONNX Runtime.

    Raises:
        ConfigError: an unknown runtime.
        DependencyError: torch is needed and not installed.
    """
    _check_name(runtime)
    if runtime == "onnxruntime":
        return "onnxruntime"
    if torch_installed():
        return "torch"
    if ref in _described():
        if runtime == "auto":
            return "onnxruntime"
        raise DependencyError(
            f"{ref}: exact streaming with {runtime} needs torch: pip install 'foveal[torch]'; ONNX Runtime needs none: "
            "leave the runtime out"
        )
    raise DependencyError(
        f"{ref}: exact streaming divides networks with torch: pip install 'foveal[torch]'; without it, "
        f"{', '.join(_described())} can be used"
    )


class HasRunner(Protocol):
    """What is asked of a predictor."""

    runner: Any
    info: ModelInfo
    runtime: str


def described_steps(runner: Any) -> Path | None:
    """The description of the network of a runner, which is weights of the package in ONNX Runtime; ``None``: none."""
    file = getattr(runner, "file", None)
    path = file.files[0] if isinstance(file, FileNetwork) else None
    if not isinstance(path, Path) or path.suffix != ".onnx" or path.parent != assets.FOLDER.absolute():
        return None
    steps = path.with_suffix(STEPS)
    return steps if steps.is_file() else None


def network_of(predictor: HasRunner, runtime: str = "auto") -> StreamedNetwork:
    """The network of a predictor, to be computed in pieces by one of :data:`RUNTIMES`; "auto": by its own runtime.

    Raises:
        ConfigError: an unknown runtime, or one that cannot compute this network in pieces.
        DependencyError: the native engine cannot be built.
    """
    _check_name(runtime)
    runner: Any = predictor.runner
    if isinstance(runner, TorchRunner) and runtime != "onnxruntime":
        return TorchNetwork(runner, runtime == "native")
    steps = described_steps(runner)
    if steps is not None and runtime in ("auto", "onnxruntime"):
        return DescribedNetwork(steps, predictor.runner.file)
    if runtime == "onnxruntime" and isinstance(runner, TorchRunner) and predictor.info.ref in _described():
        raise ConfigError(f"{predictor.info.ref} was loaded with torch: load it with runtime='onnxruntime'")
    if runtime == "onnxruntime":
        raise ConfigError(
            f"exact streaming with ONNX Runtime is for {', '.join(_described())}, not for {predictor.info.ref}"
        )
    raise ConfigError(
        f"exact streaming needs the torch runtime: {predictor.info.ref} runs with {predictor.runtime.split()[0]}; "
        "load a checkpoint with runtime='torch'"
    )


def plan_pieces(program: Program, tile: int | None, network: StreamedNetwork) -> Plan:
    """The passes that compute a program of a network in pieces.

    Args:
        program: the steps.
        tile: side of the pieces in pixels; ``None``: what fits into the network's memory.
        network: that computes them.

    Raises:
        InputError: a side that is no multiple of the coarsest stride of the maps.
    """
    coarsest = coarsest_stride(program)
    if tile is not None and (tile < coarsest or tile % coarsest):
        nearest = max(coarsest, round(tile / coarsest) * coarsest)
        raise InputError(f"tile={tile}: pieces of this model have multiples of {coarsest} pixels: give {nearest}")
    return plan(program, side=tile, memory=network.memory)


def _check_name(runtime: str) -> None:
    if runtime not in ("auto", *RUNTIMES):
        raise ConfigError(f"runtime={runtime!r}: give {', '.join(RUNTIMES[:-1])} or {RUNTIMES[-1]}")


def _described() -> list[str]:
    """The weights of the package that ONNX Runtime computes in pieces."""
    return [ref for ref in assets.WEIGHTS if assets.path(ref, STEPS).is_file()]
