"""Tar streams for torch's DataLoader: each worker process of each training process reads its own part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch.utils.data import IterableDataset, get_worker_info

from .stream import StreamSample, TarStream


class StreamDataset(IterableDataset):
    """A torch data set of the transformed samples of a stream.

    Args:
        stream: the whole stream; this class divides it among workers and processes.
        transform: turns a sample into what the loader collates.
        process: index of this training process.
        processes: number of training processes that read the stream.
    """

    def __init__(
        self, stream: TarStream, transform: Callable[[StreamSample], Any], process: int = 0, processes: int = 1
    ) -> None:
        self.stream, self.transform = stream, transform
        self.process, self.processes = process, processes

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        workers, index = (worker.num_workers, worker.id) if worker else (1, 0)
        return map(self.transform, self.stream.share(self.process * workers + index, self.processes * workers))
