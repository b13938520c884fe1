"""Samples of tar files by index, so that training can draw them in any order and resume at any step.

The headers of each file are read once, front to back; after that, each sample is one read at its offset. The order
follows from the seed and the epoch alone, so it is the same for any number of processes and workers and after a resume.
"""

from __future__ import annotations

import copy
import dataclasses
import io
import itertools
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..images.bands import Bands
from .layout import FILE, Problem, raise_first
from .masks import ColourMasks, IdMasks
from .stream import StreamSample, TarStream
from .tar_members import (
    DAMAGE,
    MASK_ENDINGS,
    by_sample,
    check_end,
    check_member,
    damaged_error,
    image_ending,
    open_tar,
    read_members,
)


class Place(NamedTuple):
    """Where a sample lies in its tar file.

    Attributes:
        key: path of its members up to the first dot; see :func:`~foveal.data.tar_members.by_sample`.
        start: offset of its first header, in bytes.
        stop: offset of the end of its last member, in bytes.
        endings: endings of its members, after the dot.
    """

    key: str
    start: int
    stop: int
    endings: tuple[str, ...]


class _Target(NamedTuple):
    """What the samples of a task are labelled with. Data loaders pickle it, so its functions are named."""

    of: Callable[[StreamSample], NDArray[np.unsignedinteger] | int | None]  # the label of a decoded sample
    is_among: Callable[[Sequence[str], str], bool]  # whether the endings have a label, besides this one of the image
    missing: str  # for messages


def _mask_of(sample: StreamSample) -> NDArray[np.unsignedinteger] | None:
    return sample.mask


def _has_mask(endings: Sequence[str], image: str) -> bool:
    return any(ending in endings and ending != image for ending in MASK_ENDINGS)


def _class_of(sample: StreamSample) -> int | None:
    return sample.label


def _has_class(endings: Sequence[str], image: str) -> bool:
    return "cls" in endings


_TARGETS = {
    "segment": _Target(_mask_of, _has_mask, "no mask (.png, .mask.png or .seg.png)"),
    "classify": _Target(_class_of, _has_class, "no class index (.cls)"),
}


class TarSamples:
    """Samples of uncompressed tar files. Indexing reads: ``data[i] -> (image, mask)``, or ``(image, class index)``.

    Attributes:
        labels: names and palette of the classes.
    """

    def __init__(self, stream: TarStream, task: str, root: Path) -> None:
        if not stream.labels.names:
            raise DataError(f"{root}: tar files contain no class names: write 'names: [...]' into {root / FILE}")
        self.stream, self.labels, self._target = stream, stream.labels, _TARGETS[task]
        self.keys: list[str] = []
        self.shard_of, self.starts, self.stops = array("l"), array("q"), array("q")
        problems: list[Problem] = []
        for number, shard in enumerate(stream.shards):
            for place in places(shard):
                if shard / place.key in stream.excluded:
                    continue
                if problem := self._problem(shard, place):
                    problems.append(problem)
                self.keys.append(place.key)
                self.shard_of.append(number)
                self.starts.append(place.start)
                self.stops.append(place.stop)
        raise_first(problems, root)
        if not self.keys:
            raise DataError(f"{root}: no samples in its tar files")

    @classmethod
    def open(cls, data: str | Path, splits: Sequence[str], task: str) -> TarSamples:
        """Read the headers of the tar files of ``splits``.

        Args:
            data: folder or pattern, see :func:`~foveal.data.shards.find_shards`.
            splits: names of the splits; their samples are joined.
            task: "segment" for samples with a mask, "classify" for samples with a class index.

        Raises:
            DataError: a split does not exist, there are no class names, a tar file is damaged, truncated or compressed,
                or a sample has no image or no label.
        """
        return cls(TarStream.open(data, splits), task, Path(data))

    @property
    def read_mask(self) -> IdMasks | ColourMasks | None:
        """Reader of the masks; ``None`` if the samples have none."""
        return self.stream.masks

    @property
    def bands(self) -> Bands:
        """What the images are read as."""
        return self.stream.bands

    def with_bands(self, bands: Bands) -> TarSamples:
        """The same samples, whose images are read with these bands."""
        samples = copy.copy(self)
        samples.stream = dataclasses.replace(self.stream, bands=bands)
        return samples

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, index: int) -> Path:
        """Path of the tar file and key of a sample."""
        return self.stream.shards[self.shard_of[index]] / self.keys[index]

    def __getitem__(self, index: int) -> tuple[NDArray[Any], NDArray[np.unsignedinteger] | int]:
        """Read one image, ``(H, W, C)``, and its class ids ``(H, W)`` with 255 = ignore, or its class.

        Raises:
            DataError: the sample is unreadable, or the file has changed since its headers were read.
        """
        shard, key = self.stream.shards[self.shard_of[index]], self.keys[index]
        start, stop = self.starts[index], self.stops[index]
        try:
            with shard.open("rb") as file:
                file.seek(start)
                content = file.read(stop - start)
            with open_tar(io.BytesIO(content), "r:") as archive:
                members = {}
                for sample_key, ending, member in by_sample(read_members(archive, len(content))):
                    if sample_key == key and (content_file := archive.extractfile(member)):
                        members[ending] = content_file.read()
        except DAMAGE as error:
            raise DataError(f"{shard}: {key}: cannot be read ({error}); was the file changed?") from error
        sample = self.stream.decode(shard, key, members)
        target = self._target.of(sample)
        if target is None:
            raise DataError(f"{shard}: {key}: the file has changed since its headers were read; start again")
        return sample.image, target

    def order(self, rng: np.random.Generator, buffer: int) -> list[int]:
        """All indices in the order of a shuffle buffer: each is drawn from the next ``buffer`` remaining samples.

        The tar files follow each other in random order, and each is read nearly front to back, so that few of them are
        in use at a time.
        """
        by_shard = np.argsort(np.asarray(self.shard_of), kind="stable")
        counts = np.bincount(np.asarray(self.shard_of), minlength=len(self.stream.shards))
        ends = np.cumsum(counts)
        shuffled = [by_shard[ends[i] - counts[i] : ends[i]] for i in rng.permutation(len(counts))]
        waiting: Iterator[int] = iter(np.concatenate(shuffled).tolist())
        window = list(itertools.islice(waiting, buffer))
        order: list[int] = []
        draws = rng.random(len(self.keys)).tolist()
        for index in waiting:
            drawn = int(draws[len(order)] * len(window))
            order.append(window[drawn])
            window[drawn] = index
        return order + [window[i] for i in rng.permutation(len(window))]

    def _problem(self, shard: Path, place: Place) -> Problem | None:
        has = ", ".join(place.endings)
        image = image_ending(place.endings, self.stream.masks is not None and "cls" not in place.endings)
        if image is None:
            return Problem(shard, f"{place.key}: no image among its members ({has})")
        if self._target.is_among(place.endings, image):
            return None
        return Problem(shard, f"{place.key}: {self._target.missing} among its members ({has})")


def places(shard: Path) -> list[Place]:
    """Find where each sample of a tar file lies, from its headers alone.

    Raises:
        DataError: the file is damaged, truncated or compressed, or a member is too large.
    """
    samples: list[Place] = []
    key, start, stop, endings = "", 0, 0, []
    try:
        with open_tar(shard, "r:") as archive:
            members = read_members(archive, shard.stat().st_size)
            ends = ((path, ending, (member, archive.offset)) for path, ending, member in members)
            for member_key, ending, (member, end) in by_sample(ends):
                check_member(shard, member)
                if member_key != key:
                    if key:
                        samples.append(Place(key, start, stop, tuple(endings)))
                    key, start, endings = member_key, member.offset, []
                endings.append(ending)
                stop = end
        check_end(shard, archive.offset)
    except DAMAGE as error:
        raise damaged_error(shard, key, error) from error
    if key:
        samples.append(Place(key, start, stop, tuple(endings)))
    return samples
