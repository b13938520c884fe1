"""Train promptable models on masks: prompts sampled from true masks, clicks on errors, and the expected IoU.

This is the second of two stages; :mod:`foveal.training.embedding_distillation` is the first. It also fine-tunes any
promptable model on one's own data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ..data.instances import InstanceData
from ..data.transforms import recoloured
from ..evaluation.metrics import json_number
from ..images.preparing import prepare
from ..images.sam_frame import FRAME, LOW_RES, frame_size
from ..info import Labels
from ..prediction.predictor import Predictor
from ..progress import Progress
from ..tasks.prompt import BOTTOM_RIGHT, FOREGROUND, NOT_A_POINT, TOP_LEFT, PromptModel
from .cache import Cached
from .embedding_distillation import prompt_info
from .losses import mask_iou, mask_loss
from .prompt_settings import PromptSettings
from .sampled_prompts import MAX_POINTS, sample_boxes, sample_clicks, sample_points

_BITS = 8
_PATCH = FRAME // LOW_RES  # side of a mask's pixel, in pixels of the frame
_HALF = 0.5  # probability of a box, of three masks, and of the previous mask in addition to a click


@dataclass(frozen=True)
class Objects:
    """Images with the masks of their objects, crowds left out: ``data[i] -> ((H, W, 3) uint8, (N, H, W) bool)``."""

    instances: InstanceData
    labels: Labels = Labels()  # noqa: RUF009  (frozen)

    def __len__(self) -> int:
        return len(self.instances)

    def name(self, index: int) -> Path:
        """The image's file."""
        return self.instances.name(index)

    def order(self, rng: np.random.Generator, buffer: int) -> list[int]:
        """All images in random order."""
        return rng.permutation(len(self)).tolist()

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Read one image and its masks.

        Raises:
            DataError: either cannot be read.
        """
        image, instances = self.instances[index]
        masks = [instance.mask for instance in instances if not instance.iscrowd]
        return image, np.stack(masks) if masks else np.zeros((0, *image.shape[:2]), bool)


class PromptTrainee(nn.Module):
    """A promptable model in training: ``(B, 3, size, size)`` images and their masks give the mean loss, a scalar.

    The objects of an image are first prompted for by boxes (p = 0.5) or by 1 to 10 points inside them. Then, ``clicks``
    times, each predicted mask gets a click on a wrong pixel, half of the time together with the logits of that mask:
    both corrections of a mask and prompts of clicks alone are trained. The mask that counts is the one for clear
    prompts or, with p = 0.5, the best of the three for ambiguous prompts. All rounds have the same weight.

    The loss of a mask is :func:`~foveal.training.losses.mask_loss`. The expected IoU of all four masks learns the true
    IoU by squared error (arXiv 2304.02643, appendix A), which EfficientViT-SAM leaves out.

    Args:
        model: trained in place.
        clicks: rounds after the first.
        freeze_encoder: whether the image encoder is not trained; the statistics of its norms do not change either.
    """

    def __init__(self, model: PromptModel, clicks: int, freeze_encoder: bool) -> None:
        super().__init__()
        self.model, self.clicks, self.freeze_encoder = model, clicks, freeze_encoder
        if freeze_encoder:
            model.image_encoder.requires_grad_(False)
        if not clicks:  # masks are never used as prompts, and several processes wait for every trainable gradient
            model.prompt_encoder.mask_downscaling.requires_grad_(False)

    def train(self, mode: bool = True) -> PromptTrainee:
        super().train(mode)
        if self.freeze_encoder:
            self.model.image_encoder.eval()
        return self

    def forward(self, image: Tensor, packed: Tensor) -> Tensor:
        total, count = [], 0
        for embedding, bits in zip(self.model.image_encoder(image), packed, strict=True):
            masks = unpack_masks(bits)
            occupied = masks.flatten(1).any(1)
            # Without objects, one empty mask with weight 0 is used, so that every parameter still gets a gradient.
            masks = masks[occupied] if occupied.any() else masks[:1]
            total.append(self._rounds(embedding[None], masks).sum() * bool(occupied.any()))
            count += int(occupied.sum())
        return torch.stack(total).sum() / max(1, count)

    def _rounds(self, embedding: Tensor, masks: Tensor) -> Tensor:
        """Loss of each of the P objects of an image, the mean over the rounds: ``(P,)``."""
        encoder, decoder = self.model.prompt_encoder, self.model.mask_decoder
        exact = torch.promote_types(embedding.dtype, torch.float32)  # under autocast the embedding may have 16 bits
        share = F.avg_pool2d(masks[:, None].to(exact), _PATCH)[:, 0]
        true = share >= share.flatten(1).amax(1).clamp(max=0.5)[:, None, None].clamp(min=1e-6)
        points, labels, tail, kinds = self._first_prompt(masks)
        no_mask, low_res = encoder.dense(None), None
        losses = []
        for number in range(self.clicks + 1):
            sparse = encoder.tokens(torch.cat([points, tail], 1), torch.cat([labels, kinds], 1))
            dense = no_mask
            if low_res is not None:
                with_mask = _coin_flips(len(masks), masks.device)[:, None, None, None]
                dense = torch.where(with_mask, encoder.dense(low_res), no_mask)
            logits, iou = decoder.all_masks(embedding, encoder.get_dense_pe(), sparse, dense)
            ambiguous = _coin_flips(len(masks), masks.device)
            losses.append(answer_loss(logits, iou, share, true, ambiguous))
            if number == self.clicks:
                break
            chosen = torch.where(ambiguous, 1 + iou[:, 1:].argmax(1), 0)
            low_res = logits.detach()[torch.arange(len(masks)), chosen][:, None]
            click, label = sample_clicks(low_res[:, 0] > 0, true)
            points, labels = torch.cat([points, click], 1), torch.cat([labels, label], 1)
        return torch.stack(losses).mean(0)

    @staticmethod
    def _first_prompt(masks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points and their labels; then the coordinates and kinds of what follows: a box's corners, or "no box"."""
        device, count = masks.device, len(masks)
        if _coin_flips(1, device):
            kinds = torch.tensor([[TOP_LEFT, BOTTOM_RIGHT]], device=device).expand(count, -1)
            return torch.zeros(count, 0, 2, device=device), kinds[:, :0], sample_boxes(masks), kinds
        number = int(torch.randint(1, MAX_POINTS + 1, ()))
        labels = torch.full((count, number), FOREGROUND, device=device)
        kinds = torch.full((count, 1), NOT_A_POINT, device=device)
        return sample_points(masks, number), labels, torch.zeros(count, 1, 2, device=device), kinds


def answer_loss(logits: Tensor, iou: Tensor, share: Tensor, true: Tensor, ambiguous: Tensor) -> Tensor:
    """Compute the loss of the model's answers to P prompts, ``(P,)``.

    Args:
        logits: ``(P, 4, h, w)``; the first mask is the one for clear prompts.
        iou: expected IoU of each mask, ``(P, 4)``.
        share: share of each pixel that the object covers, ``(P, h, w)``.
        true: mask of the object, ``(P, h, w)`` bool.
        ambiguous: whether the best of the last three masks counts instead of the first, ``(P,)`` bool.
    """
    losses = mask_loss(logits, share)
    actual = mask_iou(logits.detach() > 0, true)
    expected = iou.to(losses.dtype)
    return torch.where(ambiguous, losses[:, 1:].amin(1), losses[:, 0]) + (expected - actual).square().mean(1)


def _coin_flips(count: int, device: torch.device) -> Tensor:
    return torch.rand(count, device=device) < _HALF


def pack_masks(masks: NDArray[np.bool_], count: int) -> NDArray[np.uint8]:
    """Bring the masks of an image into the frame, eight pixels to a byte: ``(N, H, W) -> (count, 1024, 128)``.

    Empty masks are added up to ``count``. Data loading processes pass the result on in shared memory, which is scarce.
    """
    height, width = frame_size(masks.shape[1:])
    rows, columns = (
        ((np.arange(length) + 0.5) * side / length).astype(int)
        for length, side in zip((height, width), masks.shape[1:], strict=True)
    )
    frame = np.zeros((count, FRAME, FRAME), bool)
    frame[: len(masks), :height, :width] = masks[:, rows][:, :, columns]
    return np.packbits(frame, axis=-1)


def unpack_masks(bits: Tensor) -> Tensor:
    """The inverse of :func:`pack_masks`: ``(K, 1024, 128) uint8 -> (K, 1024, 1024) bool``."""
    places = torch.arange(_BITS - 1, -1, -1, device=bits.device, dtype=torch.uint8)
    return ((bits[..., None] >> places) & 1).bool().flatten(-2)


class PromptJob:
    """Masks of single objects from prompts, see :class:`PromptTrainee`; the score is the mean IoU from boxes.

    A step uses up to ``config.prompts`` objects of each image, drawn again each time. Validation objects are prompted
    for by their boxes; of the three masks the one with the highest expected IoU counts.
    """

    def __init__(self, root: str | Path, config: PromptSettings, progress: Progress) -> None:
        self.labels, self.preprocess = Labels(), prompt_info(config).preprocess
        self.data = Objects(InstanceData.open(root, config.splits))
        self.held_out = InstanceData.open(root, [config.val_split]) if config.val_split else None
        self.validation = len(self.held_out or ())
        self.read = Cached(self.data, config.cache_gib, config.max_bad, progress)
        self.config = config

    def sample(self, index: int, rng: np.random.Generator, done: float) -> tuple[Tensor, Tensor]:
        image, masks = self.read[index]
        config = self.config
        masks = masks[rng.permutation(len(masks))[: config.prompts]]
        image = recoloured(image, config.jitter, config.tint, rng)
        if rng.random() < config.flip:
            image, masks = image[:, ::-1], masks[..., ::-1]
        network_input = prepare(np.ascontiguousarray(image), self.preprocess)[0]
        return torch.from_numpy(network_input), torch.from_numpy(pack_masks(masks, config.prompts))

    def trainee(self, model: nn.Module) -> nn.Module:
        return PromptTrainee(cast(PromptModel, model), self.config.clicks, self.config.freeze_encoder)

    def image_network(self, model: nn.Module) -> nn.Module:
        return cast(PromptModel, model).image_encoder

    def weight(self, target: Tensor) -> Tensor:
        return target.flatten(2).any(2).sum().to(torch.float32)

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        return trainee(image, target)

    def count(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[np.int64]:
        """Number of objects, and the sum of their IoU in millionths."""
        assert self.held_out is not None
        counts = np.zeros(2, np.int64)
        for index in indices:
            image, instances = self.held_out[index]
            instances = [instance for instance in instances if not instance.iscrowd]
            if not instances:
                continue
            masks = predictor.encode(image).prompt(boxes=[instance.box for instance in instances]).best
            for mask, instance in zip(masks, instances, strict=True):
                iou = (mask & instance.mask).sum() / (mask | instance.mask).sum()
                counts += (1, round(1e6 * float(iou)))
        return counts

    def scores(self, counts: NDArray[np.int64]) -> PromptScores:
        objects, total = map(int, counts)
        return PromptScores(objects, total / 1e6 / objects if objects else float("nan"))

    def only_class(self, counts: NDArray[np.int64]) -> str:
        return ""


@dataclass(frozen=True)
class PromptScores:
    """How well a model segments objects from their boxes.

    Attributes:
        objects: number of objects.
        box_miou: mean IoU over the objects.
    """

    objects: int
    box_miou: float

    @property
    def headline(self) -> tuple[str, float]:
        return "box_miou", self.box_miou

    def to_dict(self) -> dict[str, Any]:
        return {"box_miou": json_number(self.box_miou)}
