"""Foveal: sharp, fast vision on large images.

Names load when they are first used: ``import foveal`` itself imports neither torch nor ONNX Runtime.
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
    TrainingError,
)

if TYPE_CHECKING:
    from .config import TrainConfig as TrainConfig
    from .deploy.benchmark import bench as bench
    from .deploy.export import export as export
    from .deploy.presets import bench_preset as bench_preset
    from .factory import create_model as create_model
    from .factory import list_models as list_models
    from .info import Labels as Labels
    from .info import ModelInfo as ModelInfo
    from .info import Preprocess as Preprocess
    from .layers.optimize import optimize as optimize
    from .mask_results import EverythingResult as EverythingResult
    from .mask_results import MaskResult as MaskResult
    from .results import ClassifyResult as ClassifyResult
    from .results import SegmentResult as SegmentResult
    from .results import UpscaleResult as UpscaleResult
    from .run.check import check_data as check_data
    from .run.compare import compare as compare
    from .run.evaluate import evaluate as evaluate
    from .run.load import load as load
    from .run.load import load_model as load_model
    from .run.predict import Predictor as Predictor
    from .run.pretrained import from_pretrained as from_pretrained
    from .run.pretrained import push_to_hub as push_to_hub
    from .run.pretrained import save_pretrained as save_pretrained
    from .run.sam_predictor import SamAutomaticMaskGenerator as SamAutomaticMaskGenerator
    from .run.sam_predictor import SamPredictor as SamPredictor
    from .run.train import train as train
    from .weights import LoadReport as LoadReport
    from .weights import load_checkpoint as load_checkpoint

__version__ = "0.1.0"

_HOME = {
    "ClassifyResult": "results",
    "EverythingResult": "mask_results",
    "Labels": "info",
    "LoadReport": "weights",
    "MaskResult": "mask_results",
    "ModelInfo": "info",
    "Predictor": "run.predict",
    "Preprocess": "info",
    "SamAutomaticMaskGenerator": "run.sam_predictor",
    "SamPredictor": "run.sam_predictor",
    "SegmentResult": "results",
    "TrainConfig": "config",
    "UpscaleResult": "results",
    "bench": "deploy.benchmark",
    "bench_preset": "deploy.presets",
    "check_data": "run.check",
    "compare": "run.compare",
    "create_model": "factory",
    "evaluate": "run.evaluate",
    "export": "deploy.export",
    "from_pretrained": "run.pretrained",
    "list_models": "factory",
    "load": "run.load",
    "load_checkpoint": "weights",
    "load_model": "run.load",
    "optimize": "layers.optimize",
    "push_to_hub": "run.pretrained",
    "save_pretrained": "run.pretrained",
    "train": "run.train",
}

__all__ = [  # noqa: RUF022 - errors first, then what loads when it is used
    "CheckpointError",
    "ConfigError",
    "DataError",
    "DependencyError",
    "ExportError",
    "FovealError",
    "InputError",
    "TrainingError",
    "ClassifyResult",
    "EverythingResult",
    "Labels",
    "LoadReport",
    "MaskResult",
    "ModelInfo",
    "Predictor",
    "Preprocess",
    "SamAutomaticMaskGenerator",
    "SamPredictor",
    "SegmentResult",
    "TrainConfig",
    "UpscaleResult",
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
    "train",
]


def __getattr__(name: str) -> Any:
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
