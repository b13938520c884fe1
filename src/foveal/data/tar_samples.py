"""Samples of tar files by number: what training needs to draw them in any order and to resume anywhere.

The headers of each file are read once, front to back; from then on a sample is one read at its place. Whichever process
and worker reads it, and wherever a run resumes, the order is the same: it follows from the seed and the epoch.
"""

from __future__ import annotations

import io
import itertools
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import DataError
from ..images.formats import MAX_FILE_BYTES
from .layout import FILE, Problem, raise_first
from .stream import IMAGE_ENDINGS, MASK_ENDINGS, TarStream, check_end, damaged, sample_of


class Place(NamedTuple):
    """Where a sample lies in its tar file.

    Attributes:
        key: path of its members up to the first dot.
        start: of its first header, in bytes.
        stop: behind its last member.
        endings: of its members.
    """

    key: str
    start: int
    stop: int
    endings: tuple[str, ...]


class TarSamples:
    """Samples of uncompressed tar files. Indexing reads: ``data[i] -> (image, mask)``, or ``(image, class index)``.

    Attributes:
        labels: names and palette of the classes.
    """

    def __init__(self, stream: TarStream, task: Literal["segment", "classify"], root: Path) -> None:
        if not stream.labels.names:
            raise DataError(f"{root}: tar files hold no names of classes: write 'names: [...]' into {root / FILE}")
        self.stream, self.task, self.labels = stream, task, stream.labels
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
    def open(cls, data: str | Path, splits: Sequence[str], task: Literal["segment", "classify"]) -> TarSamples:
        """Read the headers of the tar files of ``splits``.

        Args:
            data: folder or pattern, see :func:`~foveal.data.shards.find_shards`.
            splits: together one set of samples.
            task: "segment" for samples with a mask, "classify" for those with a class index.

        Raises:
            DataError: no such split, no class names, a tar file that is damaged, truncated or compressed, samples
                without an image or a label.
        """
        return cls(TarStream.open(data, splits), task, Path(data))

    def __len__(self) -> int:
        return len(self.keys)

    def name(self, index: int) -> Path:
        """Tar file and key of a sample."""
        return self.stream.shards[self.shard_of[index]] / self.keys[index]

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | int]:
        """Read one image, ``(H, W, 3)`` RGB, and its class ids ``(H, W)`` with 255 = ignore, or its class.

        Raises:
            DataError: unreadable.
        """
        shard, key = self.stream.shards[self.shard_of[index]], self.keys[index]
        start, stop = self.starts[index], self.stops[index]
        try:
            with shard.open("rb") as file:
                file.seek(start)
                content = file.read(stop - start)
            with tarfile.open(fileobj=io.BytesIO(content), mode="r:") as archive:
                members = {}
                for member in archive:
                    own, ending = sample_of(member)
                    if own == key and (found := archive.extractfile(member)):
                        members[ending] = found.read()
        except (tarfile.TarError, OSError, EOFError, ValueError) as error:
            raise DataError(f"{shard}: {key}: cannot be read ({error}); was the file changed?") from error
        sample = self.stream.decoded(shard, key, members)
        target = sample.mask if self.task == "segment" else sample.label
        if target is None:
            raise DataError(f"{shard}: {key}: has changed since its header was read")
        return sample.image, target

    def order(self, rng: np.random.Generator, buffer: int) -> list[int]:
        """All samples, as a shuffle buffer gives them: each is drawn from the next ``buffer`` that are left.

        Tar files come in random order and are read nearly front to back, so few of them are in use at a time.
        """
        by_shard = np.argsort(np.asarray(self.shard_of), kind="stable")
        counts = np.bincount(np.asarray(self.shard_of), minlength=len(self.stream.shards))
        ends = np.cumsum(counts)
        shuffled = [by_shard[ends[i] - counts[i] : ends[i]] for i in rng.permutation(len(counts))]
        waiting: Iterator[int] = iter(np.concatenate(shuffled).tolist())
        held = list(itertools.islice(waiting, buffer))
        order: list[int] = []
        draws = rng.random(len(self.keys)).tolist()
        for index in waiting:
            drawn = int(draws[len(order)] * len(held))
            order.append(held[drawn])
            held[drawn] = index
        return order + [held[i] for i in rng.permutation(len(held))]

    def _problem(self, shard: Path, place: Place) -> Problem | None:
        has = ", ".join(place.endings)
        images = [ending for ending in IMAGE_ENDINGS if ending in place.endings]
        if not images:
            return Problem(shard, f"{place.key}: no image among its members ({has})")
        if self.task == "classify":
            labelled, wanted = "cls" in place.endings, "no class index (.cls)"
        else:
            labelled = any(ending in place.endings and ending != images[0] for ending in MASK_ENDINGS)
            wanted = "no mask (.png, .mask.png or .seg.png)"
        return None if labelled else Problem(shard, f"{place.key}: {wanted} among its members ({has})")


def places(shard: Path) -> list[Place]:
    """Where each sample of a tar file lies, from its headers alone.

    Raises:
        DataError: it is damaged, truncated or compressed, or a member is too large.
    """
    found: list[Place] = []
    key, start, stop, endings = "", 0, 0, []
    try:
        with tarfile.open(shard, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # pyright: ignore[reportAttributeAccessIssue] (a list of them all is of no use)
                own, ending = sample_of(member)
                if not own:
                    continue
                if member.size > MAX_FILE_BYTES:
                    raise DataError(f"{shard}: {member.name} is above {MAX_FILE_BYTES >> 20} MiB")
                if own != key:
                    if key:
                        found.append(Place(key, start, stop, tuple(endings)))
                    key, start, endings = own, member.offset, []
                endings.append(ending)
                stop = archive.offset
        check_end(shard, archive.offset)
    except (tarfile.TarError, OSError, EOFError, ValueError) as error:
        raise damaged(shard, key, error) from error
    if key:
        found.append(Place(key, start, stop, tuple(endings)))
    return found
