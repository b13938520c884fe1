"""The open inference protocol, version 2, as KServe and Triton speak it: health, metadata, infer.

https://kserve.github.io/website/docs/concepts/architecture/data-plane/v2-protocol, with the extension for binary tensor
data. The tensor "image" is one image or several of one size, as pixels or, of the type BYTES, as files.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np
from fastapi import FastAPI, Request, Response
from numpy.typing import NDArray

from ..errors import FovealError, nearest
from ..prediction.batching import Prepared
from ..prediction.predictor import Predictor
from . import openapi
from .calls import Served
from .inputs import refuse_encoding
from .lanes import Work
from .replies import RefusalError, refusal_of
from .service import Service
from .tensors import HEADER, Inference, Spec, read_inference, write_inference

_PIXELS = {"uint8": "UINT8", "uint16": "UINT16", "float32": "FP32"}
_BYTES = 5  # of a value of an image: as it was read, and for the network
Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Protocol:
    """How a task appears in the protocol.

    Attributes:
        outputs: tensors of a model.
        arrays: tensors of one image's result; those of several images are stacked.
        inputs: tensors beside the image.
        run: computes the result of an image with these inputs; ``None``: the model's own prediction.
        lane: where it waits.
    """

    outputs: Callable[[Predictor], tuple[Spec, ...]]
    arrays: Callable[[Any], Arrays]
    inputs: tuple[Spec, ...] = ()
    run: Callable[[Predictor, Any, Arrays], Any] | None = None


def _mask_type(predictor: Predictor) -> str:
    return "UINT8" if predictor.info.num_classes <= 256 else "INT32"


def _prompted(predictor: Predictor, image: Any, inputs: Arrays) -> Any:
    """Masks of the prompts; a single prompt has the masks of a part, the whole and more."""
    points, boxes, labels = (inputs.get(name) for name in ("points", "boxes", "labels"))
    if points is not None and labels is None:
        labels = np.ones(len(points))
    single = boxes is not None and len(boxes) == 1
    result = predictor.encode(image).prompt(points, labels, boxes[0] if boxes is not None and single else boxes)
    return result


def _upscaled(result: Any) -> Arrays:
    """The enlarged image, as the metadata describe it.

    Raises:
        RefusalError: 422, it has 16 bits or alpha.
    """
    if result.image.dtype != np.uint8 or result.image.shape[2] != 3:
        raise RefusalError(
            422, "images with 16 bits or alpha have results that these tensors cannot hold: send RGB of 8 bits"
        )
    return {"upscaled": result.image}


def _masks(result: Any) -> Arrays:
    if result.many:  # the best mask of each prompt
        return {"masks": result.best, "iou": result.iou.reshape(len(result.low_res), -1).max(1)}
    return {"masks": result.masks, "iou": result.iou}


PROTOCOLS = {
    "segment": Protocol(
        lambda predictor: (Spec("mask", _mask_type(predictor), (-1, -1, -1)),),
        lambda result: {"mask": result.mask},
    ),
    "classify": Protocol(
        lambda predictor: (Spec("scores", "FP32", (-1, predictor.info.num_classes)),),
        lambda result: {"scores": result.scores},
    ),
    "upscale": Protocol(
        lambda predictor: (Spec("upscaled", "UINT8", (-1, -1, -1, 3)),),
        _upscaled,
    ),
    "prompt": Protocol(
        lambda predictor: (Spec("masks", "BOOL", (-1, -1, -1, -1)), Spec("iou", "FP32", (-1, -1))),
        _masks,
        (Spec("points", "FP32", (-1, 2)), Spec("labels", "INT64", (-1,)), Spec("boxes", "FP32", (-1, 4))),
        _prompted,
    ),
}


def add_inference_protocol(app: FastAPI, service: Service) -> None:
    """Add the addresses below ``/v2``."""

    @app.get("/v2", tags=["KServe v2"], summary="Name and extensions of the server")
    async def server() -> dict[str, Any]:
        return {"name": "foveal", "version": metadata.version("foveal"), "extensions": ["binary_tensor_data"]}

    @app.get("/v2/health/live", tags=["KServe v2"], summary="Whether the process answers")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get(
        "/v2/health/ready", tags=["KServe v2"], summary="Whether requests are taken", responses=openapi.errors(503)
    )
    async def ready() -> dict[str, bool]:
        if service.ending:
            raise RefusalError(503, "the service ends", "ending", {"Retry-After": "1"})
        return {"ready": True}

    async def model_metadata(model: str) -> dict[str, Any]:
        return describe_model(service.find(model))

    async def model_ready(model: str) -> dict[str, Any]:
        return {"name": service.find(model).name, "ready": not service.ending}

    async def infer(model: str, request: Request) -> Response:
        return await _infer(service, model, request)

    missing = openapi.errors(400, 404)
    for prefix in ("/v2/models/{model}", "/v2/models/{model}/versions/1"):
        of_version = " (version 1)" * ("versions" in prefix)
        app.add_api_route(prefix, model_metadata, tags=["KServe v2"], summary=f"Tensors{of_version}", responses=missing)
        app.add_api_route(
            f"{prefix}/ready", model_ready, tags=["KServe v2"], summary=f"Ready{of_version}", responses=missing
        )
        app.add_api_route(
            f"{prefix}/infer",
            infer,
            methods=["POST"],
            tags=["KServe v2"],
            summary=f"Predict{of_version}",
            response_class=Response,
            **openapi.describe_infer(),
        )


def describe_model(served: Served) -> dict[str, Any]:
    """Model metadata."""
    predictor = served.predictor
    protocol = PROTOCOLS[predictor.info.task]
    inputs = (image_spec(predictor), *protocol.inputs)
    return {
        "name": served.name,
        "versions": ["1"],
        "platform": "foveal",
        "inputs": [spec.describe() for spec in inputs],
        "outputs": [spec.describe() for spec in protocol.outputs(predictor)],
    }


def image_spec(predictor: Predictor) -> Spec:
    """The tensor of images, ``(B, H, W, C)``."""
    return Spec("image", _PIXELS[predictor.bands.dtype], (-1, -1, -1, predictor.bands.count))


async def _infer(service: Service, model: str, request: Request) -> Response:
    served = service.find(model)
    request.state.facts |= {"model": served.name, "call": "infer"}
    lane, most = service.lanes["images"], min(service.limits.batch_size, service.limits.queue)
    lane.check_room()
    refuse_encoding(request)
    with service.bodies.holding() as holding:
        body = await holding.read(request)
        asked = await asyncio.to_thread(read_inference, body, request.headers.get(HEADER), most)
        predictor = served.predictor
        names = _check_names(predictor, asked)
        images = _images(asked.inputs["image"], predictor, most)
        sizes = [_size(service, image) for image in images]
        request.state.facts |= {"pixels": sum(height * width for height, width in sizes), "bytes": len(body)}
        deadline = time.monotonic() + service.limits.seconds
        works = [
            (lane, _work(served, image, asked, height * width * predictor.bands.count * _BYTES, deadline))
            for image, (height, width) in zip(images, sizes, strict=True)
        ]
        results = await service.run(works, request)
        found = results if len(works) > 1 else [results]
        answer = await asyncio.to_thread(_stacked, served.name, asked, found, names)
    return Response(answer.content, media_type=answer.media_type, headers=dict(answer.headers))


def _work(served: Served, image: Any, asked: Inference, size: int, deadline: float) -> Work:
    protocol, predictor = PROTOCOLS[served.predictor.info.task], served.predictor

    def read() -> Prepared:
        if (run := protocol.run) is None:
            return predictor.prepare(image)
        return Prepared(None, lambda _: run(predictor, image, asked.inputs), 0)

    return Work(served.batches, read, protocol.arrays, size, deadline)


def _check_names(predictor: Predictor, asked: Inference) -> tuple[str, ...]:
    """Names of the wanted outputs.

    Raises:
        RefusalError: an unknown input or output, or one of another type or shape.
    """
    protocol = PROTOCOLS[predictor.info.task]
    image = image_spec(predictor)
    known = {spec.name: spec for spec in (image, *protocol.inputs)}
    for name, array in asked.inputs.items():
        if name not in known:
            raise RefusalError(400, f"unknown input {name[:80]!r}{nearest(name[:80], known)}")
        spec = known[name]
        if spec is image:
            continue
        sides = len(array.shape) == len(spec.shape) and all(
            want in (-1, have) for want, have in zip(spec.shape, array.shape, strict=True)
        )
        if not sides or array.dtype.kind not in "iuf" or not 0 < len(array) <= 64:
            raise RefusalError(
                400, f"input {name!r}: give {spec.datatype} of shape {list(spec.shape)}, at most 64 rows"
            )
    if "image" not in asked.inputs:
        raise RefusalError(400, "no input 'image'")
    outputs = {spec.name for spec in protocol.outputs(predictor)}
    for name in asked.outputs:
        if name not in outputs:
            raise RefusalError(400, f"unknown output {name[:80]!r}{nearest(name[:80], outputs)}")
    return asked.outputs


def _images(tensor: NDArray[Any], predictor: Predictor, most: int) -> list[Any]:
    """The images of a tensor: contents of files, or arrays ``(H, W, C)``."""
    spec = image_spec(predictor)
    if tensor.dtype == object:
        images = tensor.ravel().tolist()
    else:
        if tensor.ndim == 3:
            tensor = tensor[None]
        if tensor.ndim != 4 or tensor.shape[3] != spec.shape[3] or str(tensor.dtype) != predictor.bands.dtype:
            raise RefusalError(
                400, f"input 'image': give {spec.datatype} of shape {list(spec.shape)}, or files as BYTES of shape [-1]"
            )
        images = list(tensor)
    if not 1 <= len(images) <= most:
        raise RefusalError(400, f"input 'image': {len(images)} images: give 1 to {most} at once")
    return images


def _size(service: Service, image: Any) -> tuple[int, int]:
    """(H, W) of an image, from its header or its shape."""
    if isinstance(image, bytes):
        try:
            return service.check_size(image)
        except FovealError as error:
            raise refusal_of(error) from error
    height, width = image.shape[:2]
    if height * width > service.limits.max_pixels:
        raise RefusalError(413, f"images of {width}x{height}: above {service.limits.max_pixels:g} pixels", "size")
    return height, width


def _stacked(name: str, asked: Inference, results: list[Mapping[str, NDArray[Any]]], names: tuple[str, ...]) -> Any:
    """The answer for all images of a request."""
    chosen = names or tuple(results[0])
    if any(len({result[each].shape for result in results}) > 1 for each in chosen):
        raise RefusalError(422, "the images have different sizes, and so their results: send them one by one")
    outputs = {each: np.stack([result[each] for result in results]) for each in chosen}
    if sum(array.size for each, array in outputs.items() if not asked.wants_binary(each)) > _MOST_VALUES:
        raise RefusalError(413, f"more than {_MOST_VALUES} values in JSON: ask for binary_data", "size")
    return write_inference(name, asked, outputs)


_MOST_VALUES = 1 << 23  # in an answer in JSON
