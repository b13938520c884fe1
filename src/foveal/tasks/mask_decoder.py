"""SAM's mask decoder (arXiv 2304.02643, appendix A): the same masks, with fewer multiplications than its formulas.

A few tokens (of prompts and masks) and the many positions of an image embedding attend to each other. The products of
the mask tokens with the upsampled embedding are the masks.
"""

from __future__ import annotations

import itertools
import math
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..layers.conv import LayerNorm2d

EMBED_DIM = 256  #: channels of an image embedding and of tokens
EMPTY = -1000.0  #: logit of every pixel of a mask that was not computed


class _Attention(nn.Module):
    """Multi-head attention with its own inner width: ``(P, N, C)`` queries, ``(P or 1, L, C)`` keys and values.

    Attention to or from an image is computed without projecting the image where that takes fewer multiplications: the
    projection matrices are multiplied into the few tokens instead of the 4096 positions of the image. The result is the
    same except for rounding.
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
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out_proj(attended.transpose(1, 2).flatten(2))

    def to_image(self, tokens: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention with few queries, the tokens, and many keys and values: ``(P, N, C)``."""
        if not self._has_few(tokens) or _is_shared(k, tokens):
            return self(tokens, k, v)
        weights = self._scores(self.q_proj(tokens), k, self.k_proj).softmax(-1)
        averages = (weights.flatten(1, 2) @ v).unflatten(1, (self.num_heads, -1))
        attended = averages @ self._by_head(self.v_proj.weight).mT
        return self.out_proj(attended.transpose(1, 2).flatten(2) + self.v_proj.bias)

    def from_image(self, q: Tensor, tokens: Tensor, v: Tensor) -> Tensor:
        """Attention with many queries and few keys and values, the tokens: ``(P, L, C)``."""
        if not self._has_few(tokens):
            return self(q, tokens, v)
        keys = self.k_proj(tokens)
        if _is_shared(q, tokens):
            scores = self._heads(keys) * self.scale @ self._heads(self.q_proj(q)).mT
        else:
            scores = self._scores(keys, q, self.q_proj)
        values = self._heads(self.v_proj(v)) @ self._by_head(self.out_proj.weight.mT)
        # The attention weights of a head sum to one, so a bias added to the values of one head is added to the output.
        values = values + F.pad(self.out_proj.bias[None, None], (0, 0, 0, 0, 0, self.num_heads - 1))
        return scores.softmax(2).flatten(1, 2).mT @ values.flatten(1, 2)

    def _scores(self, tokens: Tensor, image: Tensor, projection: nn.Linear) -> Tensor:
        """Scaled products of projected ``tokens`` and the image under ``projection``: ``(P, heads, N, L)``."""
        scaled = self._heads(tokens) * self.scale
        queries, bias = scaled @ self._by_head(projection.weight), scaled @ self._heads(projection.bias[None, None]).mT
        return (queries.flatten(1, 2) @ image.mT).unflatten(1, (self.num_heads, -1)) + bias

    def _has_few(self, tokens: Tensor) -> bool:
        """Whether all heads together have fewer tokens than the projection of a position has channels."""
        return torch.compiler.is_exporting() or tokens.shape[1] * self.num_heads < self.q_proj.out_features

    def _heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)

    def _by_head(self, weight: Tensor) -> Tensor:
        """``(inner_dim, C) -> (heads, inner_dim / heads, C)``."""
        return weight.unflatten(0, (self.num_heads, -1))


def _is_shared(image: Tensor, tokens: Tensor) -> bool:
    """Whether several prompts share one image: projecting it once is then cheaper than once per prompt."""
    return image.shape[0] != tokens.shape[0]


class _Mlp(nn.Module):
    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(embed_dim, hidden_dim), nn.Linear(hidden_dim, embed_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.lin2(F.relu(self.lin1(x)))


class _TwoWayBlock(nn.Module):
    """Self-attention of tokens, attention of tokens to image, MLP, attention of image to tokens; a norm after each."""

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
        if self.first:  # the tokens are equal to their positional encoding here
            tokens = self.self_attn(tokens, tokens, tokens)
        else:
            with_pe = tokens + token_pe
            tokens = tokens + self.self_attn(with_pe, with_pe, tokens)
        tokens = self.norm1(tokens)
        image_with_pe = image + image_pe
        tokens = self.norm2(tokens + self.cross_attn_token_to_image.to_image(tokens + token_pe, image_with_pe, image))
        tokens = self.norm3(tokens + self.mlp(tokens))
        change = self.cross_attn_image_to_token.from_image(image_with_pe, tokens + token_pe, tokens)
        image = self.norm4(change.add_(image))  # in place: this is the largest tensor
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
        attended = self.final_attn_token_to_image.to_image(tokens + token_pe, image + image_pe, image)
        return self.norm_final_attn(tokens + attended), image


class _Perceptron(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, *dims: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(dims))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.relu(layer(x))
        return self.layers[-1](x)


_Upscaling = tuple[nn.ConvTranspose2d, LayerNorm2d, nn.GELU, nn.ConvTranspose2d, nn.GELU]


class MaskDecoder(nn.Module):
    """Predict masks and their IoU from an image embedding and encoded prompts (arXiv 2304.02643, appendix A).

    Args:
        norm_eps: epsilon of the transformer's layer norms: 1e-5 in SAM and MobileSAM, 1e-6 in EfficientViT-SAM.
        num_multimask_outputs: number of masks for ambiguous prompts, in addition to the one for clear prompts.
        depth: number of transformer blocks.
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
            image_embeddings: ``(1 or P, 256, 64, 64)``, one for all prompts or one per prompt.
            image_pe: positional encoding, ``(1, 256, 64, 64)``.
            sparse_prompt_embeddings: ``(P, N, 256)``.
            dense_prompt_embeddings: ``(1 or P, 256, 64, 64)``. If this and ``image_embeddings`` have one entry, what
                all prompts share is computed once.
            multimask_output: whether to return the masks for ambiguous prompts instead of the one for clear prompts.

        Returns:
            Mask logits ``(P, M, 256, 256)`` and predicted IoU ``(P, M)``; M is 3 or 1.
        """
        masks, iou = self.all_masks(image_embeddings, image_pe, sparse_prompt_embeddings, dense_prompt_embeddings)
        selected = slice(1, None) if multimask_output else slice(0, 1)
        return masks[:, selected], iou[:, selected]

    def all_masks(
        self, image: Tensor, image_pe: Tensor, sparse: Tensor, dense: Tensor, least_iou: float = -math.inf
    ) -> tuple[Tensor, Tensor]:
        """The mask for clear prompts and those for ambiguous ones, ``(P, 4, 256, 256)``, and their IoU, ``(P, 4)``.

        If no mask for ambiguous prompts has a predicted IoU above ``least_iou``, the masks of that prompt are not
        computed and all their logits are :data:`EMPTY`. This saves half of the cost of a prompt.
        """
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(sparse.shape[0], -1, -1), sparse], 1)
        positions = (image + dense).flatten(2).transpose(1, 2).contiguous()
        tokens, positions = self.transformer(tokens, positions, image_pe.flatten(2).transpose(1, 2))
        weights = torch.stack([mlp(tokens[:, 1 + i]) for i, mlp in enumerate(self.output_hypernetworks_mlps)], 1)
        iou = self.iou_prediction_head(tokens[:, 0])
        if least_iou == -math.inf:
            return self._masks(positions, weights, image.shape[-2:]), iou
        computed = (iou[:, 1:] > least_iou).any(1)
        masks = self._masks(positions[computed], weights[computed], image.shape[-2:])
        return masks.new_full((len(iou), *masks.shape[1:]), EMPTY).index_put((computed,), masks), iou

    def _masks(self, positions: Tensor, weights: Tensor, grid: tuple[int, ...]) -> Tensor:
        """Logits ``(P, M, 4 * h, 4 * w)`` from positions ``(P, h * w, C)`` and weights ``(P, M, c)`` of the masks."""
        # No tensor of more than five dimensions: Core ML and mobile runtimes have none.
        pixels = self._pixels(positions, weights).unflatten(2, (4, 4))  # P L 4 4 M: the first enlargement, the second
        blocks = pixels.permute(0, 4, 3, 2, 1).flatten(1, 3).unflatten(2, grid)  # P M*16 h w
        return F.pixel_shuffle(F.pixel_shuffle(blocks, 2), 2)  # P M 4h 4w

    def _pixels(self, positions: Tensor, weights: Tensor) -> Tensor:
        """Logits of the 4 x 4 pixels of each position: ``(P, L, C), (P, M, c) -> (P, L, 16, M)``.

        In ``output_upscaling`` no pixel depends on another position. All of it is therefore computed as matrix products
        with channels last, and only the masks are rearranged into rows.
        """
        first, norm, act, second, last = cast(_Upscaling, tuple(self.output_upscaling))
        x = _split(positions, first)
        x = act(F.layer_norm(x, norm.weight.shape, norm.weight, norm.bias, norm.eps))
        return (last(_split(x, second)).flatten(1, 3) @ weights.mT).unflatten(1, (-1, 16))


def _split(x: Tensor, conv: nn.ConvTranspose2d) -> Tensor:
    """Transposed convolution with kernel size equal to its stride, per position: ``(..., C) -> (..., 2 * 2, out)``."""
    weight = conv.weight.permute(0, 2, 3, 1)
    assert conv.bias is not None
    return (x @ weight.flatten(1)).unflatten(-1, (-1, conv.out_channels)).add_(conv.bias)
