"""The training job of each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ..progress import Progress
from .classify import ClassifyJob
from .config import TrainConfig, complete_finetuning
from .distil import DistilJob
from .job import Job
from .prompt import PromptJob
from .prompt_settings import PromptSettings, place_embeddings
from .regress import RegressJob
from .segment import SegmentJob
from .upscale import UpscaleJob


def prompt_job(root: str | Path, config: PromptSettings, progress: Progress) -> DistilJob | PromptJob:
    """Learn the embeddings of a teacher if there is one, otherwise masks."""
    return (DistilJob if config.teacher else PromptJob)(root, config, progress)


#: How the job of each task is made.
JOBS: Mapping[str, Callable[[str | Path, TrainConfig, Progress], Job]] = {
    "segment": SegmentJob,
    "classify": ClassifyJob,
    "upscale": UpscaleJob,
    "regress": RegressJob,
    "prompt": prompt_job,
}

#: Of tasks with settings whose default depends on the run's folder: the function that fills them in.
_FILL_IN: Mapping[str, Callable[[TrainConfig, Path], TrainConfig]] = {"prompt": place_embeddings}


def complete_config(config: TrainConfig, run_folder: Path) -> TrainConfig:
    """Return ``config`` with the defaults that depend on other settings and on the run's folder."""
    config = complete_finetuning(config)
    fill_in = _FILL_IN.get(config.task)
    return fill_in(config, run_folder) if fill_in else config
