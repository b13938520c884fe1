"""What people take for weights is named for what it is; harmless objects next to tensors are read."""

from __future__ import annotations

import argparse
import collections
import gzip
import io
import pathlib
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save
from torch import nn

import foveal
from foveal.errors import CheckpointError
from foveal.weights.checkpoints import read_pickled, read_state
from helpers.hostile_weights import Evil

STATE = {"a.weight": torch.zeros(2, 2), "a.bias": torch.ones(2)}


def torch_file(content: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), buffer)
    return buffer.getvalue()


def arrays() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(2))
    return buffer.getvalue()


FILES: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty"),
    "pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "is a Git LFS pointer"),
    "page": (b"\n<!DOCTYPE html><html><body>log in</body></html>", "is a web page"),
    "page with a mark": (b"\xef\xbb\xbf<html>", "is a web page"),
    "error": (b'{"error": "Repository \x1b[31mnot found"}', r"is text, not weights \(\{\"error\": \"Repository"),
    "nested error": (b'{"data":{"error": "no"}}', "is text, not weights"),
    "words": (b"Not Found\n", r"is text, not weights \(Not Found\)"),
    "gzip": (gzip.compress(save(STATE)), "is compressed with gzip"),
    "keras": (b"\x89HDF\r\n\x1a\n\0\0", "is an HDF5 file"),
    "gguf": (b"GGUF\3\0\0\0", "is a GGUF file"),
    "array": (b"\x93NUMPY\1\0", "is a NumPy array"),
    "arrays": (arrays(), "is an archive of NumPy arrays"),
    "image": (b"\x89PNG\r\n\x1a\n", "is an image"),
    "tar": (bytes(257) + b"ustar\0" + bytes(300), "is a tar archive"),
}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".onnx"])
@pytest.mark.parametrize("kind", FILES)
def test_other_files_are_named(tmp_path: Path, kind: str, suffix: str) -> None:
    path = tmp_path / f"model{suffix}"
    path.write_bytes(FILES[kind][0])
    with pytest.raises(CheckpointError, match=rf"model\{suffix}: it {FILES[kind][1]}") as error:
        foveal.load(path)
    assert str(error.value).isprintable()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (torch_file(nn.Linear(2, 2)), r"holds Python objects: torch\.nn\.modules\.linear\.Linear"),
        (torch_file({"model": nn.Linear(2, 2)}), r"holds Python objects: torch\.nn\.modules\.linear\.Linear"),
        (torch_file({"a": np.array([{}], dtype=object)}), "holds Python objects"),
        (torch_file(STATE)[:-30], "its end is missing"),
        (torch_file(STATE)[:300], "its end is missing"),
        (b"\x80\x04\x95\x05\0\0\0\0\0\0\0}\x94.", "a pickle that torch.save does not write by default"),
    ],
)
def test_what_is_not_read_says_why_without_advice_to_run_code(tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "model.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=says) as error:
        read_state(tmp_path / "model.pt")
    message = str(error.value)
    assert message.isprintable()
    assert not [word for word in ("weights_only", "safe_globals", "torch.load", "\x1b") if word in message]


def test_torchscript_is_named(tmp_path: Path) -> None:
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch deprecates it
        (tmp_path / "model.pt").write_bytes(torchscript())
    with pytest.raises(CheckpointError, match="it is TorchScript"):
        read_state(tmp_path / "model.pt")


@pytest.mark.parametrize("zipped", [True, False])
def test_harmless_objects_next_to_tensors_are_read(tmp_path: Path, zipped: bool) -> None:
    content = {
        "model": STATE,
        "best": np.float64(0.5),
        "step": np.int64(3),
        "done": np.bool_(True),
        "matrix": np.arange(6.0).reshape(2, 3),
        "names": np.array(["a", "b"]),
        "args": argparse.Namespace(lr=0.1, out=pathlib.Path("runs/x"), seed=np.float32(2)),
        "space": types.SimpleNamespace(a=1),
        "path": pathlib.PurePosixPath("a/b"),
        "counts": collections.defaultdict(list, {"a": [1]}),
        "order": collections.OrderedDict(a=1),
    }
    torch.save(content, tmp_path / "run.pt", _use_new_zipfile_serialization=zipped)
    state, info = read_state(tmp_path / "run.pt")
    assert info is None
    assert state.keys() == STATE.keys()
    assert all(state[key].equal(STATE[key]) for key in STATE)
    whole = read_pickled(tmp_path / "run.pt", "use another file")
    assert (whole["best"], whole["args"].lr, whole["path"]) == (0.5, 0.1, pathlib.PurePosixPath("a/b"))
    assert argparse.Namespace not in torch.serialization.get_safe_globals()  # the process's own list is as before


def test_a_state_dict_of_arrays_is_read(tmp_path: Path) -> None:
    torch.save({"state_dict": {key: value.numpy() for key, value in STATE.items()}}, tmp_path / "arrays.pt")
    state, _ = read_state(tmp_path / "arrays.pt")
    assert all(state[key].equal(STATE[key]) for key in STATE)


def test_objects_with_code_are_still_refused(tmp_path: Path) -> None:
    torch.save({"args": argparse.Namespace(evil=Evil(tmp_path / "executed")), **STATE}, tmp_path / "evil.pt")
    with pytest.raises(CheckpointError, match="holds Python objects"):
        read_state(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()
