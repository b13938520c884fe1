"""A job whose model also learns from a teacher, or from the average of its own weights (distillation)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.labelled import Labelled
from ..info import Labels, Preprocess
from ..models.registry import Backbone
from ..prediction.predictor import Predictor
from .distil_losses import DISTANCES, features, map_pairs, on_grid
from .distil_terms import TERMS, DistilName, Weighted, terms_for
from .ema import Averaged
from .job import Job, Named, Scores
from .stored_outputs import StoredOutputs
from .teacher import Teacher, TeacherOutput, join_licences, watched_maps

_OF_SECOND = ("logits", "hard")  # what the second of two classifiers learns in place of the labels
_MAPS = 3  # of the student, the coarsest ones; segmentation heads use as many


class Pair(NamedTuple):
    """Two feature maps that are compared: their numbers, finest first, and their strides."""

    ours: int
    theirs: int
    our_stride: int
    their_stride: int


class WithProjections(nn.Module):
    """What a job trains, with projections of feature maps: parameters that only the training state has.

    ``(B, C, H, W)`` -> the trainee's outputs, and the projected maps.

    Args:
        trainee: what the job trains.
        projections: a 1x1 convolution for each map that is compared.
        numbers: the number of the map that each projection takes, finest first.
    """

    def __init__(self, trainee: nn.Module, projections: Sequence[nn.Module], numbers: Sequence[int]) -> None:
        super().__init__()
        self.trainee, self.projections, self.numbers = trainee, nn.ModuleList(projections), list(numbers)

    @property
    def model(self) -> nn.Module:
        """The model itself."""
        return cast(nn.Module, getattr(self.trainee, "model", self.trainee))

    def forward(self, image: Tensor, **options: Any) -> tuple[Any, list[Tensor]]:
        with watched_maps(self.model, bool(self.numbers)) as maps:
            outputs = self.trainee(image, **options)
        pairs = zip(self.projections, self.numbers, strict=True)
        return outputs, [project(maps[number]) for project, number in pairs]


class _RecordedTrainee:
    """Wraps the trainee while a job computes its loss, and records its outputs.

    Attributes:
        output: the output as in evaluation: of two classifiers their mean, of several stages the last one.
        second: the output of the second classifier, or the same as ``output``.
        maps: the projected feature maps.
    """

    output: Tensor
    second: Tensor
    maps: list[Tensor]

    def __init__(self, trainee: nn.Module, teaches_second: bool) -> None:
        self.trainee, self.teaches_second = trainee, teaches_second

    def __call__(self, image: Tensor, **options: Any) -> Any:
        outputs, self.maps = self.trainee(image, **options)
        if isinstance(outputs, tuple):
            first, self.second = outputs
            self.output = (first + self.second) / 2
            return first if self.teaches_second else outputs
        self.output = self.second = outputs[0] if isinstance(outputs, list) else outputs
        return outputs


class DistillationJob:
    """A task's job with terms of distillation in its loss.

    The teacher sees the batch as the student sees it: after all augmentations, with mixed images, normalised with its
    own mean and standard deviation. With ``stored`` it saw whole images without changes of colour.

    A classifier with two heads (DeiT, arXiv 2012.12877, section 4; EfficientViT-M's option ``distilled``) learns the
    labels with the first one and, from the terms ``logits`` and ``hard``, the teacher with the second one.

    Args:
        job: the task's job.
        task: the name of the task.
        terms: the terms of the loss.
        teacher: who teaches; ``None``: the average of the weights alone.
        stored: outputs of the teacher that were computed before; the job's masks are then tracked.

    Attributes:
        averaged: the average of the model's weights, which the run sets; without it the term ``ema`` is 0.
    """

    def __init__(
        self,
        job: Job,
        task: str,
        terms: Mapping[DistilName, Weighted],
        teacher: Teacher | None = None,
        stored: StoredOutputs | None = None,
    ) -> None:
        self.job, self.terms, self.teacher, self.stored = job, terms, teacher, stored
        self.averaged: Averaged | None = None
        self._live: nn.Module | None = None
        self.compares_maps = not all(TERMS[name].of_output for name in terms)
        self.own_distance = DISTANCES[terms_for(task)[0]]  # of the model and its average
        self.stride = 1  # of the student's output
        self.pairs: list[Pair] = []

    def __getstate__(self) -> dict[str, Any]:
        """Processes that load data make samples only."""
        return {**self.__dict__, "teacher": None, "stored": None, "averaged": None, "_live": None}

    @property
    def labels(self) -> Labels:
        return self.job.labels

    @property
    def preprocess(self) -> Preprocess:
        return self.job.preprocess

    @property
    def data(self) -> Labelled:
        return self.job.data

    @property
    def held_out(self) -> Named | None:
        return self.job.held_out

    @property
    def validation(self) -> int:
        return self.job.validation

    def sample(self, index: int, rng: np.random.Generator, done: float, **size: int) -> tuple[Tensor, Tensor]:
        return self.job.sample(index, rng, done, **size)

    def trainee(self, model: nn.Module) -> nn.Module:
        trainee = self.job.trainee(model)  # first, so that it starts from the same values as without a teacher
        projections: list[nn.Module] = []
        if self.teacher is not None:
            join_licences(model, self.teacher.info)
            if self.compares_maps:
                ours, theirs = cast(Backbone, model.backbone).feature_info, self.teacher.feature_info
                numbers = map_pairs(ours, theirs, _MAPS)
                self.pairs = [Pair(i, j, ours[i].stride, theirs[j].stride) for i, j in numbers]
                projections = [nn.Conv2d(ours[i].channels, theirs[j].channels, 1) for i, j in numbers]
        self.stride = getattr(model, "stride", 1)
        return WithProjections(trainee, projections, [pair.ours for pair in self.pairs])

    def image_network(self, model: nn.Module) -> nn.Module:
        return self.job.image_network(model)

    def weight(self, target: Tensor) -> Tensor:
        return self.job.weight(target if self.stored is None else self.stored.split(target).ids)

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        tracked = None if self.stored is None else self.stored.split(target)
        student = _RecordedTrainee(trainee, any(name in self.terms for name in _OF_SECOND))
        loss = self.job.loss(cast(nn.Module, student), image, target if tracked is None else tracked.ids)
        size = student.output.shape[-2], student.output.shape[-1]
        taught, valid = TeacherOutput(image, []), None  # where the weights' average is the only teacher, it is not used
        if self.stored is not None and tracked is not None:
            logits, valid = self.stored(tracked, size, self.stride)
            taught = TeacherOutput(logits, [])
        elif self.teacher is not None:
            taught = self.teacher(image, self.preprocess, self.compares_maps)
            if taught.output.shape != student.output.shape:
                taught = taught._replace(output=on_grid(taught.output, self.teacher.stride, size, self.stride))
        for name, (factor, temperature) in self.terms.items():
            if not TERMS[name].of_output:
                value = self._feature_distance(student, taught)
            elif not TERMS[name].of_teacher:
                value = self._distance_to_average(image, student, temperature)
            else:
                learner = student.second if name in _OF_SECOND else student.output
                value = DISTANCES[name](learner, taught.output, temperature, valid)
            loss = loss + factor * value
        return loss

    def _feature_distance(self, student: _RecordedTrainee, taught: TeacherOutput) -> Tensor:
        wanted = [
            on_grid(taught.maps[pair.theirs], pair.their_stride, (ours.shape[-2], ours.shape[-1]), pair.our_stride)
            for pair, ours in zip(self.pairs, student.maps, strict=True)
        ]
        return features(student.maps, wanted)

    def _distance_to_average(self, image: Tensor, student: _RecordedTrainee, temperature: float) -> Tensor:
        if self.averaged is None:
            return student.output.new_zeros(())
        if self._live is None:
            self._live = self.averaged.live_model(image.device)
        options = {"upsample": False} if hasattr(self._live, "stride") else {}
        with torch.no_grad():
            wanted = self._live(image, **options)
        return self.own_distance(student.output, wanted, temperature, None)

    def count(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[np.int64]:
        return self.job.count(predictor, indices)

    def scores(self, counts: NDArray[np.int64]) -> Scores:
        return self.job.scores(counts)

    def only_class(self, counts: NDArray[np.int64]) -> str:
        return self.job.only_class(counts)
