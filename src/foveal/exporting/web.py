"""The format of a site without a server: the page, models that run in the browser, and the library that runs them.

The library is onnxruntime-web (MIT), which npm fetches when a site is made. Models are ONNX files with weights in
float16 that a cast enlarges when the file is opened: WebAssembly computes in float32 only.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, DependencyError, ExportError, InputError
from ..files import atomic_write, ensure_folder, parse_json
from ..images.colours import palette_of
from ..info import ModelInfo
from ..page import page_files
from .graph import Graph, Options, Written
from .onnx import make_onnx
from .report import ExportReport, report_path

if TYPE_CHECKING:
    import onnx

RUNTIME = "1.30.0"  #: version of onnxruntime-web

#: Files of onnxruntime-web by what computes: the module that the page imports, its binary, and what it needs besides.
_RUNTIMES = {
    "wasm": ("ort.wasm.min.mjs", "ort-wasm-simd-threaded.wasm", "ort-wasm-simd-threaded.mjs"),
    "webgpu": ("ort.jspi.min.mjs", "ort-wasm-simd-threaded.jspi.wasm", "ort-wasm-simd-threaded.jspi.mjs"),
}
#: Names of a model's networks in the page, and the parts of :class:`Graph` that they are.
_NETWORKS = {
    "prompt": {"encoder": "encoder", "prompts": "prompts"},
    "segment": {"network": ""},
    "upscale": {"network": ""},
}
#: Headers for hosts that read this file: pages with them may use several threads.
_HEADERS = (
    "/*\n  Cross-Origin-Opener-Policy: same-origin\n  Cross-Origin-Embedder-Policy: require-corp\n"
    "  Cache-Control: no-cache\n"
)
MODELS_FOLDER = "models"  #: folder of the models in a site
_LARGE = 1024  # numbers of an array that is stored in float16
_SAM_THRESHOLDS = (0.88, 0.95)  # of models that bring none, see foveal.EverythingOptions
_NPM_SECONDS = 900
_MOST_BYTES = 1 << 26  # of a file of the library


def write_web(graph: Graph, files: Sequence[Path], options: Options) -> Written:
    """Write a network as an ONNX file whose large arrays are stored in float16 and computed with in float32.

    Raises:
        ExportError: it cannot be traced.
        DependencyError: a package is missing.
    """
    proto = make_onnx(graph, replace(options, half=False))
    _store_in_half(proto)
    files[0].write_bytes(proto.SerializeToString())
    return Written()


def _store_in_half(proto: onnx.ModelProto) -> None:
    """Store large arrays in float16 and cast them to float32; runtimes do that once, when they open the file."""
    from onnx import TensorProto, helper, numpy_helper

    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT:
            continue
        values = numpy_helper.to_array(tensor)
        if values.size < _LARGE or np.abs(values).max() > np.finfo(np.float16).max:
            continue
        name, stored = tensor.name, f"{tensor.name}.half"
        with np.errstate(under="ignore"):
            tensor.CopyFrom(numpy_helper.from_array(values.astype(np.float16), stored))
        casts.append(helper.make_node("Cast", [stored], [name], name=f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


class Site:
    """A folder with the page and its models. A further export into it adds a model, or replaces that of the same task.

    Args:
        folder: new, empty, or a site.
        info: description of the model that is to be added.

    Raises:
        ConfigError: the page has no tool for the model.
        InputError: the folder cannot be written, or holds other files.
        DependencyError: npm is missing, or cannot fetch onnxruntime-web.
    """

    def __init__(self, folder: Path, info: ModelInfo) -> None:
        self.check(info)
        self.folder, self.info = ensure_folder(folder), info
        self.models = _models_of(folder)
        self._runtime = _fetch_runtime() if not self._has_runtime() else {}

    @staticmethod
    def check(info: ModelInfo) -> None:
        """Refuse models that the page cannot show.

        Raises:
            ConfigError: the page has no tool for the model.
        """
        if info.task not in _NETWORKS:
            raise ConfigError(f"web: the page has tools for {', '.join(_NETWORKS)}, {info.model} is for {info.task!r}")
        if info.in_chans != 3:
            raise ConfigError(f"web: the page shows photographs of 3 channels, {info.ref} takes {info.in_chans}")
        if info.preprocess.size is not None and not info.preprocess.pad:
            raise ConfigError(f"web: {info.ref} resizes images to {info.preprocess.size}, which the page cannot do")

    def finish(self, report: ExportReport) -> ExportReport:
        """Write the page around the files of a report; the report then counts all files that the model needs."""
        report_path(report.path).unlink()  # it names the command and the paths of this machine
        files = dict(zip(_NETWORKS[self.info.task], (report.path, *report.extra_files), strict=True))
        for name, content in self._runtime.items():
            _write(self.folder / "runtime" / name, content)
        for name, file in page_files().items():
            _write(self.folder / name, file.read_bytes())
        _write(self.folder / "_headers", _HEADERS.encode())
        others = [model for model in self.models if model["task"] != self.info.task]
        site = {
            "engine": "browser",
            "runtime": {"version": RUNTIME} | {name: self._library(name) for name in _RUNTIMES},
            "models": [*others, _describe(self.info, {name: self._entry(file) for name, file in files.items()})],
        }
        _write(self.folder / "site.json", json.dumps(site, indent=1).encode())
        self._remove_replaced(site)
        library = site["runtime"]["wasm"]["binary"]["bytes"] / 1e6
        return replace(
            report,
            path=self.folder / "index.html",
            extra_files=(),
            notes=(*report.notes, f"onnxruntime-web {RUNTIME}, {library:.1f} MB"),
        )

    def _entry(self, file: Path) -> dict[str, Any]:
        with file.open("rb") as opened:
            version = hashlib.file_digest(opened, "sha256").hexdigest()[:16]
        return {"path": file.relative_to(self.folder).as_posix(), "bytes": file.stat().st_size, "version": version}

    def _library(self, name: str) -> dict[str, Any]:
        module, binary, _ = _RUNTIMES[name]
        return {"module": f"runtime/{module}", "binary": self._entry(self.folder / "runtime" / binary)}

    def _has_runtime(self) -> bool:
        """Whether the folder has this version of the library, whole."""
        site = _site_of(self.folder)
        if site.get("runtime", {}).get("version") != RUNTIME:
            return False
        return all((self.folder / "runtime" / name).is_file() for names in _RUNTIMES.values() for name in names)

    def _remove_replaced(self, site: dict[str, Any]) -> None:
        """Remove the files of models that are no longer in the site."""
        used = {entry["path"] for model in site["models"] for entry in model["files"].values()}
        for file in (self.folder / MODELS_FOLDER).glob("*.onnx"):
            if file.relative_to(self.folder).as_posix() not in used:
                file.unlink()


def _site_of(folder: Path) -> dict[str, Any]:
    """What is in a folder's ``site.json``; empty where there is none.

    Raises:
        InputError: the folder holds other files, or its ``site.json`` is not one.
    """
    file = folder / "site.json"
    if not file.exists():
        if any(entry for entry in folder.iterdir() if not entry.name.startswith(".")):
            raise InputError(f"{folder} has files that are no site: give --output an empty folder or a new one")
        return {}
    try:
        site = parse_json(file.read_bytes())
        if site["engine"] != "browser" or not isinstance(site["runtime"], dict):
            raise ValueError("no site for browsers")
        for model in site["models"]:
            if not isinstance(model["task"], str) or not all(
                isinstance(entry["path"], str) for entry in model["files"].values()
            ):
                raise ValueError("a model without task or files")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{file} cannot be used ({error}): give --output an empty folder or a new one") from error
    return site


def _models_of(folder: Path) -> list[dict[str, Any]]:
    return _site_of(folder).get("models", [])


def _describe(info: ModelInfo, files: dict[str, Any]) -> dict[str, Any]:
    """What the page has to know of a model."""
    prepare, names = info.preprocess, info.labels.names
    colours = palette_of(info.labels, len(names))
    return {
        "name": info.ref,
        "task": info.task,
        "licence": info.licence,
        "mean": prepare.mean,
        "std": prepare.std,
        "size": prepare.size,
        "max_side": prepare.max_side,
        "resample": prepare.resample,
        "stride": info.output_stride,
        "scale": info.options.get("scale"),
        "thresholds": info.mask_thresholds or _SAM_THRESHOLDS,
        "classes": [{"name": name, "colour": colour} for name, colour in zip(names, colours, strict=True)],
        "files": files,
    }


def _write(path: Path, content: bytes) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _fetch_runtime() -> dict[str, bytes]:
    """The files of onnxruntime-web, from the package index that npm uses.

    Raises:
        DependencyError: npm is missing, or cannot fetch the package.
        ExportError: the package has other files than expected.
    """
    npm = shutil.which("npm")
    if npm is None:
        raise DependencyError("npm is missing, which fetches onnxruntime-web for the site: install Node.js")
    package = f"onnxruntime-web@{RUNTIME}"
    with tempfile.TemporaryDirectory() as folder:
        command = [npm, "pack", package, "--silent", "--prefer-offline", "--pack-destination", folder]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_NPM_SECONDS, cwd=folder)
        except (OSError, subprocess.TimeoutExpired) as error:
            raise DependencyError(f"npm could not fetch {package}: {error}") from error
        archives = list(Path(folder).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            lines = [line for line in done.stderr.splitlines() if line.strip()] or ["no reason given"]
            raise DependencyError(
                f"npm could not fetch {package} ({lines[0].strip()}): check the network and npm's settings"
            )
        with tarfile.open(archives[0]) as archive:
            return {name: _member(archive, name) for names in _RUNTIMES.values() for name in names}


def _member(archive: tarfile.TarFile, name: str) -> bytes:
    try:
        file = archive.extractfile(f"package/dist/{name}")
    except KeyError:
        file = None
    content = b"" if file is None else file.read(_MOST_BYTES)
    if not content:
        raise ExportError(f"onnxruntime-web {RUNTIME} has no file {name}")
    return content
