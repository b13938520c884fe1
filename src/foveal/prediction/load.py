"""Open the predictor that a reference names: a name and tag, a file, a training run, a saved model or a hub id."""

from __future__ import annotations

import os

from ..errors import ConfigError
from ..info import ModelInfo
from .exported import file_facts
from .interpolation import interpolation
from .predictor import Predictor
from .runner import DTYPES
from .runtimes import check_names, choose, explain


def load(
    ref: str | os.PathLike[str],
    *,
    device: str = "auto",
    dtype: str = "auto",
    runtime: str = "auto",
    threads: int | None = None,
) -> Predictor:
    """Open a predictor.

    Args:
        ref: path of a checkpoint, of an exported file, of a training run's folder (its best checkpoint) or of a folder
            of ``save_pretrained``; ``name.tag`` of bundled or published weights; a hub id (``owner/name``, also
            ``hf-hub:owner/name@revision``); or ``bicubic.x2``, ``lanczos.x3``: interpolation with numpy, whatever the
            device and type. Weights that are not on this machine are downloaded once.
        device: "auto", "cpu", "cuda", "cuda:1", "mps", ...; "auto" is the GPU if there is one that torch or, for
            exported files, the installed build of ONNX Runtime can use, else the CPU.
        dtype: "auto", "float32", "float16" or "bfloat16"; "auto" is float32.
        runtime: "native", "onnxruntime", "torch", for their own files also "openvino", "litert", "executorch", "coreml"
            and "tensorrt"; or "auto": for an exported file, the runtime of that file; for a name whose network is in
            the package, the native engine or ONNX Runtime if there is no GPU that torch can use and no 16-bit type is
            named; else torch. The native engine needs a C++ compiler at its first use; where it cannot run, a line says
            so and the next runtime is used.
        threads: number of threads of the runtime on the CPU, the calling one included; ``None``: as many as this
            process may use CPUs (affinity, and quota of its control groups), with torch at most what
            ``OMP_NUM_THREADS`` says. For torch it holds for the whole process.

    Returns:
        The predictor. Its ``runtime`` says in one line what was chosen and, unless all of it was named, why:
        ``"native on cpu, avx2: the exported file needs no torch; no GPU found"``. It also says if a file is of
        another type than float32: ``"onnxruntime on cpu, float16 file"``.

    Raises:
        ConfigError: unknown runtime or dtype, a runtime that cannot open ``ref`` or lacks the device or type, or an
            architecture without weights.
        CheckpointError: nothing of that name, or a file that cannot be used.
        InputError: a device that this machine does not have.
        DependencyError: torch is needed and not installed.
    """
    if threads is not None and threads < 1:
        raise ConfigError(f"threads={threads}: give 1 or more, or None for all CPUs that this process may use")
    ref = os.fspath(ref)
    check_names(runtime, dtype)
    if predictor := interpolation(ref):
        return predictor
    chosen, target = choose(ref, runtime, device, dtype)
    opened = chosen.open(target, device, dtype, threads)
    place = ", ".join((opened.place, *_file_type(opened.info)))
    why = explain(chosen, target, ref, device, dtype) if runtime == "auto" else ""
    reasons = "; ".join(filter(None, (why, opened.reason)))
    return Predictor(opened.runner, opened.info, f"{chosen.name} on {place}" + f": {reasons}" * bool(reasons))


def _file_type(info: ModelInfo) -> list[str]:
    """The type of an exported file in words, unless it is float32."""
    return [f"{dtype} file" for dtype in DTYPES[2:] if dtype == file_facts(info).get("dtype")]
