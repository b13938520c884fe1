"""Images by address: what a service refuses to reach, and what it reads from an allowed host."""

from __future__ import annotations

import http.server
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator

import pytest

from foveal.errors import InputError
from foveal.serving.addresses import Fetcher, is_public
from helpers.services import running


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1",
        "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255", "::", "::1", "fe80::1", "fe80::1%eth0",
        "fc00::1", "ff02::1", "2001:db8::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "2002:a00:1::",
        "2001:0:5ef5:79fd::1",
    ],
)  # fmt: skip
def test_private_addresses(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize("address", ["1.1.1.1", "93.184.216.34", "2606:4700::1111", "::ffff:1.1.1.1"])
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://localhost/a.png", "only https"),
        ("ftp://localhost/a.png", "only https"),
        ("file:///etc/passwd", "only https"),
        ("localhost/a.png", "only https"),
        ("https://other.example.org/a.png", "is not among the hosts"),
        ("https://localhost.example.org/a.png", "is not among the hosts"),
        ("https://127.0.0.1/a.png", "is not among the hosts"),
        ("https://2130706433/a.png", "is not among the hosts"),
        ("https://localhost@other.example.org/", "no user name"),
        ("https://user:word@localhost/", "no user name"),
        ("https://localhost:8443/a.png", "port 8443 of localhost is not allowed"),
        ("https://localhost:99999/a.png", "no valid address"),
        ("https://[::1/a.png", "no valid address"),
        ("https://localhost/a b.png", "no valid address"),
        ("https://localhost/a\r\nX: y", "no valid address"),
        ("https://localhost/\u00e9", "no valid address"),
        ("https://localhost/" + "a" * 3000, "no valid address"),
        ("https://localhost/a.png", "has an address that is not public"),
    ],
)
def test_addresses_that_are_refused(url: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Fetcher(frozenset({"localhost"})).fetch(url)


class Files(http.server.BaseHTTPRequestHandler):
    """Answers of a host: an image, a redirect, an endless file, an error."""

    def do_GET(self) -> None:
        status = {"/moved": 302, "/wrong": 500}.get(self.path, 200)
        self.send_response(status)
        if status == 302:
            self.send_header("Location", "https://localhost/image")
        if self.path in ("/short", "/drops"):
            self.send_header("Content-Length", "100")
        self.end_headers()
        if self.path == "/drops":
            try:
                while True:
                    self.wfile.write(b"x")
                    time.sleep(0.02)
            except OSError:
                return
        if self.path == "/endless":
            try:
                while True:
                    self.wfile.write(bytes(1 << 16))
            except OSError:
                return
        self.wfile.write(b"the image")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, ssl.SSLContext]]:
    """Port of a host with a certificate for localhost, and a context that trusts it."""
    folder = tmp_path_factory.mktemp("tls")
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    try:
        subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    except FileNotFoundError:
        pytest.skip("openssl makes the certificate")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port, ssl.create_default_context(cafile=str(certificate))
    server.shutdown()
    thread.join()
    server.server_close()


def fetcher(host: tuple[int, ssl.SSLContext], name: str = "localhost", seconds: float = 60) -> Fetcher:
    port, tls = host
    return Fetcher(frozenset({f"{name}:{port}"}), 1 << 20, seconds, allows=lambda address: True, tls=tls)


def test_an_allowed_host_is_read(host: tuple[int, ssl.SSLContext]) -> None:
    assert fetcher(host).fetch(f"https://localhost:{host[0]}/image") == b"the image"


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("/moved", "status 302, a redirect, which is not followed"),
        ("/wrong", "status 500, no image"),
        ("/endless", "larger than the limit of 1 MiB"),
        ("/short", "it ends 91 bytes early"),
    ],
)
def test_answers_that_are_refused(host: tuple[int, ssl.SSLContext], path: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        fetcher(host).fetch(f"https://localhost:{host[0]}{path}")


def test_a_host_that_sends_a_byte_now_and_then_is_left(host: tuple[int, ssl.SSLContext]) -> None:
    with pytest.raises(InputError, match=r"takes longer than 0\.5 s"):
        fetcher(host, seconds=0.5).fetch(f"https://localhost:{host[0]}/drops")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # before TLS begins
        port = silent.getsockname()[1]
        with pytest.raises(InputError, match=r"takes longer than 0\.5 s"):
            fetcher((port, host[1]), seconds=0.5).fetch(f"https://localhost:{port}/a")


def test_certificates_of_others_are_refused(host: tuple[int, ssl.SSLContext]) -> None:
    port = host[0]
    untrusted = Fetcher(frozenset({f"localhost:{port}"}), allows=lambda address: True)
    with pytest.raises(InputError, match="certificate verify failed"):
        untrusted.fetch(f"https://localhost:{port}/image")
    with pytest.raises(InputError, match="certificate verify failed"):
        fetcher(host, "127.0.0.1").fetch(f"https://127.0.0.1:{port}/image")


def test_a_service_never_connects_to_this_machine(photo: bytes) -> None:
    """A listening socket on this machine sees no connection, although its name is allowed."""
    with socket.create_server(("127.0.0.1", 0)) as trap, running("bicubic.x2", "--allow-url", "localhost") as service:
        port = trap.getsockname()[1]
        for url in ("https://localhost/a", f"https://localhost:{port}/a", f"https://127.0.0.1:{port}/a"):
            reply = service.post_json("/api/bicubic.x2/predict", {"url": url})
            assert reply.status == 422
            assert reply.error.startswith("url: ")
        trap.setblocking(False)
        with pytest.raises(BlockingIOError):
            trap.accept()
