"""Distilling: an image encoder learns the embeddings that another promptable model, its teacher, has of images.

First of two stages, as EfficientViT-SAM was trained (arXiv 2402.05008, section 3.3); the second is in
:mod:`foveal.training.prompt`. The teacher sees each image once: what it saw is kept in files.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from ..info import Labels, ModelInfo, attach, info_of
from ..layers.conv import LayerNorm2d
from ..layers.optimize import optimize
from ..prediction.predictor import Predictor
from ..prediction.torch_runner import TorchPrompter
from ..progress import Progress
from ..tasks.prompt import PromptModel
from ..weights.checkpoints import digest
from .cache import Cached
from .config import TrainConfig
from .embeddings import EmbeddedData, EmbeddingFolder
from .losses import mask_loss
from .sampled_prompts import drawn_boxes

_MASKS = 1e-3  # of the masks' loss, which is some hundred times the embeddings'
_EVEN = 0.5  # odds of boxes
_LOOKED_AT = 64  # embeddings, for their mean and spread


class Distilled(nn.Module):
    """The image encoder of a promptable model in training, between the teacher's prompt encoder and decoder.

    ``(B, 3, size, size)`` images and the teacher's embeddings of them give the loss, a scalar: the mean squared error
    over the whole embedding. The part that belongs to the padding counts as any other: the decoder looks there too, so
    what the student puts there must be what the decoder is used to.

    With ``prompts`` the decoder is asked as well, for what is at as many places of each image, and its answers from the
    student's embedding learn those from the teacher's: all four masks by :func:`~foveal.training.losses.mask_loss`, the
    expected IoU by squared error (the idea is EdgeSAM's, arXiv 2312.06660, section 3.3, which has true masks asked
    for). Half of the images are asked by points, half by the boxes of what the teacher finds at these points.

    Args:
        model: trained in place.
        prompts: of each image and step; 0: embeddings alone.
    """

    def __init__(self, model: PromptModel, prompts: int) -> None:
        super().__init__()
        self.model, self.prompts = model, prompts

    def forward(self, image: Tensor, target: Tensor) -> Tensor:
        found = self.model.image_encoder(image)
        found = found.to(torch.promote_types(found.dtype, torch.float32))
        target = target.to(found.dtype)
        loss = F.mse_loss(found, target)
        if not self.prompts:
            return loss
        pairs = zip(found, target, extents(image), strict=True)
        return loss + _MASKS * torch.stack([self.disagreement(*each) for each in pairs]).mean()

    def disagreement(self, found: Tensor, target: Tensor, extent: Tensor) -> Tensor:
        """How far the answers from two embeddings ``(256, 64, 64)`` of an image of ``extent`` are apart, a scalar."""
        encoder = self.model.prompt_encoder
        with torch.no_grad():
            points = torch.rand(self.prompts, 1, 2, device=extent.device) * extent
            sparse, _ = encoder((points, torch.ones_like(points[..., 0])))
            logits, iou = self._answers(target, sparse)
            if torch.rand(()) < _EVEN:
                surest = logits[torch.arange(self.prompts), 1 + iou[:, 1:].argmax(1)] > 0
                in_frame = surest.repeat_interleave(FRAME // LOW_RES, 1).repeat_interleave(FRAME // LOW_RES, 2)
                sparse, _ = encoder(boxes=drawn_boxes(in_frame))
                logits, iou = self._answers(target, sparse)
        ours, expected = self._answers(found, sparse)
        masks = mask_loss(ours.flatten(0, 1)[:, None], logits.flatten(0, 1).float().sigmoid())
        return masks.mean() + F.mse_loss(expected.float(), iou.float())

    def _answers(self, embedding: Tensor, sparse: Tensor) -> tuple[Tensor, Tensor]:
        encoder = self.model.prompt_encoder
        return self.model.mask_decoder.all_masks(embedding[None], encoder.get_dense_pe(), sparse, encoder.dense(None))


def extents(image: Tensor) -> Tensor:
    """Width and height in the frame of what is not padding in images ``(B, C, size, size)``: ``(B, 2)`` float32."""
    there = image.ne(0).any(1)
    return torch.stack([there.any(1).sum(1), there.any(2).sum(1)], 1) * (FRAME / image.shape[-1])


class DistilJob:
    """An image encoder learns a teacher's embeddings; prompt encoder and decoder are the teacher's and stay so.

    Images are seen as they are and, with ``config.flip``, in a mirror, which costs the teacher a second look. Held-out
    images are scored by the cosine between the two embeddings of a place, their mean over all places.
    """

    def __init__(self, root: str | Path, config: TrainConfig, progress: Progress) -> None:
        if config.freeze_encoder:
            raise ConfigError("freeze_encoder: a teacher teaches the image encoder; leave one of the two out")
        self.labels, self.preprocess = Labels(), prompt_info(config).preprocess
        images = UnlabelledData.open(root, config.splits)
        held_out = UnlabelledData.open(root, [config.val_split]) if config.val_split else None
        teacher = load_model(config.teacher)
        self.teacher = info_of(teacher)
        if not isinstance(teacher, PromptModel):
            raise ConfigError(
                f"teacher={config.teacher}: a model for {self.teacher.task!r}, which has no embeddings of images: "
                "name a promptable one (foveal models --task prompt)"
            )
        named = self.teacher.ref
        # float16 may overflow in a network that nobody trained in it; bfloat16 has float32's range.
        precision = "bf16" if config.precision == "bf16" else "fp32"
        folder = EmbeddingFolder(config.embeddings, named, digest(teacher.image_encoder.state_dict()), precision)
        self.data = _embedded(images, folder, (False, True) if config.flip else (False,))
        self.held_out = _embedded(held_out, folder, (False,)) if held_out else None
        wanted = {
            file: (data.name(index), flipped)
            for data in (self.data, self.held_out)
            if data is not None
            for index, files in enumerate(data.files)
            for flipped, file in enumerate(files)
        }
        _embed(wanted, folder, teacher, precision, progress)
        self.decoder = {
            name: {key: value.clone() for key, value in getattr(teacher, name).state_dict().items()}
            for name in ("prompt_encoder", "mask_decoder")
        }
        self.flip, self.prompts, self.validation = config.flip, config.teacher_prompts, len(self.held_out or ())
        self.read = Cached(self.data, config.cache_gib, config.max_bad, progress)

    def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
        image, embeddings = self.read[index]
        flipped = bool(rng.random() < self.flip)
        seen = np.ascontiguousarray(image[:, ::-1]) if flipped else image
        return torch.from_numpy(prepare(seen, self.preprocess)[0]), torch.from_numpy(embeddings[int(flipped)])

    def trainee(self, model: nn.Module) -> nn.Module:
        model = cast(PromptModel, model)
        for name, state in self.decoder.items():
            try:
                getattr(model, name).load_state_dict(state)
            except RuntimeError as error:
                raise CheckpointError(f"the teacher's {name} does not fit: {' '.join(str(error).split())}") from error
            getattr(model, name).requires_grad_(False)
        self._level(model.image_encoder.neck)
        info = info_of(model)
        licences = dict.fromkeys(licence for licence in (info.licence, self.teacher.licence) if licence)
        attach(model, info.replace(licence=" AND ".join(licences)))
        return Distilled(model, self.prompts)

    def _level(self, neck: nn.Module) -> None:
        """Start an untrained neck's last norm at the mean and spread that the teacher's channels have.

        MobileSAM's spread is a tenth of the norm's own, too far for a short run at a usual rate.
        """
        last = [module for module in neck.modules() if isinstance(module, LayerNorm2d)][-1]
        if not last.weight.eq(1).all() or last.bias.any():
            return
        seen = [files[0] for files in self.data.files if files[0].exists()]
        some = seen[:: -(-len(seen) // _LOOKED_AT)]
        channels = np.stack([EmbeddingFolder.read(file) for file in some], 1).astype(np.float64)
        with torch.no_grad():
            last.weight.copy_(torch.from_numpy(channels.std((1, 2, 3))))
            last.bias.copy_(torch.from_numpy(channels.mean((1, 2, 3))))

    def weight(self, target: Tensor) -> Tensor:
        return torch.tensor(float(len(target)), device=target.device)

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        return trainee(image, target)

    def score(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[np.int64]:
        """Images, and the sum of their mean cosines in millionths."""
        assert self.held_out is not None
        counts = np.zeros(2, np.int64)
        for index in indices:
            image, (wanted,) = self.held_out[index]
            a, b = predictor.encode(image).features[0].astype(np.float64), wanted.astype(np.float64)
            cosine = (a * b).sum(0) / np.sqrt((a * a).sum(0) * (b * b).sum(0)).clip(min=1e-12)
            counts += (1, round(1e6 * float(cosine.mean())))
        return counts

    def scores(self, counts: NDArray[np.int64]) -> EmbeddingScores:
        images, total = map(int, counts)
        return EmbeddingScores(images, total / 1e6 / images)


@dataclass(frozen=True)
class EmbeddingScores:
    """How close a student's embeddings are to its teacher's.

    Attributes:
        images: how many.
        cosine: mean over images and places, -1..1.
    """

    images: int
    cosine: float

    @property
    def headline(self) -> tuple[str, float]:
        return "cosine", self.cosine

    def to_dict(self) -> dict[str, Any]:
        return {"cosine": round(self.cosine, 6)}


def prompt_info(config: TrainConfig) -> ModelInfo:
    """What ``create_model`` says of the model that a run is about."""
    with torch.device("meta"):
        return info_of(create_model(config.model, "prompt", **config.options))


def _embedded(images: UnlabelledData, folder: EmbeddingFolder, sides: Sequence[bool]) -> EmbeddedData:
    return EmbeddedData(images, tuple(tuple(folder.file(path, side) for side in sides) for path in images.paths))


def _embed(
    wanted: dict[Path, tuple[Path, int]],
    folder: EmbeddingFolder,
    teacher: PromptModel,
    precision: str,
    progress: Progress,
) -> None:
    """Have the teacher see what it has not; several processes share the images."""
    state = PartialState()
    device = torch.device(str(state.device))
    missing = [file for file in wanted if not folder.has(file)]
    mine = missing[state.process_index :: state.num_processes]
    if mine:
        predictor = Predictor(TorchPrompter(cast(PromptModel, optimize(teacher)), str(device)), info_of(teacher), "")
        in_16_bits = torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16")
        with in_16_bits, progress.bar("embed", len(wanted), len(wanted) - len(missing)) as bar:
            for number, file in enumerate(mine):
                image, flipped = wanted[file]
                try:
                    pixels, _ = UnlabelledData((image,))[0]
                except DataError:
                    pass  # the run hears of it when it reads that image
                else:
                    seen = np.ascontiguousarray(pixels[:, ::-1]) if flipped else pixels
                    folder.write(file, predictor.encode(seen).features[0])
                for _ in missing[number * state.num_processes : (number + 1) * state.num_processes]:
                    bar.advance()
    state.wait_for_everyone()
