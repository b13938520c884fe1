"""Exported files as runners: one network for an image, three for a promptable model, for any runtime.

A runtime of exported files brings two functions: one reads the description in a file, the other opens a network.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import CheckpointError, ConfigError
from ..info import ModelInfo, say_licence
from ..task import Task, find_task
from ..weights.references import missing_file
from .file_network import FileNetwork, Settings
from .input_limits import InputLimits, fitted

#: The files of an exported promptable model. "prompts" answers many prompts on one image; "masks" gives what mask
#: inputs add to an embedding. In ONNX, the decoder in SAM's contract takes the place of the latter.
PARTS = ("encoder", "prompts", "masks")
SAM_PARTS = ("encoder", "decoder", "prompts")
#: Ends of the names of files that other programs run.
OF_OTHER_PROGRAMS = (".samexporter.encoder.onnx", ".samexporter.decoder.onnx")


AT_ONCE = "prompts_at_once"  #: of the notes of a description: 1 where the decoder takes one prompt at once


@dataclass(frozen=True)
class FileKind:
    """How the files of a runtime are read.

    Attributes:
        suffix: of the files, with the dot.
        describe: ``(path)`` returns the description in a file as JSON; ``None``: there is none. It raises
            CheckpointError for a file of another kind and for one that would be dangerous to open.
        open: ``(path, settings)`` opens the network of a file.
        parts: the files of a promptable model.
        check: ``(network, path, info, task)`` refuses a file that contradicts its description.
    """

    suffix: str
    describe: Callable[[Path], str | None]
    open: Callable[[Path, Settings], FileNetwork]
    parts: tuple[str, ...] = PARTS
    check: Callable[[FileNetwork, Path, ModelInfo, Task], None] | None = None


class NetworkRunner:
    """Run the network of an exported file on images.

    Args:
        network: of the file.
        info: description of the model, which says what images the file takes; without one: any that it can run on.

    Raises:
        ConfigError: the description cannot be used.
    """

    def __init__(self, network: FileNetwork, info: ModelInfo | None = None) -> None:
        self.file = network
        self.limits = InputLimits() if info is None else InputLimits.of(info)
        self._run = fitted(partial(_run_on_images, network), self.limits, info)

    @property
    def network(self) -> Any:
        """The opened network of the runtime."""
        return self.file.network

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run the network on ``(B, C, H, W)``; other sizes than the file takes are fitted to it.

        Raises:
            InputError: the network cannot run on them.
        """
        return self._run(batch)


def _run_on_images(network: FileNetwork, batch: NDArray[np.float32]) -> NDArray[np.float32]:
    return next(iter(network({"image": batch}).values()))


class NetworkPrompter:
    """Run the three files of an exported promptable model; a :class:`~foveal.prediction.runner.PromptRunner`.

    Args:
        networks: by part.
        encoder_id: fingerprint of the image encoder.
        at_once: largest number of prompts that the decoder takes; default: :attr:`at_once`.
    """

    at_once = 16  #: prompts in one run; more need memory and gain no time

    def __init__(self, networks: dict[str, FileNetwork], encoder_id: str = "", at_once: int | None = None) -> None:
        self.networks, self.encoder_id = networks, encoder_id
        self.at_once = at_once or self.at_once

    def __call__(self, batch: NDArray[np.float32]) -> NDArray[np.float32]:
        return next(iter(self.networks["encoder"]({"image": batch}).values()))

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
            return self._prompts(embedding, coords, kinds)
        answer = self._with_sam_decoder if "decoder" in self.networks else self._with_addend
        outputs = [answer(embedding, coords[i : i + 1], kinds[i : i + 1], masks[i : i + 1]) for i in range(len(coords))]
        low_res, iou = (np.concatenate(parts) for parts in zip(*outputs, strict=True))
        return low_res, iou

    def _prompts(self, embedding: NDArray[np.float32], coords: NDArray[np.float32], labels: NDArray[np.float32]) -> Any:
        outputs = self.networks["prompts"](
            {"image_embeddings": embedding, "point_coords": coords, "point_labels": labels}
        )
        return outputs["low_res_masks"], outputs["iou_predictions"]

    def _with_addend(self, embedding: Any, coords: Any, labels: Any, mask: Any) -> Any:
        addend = next(iter(self.networks["masks"]({"mask_input": mask}).values()))
        return self._prompts(embedding + addend, coords, labels)

    def _with_sam_decoder(self, embedding: Any, coords: Any, labels: Any, mask: Any) -> Any:
        outputs = self.networks["decoder"](
            {
                "image_embeddings": embedding,
                "point_coords": coords,
                "point_labels": labels,
                "mask_input": mask,
                "has_mask_input": np.ones(1, np.float32),
                "orig_im_size": np.ones(2, np.float32),  # for masks at the image's size, which are not used
            }
        )
        return outputs["low_res_masks"], outputs["iou_predictions"]


def is_int8(info: ModelInfo) -> bool:
    """Whether a file was quantised to int8, as its description says."""
    return "int8" in info.notes


def part_path(path: Path, part: str) -> Path:
    """``NAME.PART.onnx`` for ``NAME.onnx``."""
    return path.with_name(f"{path.stem}.{part}{path.suffix}")


def part_files(path: Path, parts: Sequence[str]) -> list[Path]:
    """The files of a promptable model, of whose encoder ``path`` is the file.

    Raises:
        CheckpointError: another file of the model was given, or one is missing.
    """
    if path.name.endswith(OF_OTHER_PROGRAMS):
        raise CheckpointError(f"{path}: for other programs; export the model to {path.suffix[1:]} to run it here")
    ending = f".{parts[0]}{path.suffix}"
    if not path.name.endswith(ending):
        raise CheckpointError(f"{path}: only a part of a promptable model; give its NAME{ending}")
    model = path.with_name(path.name.removesuffix(ending) + path.suffix)
    files = [part_path(model, part) for part in parts]
    for file in files:
        if not file.exists():
            raise CheckpointError(f"{path}: {file.name} is missing in its folder: export the model again")
    return files


def check_exists(path: Path, parts: Sequence[str]) -> None:
    """Refuse a path without a file; the message names the file of the encoder if there is one.

    Raises:
        CheckpointError: there is no such file.
    """
    if not path.exists():
        encoder = part_path(path, parts[0])
        raise CheckpointError(f"no file at {path}; give {encoder}") if encoder.is_file() else missing_file(str(path))


def read_info(kind: FileKind, path: Path) -> ModelInfo:
    """The description in a file that Foveal exported.

    Raises:
        CheckpointError: no such file, another kind of file, or one that Foveal did not export.
        ConfigError: its description cannot be used.
    """
    check_exists(path, kind.parts)
    text = kind.describe(path)
    if text is None:
        raise CheckpointError(f"{path}: no Foveal description inside; export the model with foveal export")
    try:
        info = ModelInfo.from_json(text)
        find_task(info.task)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error
    if file_facts(info).get("baked"):
        raise ConfigError(
            f"{path}: it takes decoded images and gives results (bake), so {kind.suffix} runtimes run it directly; "
            "for a predictor, export without bake"
        )
    return info


def file_facts(info: ModelInfo) -> dict[str, Any]:
    """What a description says about its file: "dtype", and "baked" where it is given."""
    facts = info.notes.get("file")
    return facts if isinstance(facts, dict) else {}


def open_exported(kind: FileKind, path: Path, settings: Settings) -> tuple[NetworkRunner | NetworkPrompter, ModelInfo]:
    """Open a file that Foveal exported; of a promptable model, all its files.

    Args:
        kind: how its files are read.
        path: of a promptable model, the file of the encoder.
        settings: of the networks.

    Raises:
        CheckpointError: as :func:`read_info`, a file is missing, or one that the runtime cannot open.
        ConfigError: its description cannot be used.
    """
    info = read_info(kind, path)
    task = find_task(info.task)
    first, *others = part_files(path, kind.parts) if task.takes_prompts else [path]
    network = kind.open(first, settings)
    if kind.check:
        kind.check(network, path, info, task)
    say_licence(path, info.licence)
    if not task.takes_prompts:
        return NetworkRunner(network, info), info
    opened = [network, *(kind.open(file, replace(settings, name=str(file))) for file in others)]
    networks = dict(zip(kind.parts, opened, strict=True))
    at_once = 1 if info.notes.get(AT_ONCE) == 1 else None
    return NetworkPrompter(networks, str(info.notes.get("encoder", "")), at_once), info
