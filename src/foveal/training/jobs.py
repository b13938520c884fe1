"""The training job of each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from ..progress import Progress
from .classify import ClassifyJob
from .config import TrainConfig, complete_finetuning
from .distil_settings import distil_terms
from .distillation import DistillationJob
from .embedding_distillation import EmbeddingJob
from .initial import check_model
from .job import Job, note_shared_images
from .prompt import PromptJob
from .prompt_settings import PromptSettings, place_embeddings
from .regress import RegressJob
from .segment import SegmentJob
from .stored_outputs import StoredOutputs
from .teacher import check_teacher, open_teacher
from .upscale import UpscaleJob


def prompt_job(root: str | Path, config: PromptSettings, progress: Progress) -> EmbeddingJob | PromptJob:
    """Learn the embeddings of a teacher if there is one, otherwise masks."""
    return (EmbeddingJob if config.teacher else PromptJob)(root, config, progress)


#: How the job of each task is made; :func:`make_job` adds a teacher.
JOBS: Mapping[str, Callable[[str | Path, TrainConfig, Progress], Job]] = {
    "segment": SegmentJob,
    "classify": ClassifyJob,
    "upscale": UpscaleJob,
    "regress": RegressJob,
    "prompt": prompt_job,
}


def make_job(root: str | Path, config: TrainConfig, progress: Progress) -> Job:
    """Make the job of a run: that of its task and, if the loss has terms of distillation, what they need."""
    terms = distil_terms(config)
    # Teacher and model come before the data, so that mistakes in them are found sooner.
    teacher = open_teacher(config) if terms and config.teacher else None
    check_model(config)
    job = JOBS[config.task](root, config, progress)
    note_shared_images(job, config, progress)
    if not terms:
        return job
    if teacher is None:
        return DistillationJob(job, config.task, terms)
    check_teacher(teacher, job, config)
    if not config.teacher_cache:
        return DistillationJob(job, config.task, terms, teacher)
    samples = cast(SegmentJob, job).read
    stored = StoredOutputs(samples, config.teacher_cache, teacher, config.precision, progress)
    return DistillationJob(job, config.task, terms, teacher, stored)


#: Of tasks with settings whose default depends on the run's folder: the function that fills them in.
_FILL_IN: Mapping[str, Callable[[TrainConfig, Path], TrainConfig]] = {"prompt": place_embeddings}


def complete_config(config: TrainConfig, run_folder: Path) -> TrainConfig:
    """Return ``config`` with the defaults that depend on other settings and on the run's folder."""
    config = complete_finetuning(config)
    fill_in = _FILL_IN.get(config.task)
    return fill_in(config, run_folder) if fill_in else config
