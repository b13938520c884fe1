"""Read weight files as NumPy arrays, without torch: safetensors, and the files of ``torch.save`` before torch 1.6."""

from __future__ import annotations

import io
import pickle
from collections import OrderedDict
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load as load_safetensors

from ..errors import CheckpointError

_MAGIC = 0x1950A86A20F9469CFC6C  # the first pickle of a file of torch.save
_TYPES = {"HalfStorage": np.float16, "FloatStorage": np.float32, "DoubleStorage": np.float64, "LongStorage": np.int64}


def read_arrays(source: Path | bytes, name: str) -> dict[str, NDArray[Any]]:
    """Read the tensors of a file by name.

    No code from the file runs: its pickle may only name the types of tensors.

    Args:
        source: path of the file, or its content: .safetensors, or a state dict that torch before 1.6 wrote.
        name: name of the file in messages.

    Raises:
        CheckpointError: another kind of file, or a damaged one.
    """
    try:
        content = source if isinstance(source, bytes) else source.read_bytes()
        return load_safetensors(content) if content[8:9] == b"{" else _read_pickled(content)
    except OSError as error:
        raise CheckpointError(f"{name}: cannot be read ({error.strerror or error})") from error
    except Exception as error:  # pickle and safetensors raise errors of many types
        reason = " ".join(str(error).split())[:120] or type(error).__name__
        raise CheckpointError(
            f"{name}: cannot be read without torch ({reason}): pip install 'foveal[torch]', or download it again"
        ) from error


def _read_pickled(content: bytes) -> dict[str, NDArray[Any]]:
    """Read a state dict: four pickles (magic number, version, system, tensors), keys of storages, and their numbers."""
    file = io.BytesIO(content)
    if _Unpickler(file).load() != _MAGIC:
        raise pickle.UnpicklingError("not a state dict of torch before 1.6")
    for _ in range(2):
        _Unpickler(file).load()
    unpickler = _Unpickler(file)
    tensors = unpickler.load()
    for key in _Unpickler(file).load():
        storage = unpickler.storages[key]
        length = int.from_bytes(file.read(8), "little")
        storage.array = np.frombuffer(file.read(length * storage.dtype.itemsize), storage.dtype)
    return {key: tensor.array() for key, tensor in tensors.items() if isinstance(tensor, _Tensor)}


class _Storage:
    """Numbers that tensors share; they come after the tensors in the file."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype, self.array = dtype, np.empty(0, dtype)


class _Tensor:
    """A tensor whose numbers are not read yet."""

    def __init__(self, storage: _Storage, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *_: Any):
        self.storage, self.offset, self.shape, self.strides = storage, offset, shape, strides

    def array(self) -> NDArray[Any]:
        """The numbers in their shape."""
        numbers = self.storage.array[self.offset :]
        last = sum((size - 1) * step for size, step in zip(self.shape, self.strides, strict=True))
        if min(self.offset, *self.shape, *self.strides, 1) < 0 or (0 not in self.shape and last >= len(numbers)):
            raise pickle.UnpicklingError(f"a tensor of {self.shape} has {len(numbers)} numbers")
        steps = tuple(step * numbers.itemsize for step in self.strides)
        return np.lib.stride_tricks.as_strided(numbers, self.shape, steps, writeable=False)


class _Unpickler(pickle.Unpickler):
    """Unpickles tensors; every other global is refused."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        self.storages: dict[str, _Storage] = {}

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return _Tensor
        if module == "torch" and name in _TYPES:
            return np.dtype(_TYPES[name])
        return self._refuse(f"{module}.{name}")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, *_ = pid
        if kind != "storage" or not isinstance(dtype, np.dtype):
            self._refuse(str(kind))
        return self.storages.setdefault(key, _Storage(dtype))

    def _refuse(self, what: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it holds {what[:60]}, which is not a tensor")
