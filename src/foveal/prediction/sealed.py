"""Exported files that end with a checksum, for runtimes that a damaged file would crash.

The runtimes of phones trust a file: an offset that points elsewhere ends the process. A seal is 56 bytes after the
content of a file, where these runtimes ignore them: where the description stands in the content, and the checksum of
the content. It reveals damage, not intent: whoever writes a file can also write its seal.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import CheckpointError, ConfigError
from ..info import MAX_JSON, ModelInfo
from ..weights.kinds import other_kind
from .exported import FileKind
from .file_network import Content, FileNetwork, Settings

OUTPUTS = "outputs"  #: of the notes of a description: names of the outputs of the network, in their order
_MAGIC = b"FovealS1"
_PLACE = struct.Struct("<QQ")  # offset and length of the description
_SEAL = struct.Struct("<16s32s8s")  # the place of the description, SHA-256 of everything before, the magic number


@dataclass(frozen=True)
class SealedKind:
    """A kind of file that is sealed.

    Attributes:
        title: name of the format, for messages.
        identifier: what the bytes 4 to 8 of its files are.
    """

    title: str
    identifier: bytes


def seal(content: bytes, description: str) -> bytes:
    """The content of a file, which contains the text ``description``, and the seal after it.

    Raises:
        ValueError: the description is not in the content.
    """
    text = description.encode()
    place = _PLACE.pack(content.index(text), len(text))
    return content + _SEAL.pack(place, hashlib.sha256(content + place).digest(), _MAGIC)


def open_sealed(kind: SealedKind, file: Content, name: str) -> tuple[bytes, str]:
    """The content of a file with its seal, and the description inside.

    Args:
        kind: what the file has to be.
        file: the file or its content.
        name: of the file, for messages.

    Raises:
        CheckpointError: another kind of file, one that Foveal did not export, or a damaged one.
    """
    try:
        content = file if isinstance(file, bytes) else file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read ({error.strerror})") from error
    if content[4:8] != kind.identifier:
        other = other_kind(file) if isinstance(file, Path) else ""
        raise CheckpointError(f"{name}: it {other or f'is no {kind.title} file'}")
    place, checksum, magic = _SEAL.unpack(content[-_SEAL.size :].rjust(_SEAL.size, b"\0"))
    if magic != _MAGIC:
        raise CheckpointError(f"{name}: cut off, or not exported by Foveal; export the model with foveal export")
    if hashlib.sha256(memoryview(content)[: _PLACE.size - _SEAL.size]).digest() != checksum:
        raise CheckpointError(f"{name}: damaged; copy the file again, or export the model again")
    offset, length = _PLACE.unpack(place)
    return content, content[offset : offset + min(length, MAX_JSON)].decode(errors="replace")


def sealed_files(suffix: str, kind: SealedKind, make: Callable[[bytes, Sequence[str], Settings], Any]) -> FileKind:
    """How a runtime reads sealed files.

    Args:
        suffix: of the files.
        kind: what they have to be.
        make: makes a network of the content of a file, the names of its outputs, and settings; pickles have its name.
    """
    opens = partial(_open_network, kind, make)
    return FileKind(suffix, partial(_read_description, kind), lambda path, options: FileNetwork(opens, [path], options))


def _open_network(
    kind: SealedKind,
    make: Callable[[bytes, Sequence[str], Settings], Any],
    files: Sequence[Content],
    settings: Settings,
) -> Any:
    """Open the only file of a network; see :data:`foveal.prediction.file_network.OpenNetwork`."""
    content, description = open_sealed(kind, files[0], settings.name)
    return make(content, output_names(description, settings.name), settings)


def _read_description(kind: SealedKind, path: Path) -> str:
    """The description in a file, see :attr:`foveal.prediction.exported.FileKind.describe`."""
    return open_sealed(kind, path, str(path))[1]


def with_outputs(info: ModelInfo, names: Iterable[str]) -> ModelInfo:
    """The description of a network with the names of its outputs."""
    return info.replace(notes=info.notes | {OUTPUTS: list(names)})


def output_names(description: str, file: str) -> tuple[str, ...]:
    """What :func:`with_outputs` put into the description of a file.

    Raises:
        CheckpointError: it names no outputs, or cannot be read.
    """
    try:
        names = ModelInfo.from_json(description).notes.get(OUTPUTS)
    except ConfigError as error:
        raise CheckpointError(f"{file}: {error}") from error
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"{file}: its description names no outputs; export the model again")
    return tuple(names)
