"""Hostile tar files are refused at once by the check, the stream and training, whatever their headers claim."""

from __future__ import annotations

import gzip
import io
import tarfile
import time
from pathlib import Path

import numpy as np
import pytest

from foveal.data.check import check_data
from foveal.data.stream import TarStream
from foveal.data.tar_samples import places
from foveal.errors import DataError
from helpers.tars import encoded, shard

PHOTO = encoded(np.full((4, 6, 3), 200, np.uint8), "JPEG")
END = bytes(1024)


def header(name: str = "2.jpg", size: int = 0, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A header with any size, in base 256 if necessary."""
    info = tarfile.TarInfo(name)
    info.type = kind
    block = bytearray(info.tobuf())
    if 0 <= size < 8**11:
        block[124:136] = b"%011o\0" % size
    else:
        block[124:136] = (size + (1 << (95 if size >= 0 else 96))).to_bytes(12, "big")
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(*records: bytes) -> bytes:
    """A member with extended attributes."""
    data = b""
    for record in records:
        length = next(n for n in range(1, 1000) if len(b"%d %s\n" % (n, record)) == n)
        data += b"%d %s\n" % (length, record)
    return header("x", len(data), tarfile.XHDTYPE) + data.ljust(512, b"\0") + header()


def two_photos(path: Path) -> bytes:
    """The members of a tar file, without its end."""
    return shard(path, [("0.jpg", PHOTO), ("1.jpg", PHOTO)]).read_bytes()[: 2 * (512 + 512 * -(-len(PHOTO) // 512))]


HOSTILE = {
    "2^70": header(size=1 << 70),
    "larger than the file": header(size=1 << 32),
    "negative": header(size=-512),
    "pax size": pax(b"size=%d" % (1 << 70)),
    "negative pax size": pax(b"size=-1024"),
    "long name": header("x", 1 << 40, tarfile.GNUTYPE_LONGNAME),
    "negative long name": header("x", -512, tarfile.GNUTYPE_LONGNAME),
    "attributes": header("x", 1 << 60, tarfile.XHDTYPE),
    "global attributes": header("x", 1 << 60, tarfile.XGLTYPE),
    "sparse": header(size=1 << 30, kind=tarfile.GNUTYPE_SPARSE),
    "pax sparse 0.0": pax(b"GNU.sparse.size=1073741824"),
    "pax sparse 0.1": pax(b"GNU.sparse.map=0,0"),
    "pax sparse 1.0": pax(b"GNU.sparse.major=1", b"GNU.sparse.minor=0") + b"9999999999\n" + b"1\n" * 251,
    "attributes of attributes": header("x", 512, tarfile.XHDTYPE)
    + bytes(512)
    + header("x", 512, tarfile.XHDTYPE) * 3000,
    "link": header(kind=tarfile.SYMTYPE),
    "hard link": header(kind=tarfile.LNKTYPE),
    "device": header(kind=tarfile.CHRTYPE),
    "pipe": header(kind=tarfile.FIFOTYPE),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_members(tmp_path: Path, name: str) -> None:
    content = two_photos(tmp_path / "train-0.tar")
    (tmp_path / "train-0.tar").write_bytes(content + HOSTILE[name] + END)
    start = time.process_time()
    report = check_data(tmp_path)
    assert report.problems
    assert report.splits[0].readable in (1, 2)  # a damaged file loses the sample before the damage too
    for problem in report.problems:
        assert "\n" not in problem.error
        assert len(problem.error) < 400 + len(str(tmp_path))
    with pytest.raises(DataError, match=r"train-0\.tar"):
        places(tmp_path / "train-0.tar")
    with pytest.raises(DataError, match=r"train-0\.tar"):
        list(TarStream.open(tmp_path, ["train"]))
    assert time.process_time() - start < 5


def test_links_to_other_files_and_folders_do_not_matter(tmp_path: Path) -> None:
    content = two_photos(tmp_path / "train-0.tar")
    others = header("latest", kind=tarfile.SYMTYPE) + header("folder.png", kind=tarfile.DIRTYPE)
    (tmp_path / "train-0.tar").write_bytes(content + others + END)
    assert (check_data(tmp_path).problems, len(places(tmp_path / "train-0.tar"))) == ([], 2)


def test_compressed_files_are_problems_of_a_check(tmp_path: Path) -> None:
    """Training cannot read single samples of them, so the check does not unpack them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("0.jpg"))
    (tmp_path / "train-0.tar").write_bytes(gzip.compress(buffer.getvalue()))
    (problem,) = check_data(tmp_path).problems
    assert problem.error == "compressed; unpack it, since samples are read at their offsets"
