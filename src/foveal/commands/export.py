"""The verb ``export``."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ..files import check_overwrites
from .console import Json, print_json, say


def export(
    ref: str, /, *, to: str = "onnx", output: Path | None = None, upsample: bool = False, json: Json = False
) -> int:
    """Write a model as a file that runs without torch, checked against the model at several sizes.

    Parameters
    ----------
    ref
        Bundled name, checkpoint or training run.
    to
        Format: onnx, or native for the CPU engine.
    output
        File to write; default: the model's name in the current folder.
    upsample
        For segmentation: put the upsampling to the image's size into the file.
    """
    from .. import export as export_model

    if output is not None:
        check_overwrites([output], [Path(ref), *Path(ref).glob("*.safetensors")])
    report = export_model(ref, to=to, output=output, upsample=upsample)
    if json:
        print_json({k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(report).items()})
    else:
        say(report)
    return 0
