"""Readers divide the samples of tar files among them; bad samples are named, skipped and counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from foveal.data.stream import StreamSample, TarStream
from foveal.errors import ConfigError, DataError
from helpers.tars import encoded, shard

PHOTO = encoded(np.full((4, 6, 3), 200, np.uint8), "JPEG")
NOISE = encoded(np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8), "JPEG")
MASK = encoded(np.tile(np.array([0, 1, 255, 0, 1, 0], np.uint8), (4, 1)))


def photos(path: Path, first: int, count: int) -> Path:
    return shard(path, [(f"{i:05}.jpg", PHOTO) for i in range(first, first + count)])


def keys(stream: TarStream) -> list[str]:
    return [sample.key for sample in stream]


def test_members_of_a_sample(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("names: [a, b]")
    members = [("x/1.jpg", PHOTO), ("x/1.png", MASK), ("x/1.cls", b"1\n"), ("x/1.json", b'{"id": 7}')]
    members += [("y/1.png", PHOTO)]
    shard(tmp_path / "train" / "0.tar", members)
    first, second = TarStream.open(tmp_path, ["train"])
    assert (first.key, first.image.shape, first.label, first.extra) == ("x/1", (4, 6, 3), 1, {"id": 7})
    assert first.mask is not None
    assert first.mask[0].tolist() == [0, 1, 255, 0, 1, 0]
    assert (second.key, second.mask, second.label) == ("y/1", None, None)  # a lone .png is the image


@pytest.mark.parametrize(("name", "split"), [("train/0.tar", "train"), ("val-000.tar", "val"), ("0.tar", "all")])
def test_layouts(tmp_path: Path, name: str, split: str) -> None:
    photos(tmp_path / name, 0, 2)
    assert keys(TarStream.open(tmp_path, [split])) == ["00000", "00001"]
    with pytest.raises(DataError, match="no split 'other'"):
        TarStream.open(tmp_path, ["other"])


@pytest.mark.parametrize(("files", "readers"), [(5, 2), (5, 5), (2, 3), (1, 4)])
def test_readers_share_all_samples_once(tmp_path: Path, files: int, readers: int) -> None:
    """Together the readers read each sample once, also if there are more readers than shards."""
    for index in range(files):
        photos(tmp_path / f"{index}.tar", 7 * index, 7)
    stream = TarStream.open(tmp_path, ["all"])
    parts = [keys(stream.share(index, readers)) for index in range(readers)]
    assert sorted(key for part in parts for key in part) == [f"{i:05}" for i in range(7 * files)]
    assert all(parts)
    with pytest.raises(ConfigError, match="reader 2 of 2"):
        stream.share(2, 2)


def test_shuffling_reorders_shards(tmp_path: Path) -> None:
    for index in range(6):
        photos(tmp_path / f"{index}.tar", index, 1)
    stream = TarStream.open(tmp_path, ["all"])
    assert keys(stream.shuffled(1)) == keys(stream.shuffled(1))
    assert keys(stream.shuffled(1)) != keys(stream.shuffled(2))
    assert sorted(keys(stream.shuffled(1))) == keys(stream)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([("1.jpg", b"\xff\xd8 broken")], r"0\.tar: 1: not an image|0\.tar: 1\.jpg"),
        ([("1.jpg", NOISE[:-300])], r"0\.tar: 1\.jpg: .*truncated"),
        ([("1.jpg", b"")], r"0\.tar: 1\.jpg: empty file"),
        ([("1.txt", b"x")], r"0\.tar: 1: no image among its members \(txt\)"),
        ([("1.jpg", PHOTO), ("1.png", encoded(np.zeros((3, 3), np.uint8)))], r"1\.png: mask of 3x3 .* image of 6x4"),
        ([("1.jpg", PHOTO), ("1.png", encoded(np.full((4, 6), 9, np.uint8)))], r"1\.png: id 9 \(24 pixels\)"),
        ([("1.jpg", PHOTO), ("1.png", PHOTO)], r"0\.tar: 1\.png: a RGB image .* colours found"),
        ([("1.jpg", PHOTO), ("1.cls", b"2")], r"1\.cls: '2' is not a class index below 2"),
        ([("1.jpg", PHOTO), ("1.cls", b"9" * 5000)], r"1\.cls: '9{20}' is not a class index below 2"),
        ([("1.jpg", PHOTO), ("1.json", b"{")], r"1\.json: not JSON"),
    ],
)
def test_bad_samples_are_named_and_may_be_skipped(tmp_path: Path, members: list, message: str) -> None:
    (tmp_path / "dataset.yaml").write_text("names: [a, b]")
    shard(tmp_path / "0.tar", [("0.jpg", PHOTO), *members, ("2.jpg", PHOTO)])
    with pytest.raises(DataError, match=message):
        list(TarStream.open(tmp_path, ["all"]))
    bad: list[tuple[Path, str, str]] = []
    assert keys(TarStream.open(tmp_path, ["all"], on_bad=lambda *what: bad.append(what))) == ["0", "2"]
    assert [(path.name, key) for path, key, _ in bad] == [("0.tar", "1")]


def test_truncated_shards_lose_their_end_only(tmp_path: Path) -> None:
    photos(tmp_path / "0.tar", 0, 5)
    photos(tmp_path / "1.tar", 5, 5)
    whole = (tmp_path / "0.tar").read_bytes()
    (tmp_path / "0.tar").write_bytes(whole[: 512 * 2 * 3 + 700])  # a header and a block of data for each sample
    bad: list[str] = []
    stream = TarStream.open(tmp_path, ["all"], on_bad=lambda path, key, error: bad.append(error))
    result = keys(stream)
    assert result[-5:] == ["00005", "00006", "00007", "00008", "00009"]
    assert result[:-5] == [f"{i:05}" for i in range(len(result) - 5)]
    assert 0 < len(result) - 5 < 5
    assert len(bad) == 1
    assert "0.tar: damaged or truncated after" in bad[0]
    (tmp_path / "dataset.yaml").write_text("exclude: bad.txt")
    (tmp_path / "bad.txt").write_text("0.tar\n1.tar/00006\n")
    assert keys(TarStream.open(tmp_path, ["all"])) == ["00005", "00007", "00008", "00009"]
    (tmp_path / "dataset.yaml").unlink()
    with pytest.raises(DataError, match="damaged or truncated"):
        list(TarStream.open(tmp_path, ["all"]))


def _key(sample: StreamSample) -> str:
    return sample.key


def test_workers_and_processes_of_torch(tmp_path: Path) -> None:
    """Two processes with two real worker processes each read every sample once."""
    from torch.utils.data import DataLoader

    from foveal.data.torch_stream import StreamDataset

    for index in range(4):
        photos(tmp_path / f"{index}.tar", 3 * index, 3)
    stream = TarStream.open(tmp_path, ["all"])
    result = []
    for process in range(2):
        loader = DataLoader(StreamDataset(stream, _key, process, 2), batch_size=None, num_workers=2)
        part = list(loader)
        assert len(part) == 6
        result += part
    assert sorted(result) == [f"{i:05}" for i in range(12)]
