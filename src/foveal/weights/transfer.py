"""Fetch a file over HTTP, bounded in size and time whatever the server sends.

A request runs in a thread of its own, so that its time is bounded even if the server sends its headers byte by byte.
"""

from __future__ import annotations

import http.client
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

from ..progress import Progress

MAX_BYTES = 8 << 30  #: largest file of weights, in bytes
STALL = 10.0  #: seconds without a byte after which a transfer ends
RATE = 16 << 10  #: bytes per second that a transfer must have on average, after twice STALL
_REDIRECTS = 5  # at most
_TRIES = 5  # connections for one file; each must bring new bytes
_CHUNK = 1 << 16
_PORTS = {"http": 80, "https": 443}


class TransferError(Exception):
    """No answer, an error status, or a server that breaks off, is too slow or sends something else than it announced.

    Attributes:
        code: the status, 0 if there is none.
    """

    def __init__(self, message: str, code: int = 0) -> None:
        super().__init__(message)
        self.code = code


@dataclass
class Transfer:
    """One file to receive.

    Attributes:
        url: address, http or https.
        target: file to write; it is replaced.
        size: number of bytes that the server stated before; ``None``: unknown, at most :data:`MAX_BYTES`.
        headers: of the request; a redirect to another host does not get ``Authorization``.
    """

    url: str
    target: Path
    size: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    received: int = field(default=0, init=False)
    _stop: threading.Event = field(default_factory=threading.Event, init=False)

    def run(self) -> None:
        """Receive the file.

        Raises:
            TransferError: no connection, or it is larger than stated, shorter, compressed, or arrives too slowly.
            OSError: the file cannot be written.
        """
        start = last = time.monotonic()
        seen = 0

        def check() -> None:
            nonlocal last, seen
            now = time.monotonic()
            if self.received != seen:
                seen, last = self.received, now
            if now - last > 2 * STALL:  # a read alone ends after STALL
                raise TransferError(f"nothing arrived for {now - last:.0f} s, after {seen} bytes")
            if seen < RATE * (now - start - 2 * STALL):
                raise TransferError(f"only {seen} bytes arrived in {now - start:.0f} s")

        try:
            _in_thread(self._receive, check)
        finally:
            self._stop.set()

    def _receive(self) -> None:
        total = 0 if self.size is None else -(-self.size >> 20)
        with self.target.open("wb") as file, Progress(total > 0).bar("MiB", total) as bar:
            for _ in range(_TRIES):
                before = self.received
                try:
                    self._read(file, bar)
                except ConnectionError:  # the next try asks for the rest
                    if self.size is None:
                        raise
                if self.size is None or self.received == self.size or self.received <= before:
                    break
        if self.size is not None and self.received != self.size:
            raise TransferError(f"it ended after {self.received} of {self.size} bytes")

    def _read(self, file: Any, bar: Any) -> None:
        """Read from one connection what the file still lacks."""
        more = {"Range": f"bytes={self.received}-"} if self.received else {}
        with follow(self.url, {**self.headers, **more}, "GET", STALL) as response:
            if response.headers.get("Content-Encoding", "identity") != "identity":
                raise TransferError("it is compressed, which was not asked for")
            if response.status != 206:  # the whole file again
                self.received = 0
                file.seek(0)
                file.truncate()
            elif not str(response.headers.get("Content-Range", "")).startswith(f"bytes {self.received}-"):
                raise TransferError("another part of the file arrives than was asked for")
            if self.size is None and (length := stated_size(response.headers)) is not None:
                if length > MAX_BYTES:
                    raise TransferError(f"it states {length} bytes, above the limit of {MAX_BYTES}")
                self.size = length
            most = MAX_BYTES if self.size is None else self.size
            while (chunk := response.read1(_CHUNK)) and not self._stop.is_set():
                if self.received + len(chunk) > most:
                    raise TransferError(f"it is larger than the {most} bytes that are expected")
                file.write(chunk)
                for _ in range((self.received + len(chunk) >> 20) - (self.received >> 20)):
                    bar.advance()
                self.received += len(chunk)


def head(url: str, headers: Mapping[str, str], has: str, seconds: float) -> Message:
    """The headers of the answer to HEAD, from the first answer on the way that has the header ``has``.

    Raises:
        TransferError: no answer within ``seconds``, or as :func:`follow`.
    """
    end = time.monotonic() + seconds
    answers: list[Message] = []

    def ask() -> None:
        response = follow(url, headers, "HEAD", seconds, has)
        response.close()
        answers.append(response.headers)

    def check() -> None:
        if time.monotonic() > end:
            raise TransferError(f"no answer within {seconds:.0f} s")

    _in_thread(ask, check)
    return answers[0]


def stated_size(headers: Mapping[str, str] | Message) -> int | None:
    """The size that these headers state; ``None`` if they state none.

    Raises:
        TransferError: it is not a number of bytes.
    """
    text = headers.get("X-Linked-Size") or headers.get("Content-Length")
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise TransferError(f"it states a size of {text[:40]!r}")
    return int(text)


def follow(url: str, headers: Mapping[str, str], method: str, seconds: float, has: str = "") -> Any:
    """Open ``url`` and follow redirects to http and https; other hosts do not get the header ``Authorization``.

    Args:
        url: address.
        headers: of the request.
        method: HEAD or GET.
        seconds: timeout of each read.
        has: stop at a redirect to another host that has this header.

    Raises:
        TransferError: no connection, another status than success, or a redirect to another kind of address, from https
            to http, or one too many.
    """
    origin = _origin(url)
    for _ in range(_REDIRECTS + 1):
        sent = {"Accept-Encoding": "identity", **headers}
        if _origin(url) != origin:
            sent = {name: value for name, value in sent.items() if name.lower() != "authorization"}
        try:
            return _opener().open(urllib.request.Request(url, headers=sent, method=method), timeout=seconds)
        except urllib.error.HTTPError as error:
            error.close()  # its headers stay
            place = error.headers.get("Location")
            if error.code not in (301, 302, 303, 307, 308) or not place:
                raise TransferError(f"HTTP {error.code}", error.code) from None
            target = urljoin(url, place)
            if has and has in error.headers and _origin(target) != _origin(url):
                return error
        except urllib.error.URLError as error:
            raise TransferError(_one_line(error.reason)) from error
        if url.startswith("https:") and not target.startswith("https:"):
            raise TransferError("it is redirected from https to an unencrypted address")
        url = target
    raise TransferError(f"it is redirected more than {_REDIRECTS} times")


def _origin(url: str) -> tuple[str, str, int]:
    try:
        parts = urlsplit(url)
        if parts.scheme not in _PORTS or not parts.hostname or not url.isascii() or not url.isprintable():
            raise ValueError
        return parts.scheme, parts.hostname, parts.port or _PORTS[parts.scheme]
    except ValueError:
        raise TransferError(f"it is at {url[:80]!r}, which is no http or https address") from None


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any, **__: Any) -> None:
        return None


def _opener() -> urllib.request.OpenerDirector:
    context = ssl.create_default_context()
    with suppress(ImportError, OSError):  # Pythons that ship without certificates; the hub's client brings them
        import certifi  # pyright: ignore[reportMissingImports] - an optional package

        context.load_verify_locations(certifi.where())
    return urllib.request.build_opener(_NoRedirects, urllib.request.HTTPSHandler(context=context))


def _one_line(error: object) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__


def _in_thread(work: Callable[[], None], check: Callable[[], None]) -> None:
    """Run ``work`` in a thread; an error of ``check``, which is called again and again, ends the waiting for it."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            work()
        except (TimeoutError, ConnectionError, ssl.SSLError, http.client.HTTPException, ValueError) as error:
            errors.append(TransferError(_one_line(error)))  # ValueError: addresses and headers that are none
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(0.1)
        check()
    if errors:
        raise errors[0]
