"""What a run does with its averaged model at the end of an epoch: norm statistics, scores."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast
from torch import Tensor, nn

from ..info import ModelInfo
from .distributed import summed
from .jobs import Job, Scores
from .predict import Predictor, torch_runner
from .sync_norm import batch_norms


def score(model: nn.Module, info: ModelInfo, job: Job, accelerator: Accelerator, synced: bool) -> Scores:
    """Score ``model`` on the validation split, each image counted once over all processes.

    Args:
        synced: whether the processes' norms have the same statistics; else those of the first are taken.
    """
    if accelerator.num_processes > 1 and not synced:
        for buffer in model.buffers():
            broadcast(buffer)
    predictor = Predictor(torch_runner(model, str(accelerator.device)), info, "torch")
    mine = range(accelerator.process_index, job.validation, accelerator.num_processes)
    counts = summed(torch.from_numpy(job.score(predictor, mine)).to(accelerator.device), accelerator)
    return job.scores(counts.cpu().numpy())


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
