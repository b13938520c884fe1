"""Third-party networks as candidates: ``module:callable``."""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, FovealError, InputError
from ..prediction.torch_runner import find_device
from .candidates import Candidate
from .peer_files import FILE_RUNTIMES, open_peer_file
from .rounds import Work

_NAME = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")  # module:callable


class Peer(NamedTuple):
    """A network that Foveal did not make.

    Attributes:
        work: runs it on the images of the benchmark.
        runtime: what it is, as text.
        model: the network if it is a ``torch.nn.Module``, else ``None``.
    """

    work: Work
    runtime: str
    model: Any


def is_peer(ref: str) -> bool:
    """Whether ``ref`` has the form ``module:callable`` and is not a file."""
    return _NAME.fullmatch(ref) is not None and not Path(ref).exists()


def open_peer(candidate: Candidate, threads: int, image: NDArray[np.float32]) -> Peer:
    """Make a network by calling ``module:callable``, which is looked for in the working folder, too.

    It is called with those of ``task``, ``size``, ``batch``, ``device``, ``dtype`` and ``threads`` that it has
    parameters for. It returns a ``torch.nn.Module``, which is put into evaluation mode and moved to device and type, or
    something that is called with the images, a float32 array ``(B, C, H, W)``, and returns when the output is there.
    Inside that, torch has the number of threads of the candidate; the callable itself sets that of other libraries. A
    module also runs in ONNX Runtime and OpenVINO (``runtime``), exported for the size of the images.

    Args:
        candidate: with ``size`` and ``batch``.
        threads: threads for the network.
        image: the images.

    Raises:
        ConfigError: there is no such callable, it fails, or a setting that it cannot have.
        ExportError: it cannot be exported for its runtime.
        InputError: a device that this machine does not have.
    """
    make = find_peer(candidate.ref)
    device = "cpu" if candidate.device == "cpu" else find_device(candidate.device)
    dtype = "float32" if candidate.dtype == "auto" else candidate.dtype
    values = {"device": device, "dtype": dtype, "threads": threads}
    values |= {name: getattr(candidate, name) for name in ("task", "size", "batch")}
    with _one_line(candidate.ref, "fails", ConfigError):
        passed = values.keys() & inspect.signature(make).parameters.keys()
        made = make(**{name: values[name] for name in passed})
    module = "torch" in sys.modules and isinstance(made, sys.modules["torch"].nn.Module)
    if module:
        made = made.eval()
    _check(candidate, passed | {"device", "dtype", "runtime"} if module else passed, made)
    kind = "" if dtype == "float32" else f", {dtype}"
    if module and candidate.runtime in FILE_RUNTIMES:
        run = open_peer_file(candidate, threads, made, _source(candidate.ref), image)
        return Peer(Work(_checked(candidate.ref, run, image)), f"{candidate.runtime} on cpu{kind}, peer", made)
    if module:
        with _one_line(candidate.ref, f"cannot be moved to {device}", ConfigError):
            return Peer(torch_work(candidate.ref, made, device, dtype, image), f"torch on {device}{kind}, peer", made)
    run = _checked(candidate.ref, lambda: made(image), image)
    own = "" if "threads" in passed else ", threads not set"
    return Peer(Work(run), f"peer on {device}{kind}{own}", None)


def find_peer(ref: str) -> Callable[..., Any]:
    """The callable that ``ref`` names; modules are looked for in the working folder, too.

    Raises:
        ConfigError: there is none.
    """
    module, _, name = ref.partition(":")
    if "" not in sys.path and str(Path.cwd()) not in sys.path:  # the command's own folder comes first there
        sys.path.append(str(Path.cwd()))
    with _one_line(ref, "cannot be imported", ConfigError):
        found = getattr(importlib.import_module(module), name, None)
    if not callable(found):
        raise ConfigError(f"{ref}: {module} has no function {name}")
    return found


def _source(ref: str) -> Path | None:
    """File of the module that has the callable."""
    path = getattr(sys.modules[ref.partition(":")[0]], "__file__", None)
    return None if path is None else Path(path)


def _check(candidate: Candidate, known: set[str], made: object) -> None:
    """Refuse settings that do not reach the network, and results that are no network."""
    if candidate.asks_for("runtime") and "runtime" not in known:
        raise ConfigError(f"{candidate.ref}: a peer has a runtime of its own: leave out runtime={candidate.runtime}")
    if candidate.runtime not in ("auto", "torch", *FILE_RUNTIMES):
        raise ConfigError(
            f"{candidate.ref}: networks of others run in torch, {' or '.join(FILE_RUNTIMES)}, not with "
            f"runtime={candidate.runtime}"
        )
    for name in ("device", "dtype"):
        if candidate.asks_for(name) and name not in known:
            raise ConfigError(
                f"{candidate.ref}: {name}={getattr(candidate, name)} does not reach it: give the function a parameter "
                f"{name!r}, or leave it out"
            )
    if not callable(made):
        raise ConfigError(f"{candidate.ref}: its result, a {type(made).__name__}, cannot be called with images")


def torch_work(
    ref: str, model: Any, device: str, dtype: str, image: NDArray[np.float32], options: Mapping[str, Any] | None = None
) -> Work:
    """A torch network on its device, as it is; the images are there already, and the output stays there."""
    import torch

    number = getattr(torch, dtype)
    model = model.to(device=device, dtype=number)
    x = torch.from_numpy(image).to(device=device, dtype=number)

    def run() -> object:
        with torch.inference_mode():
            return model(x, **(options or {}))

    place = torch.device(device)
    return Work(_checked(ref, run, image), None if place.type == "cpu" else place)


def _checked(ref: str, run: Callable[[], object], image: NDArray[np.float32]) -> Callable[[], object]:
    """``run``, whose errors name the candidate."""

    def checked() -> object:
        try:
            return run()
        except FovealError:
            raise
        except Exception as error:
            raise InputError(f"{ref}: it cannot run on {image.shape}: {_reason(error)}") from error

    return checked


@contextmanager
def _one_line(ref: str, what: str, kind: type[FovealError]) -> Iterator[None]:
    """Turn any exception of a peer into an error of one line."""
    try:
        yield
    except FovealError:
        raise
    except Exception as error:
        raise kind(f"{ref}: {what}: {_reason(error)}") from error


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}"[:300]
