"""Services for tests: real processes of ``foveal serve``, and requests to them by sockets."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

_WAIT = 120.0  # seconds until a test gives up; a busy machine is slow


class Reply(NamedTuple):
    """Status, headers (lower case) and body of a response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> str:
        """The line of a refusal."""
        assert self.headers["content-type"] == "application/json", self
        assert list(self.json) == ["error"], self
        return self.json["error"]


@dataclass
class Running:
    """A process of ``foveal serve``.

    Attributes:
        process: the process.
        port: that it listens on.
        log: lines of standard error so far.
    """

    process: subprocess.Popen[str]
    port: int
    log: list[str] = field(default_factory=list)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: dict[str, str] | None = None,
        connection: http.client.HTTPConnection | None = None,
    ) -> Reply:
        """One request, on a connection of its own unless one is given."""
        used = connection or self.connect()
        try:
            used.request(method, path, body, headers or {})
            response = used.getresponse()
            return Reply(
                response.status, {name.lower(): value for name, value in response.getheaders()}, response.read()
            )
        finally:
            if connection is None:
                used.close()

    def get(self, path: str, headers: dict[str, str] | None = None) -> Reply:
        return self.request("GET", path, None, headers)

    def post(self, path: str, body: bytes = b"", kind: str = "application/octet-stream", **headers: str) -> Reply:
        """A POST request; ``headers`` with ``_`` for ``-``."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.request("POST", path, body, {"Content-Type": kind, **named})

    def post_json(self, path: str, content: Any) -> Reply:
        return self.post(path, json.dumps(content).encode(), "application/json")

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=_WAIT)

    def dial(self) -> socket.socket:
        """A bare connection."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=_WAIT)

    def metric(self, line: str) -> float:
        """Value of a metric by the beginning of its line; 0 if it is not there."""
        for each in self.get("/metrics").body.decode().splitlines():
            if each.startswith(line):
                return float(each.rpartition(" ")[2])
        return 0.0

    def resident(self) -> int:
        """Resident memory in bytes."""
        return int(self.metric("process_resident_memory_bytes"))

    def end(self) -> int:
        """Ask it to end, and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(_WAIT)


@contextmanager
def running(
    *arguments: object,
    environment: dict[str, str] | None = None,
    program: tuple[object, ...] = (sys.executable, "-m", "foveal"),
) -> Iterator[Running]:
    """A service on a free port, ended afterwards; without torch's and ONNX Runtime's further threads."""
    command = [*map(str, (*program, "serve", *arguments)), "--port", "0", "--threads", "1"]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, env={**os.environ, **(environment or {})}, **pipes) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        log: list[str] = []
        reader = threading.Thread(target=lambda: log.extend(process.stderr or ()), daemon=True)
        reader.start()
        try:
            line = process.stdout.readline()
            assert line.startswith("http://127.0.0.1:"), (line, log)
            yield Running(process, int(line.split()[0].rpartition(":")[2]), log)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()
            reader.join()


def form(image: bytes, **options: str) -> tuple[bytes, str]:
    """Body and content type of a multipart form."""
    boundary = "foveal-test-boundary"
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"\r\n\r\n{value}\r\n'.encode()
        for name, value in options.items()
    ]
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="a.jpg"\r\n\r\n'.encode()
    return b"".join(
        parts
    ) + head + image + f"\r\n--{boundary}--\r\n".encode(), f"multipart/form-data; boundary={boundary}"
