"""More requests than a service can answer, clients that leave, deadlines, keys, and the end of a service."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers.pictures import encoded
from helpers.services import Reply, Running, running

EVERY = "/api/bicubic.x4/predict"
KEY = "a-key-of-more-than-16-characters"


@pytest.fixture(scope="module")
def large() -> bytes:
    """An image that takes long: the lane is busy with it while a test does something else."""
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    return encoded(Image.fromarray(noise), "PNG")


@pytest.fixture(scope="module")
def busy() -> Iterator[Running]:
    """A service with room for three requests."""
    with running("bicubic.x4", "--queue", "3", "--batch-size", "1") as started:
        yield started


def until(condition: Callable[[], object]) -> None:
    """Wait for something that happens; the only bound is that of a test that hangs."""
    for _ in range(6000):
        if condition():
            return
        time.sleep(0.02)
    raise AssertionError("it never happened")


def depth(service: Running) -> float:
    return service.metric('foveal_queue_depth{lane="images"}')


def test_overload_is_refused_at_once_and_the_rest_is_answered(busy: Running, large: bytes) -> None:
    with ThreadPoolExecutor(30) as pool:
        replies: list[Reply] = list(pool.map(lambda _: busy.post(f"{EVERY}?format=png", large), range(30)))
    counts = {status: sum(reply.status == status for reply in replies) for status in (200, 503)}
    assert counts[200] + counts[503] == 30
    assert counts[200] >= 3
    assert counts[503] >= 3
    for reply in replies:
        if reply.status == 503:
            assert 1 <= int(reply.headers["retry-after"]) <= 60
            assert reply.error.startswith("busy: ")
    assert len({reply.body for reply in replies if reply.status == 200}) == 1
    assert busy.metric('foveal_rejected_total{reason="queue"}') >= counts[503]
    assert depth(busy) == 0
    assert busy.post(EVERY, large).status == 200


def test_full_queues_refuse_before_the_body_is_there(busy: Running, large: bytes) -> None:
    with ThreadPoolExecutor(3) as pool:
        waiting = [pool.submit(busy.post, EVERY, large) for _ in range(3)]
        until(lambda: depth(busy) == 3)
        with busy.dial() as late:
            late.sendall(f"POST {EVERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\n".encode())
            answer = late.recv(1 << 16)
        assert b" 503 " in answer.splitlines()[0]
        assert [future.result().status for future in waiting] == [200] * 3


def test_requests_whose_time_is_over_are_not_computed(busy: Running, large: bytes) -> None:
    computed = busy.metric('foveal_compute_seconds_count{lane="images"}')
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(busy.post, EVERY, large)
        until(lambda: depth(busy) == 1)
        reply = busy.post(f"{EVERY}?timeout=0.001", large)
        assert first.result().status == 200
    assert reply.status == 504
    assert "not done before its deadline" in reply.error
    until(lambda: depth(busy) == 0)
    assert busy.metric('foveal_compute_seconds_count{lane="images"}') == computed + 1


def test_requests_of_clients_that_leave_are_not_computed(busy: Running, large: bytes) -> None:
    computed = busy.metric('foveal_compute_seconds_count{lane="images"}')
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(busy.post, EVERY, large)
        until(lambda: depth(busy) == 1)
        head = f"POST {EVERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(large)}\r\n\r\n".encode()
        with busy.dial() as leaving:
            leaving.sendall(head + large)
            until(lambda: depth(busy) == 2 or first.done())
            waited = not first.done()
        assert first.result().status == 200
    until(lambda: depth(busy) == 0)
    until(lambda: busy.metric('foveal_rejected_total{reason="cancelled"}') >= 1 or not waited)
    if waited:  # otherwise the first was done before the second came
        assert busy.metric('foveal_compute_seconds_count{lane="images"}') == computed + 1


@pytest.mark.long
def test_memory_stays_bounded_under_overload(busy: Running, large: bytes) -> None:
    def wave() -> None:
        with ThreadPoolExecutor(20) as pool:
            list(pool.map(lambda _: busy.post(EVERY, large), range(40)))

    wave()
    before = busy.resident()
    for _ in range(2):
        wave()
    assert busy.resident() < before + (200 << 20), "far less than what forty requests hold"


def test_a_service_that_ends_answers_what_runs_and_takes_no_more(large: bytes) -> None:
    with running("bicubic.x4", "--batch-size", "1") as service:
        idle = service.dial()
        with ThreadPoolExecutor(4) as pool:
            waiting = [pool.submit(service.post, EVERY, large) for _ in range(4)]
            until(lambda: depth(service) == 4)
            ended = pool.submit(service.end)
            replies = [future.result() for future in waiting]
        assert [reply.status for reply in replies] == [200] * 4
        assert ended.result() == 0
        idle.close()
        with pytest.raises(ConnectionRefusedError):
            service.dial()
    assert all(json.loads(line)["level"] in ("info", "warning") for line in service.log), service.log[-3:]


def test_a_drain_has_an_end(large: bytes) -> None:
    with running("bicubic.x4", "--drain", "1") as service, service.dial() as slow:
        slow.sendall(f"POST {EVERY} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000000\r\n\r\nx".encode())
        until(lambda: service.metric("foveal_body_bytes") == 1)
        assert service.end() == 0


def test_keys_are_needed_where_they_are_set(tmp_path: Path, photo: bytes) -> None:
    keys = tmp_path / "keys"
    keys.write_text(f"# of tests\n{KEY}\n\nanother-key-of-sixteen\n")
    with running("bicubic.x2", "--keys", keys) as service:
        call = "/api/bicubic.x2/predict"
        wrong = [
            {},
            {"X-API-Key": KEY[:-1]},
            {"X-API-Key": ""},
            {"Authorization": f"Basic {KEY}"},
            {"X-API-Key": "é" * 20},
        ]
        for headers in wrong:
            reply = service.request("POST", call, photo, headers)
            assert reply.status == 401
            assert reply.headers["www-authenticate"] == "Bearer"
            assert "no valid key" in reply.error
        for path in ("/api/models", "/metrics", "/openapi.json", "/v2", "/v2/models/bicubic.x2", "//api/models"):
            assert service.get(path).status in (401, 404), path
        for path in ("/livez", "/readyz", "/v2/health/live", "/v2/health/ready"):
            assert service.get(path).status == 200, path
        for headers in (
            {"X-API-Key": KEY},
            {"Authorization": f"Bearer {KEY}"},
            {"X-API-Key": "another-key-of-sixteen"},
        ):
            assert service.request("POST", call, photo, headers).status == 200
        service.process.terminate()
        service.process.wait()
    assert KEY not in "".join(service.log)


def test_requests_that_come_together_run_as_a_batch(photo: bytes) -> None:
    with running("efficientvit_b0.camvid", "--runtime", "onnxruntime", "--batch-size", "4") as service:
        path = "/api/efficientvit_b0.camvid/predict?format=png"
        alone = service.post(path, photo).body
        barrier = threading.Barrier(12)

        def ask(_: int) -> bytes:
            barrier.wait()
            return service.post(path, photo).body

        for _ in range(20):
            with ThreadPoolExecutor(12) as pool:
                assert set(pool.map(ask, range(12))) == {alone}
            batches = service.metric('foveal_batch_size_count{lane="images"}')
            if service.metric('foveal_batch_size_sum{lane="images"}') > batches:
                return
    raise AssertionError("no two of 240 requests ran together")


# ---- the command line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-file.onnx"], "no-such-file.onnx: no such file"),
        (["a b=bicubic.x2"], "is no name for an address: write NAME=REF"),
        (["bicubic.x2", "bicubic.x2"], "a second model of the name 'bicubic.x2'"),
        (["bicubic.x2", "--port", "70000"], "--port 70000: give 0 to 65535"),
        (["bicubic.x2", "--host", "no.such.host.invalid"], "--host no.such.host.invalid: no address of this machine"),
        (["bicubic.x2", "--queue", "0"], "--queue 0: give 1 or more"),
        (["bicubic.x2", "--max-pixels", "1e12"], "--max-pixels 1e+12: above 1e+08"),
        (["bicubic.x2", "--keys", "no-such-file"], "--keys no-such-file: cannot be read"),
        (["bicubic.x2", "--allow-host", "a.org:80"], "--allow-host a.org:80: give a name without a port"),
        (["bicubic.x2", "--allow-url", "https://a.org/"], "--allow-url https://a.org/: give the name of a host"),
    ],
)
def test_mistakes_end_with_one_line(cli, arguments: list[str], words: str) -> None:
    if "--port" not in arguments:
        arguments = [*arguments, "--port", "0"]
    done = cli("serve", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_used_port_ends_with_one_line(cli, busy: Running) -> None:
    done = cli("serve", "bicubic.x2", "--port", busy.port)
    assert done.returncode == 2
    assert f"127.0.0.1:{busy.port} cannot be used" in done.stderr


def test_short_keys_are_refused(cli, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("secret\n")
    done = cli("serve", "bicubic.x2", "--keys", tmp_path / "keys")
    assert done.returncode == 2
    assert "key 1 is not 16 or more" in done.stderr
