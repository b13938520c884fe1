"""Quantise the bundled models to int8 and print what they lose on images that no choice was made on.

The loss is kept on the images that ``foveal.export`` measures ("val" for CamVid); the columns "before" and "after" are
of the split that is named, which neither calibration nor search has seen where the data set has one.

python benchmarks/quantisation.py CAMVID SETS PENNFUDAN [--only MODEL] [--formats onnx,openvino]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import foveal
from foveal.exporting.calibration import MEASURES
from foveal.measuring import machine
from foveal.progress import Progress


class Case(NamedTuple):
    """A bundled model, the loss to keep, and the split to report."""

    model: str
    max_loss: float
    split: str | None


CASES = (
    Case("efficientvit_b0.camvid", 0.5, "test"),
    Case("efficientvit_sr.x2", 0.15, "set5"),
    Case("tf_efficientnet_lite0.sam", 1.0, None),
)


def main() -> None:
    """Export each model in each format and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, nargs=3, help="CamVid, a folder of set5, set14 and bsd100, and Penn-Fudan")
    parser.add_argument("--only", choices=[case.model for case in CASES])
    parser.add_argument("--formats", default="onnx,openvino")
    arguments = parser.parse_args()
    print(machine.one_line())
    print("| model | format | figure | float32 | int8 | size, of float32 | time, of float32 | layers in float32 |")
    print("|---|---|---|---|---|---|---|---|")
    for case, data in zip(CASES, arguments.data, strict=True):
        if arguments.only in (None, case.model):
            for format in arguments.formats.split(","):
                print(_row(case, data, format), flush=True)


def _row(case: Case, data: Path, format: str) -> str:
    with TemporaryDirectory() as folder:
        exported = foveal.export(
            case.model, format, output=folder, int8=data, max_loss=case.max_loss, progress=Progress()
        )
        found = exported.quantisation
        assert found is not None
        before, after, split = found.before, found.after, found.split
        if case.split is not None:
            before, after, split = *(_score(ref, data, case.split) for ref in (case.model, exported.path)), case.split
    share, kept = exported.bytes / found.bytes_before, f"{len(exported.kept_float)} of {found.layers}"
    figures = f"{before:.2f} | {after:.2f} {found.unit} | {share:.0%} | {found.time_ratio:.2f}"
    return f"| {case.model} | {format} | {found.metric}, {split} | {figures} | {kept} |"


def _score(ref: str | Path, data: Path, split: str) -> float:
    predictor = foveal.load(ref, device="cpu")
    measure = MEASURES[predictor.info.task]
    return measure.of(foveal.evaluate(predictor, data, split=split, progress=Progress(), **measure.options))


if __name__ == "__main__":
    main()
