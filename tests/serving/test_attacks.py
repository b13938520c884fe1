"""Clients that mean harm, by real sockets: each is stopped by a limit, and others are served meanwhile."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from foveal.serving.brake import BURST, LONGEST, RATE, Brake
from foveal.serving.names import names_of
from foveal.serving.server import bind
from helpers.pictures import encoded
from helpers.services import Running, form, running

SEGMENT = "/api/efficientvit_b0.camvid/predict"
#: Limits so small that tests wait less than a second for them.
LIMITS = ("--header-seconds", "0.6", "--body-seconds", "0.6", "--idle-seconds", "1", "--max-body", "1")
HEAD = f"POST {SEGMENT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n".encode()


@pytest.fixture(scope="module")
def service() -> Iterator[Running]:
    with running("efficientvit_b0.camvid", *LIMITS, "--runtime", "onnxruntime") as started:
        yield started
    check_log(started)


@pytest.fixture(scope="module")
def narrow() -> Iterator[Running]:
    """A service with little room and the times of the defaults, which no test waits for."""
    options = ("--max-body", "1", "--max-bodies", "3", "--connections", "40", "--allow-host", "models.example.org")
    with running("efficientvit_b0.camvid", *options, "--runtime", "onnxruntime") as started:
        yield started
    check_log(started)


def check_log(service: Running) -> None:
    """Nothing was logged as an error, whatever the clients did."""
    levels = [json.loads(line)["level"] for line in service.log]
    assert set(levels) <= {"info", "warning"}, [line for line in service.log if '"error"' in line][:1]


def drain(connection: socket.socket, feed: Callable[[], bytes] = lambda: b"", pause: float = 0.05) -> bytes:
    """Send parts until the service answers and closes; what it sent."""
    received = b""
    connection.settimeout(pause)
    for _ in range(2400):
        try:
            part = connection.recv(1 << 16)
        except TimeoutError:
            try:
                connection.sendall(feed())
            except TimeoutError:  # the service does not read
                continue
            except OSError:
                return received
            continue
        except OSError:  # closed with unread data
            return received
        if not part:
            return received
        received += part
    raise AssertionError("the connection was never closed")


def status(received: bytes) -> int:
    """Status of the answer, whose body is one line of JSON; 0: closed without one."""
    if not received:
        return 0
    head, _, body = received.partition(b"\r\n\r\n")
    assert list(json.loads(body)) == ["error"]
    return int(head.split()[1])


def test_slow_heads_are_closed(service: Running) -> None:
    with service.dial() as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\n")
        assert status(drain(slow, lambda: b"a: b\r\n")) == 408
    with service.dial() as silent:
        assert status(drain(silent)) == 408


def test_slow_heads_after_a_request_are_closed(service: Running) -> None:
    with service.dial() as slow:
        slow.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert slow.recv(1 << 16).startswith(b"HTTP/1.1 200")
        slow.sendall(b"GET /livez HTTP/1.1\r\n")
        assert status(drain(slow, lambda: b"a: b\r\n")) == 408


def test_idle_connections_are_closed(service: Running) -> None:
    with service.dial() as idle:
        idle.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
        assert idle.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert b"HTTP/1.1" not in drain(idle), "closed without a word"


def test_slow_bodies_are_closed(service: Running) -> None:
    with service.dial() as slow:
        slow.sendall(HEAD + b"Content-Length: 100000\r\n\r\n")
        assert status(drain(slow, lambda: b"x")) == 408


def test_large_bodies_that_stop_are_closed(service: Running) -> None:
    """What arrived would allow for 15 more seconds."""
    with service.dial() as stopped:
        stopped.sendall(HEAD + b"Content-Length: 1000000\r\n\r\n" + bytes(960_000))
        started = time.monotonic()
        assert status(drain(stopped)) == 408
        assert time.monotonic() - started < 8


def test_slow_rests_of_refused_bodies_are_closed(service: Running) -> None:
    with service.dial() as slow:
        slow.sendall(b"POST /nothing HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100000\r\n\r\n")
        assert status(drain(slow, lambda: b"x")) == 404


def test_bodies_above_the_limit_are_refused_before_they_are_read(service: Running) -> None:
    with service.dial() as large:
        large.sendall(HEAD + b"Content-Length: 99999999999\r\n\r\n")
        assert status(drain(large)) == 413


def test_chunks_without_end_are_refused_at_the_limit(service: Running) -> None:
    chunk = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    with service.dial() as endless:
        endless.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        assert status(drain(endless, lambda: chunk, pause=0.005)) == 413


def test_forms_without_end_are_refused_at_the_limit(service: Running) -> None:
    body, kind = form(bytes(2 << 20))
    assert service.post(SEGMENT, body, kind).status == 413


def test_chunks_that_are_none_are_refused(service: Running) -> None:
    with service.dial() as wrong:
        wrong.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert status(drain(wrong)) == 400


@pytest.mark.parametrize(
    "head",
    [
        b"nonsense\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(600) + b"\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: -1\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"GET /livez HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"GET /livez HTTP/1.1\r\na b: c\r\n\r\n",
    ],
)
def test_what_is_no_http_is_refused(service: Running, head: bytes) -> None:
    with service.dial() as wrong:
        wrong.sendall(head)
        assert status(drain(wrong)) in (400, 501)


@pytest.mark.parametrize("count", [150, 10_000])
def test_many_headers_are_refused(service: Running, count: int) -> None:
    with service.dial() as many:
        many.sendall(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n")
        try:
            many.sendall(b"".join(b"x%d: y\r\n" % number for number in range(count)) + b"\r\n")
        except OSError:  # closed before all were sent
            return
        assert status(drain(many)) in (0, 431)


def test_long_addresses_are_refused(service: Running) -> None:
    assert service.get("/" + "a" * 5000).status == 414
    with service.dial() as long:
        long.sendall(b"GET /" + b"a" * 200_000)
        assert status(drain(long)) in (0, 431)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil", ""])
def test_pages_of_other_sites_are_refused(service: Running, host: str) -> None:
    """A site whose name leads to this machine: for the browser, its page asks its own server."""
    for path in ("/", "/main.js", "/api/models", "/livez", "/v2"):
        reply = service.get(path, {"Host": host})
        assert reply.status == 403
        assert "is no name of this service" in reply.error


def test_requests_without_a_name_are_refused(service: Running) -> None:
    with service.dial() as old:
        old.sendall(b"GET /api/models HTTP/1.0\r\n\r\n")
        assert status(drain(old)) == 403


def test_names_of_the_service_are_answered(service: Running, narrow: Running) -> None:
    for host in ("localhost", "LocalHost:8000", "127.0.0.1", f"127.0.0.1:{service.port}", "[::1]:8000", "localhost."):
        assert service.get("/livez", {"Host": host}).status == 200, host
    assert service.get("/livez", {"Host": "models.example.org"}).status == 403
    assert narrow.get("/livez", {"Host": "models.example.org"}).status == 200
    assert narrow.get("/livez", {"Host": "evil.example"}).status == 403


def test_names_are_checked_on_loopback_addresses_and_where_they_are_given() -> None:
    with bind("127.0.0.2", 0) as local, bind("0.0.0.0", 0) as everywhere:
        assert names_of(local, "box.local") == {"localhost", "127.0.0.1", "::1", "127.0.0.2", "box.local"}
        assert not names_of(everywhere, "0.0.0.0"), "any name"
        assert {"a.example.org", "localhost"} <= names_of(everywhere, "0.0.0.0", ["A.example.org"])
    if socket.has_ipv6:
        with bind("::ffff:127.0.0.1", 0) as mapped:
            assert names_of(mapped, "::ffff:127.0.0.1"), "not any name"


def test_bodies_together_are_bounded(narrow: Running) -> None:
    """Three clients hold almost a megabyte each; the fourth is asked to come again."""
    held = [narrow.dial() for _ in range(4)]
    try:
        for each in held[:3]:
            each.sendall(HEAD + b"Content-Length: 1048576\r\n\r\n" + bytes(1_030_000))
        for _ in range(200):
            if narrow.metric("foveal_body_bytes") >= 3_000_000:
                break
            time.sleep(0.01)
        held[3].sendall(HEAD + b"Content-Length: 200000\r\n\r\n" + bytes(200_000))
        answer = held[3].recv(1 << 16)
        assert b" 503 " in answer.splitlines()[0]
        assert b"retry-after: " in answer.lower()
    finally:
        for each in held:
            each.close()


def test_others_are_served_while_all_connections_are_taken(narrow: Running, photo: bytes) -> None:
    attackers = [narrow.dial() for _ in range(120)]
    try:
        for each in attackers:
            try:
                each.sendall(b"GET /livez HTTP/1.1\r\n")
            except OSError:  # closed already, to make room
                continue
        assert narrow.post(SEGMENT, photo).status == 200
        assert narrow.metric("foveal_connections") <= 42
        assert narrow.metric('foveal_rejected_total{reason="connections"}') >= 70
    finally:
        for each in attackers:
            each.close()


WRONG = {
    "head": b"nonsense\r\n\r\n",
    "headers": b"GET /livez HTTP/1.1\r\n" + b"a: b\r\n" * 150,
    "form": HEAD.replace(b"image/png", b"multipart/form-data; boundary=x") + b"Content-Length: 5\r\n\r\n--y\r\n",
    "host": b"GET /api/models HTTP/1.1\r\nHost: evil.example\r\n\r\n",
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
def test_floods_of_wrong_requests_are_slowed_down(wrong: bytes, photo: bytes) -> None:
    """Answers to them have a rate, and those that wait make room for others."""
    with running("efficientvit_b0.camvid", "--connections", "60", "--runtime", "onnxruntime") as service:
        started = time.monotonic()
        attackers = [service.dial() for _ in range(59)]
        try:
            for each in attackers:
                each.sendall(wrong)
            for _ in range(3):
                assert service.post(SEGMENT, photo).status == 200
            answers = [status(drain(each)) for each in attackers]
            assert set(answers) <= {0, 400, 403, 431}
            assert sum(map(bool, answers)) > BURST
            assert time.monotonic() - started >= (sum(map(bool, answers)) - BURST - 1) / RATE
        finally:
            for each in attackers:
                each.close()


def test_the_brake_has_a_rate_and_a_longest_pause() -> None:
    now = 100.0
    brake = Brake(lambda: now)
    assert [brake.pause() for _ in range(BURST)] == [0] * BURST
    pauses = [brake.pause() for _ in range(1000)]
    np.testing.assert_allclose(pauses[:40], np.arange(1, 41) / RATE, atol=1e-9)
    assert max(pauses) == LONGEST
    now += LONGEST
    assert brake.pause() == pytest.approx(1 / RATE)
    now += 3600
    assert max(brake.pause() for _ in range(BURST)) < 1e-9


@pytest.mark.long
def test_clients_that_do_not_read_their_answers_are_closed() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (600, 600, 3), dtype=np.uint8)
    photo = encoded(Image.fromarray(noise), "PNG")  # its answer is larger than what the sockets hold
    with running("bicubic.x4", "--sending-seconds", "0.5") as service, service.dial() as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"POST /api/bicubic.x4/predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(photo)}\r\n\r\n"
        deaf.sendall(head.encode() + photo)
        for _ in range(2400):
            closed = service.metric('foveal_rejected_total{reason="slow"}')
            if closed and service.metric("foveal_connections") == 1:  # the one that asks
                break
            time.sleep(0.05)
        else:
            raise AssertionError("the connection stays")
        assert service.metric('foveal_requests_total{call="predict"') == 1, "it had an answer"


def test_answers_do_not_wait_for_acknowledgements() -> None:
    """Without TCP_NODELAY the second part of an answer comes up to 40 ms late."""

    async def option() -> int:
        found = asyncio.get_running_loop().create_future()

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connection = writer.get_extra_info("socket")
            found.set_result(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        bound = bind("127.0.0.1", 0)
        async with await asyncio.start_server(answer, sock=bound):
            _, writer = await asyncio.open_connection(*bound.getsockname())
            writer.close()
            return await found

    with ThreadPoolExecutor(1) as pool:  # playwright's tests may have left a running loop in this thread
        assert pool.submit(lambda: asyncio.run(option())).result() == 1


# ---- names


def traversals() -> list[str]:
    """200 addresses that lead out of a folder where a server joins or decodes them carelessly."""
    targets = ["etc/passwd", "secret.txt", "Windows/win.ini", "proc/self/environ"]
    steps = [
        "../", "..%2f", "%2e%2e/", "%2e%2e%2f", "..%5c", "..\\", "..%252f", "%c0%ae%c0%ae/", "..;/", "....//",
        "..%00/", "%2e%2e%5c", "..%c0%af", "/..//", "./../", "..%u2215", "%uff0e%uff0e/", "..%ef%bc%8f",
    ]  # fmt: skip
    found = [f"/{step * count}{target}" for step in steps for count in (1, 3, 8) for target in targets[:3]]
    found += [
        f"/{name}"
        for name in (
            "link.txt",
            "__init__.py",
            "folder/secret.txt",
            "%2fetc%2fpasswd",
            "//etc/passwd",
            "C:%5csecret.txt",
        )
    ]
    found += [f"/index.html{end}" for end in ("%00", "%00.txt", "/../secret.txt", "/%2e%2e/%2e%2e/secret.txt", "%0a")]
    found += [
        f"/api/{name}/predict" for name in ("..%2f..%2fsecret", "%2e%2e", ".", "..", "%00", "a%00b", "%2fetc%2fpasswd")
    ]
    found += [f"/v2/models/{name}" for name in ("..%2f..%2fsecret.txt", "%2e%2e", "..", "%00", "%2fetc%2fpasswd")]
    found += [f"/{'a/' * count}{'../' * (count + 1)}secret.txt" for count in range(1, 20)]
    return found[:200]


def test_no_name_leads_out_of_the_page(tmp_path: Path) -> None:
    """In this process, since the folder of the page is the package's own; by a real socket as all others."""
    import threading

    import uvicorn

    from foveal.serving.app import make_app
    from foveal.serving.models import open_models
    from foveal.serving.service import Settings

    page = tmp_path / "page"
    page.mkdir()
    (page / "index.html").write_text("the page")
    (tmp_path / "secret.txt").write_text("a secret")
    (page / "__init__.py").write_text("a secret")
    (page / "link.txt").symlink_to(tmp_path / "secret.txt")
    (page / "folder").symlink_to(tmp_path)
    app = make_app(open_models(["bicubic.x2"], 1, {}), Settings(), page)
    bound = bind("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, ws="none"))
    thread = threading.Thread(target=server.run, args=([bound],))
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        names = traversals()
        assert len(names) == 200
        for name in names:
            with socket.create_connection(bound.getsockname(), timeout=60) as connection:
                connection.sendall(f"GET {name} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
                answer = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            assert b"a secret" not in answer, name
            assert b"root:" not in answer, name
            assert int(answer.split()[1]) in (200, 307, 400, 404, 405), name
            assert answer.split()[1] != b"200" or answer.endswith(b"the page"), name
    finally:
        server.should_exit = True
        thread.join()
