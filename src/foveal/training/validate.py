"""Evaluate the averaged model at the end of an epoch: batch norm statistics, then scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from ..errors import DataError, InputError
from ..info import ModelInfo
from ..layers.sync_norm import batch_norms
from ..prediction.predictor import Predictor
from ..prediction.torch_runner import torch_runner
from ..progress import Progress
from .distributed import reduce_sum
from .job import Job, Scores


def evaluate_model(
    model: nn.Module,
    info: ModelInfo,
    job: Job,
    accelerator: Accelerator,
    synced: bool,
    progress: Progress,
    interrupted: Callable[[], int],
) -> tuple[Scores, str] | None:
    """Score ``model`` on the validation split; over all processes, each image is counted once.

    Images that cannot be scored are reported and left out.

    Args:
        model: the model.
        info: its description.
        job: the task's part, with the validation images.
        accelerator: the processes.
        synced: whether the batch norms of all processes have the same statistics; if not, those of the first are used.
        progress: display, which reports images that are left out.
        interrupted: returns the number of the latest signal, or 0.

    Returns:
        The scores and :meth:`Job.only_class`, or None if a signal ended the evaluation early.

    Raises:
        DataError: none of the images can be scored.
    """
    if accelerator.num_processes > 1 and not synced:
        for buffer in model.buffers():
            broadcast(buffer)
    predictor = Predictor(torch_runner(model, str(accelerator.device)), info, "torch")
    mine = range(accelerator.process_index, job.validation, accelerator.num_processes)
    counts, scored, reason = job.count(predictor, ()), 0, ""
    for index in mine:
        if interrupted():
            break
        try:
            counts = counts + job.count(predictor, (index,))
            scored += 1
        except (DataError, InputError) as error:
            reason = str(error)
            progress.note(f"not scored: {reason}")
    totals = np.append(counts, scored)
    if accelerator.num_processes > 1:  # a single one may have a device without float64
        totals = reduce_sum(torch.from_numpy(totals).to(accelerator.device), accelerator).cpu().numpy()
    if interrupted():
        return None
    if not totals[-1]:
        raise DataError(f"none of the {job.validation} validation images can be scored; the last: {reason}")
    counts = totals[:-1].reshape(counts.shape)
    return job.scores(counts), job.only_class(counts)


@torch.no_grad()
def estimate_norms(model: nn.Module, images: Iterable[Tensor], keep: Sequence[nn.Module] = ()) -> None:
    """Compute the running statistics of the batch norms of ``model`` again, as plain averages over batches of images.

    The norms in ``keep`` stay as they are.

    The averaged weights never ran with the statistics that were averaged along with them (arXiv 1803.05407, section
    3.2).
    """
    norms = [norm for norm in batch_norms(model) if not any(norm is frozen for frozen in keep)]
    momenta = [norm.momentum for norm in norms]
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
        norm.train()
    for image in images:
        model(image)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
