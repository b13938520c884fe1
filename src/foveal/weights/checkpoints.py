"""Files of checkpoints: read without trust, told when they are damaged, written whole."""

from __future__ import annotations

import hashlib
import json
import mmap
import pickletools
import struct
import warnings
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save
from torch import Tensor
from torch.torch_version import TorchVersion

from ..errors import CheckpointError
from ..files import atomic_write
from ..info import KEY, ModelInfo

MAX_BYTES = 8 << 30  #: of tensors in one file; a larger claim is refused before anything is allocated
MAX_HEADER = 16 << 20  #: of a safetensors header
_DIGEST = f"{KEY}.sha256"
_NUMBERS = ("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4")
_WRAPPERS = ("state_dict", "model", "model_ema", "state_dict_ema", "ema", "module")


def read_state(path: str | Path) -> tuple[dict[str, Tensor], ModelInfo | None]:
    """Read tensors (and Foveal's description, where there is one) from a .safetensors, .pt, .pth or .tar file.

    No code from the file runs, and files that claim more than :data:`MAX_BYTES` are refused before allocation. What
    Foveal has written is compared with the SHA-256 that is in the file, and archives of torch with their checksums.

    Raises:
        CheckpointError: the file is missing, damaged, unsafe, too large, or holds no tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        with path.open("rb") as file:
            start, size = file.read(9), path.stat().st_size
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror or error}") from error
    if size > MAX_BYTES:
        raise CheckpointError(f"{path}: {size >> 20} MiB is above the limit of {MAX_BYTES >> 20} MiB")
    if start[8:9] == b"{" and not start.startswith(b"PK"):
        return _read_safetensors(path)
    return _read_torch(path), None


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], ModelInfo | None]:
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        size = path.stat().st_size
        if length > min(MAX_HEADER, size - 8):
            raise CheckpointError(f"{path}: header of {length} bytes in a file of {size}: damaged or hostile")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_no_duplicates)
        except (ValueError, RecursionError) as error:
            raise CheckpointError(f"{path}: header cannot be read ({one_line(error)})") from error
    try:
        state = load_file(path)
    except Exception as error:  # safetensors raises its own type; whatever it finds, the file is not usable
        raise CheckpointError(f"{path}: {one_line(error)}") from error
    metadata = header.get("__metadata__") or {}
    text = metadata.get(KEY)
    # Beside the description we write nothing but the digest: another key is what damage has made of it.
    noted = metadata.get(_DIGEST, "lost" if text and len(metadata) > 1 else None)
    if noted is not None and noted != digest(state, text or ""):
        raise CheckpointError(f"{path}: damaged: its content is not what was written (SHA-256 mismatch)")
    return state, ModelInfo.from_json(text) if text else None


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("the same tensor is declared twice")
    return found


def check_torch_reads_safely(path: Path, otherwise: str) -> None:
    """Raises CheckpointError where this torch must not unpickle ``path``; ``otherwise``: what helps besides."""
    if TorchVersion(torch.__version__) < "2.10":
        raise CheckpointError(
            f"{path}: torch {torch.__version__} cannot read this safely (CVE-2026-24747): install torch 2.10 or newer, "
            f"or {otherwise}"
        )


def _read_torch(path: Path) -> dict[str, Tensor]:
    check_torch_reads_safely(path, "make it .safetensors with foveal convert where there is one")
    try:
        _refuse_bombs(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about pickle protocols: the file is judged by what comes out
            found = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # pickle, zip and torch each raise their own; none of them may pass as a traceback
        raise CheckpointError(
            f"{path}: not a checkpoint of plain tensors ({one_line(error)}); if you trust its origin, load it with "
            "torch and save its state dict as .safetensors"
        ) from error
    state = unwrap(found, path)
    size = path.stat().st_size
    for key, tensor in state.items():
        if not tensor.is_meta and tensor.numel() * tensor.element_size() > size:
            raise CheckpointError(
                f"{path}: {one_line(key)} {tuple(tensor.shape)} is larger than the whole file: refused"
            )
    return state


def _refuse_bombs(path: Path) -> None:
    """Refuse files that ask for far more memory than they have bytes.

    torch stores tensors uncompressed, so an archive that grows on reading is no checkpoint, nor is a file with a tensor
    of more numbers than it has bytes. Nor does any checkpoint build byte arrays, for which a pickle of 1 kB can ask by
    the gigabyte.
    """
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        found, size = view.find(b"bytearray") >= 0, len(view)
        archived = view[:4] == b"PK\x03\x04"  # as torch decides
    if archived or zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
            if any(entry.external_attr & 0x10 for entry in entries):
                # torch would take whatever is in memory for the tensor.
                raise CheckpointError(f"{path}: damaged: an entry of the archive is marked as a folder")
            claimed = sum(entry.file_size for entry in entries)
            if claimed > size + (1 << 20):
                raise CheckpointError(f"{path}: unpacks to {claimed >> 20} MiB from {size >> 20} MiB: refused")
            # torch finds names in upper case, too.
            pickles = [entry for entry in entries if entry.filename.lower().endswith("data.pkl")]
            found |= any(b"bytearray" in archive.read(entry) for entry in pickles)
            if not found and (damaged := archive.testzip()):  # torch does not look at checksums
                raise CheckpointError(f"{path}: damaged: {one_line(damaged)} does not have its checksum")
    if found:
        raise CheckpointError(f"{path}: asks to allocate a byte array, which no checkpoint needs: refused")
    if not archived and (claimed := _largest_storage(path)) > size:
        raise CheckpointError(f"{path}: claims a tensor of {claimed} numbers in {size} bytes: refused")


def _largest_storage(path: Path) -> int:
    """The most numbers that a tensor's storage claims in a file of torch before 1.6.

    Four pickles are at its front, and a storage is a persistent id, a tuple with how many it holds.
    """
    largest, numbers = 0, [0]
    with path.open("rb") as file, suppress(ValueError):  # no such pickles: torch says so
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
    """``text``, or an error's kind where it says nothing, as one line of at most 300 characters."""
    return " ".join(str(text).split())[:300] or type(text).__name__


def unwrap(found: Any, source: object) -> dict[str, Tensor]:
    """Find the state dict inside ``found``: bare, or under one of the customary keys.

    Raises:
        CheckpointError: there is none; ``source`` is what the message calls it.
    """
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{source}: holds a {type(found).__name__}, not a state dict")
    state = _tensors(found)
    if not state:
        raise CheckpointError(f"{source}: no tensors in it; top-level keys: {one_line(', '.join(map(str, found)))}")
    return state


def _tensors(found: Any, depth: int = 0) -> dict[str, Tensor]:
    """The tensors of the first customary key that holds any, else those of ``found`` itself."""
    if not isinstance(found, Mapping) or depth > 3:
        return {}
    for key in _WRAPPERS:
        if inner := _tensors(found.get(key), depth + 1):
            return inner
    return {str(key): value for key, value in found.items() if isinstance(value, Tensor)}


def save_checkpoint(path: str | Path, state: Mapping[str, Tensor], info: ModelInfo) -> None:
    """Write ``state`` and its description as one .safetensors file with a SHA-256 of both, whole or not at all.

    Raises:
        InputError: the file cannot be written.
    """
    tensors = {key: value.detach().contiguous().cpu() for key, value in state.items()}
    text = info.to_json()
    content = _in_order(save(tensors), {KEY: text, _DIGEST: digest(tensors, text)})
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)  # Python's own write says why, where the disk is full


def _in_order(content: bytes, metadata: dict[str, str]) -> bytes:
    """Put ``metadata`` into a safetensors file: the library would in a random order, and no two files were alike."""
    end = 8 + struct.unpack("<Q", content[:8])[0]
    header = json.dumps({"__metadata__": metadata, **json.loads(content[8:end])}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)  # so that the tensors are aligned
    return struct.pack("<Q", len(header)) + header + content[end:]


def digest(state: Mapping[str, Tensor], description: str = "") -> str:
    """SHA-256 of names, types, shapes and bytes of the tensors, sorted by name, and of the description."""
    found = hashlib.sha256(description.encode())
    for key in sorted(state):
        found.update(f"\n{key} {state[key].dtype} {tuple(state[key].shape)}\n".encode())
        found.update(state[key].reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()
