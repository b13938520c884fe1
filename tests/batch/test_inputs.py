"""Folders, patterns, lists, tar and Parquet files: what is found, in which parts, and what is read of it."""

from __future__ import annotations

import errno
import io
import logging
import os
import re
import shutil
import sys
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from foveal.batch.inputs import Search, _as_regex, find, names_one_image, safe_name
from foveal.batch.manifest import Job
from foveal.batch.plan import Part, divide
from foveal.batch.reading import read_part
from foveal.batch.results import Options
from foveal.batch.run import Request, _describe
from foveal.batch.sinks import FilesSink
from foveal.batch.stores import DEFAULT_OUT, LocalStore, StoreError
from foveal.commands.outputs import FOLDER
from foveal.errors import ConfigError, DataError, FovealError, InputError
from helpers.batch_jobs import MODEL, pictures
from helpers.tars import shard


def parts(location: object, part_size: int | None = 2, **options: object) -> list[Part]:
    search = Search(str(location), part_size=part_size, **options)  # pyright: ignore[reportArgumentType]
    found = list(divide(find(search), part_size, search.workers))
    assert [Part.from_json(part.to_json()) for part in found] == found
    return found


def content(image: object) -> bytes | str:
    if isinstance(image, InputError):
        return str(image)
    if isinstance(image, Path):
        return image.read_bytes() if image.exists() else "no such file"
    assert isinstance(image, io.BytesIO)
    return image.read()


def read(location: object, part_size: int | None = 2, **options: object) -> dict[str, bytes | str]:
    """Name and content of each input of all parts."""
    inputs = [each for part in parts(location, part_size, **options) for each in read_part(part)]
    assert len({each.name for each in inputs}) == len(inputs)
    return {each.name: content(each.image) for each in inputs}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pictures(tmp_path / "in", 5, (8, 9))
    return tmp_path / "in"


def images_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.png")}


def test_a_folder(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Images anywhere below it, in parts; other files are named in a warning."""
    expected = images_of(folder)
    (folder / "notes.doc").write_text("x")
    (folder / ".hidden.png").write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert read(folder) == expected
    assert "notes.doc" in caplog.text
    assert [part.count for part in parts(folder)] == [2, 2, 1]


def test_results_below_the_folder_are_no_inputs(folder: Path) -> None:
    expected = images_of(folder)
    pictures(folder / "out", 2)
    assert read(folder, out=str(folder / "out")) == expected
    with pytest.raises(ConfigError, match="choose another one for the results"):
        parts(folder / "left", out=str(folder))


@pytest.mark.parametrize("remote", [False, True])
def test_results_of_earlier_runs_are_no_inputs(
    remote: bool, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are known by the manifest in their folder, or by the name of this folder, and counted."""
    expected, location = images_of(folder), str(folder)
    assert FOLDER.name == DEFAULT_OUT
    for name in ("masks/_foveal/job.json", "masks/sub/a.png", "masks/0.tar", f"left/{DEFAULT_OUT}/a.png"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    if remote:
        location = f"memory://earlier-{tmp_path.name}"
        for path in folder.rglob("*.*"):
            fsspec.filesystem("memory").pipe(f"{location}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    assert read(location, out=str(tmp_path / "out")) == expected
    first = f"left/{DEFAULT_OUT}/a.png" if remote else "masks/0.tar"
    assert caplog.messages == [f"{location}: 3 files are left out, as results of earlier runs: {first}, ..."]
    assert read(f"{location}/masks/sub") == read(f"{location}/left/{DEFAULT_OUT}") == {"a.png": b"x"}


@pytest.mark.skipif(sys.platform == "win32", reason="it is a path there")
def test_names_that_would_give_one_result(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for name in ("a\\b.jpg", "a/b.jpg"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(InputError, match=r"two files would have the name a/b\.jpg"):
        parts(tmp_path)


def test_locations_of_one_image(folder: Path) -> None:
    image = folder / min(images_of(folder))
    assert all(map(names_one_image, (str(image), f"file://{image}", "s3://b/a.jpg")))
    assert not any(map(names_one_image, (str(folder), f"{folder}/*.png", "s3://b/*.jpg", "s3://b/a", "x.tar")))


def test_patterns(folder: Path) -> None:
    expected = images_of(folder)
    assert read(folder / "**" / "*.png") == expected
    assert read(folder / "{left,right}" / "0000[0-2].png") == {
        name: data for name, data in expected.items() if name[-5] in "012"
    }
    assert read(folder / "left" / "*.png") == {
        name.removeprefix("left/"): data for name, data in expected.items() if name.startswith("left")
    }
    with pytest.raises(InputError, match="no such file"):
        parts(folder / "*.jpg")


def test_a_list(folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Relative and absolute paths, comments, Windows line ends; a file that is there twice is done once."""
    first, second = sorted(images_of(folder))[:2]
    listed = tmp_path / "list.txt"
    listed.write_bytes(f"\ufeff# images\r\nin/{first}\r\n\r\n{folder / second}\r\nin/{first}\nin/gone.png".encode())
    found = read(listed)
    assert found.pop("in/gone.png") == "no such file"
    assert found == {
        f"in/{first}": (folder / first).read_bytes(),
        f"{str(folder).lstrip('/')}/{second}": (folder / second).read_bytes(),
    }
    assert f"in/{first} is there twice" in caplog.text
    listed.write_text("sub/a.png\n/sub/a.png")
    with pytest.raises(InputError, match=r"two files would have the name sub/a\.png"):
        parts(listed)


@pytest.mark.parametrize(
    ("name", "safe"),
    [("../../x/./y.png", "x/y.png"), ("s3://b/k.png", "b/k.png"), ("C:\\a\\b.png", "a/b.png"), ("/", "_")],
)
def test_names_stay_below_the_results(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_a_tar_file(folder: Path, tmp_path: Path) -> None:
    """A sample is an input; the image is found among masks and labels; one without an image is named."""
    images = [data for _, data in sorted(images_of(folder).items())]
    members = [
        ("a/0.jpg", images[0]), ("a/0.png", b"mask"), ("a/0.cls", b"1"),
        ("a/1.json", b"{}"), ("a/1.png", images[1]),
        ("a/2.txt", b"text"),
        ("a/3.PNG", images[3]),
        ("b.png", images[4]),
    ]  # fmt: skip
    archive = shard(tmp_path / "x.tar", members)
    assert [part.count for part in parts(archive)] == [2, 2, 1]
    assert read(archive) == read(archive, 1) == read(archive, 100) == {
        "x.tar/a/0.jpg": images[0],
        "x.tar/a/1.png": images[1],
        "x.tar/a/2.txt": "x.tar/a/2: no image among its members (txt)",
        "x.tar/a/3.png": images[3],
        "x.tar/b.png": images[4],
    }  # fmt: skip


def test_tar_files_of_a_folder(folder: Path, tmp_path: Path) -> None:
    images = images_of(folder)
    for index in range(2):
        shard(tmp_path / "tars" / f"{index}.tar", [(Path(name).name, data) for name, data in images.items()])
    found = read(tmp_path / "tars")
    assert {name.partition("/")[0] for name in found} == {"0.tar", "1.tar"}
    assert sorted(found.values()) == sorted([*images.values()] * 2)
    assert read(tmp_path / "tars" / "{0..1}.tar") == found


def test_damaged_and_changed_tar_files(folder: Path, tmp_path: Path) -> None:
    """Found when the plan is made; a file that changes later is not read as if it were the same."""
    image = next(iter(images_of(folder).values()))
    good = shard(tmp_path / "x.tar", [("a.png", image), ("b.png", image)])
    (part,) = parts(good)
    shard(good, [("a.png", image)] * 30)
    with pytest.raises(StoreError, match="when the job began"):
        list(read_part(part))
    with pytest.raises(DataError, match="occurs twice"):
        parts(shard(tmp_path / "twice.tar", [("a.png", image), ("b.png", image), ("a.png", image)]))
    good.write_bytes(good.read_bytes()[:700])
    with pytest.raises(DataError, match="damaged or truncated"):
        parts(good)


def table(path: Path, images: list[bytes | None], groups: int, **more: list) -> Path:
    pq.write_table(pa.table({"image": pa.array(images, pa.binary()), **more}), path, row_group_size=groups)
    return path


@pytest.mark.parametrize("groups", [1, 3, 100])
def test_a_parquet_file(folder: Path, tmp_path: Path, groups: int) -> None:
    """Rows are inputs, whatever the row groups; a row without an image is named."""
    images: list[bytes | None] = list(images_of(folder).values())
    path = table(tmp_path / "x.parquet", [*images, None], groups, label=list(range(6)))
    expected = {f"x.parquet/{row}": data for row, data in enumerate(images)}
    for size in (1, 2, 4, 100):
        found = read(path, size)
        assert found.pop("x.parquet/5") == "x.parquet/5: no image in this row"
        assert found == expected
        assert [part.count for part in parts(path, size)] == [min(size, 6 - start) for start in range(0, 6, size)]


def test_columns_of_parquet_files(folder: Path, tmp_path: Path) -> None:
    """A struct with bytes, as Hugging Face writes images; several columns of bytes need a choice."""
    images = list(images_of(folder).values())
    structs = pa.array([{"bytes": data, "path": "x"} for data in images])
    pq.write_table(pa.table({"id": list(range(5)), "picture": structs}), tmp_path / "hf.parquet")
    assert list(read(tmp_path / "hf.parquet").values()) == images
    path = table(tmp_path / "two.parquet", list(images), 9, other=images[::-1])
    with pytest.raises(InputError, match=r"columns image, other have bytes: choose one with --column"):
        parts(path)
    assert list(read(path, column="other").values()) == images[::-1]
    with pytest.raises(InputError, match=r"no column 'label' of bytes; there are image, other"):
        parts(path, column="label")
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(InputError, match="no column of bytes; there are x"):
        parts(path)
    path = table(tmp_path / "hit.parquet", list(images), 2)
    content = bytearray(path.read_bytes())
    place = content.index(images[3])
    content[place - 40 : place + 40] = b"\xff" * 80  # the header of the second row group's page
    (found,) = parts(path, 9)
    path.write_bytes(content)
    names = [(each.name, isinstance(each.image, InputError)) for each in read_part(found)]
    assert [name for name, _ in names] == [f"hit.parquet/{row}" for row in range(5)]
    assert [bad for _, bad in names] == [False, False, True, True, False]
    path.write_bytes(b"PAR1 no")
    with pytest.raises(DataError, match="damaged, or not a Parquet file"):
        parts(path)


def test_mistakes_are_one_line(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "x.doc").write_text("x")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\x00")
    for location, words in {
        tmp_path / "empty": "no images",
        tmp_path / "gone": "no such file or folder",
        tmp_path / "x.doc": "give a folder, a pattern, an image, a list",
        tmp_path / "bad.txt": "line 1 is not UTF-8",
    }.items():
        with pytest.raises(FovealError, match=words) as error:
            parts(location)
        assert "\n" not in str(error.value)
    shard(folder / "x.tar", [("a.png", io.BytesIO().getvalue())])
    with pytest.raises(InputError, match=r"both .* choose one with a pattern"):
        parts(folder)


@pytest.mark.parametrize(("count", "workers", "largest"), [(5, 2, 8), (1000, 2, 63), (9000, 2, 256)])
def test_size_of_parts(count: int, workers: int, largest: int) -> None:
    """Several parts for each worker, but not too small or large; the order stays."""
    files = [Part("files", "/x", (str(index),), count=1) for index in range(count)]
    found = list(divide(files, None, workers))
    assert [name for part in found for name in part.names] == [str(index) for index in range(count)]
    assert max(part.count for part in found) == min(largest, count)
    assert all(part.count == len(part.names) for part in found)


@pytest.mark.parametrize("remote", [False, True])
def test_names_in_tar_files_may_have_dots(folder: Path, tmp_path: Path, remote: bool) -> None:
    """Also in an object store, whose tar files are read once, from start to end."""
    images = [data for _, data in sorted(images_of(folder).items())]
    archive = shard(tmp_path / "x.tar", [("2026.01.31.png", images[0]), ("2026.02.01.png", images[1])])
    where = f"memory://tars-{tmp_path.name}/x.tar"
    if remote:
        fsspec.filesystem("memory").pipe(where, archive.read_bytes())
    found = read(where if remote else archive)
    assert [name.rpartition("/")[2] for name in found] == ["2026.01.31.png", "2026.02.01.png"]
    assert list(found.values()) == images[:2]


def test_a_damaged_header_in_a_stream_is_named(folder: Path, tmp_path: Path) -> None:
    """Python's tarfile takes it for the end, so that what follows would be missing without a word."""
    images = [data for _, data in sorted(images_of(folder).items())]
    archive = shard(tmp_path / "x.tar", [("a.png", images[0]), ("b.png", images[1]), ("c.png", images[2])])
    damaged = bytearray(archive.read_bytes())
    damaged[damaged.index(b"b.png")] ^= 1
    where = f"memory://damaged-{tmp_path.name}/x.tar"
    fsspec.filesystem("memory").pipe(where, bytes(damaged))
    found = read(where)
    message = str(found.pop("x.tar/(after a)"))
    assert message.endswith("damaged or truncated after a (bad header); what follows is not read")
    assert found == {"x.tar/a.png": images[0]}


class BrokenStream(io.BytesIO):
    """A file whose connection breaks after the first read."""

    def read(self, size: int | None = -1, /) -> bytes:
        if self.tell():
            raise OSError(errno.ECONNRESET, "Connection reset by peer")
        return super().read(size)


def test_a_store_that_fails_in_a_tar_file_is_no_damage(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part is done again later, and none of its inputs counts as one that cannot be used."""
    image = next(iter(images_of(folder).values()))
    archive = shard(tmp_path / "x.tar", [("a.png", image), ("b.png", bytes(20_000))])
    part = Part("tar", str(tmp_path), ("x.tar",), ("x.tar",), size=archive.stat().st_size)
    monkeypatch.setattr(
        LocalStore, "open", lambda self, name, *, stream=False: BrokenStream(self.path(name).read_bytes())
    )
    with pytest.raises(StoreError, match=r"x\.tar: Connection reset by peer"):
        list(read_part(part))


def test_a_store_that_fails_in_a_parquet_file_is_no_damage(tmp_path: Path) -> None:
    path = table(tmp_path / "x.parquet", [os.urandom(100_000) for _ in range(6)], 2)
    (part,) = parts(path, 9)
    inputs = read_part(part)
    assert next(inputs).name == "x.parquet/0"
    os.truncate(path, 100)
    with pytest.raises(StoreError, match=r"x\.parquet has 100 bytes, but had \d+ when the job began"):
        list(inputs)


@pytest.mark.parametrize(
    ("pattern", "fitting", "others"),
    [
        ("[!x]*.jpg", ["a.jpg", "ab.jpg"], ["x.jpg", "xa.jpg", "a/b.jpg"]),
        ("[^x].jpg", ["x.jpg", "^.jpg"], ["a.jpg"]),
        ("a/**", ["a/b.jpg", "a/b/c/d.jpg"], ["b.jpg", "b/a/c.jpg"]),
        ("**/x[0-9].jpg", ["x1.jpg", "a/b/x1.jpg"], ["a/xy.jpg"]),
    ],
)
def test_patterns_of_object_stores_mean_what_they_do_on_disks(
    pattern: str, fitting: list[str], others: list[str]
) -> None:
    fits = re.compile(_as_regex(pattern)).fullmatch
    assert [name for name in [*fitting, *others] if fits(name)] == fitting


def test_a_pattern_with_a_falling_range() -> None:
    with pytest.raises(InputError, match=r"^\[z-a\]: not a set of characters") as error:
        _as_regex("[z-a]*.jpg")
    assert "\n" not in str(error.value)


def test_addresses_of_local_files(folder: Path, tmp_path: Path) -> None:
    """``file://``, as INPUT and in a list."""
    expected = images_of(folder)
    assert read(f"file://{folder}") == expected
    first = min(expected)
    (tmp_path / "list.txt").write_text(f"file://{folder / first}\n")
    for listed in (tmp_path / "list.txt", f"file://{tmp_path}/list.txt"):
        assert read(listed) == {f"{str(folder).lstrip('/')}/{first}": expected[first]}


def test_names_that_are_too_long_for_a_file(tmp_path: Path) -> None:
    """They are inputs that cannot be used; the results of the others are written."""
    sink = FilesSink(LocalStore(tmp_path), ".png")
    sink.add("a" * 251, b"mask")
    for name in ("a" * 252, "ü" * 126, f"{'ü' * 128}/b.jpg"):
        with pytest.raises(InputError, match="would have too long a name for a file"):
            sink.add(name, b"mask")
    assert sink.names == [path.name for path in tmp_path.iterdir()] == [f"{'a' * 251}.png"]


def test_an_overlap_of_0_makes_another_job_than_the_default() -> None:
    jobs = [_describe(Request("in", "out", MODEL, options=Options(64, overlap))) for overlap in (None, 0)]
    assert [job.options for job in jobs] == [{"tile": 64}, {"tile": 64, "overlap": 0}]


def test_the_content_of_a_model_says_which_it_is(tmp_path: Path) -> None:
    """Of a graph with its weights, and of the files of a package; neither its path nor the default type does."""
    (tmp_path / "p.mlpackage" / "Data").mkdir(parents=True)
    for name in ("m.xml", "m.bin", "p.mlpackage/Data/w"):
        (tmp_path / name).write_bytes(b"x")

    def job(model: Path, dtype: str = "auto") -> Job:
        return _describe(Request("in", "out", str(model), engine={"dtype": dtype}))

    for model, weights in (("m.xml", "m.bin"), ("p.mlpackage", "p.mlpackage/Data/w")):
        before = job(tmp_path / model)
        before.check_same(job(shutil.copytree(tmp_path, tmp_path / f"copy of {model}") / model, "float32"), "out")
        (tmp_path / weights).write_bytes(b"y")
        with pytest.raises(ConfigError, match="of another job, of content of the model's file"):
            before.check_same(job(tmp_path / model), "out")


def test_a_folder_that_cannot_be_listed_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    monkeypatch.setattr("foveal.images.folders.os.scandir", lambda _: (_ for _ in ()).throw(PermissionError(13, "no")))
    with pytest.raises(InputError, match="no images"):
        parts(folder)
