"""Read and write checkpoint files: untrusted files run no code, damage is detected, writing is atomic."""

from __future__ import annotations

import argparse
import hashlib
import json
import mmap
import pickle
import pickletools
import re
import struct
import threading
import types
import warnings
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.torch_version import TorchVersion

from ..errors import CheckpointError, ConfigError
from ..files import atomic_write, parse_json
from ..info import KEY, ModelInfo
from ..text import notice
from .kinds import other_kind
from .transfer import MAX_BYTES

_multiarray: Any = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray  # type: ignore[attr-defined]

MAX_HEADER = 16 << 20  #: largest header of a safetensors file, in bytes
_DAMAGED = "download or copy it again"
_DIGEST = f"{KEY}.sha256"
_NUMBERS = ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4")
#: Keys under which training code stores a state dict, in the order of preference.
_WRAPPERS = (
    "state_dict", "model_state_dict", "model_state", "model", "model_ema", "state_dict_ema", "ema_state_dict", "ema",
    "ema_model", "module", "student", "teacher", "net", "network", "weights", "params_ema", "params", "shadow",
)  # fmt: skip
#: Those of the average of the weights over the training, which come before the weights of the last step.
_AVERAGES = ("model_ema", "state_dict_ema", "ema_state_dict", "ema", "ema_model", "params_ema")

_LIGHTNING = (
    "pytorch_lightning.utilities.parsing",
    "lightning.pytorch.utilities.parsing",
    "lightning_fabric.utilities",
)
_OMEGACONF = (
    *("dictconfig.DictConfig", "listconfig.ListConfig", "base.ContainerMetadata", "base.Metadata"),
    *(f"nodes.{kind}Node" for kind in ("Any", "String", "Integer", "Float", "Boolean", "Bytes", "Path", "Enum")),
)


def read_state(path: str | Path) -> tuple[dict[str, Tensor], ModelInfo | None]:
    """Read tensors (and Foveal's description, if the file has one) from a .safetensors, .pt, .pth or .tar file.

    No code from the file runs, and files of more than :data:`MAX_BYTES` are refused before anything is allocated. Files
    that Foveal wrote are compared with the SHA-256 that they contain, and archives of torch with their checksums.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, too large, or contains no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}: check the path; foveal models lists weights by name")
    try:
        with path.open("rb") as file:
            start, size = file.read(9), path.stat().st_size
        # A header's length below 2 ** 48 ends in zeros, which texts and archives do not have there.
        is_safetensors = start[8:9] == b"{" and b"\0\0" in start[:8] and not start.startswith(b"PK")
        kind = "" if is_safetensors else other_kind(path)
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}; check its permissions") from error
    if kind:
        raise CheckpointError(f"{path}: it {kind}")
    if size > MAX_BYTES:
        raise CheckpointError(
            f"{path}: {size >> 20} MiB is above the limit of {MAX_BYTES >> 20} MiB; save the model's state dict alone, "
            "without the optimizer's"
        )
    if is_safetensors:
        return _read_safetensors(path)
    return _read_torch(path), None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], ModelInfo | None]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        size = path.stat().st_size
        if length > min(MAX_HEADER, size - 8):
            raise CheckpointError(
                f"{path}: damaged: its header claims {length} bytes (the file has {size}, the limit is {MAX_HEADER}); "
                f"{_DAMAGED}"
            )
        try:
            header = parse_json(file.read(length), MAX_HEADER)
        except ValueError as error:
            raise CheckpointError(f"{path}: damaged: invalid header ({one_line(error)}); {_DAMAGED}") from error
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises its own type; the file is unusable whatever the reason
        raise CheckpointError(f"{path}: not a valid safetensors file ({one_line(error)}); {_DAMAGED}") from error
    metadata = header.get("__metadata__") or {}  # of texts, as safetensors has checked
    text = metadata.get(KEY)
    # Foveal writes the description and the digest only: an unknown key is a digest whose name was damaged.
    stored = metadata.get(_DIGEST, "lost" if text and len(metadata) > 1 else None)
    if stored is not None and stored != digest(state, text or ""):
        raise CheckpointError(f"{path}: damaged: its content is not what was written (SHA-256 mismatch); {_DAMAGED}")
    try:
        return state, ModelInfo.from_json(text) if text else None
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def check_torch_reads_safely(path: Path, otherwise: str) -> None:
    """Check that this version of torch can unpickle ``path`` without running code from it.

    Args:
        path: file to be read.
        otherwise: for the message, another solution than a newer torch.

    Raises:
        CheckpointError: it cannot.
    """
    if TorchVersion(torch.__version__) < "2.10":
        raise CheckpointError(
            f"{path}: torch {torch.__version__} cannot read this safely (CVE-2026-24747): install torch 2.10 or newer, "
            f"or {otherwise}"
        )


def read_pickled(path: Path, otherwise: str) -> Any:
    """Read a file of ``torch.save``: no code runs, and what it claims to hold must fit into its size.

    Args:
        path: file to be read.
        otherwise: for the message, another solution than a newer torch.

    Raises:
        CheckpointError: damaged, or with objects other than tensors and plain values.
    """
    check_torch_reads_safely(path, otherwise)
    try:
        _refuse_bombs(path)
        with warnings.catch_warnings(), _LOCK, torch.serialization.safe_globals(_HARMLESS):
            warnings.simplefilter("ignore")  # about pickle protocols
            with path.open("rb") as file:  # by a path, torch would go by its suffix
                return torch.load(file, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # pickle, zip and torch raise errors of many types
        raise CheckpointError(f"{path}: not a checkpoint of plain tensors ({_why(error)}") from error


def _why(error: Exception) -> str:
    """Why torch does not read a file, and what to do; torch's own words advise to run code from the file."""
    text = str(error).rpartition("WeightsUnpickler error:")[2].partition("Please use")[0].partition("Check the doc")[0]
    save = "save model.state_dict() where it was made, if you trust its origin"
    if match := re.search(r"GLOBAL ([\w.]+)|allowlisted .*<class '([\w.]+)'>", text):
        return f"it holds Python objects: {(match[1] or match[2])[:80]}); {save}"
    if "Unsupported operand" in text:
        return f"it is a pickle that torch.save does not write by default); {save}"
    if isinstance(error, zipfile.BadZipFile | EOFError) or "central directory" in text:
        return f"its end is missing); {_DAMAGED}"
    return f"{''.join(c for c in one_line(text)[:120] if c.isprintable()) or 'unreadable'}); {save}, or {_DAMAGED}"


def _read_torch(path: Path) -> dict[str, Tensor]:
    content = read_pickled(path, "convert the file to .safetensors with foveal convert on a machine that has it")
    state = unwrap(content, path)
    size = path.stat().st_size
    for key, tensor in state.items():
        if not tensor.is_meta and tensor.numel() * tensor.element_size() > size:
            raise CheckpointError(
                f"{path}: {one_line(key)} {tuple(tensor.shape)} is larger than the whole file: refused; {_DAMAGED}"
            )
    return state


class _Opaque:
    """Stands for an object whose class is not needed, such as a configuration: nothing of it is kept."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


class _Array(np.ndarray[Any, Any]):
    """An array of NumPy in a pickle, which only what follows may fill: its constructor takes memory without data."""

    def __new__(cls, *_: Any, **__: Any) -> _Array:
        raise pickle.UnpicklingError("an array without data")

    def __setstate__(self, state: Any) -> None:
        if state[2].hasobject:  # NumPy would take memory for as many objects as the shape says
            raise pickle.UnpicklingError("an array of objects")
        super().__setstate__(state)  # pyright: ignore[reportAttributeAccessIssue]


def _reconstruct(kind: Any, shape: Any, code: Any) -> Any:
    """NumPy's function, which makes the empty array that the data are read into."""
    if kind is not _Array or tuple(shape) != (0,):
        raise pickle.UnpicklingError("an array without data")
    return _multiarray._reconstruct(_Array, (0,), code)


def _scalar(dtype: Any, data: Any) -> Any:
    """NumPy's function, with the data of the number, so that the type alone takes no memory."""
    return _multiarray.scalar(dtype, data)


def _empty(*_: Any) -> dict[Any, Any]:
    """Stands for the constructor of a dictionary."""
    return {}


_LOCK = threading.Lock()  # torch keeps its list for the whole process
#: What training code stores next to tensors and what runs no code: NumPy's numbers and arrays, paths, options. Objects
#: of configuration packages are left out, under the names of these packages.
_HARMLESS: list[Any] = [
    (_empty, "collections.defaultdict"),
    np.dtype,
    (_Array, "numpy.ndarray"),
    *{type(np.dtype(code)) for code in "?bhilqBHILQefdFDSU"},
    *((_scalar, f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    *((_reconstruct, f"numpy.{core}.multiarray._reconstruct") for core in ("core", "_core")),
    argparse.Namespace,
    types.SimpleNamespace,
    *((PurePosixPath, f"pathlib{part}.{name}") for part in ("", "._local") for name in ("PosixPath", "PurePosixPath")),
    *((_Opaque, f"pathlib{part}.{name}") for part in ("", "._local") for name in ("WindowsPath", "PureWindowsPath")),
    *((OrderedDict, f"{name}.AttributeDict") for name in _LIGHTNING),
    (_Opaque, "typing.Any"),
    (dict, "builtins.dict"),
    (list, "builtins.list"),
    *((_Opaque, f"builtins.{name}") for name in ("str", "int", "float", "bool")),  # types of arguments, not calls
    *((_Opaque, f"omegaconf.{name}") for name in _OMEGACONF),
]


def _refuse_bombs(path: Path) -> None:
    """Refuse files that would allocate far more memory than they have bytes.

    torch stores tensors uncompressed, so no checkpoint is an archive that grows when it is unpacked, or has a tensor of
    more numbers than the file has bytes. No checkpoint builds byte arrays either; a pickle of 1 kB can ask for one of
    gigabytes.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        has_bytearray, size = view.find(b"bytearray") >= 0, len(view)
        is_archive = view[:4] == b"PK\x03\x04"  # the test that torch makes
    if is_archive or zipfile.is_zipfile(path):
        has_bytearray |= _check_archive(path, size, has_bytearray)
    if has_bytearray:
        raise CheckpointError(
            f"{path}: asks to allocate a byte array, which no checkpoint needs: refused; do not use it"
        )
    if not is_archive and (claimed := _largest_storage(path)) > size:
        raise CheckpointError(f"{path}: refused: claims a tensor of {claimed} numbers in {size} bytes; {_DAMAGED}")


def _check_archive(path: Path, size: int, has_bytearray: bool) -> bool:
    """Check a zip archive of ``size`` bytes; return whether a pickle in it builds a byte array.

    Its checksums are compared unless the file is refused anyway, as ``has_bytearray``.
    """
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
        if any(entry.external_attr & 0x10 for entry in entries):
            # torch would return uninitialised memory as the tensor.
            raise CheckpointError(f"{path}: damaged: an entry of the archive is marked as a folder; {_DAMAGED}")
        claimed = sum(entry.file_size for entry in entries)
        if claimed > size + (1 << 20):
            raise CheckpointError(
                f"{path}: unpacks to {claimed >> 20} MiB from {size >> 20} MiB: refused, torch.save does not compress"
            )
        # torch finds names in upper case, too.
        pickles = [entry for entry in entries if entry.filename.lower().endswith("data.pkl")]
        has_bytearray |= any(b"bytearray" in archive.read(entry) for entry in pickles)
        if not has_bytearray and (damaged := archive.testzip()):  # torch does not compare checksums
            raise CheckpointError(f"{path}: damaged: {one_line(damaged)} does not have its checksum; {_DAMAGED}")
    return has_bytearray


def _largest_storage(path: Path) -> int:
    """The largest number of elements that a tensor's storage claims, in the file format of torch before 1.6.

    Such a file begins with four pickles, in which a storage is a persistent id: a tuple with its number of elements.
    """
    largest, numbers = 0, [0]
    with path.open("rb") as file, suppress(ValueError):  # not such pickles: torch.load raises then
        for _ in range(4):
            for code, argument, _ in pickletools.genops(file):
                if code.name == "MARK":
                    numbers = [0]
                elif code.name in _NUMBERS and isinstance(argument, int):
                    numbers.append(argument)
                elif code.name == "BINPERSID":
                    largest = max(largest, *numbers)
    return largest


def one_line(text: object) -> str:
    """``text`` as one line of at most 300 characters; for an error without a message, the name of its type."""
    return " ".join(str(text).split())[:300] or type(text).__name__


def unwrap(content: Any, source: object) -> dict[str, Tensor]:
    """Find the state dict in the content of a file: the content itself, or the value of a customary key ("model", ...).

    Of the weights of a training and their average, the average is taken, and a notice says so.

    Args:
        content: what ``torch.load`` returned.
        source: name of the file, for messages.

    Raises:
        CheckpointError: there is no state dict.
    """
    if not isinstance(content, Mapping):
        raise CheckpointError(
            f"{source}: contains a {type(content).__name__}, not a state dict; save model.state_dict() instead"
        )
    state, note = _find_tensors(content, set())
    if note:
        notice(f"{source}: {note}")
    if not state:
        keys = one_line(", ".join(map(str, content))) or "none"
        raise CheckpointError(
            f"{source}: no tensors in it (top-level keys: {keys}); a state dict is expected at the top or under "
            f"{', '.join(_WRAPPERS)}"
        )
    return state


class _Found(NamedTuple):
    """Tensors of a file, and what to tell the user about the choice of them."""

    tensors: dict[str, Tensor]
    note: str = ""


def _find_tensors(content: Any, seen: set[int]) -> _Found:
    """The tensors under the best customary key that has any, at any depth, else those of ``content`` itself.

    Args:
        content: a part of a file's content.
        seen: identities of the parts that were searched: a file can contain itself.
    """
    if not isinstance(content, Mapping) or id(content) in seen or len(seen) > 100:
        return _Found({})
    seen.add(id(content))
    parts = {key: part for key in _WRAPPERS if (part := _find_tensors(content.get(key), seen)).tensors}
    if parts:
        return _choose(parts)
    if tensors := {str(key): value for key, value in content.items() if isinstance(value, Tensor)}:
        return _Found(tensors)
    arrays = {str(key): value for key, value in content.items() if isinstance(value, np.ndarray)}
    return _Found(
        {key: torch.from_numpy(value) for key, value in arrays.items() if value.dtype.kind in "fiub" and value.ndim}
    )


def _choose(parts: Mapping[str, _Found]) -> _Found:
    """The first part, or the average of its weights: a part with the same number of tensors, and perhaps a counter."""
    first = next((key for key in parts if key not in _AVERAGES), None)
    average = next((key for key in parts if key in _AVERAGES), None)
    if first is None or average is None:
        return next(iter(parts.values()))
    count, averaged = len(parts[first].tensors), len(parts[average].tensors)
    if count <= averaged <= count + 1:
        return _Found(parts[average].tensors, f"the averaged weights {average!r} are read, not {first!r}")
    best = next(iter(parts))
    other = average if best == first else first
    return _Found(parts[best].tensors, f"{best!r} is read, not {other!r}, which has another number of tensors")


def save_checkpoint(path: str | Path, state: Mapping[str, Tensor], info: ModelInfo, half: bool = False) -> None:
    """Write ``state`` and its description atomically as one .safetensors file, with a SHA-256 of both.

    Args:
        path: of the file.
        state: tensors by name.
        info: the description.
        half: store weights in float16; norms and biases, which have one dimension, stay as they are. Loading gives
            float32 again.

    Raises:
        InputError: the file cannot be written.
    """
    tensors = {key: value.detach().contiguous().cpu() for key, value in state.items()}
    if half:
        tensors = {key: _halved(value) for key, value in tensors.items()}
    text = info.to_json()
    content = _in_order(save(tensors), {KEY: text, _DIGEST: digest(tensors, text)})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)  # not safetensors' save_file: Python's error says if the disk is full


def _halved(value: Tensor) -> Tensor:
    """A weight in float16; as it is if it has one dimension, whole numbers, or values beyond the range of float16."""
    if value.ndim < 2 or not value.is_floating_point():
        return value
    half = value.half()
    return value if (half.isinf() & value.isfinite()).any() else half


def _in_order(content: bytes, metadata: dict[str, str]) -> bytes:
    """Insert ``metadata`` into a safetensors file in a fixed order; the library writes it in random order."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.dumps({"__metadata__": metadata, **json.loads(content[8:end])}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # aligns the tensors
    return struct.pack("<Q", len(header)) + header + content[end:]


def digest(state: Mapping[str, Tensor], description: str = "") -> str:
    """SHA-256 of names, types, shapes and bytes of the tensors, sorted by name, and of the description."""
    sha256 = hashlib.sha256(description.encode())
    for key in sorted(state):
        sha256.update(f"\n{key} {state[key].dtype} {tuple(state[key].shape)}\n".encode())
        sha256.update(state[key].reshape(-1).view(torch.uint8).numpy().data)
    return sha256.hexdigest()
