"""What an export reports: the files that were written, how they were checked, and with what."""

from __future__ import annotations

import dataclasses
import json
import shlex
import sys
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

_NAMED = 3  # layers in float32 that are printed by name


@dataclass(frozen=True)
class Quantisation:
    """What quantisation changed: the model's figure on images that it was not calibrated on, and its time.

    Attributes:
        metric: the figure, for example "mIoU".
        unit: of the figure: "points" (hundredths) or "dB".
        before: the figure in float32.
        after: the figure in int8.
        max_loss: how much of it was allowed to be lost.
        split: where the images come from that it was measured on.
        images: their number.
        calibration_split: where the images come from that it was calibrated on.
        calibration_images: their number.
        layers: number of layers with weights, those in float32 included.
        weights_only: layers that compute in float32, with weights that are stored in int8.
        evaluations: number of files that were measured.
        bytes_before: size of the files in float32.
        seconds_before: median time of the network on an image of calibration on this machine, in float32.
        seconds_after: the same in int8.
        time_ratio: median of the ratios of both, taken in turn.
    """

    metric: str
    unit: str
    before: float
    after: float
    max_loss: float
    split: str
    images: int
    calibration_split: str
    calibration_images: int
    layers: int
    weights_only: tuple[str, ...]
    evaluations: int
    bytes_before: int
    seconds_before: float
    seconds_after: float
    time_ratio: float

    def __str__(self) -> str:
        return (
            f"{self.metric} {self.before:.2f} -> {self.after:.2f} {self.unit} on {self.images} images of "
            f"{self.split!r} (calibrated on {self.calibration_images} others of {self.calibration_split!r}), "
            f"{self.seconds_before * 1e3:.1f} -> {self.seconds_after * 1e3:.1f} ms "
            f"({self.time_ratio:.2f} of the time of float32 on this machine)"
        )


@dataclass(frozen=True)
class ExportReport:
    """The file that was written, and how it was checked.

    Attributes:
        path: the file.
        format: its format, for example "onnx".
        opset: version of ONNX's operator set; 0 for formats that have none.
        bytes: size of the file, or of all files.
        sizes: (batch, height, width) of the images on which it was compared with the model; for promptable models: ().
        max_difference: largest difference between the outputs of file and model, relative to the model's largest
            output, over all inputs that were compared; NaN if nothing on this machine runs the file.
        agreement: smallest share of positions with the same class over all inputs; 1 for outputs without classes.
        extra_files: further files of the network, for example those of the decoders of a promptable model.
        dtype: type of the weights and of the computation: "float32", "float16" or "int8".
        delegated: share of the operations that the format's fast backend runs; 1 where there is no other one.
        kept_float: layers that stayed in float32 in a file of another type.
        notes: further facts in words, for example what a file was checked with.
        quantisation: what int8 changed; ``None`` for other types.
        command: the command that wrote the file; empty for a call from Python.
        versions: of the packages that wrote it.
    """

    path: Path
    format: str
    opset: int
    bytes: int
    sizes: tuple[tuple[int, int, int], ...]
    max_difference: float
    agreement: float
    extra_files: tuple[Path, ...] = ()
    dtype: str = "float32"
    delegated: float = 1.0
    kept_float: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    quantisation: Quantisation | None = None
    command: str = ""
    versions: dict[str, str] = field(default_factory=dict)

    def __fspath__(self) -> str:
        """The path of the file, so that the report can be used as a path."""
        return str(self.path)

    def __str__(self) -> str:
        opset = f", opset {self.opset}" if self.opset else ""
        dtype = f", {self.dtype}" if self.dtype != "float32" else ""
        size = f"{self.bytes / 1e6:.2f} MB{opset}{dtype}"
        further = "".join(f"; {note}" for note in self._further())
        if self.quantisation is not None:
            return f"{self.path}  {size} ({self.bytes / self.quantisation.bytes_before:.0%} of float32){further}"
        if self.max_difference != self.max_difference:  # NaN
            return f"{self.path}  {size}{further}"
        if not self.sizes:
            names = " + ".join(str(path) for path in (self.path, *self.extra_files))
            return f"{names}  {size}; equal the model to {self.max_difference:.1e}{further}"
        sizes = ", ".join(f"{b}x{h}x{w}" for b, h, w in self.sizes)
        return (
            f"{self.path}  {size}; equals the model to {self.max_difference:.1e}, "
            f"same class on {self.agreement:.2%} (batch x height x width: {sizes}){further}"
        )

    def _further(self) -> list[str]:
        delegated = [f"{self.delegated:.0%} of the operations are delegated"] if self.delegated < 1 else []
        names = ", ".join(self.kept_float[:_NAMED]) + ", ..." * (len(self.kept_float) > _NAMED)
        layers = "layer" if len(self.kept_float) == 1 else "layers"
        kept = [f"{len(self.kept_float)} {layers} in float32 ({names})"] if self.kept_float else []
        quantised = [str(self.quantisation)] if self.quantisation is not None else []
        return [*quantised, *delegated, *kept, *self.notes]

    def to_json(self) -> dict[str, Any]:
        """All fields as plain JSON values; NaN is ``None``."""
        values = dataclasses.asdict(self)
        values["path"], values["extra_files"] = str(self.path), [str(path) for path in self.extra_files]
        if self.max_difference != self.max_difference:
            values["max_difference"] = None
        return values

    def write(self, path: Path) -> None:
        """Write the report as JSON; its paths are names, since the files may move together."""
        values = self.to_json() | {"path": self.path.name, "extra_files": [file.name for file in self.extra_files]}
        path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def report_path(file: Path) -> Path:
    """Where the report of a file is: ``NAME.onnx.json`` for ``NAME.onnx``."""
    return file.with_name(f"{file.name}.json")


def current_command() -> str:
    """The command line of this process if it is Foveal's, else empty."""
    name = Path(sys.argv[0]).name if sys.argv else ""
    return shlex.join(["foveal", *sys.argv[1:]]) if name in ("foveal", "__main__.py") else ""


def versions_of(packages: tuple[str, ...]) -> dict[str, str]:
    """Versions of Foveal, torch and these packages, of those that are installed."""
    found = {}
    for name in ("foveal", "torch", *packages):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
