"""Run exported files with ONNX Runtime on numpy arrays, without torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, InputError
from ..info import KEY, ModelInfo
from ..task import Task
from ..weights.kinds import other_kind
from .devices import cpu_count, gpu_possible, why_cpu
from .exported import SAM_PARTS, FileKind, NetworkPrompter, is_int8, open_exported
from .file_network import Content, FileNetwork, Outputs, Settings, first_line
from .onnx_file import check_onnx
from .onnx_graphs import SUFFIX, fill_graph, find_weights, graph_file
from .onnx_providers import gpu_kinds, providers_for, runs_on_gpu
from .runner import Opened, Runtime

if TYPE_CHECKING:
    import onnxruntime


class OnnxNetwork:
    """A session of ONNX Runtime.

    Args:
        source: path of the file, or its content.
        settings: of the session; the CPU is used where the GPU cannot be.

    Raises:
        CheckpointError: ONNX Runtime cannot load it, or :func:`~foveal.prediction.onnx_file.check_onnx` refuses it.
    """

    def __init__(self, source: Content, settings: Settings) -> None:
        self.session = _open_session(source, settings)
        self.outputs = [output.name for output in self.session.get_outputs()]

    def __call__(self, feed: Mapping[str, NDArray[Any]]) -> Outputs:
        return dict(zip(self.outputs, map(np.asarray, self.session.run(self.outputs, dict(feed))), strict=True))


def _open_session(source: Content, settings: Settings) -> onnxruntime.InferenceSession:
    """Open a session of a checked file."""
    import onnxruntime

    check_onnx(source, settings.name)
    options = session_options(settings.threads)
    model = source if isinstance(source, bytes) else str(source)
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers_for(settings.device))
    except Exception as error:  # the runtime has one exception type per cause, none of them public
        raise CheckpointError(f"{settings.name}: ONNX Runtime cannot load it ({first_line(error)})") from error


def session_options(threads: int) -> onnxruntime.SessionOptions:
    """Options of a session on ``threads`` threads (0: as many as this process may use CPUs), without usage events."""
    import onnxruntime

    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    # ONNX Runtime's own default is the number of cores of the machine, whatever this process may use.
    options.intra_op_num_threads = threads or cpu_count()
    options.log_severity_level = 3
    # By default its threads keep spinning for tens of milliseconds after each run, which takes half of the cores from
    # what runs next, for example another runtime.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # Without it, the fastest kernels for int8 add products in 16 bits, which overflow, on processors without VNNI.
    options.add_session_config_entry("session.x64quantprecision", "1")
    return options


def open_onnx_network(files: Sequence[Content], settings: Settings) -> OnnxNetwork:
    """Open the file of a network, or a graph and its weights; see :data:`.file_network.OpenNetwork`."""
    content = files[0] if len(files) == 1 else fill_graph(files[0], files[1], settings.name)
    return OnnxNetwork(content, settings)


def onnx_network(path: str | Path, settings: Settings | None = None) -> FileNetwork:
    """Open an ONNX file; by default on the CPU with as many threads as this process may use CPUs.

    Raises:
        CheckpointError: as :class:`OnnxNetwork`.
    """
    return FileNetwork(open_onnx_network, [Path(path)], settings or Settings(str(path)))


def read_onnx_description(path: Path) -> str | None:
    """The description in an ONNX file, see :attr:`foveal.prediction.exported.FileKind.describe`."""
    if kind := other_kind(path):
        raise CheckpointError(f"{path}: it {kind}")
    return check_onnx(path, str(path)).get(KEY)


def check_shapes(network: FileNetwork, path: Path, info: ModelInfo, task: Task) -> None:
    """Compare the shapes that a file declares with its description.

    Raises:
        CheckpointError: they do not fit.
    """
    session: onnxruntime.InferenceSession = network.network.session
    inputs, result = session.get_inputs(), session.get_outputs()[0]
    first = next((tensor for tensor in inputs if tensor.name == "image"), None)
    if first is None:
        raise CheckpointError(f"{path}: a network without an input 'image'; export the model with foveal export")
    expected = [(first, info.in_chans, "channels")]
    if task.has_classes or task.has_maps:
        expected.append((result, info.num_classes, "classes"))
    for tensor, count, what in expected:
        shape = tensor.shape
        found = shape[1] if len(shape) > 1 else None
        if tensor.type != "tensor(float)" or found is None or (isinstance(found, int) and found != count):
            raise CheckpointError(
                f"{path}: its description says {count} {what}, its {tensor.name[:40]!r} is a {tensor.type} of "
                f"shape {shape}: damaged, export the model again"
            )


ONNX_FILES = FileKind(".onnx", read_onnx_description, onnx_network, SAM_PARTS, check_shapes)


def _graph_files(graph: Path) -> FileKind:
    """How a graph of the package is opened: with the weights of its checkpoint."""
    weights = find_weights(graph)

    def open_graph(path: Path, settings: Settings) -> FileNetwork:
        return FileNetwork(open_onnx_network, [path, weights], settings)

    return FileKind(SUFFIX, lambda path: check_onnx(path, str(path)).get(KEY), open_graph, SAM_PARTS, check_shapes)


def open_onnx(ref: str, device: str, dtype: str, threads: int | None) -> Opened:
    """Open an exported file; see :attr:`foveal.prediction.runner.Runtime.open`. It runs in float32.

    Raises:
        CheckpointError: as :func:`foveal.prediction.exported.open_exported`.
        InputError: a GPU that ONNX Runtime cannot use.
    """
    wanted = ("cuda" if gpu_possible() else "cpu") if device == "auto" else device
    kind = _graph_files(Path(ref)) if Path(ref).suffix == SUFFIX else ONNX_FILES
    runner, info = open_exported(kind, Path(ref), Settings(ref, threads or 0, wanted))
    network = runner.networks["encoder"] if isinstance(runner, NetworkPrompter) else runner.file
    on_gpu = runs_on_gpu(network.network.session)
    if device not in ("auto", "cpu") and not on_gpu:
        raise InputError(f"device {device!r} cannot be used: ONNX Runtime cannot start on it; this machine has cpu")
    reason = "" if device != "auto" else "GPU found" if on_gpu else why_cpu("onnxruntime")
    place = wanted if on_gpu else "cpu"
    return Opened(runner, info, f"{place}, int8" if is_int8(info) else place, reason)


ONNX_RUNTIME = Runtime(
    "onnxruntime", suffixes=(".onnx",), devices=("cpu",), dtypes=("float32",), open=open_onnx, more_devices=gpu_kinds,
    graph_file=graph_file,
)  # fmt: skip
