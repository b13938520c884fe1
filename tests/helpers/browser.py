"""A real browser for tests of the page: Chromium through Playwright, photographs, and what the page saves."""

from __future__ import annotations

import base64
import functools
import importlib.util
import io
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_ARGUMENTS = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"),
    *("--disable-component-update", "--disable-sync"),
)
PATIENCE = 240_000  # milliseconds; nothing is measured here


def why_not() -> str:
    """Why there is no browser here; empty if there is one."""
    if importlib.util.find_spec("playwright") is None:
        return "the package playwright is not installed"
    return "" if CHROMIUM else "there is no Chromium (Debian: apt-get install chromium)"


@contextmanager
def open_browser() -> Iterator[Any]:
    """Chromium, without a window."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(_ARGUMENTS))
        yield browser
        browser.close()


class _Files(SimpleHTTPRequestHandler):
    """Files of a folder, with the headers that allow threads."""

    extensions_map = SimpleHTTPRequestHandler.extensions_map | {".mjs": "text/javascript", ".wasm": "application/wasm"}

    def end_headers(self) -> None:
        self.send_header("Cross-Origin-Opener-Policy", "same-origin")
        self.send_header("Cross-Origin-Embedder-Policy", "require-corp")
        super().end_headers()

    def log_message(self, format: str, *args: Any) -> None: ...


@contextmanager
def serve_folder(folder: Path) -> Iterator[str]:
    """Serve a site; its address."""
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Files, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()


@contextmanager
def run_demo(runtime: str = "onnxruntime") -> Iterator[str]:
    """``foveal demo --page`` as a process; the address that it prints."""
    command = [sys.executable, "-m", "foveal", "demo", "--page", "--no-browser", "--runtime", runtime]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[0]
        finally:
            process.terminate()


class PageDriver:
    """The page in a browser, and what a visitor does with it."""

    def __init__(self, browser: Any, address: str, **options: Any) -> None:
        options = {"viewport": {"width": 1280, "height": 800}} | options
        self.context = browser.new_context(accept_downloads=True, **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.problems: list[str] = []
        self.requests: list[Any] = []
        self.page.on("console", lambda message: message.type == "error" and self.problems.append(message.text))
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.on("request", lambda request: self.requests.append(request))
        self.page.goto(address)
        self.page.wait_for_selector("html[data-state=ready]")
        self.wait()

    def close(self) -> None:
        self.context.close()

    def wait(self) -> None:
        """Until the page does nothing."""
        self.page.wait_for_selector("html[data-busy=false]")

    def choose(self, file: Path | dict[str, Any]) -> None:
        """Choose a file as a visitor does in the file dialog."""
        self.page.set_input_files("#file", file)
        self.page.wait_for_selector("#view:visible, #error:visible")
        self.wait()

    def give(self, event: str, content: bytes, name: str, kind: str) -> None:
        """Drop or paste a file."""
        code = """([event, content, name, type]) => {
            const bytes = Uint8Array.from(atob(content), (letter) => letter.charCodeAt(0));
            const data = new DataTransfer();
            data.items.add(new File([bytes], name, { type }));
            const made = event === "drop"
              ? new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true })
              : new ClipboardEvent("paste", { clipboardData: data, bubbles: true });
            document.body.dispatchEvent(made);
        }"""
        self.page.evaluate(code, [event, base64.b64encode(content).decode(), name, kind])
        self.page.wait_for_selector("#view:visible, #error:visible")
        self.wait()

    def place(self, x: float, y: float) -> tuple[float, float]:
        """A point of the screen, from shares of the photograph's width and height."""
        self.page.evaluate("scrollTo(0, 0)")
        box = self.page.locator("#view").bounding_box()
        return box["x"] + x * box["width"], box["y"] + y * box["height"]

    def click(self, x: float, y: float, **options: Any) -> None:
        """Click on the photograph, in shares of its width and height."""
        self.page.mouse.click(*self.place(x, y), **options)
        self.wait()

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        """Press at one point of the photograph and release at another."""
        self.page.mouse.move(*self.place(*start))
        self.page.mouse.down()
        self.page.mouse.move(*self.place(*end), steps=4)
        self.page.mouse.up()
        self.wait()

    def press(self, selector: str) -> None:
        """Press a button of the page."""
        self.page.click(selector)
        self.wait()

    def slide(self, selector: str, value: float) -> None:
        """Set a slider."""
        self.page.locator(selector).fill(str(value))
        self.wait()

    def saved(self, button: str) -> tuple[str, bytes]:
        """Name and content of the file that a button saves."""
        with self.page.expect_download() as waiting:
            self.page.click(button)
        self.wait()
        return waiting.value.suggested_filename, Path(waiting.value.path()).read_bytes()

    def saved_picture(self, button: str) -> Image.Image:
        """The picture that a button saves."""
        return Image.open(io.BytesIO(self.saved(button)[1]))

    def overlay(self) -> NDArray[np.uint8]:
        """What is drawn over the photograph, RGBA."""
        text = self.page.evaluate("document.getElementById('overlay').toDataURL()")
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(text.partition(",")[2]))).convert("RGBA"))

    def error(self) -> str:
        """The error on the page; empty: there is none."""
        return self.page.inner_text("#error-text") if self.page.is_visible("#error") else ""


def iou(a: NDArray[Any], b: NDArray[Any]) -> float:
    """Intersection over union of two masks."""
    a, b = a.astype(bool), b.astype(bool)
    return float((a & b).sum() / max(1, (a | b).sum()))
