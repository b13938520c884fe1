"""A teacher: a model, or an exported file, that sees the images of a run and gives outputs to learn from."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from torch import Tensor, nn

from ..data.labels import class_difference
from ..errors import ConfigError
from ..factory.load_model import load_model
from ..info import ModelInfo, Preprocess, attach, info_of
from ..layers.optimize import optimize
from ..models.registry import Backbone, FeatureInfo
from ..prediction.load import load
from ..prediction.runner import Runner
from ..prediction.runtimes import is_exported_file
from ..prediction.torch_runner import TorchRunner
from ..task import TASKS
from ..tasks.builders import BUILDERS
from ..weights.checkpoints import digest
from .common_settings import CommonSettings
from .device import uses_cpu
from .job import Job


class TeacherOutput(NamedTuple):
    """What a teacher gives for a batch of images.

    Attributes:
        output: the output of the task: logits ``(B, C)`` or, at the teacher's stride, ``(B, C, h, w)``; or images.
        maps: the backbone's feature maps, finest first; empty unless they were asked for.
    """

    output: Tensor
    maps: list[Tensor]


class Teacher:
    """A trained network that answers the batches of a run.

    Args:
        network: a torch model, which :func:`open_teacher` optimised for inference, or the runner of an exported file.
        info: its description.
        name: how the user named it, for messages.
        identity: returns the SHA-256 of what its outputs depend on.
    """

    def __init__(self, network: nn.Module | Runner, info: ModelInfo, name: str, identity: Callable[[], str]) -> None:
        self.network, self.info, self.name, self.identity = network, info, name, identity
        self.stride = info.output_stride
        self._place: tuple[torch.device, torch.dtype] | None = None

    @property
    def feature_info(self) -> list[FeatureInfo]:
        """The backbone's feature maps.

        Raises:
            ConfigError: it is an exported file, which gives none.
        """
        if not isinstance(self.network, nn.Module):
            raise ConfigError(
                f"teacher={self.name}: an exported file gives no feature maps, which the term features compares: "
                "name the model that it was exported from, or leave features out"
            )
        return list(cast(Backbone, self.network.backbone).feature_info)

    def __call__(self, image: Tensor, preprocess: Preprocess, maps: bool = False) -> TeacherOutput:
        """Answer a batch, without gradients.

        Args:
            image: ``(B, C, H, W)`` as the student gets it.
            preprocess: mean and standard deviation of ``image``. The teacher gets the same pixels with its own.
            maps: whether feature maps are needed.
        """
        image = renormalised(image, preprocess, self.info.preprocess)
        if not isinstance(self.network, nn.Module):
            batch = np.ascontiguousarray(image.detach().float().cpu().numpy())
            return TeacherOutput(torch.from_numpy(self.network(batch)).to(image.device), [])
        if self._place != (place := (image.device, image.dtype)):
            self.network.to(*place)
            self._place = place
        options = {"upsample": False} if hasattr(self.network, "stride") else {}
        with torch.no_grad(), watched_maps(self.network, maps) as seen:
            return TeacherOutput(self.network(image, **options), seen)

    def runner(self, device: str) -> Runner:
        """The network on arrays, for outputs that are computed once."""
        return TorchRunner(self.network, device) if isinstance(self.network, nn.Module) else self.network


@contextmanager
def watched_maps(model: nn.Module, wanted: bool = True) -> Iterator[list[Tensor]]:
    """Context manager with a list that the next forward pass of a model fills with its backbone's feature maps."""
    seen: list[Tensor] = []
    handle = (
        cast(Backbone, model.backbone).register_forward_hook(lambda *args: seen.extend(args[2])) if wanted else None
    )
    try:
        yield seen
    finally:
        if handle is not None:
            handle.remove()


def renormalised(image: Tensor, old: Preprocess, new: Preprocess) -> Tensor:
    """Bring images ``(B, C, H, W)`` from one mean and standard deviation to another; the pixels stay the same."""
    if (old.mean, old.std) == (new.mean, new.std):
        return image
    gain = [a / b for a, b in zip(old.std, new.std, strict=True)]
    shift = [(a - b) / c for a, b, c in zip(old.mean, new.mean, new.std, strict=True)]
    scale, offset = (torch.tensor(values, dtype=image.dtype, device=image.device) for values in (gain, shift))
    return image * scale[:, None, None] + offset[:, None, None]


def open_teacher(config: CommonSettings) -> Teacher:
    """Open the teacher that the settings name.

    Raises:
        ConfigError: it is for another task.
        CheckpointError, DependencyError: as :func:`foveal.load`.
    """
    ref = config.teacher
    if is_exported_file(ref):
        device = "cpu" if uses_cpu(config.device) else "auto"
        predictor = load(ref, device=device, threads=torch.get_num_threads())
        network, info = predictor.runner, predictor.info
        identity: Callable[[], str] = lambda: _digest_of_files(Path(ref), info)  # noqa: E731
    else:
        model = load_model(ref)
        network, info = optimize(model), info_of(model)
        identity = lambda: digest(model.state_dict(), str(info.preprocess))  # noqa: E731
    if info.task != config.task:
        raise ConfigError(f"teacher={ref} is for {info.task!r}, not {config.task!r}: name a model for the same task")
    return Teacher(network, info, ref, identity)


def join_licences(model: nn.Module, teacher: ModelInfo) -> None:
    """Note in the description of a model that its weights come from a teacher's, too, with their licence."""
    info = info_of(model)
    licences = dict.fromkeys(licence for licence in (info.licence, teacher.licence) if licence)
    attach(model, info.replace(licence=" AND ".join(licences)))


def check_teacher(teacher: Teacher, job: Job, config: CommonSettings) -> None:
    """Check that a teacher takes the images of a run, and gives what the student gives.

    Raises:
        ConfigError: it takes other images, has other classes or another scale.
    """
    info, ours = teacher.info, job.preprocess
    theirs = info.preprocess
    if (len(theirs.mean), theirs.dtype) != (len(ours.mean), ours.dtype):
        raise ConfigError(
            f"teacher={teacher.name} takes images of {len(theirs.mean)} channels of {theirs.dtype}, and the run's "
            f"have {len(ours.mean)} of {ours.dtype}: name a teacher for the same images"
        )
    names = job.labels.names
    if TASKS[config.task].has_classes:
        difference = class_difference(names, info.labels.names) if info.labels.names else ""
        if info.num_classes != len(names):
            difference = f"{info.num_classes} instead of {len(names)}" + f" ({difference})" * bool(difference)
        if difference:
            raise ConfigError(
                f"teacher={teacher.name} has other classes than the data: {difference}; name a teacher for the same "
                "classes in the same order"
            )
    if option := TASKS[config.task].option:
        own, given = config.options.get(option, BUILDERS[config.task].defaults[option]), info.options[option]
        if given != own:
            raise ConfigError(f"teacher={teacher.name} has {option} {given}, the run {own}: name one of {option} {own}")


def _digest_of_files(path: Path, info: ModelInfo) -> str:
    """SHA-256 of an exported model: of the file with the files of weights beside it, or of all files in a folder."""
    beside = [path.with_suffix(".bin")] if path.suffix == ".xml" else [path.with_name(f"{path.name}.data")]
    sha256 = hashlib.sha256(str(info.preprocess).encode())
    for file in sorted(each for each in (path, *beside, *path.rglob("*")) if each.is_file()):
        sha256.update(f"\n{file.suffix}\n".encode())
        sha256.update(file.read_bytes())
    return sha256.hexdigest()
