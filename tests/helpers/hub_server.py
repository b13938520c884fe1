"""A small model hub on this machine: the part of the real one's interface that fetching and sending files needs."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub(ThreadingHTTPServer):
    """Serves ``files`` by ``(repo, path)``, as of the commit ``commit``, and takes uploads into them.

    Attributes:
        requests: "METHOD path" of every request, in order.
        status: answered instead of files, where it is not 0.
        redirect: send readers of files to another path first, as the real hub does with large ones.
        broken: how many of the next downloads end after half of their bytes; resumed ones give none.
        stall: downloads wait for this after half of their bytes.
        states_sha256: state files' sha256, as the real hub does with large ones.
        lies: send other bytes than the stated hash's.
        headers: replace those of every answer about a file; ``None`` leaves one out.
        body: what is sent instead of a file, piece by piece.
        received: the headers of every request, in order.
        private: by repository that a client made, whether only its owner can see it.
        branches: what each upload went to, in order.
        made_branches: besides "main"; uploads to others are refused.
    """

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[tuple[str, str], bytes] = {}
        self.commit = "a" * 40
        self.requests: list[str] = []
        self.status = self.broken = 0
        self.redirect = self.states_sha256 = self.lies = False
        self.headers: dict[str, str | None] = {}
        self.body: Callable[[], Iterable[bytes]] | None = None
        self.received: list[Message] = []
        self.private: dict[str, bool] = {}
        self.branches: list[str] = []
        self.made_branches: set[str] = set()
        self.stall: threading.Event | None = None
        self.stalled = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def asked(self) -> int:
        """How often a file was asked about, or for."""
        return sum("/resolve/" in request for request in self.requests)

    def handle_error(self, request, client_address) -> None:
        """A client that went away is part of the tests."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, format: str, *args: object) -> None:
        self.server.requests.append(f"{self.command} {urlsplit(self.path).path}")
        self.server.received.append(self.headers)

    def do_HEAD(self) -> None:
        self._file()

    def do_GET(self) -> None:
        self._file()

    def _file(self) -> None:
        if self.server.status:
            return self._answer(self.server.status)
        path = unquote(urlsplit(self.path).path)
        cdn = path.startswith("/cdn/")
        repo, _, rest = path.removeprefix("/cdn").removeprefix("/").partition("/resolve/")
        revision, _, file = rest.partition("/")
        content = self.server.files.get((repo, file))
        if content is None or revision not in ("main", self.server.commit):
            return self._answer(404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.server.commit})
        kind = "sha256" if self.server.states_sha256 else "sha1"
        headers = {
            "X-Repo-Commit": self.server.commit,
            "ETag": f'"{hashlib.new(kind, content).hexdigest()}"',
            "X-Linked-Size": str(len(content)),
            "Accept-Ranges": "bytes",
        }
        if self.server.redirect and not cdn:
            return self._answer(302, {**headers, "Location": f"{self.server.address}/cdn{path}"})
        if self.server.lies:
            content = content[::-1]
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self._answer(206 if start else 200, headers, content[start:])

    def _answer(self, status: int, headers: dict[str, str] | None = None, body: bytes = b"") -> None:
        self.send_response(status)
        changed = self.server.headers if headers else {}
        for name, value in {**(headers or {}), "Content-Length": str(len(body)), **changed}.items():
            if value is not None:
                self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.server.body is not None:
            self.close_connection = True
            for piece in self.server.body():
                self.wfile.write(piece)
                self.wfile.flush()
            return
        if self.command == "GET" and status < 300 and (self.server.broken or self.server.stall):
            self.wfile.write(body[: len(body) // 2] if status == 200 else b"")
            self.wfile.flush()
            if self.server.stall:
                self.server.stalled.set()
                self.server.stall.wait()
            else:
                self.server.broken -= 1
            self.close_connection = True
            return
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.status:
            return self._answer(self.server.status)
        path = urlsplit(self.path).path
        if path == "/api/repos/create":
            asked = json.loads(body)
            repo = f"{asked['organization']}/{asked['name']}"
            # "visibility" since version 2 of the client
            self.server.private[repo] = asked.get("private") is True or asked.get("visibility") == "private"
            return self._json({"url": f"{self.server.address}/{repo}"})
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": []})
        rest, _, branch = path.removeprefix("/api/models/").rpartition("/")
        repo, _, action = rest.rpartition("/")
        if action == "branch":
            self.server.made_branches.add(branch)
            return self._json({})
        if branch not in {"main", *self.server.made_branches}:
            return self._answer(404, {"X-Error-Code": "RevisionNotFound"})
        if action == "preupload":
            files = json.loads(body)["files"]
            modes = [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            return self._json({"files": modes})
        if action == "commit":
            self.server.branches.append(branch)
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    self.server.files[repo, line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            url = f"{self.server.address}/{repo}/commit/{self.server.commit}"
            return self._json({"commitUrl": url, "commitOid": self.server.commit, "success": True})
        self._answer(404)

    def _json(self, answer: dict) -> None:
        self._answer(200, {"Content-Type": "application/json"}, json.dumps(answer).encode())


@contextmanager
def running() -> Iterator[Hub]:
    """A hub that answers until the end of the block."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        close(hub)
        thread.join()


def close(hub: Hub) -> None:
    """Take the hub off the network; its address answers nothing from then on."""
    if hub.stall:
        hub.stall.set()
    hub.shutdown()
    hub.server_close()
