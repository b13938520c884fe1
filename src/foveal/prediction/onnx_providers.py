"""The devices of ONNX Runtime: its execution providers for the CPU and, in its GPU builds, for NVIDIA GPUs."""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from typing import Any

from .devices import gpu_possible

#: For GPUs, the preferred one first. TensorRT compiles an engine for every size of the images, which takes minutes.
_GPU = ("CUDAExecutionProvider", "TensorrtExecutionProvider")
_CPU = "CPUExecutionProvider"


def gpu_kinds() -> tuple[str, ...]:
    """Kinds of device beside the CPU that the installed build of ONNX Runtime has on this machine."""
    return ("cuda",) if gpu_possible() and gpu_provider() else ()


def gpu_provider() -> str:
    """The installed build's execution provider for NVIDIA GPUs; empty: it has none."""
    if importlib.util.find_spec("onnxruntime") is None:
        return ""
    import onnxruntime

    available = onnxruntime.get_available_providers()
    return next((name for name in _GPU if name in available), "")


def providers_for(device: str) -> list[Any]:
    """Execution providers for "cpu", "cuda" or "cuda:N", as ``onnxruntime.InferenceSession`` takes them.

    Operations that the GPU's provider lacks run on the CPU.
    """
    kind, _, number = device.partition(":")
    provider = gpu_provider() if kind == "cuda" else ""
    if not provider:
        return [_CPU]
    import onnxruntime

    if hasattr(onnxruntime, "preload_dlls"):  # finds the CUDA libraries of pip packages
        with contextlib.redirect_stdout(sys.stderr):  # it prints, and standard output is for results
            onnxruntime.preload_dlls()
    return [(provider, {"device_id": number or "0"}), _CPU]


def runs_on_gpu(session: Any) -> bool:
    """Whether a session got the GPU: if its provider cannot start, ONNX Runtime takes the CPU instead."""
    return session.get_providers()[0] in _GPU
