"""Files of the hub are downloaded once and atomically, compared with their hash, and then used offline.

The clients are separate processes; the server is an HTTP server on this machine.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.hub_client import FILE, REPO, SECONDS, Client, error_of
from helpers.hub_server import Hub, close, running

CONTENT = bytes(range(256)) * 8192  # 2 MiB


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running() as server:
        server.files[REPO, FILE] = CONTENT
        yield server


@pytest.fixture
def client(hub: Hub, tmp_path: Path) -> Client:
    return Client(hub.address, tmp_path / "cache")


@pytest.mark.parametrize("redirect", [False, True])
def test_one_announced_download_then_none(hub: Hub, client: Client, redirect: bool) -> None:
    hub.redirect = redirect
    first = client.fetch(name="tiny.test")
    assert first.returncode == 0, first.stderr
    assert Path(first.stdout.strip()).read_bytes() == CONTENT
    assert first.stderr == "downloading tiny.test once: someone/model/model.safetensors, 2.0 MiB, Apache-2.0\n"
    assert any("/cdn/" in request for request in hub.requests) == redirect
    asked = hub.asked()
    second = client.fetch(name="tiny.test")
    assert (second.stdout, second.stderr) == (first.stdout, "")
    assert hub.asked() == asked
    close(hub)
    assert client.fetch(name="tiny.test").stdout == first.stdout
    assert client.fetch({"HF_HUB_OFFLINE": "1"}).stdout == first.stdout


def test_broken_download_continues_or_leaves_nothing(hub: Hub, client: Client) -> None:
    hub.broken = 1
    resumed = client.fetch()
    assert Path(resumed.stdout.strip()).read_bytes() == CONTENT
    hub.files[REPO, "other.safetensors"] = CONTENT[::-1]
    before = client.files()
    hub.broken = 10_000
    assert "other.safetensors is not on this machine" in error_of(client.fetch(file="other.safetensors"))
    assert client.files() == before
    hub.broken = 0
    assert Path(client.fetch(file="other.safetensors").stdout.strip()).read_bytes() == CONTENT[::-1]


def test_killed_download_leaves_no_file(hub: Hub, client: Client) -> None:
    hub.stall = threading.Event()
    with subprocess.Popen(client.arguments(), env=client.environment, stderr=subprocess.PIPE) as process:
        assert hub.stalled.wait(SECONDS)
        process.kill()
    assert not list(client.cache.rglob(FILE))
    hub.stall.set()
    hub.stall = None
    assert Path(client.fetch().stdout.strip()).read_bytes() == CONTENT


def test_another_content_than_published_is_refused_and_removed(hub: Hub, client: Client) -> None:
    expected, found = "0" * 64, hashlib.sha256(CONTENT).hexdigest()
    error = error_of(client.fetch(sha256=expected))
    assert expected in error
    assert found in error
    assert client.files() == []
    assert client.fetch(sha256=found).returncode == 0


def test_content_is_compared_with_the_hash_that_the_hub_states(hub: Hub, client: Client) -> None:
    hub.states_sha256 = hub.lies = True
    error = error_of(client.fetch())
    assert hashlib.sha256(CONTENT).hexdigest() in error
    assert hashlib.sha256(CONTENT[::-1]).hexdigest() in error
    assert client.files() == []
    hub.lies = False
    assert client.fetch().returncode == 0


def test_a_flipped_bit_in_the_cache_is_detected_and_the_file_replaced(hub: Hub, client: Client) -> None:
    path = Path(client.fetch().stdout.strip())
    damaged = bytearray(CONTENT)
    damaged[1000] ^= 1
    path.write_bytes(damaged)
    error = error_of(client.fetch())
    assert hashlib.sha256(CONTENT).hexdigest() in error
    assert hashlib.sha256(damaged).hexdigest() in error
    assert client.files() == []
    assert Path(client.fetch().stdout.strip()).read_bytes() == CONTENT


def test_the_hash_of_the_first_download_is_kept(hub: Hub, client: Client) -> None:
    """Weights that were replaced under the same name are refused, even if the cached file was deleted."""
    path = Path(client.fetch().stdout.strip())
    path.resolve().unlink()
    hub.commit, hub.files[REPO, FILE] = "b" * 40, CONTENT[::-1]
    assert "has no such file (HTTP 404)" in error_of(client.fetch())  # the first commit is asked for, and it is gone
    hub.commit = "a" * 40
    assert hashlib.sha256(CONTENT).hexdigest() in error_of(client.fetch())
    hub.files[REPO, FILE] = CONTENT
    assert Path(client.fetch().stdout.strip()).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("status", "says"),
    [
        (401, "refuses (HTTP 401): no such repository, or it needs a token"),
        (403, "refuses (HTTP 403)"),
        (404, "HTTP 404"),
        (500, "answers HTTP 500"),
        (503, "answers HTTP 503"),
    ],
)
def test_refusals_are_one_line(hub: Hub, client: Client, status: int, says: str) -> None:
    """One request, one answer, one line: no retries, which the hub's client would announce."""
    hub.status = status
    done = client.fetch()
    error = error_of(done)
    assert says in error
    assert hub.address in error
    assert len(done.stderr.splitlines()) == 1
    assert hub.asked() == 1
    assert client.files() == []


def test_missing_file_or_revision(hub: Hub, client: Client) -> None:
    assert "has no such file (HTTP 404)" in error_of(client.fetch(file="nothing.pt"))
    assert "hub id someone/model@v9: " in error_of(client.fetch(revision="v9"))


def test_no_server(hub: Hub, client: Client) -> None:
    close(hub)
    done = client.fetch()
    assert "a local path works offline" in error_of(done)
    assert len(done.stderr.splitlines()) == 1
    switched_off = client.fetch({"HF_HUB_OFFLINE": "1"})
    assert "not on this machine and HF_HUB_OFFLINE is set" in error_of(switched_off)


def test_a_server_that_is_no_hub(hub: Hub, client: Client) -> None:
    hub.status = 200
    done = client.fetch()
    error_of(done)
    assert client.files() == []


def test_other_programs_downloads_are_found(hub: Hub, client: Client) -> None:
    code = f"from huggingface_hub import hf_hub_download; print(hf_hub_download({REPO!r}, {FILE!r}))"
    other = subprocess.run([sys.executable, "-c", code], env=client.environment, capture_output=True, text=True)
    asked = hub.asked()
    done = client.fetch()
    assert (done.stdout, done.stderr) == (other.stdout, "")
    assert hub.asked() == asked


@pytest.mark.parametrize(
    ("place", "wanted"),
    [
        ("tiny.test.safetensors", {"name": "tiny.test"}),
        ("tiny_test.pt", {"name": "tiny.test", "file": "tiny_test.pt"}),
        ("someone/model/model.safetensors", {}),
        ("someone/model/model.safetensors", {"name": "tiny.test"}),
    ],
)
def test_folder_of_weights_replaces_the_download(
    hub: Hub, client: Client, tmp_path: Path, place: str, wanted: dict
) -> None:
    path = tmp_path / "weights" / place
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    here = {"FOVEAL_WEIGHTS": str(tmp_path / "weights")}
    done = client.fetch(here, **wanted)
    assert (done.stdout.strip(), done.stderr) == (str(path), "")
    assert hub.asked() == 0
    refused = client.fetch(here, **wanted, sha256="0" * 64)
    assert f"{path}: damaged or another file" in error_of(refused)
    assert path.read_bytes() == CONTENT


def test_folder_of_weights_may_be_a_copied_cache(hub: Hub, client: Client, tmp_path: Path) -> None:
    client.fetch()
    (client.cache / "hub").rename(tmp_path / "weights")
    close(hub)
    done = client.fetch({"FOVEAL_WEIGHTS": str(tmp_path / "weights")})
    assert Path(done.stdout.strip()).read_bytes() == CONTENT


def test_folder_of_weights_holds_main_only_and_must_exist(hub: Hub, client: Client, tmp_path: Path) -> None:
    path = tmp_path / "someone/model/model.safetensors"
    path.parent.mkdir(parents=True)
    path.write_bytes(CONTENT)
    assert "HTTP 404" in error_of(client.fetch({"FOVEAL_WEIGHTS": str(tmp_path)}, revision="v2"))
    missing = client.fetch({"FOVEAL_WEIGHTS": str(tmp_path / "missing")})
    assert "FOVEAL_WEIGHTS" in error_of(missing, "ConfigError")


def test_without_the_hub_client_the_extra_is_named(client: Client, tmp_path: Path) -> None:
    """A None in sys.modules makes Python treat a module as not installed."""
    command = client.arguments()
    command[-1] = "import sys; sys.modules['huggingface_hub'] = None\n" + command[-1]
    done = subprocess.run(command, env=client.environment, capture_output=True, text=True)
    assert "pip install 'foveal[hub]'" in error_of(done, "DependencyError")
    (tmp_path / "someone/model").mkdir(parents=True)
    (tmp_path / "someone/model/model.safetensors").write_bytes(CONTENT)
    here = {**client.environment, "FOVEAL_WEIGHTS": str(tmp_path)}
    done = subprocess.run(command, env=here, capture_output=True, text=True)
    assert Path(done.stdout.strip()).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("ref", "found"),
    [
        ("owner/name", ("owner/name", "main")),
        ("hf-hub:owner/name", ("owner/name", "main")),
        ("hf_hub:owner/na.me_2@v1.0", ("owner/na.me_2", "v1.0")),
        ("owner/name@refs/pr/1", ("owner/name", "refs/pr/1")),
        ("name", None),
        ("./name", None),
        ("../name", None),
        ("/owner/name", None),
        ("owner/name/more", None),
        ("owner/name@../../x", None),
        ("owner/name@", None),
        ("", None),
    ],
)
def test_hub_ids(ref: str, found: tuple[str, str] | None) -> None:
    from foveal.weights.hub import parse

    parsed = parse(ref, FILE)
    assert (parsed and (parsed.repo, parsed.revision)) == found


@pytest.mark.parametrize(
    ("ref", "kind", "says"),
    [
        ("efficientvit_b0.cityscapes", "CheckpointError", "published weights need torch: pip install 'foveal[torch]'"),
        ("efficientvit_b0.camvdi", "CheckpointError", "did you mean 'efficientvit_b0.camvid'?"),
        ("someone/model", "DependencyError", "so it needs torch: pip install 'foveal[torch]'"),
    ],
)
def test_without_torch_there_is_an_error_before_any_download(
    hub: Hub, client: Client, ref: str, kind: str, says: str
) -> None:
    code = f"import sys; sys.modules['torch'] = None\nimport foveal\ntry:\n    foveal.load({ref!r})\n"
    code += "except foveal.FovealError as e: sys.exit(f'{type(e).__name__}: {e}')"
    done = subprocess.run([sys.executable, "-c", code], env=client.environment, capture_output=True, text=True)
    assert says in error_of(done, kind)
    assert hub.asked() == 0
