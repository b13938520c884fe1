"""The open inference protocol v2, spoken by Triton's own client."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal.serving.replies import RefusalError
from foveal.serving.tensors import Inference, read_inference, write_inference
from helpers.pictures import encoded
from helpers.services import Running, running

MODEL = "efficientvit_b0.camvid"
client_library = pytest.importorskip("tritonclient.http")


@pytest.fixture
def client(service: Running) -> Iterator[Any]:
    with client_library.InferenceServerClient(f"127.0.0.1:{service.port}", network_timeout=120) as connected:
        yield connected


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def mask(pixels: np.ndarray) -> np.ndarray:
    return foveal.load(MODEL, runtime="onnxruntime", threads=1)(pixels).mask


def image_input(values: np.ndarray, datatype: str, binary: bool) -> Any:
    tensor = client_library.InferInput("image", list(values.shape), datatype)
    tensor.set_data_from_numpy(values, binary_data=binary)
    return tensor


def test_health_and_metadata(client: Any) -> None:
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")
    assert not client.is_model_ready("nothing")
    assert client.get_server_metadata()["name"] == "foveal"
    found = client.get_model_metadata(MODEL)
    assert found["inputs"] == [{"name": "image", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert found["outputs"] == [{"name": "mask", "datatype": "UINT8", "shape": [-1, -1, -1]}]


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_masks_of_pixels(client: Any, pixels: np.ndarray, mask: np.ndarray, binary_in: bool, binary_out: bool) -> None:
    outputs = [client_library.InferRequestedOutput("mask", binary_data=binary_out)]
    result = client.infer(MODEL, [image_input(pixels[None], "UINT8", binary_in)], outputs=outputs, request_id="seven")
    assert (result.as_numpy("mask") == mask).all()
    assert result.get_response()["id"] == "seven"


def test_several_images_and_files(client: Any, pixels: np.ndarray, mask: np.ndarray, photo: bytes) -> None:
    result = client.infer(MODEL, [image_input(np.stack([pixels] * 3), "UINT8", True)])
    assert result.as_numpy("mask").shape == (3, 64, 96)
    assert (result.as_numpy("mask") == mask).all()
    result = client.infer(MODEL, [image_input(np.array([photo], object), "BYTES", True)])
    assert result.as_numpy("mask").shape == (1, 96, 160)


def test_upscaled_images(client: Any, pixels: np.ndarray) -> None:
    expected = foveal.load("efficientvit_sr.x2", runtime="onnxruntime", threads=1)(pixels).image
    result = client.infer("up", [image_input(pixels[None], "UINT8", True)])
    assert (result.as_numpy("upscaled")[0] == expected).all()
    with_alpha, deep = np.dstack([pixels, pixels[..., 0]]), pixels[..., 0].astype(np.uint16) << 8
    for content in (encoded(Image.fromarray(picture), "PNG") for picture in (with_alpha, deep)):
        with pytest.raises(client_library.InferenceServerException, match="send RGB of 8 bits"):
            client.infer("up", [image_input(np.array([content], object), "BYTES", True)])


def test_mistakes_reach_the_client(client: Any, pixels: np.ndarray, photo: bytes) -> None:
    wrong = [
        ("nothing", pixels[None], "UINT8", "no model 'nothing'"),
        (MODEL, pixels[None].astype(np.float32), "FP32", "give UINT8 of shape"),
        (MODEL, pixels[None, ..., :2].copy(), "UINT8", "give UINT8 of shape"),
        (MODEL, np.zeros((9, 8, 8, 3), np.uint8), "UINT8", "9 images: give 1 to 8 at once"),
        (MODEL, np.array([b"no image"], object), "BYTES", "not an image in a supported format"),
        (MODEL, np.array([photo, photo[:900]], object), "BYTES", "damaged or truncated"),
    ]
    for model, values, datatype, words in wrong:
        with pytest.raises(client_library.InferenceServerException, match=words):
            client.infer(model, [image_input(values, datatype, True)])


def test_a_request_is_no_larger_than_the_queue() -> None:
    """Otherwise it could never be answered, and its client would try again for ever."""
    tensor = {"name": "image", "datatype": "UINT8", "shape": [3, 32, 32, 3], "data": [0] * (3 * 32 * 32 * 3)}
    with running("bicubic.x2", "--queue", "2") as service:
        reply = service.post_json("/v2/models/bicubic.x2/infer", {"inputs": [tensor]})
    assert reply.status == 400
    assert "3 images: give 1 to 2 at once" in reply.error


def test_json_files_are_base64(service: Running, photo: bytes, pixels: np.ndarray) -> None:
    tensor = {"name": "image", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(photo).decode()]}
    reply = service.post_json(f"/v2/models/{MODEL}/infer", {"inputs": [tensor]})
    assert reply.json["outputs"][0]["shape"] == [1, 96, 160]


# ---- tensors


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([], "the body has no list of inputs"),
        ({"inputs": [5]}, "inputs: give objects"),
        ({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [-1], "data": []}]}, "give its shape"),
        ({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1] * 9, "data": [1]}]}, "give its shape"),
        ({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [True], "data": [1]}]}, "give its shape"),
        ({"inputs": [{"name": "x", "datatype": {}, "shape": [1], "data": [1]}]}, "datatype '{}'"),
        ({"inputs": [{"name": "x", "datatype": "UINT9", "shape": [1], "data": [1]}]}, "datatype 'UINT9'"),
        ({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [2], "data": [1]}]}, "1 values for shape"),
        (
            {"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1], "data": [256]}]},
            "values that UINT8 does not have",
        ),
        ({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [2], "data": [300.0, 1]}]}, "UINT8 does not have"),
        ({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1], "data": [1.5]}]}, "UINT8 does not have"),
        ({"inputs": [{"name": "x", "datatype": "INT64", "shape": [1], "data": [math.nan]}]}, "INT64 does not have"),
        ({"inputs": [{"name": "x", "datatype": "FP32", "shape": [1], "data": [1e40]}]}, "FP32 does not have"),
        ({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [9], "data": []}]}, "9 images: give 1 to 8 at once"),
        ({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1], "data": ["a"]}]}, "cannot be read as UINT8"),
        ({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [2], "data": [[1], [2, 3]]}]}, "cannot be read"),
        ({"inputs": [{"name": "x", "datatype": "UINT8", "shape": [1]}]}, "no data"),
        ({"inputs": [{"name": "x", "datatype": "BYTES", "shape": [1], "data": ["*"]}]}, "cannot be read as BYTES"),
        ({"inputs": [], "outputs": [5]}, "outputs: give a list"),
        (
            {
                "inputs": [
                    {
                        "name": "x",
                        "datatype": "UINT8",
                        "shape": [1 << 62, 1 << 62],
                        "parameters": {"binary_data_size": 4},
                    }
                ]
            },
            "but 0 bytes are there",
        ),
    ],
)
def test_requests_that_cannot_be_read(content: Any, words: str) -> None:
    with pytest.raises(RefusalError, match=words):
        read_inference(json.dumps(content).encode(), None, 8)


@pytest.mark.parametrize("header", ["-1", "x", "99", "٣", "1e3", "9" * 30])
def test_wrong_lengths_of_the_json_part(header: str) -> None:
    with pytest.raises(RefusalError, match="Inference-Header-Content-Length"):
        read_inference(b'{"inputs": []}', header, 8)


def test_binary_data_of_the_wrong_size() -> None:
    tensor = {"name": "x", "datatype": "BYTES", "shape": [2], "parameters": {"binary_data_size": 8}}
    head = json.dumps({"inputs": [tensor]}).encode()
    for tail in (b"\x00\x00\x00\x00\xff\xff\xff\xff", b"\x05\x00\x00\x00abcd", b"\x00" * 9):
        with pytest.raises(RefusalError, match="binary data"):
            read_inference(head + tail, str(len(head)), 8)


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float16", "float32", "float64"])
@pytest.mark.parametrize("binary", [True, False])
def test_tensors_survive_the_way_there_and_back(dtype: str, binary: bool) -> None:
    array = (np.arange(6).reshape(2, 3) % 2).astype(dtype)
    answer = write_inference("m", Inference(all_binary=binary), {"x": array})
    length = answer.headers.get("Inference-Header-Content-Length")
    head = json.loads(answer.content[: int(length)] if length else answer.content)
    tail = answer.content[int(length) :] if length else b""
    body = json.dumps({"inputs": head["outputs"]}).encode()
    found = read_inference(body + tail, str(len(body)), 8).inputs["x"]
    assert found.dtype == array.dtype
    assert (found == array).all()
