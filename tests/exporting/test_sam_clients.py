"""Files for annotation programs of SAM, driven as AnyLabeling and samexporter drive them: plain pixels, no metadata."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

import foveal
from foveal.exporting.graph import Options, Source, compare
from foveal.exporting.onnx import open_onnx, write_onnx
from foveal.exporting.sam_clients import sam_client_graphs
from foveal.factory.create import create_model
from foveal.prediction.segment_anything import SamPredictor
from helpers import golden
from helpers.narrow import registered
from helpers.oracle import chequered

SENT = (684, 1024)  # (H, W) of the canvas into which the programs put every image


class AnnotationProgram:
    """What such a program does with the two files; its boxes are two points of labels 2 and 3."""

    def __init__(self, encoder: Path, decoder: Path) -> None:
        self.encoder, self.decoder = (cast(Any, onnxruntime.InferenceSession(path)) for path in (encoder, decoder))

    def encode(self, image: NDArray[np.uint8]) -> NDArray[np.float32]:
        (entry,) = self.encoder.get_inputs()
        assert entry.type == "tensor(float)"
        self.scale = min(SENT[0] / image.shape[0], SENT[1] / image.shape[1])
        self.size = image.shape[:2]
        inside = [round(side * self.scale) for side in self.size]
        canvas = np.zeros((*SENT, 3), np.float32)
        resized = Image.fromarray(image).resize((inside[1], inside[0]), Image.Resampling.BILINEAR)
        canvas[: inside[0], : inside[1]] = np.asarray(resized)
        return self.encoder.run(None, {entry.name: canvas})[0]

    def predict(self, embedding: NDArray[np.float32], points: Any, labels: Any) -> NDArray[np.float32]:
        coords = np.concatenate([points, [[0.0, 0.0]]])[None] * self.scale
        inputs = {
            "image_embeddings": embedding,
            "point_coords": coords.astype(np.float32),
            "point_labels": np.array([[*labels, -1]], np.float32),
            "mask_input": np.zeros((1, 1, 256, 256), np.float32),
            "has_mask_input": np.zeros(1, np.float32),
            "orig_im_size": np.array(SENT, np.float32),
        }
        masks, _, _ = self.decoder.run(None, inputs)
        height, width = self.size
        rows, columns = ((np.arange(side) * self.scale).round().astype(int) for side in (height, width))
        return masks[0][:, rows][:, :, columns]


@pytest.fixture(scope="module")
def model() -> Iterator[Any]:
    with registered(attention=False) as name:
        yield golden.fill(create_model(name, "prompt").double()).float().eval()


def source(model: Any) -> Source:
    return Source(model, model, model.foveal_info, False, (256, 256))


@pytest.mark.long
@pytest.mark.parametrize("half", [False, True])
def test_an_annotation_program_gets_our_masks(model: Any, half: bool, tmp_path: Path) -> None:
    encoder, decoder = sam_client_graphs(source(model))
    paths, options = [tmp_path / f"{graph.part}.onnx" for graph in (encoder, decoder)], Options(half=half)
    for graph, path in zip((encoder, decoder), paths, strict=True):
        write_onnx(graph, [path], options)
        compare(graph, open_onnx([path]), options.dtype)  # the encoder at three sizes
    program, image = AnnotationProgram(*paths), chequered()
    entry, output = program.encoder.get_inputs()[0], program.encoder.get_outputs()[0]
    assert (entry.name, entry.shape) == ("input_image", ["image_height", "image_width", 3])
    assert (output.name, output.shape) == ("image_embeddings", [1, 256, 64, 64])

    sam = SamPredictor(model)
    canvas = np.zeros((*SENT, 3), np.uint8)  # what the program sends, as an image
    canvas[:, :912] = np.asarray(Image.fromarray(image).resize((912, 684), Image.Resampling.BILINEAR))
    sam.set_image(canvas)
    embedding = program.encode(image)
    expected = sam.get_image_embedding().numpy()
    assert np.abs(embedding - expected).max() < 0.02 * np.abs(expected).max()  # Pillow rounds to 8 bits
    for points, labels in (([[30.0, 40.0]], [1]), ([[20.0, 20.0], [100.0, 80.0]], [2, 3])):
        logits = program.predict(embedding, points, labels)
        assert logits.shape == (4, 90, 120)
        prompt = torch.tensor(points)[None] * program.scale, torch.tensor([labels])
        with torch.inference_mode():
            low_res, _ = model.decode(torch.from_numpy(embedding), prompt)  # it, too, appends a point of label -1
            ours = model.postprocess_masks(low_res, SENT, SENT)[0].numpy()
        rows, columns = ((np.arange(side) * program.scale).round().astype(int) for side in (90, 120))
        tolerance = 0.02 if half else 1e-4
        assert np.abs(logits[1:] - ours[:, rows][:, :, columns]).max() < tolerance * np.abs(ours).max()


@pytest.mark.parametrize("size", [(40, 100), (300, 517), (684, 1024), (256, 256), (1500, 999)])
def test_the_preparation_is_that_of_our_predictor(model: Any, size: tuple[int, int]) -> None:
    """The encoder's input equals that of our own path, up to the 8 bits that Pillow rounds to."""
    (encoder, _) = sam_client_graphs(source(model))
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    seen: list[torch.Tensor] = []
    network: Any = encoder.network
    keep = network.encoder.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    with torch.inference_mode():
        network(torch.from_numpy(image).float())
    keep.remove()
    sam = SamPredictor(model)
    inputs: list[NDArray[np.float32]] = []
    runner = sam.predictor.runner

    def record(batch: NDArray[np.float32]) -> NDArray[np.float32]:
        inputs.append(batch)
        return np.zeros((1, 256, 64, 64), np.float32)

    sam.predictor.runner = record  # pyright: ignore[reportAttributeAccessIssue]
    sam.set_image(image)
    sam.predictor.runner = runner
    assert np.abs(seen[0].numpy() - inputs[0]).max() < 1.6 / 255 / 0.224  # one step of 8 bits, and the rounding


@pytest.mark.long
def test_the_format(tmp_path: Path) -> None:
    """Two files by one command, which Foveal itself does not open."""
    with registered(attention=False) as name:
        report = foveal.export(create_model(name, "prompt"), "samexporter", output=tmp_path / "a.samexporter.onnx")
        with pytest.raises(foveal.ConfigError, match="samexporter files are of promptable models"):
            foveal.export(create_model(name), "samexporter", output=tmp_path / "b.samexporter.onnx")
    files = [path.name for path in (report.path, *report.extra_files)]
    assert files == ["a.samexporter.encoder.onnx", "a.samexporter.decoder.onnx"]
    with pytest.raises(foveal.CheckpointError, match="for other programs; export the model to onnx"):
        foveal.load(report.path)
