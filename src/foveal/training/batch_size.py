"""Find the largest batch that fits into memory, from what a forward pass keeps for the backward pass."""

from __future__ import annotations

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from ..errors import ConfigError, is_out_of_memory
from ..prediction.devices import free_memory
from ..progress import Progress
from .batches import sampler
from .config import TrainConfig
from .distributed import reduce_max
from .initial import create_initial_model
from .job import Job

_MEMORY_SHARE = 0.6  # of the free memory; the rest is for temporary tensors of operations, and for other programs
_WEIGHT_COPIES = 5  # of the weights: the model, gradients, two moments, the average
_STEP_OVERHEAD = 1.5  # memory of a step over that of the tensors that are kept for the backward pass
_MAX_IMAGES = 256  # per process
_MIN_BATCHES = 4  # per epoch
_MEASURED_IMAGES = 2  # batch norms need more than one


def find_batch_size(config: TrainConfig, job: Job, accelerator: Accelerator, progress: Progress) -> int:
    """The largest batch size, a power of two times the number of processes, that fits into memory.

    Raises:
        ConfigError: not even two images per process fit, or the device does not say how much memory is free.
    """
    free = free_bytes(accelerator.device)
    if free is None:
        raise ConfigError(f"batch_size=auto: the free memory of {accelerator.device.type} is unknown; give a number")
    try:
        fixed, each = _measure(config, job, accelerator)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise ConfigError(
            f"batch_size=auto: two images do not fit into the {free / 2**30:.1f} GiB that are free: lower crop, or "
            "take a smaller model"
        ) from error
    room = _MEMORY_SHARE * free - fixed
    images = min(len(job.data), config.samples_per_epoch or len(job.data))
    limit = min(_MAX_IMAGES, images // (_MIN_BATCHES * accelerator.num_processes))
    size = 1
    while 2 * size <= limit and 2 * size * each <= room:
        size *= 2
    size = -reduce_max(-size, accelerator)  # the smallest of all processes
    if size < _MEASURED_IMAGES and limit >= _MEASURED_IMAGES:
        raise ConfigError(
            f"batch_size=auto: two images need {(fixed + 2 * each) / 2**30:.1f} GiB, of {free / 2**30:.1f} GiB free: "
            "lower crop, or take a smaller model"
        )
    size = max(_MEASURED_IMAGES, size) * accelerator.num_processes
    progress.note(f"batch size {size}: {each / 2**20:.0f} MiB per image, {free / 2**30:.1f} GiB free")
    return size


def _measure(config: TrainConfig, job: Job, accelerator: Accelerator) -> tuple[float, float]:
    """Bytes of a step that do not depend on the batch, and bytes per image."""
    devices = [accelerator.device] if accelerator.device.type == "cuda" else []
    with torch.random.fork_rng(devices):  # the run's own model must start as with a given batch size
        model, _ = create_initial_model(config, job)
        trainee = job.trainee(model).to(accelerator.device).train()
        sample = sampler(job, max((0, *config.sizes)))
        samples = [
            sample(index, np.random.default_rng(index), 0.0) for index in range(min(_MEASURED_IMAGES, len(job.data)))
        ]
        image, target = (torch.stack(part).to(accelerator.device) for part in zip(*samples, strict=True))
        kept = {p.untyped_storage().data_ptr(): 0 for p in (*trainee.parameters(), *trainee.buffers())}

        def keep(tensor: Tensor) -> Tensor:
            storage = tensor.untyped_storage()
            kept.setdefault(storage.data_ptr(), storage.nbytes())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor), accelerator.autocast():
            job.loss(trainee, image, target)
    weights = sum(p.numel() * p.element_size() for p in trainee.parameters())
    images = image.numel() * image.element_size()
    factor = 2 if config.precision == "fp64" else 1
    return _WEIGHT_COPIES * weights * factor, (_STEP_OVERHEAD * sum(kept.values()) + images) * factor / len(samples)


def free_bytes(device: torch.device) -> int | None:
    """Free bytes of a device; ``None``: unknown."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return free_memory() if device.type == "cpu" else None
