"""Stream samples from tar files, front to back: for data that is too large or too remote for single files.

A sample consists of consecutive members that share their path up to the first dot: ``a/0001.jpg`` with ``a/0001.png``
(mask), ``a/0001.cls`` (class index) or ``a/0001.json``. This is the convention of the webdataset library; names that
have dots themselves are described in :func:`~foveal.data.tar_members.by_sample`. Layouts::

    ROOT/<split>/*.tar        ROOT/<split>-*.tar        ROOT/*.tar  (split "all")
"""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import TarFile
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import ConfigError, DataError, InputError
from ..images.bands import RGB, Bands
from ..info import Labels
from .layout import FILE, DatasetFile, resolve_split
from .masks import ColourMasks, IdMasks, described_ids
from .shards import find_shards
from .tar_members import (
    DAMAGE,
    MASK_ENDINGS,
    by_sample,
    check_end,
    check_member,
    damaged_error,
    image_ending,
    is_compressed,
    open_tar,
    read_members,
)

LAYOUT = "tars"


@dataclass(frozen=True)
class StreamSample:
    """One sample.

    Attributes:
        key: path of its members up to the first dot.
        image: ``(H, W, C)``, RGB uint8 unless the stream's ``bands`` differ.
        mask: class ids ``(H, W)``, 255 = ignore; ``None`` if the sample has no mask.
        label: class index; ``None`` if the sample has none.
        extra: content of its JSON member.
    """

    key: str
    image: NDArray[Any]
    mask: NDArray[np.unsignedinteger] | None = None
    label: int | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TarStream:
    """Tar files as a stream of samples; each iteration starts at the beginning.

    Attributes:
        shards: tar files.
        labels: names and palette from ``dataset.yaml``.
        masks: reader of masks; ``None``: samples have no masks.
        on_bad: called with (shard, sample key, error) for each unreadable sample, which is then skipped; the key is
            empty if the rest of a shard is unreadable. ``None``: the first unreadable sample raises an error.
        excluded: shards, and samples as ``shard / key``, that are left out.
        part: (index, count): this reader is one of ``count`` readers, see :meth:`share`.
        bands: number of bands and type of values as which the images are read.
    """

    shards: tuple[Path, ...]
    labels: Labels = field(default_factory=Labels)
    masks: IdMasks | ColourMasks | None = None
    on_bad: Callable[[Path, str, str], None] | None = None
    excluded: frozenset[Path] = frozenset()
    part: tuple[int, int] = (0, 1)
    bands: Bands = RGB

    @classmethod
    def open(
        cls, root: str | Path, splits: Sequence[str], *, on_bad: Callable[[Path, str, str], None] | None = None
    ) -> TarStream:
        """Find the tar files of ``splits`` below ``root``, a folder or a pattern. Nothing is read yet.

        Raises:
            DataError: a split does not exist, or there are no tar files.
        """
        root, described, by_split = find_shards(root)
        if not by_split:
            raise DataError(f"{root}: no tar files (ROOT/<split>/*.tar, ROOT/<split>-*.tar or ROOT/*.tar)")
        excluded = described.excluded(root)
        shards = [path for split in splits for path in by_split[resolve_split(split, tuple(by_split), root)]]
        shards = [path for path in shards if path not in excluded]
        labels = Labels(described.names, described.palette)
        return cls(tuple(shards), labels, _mask_reader(described, Path(root)), on_bad, excluded)

    def share(self, index: int, count: int) -> TarStream:
        """The part of the stream that reader ``index`` of ``count`` (workers times processes) reads.

        Together the readers read each sample once. If there are at least as many shards as readers, each reader gets
        whole shards; otherwise every reader goes through all shards and keeps every ``count``-th sample.

        Raises:
            ConfigError: ``index`` is not from 0 to ``count - 1``.
        """
        if not 0 <= index < count:
            raise ConfigError(f"reader {index} of {count}: the index must be from 0 to {count - 1}")
        return dataclasses.replace(self, part=(index, count))

    def shuffled(self, seed: int) -> TarStream:
        """The same stream with its shards in random order; samples within a shard keep their order."""
        order = list(self.shards)
        random.Random(seed).shuffle(order)
        return dataclasses.replace(self, shards=tuple(order))

    def __iter__(self) -> Iterator[StreamSample]:
        """Read the samples of this reader.

        Raises:
            DataError: a shard or a sample is damaged, and there is no ``on_bad``.
        """
        index, count = self.part
        by_shard = len(self.shards) >= count
        position = 0
        for shard in self.shards[index::count] if by_shard else self.shards:
            for key, members in self._groups(shard):
                position += 1
                if (not by_shard and (position - 1) % count != index) or shard / key in self.excluded:
                    continue
                try:
                    yield self.decode(shard, key, members)
                except DataError as error:
                    self._report(shard, key, error)

    def _report(self, shard: Path, key: str, error: DataError) -> None:
        if self.on_bad is None:
            raise error
        self.on_bad(shard, key, str(error))

    def _groups(self, shard: Path) -> Iterator[tuple[str, dict[str, bytes]]]:
        """Key and members, by their ending, of each sample; a damaged shard ends early."""
        key, members = "", {}
        try:
            size = None if is_compressed(shard) else shard.stat().st_size
            with open_tar(shard, "r|*") as archive:
                for sample_key, ending, content in by_sample(_read_all(shard, archive, size)):
                    if sample_key != key:
                        if members:
                            yield key, members
                        key, members = sample_key, {}
                    if isinstance(content, DataError):
                        self._report(shard, sample_key, content)
                    else:
                        members[ending] = content
            check_end(shard, archive.offset)
        except DAMAGE as error:
            # The last sample before the damage may lack a member, so it is dropped with the rest of the shard.
            self._report(shard, "", damaged_error(shard, key, error))
            return
        if members:
            yield key, members

    def decode(self, shard: Path, key: str, members: Mapping[str, bytes]) -> StreamSample:
        """Decode the members of a sample, by their ending.

        Raises:
            DataError: there is no image, or a member is damaged, of the wrong size, or not a class index.
        """
        where = f"{shard}: {key}"
        ending = image_ending(members, self.masks is not None and "cls" not in members)
        if ending is None:
            raise DataError(f"{where}: no image among its members ({', '.join(members) or 'none'})")
        try:
            image = self.bands.read(members[ending], name=f"{where}.{ending}")
        except InputError as error:
            raise DataError(str(error)) from error
        mask_ending = next((each for each in MASK_ENDINGS if each in members and each != ending), None)
        mask = None
        if mask_ending is not None and self.masks is not None:
            name = f"{where}.{mask_ending}"
            mask = self.masks.read(members[mask_ending], name)
            if mask.shape != image.shape[:2]:
                raise DataError(
                    f"{name}: mask of {mask.shape[1]}x{mask.shape[0]} (W x H) for an image of"
                    f" {image.shape[1]}x{image.shape[0]}"
                )
        return StreamSample(key, image, mask, self._label(members, where), _extra(members, where))

    def _label(self, members: Mapping[str, bytes], where: str) -> int | None:
        if "cls" not in members:
            return None
        text = members["cls"].decode("ascii", "replace").strip()
        if not (text.isdecimal() and len(text) < 10) or (self.labels.names and int(text) >= len(self.labels.names)):
            count = f" below {len(self.labels.names)}" if self.labels.names else ""
            raise DataError(f"{where}.cls: {text[:20]!r} is not a class index{count}")
        return int(text)


def _read_all(shard: Path, archive: TarFile, size: int | None) -> Iterator[tuple[str, str, bytes | DataError]]:
    """The members of samples with their content, or the reason why it cannot be read."""
    for path, ending, member in read_members(archive, size):
        try:
            check_member(shard, member)
        except DataError as error:
            yield path, ending, error
            continue
        file = archive.extractfile(member)
        yield path, ending, file.read() if file else b""


def _mask_reader(described: DatasetFile, root: Path) -> IdMasks | ColourMasks | None:
    ignore_unknown = described.unknown == "ignore"
    if described.masks == "colours":
        if not (described.palette and described.names):
            raise DataError(f"{root / FILE}: 'masks: colours' needs 'palette' and 'names', one of each per class")
        return ColourMasks(described.palette, described.ignore_colours, ignore_unknown)
    if not described.names:
        return None
    return IdMasks(described_ids(described), len(described.names), ignore_unknown, described.palette)


def _extra(members: Mapping[str, bytes], where: str) -> dict[str, Any]:
    if "json" not in members:
        return {}
    try:
        content = json.loads(members["json"])
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}.json: not JSON ({error})") from error
    return content if isinstance(content, dict) else {"json": content}
