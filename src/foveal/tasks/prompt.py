"""Segmentation of what is pointed at: any backbone as the eye of the Segment Anything Model (arXiv 2304.02643).

Parts and names of their parameters are SAM's, so that its checkpoints and those of its descendants (MobileSAM, arXiv
2306.14289; EfficientViT-SAM, arXiv 2402.05008) load as they are. Prompts live in a frame of 1024 x 1024, whatever the
side of the encoder's input.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections.abc import Sequence
from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InputError
from ..layers.conv import Activation, FusedInvertedResidual, LayerNorm2d, set_convention
from ..mask_results import FRAME
from ..registry import Backbone, FeatureInfo
from .segment import SegmentationHead

GRID = 64  #: side of an embedding
EMBED_DIM = 256
EMPTY = -1000.0  #: logit of every pixel of a mask that was not drawn
#: The neck for backbones without a published one.
DEFAULT_NECK = {"depth": 2, "expand_ratio": 1, "norm_eps": 1e-5}
_GELU = partial(nn.GELU, approximate="tanh")
NOT_A_POINT, BACKGROUND, FOREGROUND, TOP_LEFT, BOTTOM_RIGHT = -1, 0, 1, 2, 3  #: labels of points


class PyramidNeck(nn.Module):
    """Fuse a pyramid's three coarsest maps into an embedding, as EfficientViT-SAM does (arXiv 2402.05008, section 3).

    ``[maps] -> (B, 256, h, w)`` at the finest of the three strides.

    Args:
        feature_info: pyramid of the backbone, finest first.
        depth: fused inverted residuals on the fused map.
        expand_ratio: their expansion.
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
        # A segmentation head fuses in the same way; what would be its classes are the embedding's channels.
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
    """SAM's own neck, on the coarsest map alone: ``[maps] -> (B, 256, h, w)``."""

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

    Raises:
        InputError: an input of another size.
    """

    def __init__(self, backbone: Backbone, neck: PyramidNeck | PlainNeck) -> None:
        super().__init__()
        self.backbone, self.neck = backbone, neck
        self.size = GRID * neck.stride

    def forward(self, x: Tensor) -> Tensor:
        if tuple(x.shape[-2:]) != (self.size, self.size):
            raise InputError(
                f"this image encoder sees squares of {self.size} pixels, not {x.shape[-2]}x{x.shape[-1]}: shrink the "
                "long side to that and pad with zeros, or let foveal.load(...).encode(image) do it"
            )
        return self.neck(self.backbone(x))

    def fingerprint(self) -> str:
        """Tells encoders apart by what training changes and folding batch norms does not: the end of the neck."""
        last = [part for part in self.neck.modules() if isinstance(part, nn.Conv2d | LayerNorm2d)][-2:]
        found = hashlib.sha256()
        for part in last:
            for tensor in part.parameters():
                # In float16, so that a model has one fingerprint in either precision.
                found.update(tensor.detach().cpu().half().contiguous().numpy().tobytes())
        return found.hexdigest()[:16]


class _FourierPosition(nn.Module):
    """Random Fourier features of positions: ``(..., 2)`` x and y of 0..1 ``-> (..., channels)``."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, channels // 2))

    def forward(self, xy: Tensor) -> Tensor:
        stored = self.positional_encoding_gaussian_matrix
        matrix = stored if stored.dtype == torch.float64 else stored.float()  # 16 bits cannot tell pixels apart
        angles = 2 * math.pi * ((2 * xy.to(matrix.dtype) - 1) @ matrix)
        return torch.cat([angles.sin(), angles.cos()], -1).to(stored.dtype)


class PromptEncoder(nn.Module):
    """Points, boxes and masks as tokens and as a map (arXiv 2304.02643, appendix A).

    Args:
        mask_in_chans: channels in the middle of the mask's convolutions.
    """

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
        """Encoded position of each place of an embedding, ``(1, 256, 64, 64)``."""
        matrix = self.pe_layer.positional_encoding_gaussian_matrix
        at = (torch.arange(GRID, device=matrix.device) + 0.5) / GRID
        y, x = torch.meshgrid(at, at, indexing="ij")
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
                a box's top left and bottom right corner, -1 nothing. Where no box is given, a -1 is added behind.
            boxes: ``(P, 4)`` or ``(P, 1, 4)`` x1, y1, x2, y2 in the 1024 frame.
            masks: ``(P, 1, 256, 256)`` logits.

        Returns:
            Tokens ``(P, N', 256)``, and what is added to the image's embedding, ``(P, 256, 64, 64)``.

        Raises:
            InputError: neither points nor boxes nor masks.
        """
        like = self.no_mask_embed.weight
        given = next((x for x in (points[0] if points else None, boxes, masks) if x is not None), None)
        if given is None:
            raise InputError("no prompt: give points, boxes or masks")
        batch = given.shape[0]
        if any(len(x) != batch for x in (boxes, masks) if x is not None):
            raise InputError("points, boxes and masks are for different numbers of prompts: give one of each")
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
        """Points ``(P, N, 2)`` of ``labels`` ``(P, N)`` or ``(1, N)``, nothing added: ``(P, N, 256)``."""
        kinds = torch.cat([self.not_a_point_embed.weight, *self.point_embeddings.parameters()])
        position = self.pe_layer((coords + 0.5) / FRAME)  # of the pixel's centre
        position = torch.where((labels == NOT_A_POINT)[..., None], torch.zeros_like(position), position)
        return position + kinds[labels.long() + 1]

    def dense(self, masks: Tensor | None, batch: int = 1) -> Tensor:
        """What masks, or that there are none, add to an embedding: ``(P, 256, 64, 64)``."""
        if masks is not None:
            return self.mask_downscaling(masks.to(self.no_mask_embed.weight.dtype))
        return self.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(batch, -1, GRID, GRID)


class _Attention(nn.Module):
    """Multi-head attention at a width of its own: ``(P, N, C)`` queries, ``(P or 1, L, C)`` keys and values.

    What attends to or from an image is computed without projecting the image where that takes fewer products: a few
    tokens carry the projections of all heads to its 4096 places, instead of the places to the tokens. The result is
    the same but for rounding.
    """

    def __init__(self, embed_dim: int, num_heads: int, inner_dim: int) -> None:
        super().__init__()
        self.num_heads, self.scale = num_heads, (inner_dim // num_heads) ** -0.5
        self.q_proj = nn.Linear(embed_dim, inner_dim)
        self.k_proj = nn.Linear(embed_dim, inner_dim)
        self.v_proj = nn.Linear(embed_dim, inner_dim)
        self.out_proj = nn.Linear(inner_dim, embed_dim)

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch = max(q.shape[0], k.shape[0])
        query, key, value = (
            self._heads(project(x)).expand(batch, -1, -1, -1)
            for project, x in ((self.q_proj, q), (self.k_proj, k), (self.v_proj, v))
        )
        found = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(found.transpose(1, 2).flatten(2))

    def to_image(self, tokens: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Few queries, many keys and values: ``(P, N, C)``."""
        if not self._few(tokens) or _shared(k, tokens):
            return self(tokens, k, v)
        share = self._scores(self.q_proj(tokens), k, self.k_proj).softmax(-1)
        seen = (share.flatten(1, 2) @ v).unflatten(1, (self.num_heads, -1))
        found = seen @ self._by_head(self.v_proj.weight).mT
        return self.out_proj(found.transpose(1, 2).flatten(2) + self.v_proj.bias)

    def from_image(self, q: Tensor, tokens: Tensor, v: Tensor) -> Tensor:
        """Many queries, few keys and values: ``(P, L, C)``."""
        if not self._few(tokens):
            return self(q, tokens, v)
        keys = self.k_proj(tokens)
        if _shared(q, tokens):
            scores = self._heads(keys) * self.scale @ self._heads(self.q_proj(q)).mT
        else:
            scores = self._scores(keys, q, self.q_proj)
        told = self._heads(self.v_proj(v)) @ self._by_head(self.out_proj.weight.mT)
        # The shares of a head add up to one: a bias in what its tokens say is in every answer.
        told = told + F.pad(self.out_proj.bias[None, None], (0, 0, 0, 0, 0, self.num_heads - 1))
        return scores.softmax(2).flatten(1, 2).mT @ told.flatten(1, 2)

    def _scores(self, tokens: Tensor, image: Tensor, projection: nn.Linear) -> Tensor:
        """Projected tokens by ``image``, as if that had been projected: ``(P, heads, N, L)``."""
        scaled = self._heads(tokens) * self.scale
        wanted, shift = scaled @ self._by_head(projection.weight), scaled @ self._heads(projection.bias[None, None]).mT
        return (wanted.flatten(1, 2) @ image.mT).unflatten(1, (self.num_heads, -1)) + shift

    def _few(self, tokens: Tensor) -> bool:
        """Whether the tokens of all heads are fewer than the channels that a place is projected to."""
        return torch.compiler.is_exporting() or tokens.shape[1] * self.num_heads < self.q_proj.out_features

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _by_head(self, weight: Tensor) -> Tensor:
        """``(inner_dim, C) -> (heads, inner_dim / heads, C)``."""
        return weight.unflatten(0, (self.num_heads, -1))


def _shared(image: Tensor, tokens: Tensor) -> bool:
    """Whether one image is for several prompts: to project it once is less than once for each."""
    return image.shape[0] != tokens.shape[0]


class _Mlp(nn.Module):
    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(embed_dim, hidden_dim), nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class _TwoWayBlock(nn.Module):
    """Tokens among themselves, tokens to the image, each token alone, the image to the tokens; norms behind."""

    def __init__(self, first: bool, norm_eps: float, num_heads: int = 8, mlp_dim: int = 2048) -> None:
        super().__init__()
        self.first = first
        self.self_attn = _Attention(EMBED_DIM, num_heads, EMBED_DIM)
        self.norm1 = nn.LayerNorm(EMBED_DIM, eps=norm_eps)
        self.cross_attn_token_to_image = _Attention(EMBED_DIM, num_heads, EMBED_DIM // 2)
        self.norm2 = nn.LayerNorm(EMBED_DIM, eps=norm_eps)
        self.mlp = _Mlp(EMBED_DIM, mlp_dim)
        self.norm3 = nn.LayerNorm(EMBED_DIM, eps=norm_eps)
        self.norm4 = nn.LayerNorm(EMBED_DIM, eps=norm_eps)
        self.cross_attn_image_to_token = _Attention(EMBED_DIM, num_heads, EMBED_DIM // 2)

    def forward(self, tokens: Tensor, image: Tensor, token_pe: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        if self.first:  # the tokens are their own positions still
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            placed = tokens + token_pe
            tokens = tokens + self.self_attn(placed, placed, tokens)
        tokens = self.norm1(tokens)
        placed = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image.to_image(tokens + token_pe, placed, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        change = self.cross_attn_image_to_token.from_image(placed, tokens + token_pe, tokens)
        image = self.norm4(change.add_(image))  # in place, as below: these are the large ones
        return tokens, image


class _TwoWayTransformer(nn.Module):
    """Tokens ``(P, N, C)`` and an image ``(P or 1, L, C)`` that attend to each other."""

    def __init__(self, depth: int, norm_eps: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_TwoWayBlock(i == 0, norm_eps) for i in range(depth))
        self.final_attn_token_to_image = _Attention(EMBED_DIM, 8, EMBED_DIM // 2)
        self.norm_final_attn = nn.LayerNorm(EMBED_DIM, eps=norm_eps)

    def forward(self, tokens: Tensor, image: Tensor, image_pe: Tensor) -> tuple[Tensor, Tensor]:
        token_pe = tokens
        for layer in self.layers:
            tokens, image = layer(tokens, image, token_pe, image_pe)
        seen = self.final_attn_token_to_image.to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + seen), image


class _Perceptron(nn.Module):
    """Linear layers with ReLU between."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


_Upscaling = tuple[nn.ConvTranspose2d, LayerNorm2d, nn.GELU, nn.ConvTranspose2d, nn.GELU]


class MaskDecoder(nn.Module):
    """Masks and how good they will be, from an image's embedding and encoded prompts (arXiv 2304.02643, appendix A).

    Args:
        norm_eps: epsilon of the transformer's layer norms: 1e-5 in SAM and MobileSAM, 1e-6 in EfficientViT-SAM.
        num_multimask_outputs: masks of an ambiguous prompt, beside the one of a clear prompt.
        depth: of the transformer.
    """

    def __init__(self, norm_eps: float = 1e-5, num_multimask_outputs: int = 3, depth: int = 2) -> None:
        super().__init__()
        masks = num_multimask_outputs + 1
        self.transformer = _TwoWayTransformer(depth, norm_eps)
        self.iou_token = nn.Embedding(1, EMBED_DIM)
        self.mask_tokens = nn.Embedding(masks, EMBED_DIM)
        self.output_upscaling = nn.Sequential(
            nn.ConvTranspose2d(EMBED_DIM, EMBED_DIM // 4, 2, 2),
            LayerNorm2d(EMBED_DIM // 4),
            nn.GELU(),
            nn.ConvTranspose2d(EMBED_DIM // 4, EMBED_DIM // 8, 2, 2),
            nn.GELU(),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(
            _Perceptron(EMBED_DIM, EMBED_DIM, EMBED_DIM, EMBED_DIM // 8) for _ in range(masks)
        )
        self.iou_prediction_head = _Perceptron(EMBED_DIM, EMBED_DIM, EMBED_DIM, masks)

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: Tensor,
        sparse_prompt_embeddings: Tensor,
        dense_prompt_embeddings: Tensor,
        multimask_output: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Decode P prompts.

        Args:
            image_embeddings: of one image for all prompts or of one for each, ``(1 or P, 256, 64, 64)``.
            image_pe: encoded positions, ``(1, 256, 64, 64)``.
            sparse_prompt_embeddings: ``(P, N, 256)``.
            dense_prompt_embeddings: ``(1 or P, 256, 64, 64)``; with one of either, what the prompts share is computed
                once.
            multimask_output: the masks for ambiguous prompts, else the one for clear ones.

        Returns:
            Mask logits ``(P, M, 256, 256)`` and predicted IoU ``(P, M)``; M is 3 or 1.
        """
        masks, iou = self.all_masks(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        chosen = slice(1, None) if multimask_output else slice(0, 1)
        return masks[:, chosen], iou[:, chosen]

    def all_masks(
        self, image: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, least_iou: float = -math.inf
    ) -> tuple[Tensor, Tensor]:
        """The masks of clear and of ambiguous prompts, in this order: ``(P, 4, 256, 256)`` and ``(P, 4)``.

        Of a prompt for which none of the masks of ambiguous ones promises more than ``least_iou`` no mask is drawn: its
        logits are all :data:`EMPTY`. That is half of what a prompt costs.
        """
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(sparse.shape[0], -1, -1), sparse], 1)
        place = (image + dense).flatten(2).transpose(1, 2).contiguous()
        tokens, place = self.transformer(tokens, place, image_pe.flatten(2).transpose(1, 2))
        weights = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], 1)
        iou = self.iou_prediction_head(tokens[:, 0])
        if least_iou == -math.inf:
            return self._masks(place, weights, image.shape[-2:]), iou
        drawn = (iou[:, 1:] > least_iou).any(1)
        masks = self._masks(place[drawn], weights[drawn], image.shape[-2:])
        return masks.new_full((len(iou), *masks.shape[1:]), EMPTY).index_put((drawn,), masks), iou

    def _masks(self, place: Tensor, weights: Tensor, grid: tuple[int, ...]) -> Tensor:
        """``(P, h * w, C)`` places and ``(P, M, c)`` weights of their pixels give ``(P, M, 4 * h, 4 * w)`` logits."""
        masks = self._pixels(place, weights).unflatten(2, (2, 2, 2, 2)).unflatten(1, grid)
        masks = masks.permute(0, 7, 1, 3, 5, 2, 4, 6)
        return masks.reshape(*masks.shape[:2], 4 * grid[0], 4 * grid[1])

    def _pixels(self, place: Tensor, weights: Tensor) -> Tensor:
        """Logits of the 4 x 4 pixels of each place: ``(P, L, C), (P, M, c) -> (P, L, 16, M)``.

        ``output_upscaling`` has no pixel depend on another place, so all of it are products of matrices, channels last,
        and only the masks are put into rows.
        """
        first, norm, act, second, last = cast(_Upscaling, tuple(self.output_upscaling))
        x = _split(place, first)
        x = act(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        return (last(_split(x, second)).flatten(1, 3) @ weights.mT).unflatten(1, (-1, 16))


def _split(x: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """A transposed convolution whose kernel is its stride, place by place: ``(..., C) -> (..., 2 * 2, out)``."""
    weight = conv.weight.permute(0, 2, 3, 1)
    assert conv.bias is not None
    return (x @ weight.flatten(1)).unflatten(-1, (-1, conv.out_channels)).add_(conv.bias)


class PromptModel(nn.Module):
    """Image encoder, prompt encoder and mask decoder.

    ``forward(x, points, labels, boxes, masks, multimask)`` answers P prompts to each of B images: ``x``
    ``(B, in_chans, size, size)``, ``points`` ``(B, P, N, 2)`` with ``labels`` ``(B, P, N)``, ``boxes`` ``(B, P, 4)``,
    ``masks`` ``(B, P, 256, 256)`` logits, all in the 1024 frame. It returns mask logits ``(B, P, M, 256, 256)`` and
    predicted IoU ``(B, P, M)``, where M is 3, or 1 with ``multimask=False``.

    Raises:
        InputError: an image of another size, or no prompt.
    """

    def __init__(self, image_encoder: ImageEncoder, prompt_encoder: PromptEncoder, mask_decoder: MaskDecoder) -> None:
        super().__init__()
        self.image_encoder, self.prompt_encoder, self.mask_decoder = image_encoder, prompt_encoder, mask_decoder

    @property
    def backbone(self) -> Backbone:
        """Of the image encoder."""
        return self.image_encoder.backbone

    def forward(
        self,
        x: Tensor,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
    ) -> tuple[Tensor, Tensor]:
        if (points is None) != (labels is None):
            raise InputError("points and labels go together: one label (1 foreground, 0 background) for each point")
        for name, given in (("points", points), ("labels", labels), ("boxes", boxes), ("masks", masks)):
            if given is not None and len(given) != len(x):
                raise InputError(f"{name} for {len(given)} images, but {len(x)} are given")
        found = [
            self.decode(
                image[None],
                None if points is None or labels is None else (points[i], labels[i]),
                None if boxes is None else boxes[i],
                None if masks is None else masks[i][:, None],
                multimask,
            )
            for i, image in enumerate(self.image_encoder(x))
        ]
        logits, iou = zip(*found, strict=True)
        return torch.stack(logits), torch.stack(iou)

    def decode(
        self,
        embedding: Tensor,
        points: tuple[Tensor, Tensor] | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
        multimask: bool = True,
    ) -> tuple[Tensor, Tensor]:
        """Answer P prompts to one embedding ``(1, 256, 64, 64)``: :class:`PromptEncoder`, :class:`MaskDecoder`."""
        sparse, dense = self.prompt_encoder(points, boxes, masks)
        if masks is None:
            dense = dense[:1]  # the same for all: the decoder starts from one image, not from P
        return self.mask_decoder(embedding, self.prompt_encoder.get_dense_pe(), sparse, dense, multimask)


def build(
    backbone: Backbone, *, plain: bool = False, norm_eps: float = 1e-5, backbone_eps: float | None = None, **neck: Any
) -> PromptModel:
    """A promptable model around ``backbone``.

    Args:
        backbone: of images.
        plain: whether the neck is SAM's own.
        norm_eps: epsilon of the norms behind the backbone, :class:`LayerNorm2d` apart.
        backbone_eps: of the batch norms in the backbone; ``None``: as it has them.
        **neck: further arguments of :class:`PyramidNeck`.
    """
    if backbone_eps is not None:
        set_convention(backbone, norm_eps=backbone_eps)
    info = backbone.feature_info
    encoder = ImageEncoder(backbone, PlainNeck(info) if plain else PyramidNeck(info, norm_eps=norm_eps, **neck))
    return PromptModel(encoder, PromptEncoder(), MaskDecoder(norm_eps))
