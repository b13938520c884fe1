"""Samples of tar files by index: all of them, in an order that follows from seed and epoch; errors name the sample."""

from __future__ import annotations

import gzip
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader, Dataset

from foveal.data.check import check_data
from foveal.data.classification import ClassificationData
from foveal.data.labelled import open_labelled
from foveal.data.segmentation import SegmentationData
from foveal.data.shards import find_shards
from foveal.data.stream import TarStream
from foveal.data.tar_samples import TarSamples, places
from foveal.errors import DataError
from foveal.training.batches import Batches
from foveal.training.config import TrainConfig
from helpers.tars import encoded, shard


def photo(seed: int) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 256, (4, 6, 3), dtype=np.uint8))


def mask(seed: int) -> bytes:
    return encoded(np.random.default_rng(seed).integers(0, 2, (4, 6), dtype=np.uint8))


def masked(path: Path, first: int, count: int) -> Path:
    members = []
    for i in range(first, first + count):
        members += [(f"a/{i:05}.webp", photo(i)), (f"a/{i:05}.png", mask(i))]
    return shard(path, members)


def classed(path: Path, first: int, count: int) -> Path:
    return shard(path, [m for i in range(first, first + count) for m in ((f"{i}.png", photo(i)), (f"{i}.cls", b"1"))])


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "dataset.yaml").write_text("names: [a, b]")
    return tmp_path


def test_samples_are_those_of_the_stream(root: Path) -> None:
    """Also with names so long that they need a header of their own, and with other files among the members."""
    long_name = "deep/" + "n" * 180
    members = [("1.png", photo(1)), ("1.cls", b"1"), (f"{long_name}.png", photo(7)), (f"{long_name}.cls", b"0")]
    members += [("2.txt", b"x" * 700), ("2.png", photo(2)), ("2.cls", b"0")]
    shard(root / "train" / "0.tar", members)
    classed(root / "train" / "1.tar", 3, 2)
    data = TarSamples.open(root, ["train"], "classify")
    stream = list(TarStream.open(root, ["train"]))
    assert len(data) == len(stream) == 5
    for index, expected in enumerate(stream):
        image, label = data[index]
        assert np.array_equal(image, expected.image)
        assert label == expected.label
        assert data.name(index).as_posix().endswith(f".tar/{expected.key}")


@pytest.mark.parametrize(
    ("names", "keys"),
    [
        (["2026.01.30.jpg", "2026.01.30.png", "2026.01.31.JPG", "2026.01.31.png"], ["2026.01.30", "2026.01.31"]),
        (["a.v2.jpg", "a.v2.mask.png", "a.v2.meta", "b.jpg", "b.png"], ["a.v2", "b"]),
        (["A.V2.png", "A.V2.seg.png", "A.V2.cls"], ["A.V2"]),
        (
            ["a.left.jpg", "a.jpg", "a.png", "a.right.jpg"],
            ["a"],
        ),  # webdataset: other views of "a"
        (["d.e/1.x.jpg", "d.e/1.x.png"], ["d.e/1.x"]),
    ],
)
def test_names_with_dots(tmp_path: Path, names: list[str], keys: list[str]) -> None:
    image, mask = encoded(np.zeros((4, 4, 3), np.uint8)), encoded(np.ones((4, 4), np.uint8))
    contents = {"jpg": encoded(np.zeros((4, 4, 3), np.uint8), "JPEG"), "cls": b"1", "meta": b"{}"}
    members = [(n, contents.get(n.lower().rpartition(".")[2], image if n == "A.V2.png" else mask)) for n in names]
    shard(tmp_path / "train" / "0.tar", members)
    (tmp_path / "dataset.yaml").write_text("names: [a, b]\n")
    data = TarSamples.open(tmp_path, ["train"], "segment")
    assert data.keys == keys
    assert all(data[index][1].all() for index in range(len(data)))
    assert [sample.key for sample in TarStream.open(tmp_path, ["train"])] == keys


def test_many_names_with_the_same_beginning(tmp_path: Path) -> None:
    """What precedes the first dot is the same for all samples, more than are held at a time."""
    image, mask = encoded(np.zeros((4, 4, 3), np.uint8), "JPEG"), encoded(np.ones((4, 4), np.uint8))
    names = [f"2026.{i:03d}" for i in range(100)]
    shard(tmp_path / "0.tar", [(f"{n}.{e}", c) for n in names for e, c in (("jpg", image), ("png", mask))])
    (tmp_path / "dataset.yaml").write_text("names: [a, b]\n")
    assert TarSamples.open(tmp_path, ["all"], "segment").keys == names
    assert [sample.key for sample in TarStream.open(tmp_path, ["all"])] == names


def test_masks(root: Path) -> None:
    masked(root / "train-0.tar", 0, 3)
    data = TarSamples.open(root, ["train"], "segment")
    for index, (image, ids) in enumerate(data[i] for i in range(3)):
        assert image.shape == (4, 6, 3)
        assert np.array_equal(ids, np.random.default_rng(index).integers(0, 2, (4, 6), dtype=np.uint8))


@given(counts=st.lists(st.integers(1, 9), min_size=1, max_size=6), buffer=st.integers(1, 70), seed=st.integers(0, 3))
def test_order_is_that_of_a_shuffle_buffer(
    tmp_path_factory: pytest.TempPathFactory, counts: list[int], buffer: int, seed: int
) -> None:
    """Each sample once; none before it can be in the buffer; a buffer of one sample keeps the order of the files."""
    root = _shards(tmp_path_factory.getbasetemp() / f"shards{'_'.join(map(str, counts))}", counts)
    data = TarSamples.open(root, ["all"], "classify")
    order = data.order(np.random.default_rng(seed), buffer)
    assert sorted(order) == list(range(sum(counts)))
    assert order == data.order(np.random.default_rng(seed), buffer)
    ends = np.cumsum(counts)
    files = [list(range(end - count, end)) for end, count in zip(ends, counts, strict=True)]
    sequence = [index for i in np.random.default_rng(seed).permutation(len(counts)) for index in files[i]]
    place = {index: number for number, index in enumerate(sequence)}
    assert all(place[index] < number + buffer for number, index in enumerate(order))
    if buffer == 1:
        assert order == sequence


def _shards(root: Path, counts: list[int]) -> Path:
    if not root.exists():
        root.mkdir()
        (root / "dataset.yaml").write_text("names: [a, b]")
        for number, count in enumerate(counts):
            classed(root / f"{number}.tar", 100 * number, count)
    return root


def test_a_large_buffer_mixes_all_files(tmp_path: Path) -> None:
    """Over many epochs, every sample comes first about equally often."""
    data = TarSamples.open(_shards(tmp_path / "x", [5, 5]), ["all"], "classify")
    firsts = np.bincount([data.order(np.random.default_rng(seed), 10)[0] for seed in range(2000)], minlength=10)
    assert firsts.min() > 140  # expected: 200, with a standard deviation of 13
    assert firsts.max() < 260


class _Keys(Dataset):
    def __init__(self, data: TarSamples) -> None:
        self.data = data

    def __getitem__(self, place: tuple[int, int]) -> str:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.data[place[1]]  # read it, as training does
        return str(self.data.name(place[1]))


def test_processes_and_workers_share_a_pass(tmp_path: Path) -> None:
    """Two processes with two real workers each read every sample once, in the same batches as one process."""
    data = TarSamples.open(_shards(tmp_path / "x", [5, 8, 3]), ["all"], "classify")
    config = TrainConfig(batch_size=4, shuffle_buffer=6, seed=3)
    alone = iter(Batches(data, config, 0, 0, 1))
    expected = [{str(data.name(index)) for _, index, *_ in next(alone)} for _ in range(4)]
    shares = []
    for rank in range(2):
        share = Batches(data, config, 0, rank, 2)
        batches = iter(DataLoader(_Keys(data), batch_sampler=share, num_workers=2, collate_fn=list))
        shares.append([next(batches) for _ in range(4)])
        del batches
    for batch, first, second in zip(expected, *shares, strict=True):
        assert len(first) == len(second) == 2
        assert {*first, *second} == batch
    assert len(set.union(*expected)) == 16


# ---- problems


@pytest.mark.parametrize("task", ["segment", "classify"])
def test_samples_without_a_label_are_named_at_once(root: Path, task: str) -> None:
    shard(root / "0.tar", [("1.jpg", b"never read"), ("2.jpg", b"")])
    wanted = r"no mask \(.png, .mask.png or .seg.png\)" if task == "segment" else r"no class index \(.cls\)"
    with pytest.raises(DataError, match=rf"0\.tar: 1: {wanted} among its members \(jpg\) \(and 1 more problems"):
        open_labelled(root, ["all"], task)  # type: ignore[arg-type]
    shard(root / "0.tar", [("1.cls", b"1"), ("1.txt", b"")])
    with pytest.raises(DataError, match=r"0\.tar: 1: no image among its members \(cls, txt\)"):
        open_labelled(root, ["all"], task)  # type: ignore[arg-type]


def test_check_lists_what_training_refuses(root: Path) -> None:
    """Samples without image or label are listed; without the listed samples, the rest can be used for training."""
    members = [("0.png", photo(0)), ("0.cls", b"1"), ("1.png", photo(1)), ("2.cls", b"1"), ("3.png", b"no image")]
    shard(root / "0.tar", [*members, ("3.cls", b"0")])
    report = check_data(root)
    assert report.bad_files == ["0.tar/1", "0.tar/2", "0.tar/3"]
    assert report.splits[0].items == 4
    (root / "bad.txt").write_text("\n".join(report.bad_files))
    (root / "dataset.yaml").write_text("names: [a, b]\nexclude: bad.txt")
    data = open_labelled(root, ["all"], "classify")
    assert [data.name(index).name for index in range(len(data))] == ["0"]


def _cuts() -> list[int]:
    """Truncate a tar file of three samples within a header, within data, between members, and before the end block."""
    return [300, 512 + 20, 1024, 1024 + 512, 2048, 2048 + 700, 3 * 2048]


@pytest.mark.parametrize("length", _cuts())
def test_truncated_files_are_named_in_one_line(root: Path, length: int) -> None:
    path = classed(root / "0.tar", 0, 3)
    whole = path.read_bytes()
    assert places(path)[-1].stop == 3 * 2048, "a header and a block for each member"
    path.write_bytes(whole[:length])
    with pytest.raises(DataError, match=r"0\.tar: damaged or truncated after") as raised:
        open_labelled(root, ["all"], "classify")
    assert "\n" not in str(raised.value)
    assert check_data(root).problems, "reading it front to back notices too"
    (root / "dataset.yaml").write_text("names: [a, b]\nexclude: bad.txt")
    (root / "bad.txt").write_text("0.tar\n")
    classed(root / "1.tar", 10, 2)
    assert len(open_labelled(root, ["all"], "classify")) == 2


def test_a_damaged_header_is_not_the_end(root: Path) -> None:
    path = classed(root / "0.tar", 0, 3)
    content = bytearray(path.read_bytes())
    content[2048:2052] = b"\xff\xff\xff\xff"  # of the second sample
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"0\.tar: damaged or truncated after 0 \(bad header\)"):
        open_labelled(root, ["all"], "classify")
    report = check_data(root)
    assert [problem.error for problem in report.problems] == [f"{path}: damaged or truncated after 0 (bad header)"]


def test_compressed_files_are_told(root: Path) -> None:
    path = classed(root / "0.tar", 0, 3)
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match=r"0\.tar: .*compressed files must be unpacked first"):
        open_labelled(root, ["all"], "classify")
    assert len(list(TarStream.open(root, ["all"]))) == 3, "the stream reads them"


def test_files_that_change_meanwhile_are_noticed(root: Path) -> None:
    path = classed(root / "0.tar", 0, 3)
    data = TarSamples.open(root, ["all"], "classify")
    masked(path, 0, 3)
    with pytest.raises(DataError, match=r"0\.tar: 2: "):
        data[2]
    path.write_bytes(path.read_bytes()[:2100])
    with pytest.raises(DataError, match=r"0\.tar: 2: "):
        data[2]


def test_names_are_needed(tmp_path: Path) -> None:
    classed(tmp_path / "0.tar", 0, 3)
    with pytest.raises(
        DataError, match=r"tar files contain no class names: write 'names: \[...\]' into .*dataset.yaml"
    ):
        open_labelled(tmp_path, ["all"], "classify")


# ---- which files


def test_patterns(root: Path) -> None:
    for split, numbers in (("train", range(8, 12)), ("val", range(2))):
        for number in numbers:
            classed(root / f"{split}-{number:04}.tar", 10 * number, 1)
    every = f"{root}/{{train,val}}-*.tar"
    for pattern, expected in (
        (f"{root}/train-{{0008..0010}}.tar", {"train": 3}),
        (f"{root}/train-00??.tar", {"train": 4}),
        (f"{root}/train-0008.tar", {"train": 1}),
        (every, {"train": 4, "val": 2}),
        (f"{root}/{{train-{{0008..0011}},val-0001}}.tar", {"train": 4, "val": 1}),
    ):
        folder, described, result = find_shards(pattern)
        assert folder == root
        assert described.names == ("a", "b")
        assert {split: len(paths) for split, paths in result.items()} == expected
    assert len(open_labelled(every, ["val"], "classify")) == 2
    with pytest.raises(DataError, match=r"train-0012\.tar: no such tar file"):
        find_shards(f"{root}/train-{{0010..0013}}.tar")
    with pytest.raises(DataError, match=r"\{3\.\.1\} is no rising range"):
        find_shards(f"{root}/{{3..1}}.tar")
    with pytest.raises(DataError, match=r"no split 'test' in this folder; valid: train"):
        open_labelled(f"{root}/train-*.tar", ["test"], "classify")


def test_patterns_inside_folders_of_splits(root: Path) -> None:
    classed(root / "train" / "0.tar", 0, 2)
    classed(root / "val" / "0.tar", 5, 1)
    assert find_shards(f"{root}/train/{{0..0}}.tar")[:2] == find_shards(root)[:2]
    assert find_shards(f"{root}/*/0.tar")[2] == find_shards(root)[2]


def test_whole_files_are_drawn_for_validation(root: Path) -> None:
    for number in range(5):
        classed(root / f"{number}.tar", 10 * number, 2)
    (root / "dataset.yaml").write_text("names: [a, b]\nval_share: 0.2")
    result = find_shards(root)[2]
    assert (len(result["train"]), len(result["val"])) == (4, 1)
    assert not set(result["train"]) & set(result["val"])
    assert [split.items for split in check_data(root).splits] == [8, 2]


def test_tar_files_beside_folders_of_images_are_left_alone(tmp_path: Path) -> None:
    """Archives often lie next to the files that were extracted from them."""
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        (tmp_path / "train" / name / "1.png").write_bytes(photo(0))
    classed(tmp_path / "train.tar", 0, 3)
    assert isinstance(open_labelled(tmp_path, ["train"], "classify"), ClassificationData)
    other = tmp_path / "camvid"
    for folder, content in (("train", photo(0)), ("trainannot", mask(0))):
        (other / folder).mkdir(parents=True)
        (other / folder / "1.png").write_bytes(content)
    masked(other / "train-0.tar", 0, 3)
    assert isinstance(open_labelled(other, ["train"], "segment"), SegmentationData)


def test_members_beyond_the_limit_are_refused_unread(root: Path) -> None:
    with tarfile.open(root / "0.tar", "w") as archive:
        info = tarfile.TarInfo("1.png")
        info.size = 1 << 40
        archive.addfile(info)
    with pytest.raises(DataError, match=r"1\.png is above the limit of \d+ MiB"):
        open_labelled(root, ["all"], "classify")


def test_a_png_beside_another_image_is_its_mask(tmp_path: Path) -> None:
    (tmp_path / "dataset.yaml").write_text("names: [a, b]")
    image, mask = np.full((8, 8, 3), 200, np.uint8), np.eye(8, dtype=np.uint8)
    shard(tmp_path / "0.tar", [("a.png", encoded(mask)), ("a.tif", encoded(image, "TIFF"))])
    sample = next(iter(TarStream.open(tmp_path, ["all"])))
    assert sample.mask is not None
    assert (sample.image.min(), sample.mask.max()) == (200, 1)
    (tmp_path / "dataset.yaml").write_text("names: [a, b]\nmasks: colours")
    with pytest.raises(DataError, match="needs 'palette'"):
        TarStream.open(tmp_path, ["all"])
