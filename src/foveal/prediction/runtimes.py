"""The list of runtimes, and which of them opens a reference."""

from __future__ import annotations

from pathlib import Path

from ..errors import ConfigError, DependencyError, nearest
from ..text import notice
from .native_runner import NATIVE
from .onnx_runner import ONNX_RUNTIME
from .runner import DTYPES, Runtime
from .torch_runner import TORCH

#: In the order in which runtime="auto" tries them: exported files first, since they start faster and need no torch.
RUNTIMES = {runtime.name: runtime for runtime in (NATIVE, ONNX_RUNTIME, TORCH)}


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
        runtime: a name of :data:`RUNTIMES`, or "auto": the first one that opens ``ref`` and has the device and type.
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
    for candidate, target in openable:
        if candidate.runs(device, dtype):
            if not (reason := candidate.why_not()):
                return candidate, target
            if candidate is openable[-1][0]:
                raise DependencyError(f"{ref}: {candidate.name} cannot run here: {reason}")
            notice(f"{candidate.name} cannot run here, using {openable[1][0].name} instead: {reason}")
    limits = "; ".join(_limits(candidate) for candidate, _ in openable)
    options = {"device": device, "dtype": dtype}
    asked = ", ".join(f"{name}={value!r}" for name, value in options.items() if value != "auto")
    raise ConfigError(f"{ref}: {limits}, not with {asked}: leave it out, or load the checkpoint with torch")


def _target(runtime: Runtime, ref: str, asked: bool) -> str | None:
    """What ``runtime`` would open for ``ref``; ``None``: nothing. Checkpoints are opened by torch unless ``asked``."""
    if runtime.suffixes:
        file = runtime.exported_file(ref)
        if file is not None or not (asked and runtime.checkpoints):
            return None if file is None else str(file)
    return None if _is_exported_file(ref) else ref


def _is_exported_file(ref: str) -> bool:
    return any(Path(ref).suffix in runtime.suffixes for runtime in RUNTIMES.values())


def _why_not_opened(ref: str, runtime: Runtime) -> str:
    if not runtime.suffixes:
        return f"{ref}: {runtime.name} runs checkpoints, not exported files: give the checkpoint, or runtime='auto'"
    return f"{ref}: {runtime.name} runs {' and '.join(runtime.suffixes)} files: export this model first (foveal export)"


def _limits(runtime: Runtime) -> str:
    devices, dtypes = " or ".join(runtime.devices) or "any device", " or ".join(runtime.dtypes)
    return f"{runtime.name} runs on {devices} in {dtypes}"
