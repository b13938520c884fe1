"""The list of runtimes, and which of them opens a reference."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError, DependencyError, nearest
from ..text import notice
from ..weights.references import find_local
from .coreml_runner import COREML
from .devices import torch_gpu, torch_installed
from .executorch_runner import EXECUTORCH
from .litert_runner import LITERT
from .native_runner import NATIVE
from .onnx_runner import ONNX_RUNTIME
from .openvino_runner import OPENVINO
from .runner import DTYPES, Runtime
from .tensorrt_runner import TENSORRT
from .torch_runner import TORCH

#: In the order in which runtime="auto" tries them: exported files first, since they start faster and need no torch.
#: Where a GPU is to be used, runtimes of checkpoints come first.
RUNTIMES = {
    runtime.name: runtime for runtime in (NATIVE, ONNX_RUNTIME, OPENVINO, LITERT, EXECUTORCH, COREML, TENSORRT, TORCH)
}


def check_names(runtime: str, dtype: str) -> None:
    """Refuse unknown names.

    Raises:
        ConfigError: an unknown runtime or dtype; the message has the nearest one.
    """
    for kind, name, valid in (("runtime", runtime, ("auto", *RUNTIMES)), ("dtype", dtype, DTYPES)):
        if name not in valid:
            raise ConfigError(f"unknown {kind} {name!r}{nearest(name, valid)}")


def choose(ref: str, runtime: str = "auto", device: str = "auto", dtype: str = "auto") -> tuple[Runtime, str]:
    """Find the runtime for a reference.

    Args:
        ref: as for :func:`foveal.load`.
        runtime: a name of :data:`RUNTIMES`, or "auto": the first one that opens ``ref`` and has the device and type. If
            ``ref`` is both an exported file and a checkpoint, that is torch where a GPU is named or found, or another
            type than float32 is named.
        device: "auto" or a device.
        dtype: one of :data:`~foveal.prediction.runner.DTYPES`.

    Returns:
        The runtime, and what it opens: ``ref`` or the path of the exported file.

    Raises:
        ConfigError: an unknown runtime or dtype, or the runtime cannot open ``ref`` or lacks the device or type.
    """
    check_names(runtime, dtype)
    candidates = RUNTIMES.values() if runtime == "auto" else [RUNTIMES[runtime]]
    openable = [
        (candidate, target)
        for candidate in candidates
        if (target := _target(candidate, ref, asked=runtime != "auto")) is not None
    ]
    if not openable:
        raise ConfigError(_why_not_opened(ref, RUNTIMES[runtime]))
    if len(openable) > 1 and (wants_gpu(device) or (torch_installed() and dtype not in ("auto", "float32"))):
        openable.sort(key=lambda entry: bool(entry[0].suffixes))
    missing: list[str] = []
    for candidate, target in openable:
        if not candidate.runs(device, dtype):
            continue
        if reason := candidate.why_not():
            missing.append(f"{candidate.name} cannot run here: {reason}")
            continue
        for line in missing:
            notice(f"{line}; using {candidate.name}")
        return candidate, target
    if missing:
        raise DependencyError(f"{ref}: {'; '.join(missing)}")
    limits = "; ".join(_limits(candidate) for candidate, _ in openable)
    asked = ", ".join(f"{name}={value!r}" for name, value in _named(device, dtype).items())
    raise ConfigError(f"{ref}: {limits}, not with {asked}: leave it out, or load the checkpoint with torch")


def wants_gpu(device: str) -> bool:
    """Whether torch is installed and a GPU is to be used: one is named, or "auto" finds one."""
    return torch_installed() and (bool(torch_gpu()) if device == "auto" else device != "cpu")


def explain(chosen: Runtime, target: str, ref: str, device: str, dtype: str) -> str:
    """Why :func:`choose` with ``runtime="auto"`` gives ``chosen`` and ``target``, in a few words."""
    others = [other for other in RUNTIMES.values() if other is not chosen and _target(other, ref, asked=False)]
    if chosen.suffixes:
        return "the exported file needs no torch" if others else f"it runs {Path(target).suffix} files"
    if not others:
        return "it runs checkpoints"
    if not any(other.runs(device, dtype) for other in others):
        missing = f"on {device}" if all(other.runs("auto", dtype) for other in others) else f"in {dtype}"
        return f"{' and '.join(other.name for other in others)} cannot run {missing}"
    return "it runs the checkpoint " + ("on the GPU" if wants_gpu(device) else f"in {dtype}")


def _named(device: str, dtype: str) -> dict[str, str]:
    """The options that are not left to the runtime."""
    return {name: value for name, value in (("device", device), ("dtype", dtype)) if value != "auto"}


def _target(runtime: Runtime, ref: str, asked: bool) -> str | None:
    """What ``runtime`` would open for ``ref``; ``None``: nothing. Checkpoints are opened by torch unless ``asked``."""
    if runtime.suffixes:
        file = runtime.exported_file(ref) or (runtime.graph_file(ref) if find_local(ref) is None else None)
        if file is not None or not (asked and runtime.checkpoints):
            return None if file is None else str(file)
    return None if is_exported_file(ref) else ref


def is_exported_file(ref: str) -> bool:
    """Whether a reference is the path of a file that a runtime of exported files opens."""
    return any(Path(ref).suffix in runtime.suffixes for runtime in RUNTIMES.values())


def _why_not_opened(ref: str, runtime: Runtime) -> str:
    if not runtime.suffixes:
        return f"{ref}: {runtime.name} runs checkpoints, not exported files: give the checkpoint, or runtime='auto'"
    return f"{ref}: {runtime.name} runs {' and '.join(runtime.suffixes)} files: export this model first (foveal export)"


def _limits(runtime: Runtime) -> str:
    devices = " or ".join((*runtime.devices, *runtime.more_devices())) or "any device"
    dtypes = " or ".join(runtime.dtypes)
    return f"{runtime.name} runs on {devices} in {dtypes}"
