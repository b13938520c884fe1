"""What a service of ``foveal serve`` does under load and under attack, by real sockets.

- ``throughput``: requests per second of clients that keep the service busy, against ``predictor.stream`` with the same
  images, batch size and threads in a process of its own; both take turns, and the median ratio counts (aim: 90 %);
- ``overload``: ten times as many clients as the queue holds; the time until 503 is there (aim: 50 ms);
- ``attack``: the 99th percentile of one healthy client's times, alone and during each attack (aim: below 2 times), and
  the time until the connections of the attack are closed (aim: 10 s);
- ``soak``: overload for ``--minutes``; growth of the service's memory after the first quarter (aim: 5 %).

The service runs with the limits of its defaults but for the queue. Clients are threads of this process, which needs
processor time, too: on few cores, both sides share them.

python benchmarks/serving.py [--only throughput,overload,attack,soak] [--minutes 30] [--rounds 5]
    [--rows FILE.jsonl] [--page FILE.md]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import io
import json
import signal
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from measured_tables import parse, parser, write_tables
from PIL import Image

from foveal import assets
from foveal.measuring.machine import one_line
from foveal.measuring.page import markdown
from foveal.measuring.row_file import Row, RowFile

MODEL = "efficientvit_b0.camvid"
PATH = f"/api/{MODEL}/predict?format=json"
SIZE = (480, 360)
QUEUE, BATCH = 16, 8
HEAD = f"POST {PATH} HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/jpeg\r\n".encode()


def main() -> None:
    """Measure what has no row, and print the tables."""
    arguments = parser(__doc__)
    arguments.add_argument("--only", default="throughput,overload,attack,soak")
    arguments.add_argument("--minutes", type=float, default=30, help="of soak")
    arguments.add_argument("--rounds", type=int, default=5)
    arguments.add_argument("--seconds", type=float, default=10, help="of each measurement")
    arguments.add_argument("--attacks", nargs="+", help="names of attacks; default: all")
    arguments.add_argument("--runtime", default="onnxruntime")
    arguments.add_argument("--threads", type=int, default=1)
    arguments.add_argument("--bare", type=float, default=0, help=argparse.SUPPRESS)
    options = parse(arguments)
    if options.bare:
        print(json.dumps(bare(options.bare, options.runtime, options.threads)))
        return
    rows, key = RowFile(options.rows), {"runtime": options.runtime, "threads": options.threads}
    print(one_line(), flush=True)
    for name in options.only.split(","):
        if rows.find(name, key) is not None:
            continue
        with service("--queue", QUEUE, "--runtime", options.runtime, "--threads", options.threads) as port:
            found = MEASUREMENTS[name](port, options)
        print(f"{name}: {json.dumps(found)}", file=sys.stderr, flush=True)
        rows.add({"kind": name, "key": key, **found})
    print(tables(rows.rows))
    if options.page:
        write_page(options.rows, options.page)


@contextlib.contextmanager
def service(*options: object) -> Iterator[int]:
    """A service in a process of its own; its port."""
    command = [sys.executable, "-m", "foveal", "serve", MODEL, "--port", "0", "--no-log-requests", *map(str, options)]
    command += ["--batch-size", str(BATCH)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        try:
            yield int(line.split()[0].rpartition(":")[2])
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


def photograph() -> bytes:
    """The bundled photograph as a JPEG file of :data:`SIZE`."""
    file = io.BytesIO()
    with Image.open(assets.FOLDER / "street.jpg") as image:
        image.resize(SIZE).save(file, "JPEG", quality=90)
    return file.getvalue()


class Client:
    """A client with one connection, which it opens again when it was closed."""

    def __init__(self, port: int) -> None:
        self.port, self.connection = port, None

    def post(self, body: bytes) -> tuple[int, float]:
        """Status and seconds of a request; status 0: the connection was closed."""
        started = time.perf_counter()
        try:
            if self.connection is None:
                self.connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            self.connection.request("POST", PATH, body, {"Content-Type": "image/jpeg"})
            response = self.connection.getresponse()
            response.read()
            return response.status, time.perf_counter() - started
        except (OSError, http.client.HTTPException):
            self.close()
            return 0, time.perf_counter() - started

    def close(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def hammer(port: int, clients: int, seconds: float, pause: float = 0) -> list[tuple[int, float]]:
    """Status and seconds of all requests of clients that ask again as soon as they are answered.

    Args:
        port: of the service.
        clients: number of them.
        seconds: how long.
        pause: seconds between a 503 and the next request.
    """
    body, end = photograph(), time.perf_counter() + seconds

    def run(_: int) -> list[tuple[int, float]]:
        client, found = Client(port), []
        while time.perf_counter() < end:
            found.append(client.post(body))
            if found[-1][0] == 503:
                time.sleep(pause)
        client.close()
        return found

    with ThreadPoolExecutor(clients) as pool:
        return [each for part in pool.map(run, range(clients)) for each in part]


# ---- throughput


def bare(seconds: float, runtime: str, threads: int) -> dict[str, float]:
    """Images per second of bare batched prediction, with the same work for each result."""
    import foveal
    from foveal.serving import segment
    from foveal.serving.calls import Asked, Served

    predictor, body = foveal.load(MODEL, runtime=runtime, threads=threads), photograph()
    served: Any = Served(MODEL, predictor, None)  # pyright: ignore[reportArgumentType] - no batches are run
    write, asked = segment.CALLS["predict"].formats["json"], Asked(b"", None)
    list(predictor.stream([body] * BATCH, batch_size=BATCH))  # the first run prepares the network
    count, started = 0, time.perf_counter()
    while time.perf_counter() < started + seconds:
        for result in predictor.stream([body] * (4 * BATCH), batch_size=BATCH):
            write(served, asked, result)
            count += 1
    return {"per_second": count / (time.perf_counter() - started)}


def throughput(port: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Rounds of the service and of bare prediction in turn."""
    hammer(port, BATCH, 2)
    ratios, rates = [], []
    for _ in range(arguments.rounds):
        replies = hammer(port, QUEUE, arguments.seconds)
        rate = sum(status == 200 for status, _ in replies) / arguments.seconds
        command = [sys.executable, __file__, "--bare", str(arguments.seconds), "--runtime", arguments.runtime]
        command += ["--threads", str(arguments.threads)]
        alone = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["per_second"]
        ratios.append(rate / alone)
        rates.append((round(rate, 1), round(alone, 1)))
    return {"ratio": round(statistics.median(ratios), 3), "service_and_bare_per_second": rates}


# ---- overload and soak


def overload(port: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times until 503 with ten times as many clients as the queue holds."""
    replies = hammer(port, 10 * QUEUE, arguments.seconds, pause=1)
    refused = [1000 * seconds for status, seconds in replies if status == 503]
    return {
        "clients": 10 * QUEUE,
        "answered": sum(status == 200 for status, _ in replies),
        "refused": len(refused),
        "others": sorted({status for status, _ in replies} - {200, 503}),
        "ms_to_503": {"median": quantile(refused, 0.5), "p99": quantile(refused, 0.99)},
        "service_ms_to_503": service_quantile(port),
    }


def soak(port: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Memory during an overload of minutes."""
    seconds, samples, done = 60 * arguments.minutes, [], threading.Event()

    def sample() -> None:
        while not done.wait(seconds / 100):
            samples.append(metric(port, "process_resident_memory_bytes"))

    thread = threading.Thread(target=sample)
    thread.start()
    replies = hammer(port, 10 * QUEUE, seconds, pause=1)
    done.set()
    thread.join()
    quarter = max(1, len(samples) // 4)
    early, late = statistics.median(samples[quarter : 2 * quarter]), statistics.median(samples[-quarter:])
    return {
        "minutes": arguments.minutes,
        "requests": len(replies),
        "answered": sum(status == 200 for status, _ in replies),
        "mib": [round(early / 2**20, 1), round(late / 2**20, 1)],
        "growth": round(late / early - 1, 4),
    }


def metric(port: int, name: str) -> float:
    """Value of a metric."""
    return next((float(line.split()[1]) for line in metrics(port) if line.startswith(f"{name} ")), 0.0)


def metrics(port: int) -> list[str]:
    """Lines of the metrics."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode().splitlines()
    finally:
        connection.close()


def service_quantile(port: int) -> str:
    """How many refusals the service itself sent within 50 ms of their heads, of all."""
    found = {}
    for line in metrics(port):
        for name in ("_bucket", "_count"):
            if line.startswith(f"foveal_refusal_seconds{name}"):
                found[line.partition(" ")[0]] = float(line.rpartition(" ")[2])
    within = next((value for name, value in found.items() if 'le="0.05"' in name), 0)
    total = next((value for name, value in found.items() if "_count" in name), 0)
    return f"{within:.0f} of {total:.0f} within 50 ms"


def quantile(values: list[float], share: float) -> float:
    """A quantile, rounded; 0 of nothing."""
    return round(sorted(values)[min(len(values) - 1, int(share * len(values)))], 1) if values else 0.0


# ---- attacks


class Attack:
    """Connections that send parts at intervals until they are closed.

    Args:
        count: of connections at once.
        first: what each sends.
        part: what each sends again and again.
        pause: seconds between two parts.
    """

    def __init__(self, count: int, first: bytes, part: bytes, pause: float) -> None:
        self.count, self.first, self.part, self.pause = count, first, part, pause
        self.times: list[float] = []

    def run(self, port: int, ended: threading.Event) -> None:
        """Attack until ``ended``; :attr:`times` has the seconds until each connection was closed."""
        with ThreadPoolExecutor(self.count) as pool:
            for _ in range(self.count):
                pool.submit(self._connect, port, ended)

    def _connect(self, port: int, ended: threading.Event) -> None:
        while not ended.is_set():
            started = time.perf_counter()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)) as connection:
                connection.settimeout(self.pause)
                connection.sendall(self.first)
                while time.perf_counter() < started + 60:
                    try:
                        if not connection.recv(1 << 16):
                            break
                    except TimeoutError:
                        connection.sendall(self.part)
            self.times.append(time.perf_counter() - started)


def attacks() -> dict[str, Attack]:
    """By name."""
    headers = b"".join(b"x%d: y\r\n" % number for number in range(10_000))
    form = (
        b"POST " + PATH.encode() + b" HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    )
    return {
        "slow headers": Attack(50, b"GET / HTTP/1.1\r\n", b"a: b\r\n", 0.5),
        "slow bodies": Attack(50, HEAD + b"Content-Length: 1000000\r\n\r\n", b"x", 0.5),
        "bodies above the limit": Attack(4, HEAD + b"Content-Length: 99999999999\r\n\r\n", bytes(1 << 16), 0.2),
        "chunks without end": Attack(
            2, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", b"10000\r\n" + bytes(1 << 16) + b"\r\n", 0.01
        ),
        "broken forms": Attack(4, form + b"Content-Length: 11\r\n\r\n--y\r\nabcd\r\n", b"", 0.2),
        "10,000 headers": Attack(4, b"GET / HTTP/1.1\r\n" + headers + b"\r\n", b"", 0.2),
    }


def attack(port: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Times of a healthy client, alone and during each attack."""
    hammer(port, 1, 2)
    found: dict[str, Any] = {}
    known = attacks()
    wanted = arguments.attacks or list(known)
    if unknown := set(wanted) - set(known):
        raise SystemExit(f"no attack {min(unknown)!r}: there are {', '.join(map(repr, known))}")
    for name in wanted:
        each = known[name]
        alone = percentile(hammer(port, 1, arguments.seconds))
        ended = threading.Event()
        thread = threading.Thread(target=each.run, args=(port, ended))
        thread.start()
        time.sleep(0.5)
        during = percentile(hammer(port, 1, max(arguments.seconds, 12)))
        ended.set()
        thread.join()
        found[name] = {
            "p99_ms_alone": alone,
            "p99_ms": during,
            "ratio": round(during / alone, 2) if alone else 0,
            "closed_within_s": round(max(each.times, default=0), 1),
        }
    return found


def percentile(replies: list[tuple[int, float]]) -> float:
    """The 99th percentile in milliseconds of requests, all of which must be answered."""
    if wrong := [status for status, _ in replies if status != 200]:
        raise SystemExit(f"a healthy client got {wrong[0]}")
    return quantile([1000 * seconds for _, seconds in replies], 0.99)


MEASUREMENTS: dict[str, Callable[[int, argparse.Namespace], dict[str, Any]]] = {
    "throughput": throughput,
    "overload": overload,
    "attack": attack,
    "soak": soak,
}


def write_page(rows: Path, page: Path) -> None:
    """Write the tables of all rows into a page."""
    write_tables("serving", rows, page, ("foveal", "onnxruntime", "numpy"), tables)


def tables(rows: Sequence[Row]) -> str:
    """What was measured, and a table of the attacks, in Markdown."""
    found = {row["kind"]: row for row in rows}
    parts = [("measured", "result", "aim"), *(line(found) for name, line in LINES.items() if name in found)]
    text = markdown(parts)
    return f"{text}\n\n{attack_table(found['attack'])}" if "attack" in found else text


def throughput_line(found: Mapping[str, Row]) -> tuple[str, str, str]:
    rate = f"{found['throughput']['ratio']:.0%}"
    return "requests per second, relative to batched prediction in Python on one thread", rate, "90%"


def overload_line(found: Mapping[str, Row]) -> tuple[str, str, str]:
    row = found["overload"]
    times = f"{row['ms_to_503']['median']} ms (median), {row['ms_to_503']['p99']} ms (99th percentile)"
    what = f"time until 503, {row['clients']} clients for a queue of {QUEUE}"
    return what, f"{times}, clients included; within the service {row['service_ms_to_503']}", "50 ms"


def soak_line(found: Mapping[str, Row]) -> tuple[str, str, str]:
    row = found["soak"]
    before, after = row["mib"]
    text = f"{row['growth']:+.1%} ({before:.0f} to {after:.0f} MiB, {row['requests']:,} requests)"
    return f"memory over {row['minutes']:g} minutes of ten times the load that is served", text, "+5%"


#: The lines of the first table, each made from all rows by kind.
LINES = {"throughput": throughput_line, "overload": overload_line, "soak": soak_line}


def attack_table(row: Row) -> str:
    """The attacks of one measurement, in Markdown."""
    header = ("attack", "closed within", "99th percentile of a healthy client's times, alone and during it", "ratio")
    found = [(name, row[name]) for name in attacks() if name in row]
    lines = [
        (name, f"{each['closed_within_s']} s", f"{each['p99_ms_alone']}, {each['p99_ms']} ms", f"{each['ratio']}")
        for name, each in found
    ]
    return markdown([header, *lines])


if __name__ == "__main__":
    main()
