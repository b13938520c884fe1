"""Which samples are in which batch, and the worker processes that load them."""

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
from .job import Job
from .settings import CommonSettings

_TRIES = 20  # draws for a place in a batch; after so many failed draws, assume that the storage failed


class Loader:
    """The batches of one process, from any position of the run on.

    Attributes:
        per_epoch: number of batches in an epoch.
        first_pass: number of the first pass over the data; another one than 0 in later phases of a run.
        requested: indices of the samples in the batch that was requested last.
        bad: index of each training image that is replaced by others -> its error.

    Raises:
        ConfigError: there are fewer training images than a batch needs.
    """

    def __init__(
        self, job: Job, config: CommonSettings, accelerator: Accelerator, dtype: torch.dtype, progress: Progress
    ) -> None:
        self.job, self.config, self.accelerator, self.dtype = job, config, accelerator, dtype
        self.progress = progress
        self.per_epoch = (config.samples_per_epoch or len(job.data)) // config.batch_size
        if len(job.data) < config.batch_size:
            raise ConfigError(
                f"batch_size={config.batch_size} is above the {len(job.data)} training images: give "
                f"{len(job.data)} or less"
            )
        self.first_pass = 0
        self.requested: list[int] = []
        self.bad: dict[int, FovealError] = {}

    def batches(self, position: int) -> Generator[tuple[list[int], Tensor, Tensor]]:
        """Yield batches without end: indices, images ``(B, 3, H, W)`` and targets, both on the device.

        Bad images are added to ``bad``.

        Raises:
            FovealError: the last error of many bad images in a row, or one that is not the fault of an image.
        """
        accelerator = self.accelerator
        order = Batches(
            self.job.data, self.config, position, accelerator.process_index, accelerator.num_processes, self.first_pass
        )
        loader = DataLoader(
            Samples(self.job, self.config),
            batch_sampler=order,
            num_workers=self.config.workers,
            collate_fn=collate,
            worker_init_fn=ignore_signals,
            pin_memory=accelerator.device.type == "cuda",
        )
        places, stream = iter(order), iter(loader)
        try:
            for place in places:
                self.requested = [index for _, index in place]
                batch = self._next(stream)
                if not batch.indices:
                    raise list(batch.bad.values())[-1]
                self.note_bad(batch.bad)
                image, target = (part.to(accelerator.device, non_blocking=True) for part in (batch.image, batch.target))
                yield batch.indices, image.to(self.dtype).contiguous(memory_format=torch.channels_last), target
        finally:
            # This ends the worker processes. A stored traceback may keep this frame alive until Python exits, which
            # then would wait for the workers forever, because they ignore SIGTERM.
            del stream

    def note_bad(self, bad: Mapping[int, FovealError]) -> None:
        """Add bad images, and print each new one."""
        for index, error in bad.items():
            if index not in self.bad:
                self.bad[index] = error
                self.progress.note(f"left out of training: {error}")

    def check_bad(self) -> None:
        """Raise FovealError if too many images are bad, see :func:`~foveal.training.bad_samples.check_bad`."""
        check_bad(self.bad, len(self.job.data), self.config.max_bad)

    def _next(self, stream: Iterator[Sample]) -> Sample:
        """The next batch.

        Raises:
            TrainingError: the worker process died while its batch was read, before torch reported its death.
        """
        try:
            return next(stream)
        except (ConnectionError, EOFError) as error:
            if not self.config.workers or "DataLoader worker" in str(error):  # an error of the data itself
                raise
            raise self._death() from error

    def worker_death(self, error: RuntimeError) -> TrainingError | None:
        """Return the error to raise if ``error`` says that a worker process died, otherwise None.

        torch's SIGCHLD handler raises such an error at any point of the main process.
        """
        return self._death() if "DataLoader worker" in str(error) else None

    def _death(self) -> TrainingError:
        names = ", ".join(str(self.job.data.name(index)) for index in self.requested)
        return TrainingError(
            f"a data loading process died, probably for lack of memory, at or after: {names}; resume with fewer workers"
        )


class Sample(NamedTuple):
    """A sample, or a batch of samples. ``indices`` is empty where no image could be read.

    ``bad`` has the index and the error of each image that was replaced. Errors are passed as values, because torch
    would replace the message of an exception in a worker process by its traceback.
    """

    indices: list[int]
    image: Tensor
    target: Tensor
    bad: dict[int, FovealError]


class Samples(Dataset):
    """Augmented samples of a job by ``(pass, index)``; a bad sample is replaced by a random other one.

    All random draws depend on the seed, the pass and the index alone: not on workers, processes or where a run resumed.
    """

    def __init__(self, job: Job, config: CommonSettings) -> None:
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
            except FovealError as error:  # not the fault of the image
                bad[index] = without_traceback(error)
                break
        return Sample([], torch.empty(0), torch.empty(0), bad)


def collate(samples: list[Sample]) -> Sample:
    """Stack images and targets into a batch; if a sample has no image, return the first such sample instead."""
    if failed := next((sample for sample in samples if not sample.indices), None):
        return failed
    indices, images, targets, bad = zip(*samples, strict=True)
    all_bad = {index: error for errors in bad for index, error in errors.items()}
    return Sample([index for (index,) in indices], torch.stack(images), torch.stack(targets), all_bad)


def ignore_signals(worker: int) -> None:
    """Ignore SIGTERM and Ctrl-C in a worker: they reach all processes of a group, and the main process handles them."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)


class Batches(Sampler):
    """One process's share of every batch, ``[(pass, index), ...]``, from batch ``position`` on, without end.

    The order of each pass over the data depends on the seed alone. Images that do not fill a batch are left out of that
    pass.
    """

    def __init__(
        self, data: Labelled, config: CommonSettings, position: int, rank: int, world: int, first_pass: int = 0
    ) -> None:
        self.data, self.config, self.position = data, config, position
        self.rank, self.world, self.first_pass = rank, world, first_pass

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        size, length = self.config.batch_size, len(self.data)
        passes, skipped = divmod(self.position, length // size)
        number = self.first_pass + passes
        while True:
            rng = np.random.default_rng((self.config.seed, number))
            order = self.data.order(rng, self.config.shuffle_buffer)
            for start in range(skipped * size, length - size + 1, size):
                yield [(number, index) for index in order[start : start + size][self.rank :: self.world]]
            number, skipped = number + 1, 0
