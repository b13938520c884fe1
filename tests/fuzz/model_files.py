"""Models in files of every kind that is opened, and what a prediction does with one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import foveal
from foveal.data.synthetic import NAMES
from helpers.narrow import Plain

from .sample import PHOTO


def _upscaler() -> Any:
    return foveal.create_model("realtime_sr", scale=2).eval()


def write_checkpoint(folder: Path) -> None:
    from foveal.info import info_of
    from foveal.weights.checkpoints import save_checkpoint

    model = _upscaler()
    save_checkpoint(folder / "model.safetensors", model.state_dict(), info_of(model))


def write_pickle(folder: Path) -> None:
    import torch

    torch.save({"state_dict": _upscaler().state_dict()}, folder / "model.pt")


def write_hub_folder(folder: Path) -> None:
    foveal.save_pretrained(_upscaler(), folder)


def write_segmenter(folder: Path) -> None:
    from foveal.info import Labels, info_of
    from foveal.weights.checkpoints import save_checkpoint

    model = foveal.create_model("mobilenetv3_small_100", "segment", num_classes=4).eval()
    info = info_of(model).replace(labels=Labels(NAMES, ()))
    save_checkpoint(folder / "model.safetensors", model.state_dict(), info)


def write_onnx(folder: Path) -> None:
    foveal.export(_upscaler(), output=folder / "model.onnx")


def write_executorch(folder: Path) -> None:
    foveal.export(Plain(), "executorch", output=folder / "model.pte", input_size=(32, 32))
    (folder / "model.pte.json").unlink()


def write_litert(folder: Path) -> None:
    """A file that gives the means of the three colours as logits; its converter is not among the test tools."""
    from ai_edge_litert import schema_py_generated as schema
    from ai_edge_litert.tools.flatbuffer_utils import convert_object_to_bytearray

    from foveal.exporting.graph import metadata
    from foveal.info import Preprocess
    from foveal.prediction.input_limits import InputLimits
    from foveal.prediction.sealed import seal, with_outputs

    limits = InputLimits((32, 32), 1, fixed=True).to_notes()
    model_info = foveal.ModelInfo("plain", "classify", 3, preprocess=Preprocess(size=(32, 32)), notes=limits)
    info = with_outputs(model_info, ["logits"])
    texts = [text.encode() for text in (np.array([2, 3], np.int32).tobytes().decode(), *metadata(info).values())]
    kinds = schema.TensorType
    tensors = [
        schema.TensorT(name=name, shape=list(shape), type=kind, buffer=buffer)
        for name, shape, kind, buffer in (
            ("image", (1, 3, 32, 32), kinds.FLOAT32, 0),
            ("axes", (2,), kinds.INT32, 1),
            ("logits", (1, 3), kinds.FLOAT32, 0),
        )
    ]
    mean = schema.OperatorT(inputs=[0, 1], outputs=[2], builtinOptionsType=schema.BuiltinOptions.ReducerOptions)
    mean.builtinOptions = schema.ReducerOptionsT()
    operator = schema.BuiltinOperator.MEAN
    signature = schema.SignatureDefT(
        inputs=[schema.TensorMapT(name="image", tensorIndex=0)],
        outputs=[schema.TensorMapT(name="logits", tensorIndex=2)],
        signatureKey="serving_default",
    )
    model = schema.ModelT(
        version=3,
        operatorCodes=[schema.OperatorCodeT(deprecatedBuiltinCode=operator, builtinCode=operator)],
        subgraphs=[schema.SubGraphT(tensors=tensors, inputs=[0], outputs=[2], operators=[mean])],
        buffers=[schema.BufferT(), *(schema.BufferT(data=list(text)) for text in texts)],
        metadata=[schema.MetadataT(name=name, buffer=2 + i) for i, name in enumerate(metadata(info))],
        signatureDefs=[signature],
    )
    (folder / "model.tflite").write_bytes(seal(bytes(convert_object_to_bytearray(model)), info.to_json()))


def predict(folder: Path) -> None:
    """Load the only model in the folder, or the folder, and run it."""
    suffixes = (".safetensors", ".pt", ".onnx", ".pte", ".tflite")
    files = [path for path in sorted(folder.iterdir()) if path.suffix in suffixes]
    ref = folder if (folder / "config.json").exists() else files[0]
    result: Any = foveal.load(ref)(PHOTO)
    repr(result)
