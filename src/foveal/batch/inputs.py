"""Find the inputs of a job: images in folders, lists, tar files and Parquet files, on disks or object stores."""

from __future__ import annotations

import glob
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from ..data.shards import expand_braces
from ..data.tar_samples import places
from ..errors import ConfigError, DataError, InputError
from ..images.folders import NO_IMAGE, Entry, describe_skipped, entries_below
from ..images.formats import SUFFIXES
from .plan import LARGEST_PART, Part, choose_part_size
from .stores import DEFAULT_OUT, JOB, ArrowStore, LocalStore, has_results, is_remote, open_store, require_pyarrow

TARS, PARQUETS, LISTS = (".tar",), (".parquet", ".pq"), (".txt", ".lst", ".list")
_PARTS_OF_A_GROUP = 8  # parts for each worker into which a row group of a local Parquet file is divided
_WILDCARDS = re.compile(r"[*?\[{]")
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Search:
    """What is looked for.

    Attributes:
        location: as the user writes it: a folder, a pattern, a list, an image, a tar or a Parquet file; path or URI.
        out: folder of the results, which are no inputs; empty: none.
        part_size: inputs of a part; ``None``: chosen.
        workers: number of processes that will work.
        column: column of Parquet files with the images; empty: the only one with bytes.
    """

    location: str
    out: str = ""
    part_size: int | None = None
    workers: int = 1
    column: str = ""


class _File(NamedTuple):
    """A file: the store that it is in, its name there, its size if known, and its name in the results."""

    root: str
    name: str
    size: int
    shown: str


def find(search: Search) -> Iterator[Part]:
    """Find the inputs in a stable order: each file of images alone, of tar and Parquet files a part or several.

    Raises:
        InputError: nothing is there, no images, several kinds of files in one folder, or a name occurs twice.
        DataError: a tar or Parquet file is damaged.
        StoreError: a store cannot be read.
    """
    files = _files_of(search)
    kinds: dict[str, str] = {}  # by the first file of each
    containers: list[_File] = []
    named = _suffix(search.location) in LISTS
    seen: dict[int, int] = {}
    for file in files:
        kind = kind_of(file.name)
        if (other := next((each for each in kinds if each != kind), None)) is not None and not named:
            raise InputError(
                f"{search.location}: both {_KINDS[other]} ({kinds[other]}) and {_KINDS[kind]} ({file.shown}): choose "
                "one with a pattern in quotes, for example 'FOLDER/*.tar'"
            )
        kinds.setdefault(kind, file.shown)
        if not _is_new(file, seen, search.location):
            continue
        if kind == "files":
            sources = (f"{file.root}/{file.name}",) if named else ()
            yield Part(kind, "" if named else file.root, (file.shown,), sources, count=1)
        else:
            containers.append(file)
    if not kinds:
        raise InputError(f"{search.location}: no images ({', '.join(SUFFIXES)}), tar or Parquet files")
    for file in containers:
        yield from _SPLITS[kind_of(file.name)](file, search, len(containers))


def _is_new(file: _File, seen: dict[int, int], location: str) -> bool:
    """Whether a file has not occurred before; numbers instead of names keep the memory small.

    Raises:
        InputError: another file has the same name in the results.
    """
    name, source = hash(safe_name(file.shown)), hash((file.root, file.name))
    known = seen.setdefault(name, 0)
    seen[name] = source
    if known == source:
        _LOG.warning("%s: %s is there twice, and is done once", location, file.shown)
    elif known:
        raise InputError(
            f"{location}: two files would have the name {safe_name(file.shown)} in the results: give them in two jobs"
        )
    return not known


_KINDS = {"files": "images", "tar": "tar files", "parquet": "Parquet files"}


def kind_of(name: str) -> str:
    """The kind of a file by its suffix: "tar", "parquet" or "files"; a suffix that is none of these is an image's."""
    suffix = _suffix(name)
    return "tar" if suffix in TARS else "parquet" if suffix in PARQUETS else "files"


def _suffix(name: str) -> str:
    return PurePosixPath(name.rstrip("/")).suffix.lower()


def _files_of(search: Search) -> Iterator[_File]:
    location = search.location.removeprefix("file://")
    if is_remote(location):
        return _remote_files(location, search.out)
    path = Path(location)
    if path.is_dir():
        return _below(path, search.out)
    if not path.exists():
        if _WILDCARDS.search(location):
            return _matching(location)
        raise InputError(f"{location}: no such file or folder")
    if _suffix(location) in LISTS:
        return _listed(LocalStore(path.parent), path.name, location)
    return iter([_one(path)])


def _one(path: Path) -> _File:
    if path.suffix.lower() not in (*SUFFIXES, *TARS, *PARQUETS):
        raise InputError(
            f"{path}: give a folder, a pattern, an image, a list ({', '.join(LISTS)}), a tar or a Parquet file"
        )
    return _File(os.path.abspath(path.parent), path.name, path.stat().st_size, path.name)


def _below(folder: Path, out: str) -> Iterator[_File]:
    """Files of a folder that are images, tar or Parquet files, without those below ``out`` and earlier results."""
    root, results = os.path.abspath(folder), Path(os.path.realpath(out)) if out and not is_remote(out) else None
    if results is not None and Path(os.path.realpath(folder)).is_relative_to(results):
        raise ConfigError(f"{out}: the images of {folder} are in this folder: choose another one for the results")
    skipped: list[Entry] = []
    left_out, earlier, first = 0, 0, ""

    @lru_cache(1024)
    def has_earlier(path: Path) -> bool:
        return path != folder and (path.name == DEFAULT_OUT or has_results(path) or has_earlier(path.parent))

    for entry in entries_below(folder):
        name, suffix = entry.path.relative_to(folder).as_posix(), entry.path.suffix.lower()
        usable = not entry.skipped or (entry.skipped == NO_IMAGE and suffix in (*TARS, *PARQUETS))
        if results is not None and Path(os.path.realpath(entry.path)).is_relative_to(results):
            continue
        if entry.path != folder and has_earlier(entry.path.parent):
            earlier, first = earlier + usable, first or (name if usable else "")
        elif not usable:
            left_out += 1
            skipped += [entry] if len(skipped) < 100 else []
        else:
            yield _File(root, name, entry.path.stat().st_size if kind_of(name) != "files" else 0, name)
    if left_out:
        more = f" (of {left_out})" if left_out > len(skipped) else ""
        _LOG.warning("%s: %s%s", folder, describe_skipped(folder, skipped), more)
    _name_earlier(str(folder), earlier, first)


def _name_earlier(location: str, count: int, first: str) -> None:
    if count:
        words, more = ("1 file is", "") if count == 1 else (f"{count} files are", ", ...")
        _LOG.warning("%s: %s left out, as results of earlier runs: %s%s", location, words, first, more)


def _matching(pattern: str) -> Iterator[_File]:
    left_out = 0
    base = os.path.abspath(re.split(r"[*?\[{]", pattern)[0] + "x").rpartition(os.sep)[0] or os.sep
    for text in expand_braces(pattern):
        paths = sorted(glob.glob(text, recursive=True))
        if not paths:
            raise InputError(f"{text}: no such file")
        for path in paths:
            if Path(path).suffix.lower() in (*SUFFIXES, *TARS, *PARQUETS) and os.path.isfile(path):
                name = Path(os.path.relpath(path, base)).as_posix()
                yield _File(base, name, os.stat(path).st_size, name)
            elif not ("**" in text and os.path.isdir(path)):
                left_out += 1
    if left_out:
        _LOG.warning("%s: %d folders and files are left out: not images, tar or Parquet files", pattern, left_out)


def _remote_files(location: str, out: str) -> Iterator[_File]:
    wildcard = _WILDCARDS.search(location)
    suffix = _suffix(location)
    if wildcard:
        root = location[: wildcard.start()].rpartition("/")[0]
        tests = [re.compile(_as_regex(text[len(root) + 1 :])).fullmatch for text in expand_braces(location)]
    elif suffix in (*SUFFIXES, *TARS, *PARQUETS, *LISTS):
        root, _, name = location.rpartition("/")
        store = open_store(root)
        if suffix in LISTS:
            yield from _listed(store, name, location)
            return
        if (size := store.size(name)) is None:
            raise InputError(f"{location}: no such object")
        yield _File(root, name, size, name)
        return
    else:
        root, tests = location.rstrip("/"), []
    store = open_store(root)
    assert isinstance(store, ArrowStore)
    results = f"{out.rstrip('/')}/"
    found, earlier, first = list(store.walk()), 0, ""
    jobs = tuple(file.name.removesuffix(JOB) for file in found if file.name.endswith(f"/{JOB}") and not tests)
    for file in found:
        usable = PurePosixPath(file.name).suffix.lower() in (*SUFFIXES, *TARS, *PARQUETS)
        hidden = any(part.startswith(".") for part in file.name.split("/"))
        wanted = not tests or any(test(file.name) for test in tests)
        if not usable or not wanted or hidden or f"{root}/{file.name}".startswith(results):
            continue
        if file.name.startswith(jobs) or (not tests and DEFAULT_OUT in file.name.split("/")[:-1]):
            earlier, first = earlier + 1, first or file.name
        else:
            yield _File(root, file.name, file.size, file.name)
    _name_earlier(location, earlier, first)


def _as_regex(pattern: str) -> str:
    """A pattern as ``glob`` understands it, ``**`` included, as a regular expression."""
    parts = re.split(r"(\*\*/|\*\*$|\*|\?|\[!?[^\]]+\])", pattern)
    known = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return "".join(known.get(part) or _as_class(part) or re.escape(part) for part in parts)


def _as_class(part: str) -> str:
    """``[abc]`` or ``[!abc]`` of a pattern as a regular expression; empty for other text."""
    if len(part) < 3 or not (part.startswith("[") and part.endswith("]")):
        return ""
    inner = part[1:-1]
    negated = inner.startswith("!") and len(inner) > 1
    inner = (inner[1:] if negated else inner).replace("\\", "\\\\").replace("^", "\\^").replace("[", "\\[")
    text = f"[{'^/' if negated else ''}{inner}]"
    try:
        re.compile(text)
    except re.error as error:
        raise InputError(f"{part}: not a set of characters of a pattern ({error})") from error
    return text


def _listed(store: LocalStore | ArrowStore, name: str, location: str) -> Iterator[_File]:
    """The files that a text names, one a line: paths relative to the list, absolute paths, or URIs."""
    try:
        with store.open(name, stream=True) as file:
            for number, raw in enumerate(_lines(file), 1):
                try:
                    line = raw.decode("utf-8-sig" if number == 1 else "utf-8").strip()
                except UnicodeDecodeError as error:
                    raise InputError(f"{location}: line {number} is not UTF-8") from error
                if line and not line.startswith("#"):
                    yield _named(store, line)
    except FileNotFoundError as error:
        raise InputError(f"{location}: no such file") from error


def _lines(file: Iterable[bytes] | object) -> Iterator[bytes]:
    """Lines of a stream, read in pieces: streams of pyarrow have no fast ``readline``."""
    rest = b""
    while piece := file.read(1 << 20):  # pyright: ignore[reportAttributeAccessIssue]
        *lines, rest = (rest + piece).split(b"\n")
        yield from lines
    yield rest


def _named(store: LocalStore | ArrowStore, line: str) -> _File:
    line = line.removeprefix("file://")
    if is_remote(line) or os.path.isabs(line):
        root, _, name = line.rpartition("/")
        return _File(root or "/", name, 0, safe_name(line))
    whole = f"{store.uri}/{line}"
    root, _, name = (whole if is_remote(whole) else Path(os.path.normpath(whole)).as_posix()).rpartition("/")
    return _File(root or "/", name, 0, safe_name(line))


def names_one_image(location: str) -> bool:
    """Whether a location is that of an image itself, not of a folder, pattern or file with images."""
    location = location.removeprefix("file://")
    single = not _WILDCARDS.search(location) if is_remote(location) else os.path.isfile(location)
    return single and _suffix(location) in SUFFIXES


def safe_name(name: str) -> str:
    """A path or URI as a name below a folder: without protocol, drive, leading slash, ``.`` and ``..``."""
    plain = name.partition("://")[2] if is_remote(name) else name.replace("\\", "/")
    parts = [part for part in plain.split("/") if part not in ("", ".", "..") and not re.fullmatch("[A-Za-z]:", part)]
    return "/".join(parts) or "_"


def _split_tar(file: _File, search: Search, files: int) -> Iterator[Part]:
    """Parts of a local tar file, by its headers; of an object the whole, which is read once, front to back."""
    store = open_store(file.root)
    whole = Part("tar", file.root, (file.shown,), (file.name,), size=file.size or _size(store, file))
    if not isinstance(store, LocalStore):
        yield whole
        return
    found = places(store.path(file.name))
    keys = {safe_name(place.key) for place in found}
    if len(keys) < len(found):
        raise DataError(f"{store.path(file.name)}: a sample occurs twice: give each a name of its own")
    size = search.part_size or choose_part_size(len(found) * files, search.workers)
    for first in range(0, len(found), size):
        some = found[first : first + size]
        yield replace(whole, start=some[0].start, stop=some[-1].stop, count=len(some))


def _split_parquet(file: _File, search: Search, files: int) -> Iterator[Part]:
    """Parts of a Parquet file, by its row groups; a local row group may be divided, since reading it again is cheap."""
    require_pyarrow(file.shown)
    import pyarrow.parquet as pq
    from pyarrow import ArrowException

    store = open_store(file.root)
    where = f"{file.root}/{file.name}"
    try:
        with store.open(file.name) as opened, pq.ParquetFile(opened) as table:
            groups = [table.metadata.row_group(index).num_rows for index in range(table.metadata.num_row_groups)]
            column = image_column(table.schema_arrow, search.column, where)
    except FileNotFoundError as error:
        raise InputError(f"{where}: no such file") from error
    except (ArrowException, OSError) as error:
        raise DataError(f"{where}: damaged, or not a Parquet file ({str(error).splitlines()[0]})") from error
    rows, size = sum(groups), search.part_size or choose_part_size(sum(groups) * files, search.workers)
    if not search.part_size:  # each part of a row group decodes it from its first row
        needed = -(-max(groups, default=1) // (_PARTS_OF_A_GROUP * search.workers))
        size = max(size, min(needed, 16 * LARGEST_PART))
    whole = Part("parquet", file.root, (file.shown,), (file.name,), size=file.size or _size(store, file), column=column)
    ends = range(size, rows + size, size) if store.is_local else _group_ends(groups, search.part_size or LARGEST_PART)
    start = 0
    for stop in ends:
        stop = min(stop, rows)
        yield replace(whole, start=start, stop=stop, count=stop - start)
        start = stop


def _group_ends(groups: list[int], size: int) -> Iterator[int]:
    """Where parts of at least ``size`` rows end that consist of whole row groups."""
    end, waiting = 0, 0
    for rows in groups:
        end, waiting = end + rows, waiting + rows
        if waiting >= size:
            yield end
            waiting = 0
    if waiting:
        yield end


def image_column(schema: object, wanted: str, where: str) -> str:
    """The column with the images: bytes, or a struct with a field "bytes" as Hugging Face's data sets have.

    Raises:
        InputError: there is no such column, or there are several.
    """
    import pyarrow as pa

    fields: dict[str, pa.DataType] = {field.name: field.type for field in schema}  # pyright: ignore

    def has_bytes(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return any(kind.field(index).name == "bytes" for index in range(kind.num_fields))
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    usable = [name for name, kind in fields.items() if has_bytes(kind)]
    if wanted:
        usable = [name for name in usable if name == wanted]
    if len(usable) != 1:
        found = (
            f"columns {', '.join(usable)} have bytes: choose one with --column"
            if usable
            else (f"no column {wanted!r} of bytes" if wanted else "no column of bytes")
            + f"; there are {', '.join(fields)}"
        )
        raise InputError(f"{where}: {found}")
    return usable[0]


def _size(store: LocalStore | ArrowStore, file: _File) -> int:
    if (size := store.size(file.name)) is None:
        raise InputError(f"{file.root}/{file.name}: no such file")
    return size


#: How a file that holds many images is divided into parts, by kind.
_SPLITS: dict[str, Callable[[_File, Search, int], Iterator[Part]]] = {"tar": _split_tar, "parquet": _split_parquet}
