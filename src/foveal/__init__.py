"""Foveal: train, evaluate, export and run fast vision models on images of any size.

``docs/python_api.md`` lists everything that may be imported. Names are loaded when they are first used, so
``import foveal`` itself imports neither torch nor ONNX Runtime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from .errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DependencyError,
    ExportError,
    FovealError,
    InputError,
    OutOfMemoryError,
    TrainingError,
)

if TYPE_CHECKING:
    from .data.check import check_data as check_data
    from .engine.optimized import optimize as optimize
    from .evaluation.coco import average_recall as average_recall
    from .evaluation.compare import compare as compare
    from .evaluation.evaluate import evaluate as evaluate
    from .exporting.export import export as export
    from .factory.create import create_model as create_model
    from .factory.create import list_models as list_models
    from .factory.load_model import load_model as load_model
    from .factory.pretrained import from_pretrained as from_pretrained
    from .factory.pretrained import push_to_hub as push_to_hub
    from .factory.pretrained import save_pretrained as save_pretrained
    from .info import Labels as Labels
    from .info import ModelInfo as ModelInfo
    from .info import Preprocess as Preprocess
    from .info import Target as Target
    from .measuring.benchmark import bench as bench
    from .measuring.presets import bench_preset as bench_preset
    from .prediction.everything_options import EverythingOptions as EverythingOptions
    from .prediction.load import load as load
    from .prediction.mask_results import EverythingResult as EverythingResult
    from .prediction.mask_results import MaskResult as MaskResult
    from .prediction.predictor import Predictor as Predictor
    from .prediction.regress import RegressResult as RegressResult
    from .prediction.results import ClassifyResult as ClassifyResult
    from .prediction.results import SegmentResult as SegmentResult
    from .prediction.results import UpscaleResult as UpscaleResult
    from .prediction.segment_anything import SamAutomaticMaskGenerator as SamAutomaticMaskGenerator
    from .prediction.segment_anything import SamPredictor as SamPredictor
    from .prediction.streamed import StreamResult as StreamResult
    from .prediction.streamed import stream as stream
    from .training.config import TrainConfig as TrainConfig
    from .training.train import train as train
    from .weights.loading import LoadReport as LoadReport
    from .weights.loading import load_checkpoint as load_checkpoint

_HOME = {
    "ClassifyResult": "prediction.results",
    "EverythingOptions": "prediction.everything_options",
    "EverythingResult": "prediction.mask_results",
    "Labels": "info",
    "LoadReport": "weights.loading",
    "MaskResult": "prediction.mask_results",
    "ModelInfo": "info",
    "Predictor": "prediction.predictor",
    "Preprocess": "info",
    "RegressResult": "prediction.regress",
    "SamAutomaticMaskGenerator": "prediction.segment_anything",
    "SamPredictor": "prediction.segment_anything",
    "SegmentResult": "prediction.results",
    "StreamResult": "prediction.streamed",
    "Target": "info",
    "TrainConfig": "training.config",
    "UpscaleResult": "prediction.results",
    "average_recall": "evaluation.coco",
    "bench": "measuring.benchmark",
    "bench_preset": "measuring.presets",
    "check_data": "data.check",
    "compare": "evaluation.compare",
    "create_model": "factory.create",
    "evaluate": "evaluation.evaluate",
    "export": "exporting.export",
    "from_pretrained": "factory.pretrained",
    "list_models": "factory.create",
    "load": "prediction.load",
    "load_checkpoint": "weights.loading",
    "load_model": "factory.load_model",
    "optimize": "engine.optimized",
    "push_to_hub": "factory.pretrained",
    "save_pretrained": "factory.pretrained",
    "stream": "prediction.streamed",
    "train": "training.train",
}

__all__ = [  # noqa: RUF022 - errors first, then what loads when it is used
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DependencyError",
    "ExportError",
    "FovealError",
    "InputError",
    "OutOfMemoryError",
    "TrainingError",
    "ClassifyResult",
    "EverythingOptions",
    "EverythingResult",
    "Labels",
    "LoadReport",
    "MaskResult",
    "ModelInfo",
    "Predictor",
    "Preprocess",
    "RegressResult",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "SegmentResult",
    "StreamResult",
    "Target",
    "TrainConfig",
    "UpscaleResult",
    "average_recall",
    "bench",
    "bench_preset",
    "check_data",
    "compare",
    "create_model",
    "evaluate",
    "export",
    "from_pretrained",
    "list_models",
    "load",
    "load_checkpoint",
    "load_model",
    "optimize",
    "push_to_hub",
    "save_pretrained",
    "stream",
    "train",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata  # costs more than the rest of this file

        return metadata.version("foveal")
    if name not in _HOME:
        raise AttributeError(f"module 'foveal' has no attribute {name!r}")
    try:
        value = getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] in ("torch", "safetensors", "accelerate", "onnx", "onnxscript"):
            raise DependencyError(f"foveal.{name} needs {error.name}: pip install 'foveal[torch]'") from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
