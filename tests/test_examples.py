"""The programs in examples/ do what they say, each in its own process, with the libraries that they need."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import foveal
from foveal import assets
from foveal.cli import app

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
STREET = assets.path("street", ".jpg")
CLICK = (437, 560)
SAM = "tf_efficientnet_lite0.sam"


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the packages of this one and those of the examples, which would change versions here (Pillow)."""
    folder = tmp_path_factory.mktemp("apps")
    venv.create(folder, with_pip=True)
    executable = folder / "bin" / "python"
    (purelib,) = (folder / "lib").glob("*/site-packages")
    (purelib / "tests.pth").write_text(f"{ROOT / 'src'}\n{sysconfig.get_path('purelib')}\n")
    wanted = ["gradio>=5", "napari>=0.5", "label-studio-converter>=0.0.59", "flask>=3", "requests"]
    command = [executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *wanted]
    if (result := subprocess.run(command, capture_output=True, text=True)).returncode:
        pytest.skip(f"pip cannot install the libraries of the examples here: {result.stderr[-300:]}")
    return executable


@contextmanager
def running(command: list[Any], port: int, **environment: str) -> Iterator[str]:
    """The address of a server while its process runs."""
    address = f"http://127.0.0.1:{port}"
    words, settings = list(map(str, command)), {**os.environ, **environment}
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(words, cwd=EXAMPLES, env=settings, stdout=output, stderr=output)
        try:
            while not listens(port):
                output.seek(0)
                assert process.poll() is None, output.read().decode()
                time.sleep(0.1)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=60)


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def post(address: str, body: bytes, kind: str) -> tuple[int, bytes]:
    request = urllib.request.Request(address, body, {"Content-Type": kind})
    try:
        with urllib.request.urlopen(request, timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def form(content: bytes) -> tuple[bytes, str]:
    """A form with the file field "photo", and its content type."""
    head = b'--limit\r\nContent-Disposition: form-data; name="photo"; filename="a.jpg"\r\n\r\n'
    return head + content + b"\r\n--limit--\r\n", "multipart/form-data; boundary=limit"


@pytest.fixture(scope="module")
def clicked_mask() -> np.ndarray:
    return foveal.load(SAM).encode(STREET).prompt(points=[CLICK], labels=[1]).best


def test_the_cpp_client_gives_the_same_classes(tmp_path: Path) -> None:
    compiler = shutil.which("g++")
    if compiler is None:
        pytest.skip("g++ is not installed")
    import openvino

    folder = Path(openvino.__path__[0])
    (library,) = (folder / "libs").glob("libopenvino.so.*")
    program, image, mask = tmp_path / "client", tmp_path / "street.ppm", tmp_path / "mask.pgm"
    compile = [compiler, "-std=c++17", "-Wall", "-Werror", EXAMPLES / "cpp_client.cpp", "-o", program]
    subprocess.run([*compile, f"-I{folder / 'include'}", library, f"-Wl,-rpath,{folder / 'libs'}"], check=True)
    model = foveal.export("efficientvit_b0.camvid", output=tmp_path / "camvid.onnx", bake=True).path
    photograph = Image.open(STREET).convert("RGB").resize((641, 373))
    photograph.save(image)
    process = subprocess.run([program, model, image, mask], capture_output=True, text=True, check=True)
    expected = foveal.load("efficientvit_b0.camvid")(photograph)
    with Image.open(mask) as written:
        assert (np.asarray(written) == expected.mask).mean() >= 0.9999
    assert [line.partition(":")[0] for line in process.stdout.splitlines()] == list(expected.names)

    image.write_bytes(image.read_bytes()[:1000])
    process = subprocess.run([program, model, image, mask], capture_output=True, text=True)
    assert (process.returncode, process.stderr) == (2, f"{image} is cut off\n")


def test_the_gradio_app_cuts_out_an_object(python: Path, clicked_mask: np.ndarray, tmp_path: Path) -> None:
    port = free_port()
    settings = {"GRADIO_SERVER_PORT": str(port), "GRADIO_ANALYTICS_ENABLED": "False"}
    ask = (
        "import sys, shutil, gradio_client as g\n"
        "address, image, x, y, out = sys.argv[1:]\n"
        "client = g.Client(address, verbose=False, httpx_kwargs={'timeout': 300})\n"
        "shutil.copy(client.predict(g.handle_file(image), int(x), int(y), api_name='/cut_out'), out)\n"
    )
    with running([python, "gradio_app.py"], port, **settings) as address:
        with urllib.request.urlopen(address) as page:
            assert b"Click to cut out" in page.read()
        subprocess.run([python, "-c", ask, address, STREET, *map(str, CLICK), tmp_path / "out.png"], check=True)
    with Image.open(tmp_path / "out.png") as picture:
        result = np.asarray(picture)
    np.testing.assert_array_equal(result[..., 3] > 0, clicked_mask)


class Studio(BaseHTTPRequestHandler):
    """Hands out the photograph to those who have the key, as Label Studio does."""

    def do_GET(self) -> None:
        known = self.headers["Authorization"] == "Token key" and self.path == "/data/upload/1/street.jpg"
        self.send_response(200 if known else 404)
        self.end_headers()
        if known:
            self.wfile.write(STREET.read_bytes())

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def studio() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Studio)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_label_studio_gets_a_brush(python: Path, studio: str, clicked_mask: np.ndarray, tmp_path: Path) -> None:
    """In the requests of its protocol; the mask is decoded by its own library."""
    height, width = clicked_mask.shape
    place = {"original_width": width, "original_height": height}
    value = {"x": CLICK[0] / width * 100, "y": CLICK[1] / height * 100, "keypointlabels": ["person"]}
    context = {"result": [{**place, "type": "keypointlabels", "is_positive": True, "value": value}]}
    body = {"tasks": [{"id": 1, "data": {"image": "/data/upload/1/street.jpg"}}], "params": {"context": context}}
    port = free_port()
    command = [python, "-m", "flask", "--app", "label_studio_backend", "run", "--port", port]
    with running(command, port, LABEL_STUDIO_URL=studio, LABEL_STUDIO_API_KEY="key") as address:

        def ask(path: str, content: dict[str, Any]) -> tuple[int, bytes]:
            return post(f"{address}/{path}", json.dumps(content).encode(), "application/json")

        assert json.loads(urllib.request.urlopen(f"{address}/health").read())["status"] == "UP"
        assert json.loads(ask("setup", {"schema": ""})[1])["model_version"] == SAM
        assert json.loads(ask("predict", {"tasks": body["tasks"]})[1])["results"][0]["result"] == []
        status, content = ask("predict", body)
        assert status == 200
        body["tasks"][0]["data"]["image"] = "http://127.0.0.1:1/secret.jpg"
        assert ask("predict", body)[0] == 403
    (region,) = json.loads(content)["results"][0]["result"]
    assert region["value"]["brushlabels"] == ["person"]
    (tmp_path / "rle.json").write_text(json.dumps(region["value"]["rle"]))
    decode = "import sys, json, numpy as np; from label_studio_converter.brush import decode_rle\n"
    decode += "np.save(sys.argv[2], decode_rle(json.load(open(sys.argv[1]))))"
    subprocess.run([python, "-c", decode, tmp_path / "rle.json", tmp_path / "mask.npy"], check=True)
    mask = np.load(tmp_path / "mask.npy").reshape(height, width, 4)
    np.testing.assert_array_equal(mask[..., 3] == 255, clicked_mask)


def test_clicks_in_napari_become_a_mask(python: Path, clicked_mask: np.ndarray, tmp_path: Path) -> None:
    """In its model of a viewer, which needs no window."""
    program = (
        "import sys, numpy as np; from PIL import Image; from napari.components import ViewerModel\n"
        "from napari_clicks import add_clicks\n"
        "viewer = ViewerModel(); out, street, x, y = sys.argv[1:]\n"
        "add_clicks(viewer, np.asarray(Image.open(street).convert('RGB')))\n"
        "viewer.layers['clicks'].add([float(y), float(x)])\n"
        "found = viewer.layers['object'].data.copy()\n"
        "viewer.layers['clicks'].selected_data = {0}; viewer.layers['clicks'].remove_selected()\n"
        "np.savez(out, found=found, after=viewer.layers['object'].data)\n"
    )
    command = [python, "-c", program, tmp_path / "masks.npz", STREET, *map(str, CLICK)]
    subprocess.run(list(map(str, command)), cwd=EXAMPLES, check=True)
    masks = np.load(tmp_path / "masks.npz")
    assert (masks["found"].astype(bool) == clicked_mask).mean() > 0.999  # points are float32 in napari
    assert not masks["after"].any()


@pytest.mark.skipif("serve" not in set(app), reason="this version has no foveal serve")
def test_the_flask_client_shows_what_the_service_answers(python: Path, tmp_path: Path) -> None:
    service, port = free_port(), free_port()
    serve = [sys.executable, "-m", "foveal", "serve", "efficientvit_b0.camvid", "--port", service]
    flask = [python, "-m", "flask", "--app", "flask_client", "run", "--port", port]
    with running(serve, service) as url, running(flask, port, FOVEAL_URL=url) as address:
        assert b"<form" in urllib.request.urlopen(address).read()
        status, picture = post(f"{address}/overlay", *form(STREET.read_bytes()))
        assert status == 200
        (tmp_path / "overlay.jpg").write_bytes(picture)
        shares = json.loads(post(f"{address}/shares", *form(STREET.read_bytes()))[1])
        status, text = post(f"{address}/overlay", *form(b"no image"))
        assert status in (415, 422)
        assert b"\n" not in text.strip()
    result = foveal.load("efficientvit_b0.camvid")(STREET)
    with Image.open(tmp_path / "overlay.jpg") as overlay:
        assert overlay.size == (1280, 743)
    expected = {name: share for name, share, _ in result.shares() if share}
    assert shares == pytest.approx(expected, abs=1e-4)
