"""Which samples are in which batch, and the processes that load them."""

from __future__ import annotations

import signal
from collections.abc import Generator, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.labelled import Labelled
from ..errors import ConfigError, DataError, FovealError, InputError, TrainingError
from ..progress import Progress
from .bad_samples import check_bad, without_traceback
from .config import TrainConfig
from .job import Job

_TRIES = 20  # draws for a place in a batch; where all of them are bad, a disk is gone


class Loader:
    """This process's batches of a run, from any position on.

    Attributes:
        per_epoch: batches in an epoch.
        awaited: samples of the batch that was asked for last.
        bad: training images that others stand in for, by index -> why.

    Raises:
        ConfigError: an epoch would hold no batch.
    """

    def __init__(
        self, job: Job, config: TrainConfig, accelerator: Accelerator, dtype: torch.dtype, progress: Progress
    ) -> None:
        self.job, self.config, self.accelerator, self.dtype = job, config, accelerator, dtype
        self.progress = progress
        self.per_epoch = (config.samples_per_epoch or len(job.data)) // config.batch_size
        if len(job.data) < config.batch_size:
            raise ConfigError(f"batch_size={config.batch_size} is above the {len(job.data)} training images")
        self.awaited: list[int] = []
        self.bad: dict[int, FovealError] = {}

    def batches(self, position: int) -> Generator[tuple[list[int], Tensor, Tensor]]:
        """Indices, images ``(B, 3, H, W)`` and targets, on the device, without end. Bad images are noted in ``bad``.

        Raises:
            FovealError: what the last of many bad images raised, or what is no image's fault.
        """
        accelerator = self.accelerator
        order = Batches(self.job.data, self.config, position, accelerator.process_index, accelerator.num_processes)
        loader = DataLoader(
            Samples(self.job, self.config),
            batch_sampler=order,
            num_workers=self.config.workers,
            collate_fn=collated,
            worker_init_fn=ignore_signals,
            pin_memory=accelerator.device.type == "cuda",
        )
        places, stream = iter(order), iter(loader)
        try:
            for place in places:
                self.awaited = [index for _, index in place]
                batch = next(stream)
                if not batch.indices:
                    raise list(batch.bad.values())[-1]
                self.note_bad(batch.bad)
                image, target = (part.to(accelerator.device, non_blocking=True) for part in (batch.image, batch.target))
                yield batch.indices, image.to(self.dtype).contiguous(memory_format=torch.channels_last), target
        finally:
            # Its processes end with it. A traceback may keep this frame until Python ends, which would then wait for
            # them: they do not hear SIGTERM.
            del stream

    def note_bad(self, bad: Mapping[int, FovealError]) -> None:
        """Take images for bad, and say so once of each."""
        for index, error in bad.items():
            if index not in self.bad:
                self.bad[index] = error
                self.progress.note(f"left out of training: {error}")

    def check_bad(self) -> None:
        """Raises FovealError where too many images are bad, see :func:`~foveal.training.bad_samples.check_bad`."""
        check_bad(self.bad, len(self.job.data), self.config.max_bad)

    def death(self, error: RuntimeError) -> TrainingError | None:
        """What ``error`` means where it says that a loading process died.

        torch's handler of SIGCHLD raises it, wherever the main process is just then.
        """
        if "DataLoader worker" not in str(error):
            return None
        names = ", ".join(str(self.job.data.name(index)) for index in self.awaited)
        return TrainingError(
            f"a data loading process died, probably for want of memory, at or after: {names}; resume with fewer workers"
        )


class Sample(NamedTuple):
    """A sample, or a batch of them, of these indices; none where no image could be read.

    ``bad`` are the indices in whose places they stand -> what those raised. Errors are values here: torch would wrap
    what a worker raises in its traceback.
    """

    indices: list[int]
    image: Tensor
    target: Tensor
    bad: dict[int, FovealError]


class Samples(Dataset):
    """Augmented samples of a job by ``(pass, index)``; another one, drawn at random, in the place of a bad one.

    All draws depend on the seed, the pass and the index alone: not on workers, processes or where a run resumed.
    """

    def __init__(self, job: Job, config: TrainConfig) -> None:
        self.job, self.seed = job, config.seed
        self.passes = config.epochs * (config.samples_per_epoch or len(job.data)) / len(job.data)

    def __len__(self) -> int:
        return len(self.job.data)

    def __getitem__(self, place: tuple[int, int]) -> Sample:  # pyright: ignore[reportIncompatibleMethodOverride]
        number, index = place
        rng = np.random.default_rng((self.seed, number, index))
        bad: dict[int, FovealError] = {}
        for _ in range(_TRIES):
            try:
                return Sample([index], *self.job.sample(index, rng, min(1.0, number / self.passes)), bad)
            except (DataError, InputError) as error:
                bad[index] = without_traceback(error)
                index = int(rng.integers(len(self)))
            except FovealError as error:  # not the image's fault
                bad[index] = without_traceback(error)
                break
        return Sample([], torch.empty(0), torch.empty(0), bad)


def collated(samples: list[Sample]) -> Sample:
    """Stack images and targets; the first sample without any instead, where there is one."""
    if lost := next((sample for sample in samples if not sample.indices), None):
        return lost
    indices, images, targets, bad = zip(*samples, strict=True)
    together = {index: error for found in bad for index, error in found.items()}
    return Sample([index for (index,) in indices], torch.stack(images), torch.stack(targets), together)


def ignore_signals(worker: int) -> None:
    """Leave signals to the main process: Ctrl-C and service managers send them to every process of a group."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class Batches(Sampler):
    """This process's share of every batch, ``[(pass, index), ...]``, from batch ``position`` on, without end.

    The order of each pass over the data depends on the seed alone; images that do not fill a batch wait for another.
    """

    def __init__(self, data: Labelled, config: TrainConfig, position: int, rank: int, world: int) -> None:
        self.data, self.config, self.position = data, config, position
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size, length = self.config.batch_size, len(self.data)
        number, skipped = divmod(self.position, length // size)
        while True:
            rng = np.random.default_rng((self.config.seed, number))
            order = self.data.order(rng, self.config.shuffle_buffer)
            for start in range(skipped * size, length - size + 1, size):
                yield [(number, index) for index in order[start : start + size][self.rank :: self.world]]
            number, skipped = number + 1, 0
