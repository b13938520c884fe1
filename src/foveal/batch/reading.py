"""Read the inputs of a part one by one, with a few ahead where reading takes a request to an object store."""

from __future__ import annotations

import io
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from tarfile import BLOCKSIZE
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

from ..data.tar_members import (
    DAMAGE,
    IMAGE_ENDINGS,
    by_sample,
    check_end_block,
    check_member,
    open_tar,
    read_members,
)
from ..errors import DataError, InputError
from ..images.formats import MAX_FILE_BYTES
from .inputs import safe_name
from .plan import Part
from .stores import LocalStore, StoreError, open_store

if TYPE_CHECKING:
    import pyarrow.parquet as pq

_AHEAD = 8  # objects that are read while an image is worked on
_ROWS = 8  # of a Parquet file that are decoded at once
_PIECE = 8 << 20  # bytes of a Parquet file that are read at once to see whether its store fails


class Input(NamedTuple):
    """An input of a part.

    Attributes:
        name: its name in the results, unique in the job.
        image: what a predictor reads: a path or an open file; or why there is no image.
    """

    name: str
    image: Path | BinaryIO | InputError


class Content(io.BytesIO):
    """The content of an image with its name, for messages."""

    def __init__(self, content: bytes, name: str) -> None:
        super().__init__(content)
        self.name = name


def read_part(part: Part) -> Iterator[Input]:
    """Read the inputs of a part, in its order.

    Raises:
        StoreError: the disk or the object store fails, or a file has changed since the plan was made.
    """
    return READERS[part.kind](part)


def _read_files(part: Part) -> Iterator[Input]:
    sources = part.sources or tuple(f"{part.root.rstrip('/')}/{name}" for name in part.names)
    if part.root and isinstance(store := open_store(part.root), LocalStore):
        yield from (Input(name, store.path(name)) for name in part.names)
        return
    with ThreadPoolExecutor(_AHEAD, thread_name_prefix="foveal-read") as readers:
        pairs = zip(part.names, sources, strict=True)
        reading = deque(readers.submit(_read_file, *pair) for pair in itertools.islice(pairs, _AHEAD))
        try:
            while reading:
                yield reading.popleft().result()
                reading.extend(readers.submit(_read_file, *pair) for pair in itertools.islice(pairs, 1))
        finally:
            for waiting in reading:
                waiting.cancel()


def _read_file(name: str, source: str) -> Input:
    folder, _, file = source.rpartition("/")
    store = open_store(folder or "/")
    if isinstance(store, LocalStore):
        return Input(name, store.path(file))
    try:
        content = store.read(file, 0, MAX_FILE_BYTES + 1)
        if len(content) > MAX_FILE_BYTES:
            return Input(name, InputError(f"{source}: above the limit of {MAX_FILE_BYTES >> 20} MiB"))
        return Input(name, Content(content, source))
    except FileNotFoundError:
        return Input(name, InputError(f"{source}: no such object"))


def _open(part: Part, stream: bool) -> BinaryIO:
    """Open the tar or Parquet file of a part.

    Raises:
        StoreError: it is gone, or has another size than at the first start.
    """
    store, (name,) = open_store(part.root), part.sources
    size = store.size(name)
    if size != part.size:
        found = "is gone" if size is None else f"has {size} bytes"
        raise StoreError(f"{part.root}/{name} {found}, but had {part.size} when the job began: start in another folder")
    return store.open(name, stream=stream)


def _read_tar(part: Part) -> Iterator[Input]:
    """The images of a tar file, one for each sample, as :func:`~foveal.data.tar_members.by_sample` finds them."""
    (name,) = part.names
    where = Path(f"{part.root}/{part.sources[0]}")
    parsed = part.stop > 0  # a local file whose headers were read when the plan was made
    with _open(part, stream=not parsed) as file:
        file.seek(part.start) if parsed else None
        key, seen = "", set[int]()
        try:
            with open_tar(file, "r:" if parsed else "r|") as archive:
                images: dict[str, bytes | InputError] = {}
                endings: list[str] = []
                for member_key, ending, member in _members(archive, part, where, parsed):
                    if member_key != key:
                        if endings:
                            yield _sample(name, key, endings, images, seen)
                        key, endings, images = member_key, [], {}
                        if parsed and member.header.offset >= part.stop:
                            return
                    endings.append(ending)
                    if ending in IMAGE_ENDINGS:
                        content = member.content
                        images[ending] = _content(archive, where, member.header) if content is None else content
                if endings:
                    yield _sample(name, key, endings, images, seen)
                if not parsed:  # tarfile takes a damaged header for the end
                    check_end_block(open_store(part.root).read(part.sources[0], archive.offset, BLOCKSIZE))
        except OSError as error:  # not of the archive: it is not compressed
            raise StoreError(f"{where}: {error.strerror or error}") from error
        except DAMAGE as error:
            # Nothing after this place can be found, so it is an input that cannot be used, and names what is lost.
            message = f"{where}: damaged or truncated after {key or 'its start'} ({error}); what follows is not read"
            yield Input(f"{name}/(after {key or 'its start'})", InputError(message))


class _Member(NamedTuple):
    """A member of a tar file, with its content if it cannot be read later."""

    header: Any
    content: bytes | InputError | None = None


def _members(archive: Any, part: Part, where: Path, parsed: bool) -> Iterator[tuple[str, str, _Member]]:
    """The members with the keys of their samples. Images of a stream are read before what follows them."""

    def read() -> Iterator[tuple[str, str, _Member]]:
        for path, ending, header in read_members(archive, part.size):
            is_image = ending.lower().endswith(IMAGE_ENDINGS)
            yield path, ending, _Member(header, _content(archive, where, header) if is_image and not parsed else None)

    return by_sample(read())


def _content(archive: Any, where: Path, member: Any) -> bytes | InputError:
    try:
        check_member(where, member)
    except DataError as error:
        return InputError(str(error))
    opened = archive.extractfile(member)
    return opened.read() if opened is not None else b""


def _sample(name: str, key: str, endings: list[str], images: dict[str, bytes | InputError], seen: set[int]) -> Input:
    ending = next((each for each in IMAGE_ENDINGS if each in images), None)
    shown = f"{name}/{key}.{ending or endings[0]}"
    known = hash(safe_name(key))
    twice = known in seen
    seen.add(known)
    if twice:
        return Input(f"{shown} (again)", InputError(f"{shown}: the tar file has this sample twice; the first is used"))
    if ending is None:
        return Input(shown, InputError(f"{name}/{key}: no image among its members ({', '.join(endings)})"))
    content = images[ending]
    return Input(shown, content if isinstance(content, InputError) else Content(content, shown))


def _read_parquet(part: Part) -> Iterator[Input]:
    """The rows of a Parquet file from ``start`` to ``stop``; the name of an input is that of the file and its row."""
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    (name,) = part.names
    with closing(_open(part, stream=False)) as file:
        table = pq.ParquetFile(file)
        first = 0
        for group in range(table.metadata.num_row_groups):
            rows = table.metadata.row_group(group).num_rows
            start, stop = max(first, part.start), min(first + rows, part.stop)
            read = start
            try:
                if start < stop:
                    for row, value in _values(table, group, first, part.column):
                        if start <= row < stop:
                            yield _row(f"{name}/{row}", value)
                            read = row + 1
                        elif row >= stop:
                            break
            except (ArrowException, OSError) as error:
                _check_store(part, table.metadata.row_group(group))
                # The rows that cannot be reached are named, so that each input of the plan is accounted for.
                reason = f"{part.root}/{name}: damaged in or before this row ({str(error).splitlines()[0]})"
                yield from (Input(f"{name}/{row}", InputError(f"{name}/{row}: {reason}")) for row in range(read, stop))
            first += rows


def _check_store(part: Part, group: pq.RowGroupMetaData) -> None:
    """Read the bytes of a row group that failed once more: if the store gives them, it is they that are damaged.

    Raises:
        StoreError: the store does not give them, or the file has changed.
    """
    with closing(_open(part, stream=False)) as file:
        for column in map(group.column, range(group.num_columns)):
            if column.path_in_schema.split(".")[0] != part.column:
                continue
            start = min(column.data_page_offset, column.dictionary_page_offset or column.data_page_offset)
            stop = min(start + column.total_compressed_size, part.size)
            try:
                file.seek(start)
                for place in range(start, stop, _PIECE):
                    file.read(min(_PIECE, stop - place))
            except OSError as error:
                raise StoreError(f"{part.root}/{part.names[0]}: {error.strerror or error}") from error


def _values(table: pq.ParquetFile, group: int, first: int, column: str) -> Iterator[tuple[int, Any]]:
    """The rows of a row group, each with its number, of which that of the group's first row is given."""
    for batch in table.iter_batches(_ROWS, row_groups=[group], columns=[column], use_threads=False):
        for value in batch.column(0):
            yield first, value.as_py()
            first += 1


def _row(name: str, value: Any) -> Input:
    content = value.get("bytes") if isinstance(value, dict) else value
    if not isinstance(content, bytes):
        return Input(name, InputError(f"{name}: no image in this row"))
    return Input(name, Content(content, name))


#: How the inputs of a part are read, by its kind.
READERS: dict[str, Callable[[Part], Iterator[Input]]] = {
    "files": _read_files,
    "tar": _read_tar,
    "parquet": _read_parquet,
}
