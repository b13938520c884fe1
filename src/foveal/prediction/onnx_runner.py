"""Run exported files with ONNX Runtime on numpy arrays, without torch."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, ConfigError, InputError
from ..info import KEY, ModelInfo, say_licence
from ..task import find_task
from ..weights.kinds import other_kind
from .runner import Opened, Runner, Runtime

if TYPE_CHECKING:
    import onnxruntime

PROMPT_PARTS = ("encoder", "decoder", "prompts")  #: files of an exported promptable model


def onnx_session(path: str | Path, threads: int = 0) -> onnxruntime.InferenceSession:
    """Open an ONNX file; ``threads=0``: as many threads as there are cores.

    Raises:
        CheckpointError: ONNX Runtime cannot load it.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    # By default its threads keep spinning for tens of milliseconds after each run, which takes half of the cores from
    # what runs next, for example another runtime.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime has one exception type per cause, none of them public
        raise CheckpointError(f"{path}: ONNX Runtime cannot load it ({str(error).splitlines()[0]})") from error


class OnnxRunner:
    """Run an exported file with ONNX Runtime on numpy arrays."""

    def __init__(self, path: str | Path, threads: int = 0) -> None:
        self.path, self.session = path, onnx_session(path, threads)
        self.input = self.session.get_inputs()[0].name

    @classmethod
    def open(cls, path: str | Path, threads: int = 0) -> tuple[OnnxRunner, ModelInfo]:
        """Open a file that Foveal exported, and the model's description inside it.

        Raises:
            CheckpointError: no such file, not an ONNX file, or not one that Foveal exported.
        """
        if not Path(path).is_file():
            encoder = prompt_part(Path(path), PROMPT_PARTS[0])
            hint = f"; give {encoder}" if encoder.is_file() else ""
            raise CheckpointError(f"no file at {path}{hint}")
        if kind := other_kind(Path(path)):
            raise CheckpointError(f"{path}: it {kind}")
        runner = cls(path, threads)
        try:
            text = runner.session.get_modelmeta().custom_metadata_map.get(KEY)
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{path}: damaged: its metadata is not UTF-8; export the model again") from error
        if text is None:
            raise CheckpointError(f"{path}: no Foveal description inside; export the model with foveal export")
        try:
            info = ModelInfo.from_json(text)
        except ConfigError as error:
            raise ConfigError(f"{path}: {error}") from error
        _check_shapes(path, info, runner.session)
        say_licence(path, info.licence)
        return runner, info

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        try:
            return np.asarray(self.session.run(None, {self.input: batch})[0])
        except Exception as error:  # out of memory, or a size that the file does not accept
            raise InputError(f"the network cannot run on {batch.shape}: {str(error).splitlines()[0]}") from error


def _check_shapes(path: str | Path, info: ModelInfo, session: onnxruntime.InferenceSession) -> None:
    """Check the channels of the description against those of the network; free sizes are names in the file."""
    task = find_task(info.task)
    shape, output = session.get_inputs()[0].shape, session.get_outputs()[0].shape
    pairs = [("in_chans", info.in_chans, shape[1] if len(shape) == 4 else None)] if task.takes_images else []
    if task.has_classes and info.num_classes and len(output) > 1:
        pairs += [("num_classes", info.num_classes, output[1])]
    for name, described, actual in pairs:
        if isinstance(actual, int) and actual != described:
            raise CheckpointError(
                f"{path}: its description says {name}={described}, its network has {actual}; export the model again"
            )


class OnnxPrompter:
    """Run the three files of an exported promptable model; a :class:`~foveal.prediction.runner.PromptRunner`.

    Args:
        encoder: runner of the image encoder.
        path: file of the image encoder, ``NAME.encoder.onnx``; the decoders are in the same folder.
        info: description of the model.
        threads: number of threads of each session; 0: as many as there are cores.

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
        self.decoder, self.prompts = (onnx_session(file, threads) for file in decoders)

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


def prompt_part(path: Path, part: str) -> Path:
    """``NAME.PART.onnx`` for ``NAME.onnx``."""
    return path.with_name(f"{path.stem}.{part}{path.suffix}")


def open_onnx(path: str, device: str, dtype: str, threads: int | None) -> Opened:
    """Open an exported file; see :attr:`foveal.prediction.runner.Runtime.open`. It runs on the CPU in float32.

    Raises:
        CheckpointError: as :meth:`OnnxRunner.open`; of promptable models also a missing decoder.
    """
    runner, info = OnnxRunner.open(path, threads or 0)
    network: Runner = runner
    if find_task(info.task).takes_prompts:
        network = OnnxPrompter(runner, Path(path), info, threads or 0)
    return Opened(network, info, "cpu")


ONNX_RUNTIME = Runtime("onnxruntime", suffixes=(".onnx",), devices=("cpu",), dtypes=("float32",), open=open_onnx)
