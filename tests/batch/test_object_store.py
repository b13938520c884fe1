"""Batch jobs on a real S3-compatible server on this machine: inputs, results and manifest are objects."""

from __future__ import annotations

import io
import os
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foveal.batch.run import Request
from foveal.batch.stores import ArrowStore, open_store
from foveal.errors import DependencyError, InputError
from helpers.batch_jobs import MODEL, PATIENCE, contents, names_in, pictures, start, wait_until, work
from helpers.tars import shard


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a server with a bucket "data"; all processes find it by the environment."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    with (tmp_path_factory.mktemp("moto") / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    known = dict(os.environ)
    os.environ |= {"AWS_ENDPOINT_URL": url, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
    os.environ |= {"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}
    try:
        wait_until(lambda: _answers(url), process)
        urllib.request.urlopen(urllib.request.Request(f"{url}/data", method="PUT")).close()
        yield url
    finally:
        process.kill()
        process.wait()
        os.environ.clear()
        os.environ |= known


def upload(folder: Path, prefix: str) -> None:
    store = open_store(prefix)
    for path in folder.rglob("*"):
        if path.is_file():
            store.put(path.relative_to(folder).as_posix(), path.read_bytes())


def download(prefix: str, folder: Path) -> Path:
    store = open_store(prefix)
    assert isinstance(store, ArrowStore)
    for file in store.walk():
        (folder / file.name).parent.mkdir(parents=True, exist_ok=True)
        (folder / file.name).write_bytes(store.read(file.name))
    return folder


@pytest.mark.long
@pytest.mark.parametrize("result", ["masks", "tar", "rle"])
def test_results_are_those_of_a_local_job(server: str, result: str, tmp_path: Path) -> None:
    names = pictures(tmp_path / "in", 7)
    (tmp_path / "in" / "bad.jpg").write_bytes(b"bad")
    prefix = f"s3://data/same-{result}"
    upload(tmp_path / "in", f"{prefix}/in")
    kind, pack = ("masks", True) if result == "tar" else (result, False)
    work(Request(f"{prefix}/in", f"{prefix}/out", MODEL, kind, pack=pack, part_size=3))
    work(Request(f"{prefix}/in", str(tmp_path / "mixed"), MODEL, kind, pack=pack, part_size=3))
    found = download(f"{prefix}/out", tmp_path / "found")
    assert names_in(found) == sorted(names)
    assert contents(found) == contents(tmp_path / "mixed")
    work(Request(str(tmp_path / "in"), str(tmp_path / "local"), MODEL, kind, pack=pack, part_size=100))
    assert names_in(tmp_path / "local") == sorted(names)
    if result == "masks":
        assert contents(found) == contents(tmp_path / "local")


@pytest.mark.long
def test_kinds_of_inputs(server: str, tmp_path: Path) -> None:
    """Patterns, a list, tar and Parquet files of a bucket."""
    pictures(tmp_path / "in", 5)
    images = {path.relative_to(tmp_path / "in").as_posix(): path.read_bytes() for path in tmp_path.rglob("*.png")}
    prefix = "s3://data/kinds"
    upload(tmp_path / "in", f"{prefix}/in")
    store = open_store(prefix)
    store.put("list.txt", "\n".join([*list(images)[:2], f"{prefix}/in/{list(images)[2]}", "gone.png"]).encode())
    for name in list(images)[:2]:
        store.put(name, images[name])
    archive = shard(tmp_path / "x.tar", [(Path(name).name, data) for name, data in images.items()])
    store.put("tars/x.tar", archive.read_bytes())
    table = io.BytesIO()
    pq.write_table(pa.table({"image": list(images.values())}), table, row_group_size=2)
    store.put("tables/x.parquet", table.getvalue())
    expected = {
        f"{prefix}/in/left/*.png": [name.removeprefix("left/") for name in images if name.startswith("left")],
        f"{prefix}/in/**/*0[12].png": [name for name in images if name[-5] in "12"],
        f"{prefix}/list.txt": [*list(images)[:2], f"data/kinds/in/{list(images)[2]}"],
        f"{prefix}/tars": [f"x.tar/{Path(name).name}" for name in images],
        f"{prefix}/tables/*.parquet": [f"x.parquet/{row}" for row in range(5)],
    }
    for index, (location, names) in enumerate(expected.items()):
        work(Request(location, str(tmp_path / str(index)), MODEL, "shares", part_size=2))
        assert names_in(tmp_path / str(index)) == sorted(names)


@pytest.mark.long
def test_killed_workers_and_a_killed_driver(server: str, tmp_path: Path) -> None:
    """As on a local disk: the entry of a part is an object that is put when the results are there."""
    names = pictures(tmp_path / "in", 24, (96, 128))
    upload(tmp_path / "in", "s3://data/killed/in")
    options = ["s3://data/killed/in", "s3://data/killed/out", "--model", MODEL, "--workers", 1, "--part-size", 2]
    log = tmp_path / "log"
    out = open_store("s3://data/killed/out")

    def committed() -> int:
        assert isinstance(out, ArrowStore)
        return sum("/parts/" in file.name for file in out.walk())

    for after in (1, 4):
        process = start(*options, "--result", "shares", errors=log)
        wait_until(lambda after=after: committed() >= after, process)
        process.kill()
        process.wait()
    before = committed()
    assert before < 12
    assert start(*options, "--result", "shares", errors=log).wait(PATIENCE) == 0, log.read_text()
    assert "24 of 24 images" in log.read_text()
    assert names_in(download("s3://data/killed/out", tmp_path / "found")) == sorted(names)


@pytest.mark.long
def test_a_bucket_that_does_not_exist(server: str, tmp_path: Path) -> None:
    pictures(tmp_path / "in", 2)
    log = tmp_path / "log"
    for places in ([tmp_path / "in", "s3://nobody/out"], ["s3://nobody/in", tmp_path / "out"]):
        assert start(*places, "--model", MODEL, errors=log).wait(PATIENCE) in (1, 2)
        assert "Traceback" not in log.read_text()
        assert log.read_text().startswith("foveal: s3://nobody")
        assert log.read_text().count("\n") == 1


def test_other_protocols_and_mistakes(tmp_path: Path) -> None:
    """Whatever fsspec opens; a protocol that nobody knows is one line."""
    store = open_store(f"local://{tmp_path}/store")
    store.put("a/b.txt", b"text")
    assert (tmp_path / "store" / "a" / "b.txt").read_bytes() == b"text"
    assert [file.name for file in store.list("a")] == ["a/b.txt"]
    with pytest.raises((InputError, DependencyError), match="nowhere://x"):
        open_store("nowhere://x")
