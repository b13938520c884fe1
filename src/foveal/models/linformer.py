"""Linformer (arXiv 2006.04768): a transformer that attends to a fixed number of mixtures of its tokens, in O(n).

Notable:
  - keys and values are projected from ``max_length`` positions to ``proj_dim``; ``sharing`` selects what shares a
    projection: "none", "headwise", "key-value", "layerwise" (section 4)
  - a sequence has at most ``max_length`` tokens; there is no causal form, because every mixture contains all tokens
  - pre-norm, without a norm after the last layer, as in the ``linformer`` package on PyPI, whose checkpoints load here

No weights are published for this network. The default size is that of the paper's experiments (RoBERTa-base).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError
from ..layers.linformer import LinformerAttention, Sharing, linformer_projection
from ..layers.mlp import Mlp
from .registry import Family, LanguageBackbone, Variant, register
from .renaming import Renaming, rename_key, rename_keys


class LinformerBlock(nn.Module):
    """Pre-norm attention and feed-forward network, each with a residual connection: keeps ``(B, N, C)``."""

    def __init__(self, embed_dim: int, attention: LinformerAttention, mlp_ratio: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(embed_dim), nn.LayerNorm(embed_dim)
        self.attention = attention
        self.mlp = Mlp(embed_dim, round(embed_dim * mlp_ratio))

    def forward(self, x: Tensor, valid: Tensor | None = None, projection: Tensor | None = None) -> Tensor:
        x = x + self.attention(self.norm1(x), valid, projection)
        return x + self.mlp(self.norm2(x))


class Linformer(nn.Module):
    """The blocks without embeddings: ``(B, N, C) -> (B, N, C)`` with ``N <= max_length``.

    Arguments as in :class:`LinformerEncoder`. State dicts of the package's ``Linformer`` (``net.layers``) load too.
    """

    def __init__(
        self,
        *,
        embed_dim: int = 768,
        depth: int = 12,
        num_heads: int | None = 12,
        max_length: int = 512,
        proj_dim: int = 256,
        sharing: Sharing = "headwise",
        num_kv_heads: int | None = None,
        head_dim: int | None = None,
        values_are_keys: bool = False,
        mlp_ratio: float = 4,
    ) -> None:
        super().__init__()
        if num_heads is None:
            raise ConfigError("Linformer: the number of heads cannot be inferred from these weights: give num_heads")
        attention = partial(
            LinformerAttention,
            embed_dim,
            num_heads,
            max_length=max_length,
            proj_dim=proj_dim,
            sharing=sharing,
            num_kv_heads=num_kv_heads,
            head_dim=head_dim,
            values_are_keys=values_are_keys,
        )
        self.blocks = nn.ModuleList(LinformerBlock(embed_dim, attention(), mlp_ratio) for _ in range(depth))
        self.projection = linformer_projection(max_length, proj_dim) if sharing == "layerwise" else None
        self.register_load_state_dict_pre_hook(_rename_package)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        for block in self.blocks:
            x = block(x, valid, self.projection)
        return x


class LinformerEncoder(LanguageBackbone):
    """Embeddings and blocks: token ids ``(B, N)`` -> hidden states ``(B, N, embed_dim)``.

    Args:
        vocab_size: tokens in the vocabulary.
        embed_dim: channels of a token.
        max_length: most tokens in a sequence.
        **options: ``depth``, the number of blocks; ``mlp_ratio``, channels inside the feed-forward network over
            ``embed_dim``; num_heads, proj_dim, sharing, num_kv_heads, head_dim and values_are_keys as in
            :class:`LinformerAttention`.

    Raises:
        ConfigError: an unknown ``sharing``, or heads that do not divide the channels or one another.
    """

    def __init__(self, vocab_size: int = 50265, *, embed_dim: int = 768, max_length: int = 512, **options: Any) -> None:
        super().__init__()
        self.embed_dim, self.vocab_size, self.max_length = embed_dim, vocab_size, max_length
        self.word_embeddings = nn.Embedding(vocab_size, embed_dim)
        self.position_embeddings = nn.Embedding(max_length, embed_dim)
        self.layers = Linformer(embed_dim=embed_dim, max_length=max_length, **options)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        """Return the hidden states of the last layer.

        Args:
            input_ids: ``(B, N)`` integers below ``vocab_size``.
            attention_mask: ``(B, N)``, 1 or True for the tokens that enter the mixtures; default: all.

        Raises:
            InputError: wrong shapes, or more tokens than ``max_length``.
        """
        valid = self.checked_mask(input_ids, attention_mask)
        x = self.word_embeddings(input_ids) + self.position_embeddings.weight[: input_ids.shape[1]]
        return self.layers(x, valid)


class LanguageHead(nn.Module):
    """Scores of the vocabulary by a linear layer, not tied: ``(B, N, embed_dim) -> (B, N, vocab_size)``."""

    def __init__(self, backbone: LanguageBackbone) -> None:
        super().__init__()
        self.logits = nn.Linear(backbone.embed_dim, backbone.vocab_size)

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        return self.logits(hidden)


_NAMES: tuple[Renaming, ...] = (
    (r"^token_emb\.", "backbone.word_embeddings."),
    (r"^pos_emb\.", "backbone.position_embeddings."),
    (r"^to_logits\.", "head.logits."),
    (r"^(linformer\.)?net\.layers\.", "backbone.layers.blocks."),
    (r"(blocks\.\d+)\.0\.norm\.", r"\1.norm1."),
    (r"(blocks\.\d+)\.1\.norm\.", r"\1.norm2."),
    (r"(blocks\.\d+)\.0\.fn\.", r"\1.attention."),
    (r"(blocks\.\d+)\.1\.fn\.w(\d)\.", r"\1.mlp.fc\2."),
    (r"\.to_q\.", ".query."),
    (r"\.to_k\.", ".key."),
    (r"\.to_v\.", ".value."),
    (r"\.to_out\.", ".proj."),
)


def _rename_package(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Rename the keys of the ``linformer`` package in a state dict that is being loaded, in place."""
    for key in [key for key in state if key.startswith(f"{prefix}net.layers.")]:
        new = rename_key(key.removeprefix(prefix), _NAMES)
        state[prefix + new.removeprefix("backbone.layers.")] = state.pop(key)


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Convert a state dict (of the ``linformer`` package, or ours) to our layout; return ``None`` for any other."""
    if any(re.match(r"backbone\.layers\.blocks\.\d+\.attention\.query\.", key) for key in state):
        return dict(state)
    if not any(re.match(r"(linformer\.)?net\.layers\.\d+\.0\.fn\.to_q\.", key) for key in state):
        return None
    return rename_keys(state, _NAMES)


def implied(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return all sizes of a state dict.

    ``num_heads`` is ``None``, so that the caller must give it, except with one head of keys, whose width shows it.
    """
    shape = {key: tuple(value.shape) for key, value in (convert(state) or {}).items()}
    first = "backbone.layers.blocks.0."
    query, key = shape.get(f"{first}attention.query.weight"), shape.get(f"{first}attention.key.weight")
    words = shape.get("backbone.word_embeddings.weight")
    proj_k = shape.get(f"{first}attention.proj_k")
    projection = proj_k or shape.get("backbone.layers.projection")
    if query is None or key is None or words is None or projection is None:
        return {}
    if proj_k is None:
        sharing = "layerwise"
    elif len(proj_k) == 3:
        sharing = "none"
    else:
        sharing = "headwise" if f"{first}attention.proj_v" in shape else "key-value"
    values_are_keys = f"{first}attention.value.weight" not in shape
    heads = {"num_heads": None}
    if key[0] < query[0]:  # the package has either one head of keys or as many as of queries
        heads = {"num_heads": query[0] // key[0], "num_kv_heads": 1, "head_dim": key[0]}
    return {
        **heads,
        "vocab_size": words[0],
        "embed_dim": words[1],
        "depth": len({k.split(".")[3] for k in shape if k.startswith("backbone.layers.blocks.")}),
        "max_length": projection[-2],
        "proj_dim": projection[-1],
        "sharing": "headwise" if values_are_keys and sharing == "key-value" else sharing,
        "values_are_keys": values_are_keys,
        "mlp_ratio": shape[f"{first}mlp.fc1.weight"][0] / words[1],
    }


register(
    Family(
        name="linformer",
        paper="arXiv 2006.04768",
        variants={"linformer": Variant(LinformerEncoder, language_head=LanguageHead, tasks=("language",))},
        convert=convert,
        implied=implied,
        options={
            "vocab_size": "tokens in the vocabulary, default 50265",
            "embed_dim": "channels of a token, default 768",
            "depth": "blocks, default 12",
            "num_heads": "attention heads, default 12",
            "max_length": "most tokens in a sequence, default 512",
            "proj_dim": "mixtures of tokens that are attended to, default 256",
            "sharing": 'what shares a projection: "none", "headwise" (default), "key-value", "layerwise"',
            "num_kv_heads": "heads of keys and values, default num_heads; 1: the linformer package's one_kv_head",
            "head_dim": "channels of a head, default embed_dim / num_heads",
            "values_are_keys": "True: the projected keys are also the values, the linformer package's share_kv",
            "mlp_ratio": "channels inside the feed-forward network over embed_dim, default 4",
        },
    )
)
