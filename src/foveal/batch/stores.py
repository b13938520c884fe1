"""Where inputs are read from and results are written to: a local folder, or a prefix of an object store.

A file appears in a store whole or not at all: by renaming a temporary file, or by the upload of an object, which is
visible once it is complete. Everything that must survive a killed process rests on this.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple, Protocol, TypeVar, cast

from ..errors import DependencyError, FovealError, InputError
from ..files import atomic_write, sync_files

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

T = TypeVar("T")
_INSTALL = "pip install 'foveal[batch]'"
FOLDER = "_foveal"  #: of the manifest; readers of Parquet folders leave out names that begin with _
JOB = f"{FOLDER}/job.json"  #: what the job of a folder of results computes
DEFAULT_OUT = "foveal-out"  #: folder into which the other commands write if none is named
_ATTEMPTS = 8  # of a request to an object store; the pauses between them grow
_MISSING = (FileNotFoundError, NotADirectoryError)


class StoreError(FovealError):
    """A disk or an object store cannot be read or written now; the work can be done again later."""

    exit_code = 1


class Found(NamedTuple):
    """A file of a store: its name below the store's root, and its size in bytes."""

    name: str
    size: int


class Store(Protocol):
    """A folder or a prefix. Names are relative to it, with ``/``.

    Every method raises StoreError if the disk or the object store fails, and FileNotFoundError if a file that is read
    does not exist.

    Attributes:
        uri: the root, as users write it.
        is_local: whether the files have paths.
    """

    uri: str
    is_local: bool

    def open(self, name: str, *, stream: bool = False) -> BinaryIO:
        """Open a file for reading; a ``stream`` is read from its start to its end."""
        ...

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        """The content of a file, or ``length`` bytes from ``start``."""
        ...

    def size(self, name: str) -> int | None:
        """Number of bytes of a file; ``None``: it does not exist."""
        ...

    def list(self, folder: str = "") -> Iterator[Found]:
        """The files of a folder, without those of folders in it, in any order; none if it does not exist."""
        ...

    def first_besides(self, known: str) -> str:
        """A name in the root that is neither ``known`` nor hidden; empty: there is none."""
        ...

    def create(self, name: str, *, sync: bool = True) -> Any:
        """Context manager with the path of a local file, which becomes the file ``name`` at its end."""
        ...

    def put(self, name: str, content: bytes, *, sync: bool = True) -> None:
        """Write a file."""
        ...

    def put_new(self, name: str, content: bytes) -> None:
        """Write a file unless it exists."""
        ...

    def sync(self, names: Iterable[str]) -> None:
        """Wait until files that were written without ``sync`` survive a power failure."""
        ...

    def remove(self, name: str) -> None:
        """Remove a file if it exists."""
        ...


class LocalStore:
    """A folder of a local, or a mounted file system."""

    is_local = True

    def __init__(self, root: str | Path) -> None:
        self.root = Path(os.path.abspath(root))
        self.uri = str(self.root)

    def path(self, name: str) -> Path:
        """The path of a file."""
        return self.root / name

    def open(self, name: str, *, stream: bool = False) -> BinaryIO:
        return _attempt(lambda: self.path(name).open("rb"), self.path(name))

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        def read() -> bytes:
            with self.path(name).open("rb") as file:
                file.seek(start)
                return file.read(-1 if length is None else length)

        return _attempt(read, self.path(name))

    def size(self, name: str) -> int | None:
        with suppress(*_MISSING):
            return _attempt(lambda: self.path(name).stat().st_size, self.path(name))
        return None

    def list(self, folder: str = "") -> Iterator[Found]:
        with suppress(*_MISSING), os.scandir(self.path(folder)) as entries:
            for entry in entries:
                if entry.is_file():
                    yield Found(f"{folder}/{entry.name}" if folder else entry.name, entry.stat().st_size)

    def first_besides(self, known: str) -> str:
        try:
            with os.scandir(self.root) as entries:
                return next((each.name for each in entries if each.name != known and each.name[0] != "."), "")
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise InputError(f"cannot write {self.uri}: {error.strerror}") from error

    @contextmanager
    def create(self, name: str, *, sync: bool = True) -> Iterator[Path]:
        try:
            with atomic_write(self.path(name), sync=sync) as path:
                yield path
        except InputError as error:
            raise StoreError(str(error)) from error

    def put(self, name: str, content: bytes, *, sync: bool = True) -> None:
        with self.create(name, sync=sync) as path:
            path.write_bytes(content)

    def put_new(self, name: str, content: bytes) -> None:
        path = self.path(name)

        def link() -> None:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=".") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
                os.chmod(file.name, 0o644)
                with suppress(FileExistsError):  # of several processes the first one wins
                    os.link(file.name, path)

        try:
            _attempt(link, path)
        except StoreError:  # a file system without hard links
            if self.size(name) is None:
                self.put(name, content)

    def sync(self, names: Iterable[str]) -> None:
        try:
            sync_files(map(self.path, names))
        except InputError as error:
            raise StoreError(str(error)) from error

    def remove(self, name: str) -> None:
        _attempt(lambda: self.path(name).unlink(missing_ok=True), self.path(name))


class ArrowStore:
    """A prefix of an object store, or of any other file system that pyarrow or fsspec can open.

    A request that fails is repeated with growing pauses: by the client of S3 itself, otherwise here.
    """

    is_local = False

    def __init__(self, uri: str, filesystem: FileSystem, root: str) -> None:
        self.uri, self.filesystem, self.root = uri.rstrip("/"), filesystem, root.rstrip("/")

    def path(self, name: str) -> str:
        """The path of a file within the file system."""
        return f"{self.root}/{name}" if self.root and name else self.root or name

    def open(self, name: str, *, stream: bool = False) -> BinaryIO:
        opened = self.filesystem.open_input_stream if stream else self.filesystem.open_input_file
        return cast("BinaryIO", _attempt(lambda: opened(self.path(name)), self._where(name)))

    def read(self, name: str, start: int = 0, length: int | None = None) -> bytes:
        def read() -> bytes:
            with self.filesystem.open_input_file(self.path(name)) as file:
                if length is None and not start:
                    return file.read()
                rest = max(0, file.size() - start)  # a buffer of the whole length would be made for a small object
                return file.read_at(rest if length is None else min(length, rest), start)

        return _attempt(read, self._where(name))

    def size(self, name: str) -> int | None:
        from pyarrow.fs import FileType

        info = _attempt(lambda: self.filesystem.get_file_info(self.path(name)), self._where(name))
        return info.size if info.type == FileType.File else None

    def list(self, folder: str = "") -> Iterator[Found]:
        return self._select(folder, recursive=False)

    def walk(self, folder: str = "") -> Iterator[Found]:
        """All files below a folder, sorted by name."""
        return iter(sorted(self._select(folder, recursive=True)))

    def first_besides(self, known: str) -> str:
        names = (found.name for found in self._select("", recursive=False, folders=True))
        return next((name for name in names if name != known and name[0] != "."), "")

    def _select(self, folder: str, recursive: bool, folders: bool = False) -> Iterator[Found]:
        from pyarrow.fs import FileSelector, FileType

        selector = FileSelector(self.path(folder), recursive=recursive, allow_not_found=True)
        wanted = (FileType.File, FileType.Directory) if folders else (FileType.File,)
        below = len(self.root) + 1 if self.root else 0
        for info in _attempt(lambda: self.filesystem.get_file_info(selector), self._where(folder)):
            if info.type in wanted:
                yield Found(info.path[below:], info.size or 0)

    @contextmanager
    def create(self, name: str, *, sync: bool = True) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(prefix="foveal-") as folder:
            path = Path(folder) / name.rpartition("/")[2]
            yield path
            self.put(name, path.read_bytes())

    def put(self, name: str, content: bytes, *, sync: bool = True) -> None:
        def put() -> None:
            # Without "with", which would complete the object of a write that failed.
            file = self.filesystem.open_output_stream(self.path(name))
            file.write(content)
            file.close()

        try:
            _attempt(put, self._where(name))
        except FileNotFoundError:  # a file system whose folders must exist; object stores have none
            folder = self.path(name).rpartition("/")[0]
            try:
                self.filesystem.create_dir(folder, recursive=True)
                put()
            except OSError as error:
                raise StoreError(f"{self._where(name)}: cannot be written ({str(error).splitlines()[0]})") from error

    def put_new(self, name: str, content: bytes) -> None:
        if self.size(name) is None:
            self.put(name, content)

    def sync(self, names: Iterable[str]) -> None:
        """Nothing: an object is stored once its upload has returned."""

    def remove(self, name: str) -> None:
        if self.size(name) is not None:
            _attempt(lambda: self.filesystem.delete_file(self.path(name)), self._where(name))

    def _where(self, name: str) -> str:
        return f"{self.uri}/{name}" if name else self.uri

    def __reduce__(self) -> tuple[Any, ...]:
        return open_store, (self.uri,)


def has_results(folder: Path) -> bool:
    """Whether a job has written its results into this folder."""
    return (folder / JOB).is_file()


def require_pyarrow(what: str) -> None:
    """Check that pyarrow is installed.

    Raises:
        DependencyError: it is not, with what needs it.
    """
    try:
        import pyarrow  # noqa: F401
    except ImportError as error:
        raise DependencyError(f"{what}: needs pyarrow: {_INSTALL}") from error


def is_remote(uri: str) -> bool:
    """Whether a text is a URI such as ``s3://bucket/folder``, not a path."""
    return "://" in uri and not uri.startswith("file://")


def open_store(uri: str) -> LocalStore | ArrowStore:
    """Open a folder, or a prefix of an object store.

    S3 takes its endpoint from ``AWS_ENDPOINT_URL_S3`` or ``AWS_ENDPOINT_URL``, and keys and region as all clients of
    AWS do.

    Raises:
        DependencyError: pyarrow, or the package of another protocol, is not installed.
        InputError: an unknown protocol, or a URI that cannot be used.
    """
    if not is_remote(uri):
        return LocalStore(uri.removeprefix("file://"))
    require_pyarrow(uri)
    from pyarrow import ArrowException, fs

    try:
        if uri.startswith(("s3://", "s3a://")):
            return ArrowStore(uri, _open_s3(fs), uri.partition("://")[2])
        try:
            return ArrowStore(uri, *fs.FileSystem.from_uri(uri))
        except ArrowException:  # a protocol that pyarrow has not
            import fsspec

            filesystem, root = fsspec.core.url_to_fs(uri)
            return ArrowStore(uri, fs.PyFileSystem(fs.FSSpecHandler(filesystem)), root)
    except ImportError as error:
        raise DependencyError(f"{uri}: {error}") from error
    except (OSError, ValueError) as error:  # ArrowInvalid is a ValueError
        raise InputError(f"{uri}: cannot be opened ({error})") from error


def _open_s3(fs: Any) -> FileSystem:
    endpoint = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL") or ""
    scheme, _, host = endpoint.rpartition("://")
    options = {"endpoint_override": host.rstrip("/"), "scheme": scheme or "https"} if host else {}
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
    if region or host:
        options["region"] = region or "us-east-1"
    retries = fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS)
    return fs.S3FileSystem(retry_strategy=retries, connect_timeout=20, request_timeout=60, **options)


def _attempt(work: Callable[[], T], where: object) -> T:
    """Call ``work``; what a disk or a store raises becomes a StoreError, but for FileNotFoundError."""
    try:
        return work()
    except _MISSING as error:
        raise FileNotFoundError(errno.ENOENT, "no such file", str(where)) from error
    except OSError as error:
        raise StoreError(f"{where}: {error.strerror or error}") from error
