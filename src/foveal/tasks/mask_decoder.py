"""SAM's mask decoder (arXiv 2304.02643, appendix A): the same masks, with fewer products than its formulas have.

Few tokens, of prompts and masks, and the many places of an image attend to each other; what the tokens then say of each
place becomes masks.
"""

from __future__ import annotations

import itertools
import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.conv import LayerNorm2d

EMBED_DIM = 256  #: channels of an image's embedding and of tokens
EMPTY = -1000.0  #: logit of every pixel of a mask that was not drawn


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
