"""Language modelling: an encoder and a head that scores the vocabulary."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import ConfigError
from ..models.registry import LanguageBackbone
from .builder import Builder, Request


class LanguageModel(nn.Module):
    """Encoder and head: token ids ``(B, L)`` -> scores ``(B, L, vocab_size)``.

    Further arguments of ``forward`` go to the encoder: ``attention_mask`` and, for ALBERT, ``token_type_ids``.

    Raises:
        InputError: token ids outside the vocabulary, or more tokens than the encoder has positions.
    """

    def __init__(self, backbone: LanguageBackbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.head(self.backbone(input_ids, *args, **kwargs), self.backbone.word_embeddings.weight)


def _build(backbone: LanguageBackbone, request: Request) -> LanguageModel:
    if request.variant.language_head is None:
        raise ConfigError(f"{request.name} has no language head; use features_only=True")
    return LanguageModel(backbone, request.variant.language_head(backbone))


BUILDER = Builder(_build, count_classes=lambda request: 0)
