"""What the service of ``foveal demo --page`` refuses; see ``tests/page`` and ``tests/serving`` for the rest."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest

from foveal.page import FOLDER, page_files
from helpers.browser import run_demo
from helpers.commands import Command

SAM = "tf_efficientnet_lite0.sam"
CAT = (FOLDER / "examples" / "cat.jpg").read_bytes()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with run_demo() as started:
        yield urlsplit(started).netloc


def ask(address: str, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """Status and JSON of an answer; names of headers have underscores."""
    connection = http.client.HTTPConnection(address, timeout=120)
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    connection.request(method, path, body, given)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    is_json = answer.headers["Content-Type"] == "application/json"
    return answer.status, json.loads(content) if is_json else content


def test_files_of_the_page_and_no_others(address: str) -> None:
    assert ask(address, "GET", "/") == (200, (FOLDER / "index.html").read_bytes())
    assert ask(address, "GET", "/examples/cat.jpg")[1] == CAT
    assert "__init__.py" not in page_files()
    for path in ("/__init__.py", "/../cli.py", "/%2e%2e/cli.py", "/examples/../../cli.py", "//etc/passwd", "/examples"):
        assert ask(address, "GET", path)[0] == 404


def test_calls_that_cannot_be_answered(address: str) -> None:
    status, models = ask(address, "GET", "/api/models")
    assert status == 200
    assert {model["task"] for model in models["models"]} == {"prompt", "segment", "upscale"}
    jpeg, text = {"Content_Type": "image/jpeg"}, {"Content_Type": "application/json"}
    assert ask(address, "POST", "/api/none/predict", CAT, **jpeg)[0] == 404
    assert ask(address, "POST", f"/api/{SAM}/predict", CAT, **jpeg)[0] == 404
    assert ask(address, "POST", f"/api/{SAM}/encode", b"no image", **jpeg)[0] == 422
    unknown = json.dumps({"embedding": "0" * 64, "points": [[1, 1]], "labels": [1]})
    assert ask(address, "POST", f"/api/{SAM}/prompt", unknown, **text)[0] == 404
    status, encoded = ask(address, "POST", f"/api/{SAM}/encode", CAT, **jpeg)
    assert (status, encoded["width"], encoded["height"]) == (200, 451, 300)
    outside = json.dumps({"embedding": encoded["embedding"], "points": [[999, 1]], "labels": [1]})
    status, answer = ask(address, "POST", f"/api/{SAM}/prompt", outside, **text)
    assert (status, answer["error"]) == (422, "point 999,1 is outside of the image of 451x300 pixels (x,y)")
    text_for_points = b'{"embedding": "%s", "points": "a"}' % encoded["embedding"].encode()
    for body, expected in ((b"[1]", 400), (b"{", 400), (text_for_points, 422)):
        assert ask(address, "POST", f"/api/{SAM}/prompt", body, **text)[0] == expected
    assert ask(address, "POST", f"/api/{SAM}/encode", b"", Content_Length=str(1 << 40))[0] == 413


def test_scripts_of_other_sites_are_refused(address: str) -> None:
    """A name that leads to this machine makes a browser think that another site is asking itself."""
    assert ask(address, "GET", "/api/models", Host="evil.example:80")[0] == 403


def test_a_used_port_ends_with_one_line(address: str, cli: Command) -> None:
    done = cli("demo", "--page", "--no-browser", "--port", address.rpartition(":")[2])
    assert done.returncode == 2
    assert f"{address} cannot be used" in done.stderr
    assert done.stderr.count("\n") == 1


def test_options_of_the_page_need_it(cli: Command) -> None:
    done = cli("demo", "--port", "8000")
    assert done.returncode == 2
    assert "go with --page" in done.stderr
