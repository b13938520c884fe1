"""The settings of runs that train promptable models."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from .common_settings import CommonSettings
from .settings import at_least, setting

P = TypeVar("P", bound="PromptSettings")


@dataclass(frozen=True)
class PromptSettings(CommonSettings):
    """The common settings and those of promptable models."""

    embeddings: str = setting(
        "",
        "Folder for the teacher's embeddings. Empty: the folder 'embeddings' in the run's folder.",
        is_path=True,
        resumable=True,
    )
    teacher_prompts: int = setting(
        0,
        "Prompts per image and step for which the student learns the teacher's masks, in addition to its embeddings.",
        at_least(0),
        needs="teacher",
    )
    freeze_encoder: bool = setting(False, "Keep the image encoder as it is while masks are learnt.")
    prompts: int = setting(
        16,
        "Largest number of objects of an image that are prompted for in a step.",
        at_least(1),
    )
    clicks: int = setting(
        2,
        "Clicks on errors of the predicted mask that follow each first prompt.",
        at_least(0),
    )


def place_embeddings(config: P, run_folder: Path) -> P:
    """Set the folder for the teacher's embeddings where it is not set: it is inside the run's folder."""
    if not config.teacher or config.embeddings:
        return config
    return dataclasses.replace(config, embeddings=str(run_folder / "embeddings"))
