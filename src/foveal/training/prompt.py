"""Learning masks end to end: prompts drawn from true masks, clicks on the mistakes, and a head that knows its IoU.

Second of two stages; :mod:`foveal.training.distil` is the first. It also fine-tunes any promptable model on one's own
data.
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
from ..images.preparing import prepare
from ..images.sam_frame import FRAME, LOW_RES, frame_size
from ..info import Labels
from ..prediction.predictor import Predictor
from ..progress import Progress
from ..tasks.prompt import BOTTOM_RIGHT, FOREGROUND, NOT_A_POINT, TOP_LEFT, PromptModel
from .cache import Cached
from .config import TrainConfig
from .distil import prompt_info
from .losses import mask_iou, mask_loss
from .sampled_prompts import MAX_POINTS, drawn_boxes, drawn_clicks, drawn_points

_BITS = 8
_PATCH = FRAME // LOW_RES  # pixels of the frame along a side of a mask's pixel
_EVEN = 0.5  # odds of a box, of three masks, of an earlier mask beside a click


@dataclass(frozen=True)
class Objects:
    """Images with the masks of their objects: ``data[i] -> ((H, W, 3) uint8, (N, H, W) bool)``; crowds left out."""

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

    Each image is asked by boxes (p = 0.5) or by 1 to 10 points inside the objects; then, ``clicks`` times, each answer
    gets a click on a mistake, half of the time beside the logits of the answer itself, as when somebody corrects a mask
    and as when clicks are all there is. Of an answer counts the mask for clear prompts or, with p = 0.5, the best of
    the three for ambiguous ones. All rounds count the same.

    The loss of a mask is :func:`~foveal.training.losses.mask_loss`; the expected IoU of all four learns the true one by
    squared error (arXiv 2304.02643, appendix A), which EfficientViT-SAM leaves out.

    Args:
        model: trained in place.
        clicks: rounds after the first.
        freeze_encoder: whether the image encoder, its norms' statistics included, stays as it is.
    """

    def __init__(self, model: PromptModel, clicks: int, freeze_encoder: bool) -> None:
        super().__init__()
        self.model, self.clicks, self.freeze_encoder = model, clicks, freeze_encoder
        if freeze_encoder:
            model.image_encoder.requires_grad_(False)
        if not clicks:  # no mask is ever given: several processes wait for a gradient of what may have one
            model.prompt_encoder.mask_downscaling.requires_grad_(False)

    def train(self, mode: bool = True) -> PromptTrainee:
        super().train(mode)
        if self.freeze_encoder:
            self.model.image_encoder.eval()
        return self

    def forward(self, image: Tensor, packed: Tensor) -> Tensor:
        total, count = [], 0
        for embedding, bits in zip(self.model.image_encoder(image), packed, strict=True):
            masks = unpacked(bits)
            there = masks.flatten(1).any(1)
            masks = masks[there] if there.any() else masks[:1]  # one that counts for nothing, so that all take part
            total.append(self._rounds(embedding[None], masks).sum() * bool(there.any()))
            count += int(there.sum())
        return torch.stack(total).sum() / max(1, count)

    def _rounds(self, embedding: Tensor, masks: Tensor) -> Tensor:
        """Loss of each of P objects of an image, the mean over rounds: ``(P,)``."""
        encoder, decoder = self.model.prompt_encoder, self.model.mask_decoder
        exact = torch.promote_types(embedding.dtype, torch.float32)  # autocast may have 16 bits
        share = F.avg_pool2d(masks[:, None].to(exact), _PATCH)[:, 0]
        true = share >= share.flatten(1).amax(1).clamp(max=0.5)[:, None, None].clamp(min=1e-6)
        points, labels, tail, kinds = self._first(masks)
        given, low_res = encoder.dense(None), None
        losses = []
        for number in range(self.clicks + 1):
            sparse = encoder.tokens(torch.cat([points, tail], 1), torch.cat([labels, kinds], 1))
            dense = given
            if low_res is not None:
                again = _drawn(len(masks), masks.device)[:, None, None, None]
                dense = torch.where(again, encoder.dense(low_res), given)
            logits, iou = decoder.all_masks(embedding, encoder.get_dense_pe(), sparse, dense)
            several = _drawn(len(masks), masks.device)
            losses.append(answer_loss(logits, iou, share, true, several))
            if number == self.clicks:
                break
            chosen = torch.where(several, 1 + iou[:, 1:].argmax(1), 0)
            low_res = logits.detach()[torch.arange(len(masks)), chosen][:, None]
            click, label = drawn_clicks(low_res[:, 0] > 0, true)
            points, labels = torch.cat([points, click], 1), torch.cat([labels, label], 1)
        return torch.stack(losses).mean(0)

    @staticmethod
    def _first(masks: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Points and labels, and what follows them: a box's corners, or the sign that there is none."""
        device, count = masks.device, len(masks)
        if _drawn(1, device):
            kinds = torch.tensor([[TOP_LEFT, BOTTOM_RIGHT]], device=device).expand(count, -1)
            return torch.zeros(count, 0, 2, device=device), kinds[:, :0], drawn_boxes(masks), kinds
        number = int(torch.randint(1, MAX_POINTS + 1, ()))
        labels = torch.full((count, number), FOREGROUND, device=device)
        kinds = torch.full((count, 1), NOT_A_POINT, device=device)
        return drawn_points(masks, number), labels, torch.zeros(count, 1, 2, device=device), kinds


def answer_loss(logits: Tensor, iou: Tensor, share: Tensor, true: Tensor, several: Tensor) -> Tensor:
    """Loss of the answers to P prompts, ``(P,)``.

    Args:
        logits: ``(P, 4, h, w)``, the mask for clear prompts first.
        iou: what the model expects, ``(P, 4)``.
        share: how much of each pixel the object covers, ``(P, h, w)``.
        true: its mask, ``(P, h, w)`` bool.
        several: whether the best of the last three counts, not the first, ``(P,)`` bool.
    """
    losses = mask_loss(logits, share)
    actual = mask_iou(logits.detach() > 0, true)
    expected = iou.to(losses.dtype)
    return torch.where(several, losses[:, 1:].amin(1), losses[:, 0]) + (expected - actual).square().mean(1)


def _drawn(count: int, device: torch.device) -> Tensor:
    return torch.rand(count, device=device) < _EVEN


def packed(masks: NDArray[np.bool_], count: int) -> NDArray[np.uint8]:
    """Masks of an image in the frame, eight pixels to a byte: ``(N, H, W) -> (count, 1024, 128)``, empty ones behind.

    Data loading processes hand them over in shared memory, of which there is little.
    """
    height, width = frame_size(masks.shape[1:])
    rows, columns = (
        ((np.arange(length) + 0.5) * side / length).astype(int)
        for length, side in zip((height, width), masks.shape[1:], strict=True)
    )
    frame = np.zeros((count, FRAME, FRAME), bool)
    frame[: len(masks), :height, :width] = masks[:, rows][:, :, columns]
    return np.packbits(frame, axis=-1)


def unpacked(bits: Tensor) -> Tensor:
    """What :func:`packed` packed: ``(K, 1024, 128) uint8 -> (K, 1024, 1024) bool``."""
    places = torch.arange(_BITS - 1, -1, -1, device=bits.device, dtype=torch.uint8)
    return ((bits[..., None] >> places) & 1).bool().flatten(-2)


class PromptJob:
    """Masks of single objects from prompts, see :class:`PromptTrainee`; box mIoU.

    A step sees up to ``config.prompts`` objects of each image, drawn anew each time. Held-out objects are asked for by
    their boxes; of the three masks the one with the highest expected IoU counts.
    """

    def __init__(self, root: str | Path, config: TrainConfig, progress: Progress) -> None:
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
        return torch.from_numpy(network_input), torch.from_numpy(packed(masks, config.prompts))

    def trainee(self, model: nn.Module) -> nn.Module:
        return PromptTrainee(cast(PromptModel, model), self.config.clicks, self.config.freeze_encoder)

    def weight(self, target: Tensor) -> Tensor:
        return target.flatten(2).any(2).sum().to(torch.float32)

    def loss(self, trainee: nn.Module, image: Tensor, target: Tensor) -> Tensor:
        return trainee(image, target)

    def score(self, predictor: Predictor, indices: Sequence[int]) -> NDArray[np.int64]:
        """Objects, and the sum of their IoU in millionths."""
        assert self.held_out is not None
        counts = np.zeros(2, np.int64)
        for index in indices:
            image, instances = self.held_out[index]
            instances = [instance for instance in instances if not instance.iscrowd]
            if not instances:
                continue
            found = predictor.encode(image).prompt(boxes=[instance.box for instance in instances]).best
            for mask, instance in zip(found, instances, strict=True):
                iou = (mask & instance.mask).sum() / (mask | instance.mask).sum()
                counts += (1, round(1e6 * float(iou)))
        return counts

    def scores(self, counts: NDArray[np.int64]) -> PromptScores:
        objects, total = map(int, counts)
        return PromptScores(objects, total / 1e6 / objects if objects else float("nan"))


@dataclass(frozen=True)
class PromptScores:
    """How well objects are found by their boxes.

    Attributes:
        objects: how many.
        box_miou: mean over objects of the IoU.
    """

    objects: int
    box_miou: float

    @property
    def headline(self) -> tuple[str, float]:
        return "box_miou", self.box_miou

    def to_dict(self) -> dict[str, Any]:
        return {"box_miou": round(self.box_miou, 6)}
