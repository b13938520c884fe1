"""Quantise exported files to int8: measure what it costs on the user's data, and leave sensitive layers in float32.

The whole network is tried first. If it loses more than allowed, each layer is quantised alone, and the layers with the
largest errors at the network's output compute in float32, more of them until the loss is small enough. Most of these
errors come from the inputs of the layers: their weights are then stored in int8 nevertheless.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..errors import ConfigError, ExportError
from ..info import ModelInfo
from ..prediction.exported import file_facts
from ..prediction.load import load
from ..prediction.predictor import Predictor
from ..progress import Progress
from ..task import TASKS
from ..timing import interleaved, ratio
from .calibration import MEASURES, QuantisationData, check_data
from .graph import Feed, class_agreement, difference
from .report import ExportReport, Quantisation

CALIBRATION_IMAGES = 100  #: that ranges are taken from, by default
MAX_EVALUATIONS = 9  #: of quantised files
_RANKING_INPUTS = 2  # that a layer alone is tried on
_LEAST_SHARE = 0.5  # of the layers that compute in int8: a file with fewer is not worth having
_WEIGHTS_SHARE = 0.5  # of a layer's error that may come from its weights if these are stored in int8 nevertheless
_ROUNDS = 10  # of timing


@dataclass(frozen=True)
class Request:
    """What the user asks of an int8 file.

    Attributes:
        data: data set to calibrate and to measure on.
        max_loss: of the task's figure, in its unit; ``None``: the task's default.
        calibration_images: how many to calibrate on at most.
        progress: where progress is shown.
    """

    data: str | Path
    max_loss: float | None
    calibration_images: int
    progress: Progress

    def check(self, info: ModelInfo) -> None:
        """Refuse impossible numbers, tasks whose loss cannot be measured, and data that does not fit the model.

        Raises:
            ConfigError: one line about it.
            DataError: no data, or none with a layout for the task.
        """
        task = info.task
        if task not in MEASURES:
            raise ConfigError(f"int8: the loss can be measured for {', '.join(MEASURES)}, not for {task!r}")
        if self.max_loss is not None and not self.max_loss >= 0:
            raise ConfigError(f"max_loss={self.max_loss}: give 0 or more {MEASURES[task].unit}")
        if self.calibration_images < 1:
            raise ConfigError(f"calibration_images={self.calibration_images}: give 1 or more")
        check_data(self.data, info)


class Quantizer(Protocol):
    """A tool that writes the files of a network in int8.

    Its constructor takes the ONNX model of the network in float32 and the inputs to calibrate on.

    Attributes:
        layers: bytes of the weights of each layer that it can quantise, in float32, by name.
    """

    layers: Mapping[str, int]

    def __init__(self, source: Path, feeds: Iterable[Feed]) -> None: ...

    def write(self, files: Sequence[Path], names: Collection[str], weights: Collection[str], info: ModelInfo) -> None:
        """Write the files.

        Args:
            files: to write.
            names: of the layers in int8.
            weights: names of other layers, whose weights are stored in int8, but which compute in float32.
            info: description that goes into the files.

        Raises:
            ExportError: it cannot be quantised.
        """
        ...


def quantise(
    report: ExportReport, source: Path, suffixes: Sequence[str], tool: type[Quantizer], request: Request
) -> ExportReport:
    """Quantise what was exported in float32. Of a promptable model, that is the image encoder.

    Args:
        report: of the export in float32. Its files are replaced, those of decoders are left as they are.
        source: the ONNX model of the network to quantise.
        suffixes: of the files of one network.
        tool: the tool of the format.
        request: what the user asks.

    Returns:
        The report of the quantised files, at the same paths.

    Raises:
        ExportError: the loss cannot be kept.
        DataError, ConfigError: as :class:`~foveal.exporting.calibration.QuantisationData`.
    """
    folder = report.path.parent / "int8"
    folder.mkdir()
    for path in report.extra_files:
        shutil.copy(path, folder)
    predictor = load(report.path, device="cpu")
    data = QuantisationData(request.data, predictor, request.calibration_images)
    files = [report.path.with_suffix(suffix) for suffix in suffixes]
    written = [folder / path.name for path in files]
    trials = _Trials(tool(source, _Counted(data, request.progress)), predictor, data, written, request)
    quantised = trials.search()
    for path, float_path in zip(written, files, strict=True):
        float_path.unlink()  # OpenVINO still reads it: overwritten, it would end the process
        shutil.copy(path, float_path)
    outputs = [
        (expected, quantised.runner(image)) for image, expected in zip(trials.inputs, trials.outputs, strict=True)
    ]
    has_classes = TASKS[predictor.info.task].has_classes
    return dataclasses.replace(
        report,
        bytes=sum(path.stat().st_size for path in (report.path, *report.extra_files)),
        sizes=(),
        max_difference=max(difference(found, expected) for expected, found in outputs),
        agreement=min(class_agreement(*pair) for pair in outputs) if has_classes else 1.0,
        dtype="int8",
        kept_float=trials.kept,
        notes=(*report.notes, *data.notes()),
        quantisation=trials.describe(report.bytes, quantised),
    )


class _Counted:
    """Inputs to calibrate on, with progress, each time that they are iterated."""

    def __init__(self, data: QuantisationData, progress: Progress) -> None:
        self.data, self.progress = data, progress

    def __iter__(self) -> Iterator[Feed]:
        with self.progress.bar("calibrate", len(self.data.calibration)) as bar:
            for feed in self.data.inputs():
                yield feed
                bar.advance()


class _Trials:
    """Quantised files that are measured, each with other layers in float32.

    Attributes:
        kept: names of the layers that compute in float32 in the last file.
        weights_only: those of them whose weights are stored in int8.
        inputs: of the network, on which layers are compared.
    """

    def __init__(
        self, tool: Quantizer, predictor: Predictor, data: QuantisationData, files: Sequence[Path], request: Request
    ) -> None:
        self.tool, self.predictor, self.data, self.files, self.request = tool, predictor, data, files, request
        if not tool.layers:
            raise ExportError(f"{predictor.info.model}: no layer with weights to quantise: not written")
        feeds = data.inputs()
        self.inputs = [feed["image"] for feed, _ in zip(feeds, range(_RANKING_INPUTS), strict=False)]
        self.kept: tuple[str, ...] = ()
        self.weights_only: tuple[str, ...] = ()
        self.figures: dict[int, float] = {}
        self.max_loss = data.measure.max_loss if request.max_loss is None else request.max_loss
        self.limit = data.measure.share * self.max_loss  # on the images that are measured
        self.before = data.score(predictor, request.progress)
        self.outputs = [predictor.runner(image) for image in self.inputs]
        self._errors: dict[str, float] = {}  # at the output, of each layer alone
        self._weight_errors: dict[str, float] = {}  # the same, of its weights alone

    def search(self) -> Predictor:
        """The predictor of the file that keeps the loss with few layers in float32.

        Raises:
            ExportError: no file that is worth having keeps it.
        """
        count, failed = 0, -1
        while not self._is_good(count):
            most = self._most_kept()
            if count == most or len(self.figures) == MAX_EVALUATIONS:
                raise self._failure()
            count, failed = min(max(2, 2 * count), most), count
        while count - failed > 1 and len(self.figures) < MAX_EVALUATIONS:
            middle = (count + failed) // 2
            if self._is_good(middle):
                count = middle
            else:
                failed = middle
        return self._open(count, final=True)

    def describe(self, bytes_before: int, quantised: Predictor) -> Quantisation:
        """The figures of the last file, and its time."""
        works: dict[str, Callable[[], Any]] = {
            "before": partial(self.predictor.runner, self.inputs[0]),
            "after": partial(quantised.runner, self.inputs[0]),
        }
        times = interleaved(works, rounds=_ROUNDS)
        measure = self.data.measure
        return Quantisation(
            metric=measure.name,
            unit=measure.unit,
            before=self.before,
            after=self.figures[len(self.kept)],
            max_loss=self.max_loss,
            split=self.data.held_out.split,
            images=self.data.measured,
            calibration_split=self.data.calibration.split,
            calibration_images=self.data.calibrated,
            layers=len(self.tool.layers),
            weights_only=self.weights_only,
            evaluations=len(self.figures),
            bytes_before=bytes_before,
            seconds_before=float(np.median(times["before"])),
            seconds_after=float(np.median(times["after"])),
            time_ratio=ratio(times["after"], times["before"]),
        )

    def _is_good(self, count: int) -> bool:
        """Whether the file with the first ``count`` of the ranked layers in float32 keeps the loss."""
        measure = self.data.measure
        predictor = self._open(count)
        figure = self.figures[count] = self.data.score(predictor, self.request.progress)
        self.request.progress.note(
            f"{count} of {len(self.tool.layers)} layers in float32: {measure.name} {self.before:.2f} -> {figure:.2f} "
            f"{measure.unit} (a loss of {self.limit:g} is allowed on these images)"
        )
        return self.before - figure <= self.limit

    def _open(self, count: int, final: bool = False) -> Predictor:
        """Write the file with the first ``count`` of the ranked layers in float32, and open it."""
        self.kept = tuple(self._ranking()[:count]) if count else ()
        self.weights_only = tuple(name for name in self.kept if self._has_good_weights(name))
        return self._write([name for name in self.tool.layers if name not in self.kept], self.weights_only, final)

    def _write(self, names: Sequence[str], weights: Sequence[str] = (), final: bool = False) -> Predictor:
        kept = [name for name in self.tool.layers if name not in names]
        info = self.predictor.info
        facts = file_facts(info) | {"dtype": "int8"}
        notes = info.notes | {"file": facts, "int8": {"kept_float": kept, "weights_only": list(weights)}}
        licence = info.licence if final else ""  # else it would be stated each time that a trial is opened
        for path in self.files:
            path.unlink(missing_ok=True)  # OpenVINO may still read the last trial
        self.tool.write(self.files, names, weights, info.replace(notes=notes, licence=licence))
        return load(self.files[0], device="cpu")

    def _ranking(self) -> list[str]:
        """Names of the layers: first those that cause the largest error at the output."""
        if not self._errors:
            with self.request.progress.bar("rank layers", len(self.tool.layers)) as bar:
                for name in self.tool.layers:
                    self._errors[name] = self._error(self._write([name]))
                    bar.advance()
        return sorted(self._errors, key=lambda name: -self._errors[name])

    def _has_good_weights(self, name: str) -> bool:
        """Whether storing the weights of a layer in int8 keeps away most of its error."""
        if name not in self._weight_errors:
            self._weight_errors[name] = self._error(self._write([], [name]))
        return self._weight_errors[name] <= _WEIGHTS_SHARE * self._errors[name]

    def _error(self, predictor: Predictor) -> float:
        """Energy of the error at the output over that of the output: the reciprocal of the signal-to-noise ratio."""
        pairs = [(predictor.runner(image), expected) for image, expected in zip(self.inputs, self.outputs, strict=True)]
        error, energy = (
            sum(float(np.square(values, dtype=np.float64).sum()) for values in arrays)
            for arrays in zip(*((output - expected, expected) for output, expected in pairs), strict=True)
        )
        return error / max(energy, float(np.finfo(np.float32).tiny))

    def _most_kept(self) -> int:
        """How many layers may compute in float32."""
        return int((1 - _LEAST_SHARE) * len(self.tool.layers))

    def _failure(self) -> ExportError:
        measure = self.data.measure
        count = max(self.figures, key=lambda count: self.figures[count])
        best, loss = self.figures[count], self.before - self.figures[count]
        return ExportError(
            f"{self.predictor.info.model} in int8: the best {measure.name} is {best:.2f}, with {count} of "
            f"{len(self.tool.layers)} layers in float32; the float32 file has {self.before:.2f}. The loss of "
            f"{loss:.2f} {measure.unit} is above the limit of {self.limit:g}, so no file was written: raise max_loss, "
            "calibrate on more images, or export in float16"
        )
