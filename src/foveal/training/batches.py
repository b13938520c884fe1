"""Which samples are in which batch, and the worker processes that load them."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator, Mapping
from functools import partial
from typing import NamedTuple, cast

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from ..data.labelled import Labelled
from ..errors import ConfigError, DataError, FovealError, InputError, TrainingError
from ..progress import Progress
from .bad_samples import check_bad, without_traceback
from .classify_settings import ClassifySettings
from .common_settings import CommonSettings
from .job import Job, SizedJob

_OF_SIZES = 1  # distinguishes the draws of sizes from others with the same seed
_TRIES = 20  # draws for a place in a batch; after so many failed draws, assume that the storage failed


class Loader:
    """The batches of one process, from any position of the run on.

    Attributes:
        per_epoch: number of batches in an epoch.
        first_pass: number of the first pass over the data; another one than 0 in later phases of a run.
        requested: indices of the samples in the batch that was requested last.
        bad: index of each training image that is replaced by others -> its error.

    Raises:
        ConfigError: there are fewer training images, or samples in an epoch, than a batch needs.
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
        if not self.per_epoch:
            raise ConfigError(
                f"samples_per_epoch={config.samples_per_epoch} is below batch_size={config.batch_size}: give at least "
                "one batch"
            )
        self.first_pass = 0
        self.requested: list[int] = []
        self.bad: dict[int, FovealError] = {}

    def batches(self, position: int, one_size: bool = False) -> Generator[tuple[list[int], Tensor, Tensor]]:
        """Yield batches without end: indices, images ``(B, 3, H, W)`` and targets, both on the device.

        Bad images are added to ``bad``. With ``one_size`` all batches have the size of ``crop``, whatever ``sizes`` is.

        Raises:
            FovealError: the last error of many bad images in a row, or one that is not the fault of an image.
        """
        accelerator = self.accelerator
        order = Batches(
            self.job.data, self.config, position, accelerator.process_index, accelerator.num_processes, self.first_pass
        )
        order.sizes = () if one_size else order.sizes
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
                self.requested = [each.image for each in place]
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


class Place(NamedTuple):
    """A place in a batch.

    Attributes:
        number: number of the pass over the data.
        image: number of the image.
        copy: how often the image is in the batch before this place.
        size: side of the crop; 0: as the settings say.
        share: of the pass that is over.
    """

    number: int
    image: int
    copy: int = 0
    size: int = 0
    share: float = 0.0


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
    """Augmented samples of a job by their places; a bad sample is replaced by a random other one.

    All random draws depend on the seed, the pass, the index and the copy alone: not on workers, processes or where a
    run resumed.
    """

    def __init__(self, job: Job, config: CommonSettings) -> None:
        self.job, self.seed = job, config.seed
        self.passes = config.epochs * (config.samples_per_epoch or len(job.data)) / len(job.data) / config.repeats

    def __len__(self) -> int:
        return len(self.job.data)

    def __getitem__(self, place: Place) -> Sample:  # pyright: ignore[reportIncompatibleMethodOverride]
        number, index, copy, size, share = place
        rng = np.random.default_rng((self.seed, number, index, copy) if copy else (self.seed, number, index))
        sample = sampler(self.job, size)
        bad: dict[int, FovealError] = {}
        for _ in range(_TRIES):
            try:
                return Sample([index], *sample(index, rng, min(1.0, (number + share) / self.passes)), bad)
            except (DataError, InputError) as error:
                bad[index] = without_traceback(error)
                index = int(rng.integers(len(self)))
            except FovealError as error:  # not the fault of the image
                bad[index] = without_traceback(error)
                break
        return Sample([], torch.empty(0), torch.empty(0), bad)


def sampler(job: Job, size: int) -> Callable[[int, np.random.Generator, float], tuple[Tensor, Tensor]]:
    """The job's function that makes a training sample; ``size``: side of its crop, 0 for that of the settings."""
    return partial(cast(SizedJob, job).sample, size=size) if size else job.sample


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
    """One process's share of every batch, a list of places, from batch ``position`` on, without end.

    The order of each pass over the data depends on the seed alone. Images that do not fill a batch are left out of that
    pass. With ``repeats`` a batch has so many copies of each of its images.

    Attributes:
        sizes: sides of crops, one of which is drawn for each batch, from the seed and the batch's position alone.
            Empty: none is drawn.
    """

    def __init__(
        self, data: Labelled, config: CommonSettings, position: int, rank: int, world: int, first_pass: int = 0
    ) -> None:
        self.data, self.config, self.position = data, config, position
        self.rank, self.world, self.first_pass = rank, world, first_pass
        self.sizes = config.sizes if isinstance(config, ClassifySettings) else ()

    def __iter__(self) -> Iterator[list[Place]]:
        config, length, position = self.config, len(self.data), self.position
        images = config.batch_size // config.repeats
        passes, skipped = divmod(position, batches_per_pass(length, config))
        number = self.first_pass + passes
        while True:
            rng = np.random.default_rng((config.seed, number))
            order = self.data.order(rng, config.shuffle_buffer)
            for start in range(skipped * images, length - images + 1, images):
                size = self._size(position)
                batch = [
                    Place(number, index, copy, size, start / length)
                    for index in order[start : start + images]
                    for copy in range(config.repeats)
                ]
                yield batch[self.rank :: self.world]
                position += 1
            number, skipped = number + 1, 0

    def _size(self, position: int) -> int:
        if not self.sizes:
            return 0
        rng = np.random.default_rng((self.config.seed, self.first_pass, position, _OF_SIZES))
        return int(self.sizes[int(rng.integers(len(self.sizes)))])


def batches_per_pass(images: int, config: CommonSettings) -> int:
    """Number of batches in a pass over so many images."""
    return images // (config.batch_size // config.repeats)
