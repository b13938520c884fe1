"""Promptable models as ONNX files: what sees, and what answers, in SAM's own contract and for many prompts at once."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import ExportError
from ..files import atomic_write
from ..images.sam_frame import FRAME, LOW_RES
from ..info import ModelInfo
from ..prediction.onnx_runner import PROMPT_PARTS, onnx_session, prompt_part
from ..tasks.prompt import EMBED_DIM, GRID, PromptModel
from .graph import TOLERANCE, described, difference, reason, traced

if TYPE_CHECKING:
    import onnx


class _SamDecoder(nn.Module):
    """One prompt, as SAM's own exported decoder takes it: other programs' clients can use the file.

    Points and labels are in the frame of 1024, boxes are two points of labels 2 and 3; where there is no box, the
    client ends with a point of label -1.
    """

    def __init__(self, model: PromptModel) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = model.prompt_encoder, model.mask_decoder

    def forward(
        self,
        image_embeddings: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
        orig_im_size: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        encoder = self.prompt_encoder
        sparse = encoder.tokens(point_coords, point_labels)
        dense = torch.where(has_mask_input.reshape(1, 1, 1, 1) > 0, encoder.dense(mask_input), encoder.dense(None))
        low_res, iou = self.mask_decoder.all_masks(image_embeddings, encoder.get_dense_pe(), sparse, dense)
        sides = orig_im_size.round()
        inside = (sides * (FRAME / sides.max()) + 0.5).floor()
        rows, columns = (_resampling(inside[i], sides[i]) for i in (0, 1))
        return rows @ low_res @ columns.T, iou, low_res


def _resampling(inside: Tensor, side: Tensor) -> Tensor:
    """Low-resolution logits to the image's own along one axis, ``(side, 256)``: by way of the frame, as SAM does.

    A matrix of hat functions in place of two resizes: their sizes would be data, which few exporters can follow.
    """
    length = side.to(torch.int64).item()
    torch._check(length >= 1)
    to_frame = _hats(torch.arange(FRAME), float(LOW_RES) / FRAME, torch.tensor(float(LOW_RES)), LOW_RES)
    return _hats(torch.arange(length), inside / side, inside, FRAME) @ to_frame


def _hats(pixel: Tensor, step: Tensor | float, inside: Tensor, length: int) -> Tensor:
    """Weights of bilinear interpolation at pixels whose centres lie ``step`` apart, held at the borders."""
    at = ((pixel + 0.5) * step - 0.5).clamp(min=torch.zeros(()), max=inside - 1)
    return (1 - (at[:, None] - torch.arange(length)).abs()).clamp(min=0)


class _BatchDecoder(nn.Module):
    """P prompts of N points to one image, boxes as points of labels 2 and 3."""

    def __init__(self, model: PromptModel) -> None:
        super().__init__()
        self.prompt_encoder, self.mask_decoder = model.prompt_encoder, model.mask_decoder

    def forward(self, image_embeddings: Tensor, point_coords: Tensor, point_labels: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self.prompt_encoder
        sparse, dense = encoder.tokens(point_coords, point_labels), encoder.dense(None)
        return self.mask_decoder.all_masks(image_embeddings, encoder.get_dense_pe(), sparse, dense)


def write_prompt_files(
    model: PromptModel, folded: PromptModel, info: ModelInfo, output: Path
) -> tuple[float, list[Path]]:
    """Write ``NAME.encoder.onnx``, ``NAME.decoder.onnx`` and ``NAME.prompts.onnx`` for ``output`` NAME.onnx.

    Args:
        model: what the files must equal.
        folded: the same with its batch norms folded.
        info: description that goes into each.
        output: a path whose suffix is .onnx.

    Returns:
        The largest difference over the model's largest output, and the files.

    Raises:
        ExportError: a part cannot be traced, or differs: none is written.
    """
    size = folded.image_encoder.size
    info = info.replace(notes=info.notes | {"encoder": model.image_encoder.fingerprint()})
    dynamic = torch.export.Dim.DYNAMIC
    embedding = torch.zeros(1, EMBED_DIM, GRID, GRID)
    points = (torch.zeros(2, 3, 2), torch.zeros(2, 3))
    graphs: dict[str, tuple[nn.Module, tuple[Tensor, ...], Any, list[str], list[str]]] = {
        "encoder": (
            folded.image_encoder,
            (torch.zeros(2, info.in_chans, size, size),),
            ({0: dynamic},),
            ["image"],
            ["image_embeddings"],
        ),
        "decoder": (
            _SamDecoder(folded),
            (
                embedding,
                points[0][:1],
                points[1][:1],
                torch.zeros(1, 1, LOW_RES, LOW_RES),
                torch.zeros(1),
                torch.tensor([300.0, 400.0]),
            ),
            (None, {1: dynamic}, {1: dynamic}, None, None, None),
            ["image_embeddings", "point_coords", "point_labels", "mask_input", "has_mask_input", "orig_im_size"],
            ["masks", "iou_predictions", "low_res_masks"],
        ),
        "prompts": (
            _BatchDecoder(folded),
            (embedding, *points),
            (None, {0: dynamic, 1: dynamic}, {0: dynamic, 1: dynamic}),
            ["image_embeddings", "point_coords", "point_labels"],
            ["low_res_masks", "iou_predictions"],
        ),
    }
    assert tuple(graphs) == PROMPT_PARTS
    differences: list[float] = []
    files = [prompt_part(output, part) for part in graphs]
    with ExitStack() as stack:  # renamed when all are written and compared
        for path, (part, (graph, example, dynamic_shapes, inputs, outputs)) in zip(files, graphs.items(), strict=True):
            program = traced(graph.eval(), example, dynamic_shapes, inputs, outputs, info)
            temporary = stack.enter_context(atomic_write(path))
            temporary.write_bytes(_named(described(program, info)).SerializeToString())
            session = onnx_session(temporary)
            found = [_difference(session, graph, model, part, feed) for feed in _inputs(part, info.in_chans, size)]
            if not np.max(found) <= TOLERANCE:  # nor where it is NaN
                raise ExportError(f"the {part} differs from the model by {np.max(found):.1e}: nothing was written")
            differences += found
    return max(differences), files


_DIMENSIONS = {
    "image": ("batch",),
    "image_embeddings": ("batch",),
    "point_coords": ("prompts", "points"),
    "point_labels": ("prompts", "points"),
    "masks": ("prompts", "", "height", "width"),
    "iou_predictions": ("prompts",),
    "low_res_masks": ("prompts",),
}


def _named(proto: onnx.ModelProto) -> onnx.ModelProto:
    """Give the dimensions that are free names that say what they count."""
    for value in (*proto.graph.input, *proto.graph.output):
        for dim, name in zip(value.type.tensor_type.shape.dim, _DIMENSIONS.get(value.name, ()), strict=False):
            if name and not dim.HasField("dim_value"):
                dim.dim_param = name
    return proto


def _inputs(part: str, in_chans: int, size: int) -> list[dict[str, np.ndarray]]:
    """What a part is compared with: points, boxes, both, a mask; one prompt and several."""
    rng = np.random.default_rng(0)

    def normal(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    if part == "encoder":
        return [{"image": normal(1, in_chans, size, size)}]
    kinds = ([1, -1], [2, 3], [1, 0, 2, 3])
    counts = (1, 1, 1) if part == "decoder" else (1, 3, 5)
    feeds = []
    for labels, count in zip(kinds, counts, strict=True):
        feed = {
            "image_embeddings": normal(1, EMBED_DIM, GRID, GRID),
            "point_coords": rng.uniform(0, FRAME, (count, len(labels), 2)).astype(np.float32),
            "point_labels": np.tile(np.array(labels, np.float32), (count, 1)),
        }
        if part == "decoder":
            feed["mask_input"] = 8 * normal(1, 1, LOW_RES, LOW_RES)
            feed["has_mask_input"] = np.array([float(len(labels) > 2)], np.float32)
            feed["orig_im_size"] = np.array(((213, 320), (700, 501), (64, 48))[len(feeds)], np.float32)
        feeds.append(feed)
    return feeds


def _difference(session: Any, graph: nn.Module, model: PromptModel, part: str, feed: Mapping[str, np.ndarray]) -> float:
    """Largest difference of the file to the model, over the model's largest output."""
    unfolded = model.image_encoder if part == "encoder" else type(graph)(model)
    with torch.inference_mode():
        expected = unfolded(*(torch.from_numpy(value) for value in feed.values()))
    try:
        found = session.run(None, dict(feed))
    except Exception as error:  # the runtime's exceptions are not public
        raise ExportError(f"the {part} does not run ({reason(error)}): nothing was written") from error
    differences = []
    for a, b in zip(found, expected if isinstance(expected, tuple) else (expected,), strict=True):
        if a.shape != tuple(b.shape):
            raise ExportError(f"the {part} gives {a.shape}, the model {tuple(b.shape)}: nothing was written")
        differences.append(difference(a, b.numpy()))
    return float(np.max(differences))
