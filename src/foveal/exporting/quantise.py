"""Quantise exported files to int8: measure what it costs on the user's data, and leave sensitive layers in float32.

The whole network is tried first. If it loses more than allowed, each layer is quantised alone, and the layers whose
error at the network's output is large for their size go back to float32, more of them until the loss is small enough.
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
from numpy.typing import NDArray

from ..errors import ConfigError, ExportError
from ..info import ModelInfo
from ..prediction.load import load
from ..prediction.predictor import Predictor
from ..progress import Progress
from ..task import TASKS
from ..timing import interleaved, ratio
from .calibration import MEASURES, QuantisationData
from .graph import Feed, class_agreement, difference
from .report import ExportReport, Quantisation

CALIBRATION_IMAGES = 100  #: that ranges are taken from, by default
MEASURED_IMAGES = 100  #: at most, that a file is measured on
MAX_EVALUATIONS = 9  #: of quantised files
_RANKING_INPUTS = 2  # that a layer alone is tried on
_LEAST_SHARE = 0.5  # of the bytes of the weights that are in int8: a file with less is not worth having
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

    def check(self, task: str) -> None:
        """Refuse impossible numbers, and tasks whose loss cannot be measured.

        Raises:
            ConfigError: one line about it.
        """
        if task not in MEASURES:
            raise ConfigError(f"int8: the loss can be measured for {', '.join(MEASURES)}, not for {task!r}")
        if self.max_loss is not None and not self.max_loss >= 0:
            raise ConfigError(f"max_loss={self.max_loss}: give 0 or more {MEASURES[task].unit}")
        if self.calibration_images < 1:
            raise ConfigError(f"calibration_images={self.calibration_images}: give 1 or more")


class Quantizer(Protocol):
    """A tool that writes the files of a network in int8. Its constructor takes the files in float32 and the inputs to
    calibrate on, each once or several times.

    Attributes:
        layers: bytes of the weights of each layer that it can quantise, in float32, by name.
    """

    layers: Mapping[str, int]

    def __init__(self, files: Sequence[Path], feeds: Iterable[Feed]) -> None: ...

    def write(self, files: Sequence[Path], names: Collection[str], info: ModelInfo, *, quick: bool = False) -> None:
        """Write the files with the layers ``names`` in int8 and the others in float32.

        Args:
            files: to write.
            names: of layers.
            info: description that goes into the files.
            quick: the files only serve to compare layers: few inputs to calibrate on are enough.

        Raises:
            ExportError: it cannot be quantised.
        """
        ...


def quantise(report: ExportReport, suffixes: Sequence[str], tool: type[Quantizer], request: Request) -> ExportReport:
    """Quantise what was exported in float32. Of a promptable model, that is the image encoder.

    Args:
        report: of the export in float32. Its files are replaced, those of decoders are left as they are.
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
    data = QuantisationData(request.data, predictor, request.calibration_images, MEASURED_IMAGES)
    files = [report.path.with_suffix(suffix) for suffix in suffixes]
    written = [folder / path.name for path in files]
    trials = _Trials(tool(files, _Counted(data, request.progress)), predictor, data, written, request)
    quantised = trials.search()
    for path in written:
        shutil.copy(path, report.path.parent)
    inputs = trials.inputs
    outputs = [(predictor.runner(image), quantised.runner(image)) for image in inputs]
    has_classes = TASKS[predictor.info.task].has_classes
    return dataclasses.replace(
        report,
        bytes=sum(path.stat().st_size for path in (report.path, *report.extra_files)),
        sizes=(),
        max_difference=max(difference(found, expected) for expected, found in outputs),
        agreement=min(class_agreement(*pair) for pair in outputs) if has_classes else 1.0,
        dtype="int8",
        kept_float=trials.kept,
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
        kept: names of the layers that stay in float32 in the last file.
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
        self.figures: dict[int, float] = {}
        self.max_loss = data.measure.max_loss if request.max_loss is None else request.max_loss
        self.before = data.score(predictor, request.progress)
        self._ranked: list[str] | None = None

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
        return self._open(self._ranking()[:count] if count else [])

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
            images=len(self.data.held_out),
            calibration_split=self.data.calibration.split,
            calibration_images=len(self.data.calibration),
            layers=len(self.tool.layers),
            evaluations=len(self.figures),
            bytes_before=bytes_before,
            seconds_before=float(np.median(times["before"])),
            seconds_after=float(np.median(times["after"])),
            time_ratio=ratio(times["after"], times["before"]),
        )

    def _is_good(self, count: int) -> bool:
        """Whether the file with the first ``count`` of the ranked layers in float32 keeps the loss."""
        measure = self.data.measure
        predictor = self._open(self._ranking()[:count] if count else [])
        figure = self.figures[count] = self.data.score(predictor, self.request.progress)
        self.request.progress.note(
            f"{count} of {len(self.tool.layers)} layers in float32: {measure.name} {self.before:.2f} -> {figure:.2f} "
            f"{measure.unit} (a loss of {self.max_loss:g} is allowed)"
        )
        return self.before - figure <= self.max_loss

    def _open(self, kept: Sequence[str]) -> Predictor:
        """Write the file with these layers in float32, and open it."""
        self.kept = tuple(kept)
        return self._write([name for name in self.tool.layers if name not in kept])

    def _write(self, names: Sequence[str], quick: bool = False) -> Predictor:
        kept = [name for name in self.tool.layers if name not in names]
        info = self.predictor.info
        self.tool.write(self.files, names, info.replace(notes=info.notes | {"int8": {"kept_float": kept}}), quick=quick)
        return load(self.files[0], device="cpu")

    def _ranking(self) -> list[str]:
        """Names of the layers: first those that cause the largest error at the output for each byte of weights."""
        if self._ranked is None:
            expected = [self.predictor.runner(image) for image in self.inputs]
            errors: dict[str, float] = {}
            with self.request.progress.bar("rank layers", len(self.tool.layers)) as bar:
                for name, size in self.tool.layers.items():
                    runner = self._write([name], quick=True).runner
                    errors[name] = noise([runner(image) for image in self.inputs], expected) / size
                    bar.advance()
            self._ranked = sorted(errors, key=lambda name: -errors[name])
        return self._ranked

    def _most_kept(self) -> int:
        """How many of the ranked layers may stay in float32."""
        sizes = np.cumsum([self.tool.layers[name] for name in self._ranking()])
        return int((sizes <= (1 - _LEAST_SHARE) * sizes[-1]).sum())

    def _failure(self) -> ExportError:
        measure = self.data.measure
        count = max(self.figures, key=lambda count: self.figures[count])
        return ExportError(
            f"{self.predictor.info.model} in int8: the best {measure.name} is {self.figures[count]:.2f} instead of "
            f"{self.before:.2f} with {count} of {len(self.tool.layers)} layers in float32, a loss of "
            f"{self.before - self.figures[count]:.2f} {measure.unit}, {self.max_loss:g} is allowed: allow more "
            "(max_loss), calibrate on more images, or export in float16"
        )


def noise(outputs: Sequence[NDArray[np.float32]], expected: Sequence[NDArray[np.float32]]) -> float:
    """Energy of the error over the energy of the signal: the reciprocal of the signal-to-noise ratio."""
    error = sum(
        float(np.square(output - reference, dtype=np.float64).sum())
        for output, reference in zip(outputs, expected, strict=True)
    )
    return error / max(sum(float(np.square(reference, dtype=np.float64).sum()) for reference in expected), 1e-30)
