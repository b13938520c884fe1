"""The training job of each task."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from ..progress import Progress
from .classify import ClassifyJob
from .config import TrainConfig
from .distil import DistilJob
from .job import Job
from .prompt import PromptJob
from .segment import SegmentJob
from .upscale import UpscaleJob


def prompt_job(root: str | Path, config: TrainConfig, progress: Progress) -> DistilJob | PromptJob:
    """With a teacher its embeddings are learnt, else masks."""
    return (DistilJob if config.teacher else PromptJob)(root, config, progress)


JOBS: Mapping[str, Callable[[str | Path, TrainConfig, Progress], Job]] = {
    "segment": SegmentJob,
    "classify": ClassifyJob,
    "upscale": UpscaleJob,
    "prompt": prompt_job,
}
