"""Run exported files with ONNX Runtime on numpy arrays, without torch."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, ConfigError, InputError
from ..info import KEY, ModelInfo, say_licence
from ..task import find_task
from ..weights.kinds import other_kind
from ..weights.references import missing_file
from .devices import cpu_count, gpu_possible, why_cpu
from .onnx_file import check_onnx
from .onnx_providers import gpu_kinds, providers_for, runs_on_gpu
from .runner import Opened, Runner, Runtime

if TYPE_CHECKING:
    import onnxruntime

PROMPT_PARTS = ("encoder", "decoder", "prompts")  #: files of an exported promptable model


def onnx_session(
    source: str | Path | bytes, threads: int = 0, name: str = "", device: str = "cpu"
) -> onnxruntime.InferenceSession:
    """Open an ONNX file, without ONNX Runtime's usage events.

    Args:
        source: path of the file, or its content.
        threads: number of threads, the calling one included; 0: as many as this process may use CPUs.
        name: name in messages; default: the path.
        device: "cpu", "cuda" or "cuda:N"; the CPU if the GPU cannot be used.

    Raises:
        CheckpointError: ONNX Runtime cannot load it, or :func:`~foveal.prediction.onnx_file.check_onnx` refuses it.
    """
    import onnxruntime

    name = name or ("content" if isinstance(source, bytes) else str(source))
    check_onnx(source, name)
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    # ONNX Runtime's own default is the number of cores of the machine, whatever this process may use.
    options.intra_op_num_threads = threads or cpu_count()
    options.log_severity_level = 3
    # By default its threads keep spinning for tens of milliseconds after each run, which takes half of the cores from
    # what runs next, for example another runtime.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    model = source if isinstance(source, bytes) else str(source)
    try:
        return onnxruntime.InferenceSession(model, options, providers=providers_for(device))
    except Exception as error:  # the runtime has one exception type per cause, none of them public
        raise CheckpointError(f"{name}: ONNX Runtime cannot load it ({_first_line(error)})") from error


class OnnxSession:
    """A session of ONNX Runtime that can be copied, pickled, and used in a forked process.

    A copy shares the session, since runs do not change it. A pickle holds the content of the file. A forked process
    opens the file again, because the session's threads do not exist there.

    Args:
        source, threads, name, device: as for :func:`onnx_session`.

    Raises:
        CheckpointError: as :func:`onnx_session`.
    """

    def __init__(self, source: str | Path | bytes, threads: int = 0, name: str = "", device: str = "cpu") -> None:
        self.source = source if isinstance(source, bytes) else Path(source).absolute()
        self.threads, self.name, self.device = threads, name or str(source), device
        self._session: onnxruntime.InferenceSession | None = onnx_session(source, threads, self.name, device)
        self._stamp = _stamp(self.source)
        _OPEN.add(self)

    @property
    def session(self) -> onnxruntime.InferenceSession:
        """ONNX Runtime's own session, opened again if this process was forked.

        Raises:
            CheckpointError: the file was removed or changed.
        """
        if self._session is None:
            self._session = onnx_session(self._content(), self.threads, self.name, self.device)
        return self._session

    def leave_parent(self) -> None:
        """Give up the session of the process from which this one was forked, without closing it."""
        # Closing it would wait for its threads, which do not exist here: it must never be destroyed.
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
        self._session = None

    def run(self, outputs: Sequence[str] | None, feed: Mapping[str, NDArray[Any]]) -> Any:
        """Run the network: outputs by name (``None``: all) for inputs by name.

        Raises:
            InputError: it cannot run on these inputs.
            CheckpointError: in a forked process, the file cannot be opened again.
        """
        session = self.session
        try:
            return session.run(outputs, feed)
        except Exception as error:  # out of memory, or a size that the file does not accept
            shapes = " and ".join(str(value.shape) for value in feed.values())
            raise InputError(f"the network cannot run on {shapes}: {_first_line(error)}") from error

    def _content(self) -> bytes:
        """Content of the file.

        Raises:
            CheckpointError: the file was removed or changed after it had been opened.
        """
        if isinstance(self.source, bytes):
            return self.source
        try:
            content, unchanged = self.source.read_bytes(), _stamp(self.source) == self._stamp
        except OSError as error:
            raise CheckpointError(
                f"{self.name}: cannot be opened again ({error.strerror}): load the model again"
            ) from None
        if not unchanged:
            raise CheckpointError(f"{self.name}: the file has changed since it was opened: load the model again")
        return content

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._content(), self.threads, self.name, self.device)


_OPEN: weakref.WeakSet[OnnxSession] = weakref.WeakSet()


def _after_fork() -> None:
    for session in _OPEN:
        session.leave_parent()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)


class OnnxRunner:
    """Run an exported file with ONNX Runtime on numpy arrays."""

    def __init__(self, path: str | Path, threads: int = 0, device: str = "cpu") -> None:
        self.path, self.opened = path, OnnxSession(path, threads, device=device)
        if not (inputs := self.session.get_inputs()):
            raise CheckpointError(f"{path}: a network without inputs; export the model with foveal export")
        self.input = inputs[0].name

    @property
    def session(self) -> onnxruntime.InferenceSession:
        """ONNX Runtime's own session."""
        return self.opened.session

    @classmethod
    def open(cls, path: str | Path, threads: int = 0, device: str = "cpu") -> tuple[OnnxRunner, ModelInfo]:
        """Open a file that Foveal exported, and the model's description inside it.

        Raises:
            CheckpointError: no such file, not an ONNX file, or not one that Foveal exported.
            ConfigError: its description cannot be used.
        """
        if not Path(path).is_file():
            encoder = prompt_part(Path(path), PROMPT_PARTS[0])
            raise CheckpointError(f"no file at {path}; give {encoder}") if encoder.is_file() else missing_file(path)
        if kind := other_kind(Path(path)):
            raise CheckpointError(f"{path}: it {kind}")
        text = check_onnx(path, str(path)).get(KEY)
        if text is None:
            raise CheckpointError(f"{path}: no Foveal description inside; export the model with foveal export")
        try:
            info = ModelInfo.from_json(text)
            task = find_task(info.task)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        runner = cls(path, threads, device)
        if not task.takes_prompts:
            runner.check_shapes(info, task.has_classes)
        say_licence(path, info.licence)
        return runner, info

    def check_shapes(self, info: ModelInfo, has_classes: bool) -> None:
        """Compare the shapes that the file declares with the description.

        Raises:
            CheckpointError: they do not fit.
        """
        (first, *_), result = self.session.get_inputs(), self.session.get_outputs()[0]
        expected = [(first, info.in_chans, "channels")]
        if has_classes:
            expected.append((result, info.num_classes, "classes"))
        for tensor, count, what in expected:
            shape = tensor.shape
            found = shape[1] if len(shape) > 1 else None
            if tensor.type != "tensor(float)" or found is None or (isinstance(found, int) and found != count):
                raise CheckpointError(
                    f"{self.path}: its description says {count} {what}, its {tensor.name[:40]!r} is a {tensor.type} of "
                    f"shape {shape}: damaged, export the model again"
                )

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.asarray(self.opened.run(None, {self.input: batch})[0])


class OnnxPrompter:
    """Run the three files of an exported promptable model; a :class:`~foveal.prediction.runner.PromptRunner`.

    Args:
        encoder: runner of the image encoder.
        path: file of the image encoder, ``NAME.encoder.onnx``; the decoders are in the same folder.
        info: description of the model.
        threads: number of threads of each session; 0: as many as this process may use CPUs.

    Raises:
        CheckpointError: a file is missing or cannot be used.
    """

    at_once = 16  #: prompts in one run; more need memory and gain no time

    def __init__(self, encoder: OnnxRunner, path: Path, info: ModelInfo, threads: int = 0) -> None:
        if not path.name.endswith(f".{PROMPT_PARTS[0]}.onnx"):
            raise CheckpointError(f"{path}: only the decoder of a promptable model; give its NAME.encoder.onnx")
        model = path.with_name(path.name.removesuffix(f".{PROMPT_PARTS[0]}.onnx") + ".onnx")
        decoders = [prompt_part(model, part) for part in PROMPT_PARTS[1:]]
        for file in decoders:
            if not file.is_file():
                raise CheckpointError(f"{path}: {file.name} is missing in its folder: export the model again")
        self.encoder, self.encoder_id = encoder, str(info.notes.get("encoder", ""))
        self.decoder, self.prompts = (OnnxSession(file, threads, device=encoder.opened.device) for file in decoders)

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return self.encoder(batch)

    def decode(
        self,
        embedding: NDArray[np.float32],
        coords: NDArray[np.float32],
        labels: NDArray[np.int64],
        masks: NDArray[np.float32] | None,
        least_iou: float,
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """See :meth:`foveal.prediction.runner.PromptRunner.decode`. ``least_iou`` is ignored: no mask is left empty."""
        kinds = labels.astype(np.float32)
        if masks is None:
            feed = {"image_embeddings": embedding, "point_coords": coords, "point_labels": kinds}
            outputs: Any = self.prompts.run(["low_res_masks", "iou_predictions"], feed)
            return outputs[0], outputs[1]
        outputs = [
            self.decoder.run(
                ["low_res_masks", "iou_predictions"],
                {
                    "image_embeddings": embedding,
                    "point_coords": coords[i : i + 1],
                    "point_labels": kinds[i : i + 1],
                    "mask_input": masks[i : i + 1],
                    "has_mask_input": np.ones(1, np.float32),
                    "orig_im_size": np.ones(2, np.float32),  # for masks at the image's size, which are not requested
                },
            )
            for i in range(len(coords))
        ]
        low_res, iou = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
        return low_res, iou


def _stamp(source: Path | bytes) -> tuple[int, int]:
    """What changes when a file is written again: its size and time."""
    if isinstance(source, bytes):
        return len(source), 0
    status = source.stat()
    return status.st_size, status.st_mtime_ns


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def prompt_part(path: Path, part: str) -> Path:
    """``NAME.PART.onnx`` for ``NAME.onnx``."""
    return path.with_name(f"{path.stem}.{part}{path.suffix}")


def open_onnx(path: str, device: str, dtype: str, threads: int | None) -> Opened:
    """Open an exported file; see :attr:`foveal.prediction.runner.Runtime.open`. It runs in float32.

    Raises:
        CheckpointError: as :meth:`OnnxRunner.open`; of promptable models also a missing decoder.
        InputError: a GPU that ONNX Runtime cannot use.
    """
    wanted = ("cuda" if gpu_possible() else "cpu") if device == "auto" else device
    runner, info = OnnxRunner.open(path, threads or 0, wanted)
    on_gpu = runs_on_gpu(runner.session)
    if device not in ("auto", "cpu") and not on_gpu:
        raise InputError(f"device {device!r} cannot be used: ONNX Runtime cannot start on it; this machine has cpu")
    network: Runner = runner
    if find_task(info.task).takes_prompts:
        network = OnnxPrompter(runner, Path(path), info, threads or 0)
    reason = "" if device != "auto" else "GPU found" if on_gpu else why_cpu("onnxruntime")
    return Opened(network, info, wanted if on_gpu else "cpu", reason)


ONNX_RUNTIME = Runtime(
    "onnxruntime", suffixes=(".onnx",), devices=("cpu",), dtypes=("float32",), open=open_onnx, more_devices=gpu_kinds
)
