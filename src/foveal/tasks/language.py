"""Language modelling: an encoder and a head that scores the vocabulary."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..models.registry import LanguageBackbone


class LanguageModel(nn.Module):
    """Encoder and head: token ids ``(B, L)`` -> scores ``(B, L, vocab_size)``.

    What follows the ids goes to the encoder: ``attention_mask`` and, for ALBERT, ``token_type_ids``.

    Raises:
        InputError: ids that are no token's, or more of them than the encoder has positions.
    """

    def __init__(self, backbone: LanguageBackbone, head: nn.Module) -> None:
        super().__init__()
        self.backbone, self.head = backbone, head

    def forward(self, input_ids: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return self.head(self.backbone(input_ids, *args, **kwargs), self.backbone.word_embeddings.weight)
