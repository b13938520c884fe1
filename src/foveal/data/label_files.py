"""Text and JSON files of labels as other programs write them, and the files that they name."""

from __future__ import annotations

import codecs
import json
import math
import os
import re
from collections.abc import Mapping
from pathlib import Path, PureWindowsPath
from typing import Any

from ..errors import DataError
from ..images.formats import MAX_FILE_BYTES

Id = int | str  #: of an image or a category

_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(file: Path, limit: int = MAX_FILE_BYTES) -> str:
    """Read a text in UTF-8, with or without a byte order mark, or in UTF-16 with one.

    Raises:
        DataError: the file cannot be read as text, or has more than ``limit`` bytes.
    """
    data = _read(file, limit)
    try:
        return data.decode("utf-16" if data.startswith(_MARKS) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: cannot be read as text ({error.reason})") from error


def read_json(file: Path) -> dict[str, Any]:
    """Read a JSON file with an object at the top, in any encoding of Unicode.

    Raises:
        DataError: the file cannot be read as JSON.
    """
    return _read_json(file, dict, "an object")


def read_json_list(file: Path) -> list[Any]:
    """Read a JSON file with a list at the top, in any encoding of Unicode.

    Raises:
        DataError: the file cannot be read as JSON.
    """
    return _read_json(file, list, "a list")


def read_objects(file: Path, key: str, format: str, data: Mapping[str, Any] | None = None) -> list[Mapping[str, Any]]:
    """The list of objects under ``key`` of a JSON file, whose content is ``data`` if it was read before.

    Args:
        file: the file.
        key: of the object at its top.
        format: whose it is, for messages.
        data: the object at its top.

    Raises:
        DataError: the file cannot be read as JSON, or has something else there.
    """
    objects = (read_json(file) if data is None else data).get(key)
    if not isinstance(objects, list) or not all(isinstance(each, dict) for each in objects):
        raise DataError(f"{file}: not {format} format: {key!r} is not a list of objects")
    return objects


def _read_json(file: Path, kind: type, expected: str) -> Any:
    data = _read(file)
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file}: cannot be read as JSON ({' '.join(str(error).split())})") from error
    if not isinstance(value, kind):
        raise DataError(f"{file}: cannot be used (a {type(value).__name__} at the top, {expected} is expected)")
    return value


def begins_with_key(file: Path, *keys: str) -> bool:
    """Whether one of these keys is in the first 64 KiB of a JSON file; cheap enough to look at many files."""
    head = _head(file).replace(b"\0", b"")  # UTF-16
    return any(f'"{key}"'.encode() in head for key in keys)


def begins_with_list(file: Path, *keys: str) -> bool:
    """Whether one of these keys of the object at the top is a list of objects, or an empty one; as cheap."""
    head, depth = _head(file), 0
    for token in _TOKEN.finditer(head.decode(json.detect_encoding(head), errors="replace")):
        if token["begins_list"] is not None and depth == 1 and token["text"] in keys:
            return True
        depth += {"{": 1, "[": 1, "}": -1, "]": -1}.get(token[0], 0)
    return False


#: A bracket, or a text, which the end of what was read may cut, and whether it is the key of a list of objects.
_TOKEN = re.compile(r'[][{}]|"(?P<text>(?:[^"\\]|\\.)*)"?(?P<begins_list>(?=\s*:\s*\[\s*[{\]]))?', re.DOTALL)


def _head(file: Path) -> bytes:
    """The first 64 KiB of a file; empty if it cannot be read."""
    try:
        with file.open("rb") as stream:
            return stream.read(1 << 16)
    except OSError:
        return b""


def named_file(folder: Path, name: str, root: Path) -> Path:
    """Path of a file that a label file names relative to ``folder``.

    Raises:
        ValueError: the path is absolute, it or a link on it leads out of the folder and of the data set ``root``, or no
            file can have this name.
    """
    plain = name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".")]
    if plain.startswith("/") or PureWindowsPath(name).drive or ".." in parts:
        raise ValueError(f"{shown(name)} leads out of the data set; names are relative to the folder of the images")
    path = folder.joinpath(*parts)
    below = [folder.joinpath(*parts[: i + 1]) for i in range(len(parts))]
    try:
        if any(step.is_symlink() for step in below):
            real = Path(os.path.realpath(path))
            if not any(real.is_relative_to(os.path.realpath(allowed)) for allowed in (folder, root)):
                raise ValueError(f"{shown(name)} is a link that leads out of the data set")
    except OSError as error:
        raise ValueError(f"{shown(name)}: {error.strerror}") from error
    return path


def as_id(value: object) -> Id:
    """An id as files write it: 7, 7.0 and "7" are the same number; other texts stay texts.

    Raises:
        ValueError: not an id.
    """
    if isinstance(value, str) and value:
        if re.fullmatch(r"\s*[+-]?[0-9]{1,4000}\s*", value):  # int() would also take "1_1" for 11
            return int(value)
        return int(float(value)) if re.fullmatch(r"[0-9]{1,15}\.0*", value) else value
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value == int(value):
        return int(value)
    raise ValueError(f"{shown(value)} where an id is expected")


def is_file(path: Path) -> bool:
    """Whether a file exists, also for names that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def shown(value: object, length: int = 80) -> str:
    """A value from a file for a message: quoted, without control characters, shortened."""
    text = ascii(value[: 2 * length]) if isinstance(value, str) and not value.isprintable() else repr(value)
    return text if len(text) <= length else f"{text[:length]}..."


def _read(file: Path, limit: int = MAX_FILE_BYTES) -> bytes:
    try:
        if (size := file.stat().st_size) > limit:
            raise DataError(f"{file}: {size >> 20} MiB file is above the limit of {limit >> 20} MiB")
        return file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from error
