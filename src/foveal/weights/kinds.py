"""Name what a file is that was taken for weights: a pointer, a web page, an archive, weights of other software."""

from __future__ import annotations

import zipfile
from pathlib import Path

_AGAIN = "download the file itself again"
_OTHER = "Foveal reads .safetensors, .pt, .pth and .onnx: take the weights in one of these formats"
#: Beginnings of files, and what they are.
_STARTS: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", f"is a Git LFS pointer, not the weights: run git lfs pull, or {_AGAIN}"),
    (b"\x1f\x8b", "is compressed with gzip: unpack it with gunzip"),
    (b"BZh", "is compressed with bzip2: unpack it with bunzip2"),
    (b"\xfd7zXZ", "is compressed with xz: unpack it with unxz"),
    (b"\x28\xb5\x2f\xfd", "is compressed with zstd: unpack it with unzstd"),
    (b"7z\xbc\xaf", "is a 7z archive: unpack it"),
    (b"Rar!", "is a RAR archive: unpack it"),
    (b"\x89HDF", f"is an HDF5 file (Keras or TensorFlow weights): {_OTHER}"),
    (b"GGUF", f"is a GGUF file (llama.cpp): {_OTHER}"),
    (b"\x93NUMPY", f"is a NumPy array: {_OTHER}"),
    (b"\x89PNG", "is an image, not weights: give the model first, the images after it"),
    (b"\xff\xd8\xff", "is an image, not weights: give the model first, the images after it"),
    (b"%PDF", f"is a PDF, not weights: {_AGAIN}"),
)
#: Members of zip archives, and what has them.
_MEMBERS: tuple[tuple[str, str], ...] = (
    ("constants.pkl", "is TorchScript, which contains code: save the state_dict() of the model it was made from"),
    ("model.weights.h5", f"is a Keras model: {_OTHER}"),
    (".npy", f"is an archive of NumPy arrays: {_OTHER}"),
)
_TEXT = frozenset(range(32, 127)) | frozenset(b"\t\n\r\x1b")  # terminal codes included
_SUFFIXES = {
    ".pb": f"is a TensorFlow graph: {_OTHER}",
    ".index": f"is a TensorFlow checkpoint: {_OTHER}",
    ".msgpack": f"is a Flax checkpoint: {_OTHER}",
}


def other_kind(path: Path) -> str:
    """What a file is and what to do, as the end of a sentence; empty if it may be weights.

    Raises:
        OSError: it cannot be read.
    """
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return f"is empty: {_AGAIN}"
    for magic, words in _STARTS:
        if start.startswith(magic):
            return words
    text = start.removeprefix(b"\xef\xbb\xbf").lstrip()
    if text[:1] == b"<" and b"\0" not in text:
        return f"is a web page, not weights: check the link and whether it needs a login, then {_AGAIN}"
    if text and all(byte in _TEXT for byte in start):
        words = "".join(c for c in text[:80].decode("ascii") if c.isprintable())
        return f"is text, not weights ({words}): if a server answered this, check the link, then {_AGAIN}"
    if start[257:262] == b"ustar":
        return "is a tar archive: unpack it and give the file of weights inside"
    if start[4:8] == b"TFL3":
        return f"is a TensorFlow Lite model: {_OTHER}"
    if start.startswith(b"PK"):
        return _archive_kind(path)
    if start[:1] == b"\x08" and path.suffix != ".onnx":
        return "may be an ONNX file: give it the suffix .onnx"
    return _SUFFIXES.get(path.suffix, "")


def _archive_kind(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError, EOFError):
        return ""
    for end, words in _MEMBERS:
        if any(name.endswith(end) for name in names):
            return words
    if not any(name.lower().endswith(("data.pkl", "/version", "pickle")) for name in names):
        return "is a zip archive without weights of torch: unpack it and give the file of weights inside"
    return ""
