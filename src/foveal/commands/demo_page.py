"""The page of ``foveal demo --page``: a small server of Python's standard library, for this machine only.

It answers the calls that the page makes, with the bundled models: those of ``foveal serve``, without its limits, queues
and further formats. The base install is enough.
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import threading
import urllib.parse
import webbrowser
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

from .. import assets
from ..errors import FovealError, InputError
from ..files import parse_json
from ..page import TYPES, page_files
from .console import say

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..prediction.predictor import Predictor
    from ..prediction.prompting import Embedding

MAX_BODY = 1 << 26  # bytes of a request
MAX_PIXELS = 50_000_000
_KEPT = 8  # embeddings
_NAMES = (
    "127.0.0.1",
    "localhost",
    "[::1]",
)  # of this machine in the header Host; others come from other sites' scripts


@dataclass(frozen=True)
class _Answer:
    content: bytes
    type: str = "application/json"
    status: int = 200


class DemoModels:
    """The bundled models, opened, and what their calls answer. One call runs at a time."""

    def __init__(self) -> None:
        from ..prediction.load import load

        refs = (assets.DEFAULTS["segment"], f"{assets.DEFAULTS['upscale']}.x2")
        predictors = [load(assets.DEFAULTS["prompt"], runtime="onnxruntime"), *map(load, refs)]
        self.predictors: dict[str, Predictor] = {predictor.info.ref: predictor for predictor in predictors}
        self._embeddings: OrderedDict[str, Embedding] = OrderedDict()
        self._lock = threading.Lock()

    def describe(self) -> dict[str, Any]:
        """What ``GET api/models`` answers."""
        models = [_describe(ref, predictor) for ref, predictor in self.predictors.items()]
        return {"models": models, "limits": {"body_bytes": MAX_BODY, "pixels": MAX_PIXELS}}

    def call(self, ref: str, name: str, options: dict[str, Any], body: bytes) -> _Answer | None:
        """Answer a call; ``None``: there is no such model, call or embedding.

        Raises:
            FovealError: the image or an option cannot be used.
        """
        from ..task import TASKS

        predictor = self.predictors.get(ref)
        if predictor is None:
            return None
        calls: dict[str, Callable[[Predictor, dict[str, Any], bytes], _Answer | None]]
        if TASKS[predictor.info.task].takes_prompts:
            calls = {"encode": self._encode, "prompt": self._prompt, "everything": _everything}
        else:
            calls = {"predict": _classes if TASKS[predictor.info.task].labels_pixels else _upscale}
        with self._lock:
            return calls[name](predictor, options, body) if name in calls else None

    def _encode(self, predictor: Predictor, options: dict[str, Any], body: bytes) -> _Answer:
        digest = hashlib.sha256(body).hexdigest()
        if digest not in self._embeddings:
            self._embeddings[digest] = predictor.encode(_read(body))
        self._embeddings.move_to_end(digest)
        while len(self._embeddings) > _KEPT:
            self._embeddings.popitem(last=False)
        height, width = self._embeddings[digest].size
        return _json({"embedding": digest, "width": width, "height": height})

    def _prompt(self, predictor: Predictor, options: dict[str, Any], body: bytes) -> _Answer | None:
        from ..images.sam_frame import at_image_size

        embedding = self._embeddings.get(str(options.get("embedding")))
        if embedding is None:
            return None
        points, box = options.get("points"), options.get("box")
        multimask = options.get("multimask", bool(points) and len(points) == 1 and box is None)
        result = embedding.prompt(points, options.get("labels"), box, multimask=bool(multimask))
        size = _reduced(embedding.size, options.get("max_side"))
        masks = [
            _mask(at_image_size(low_res, size) > 0, float(iou))
            for low_res, iou in zip(result.low_res[0], result.iou, strict=True)
        ]
        return _json({"height": size[0], "width": size[1], "best": int(result.iou.argmax()), "masks": masks})


def _describe(ref: str, predictor: Predictor) -> dict[str, Any]:
    info, entry = predictor.info, {}
    if info.labels.names:
        pairs = zip(info.labels.names, info.labels.palette, strict=True)
        entry["classes"] = [{"name": name, "colour": colour} for name, colour in pairs]
    if "scale" in info.options:
        entry["scale"] = info.options["scale"]
    return {"name": ref, "task": info.task, "licence": info.licence, "runtime": predictor.runtime, **entry}


def _read(body: bytes) -> NDArray[np.uint8]:
    from ..images.reading import read_image

    return read_image(body, name="the photograph", max_pixels=MAX_PIXELS)


def _reduced(size: tuple[int, int], side: Any) -> tuple[int, int]:
    """(H, W) of masks whose long side is at most ``side``."""
    from ..images.preparing import long_side_size

    if side is None:
        return size
    if not isinstance(side, int) or side < 1:
        raise InputError(f"max_side={side!r}: give a number of pixels from 1 up")
    return size if side >= max(size) else long_side_size(*size, side)


def _mask(mask: NDArray[np.bool_], iou: float) -> dict[str, Any]:
    from ..images import regions

    x1, y1, x2, y2 = regions.boxes_of(mask[None])[0].tolist() if mask.any() else (0, 0, 0, 0)
    rle = regions.uncompressed_rle(regions.runs_of(mask), (mask.shape[0], mask.shape[1]))
    return {"iou": iou, "area": int(mask.sum()), "bbox": [x1, y1, x2 - x1, y2 - y1], "rle": rle}


def _everything(predictor: Predictor, options: dict[str, Any], body: bytes) -> _Answer:
    from PIL import Image

    points, image = options.get("points_per_side", 32), Image.fromarray(_read(body))
    if not isinstance(points, int):
        raise InputError(f"points_per_side={points!r}: give a whole number")
    height, width = _reduced((image.height, image.width), options.get("max_side"))
    found = predictor.everything(image.resize((width, height)), fast=True, points_per_side=points)
    masks = []
    for record in found:
        scores = {"stability": record["stability_score"], "point": record["point_coords"][0]}
        segmentation: Any = record["segmentation"]
        masks.append(_mask(segmentation, record["predicted_iou"]) | scores)
    return _json({"height": height, "width": width, "prompts": found.prompts, "masks": masks})


def _classes(predictor: Predictor, options: dict[str, Any], body: bytes) -> _Answer:
    result = predictor(_read(body))
    height, width = result.mask.shape
    found = [
        {"index": index, "name": name, **_mask(result.mask == index, 1.0)}
        for index, name in enumerate(result.names)
        if (result.mask == index).any()
    ]
    return _json({"height": height, "width": width, "classes": found})


def _upscale(predictor: Predictor, options: dict[str, Any], body: bytes) -> _Answer:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(predictor(_read(body)).image).save(file, "PNG", compress_level=1)
    return _Answer(file.getvalue(), "image/png")


def _json(content: Any, status: int = 200) -> _Answer:
    return _Answer(json.dumps(content).encode(), status=status)


def _error(status: int, text: str) -> _Answer:
    return _json({"error": " ".join(text.split())}, status)


class _Handler(BaseHTTPRequestHandler):
    """Requests of the page. ``server`` is a :class:`_Server`."""

    protocol_version = "HTTP/1.1"
    timeout = 60  # seconds that a connection may be silent
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def do_GET(self) -> None:
        path = urllib.parse.urlsplit(self.path).path.lstrip("/") or "index.html"
        if path == "api/models":
            return self._send(_json(self.server.models.describe()))
        file = self.server.files.get(path)
        if file is None:
            return self._send(_error(404, "there is no such address"))
        self._send(_Answer(file.read_bytes(), TYPES[file.suffix]))

    def do_POST(self) -> None:
        self._send(self._answer())

    def _answer(self) -> _Answer:
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > MAX_BODY:
            self.close_connection = True  # the body stays unread
            return _error(413, f"give an image of at most {MAX_BODY >> 20} MB")
        body, address = self.rfile.read(int(length)), urllib.parse.urlsplit(self.path)
        parts = [urllib.parse.unquote(part) for part in address.path.strip("/").split("/")]
        if len(parts) != 3 or parts[0] != "api":
            return _error(404, "there is no such address")
        try:
            options: Any = {name: _number(value) for name, value in urllib.parse.parse_qsl(address.query)}
            if self.headers.get_content_type() == "application/json":
                options = parse_json(body)
            if not isinstance(options, dict):
                raise InputError("the body is no JSON object")
            answer = self.server.models.call(parts[1], parts[2], options, body)
        except (FovealError, ValueError) as error:
            return _error(422, str(error))
        return answer or _error(404, "there is no such model, call or embedding")

    def _send(self, answer: _Answer) -> None:
        if self.headers.get("Host", "").rpartition(":")[0] not in _NAMES:
            answer = _error(403, "only pages of this machine are answered")
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.type)
        self.send_header("Content-Length", str(len(answer.content)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.end_headers()
        self.wfile.write(answer.content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing is logged."""


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, port: int) -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.models, self.files = DemoModels(), page_files()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes its connection is no error."""


def serve_page(port: int, open_browser: bool) -> int:
    """Serve the page until the user stops it.

    Args:
        port: 0 for any that is free.
        open_browser: whether to open it in the browser of this machine.

    Raises:
        InputError: the port cannot be used.
    """
    try:
        server = _Server(port)
    except OSError as error:
        raise InputError(f"--port {port} cannot be used ({error.strerror}): choose another, or 0 for any") from error
    address = f"http://127.0.0.1:{server.server_port}/"
    say(f"{address}  the page is open until you press Ctrl+C; photographs stay on this machine")
    sys.stdout.flush()
    if open_browser:
        webbrowser.open(address)
    try:
        server.serve_forever()
    except KeyboardInterrupt:
        say()
    finally:
        server.server_close()
    return 0
