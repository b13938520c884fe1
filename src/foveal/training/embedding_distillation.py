"""Distillation: an image encoder learns the embeddings that another promptable model, its teacher, has of images.

This is the first of two stages, as EfficientViT-SAM was trained (arXiv 2402.05008, section 3.3); the second is
:mod:`foveal.training.prompt`. The teacher encodes each image once: its embeddings are stored in files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import PartialState
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.unlabelled import UnlabelledData
from ..errors import CheckpointError, ConfigError, DataError
from ..factory.create import create_model
from ..factory.load_model import load_model
from ..images.preparing import prepare
from ..images.sam_frame import FRAME, LOW_RES
from ..info import Labels, ModelInfo, info_of
from ..layers.conv import LayerNorm2d
from ..layers.optimize import optimize
from ..prediction.predictor import Predictor
from ..prediction.torch_runner import TorchPrompter
from ..progress import Progress
from ..tasks.prompt import PromptModel
from ..weights.checkpoints import digest
from .cache import Cached
from .common_settings import CommonSettings
from .embeddings import SHAPE, EmbeddedData, embedding_name
from .losses import mask_loss
from .prompt_settings import PromptSettings
from .sampled_prompts import sample_boxes
from .teacher import join_licences
from .teacher_folder import TeacherFolder, compute_missing, read_stored, stored_precision

_MASKS = 1e-3  # factor of the loss of the masks, which is some hundred times that of the embeddings
_HALF = 0.5  # probability of prompts by boxes
_STATISTICS = 64  # largest number of embeddings from which their mean and spread are computed
_FROZEN = ("prompt_encoder", "mask_decoder")  # the parts that are copied from the teacher and not trained


class EmbeddingTrainee(nn.Module):
    """The image encoder of a promptable model in training, with the teacher's prompt encoder and mask decoder.

    ``(B, 3, size, size)`` images and the teacher's embeddings of them give the loss, a scalar: the mean squared error
    over the whole embedding. The padding of an image counts like any other part: the decoder attends to it too, so the
    student's embedding there must be what the decoder expects.

    With ``prompts`` the loss also compares masks. The decoder is prompted at so many places of each image, and its
    answers from the student's embedding learn those from the teacher's: all four masks by
    :func:`~foveal.training.losses.mask_loss`, the expected IoU by squared error (the idea is EdgeSAM's, arXiv
    2312.06660, section 3.3, where the prompts come from true masks). Half of the images are prompted by points, half by
    the boxes of the masks that the teacher predicts from these points.

    Args:
        model: trained in place.
        prompts: per image and step; 0: the loss is that of the embeddings alone.
    """

    def __init__(self, model: PromptModel, prompts: int) -> None:
        super().__init__()
        self.model, self.prompts = model, prompts

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        embedding = self.model.image_encoder(image)
        embedding = embedding.to(torch.promote_types(embedding.dtype, torch.float32))
        target = target.to(embedding.dtype)
        loss = F.mse_loss(embedding, target)
        if not self.prompts:
            return loss
        triples = zip(embedding, target, extents(image), strict=True)
        return loss + _MASKS * torch.stack([self.disagreement(*triple) for triple in triples]).mean()

    def disagreement(self, embedding: Tensor, target: Tensor, extent: Tensor) -> Tensor:
        """Compare the answers from two embeddings ``(256, 64, 64)`` of an image of size ``extent``: a loss, a scalar.

        Args:
            embedding: the student's.
            target: the teacher's.
            extent: width and height of the image in the frame.
        """
        sparse, logits, iou = self._teacher_answers(target, extent)
        student_logits, student_iou = self._answers(embedding, sparse)
        masks = mask_loss(student_logits.flatten(0, 1)[:, None], logits.flatten(0, 1).float().sigmoid())
        return masks.mean() + F.mse_loss(student_iou.float(), iou.float())

    @torch.no_grad()
    def _teacher_answers(self, target: Tensor, extent: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Sample prompts; return their tokens and the teacher's answers to them: logits and expected IoU."""
        encoder = self.model.prompt_encoder
        points = torch.rand(self.prompts, 1, 2, device=extent.device) * extent
        sparse, _ = encoder((points, torch.ones_like(points[..., 0])))
        logits, iou = self._answers(target, sparse)
        if torch.rand(()) < _HALF:
            best = logits[torch.arange(self.prompts), 1 + iou[:, 1:].argmax(1)] > 0
            in_frame = best.repeat_interleave(FRAME // LOW_RES, 1).repeat_interleave(FRAME // LOW_RES, 2)
            sparse, _ = encoder(boxes=sample_boxes(in_frame))
            logits, iou = self._answers(target, sparse)
        return sparse, logits, iou

    def _answers(self, embedding: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self.model.prompt_encoder
        return self.model.mask_decoder.all_masks(embedding[None], encoder.get_dense_pe(), sparse, encoder.dense(None))


def extents(image: Tensor) -> Tensor:
    """Width and height, in the frame, of the images inside padded images ``(B, C, size, size)``: ``(B, 2)`` float32."""
    content = image.ne(0).any(1)
    return torch.stack([content.any(1).sum(1), content.any(2).sum(1)], 1) * (FRAME / image.shape[-1])


class EmbeddingJob:
    """An image encoder learns a teacher's embeddings; prompt encoder and decoder are copied from it and not trained.

    Images are used as they are and, with ``config.flip``, mirrored, for which the teacher encodes the mirror image too.
    Validation images are scored by the cosine between student's and teacher's embedding of a place, averaged over all
    places.
    """

    def __init__(self, root: str | Path, config: PromptSettings, progress: Progress) -> None:
        if config.freeze_encoder:
            raise ConfigError(
                "freeze_encoder=True leaves nothing to train with a teacher, who teaches the image encoder: leave one "
                "of the two out"
            )
        self.labels, self.preprocess = Labels(), prompt_info(config).preprocess
        images = UnlabelledData.open(root, config.splits)
        held_out = UnlabelledData.open(root, [config.val_split]) if config.val_split else None
        teacher = _load_teacher(config.teacher)
        self.teacher = info_of(teacher)
        precision = stored_precision(config.precision)
        folder = TeacherFolder(
            config.embeddings, self.teacher.ref, digest(teacher.image_encoder.state_dict()), precision
        )
        self.data = _with_embeddings(images, folder, (False, True) if config.flip else (False,))
        self.held_out = _with_embeddings(held_out, folder, (False,)) if held_out else None
        _embed(_images_by_file(self.data, self.held_out), folder, teacher, precision, progress)
        self.decoder = {
            name: {key: value.clone() for key, value in getattr(teacher, name).state_dict().items()} for name in _FROZEN
        }
        self.flip, self.prompts, self.validation = config.flip, config.teacher_prompts, len(self.held_out or ())
        self.read = Cached(self.data, config.cache_gib, config.max_bad, progress)

    def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
        image, embeddings = self.read[index]
        flipped = bool(rng.random() < self.flip)
        pixels = np.ascontiguousarray(image[:, ::-1]) if flipped else image
        return torch.from_numpy(prepare(pixels, self.preprocess)[0]), torch.from_numpy(embeddings[int(flipped)])

    def trainee(self, model: nn.Module) -> nn.Module:
        model = cast(PromptModel, model)
        for name, state in self.decoder.items():
            try:
                getattr(model, name).load_state_dict(state)
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                raise CheckpointError(f"the teacher's {name} does not fit the model: {reason}") from error
            getattr(model, name).requires_grad_(False)
        self._match_statistics(model.image_encoder.neck)
        join_licences(model, self.teacher)
        return EmbeddingTrainee(model, self.prompts)

    def image_network(self, model: nn.Module) -> nn.Module:
        return cast(PromptModel, model).image_encoder

    def _match_statistics(self, neck: nn.Module) -> None:
        """Give the last norm of an untrained neck the mean and spread of the teacher's channels.

        MobileSAM's spread is a tenth of a new norm's, which a short run at a usual learning rate would not reach.
        """
        last = [module for module in neck.modules() if isinstance(module, LayerNorm2d)][-1]
        if not last.weight.eq(1).all() or last.bias.any():
            return
        files = [files[0] for files in self.data.files if files[0].exists()]
        subset = files[:: -(-len(files) // _STATISTICS)]
        channels = np.stack([read_stored(file, SHAPE) for file in subset], 1).astype(np.float64)
        with torch.no_grad():
            last.weight.copy_(torch.from_numpy(channels.std((1, 2, 3))))
            last.bias.copy_(torch.from_numpy(channels.mean((1, 2, 3))))

    def weight(self, target: Tensor) -> Tensor:
        return torch.tensor(float(len(target)), device=target.device)

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        return trainee(image, target)

    def count(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[np.int64]:
        """Number of images, and the sum of their mean cosines in millionths."""
        assert self.held_out is not None
        counts = np.zeros(2, np.int64)
        for index in indices:
            image, (target,) = self.held_out[index]
            a, b = predictor.encode(image).features[0].astype(np.float64), target.astype(np.float64)
            cosine = (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0)).clip(min=1e-12)
            counts += (1, round(1e6 * float(cosine.mean())))
        return counts

    def scores(self, counts: NDArray[np.int64]) -> EmbeddingScores:
        images, total = map(int, counts)
        return EmbeddingScores(images, total / 1e6 / images)

    def only_class(self, counts: NDArray[np.int64]) -> str:
        return ""


@dataclass(frozen=True)
class EmbeddingScores:
    """How close a student's embeddings are to its teacher's.

    Attributes:
        images: number of images.
        cosine: mean over images and places, -1..1.
    """

    images: int
    cosine: float

    @property
    def headline(self) -> tuple[str, float]:
        return "cosine", self.cosine

    def to_dict(self) -> dict[str, Any]:
        return {"cosine": round(self.cosine, 6)}


def prompt_info(config: CommonSettings) -> ModelInfo:
    """Return the description of the promptable model that a run trains; the model is not built in memory."""
    with torch.device("meta"):
        return info_of(create_model(config.model, "prompt", **config.options))


def _load_teacher(ref: str) -> PromptModel:
    teacher = load_model(ref)
    if not isinstance(teacher, PromptModel):
        raise ConfigError(
            f"teacher={ref}: a model for {info_of(teacher).task!r}, which has no embeddings of images: "
            "name a promptable one (foveal models --task prompt)"
        )
    return teacher


def _with_embeddings(images: UnlabelledData, folder: TeacherFolder, flips: Sequence[bool]) -> EmbeddedData:
    files = (tuple(folder.file(embedding_name(path, flip)) for flip in flips) for path in images.paths)
    return EmbeddedData(images, tuple(files))


def _images_by_file(*data: EmbeddedData | None) -> dict[Path, tuple[Path, int]]:
    """File of an embedding -> the image's file, and whether the image is mirrored (1) or not (0)."""
    return {
        file: (each.name(index), flipped)
        for each in data
        if each is not None
        for index, files in enumerate(each.files)
        for flipped, file in enumerate(files)
    }


def _embed(
    images: dict[Path, tuple[Path, int]],
    folder: TeacherFolder,
    teacher: PromptModel,
    precision: str,
    progress: Progress,
) -> None:
    """Write the embeddings that the folder does not have yet; several processes share the images."""

    def prepare_teacher() -> Callable[[Path], None]:
        prompter = TorchPrompter(cast(PromptModel, optimize(teacher)), str(PartialState().device))
        predictor = Predictor(prompter, info_of(teacher), "")
        return lambda file: _embed_image(*images[file], file, folder, predictor)

    missing = [file for file in images if not folder.has(file, SHAPE)]
    compute_missing(missing, len(images), prepare_teacher, "embed", precision, progress)


def _embed_image(image: Path, flipped: int, file: Path, folder: TeacherFolder, predictor: Predictor) -> None:
    try:
        pixels, _ = UnlabelledData((image,))[0]
    except DataError:
        return  # the run reports it when it reads the image itself
    folder.write(file, predictor.encode(np.ascontiguousarray(pixels[:, ::-1]) if flipped else pixels).features[0])
