"""What a run does with its averaged model at the end of an epoch: norm statistics, scores."""

from __future__ import annotations

from collections.abc import Callable, Iterable

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


def score(
    model: nn.Module,
    info: ModelInfo,
    job: Job,
    accelerator: Accelerator,
    synced: bool,
    progress: Progress,
    interrupted: Callable[[], int],
) -> Scores | None:
    """Score ``model`` on the validation split, each image counted once over all processes.

    Images that cannot be scored are named and left out. A signal ends it early, with nothing.

    Args:
        synced: whether the processes' norms have the same statistics; else those of the first are taken.
        progress: where what was left out is said.
        interrupted: the number of a signal that came, else 0.

    Raises:
        DataError: none of the images can be scored.
    """
    if accelerator.num_processes > 1 and not synced:
        for buffer in model.buffers():
            broadcast(buffer)
    predictor = Predictor(torch_runner(model, str(accelerator.device)), info, "torch")
    mine = range(accelerator.process_index, job.validation, accelerator.num_processes)
    found, scored, reason = job.score(predictor, ()), 0, ""
    for index in mine:
        if interrupted():
            break
        try:
            found = found + job.score(predictor, (index,))
            scored += 1
        except (DataError, InputError) as error:
            reason = str(error)
            progress.note(f"not scored: {reason}")
    counts = reduce_sum(torch.from_numpy(np.append(found, scored)).to(accelerator.device), accelerator).cpu().numpy()
    if interrupted():
        return None
    if not counts[-1]:
        raise DataError(f"none of the {job.validation} validation images can be scored; the last: {reason}")
    return job.scores(counts[:-1].reshape(found.shape))


@torch.no_grad()
def estimate_norms(model: nn.Module, images: Iterable[Tensor]) -> None:
    """Take the running statistics of ``model`` anew, as plain averages over batches of ``images``.

    Averaged weights never ran with the statistics that were averaged beside them (arXiv 1803.05407, section 3.2).
    """
    norms = batch_norms(model)
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
