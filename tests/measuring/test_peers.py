"""Networks of others: what their function receives, what it may return, and which settings reach it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveal.errors import ConfigError, InputError
from foveal.measuring.candidates import Candidate
from foveal.measuring.opening import image_of
from foveal.measuring.peers import is_peer, open_peer

MODULE = """
import torch

received = {}

def network():
    return torch.nn.Dropout(p=1.0)

def function(batch, threads, size, task):
    received.update(batch=batch, threads=threads, size=size, task=task)
    return lambda images: images[:, :1] + threads

def normed():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.BatchNorm2d(4), torch.nn.Hardswish())

def no_network():
    return 3

def broken():
    raise RuntimeError("no licence\\nsecond line")

def fails_later():
    return lambda images: images.reshape(7)
"""


@pytest.fixture(autouse=True)
def working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of peers in the working folder, where the command finds it."""
    (tmp_path / "some_peers.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(__import__("sys").modules, "some_peers", raising=False)


def candidate(name: str, **settings: object) -> Candidate:
    return Candidate(name, f"some_peers:{name}", **{"size": (8, 8), "batch": 2, **settings})  # pyright: ignore[reportArgumentType]


def test_which_references_are_peers() -> None:
    assert is_peer("a.b:make")
    assert not any(map(is_peer, ("efficientvit_b0", "hf-hub:owner/name", "C:\\models\\x.onnx", "a:b:c", "runs/mine")))


def test_a_torch_module_runs_in_evaluation_mode_in_the_type_that_was_asked_for() -> None:
    one = candidate("network", dtype="bfloat16")
    peer = open_peer(one, 1, image := image_of(one, 3))
    output = peer.work.finish()
    assert str(output.dtype) == "torch.bfloat16"  # pyright: ignore[reportAttributeAccessIssue]
    assert np.allclose(output.float().numpy(), image, atol=0.02), "dropout is off"  # pyright: ignore[reportAttributeAccessIssue]
    assert (peer.runtime, peer.model is not None) == ("torch on cpu, bfloat16, peer", True)


def test_a_function_receives_what_it_has_parameters_for() -> None:
    one = candidate("function", threads=4, task="segment")
    peer = open_peer(one, 4, image := image_of(one, 3))
    import some_peers  # pyright: ignore[reportMissingImports]

    assert some_peers.received == {"batch": 2, "threads": 4, "size": (8, 8), "task": "segment"}
    assert np.array_equal(peer.work.finish(), image[:, :1] + 4)  # pyright: ignore[reportArgumentType]
    assert image.dtype == np.float32
    assert image.shape == (2, 3, 8, 8)


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("function", {"dtype": "bfloat16"}, "dtype=bfloat16 does not reach it: give the function a parameter 'dtype'"),
        ("function", {"runtime": "onnxruntime"}, "leave out runtime=onnxruntime"),
        ("network", {"runtime": "native"}, "run in torch, onnxruntime or openvino, not with runtime=native"),
        (
            "network",
            {"runtime": "onnxruntime", "dtype": "bfloat16"},
            "onnxruntime runs networks of others on cpu in float32",
        ),
        ("missing", {}, "some_peers has no function missing"),
        ("no_network", {}, "its result, a int, cannot be called with images"),
        ("broken", {}, "some_peers:broken: fails: RuntimeError: no licence$"),
    ],
)
def test_what_does_not_apply_is_refused(name: str, settings: dict[str, object], message: str) -> None:
    one = candidate(name, **settings)
    with pytest.raises(ConfigError, match=message):
        open_peer(one, 1, image_of(one, 3))


def test_torch_networks_run_in_other_runtimes_and_are_exported_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The output is torch's; the file is written again only if the module changes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    one = candidate("normed")
    image = image_of(one, 3)
    expected = open_peer(one, 1, image).work.finish()
    outputs = {}
    for runtime in ("onnxruntime", "openvino"):
        peer = open_peer(one.replace(runtime=runtime), 1, image)
        outputs[runtime] = peer.work.finish()
        assert peer.runtime == f"{runtime} on cpu, peer"
        assert np.allclose(outputs[runtime], expected, atol=1e-5)  # pyright: ignore[reportArgumentType]
    files = {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/foveal/peers/*/network.onnx")}
    assert len(files) == 1, "both runtimes run the same file"
    open_peer(one.replace(runtime="onnxruntime"), 1, image)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.glob("cache/foveal/peers/*/*.onnx")} == files
    (tmp_path / "some_peers.py").write_text(MODULE + "# changed")
    open_peer(one.replace(runtime="onnxruntime"), 1, image)
    assert len(list(tmp_path.glob("cache/foveal/peers/*/network.onnx"))) == 2


def test_failures_name_the_peer() -> None:
    one = candidate("fails_later", threads=2)
    assert open_peer(one, 2, image_of(one, 3)).runtime == "peer on cpu, threads not set"
    with pytest.raises(InputError, match=r"some_peers:fails_later: it cannot run on \(2, 3, 8, 8\): ValueError"):
        open_peer(one, 1, image_of(one, 3)).work.finish()
    with pytest.raises(ConfigError, match="no_such_module:f: cannot be imported: ModuleNotFoundError"):
        open_peer(Candidate("x", "no_such_module:f"), 1, image_of(one, 3))
