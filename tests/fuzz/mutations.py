"""Damage inputs at random, reproducibly: bytes of any file, and values inside JSON, YAML and checkpoint headers."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from foveal.prediction.sealed import seal
from helpers.spoil import spoil

Mutation: TypeAlias = Callable[[bytes, random.Random], bytes]

SEAL_BYTES = 56  #: at the end of a sealed file; the first 16 are the place of the description

#: Values that a file may hold where another is expected.
VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 255, 256, 65_536, 2**31, 2**63, -(2**63), 10**30, 0.0, -0.5, 1e-300, 1e300,
    float("nan"), float("inf"), "", "0", "1.0", "nan", "x", "../../x", "/etc/passwd", "a\x00b", "\x1b[2J", "<b>|x|</b>",
    "x" * 3000, [], {}, [[]], [None], [0, 0, 0], {"a": {"b": 1}}, [1] * 5000,
)  # fmt: skip


def mutate_bytes(content: bytes, rng: random.Random) -> bytes:
    """Change, remove or insert a few bytes, truncate, or repeat a part."""
    if not content or rng.random() < 0.9:
        return spoil(content, rng) if content else b"\0"
    start = rng.randrange(len(content))
    part = content[start : start + rng.randrange(1, 64)]
    return content[:start] + part * rng.choice([2, 50, 2000]) + content[start:]


def mutate_json(content: bytes, rng: random.Random) -> bytes:
    """Replace, remove, repeat or rename values of a JSON text; now and then damage its bytes."""
    if rng.random() < 0.15:
        return mutate_bytes(content, rng)
    data = json.loads(content)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        data = mutate_value(data, rng)
    return json.dumps(data).encode()


def mutate_value(data: Any, rng: random.Random) -> Any:
    """``data`` with one change at a random place inside."""
    places = list(_places(data))
    if not places or rng.random() < 0.02:
        return copy.deepcopy(rng.choice(VALUES))
    parent, key = rng.choice(places)
    action = rng.random()
    if action < 0.6:
        parent[key] = copy.deepcopy(rng.choice(VALUES))
    elif action < 0.7 and isinstance(parent[key], int | float):
        parent[key] = parent[key] * rng.choice([-1, 2, 10, 1000, 10**6, 0.5])
    elif action < 0.8:
        del parent[key]
    elif isinstance(parent, list):
        parent[key:key] = [parent[key]] * rng.choice([1, 2, 300])
    else:
        parent[f"{key}{rng.choice(['s', '_', ' ', ''])}"] = parent.pop(key)
    return data


def _places(data: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    waiting = [data]
    while waiting:
        parent = waiting.pop()
        entries = parent.items() if isinstance(parent, dict) else enumerate(parent) if isinstance(parent, list) else ()
        for key, value in entries:
            found.append((parent, key))
            waiting.append(value)
    return found


def mutate_text(content: bytes, rng: random.Random) -> bytes:
    """Exchange, remove or repeat words and lines of a text; now and then damage its bytes."""
    if rng.random() < 0.2:
        return mutate_bytes(content, rng)
    lines = content.decode("utf-8", "replace").split("\n")
    number = rng.randrange(len(lines))
    words = lines[number].split(" ")
    action, place = rng.random(), rng.randrange(len(words))
    if action < 0.6:
        words[place] = str(rng.choice(VALUES))[:4000]
        lines[number] = " ".join(words)
    elif action < 0.75:
        del lines[number]
    elif action < 0.9:
        lines[number:number] = [lines[number]] * rng.choice([1, 2, 500])
    else:
        lines[number] = (
            rng.choice(["- ", "  ", "&a [*a]", "? ", "!!python/object:os.system ", "{", "*x "]) + lines[number]
        )
    return "\n".join(lines).encode()


def mutate_safetensors(content: bytes, rng: random.Random) -> bytes:
    """Change the header of a .safetensors file: tensors, or the description of the model inside."""
    if rng.random() < 0.15:
        return mutate_bytes(content, rng)
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    metadata = header.get("__metadata__", {})
    described = [key for key, value in metadata.items() if value.startswith("{")]
    if described and rng.random() < 0.75:
        key = rng.choice(described)
        if rng.random() < 0.8:
            metadata.pop("foveal.sha256", None)  # with the digest, each change would be noticed by that alone
        metadata[key] = mutate_json(metadata[key].encode(), rng).decode("utf-8", "replace")
    else:
        header = mutate_value(header, rng)
    written = json.dumps(header).encode()
    return len(written).to_bytes(8, "little") + written + content[8 + length :]


def mutate_onnx(content: bytes, rng: random.Random) -> bytes:
    """Change the metadata, attributes or shapes of an ONNX file, or its bytes."""
    if rng.random() < 0.3:
        return mutate_bytes(content, rng)
    import onnx

    model = onnx.load_model_from_string(content)
    action = rng.random()
    if action < 0.6 and model.metadata_props:
        entry = rng.choice(list(model.metadata_props))
        mutation = mutate_json if entry.value.startswith("{") else mutate_text
        entry.value = mutation(entry.value.encode(), rng).decode("utf-8", "replace")
    elif action < 0.7:
        dims = [d for value in (*model.graph.input, *model.graph.output) for d in value.type.tensor_type.shape.dim]
        rng.choice(dims).dim_value = rng.choice([0, -1, 1, 7, 2**40])
    elif action < 0.8:
        tensor = rng.choice(list(model.graph.initializer))
        tensor.dims[:] = [rng.choice([0, -1, 1, 7, 2**40]) for _ in tensor.dims]
    elif action < 0.9:
        node = rng.choice(list(model.graph.node))
        node.op_type = rng.choice(["Loop", "If", "Scan", "Identity", "Resize", "Tile", "Expand", "Nothing"])
    else:
        del model.graph.node[rng.randrange(len(model.graph.node))]
    return model.SerializeToString()


def mutate_sealed(content: bytes, rng: random.Random) -> bytes:
    """Damage the bytes of an exported file whose end is a checksum, or change its description and seal it again.

    The content is not sealed again after a change: a seal that fits says that the content is as it was written.
    """
    if rng.random() < 0.5:
        return mutate_bytes(content, rng)
    inner = content[:-SEAL_BYTES]
    offset, length = struct.unpack("<QQ", content[-SEAL_BYTES:][:16])
    text = mutate_json(inner[offset : offset + length], rng).decode("utf-8", "replace").encode()[:length]
    text = text.decode("utf-8", "ignore").encode().ljust(length)  # of the same length: what follows stays in its place
    return seal(inner[:offset] + text + inner[offset + length :], text.decode())


BY_SUFFIX: dict[str, Mutation] = {
    ".json": mutate_json,
    ".jsonl": mutate_text,
    ".yaml": mutate_text,
    ".txt": mutate_text,
    ".safetensors": mutate_safetensors,
    ".onnx": mutate_onnx,
    ".pte": mutate_sealed,
    ".tflite": mutate_sealed,
}


def mutate_file(files: Sequence[Path], rng: random.Random) -> Path:
    """Damage one of ``files`` in place, in a way that suits its suffix, and return it."""
    file = rng.choice(list(files))
    mutation = BY_SUFFIX.get(file.suffix, mutate_bytes)
    content = mutation(file.read_bytes(), rng)
    file.unlink()  # the good input is linked here, not copied
    file.write_bytes(content)
    return file
