"""Promptable segmentation: any backbone as the image encoder of a Segment Anything model (arXiv 2304.02643).

The parts and the names of their parameters are SAM's, so that its checkpoints and those of its descendants (MobileSAM,
arXiv 2306.14289; EfficientViT-SAM, arXiv 2402.05008) load without renaming. Coordinates of prompts are in a frame of
1024 x 1024, whatever the size of the encoder's input.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import ConfigError, InputError
from ..images.preparing import long_side_size
from ..images.sam_frame import FRAME
from ..info import Preprocess, info_of
from ..layers.conv import Activation, FusedInvertedResidual, LayerNorm2d, set_convention
from ..models.registry import Backbone, FeatureInfo
from .builder import Builder, Request
from .mask_decoder import EMBED_DIM, MaskDecoder
from .segment import SegmentationHead

GRID = 64  #: side of an embedding
#: The neck for backbones without a published one.
DEFAULT_NECK = {"depth": 2, "expand_ratio": 1, "norm_eps": 1e-5}
_GELU = partial(nn.GELU, approximate="tanh")
NOT_A_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3  #: labels of points


class PyramidNeck(nn.Module):
    """Fuse the three coarsest feature maps to an embedding, as EfficientViT-SAM does (arXiv 2402.05008, section 3).

    ``[maps] -> (B, 256, h, w)`` at the finest of the three strides.

    Args:
        feature_info: feature maps of the backbone, finest first.
        depth: number of fused inverted residuals on the fused map.
        expand_ratio: expansion inside them.
        norm_eps: epsilon of the batch norms.
        act: activation.
    """

    def __init__(
        self,
        feature_info: Sequence[FeatureInfo],
        *,
        depth: int,
        expand_ratio: float,
        norm_eps: float,
        act: Activation = _GELU,
    ) -> None:
        super().__init__()
        # A segmentation head fuses maps in the same way; its "classes" are the channels of the embedding.
        self.fuse = SegmentationHead(
            feature_info,
            EMBED_DIM,
            width=EMBED_DIM,
            depth=depth,
            block=FusedInvertedResidual,
            expand_ratio=expand_ratio,
            final_expand=None,
            act=act,
            norm_eps=norm_eps,
        )
        self.norm = LayerNorm2d(EMBED_DIM)
        self.stride = self.fuse.stride

    def forward(self, maps: list[Tensor]) -> Tensor:
        return self.norm(self.fuse(maps))


class PlainNeck(nn.Sequential):
    """SAM's own neck, on the coarsest feature map only: ``[maps] -> (B, 256, h, w)``."""

    def __init__(self, feature_info: Sequence[FeatureInfo]) -> None:
        super().__init__(
            nn.Conv2d(feature_info[-1].channels, EMBED_DIM, 1, bias=False),
            LayerNorm2d(EMBED_DIM),
            nn.Conv2d(EMBED_DIM, EMBED_DIM, 3, padding=1, bias=False),
            LayerNorm2d(EMBED_DIM),
        )
        self.stride = feature_info[-1].stride

    def forward(self, input: list[Tensor]) -> Tensor:
        return super().forward(input[-1])


class ImageEncoder(nn.Module):
    """Backbone and neck: ``(B, in_chans, size, size) -> (B, 256, 64, 64)``.

    Attributes:
        size: side of the input, in pixels.
        img_size: side of the frame, the name and meaning that SAM's programs expect.

    Raises:
        InputError: an input of another size.
    """

    img_size = FRAME

    def __init__(self, backbone: Backbone, neck: PyramidNeck | PlainNeck) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.size = GRID * neck.stride

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != (self.size, self.size):
            raise InputError(
                f"this image encoder takes images of {self.size}x{self.size} pixels, not {x.shape[-2]}x{x.shape[-1]}: "
                "resize the long side to that and pad with zeros, or let foveal.load(...).encode(image) do it"
            )
        return self.neck(self.backbone(x))

    def fingerprint(self) -> str:
        """Hash of the last layers of the neck, 16 hexadecimal digits: it identifies the encoder of an embedding.

        Training changes these layers; folding batch norms does not.
        """
        last = [part for part in self.neck.modules() if isinstance(part, nn.Conv2d | LayerNorm2d)][-2:]
        digest = hashlib.sha256()
        for part in last:
            for tensor in part.parameters():
                # In float16, so that a float32 and a float16 model have the same fingerprint.
                digest.update(tensor.detach().cpu().half().contiguous().numpy().tobytes())
        return digest.hexdigest()[:16]


class _FourierPosition(nn.Module):
    """Random Fourier features of positions: ``(..., 2)`` x and y of 0..1 ``-> (..., channels)``."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, channels // 2))

    def forward(self, xy: Tensor) -> Tensor:
        stored = self.positional_encoding_gaussian_matrix
        matrix = stored if stored.dtype == torch.float64 else stored.float()  # 16 bits cannot distinguish pixels
        angles = 2 * math.pi * ((2 * xy.to(matrix.dtype) - 1) @ matrix)
        return torch.cat([angles.sin(), angles.cos()], -1).to(stored.dtype)


class PromptEncoder(nn.Module):
    """Encode points and boxes as tokens, and masks as a feature map (arXiv 2304.02643, appendix A).

    Args:
        mask_in_chans: hidden channels of the convolutions on masks.
    """

    embed_dim = EMBED_DIM  # SAM's names, which programs for it read
    image_embedding_size = (GRID, GRID)

    def __init__(self, mask_in_chans: int = 16) -> None:
        super().__init__()
        self.pe_layer = _FourierPosition(EMBED_DIM)
        self.point_embeddings = nn.ModuleList(nn.Embedding(1, EMBED_DIM) for _ in range(4))  # by label
        self.not_a_point_embed = nn.Embedding(1, EMBED_DIM)
        quarter = mask_in_chans // 4
        self.mask_downscaling = nn.Sequential(
            nn.Conv2d(1, quarter, 2, 2),
            LayerNorm2d(quarter),
            nn.GELU(),
            nn.Conv2d(quarter, mask_in_chans, 2, 2),
            LayerNorm2d(mask_in_chans),
            nn.GELU(),
            nn.Conv2d(mask_in_chans, EMBED_DIM, 1),
        )
        self.no_mask_embed = nn.Embedding(1, EMBED_DIM)

    def get_dense_pe(self) -> Tensor:
        """Positional encoding of an image embedding, ``(1, 256, 64, 64)``."""
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        centres = (torch.arange(GRID, device=matrix.device) + 0.5) / GRID
        y, x = torch.meshgrid(centres, centres, indexing="ij")
        return self.pe_layer(torch.stack([x, y], -1)).permute(2, 0, 1)[None]

    def forward(
        self,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Encode P prompts.

        Args:
            points: ``(P, N, 2)`` x and y in the 1024 frame, and ``(P, N)`` labels: 1 foreground, 0 background, 2 and 3
                the top left and the bottom right corner of a box, -1 no point. Without boxes, a point of label -1 is
                appended.
            boxes: ``(P, 4)`` or ``(P, 1, 4)`` x1, y1, x2, y2 in the 1024 frame.
            masks: ``(P, 1, 256, 256)`` logits.

        Returns:
            Tokens ``(P, N', 256)``, and a map to add to the image embedding, ``(P, 256, 64, 64)``.

        Raises:
            InputError: neither points nor boxes nor masks, or different numbers of them.
        """
        like = self.no_mask_embed.weight
        prompts = [x for x in (points[0] if points else None, boxes, masks) if x is not None]
        if not prompts:
            raise InputError("no prompt: give points, boxes or masks")
        batch = prompts[0].shape[0]
        if any(len(x) != batch for x in prompts[1:]):
            counts = ", ".join(str(len(x)) for x in prompts)
            raise InputError(
                f"points, boxes and masks are for different numbers of prompts ({counts}): give one of each"
            )
        tokens = [like.new_empty(batch, 0, EMBED_DIM)]
        if points is not None:
            coords, labels = points
            if boxes is None:
                coords = torch.cat([coords, coords.new_zeros(batch, 1, 2)], 1)
                labels = torch.cat([labels, labels.new_full((batch, 1), NOT_A_POINT)], 1)
            tokens.append(self.tokens(coords, labels))
        if boxes is not None:
            corners = boxes.reshape(batch, 2, 2)
            tokens.append(self.tokens(corners, torch.tensor([[TOP_LEFT, BOTTOM_RIGHT]], device=boxes.device)))
        return torch.cat(tokens, 1), self.dense(masks, batch)

    def tokens(self, coords: Tensor, labels: Tensor) -> Tensor:
        """Encode points ``(P, N, 2)`` with ``labels`` ``(P, N)`` or ``(1, N)`` as tokens ``(P, N, 256)``."""
        kinds = torch.cat([self.not_a_point_embed.weight, *self.point_embeddings.parameters()])
        position = self.pe_layer((coords + 0.5) / FRAME)  # centre of the pixel
        position = torch.where((labels == NOT_A_POINT)[..., None], torch.zeros_like(position), position)
        return position + kinds[labels.long() + 1]

    def dense(self, masks: Tensor | None, batch: int = 1) -> Tensor:
        """Encode masks ``(P, 1, 256, 256)``, or their absence, as an addend of the embedding, ``(P, 256, 64, 64)``."""
        if masks is not None:
            return self.mask_downscaling(masks.to(self.no_mask_embed.weight.dtype))
        return self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(batch, -1, GRID, GRID)


class PromptModel(nn.Module):
    """Image encoder, prompt encoder and mask decoder.

    ``forward(x, points, labels, boxes, masks, multimask)`` predicts masks for P prompts on each of B images: ``x``
    ``(B, in_chans, size, size)``, ``points`` ``(B, P, N, 2)`` with ``labels`` ``(B, P, N)``, ``boxes`` ``(B, P, 4)``,
    ``masks`` ``(B, P, 256, 256)`` logits, all in the 1024 frame. It returns mask logits ``(B, P, M, 256, 256)`` and
    predicted IoU ``(B, P, M)``; M is 3, or 1 with ``multimask=False``.

    Raises:
        InputError: no image, one of another size, no prompt, or prompts for another number of images.
    """

    mask_threshold = 0.0  # SAM's names, which programs for it read
    image_format = "RGB"

    def __init__(self, image_encoder: ImageEncoder, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.image_encoder, self.prompt_encoder, self.mask_decoder = image_encoder, prompt_encoder, mask_decoder

    @property
    def backbone(self) -> Backbone:
        """The backbone of the image encoder."""
        return self.image_encoder.backbone

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.prompt_encoder.no_mask_embed.weight.device

    def preprocess(self, x: Tensor) -> Tensor:
        """Prepare images in the frame for the image encoder, as SAM's models do; see :func:`encoder_input`."""
        return encoder_input(x, info_of(self).preprocess).to(self.prompt_encoder.no_mask_embed.weight)

    def postprocess_masks(self, masks: Tensor, input_size: tuple[int, int], original_size: tuple[int, int]) -> Tensor:
        """Resize mask logits ``(P, M, 256, 256)`` to the size (H, W) of the image, as SAM's models do.

        Args:
            masks: logits.
            input_size: (H, W) of the image in the frame.
            original_size: (H, W) of the image.
        """
        masks = F.interpolate(masks, (FRAME, FRAME), mode="bilinear")[..., : input_size[0], : input_size[1]]
        return F.interpolate(masks, original_size, mode="bilinear")

    def forward(
        self,
        x: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
    ) -> tuple[Tensor, Tensor]:
        if not len(x):
            raise InputError("no images: give one or more")
        if (points is None) != (labels is None):
            raise InputError("points and labels go together: one label (1 foreground, 0 background) for each point")
        for name, prompts in (("points", points), ("labels", labels), ("boxes", boxes), ("masks", masks)):
            if prompts is not None and len(prompts) != len(x):
                raise InputError(f"{name} for {len(prompts)} images, but {len(x)} are given: give one entry for each")
        decoded = [
            self.decode(
                image[None],
                None if points is None or labels is None else (points[i], labels[i]),
                None if boxes is None else boxes[i],
                None if masks is None else masks[i][:, None],
                multimask,
            )
            for i, image in enumerate(self.image_encoder(x))
        ]
        logits, iou = zip(*decoded, strict=True)
        return torch.stack(logits), torch.stack(iou)

    def decode(
        self,
        embedding: Tensor,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Predict masks for P prompts on one image embedding ``(1, 256, 64, 64)``.

        Args and returns: as :class:`PromptEncoder` and :class:`MaskDecoder`.
        """
        sparse, dense = self.prompt_encoder(points, boxes, masks)
        if masks is None:
            dense = dense[:1]  # the same for all prompts: the decoder then computes it once, not P times
        return self.mask_decoder(embedding, self.prompt_encoder.get_dense_pe(), sparse, dense, multimask)


def encoder_input(x: Tensor, preprocess: Preprocess) -> Tensor:
    """Prepare images in the frame for the image encoder: resize, normalise, pad with zeros at the right and bottom.

    Args:
        x: ``(3, H, W)`` or ``(B, 3, H, W)`` of 0..255, with a long side of 1024 or that of the encoder's input.
        preprocess: that of the model.

    Returns:
        ``(B, 3, size, size)``.
    """
    assert preprocess.size is not None  # promptable models have a fixed input size
    side = max(preprocess.size)
    x = (x if x.ndim == 4 else x[None]).float()
    if max(x.shape[2:]) != side:
        x = F.interpolate(x, long_side_size(x.shape[2], x.shape[3], side), mode="bilinear", antialias=True)
    mean, std = (x.new_tensor(values)[:, None, None] for values in (preprocess.mean, preprocess.std))
    return F.pad((x / 255 - mean) / std, (0, side - x.shape[3], 0, side - x.shape[2]))


def build(
    backbone: Backbone, *, plain: bool = False, norm_eps: float = 1e-5, backbone_eps: float | None = None, **neck: Any
) -> PromptModel:
    """Build a promptable model around ``backbone``.

    Args:
        backbone: an image backbone.
        plain: whether the neck is SAM's own (:class:`PlainNeck`) instead of :class:`PyramidNeck`.
        norm_eps: epsilon of the norms after the backbone, except those of :class:`LayerNorm2d`.
        backbone_eps: epsilon of the batch norms in the backbone; ``None``: unchanged.
        **neck: further arguments of :class:`PyramidNeck`.
    """
    if backbone_eps is not None:
        set_convention(backbone, norm_eps=backbone_eps)
    info = backbone.feature_info
    encoder = ImageEncoder(backbone, PlainNeck(info) if plain else PyramidNeck(info, norm_eps=norm_eps, **neck))
    return PromptModel(encoder, PromptEncoder(), MaskDecoder(norm_eps))


def _count_classes(request: Request) -> int:
    if request.num_classes:
        raise ConfigError(
            f"num_classes={request.num_classes}: {request.name} for task='prompt' segments the objects that prompts "
            "point at, without classes; leave it out"
        )
    return 0


def _preprocess(model: nn.Module, known: Preprocess | None) -> Preprocess:
    """Fit images into the encoder's own input size, whatever that of the weights it starts from."""
    return Preprocess.of_prompts(model.image_encoder.size) if isinstance(model, PromptModel) else Preprocess()


BUILDER = Builder(
    lambda backbone, request: build(backbone, **(request.variant.prompt or DEFAULT_NECK)),
    _count_classes,
    preprocess=_preprocess,
)
