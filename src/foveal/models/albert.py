"""ALBERT (arXiv 1909.11942): BERT with one set of parameters for all layers, and with small word embeddings.

Notable:
  - all layers share their parameters: base has 11.7 M parameters instead of BERT's 108 M, at the MACs of BERT
  - word embeddings have ``embedding_size`` channels; a linear layer projects them to ``hidden_size``
  - norms come after each addition (post-norm), with epsilon 1e-12
  - the activation differs between published checkpoints: "gelu" (exact) in some, "gelu_new" (tanh) in others; it is
    read from their config.json

Options have the names of that config.json. Checkpoints of transformers load here: encoders, masked language models, and
pretraining models, whose classifier of sentence order is dropped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CheckpointError, ConfigError, InputError, nearest
from ..layers.attention import Attention
from ..layers.mlp import Mlp
from ..layers.sharing import SharedLayers
from .registry import Family, LanguageBackbone, Published, Variant, register
from .renaming import Renaming, rename_keys

#: Activations by their names in a config.json.
ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "gelu": nn.GELU,
    "gelu_new": partial(nn.GELU, approximate="tanh"),
    "relu": nn.ReLU,
}


@dataclass(frozen=True)
class Config:
    """Sizes of one variant, with the names of a published config.json.

    Attributes:
        hidden_size: channels of a token.
        num_attention_heads: attention heads.
        num_hidden_layers: number of layers that are computed.
        intermediate_size: channels inside the feed-forward network.
        embedding_size: channels of the word, position and type embeddings.
        num_hidden_groups: sets of parameters that the layers share.
        inner_group_num: different layers in each set, all computed for each of ``num_hidden_layers``.
        vocab_size: tokens in the vocabulary.
        max_position_embeddings: most tokens in a sequence.
        type_vocab_size: number of token types (segments).
        hidden_act: activation, a key of :data:`ACTIVATIONS`.
        layer_norm_eps: epsilon of the norms.
        hidden_dropout_prob: dropout of the embeddings and of attention and feed-forward outputs in training (0.1 in v1,
            except for xxlarge).
        attention_probs_dropout_prob: dropout of attention weights in training.
        pad_token_id: the padding token; its embedding gets no gradient.
    """

    hidden_size: int
    num_attention_heads: int
    num_hidden_layers: int
    intermediate_size: int
    embedding_size: int = 128
    num_hidden_groups: int = 1
    inner_group_num: int = 1
    vocab_size: int = 30000
    max_position_embeddings: int = 512
    type_vocab_size: int = 2
    hidden_act: str = "gelu_new"
    layer_norm_eps: float = 1e-12
    hidden_dropout_prob: float = 0.0
    attention_probs_dropout_prob: float = 0.0
    pad_token_id: int = 0


CONFIGS = {
    "albert_base": Config(768, 12, 12, 3072),
    "albert_large": Config(1024, 16, 24, 4096),
    "albert_xlarge": Config(2048, 16, 24, 8192),
    "albert_xxlarge": Config(4096, 64, 12, 16384),
}


class AlbertLayer(nn.Module):
    """Post-norm attention and feed-forward network, each with a residual connection: keeps ``(B, L, C)``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        dim, eps = config.hidden_size, config.layer_norm_eps
        self.attention = Attention(dim, config.num_attention_heads, dropout=config.attention_probs_dropout_prob)
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, config.intermediate_size, act=ACTIVATIONS[config.hidden_act])
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        x = self.norm1(x + self.dropout(self.attention(x, valid)))
        return self.norm2(x + self.dropout(self.mlp(x)))


class Albert(LanguageBackbone):
    """Encoder: token ids ``(B, L)`` -> hidden states ``(B, L, hidden_size)``; :meth:`pooled` gives one vector of them.

    Args:
        config: sizes, an entry of :data:`CONFIGS`.
        pooler: whether to build the layer for :meth:`pooled`.
        **options: fields of ``config`` to replace.

    Raises:
        ConfigError: an unknown activation, or heads that do not divide the channels.
    """

    optional = ("pooler",)

    def __init__(self, config: Config, *, pooler: bool = True, **options: Any) -> None:
        super().__init__()
        config = replace(config, **options)
        if config.hidden_act not in ACTIVATIONS:
            raise ConfigError(f"unknown hidden_act {config.hidden_act!r}{nearest(str(config.hidden_act), ACTIVATIONS)}")
        self.config = config
        self.embed_dim, self.vocab_size = config.hidden_size, config.vocab_size
        self.max_length = config.max_position_embeddings
        width = config.embedding_size
        self.word_embeddings = nn.Embedding(config.vocab_size, width, padding_idx=config.pad_token_id)
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, width)
        self.token_type_embeddings = nn.Embedding(config.type_vocab_size, width)
        self.norm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.project = nn.Linear(width, config.hidden_size)
        inner = config.inner_group_num
        self.layers = SharedLayers(
            lambda: SharedLayers(lambda: AlbertLayer(config), inner, inner),
            config.num_hidden_layers,
            config.num_hidden_groups,
        )
        self.pooler = nn.Linear(config.hidden_size, config.hidden_size) if pooler else None
        self.apply(_init)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> Tensor:
        """Return the hidden states of the last layer.

        Args:
            input_ids: ``(B, L)`` integers below ``vocab_size``.
            attention_mask: ``(B, L)``, 1 or True for the tokens that may be attended to; default: all.
            token_type_ids: ``(B, L)``, the type of each token; default: 0.

        Raises:
            InputError: wrong shapes, or more tokens than ``max_position_embeddings``.
        """
        return self.hidden_states(input_ids, attention_mask, token_type_ids)[-1]

    def hidden_states(
        self, input_ids: Tensor, attention_mask: Tensor | None = None, token_type_ids: Tensor | None = None
    ) -> list[Tensor]:
        """Return the input of the first layer and the output of every layer, ``(B, L, hidden_size)`` each.

        Arguments and errors as in ``forward``.
        """
        valid = self.checked_mask(input_ids, attention_mask)
        if token_type_ids is not None and token_type_ids.shape != input_ids.shape:
            expected = f"{tuple(input_ids.shape)} as input_ids"
            raise InputError(f"token_type_ids has shape {tuple(token_type_ids.shape)}; expected {expected}")
        words = self.word_embeddings(input_ids)
        types = torch.zeros_like(input_ids) if token_type_ids is None else token_type_ids
        positions = self.position_embeddings.weight[: input_ids.shape[1]]
        x = self.project(self.dropout(self.norm(words + self.token_type_embeddings(types) + positions)))
        states = [x]
        for group in self.layers.layers():
            assert isinstance(group, SharedLayers)
            for layer in group.layers():
                states.append(layer(states[-1], valid))
        return states

    def pooled(self, hidden: Tensor) -> Tensor:
        """Return one vector per sequence, from the first token: ``(B, L, hidden_size) -> (B, hidden_size)``.

        Raises:
            ConfigError: the encoder has no pooler, as in a masked language model.
        """
        if self.pooler is None:
            raise ConfigError("this encoder has no pooler: build it with features_only=True")
        return self.pooler(hidden[:, 0]).tanh()


class MaskedLanguageHead(nn.Module):
    """Scores of the vocabulary, tied to the word embeddings: ``(B, L, hidden_size) -> (B, L, vocab_size)``."""

    def __init__(self, config: Config) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.embedding_size)
        self.act = ACTIVATIONS[config.hidden_act]()
        self.norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.bias = nn.Parameter(torch.zeros(config.vocab_size))
        self.apply(_init)

    def forward(self, hidden: Tensor, word_embeddings: Tensor) -> Tensor:
        return F.linear(self.norm(self.act(self.dense(hidden))), word_embeddings, self.bias)


def _masked_language_head(backbone: Albert) -> MaskedLanguageHead:
    backbone.pooler = None  # the head does not use it, so it would not be trained
    return MaskedLanguageHead(backbone.config)


def _init(module: nn.Module) -> None:
    """Normal with standard deviation 0.02, as in BERT (arXiv 1810.04805); biases 0."""
    if isinstance(module, nn.Linear | nn.Embedding):
        nn.init.normal_(module.weight, std=0.02)
    if isinstance(module, nn.Linear) and module.bias is not None:
        nn.init.zeros_(module.bias)
    if isinstance(module, nn.Embedding) and module.padding_idx is not None:
        with torch.no_grad():
            module.weight[module.padding_idx].zero_()


_NAMES: tuple[Renaming, ...] = (
    (r"^albert\.", ""),
    (r"^embeddings\.LayerNorm\.", "backbone.norm."),
    (r"^embeddings\.", "backbone."),
    (r"^encoder\.embedding_hidden_mapping_in\.", "backbone.project."),
    (r"^encoder\.albert_layer_groups\.(\d+)\.albert_layers\.(\d+)\.", r"backbone.layers.\1.\2."),
    (r"\.attention\.dense\.", ".attention.proj."),
    (r"\.attention\.LayerNorm\.", ".norm1."),
    (r"\.ffn\.", ".mlp.fc1."),
    (r"\.ffn_output\.", ".mlp.fc2."),
    (r"\.full_layer_layer_norm\.", ".norm2."),
    (r"^pooler\.", "backbone.pooler."),
    (r"^predictions\.LayerNorm\.", "head.norm."),
    (r"^predictions\.", "head."),
)
_WORDS = "backbone.word_embeddings.weight"


def convert(state: Mapping[str, Tensor]) -> dict[str, Tensor] | None:
    """Convert an ALBERT state dict (of transformers, or ours) to our layout; return ``None`` for any other.

    Raises:
        CheckpointError: the weights of the head differ from the word embeddings, to which they must be tied.
    """
    if any(re.match(r"(backbone\.)?layers\.0\.0\.attention\.qkv\.", key) for key in state) and any(
        key.endswith("token_type_embeddings.weight") for key in state
    ):
        return dict(state) if _WORDS in state else None
    if not any("encoder.albert_layer_groups." in key for key in state):
        return None
    unused = re.compile(r"(albert\.)?(sop_classifier\.|embeddings\.position_ids$)")
    renamed = rename_keys({key: value for key, value in state.items() if not unused.match(key)}, _NAMES)
    _tie(renamed, "head.decoder.weight", _WORDS)
    _tie(renamed, "head.decoder.bias", "head.bias")
    for key in [key for key in renamed if ".attention.query." in key]:
        parts = [key.replace(".query.", f".{name}.") for name in ("query", "key", "value")]
        if all(part in renamed for part in parts):
            renamed[key.replace(".query.", ".qkv.")] = torch.cat([renamed.pop(part) for part in parts])
    return renamed


def _tie(state: dict[str, Tensor], copy: str, name: str) -> None:
    """Store a tied tensor only as ``name``; a state dict may have it as ``name``, as ``copy`` or as both."""
    if copy not in state:
        return
    second = state.pop(copy)
    first = state.setdefault(name, second)
    if first.shape != second.shape or not (first.is_meta or second.is_meta or torch.equal(first, second)):
        raise CheckpointError(f"ALBERT: {copy} and {name} must be one tensor, but differ in this file: give a tied one")


def implied(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options that differ from the variant of the same width, as far as shapes show them.

    Shapes do not show the numbers of heads and layers, or the activation.
    """
    shape = {key: tuple(value.shape) for key, value in (convert(state) or {}).items()}
    if _WORDS not in shape:
        return {}
    row = next(
        (row for row in CONFIGS.values() if shape.get("backbone.project.weight", (0,))[0] == row.hidden_size), None
    )
    if row is None:
        return {}
    groups = {tuple(map(int, m.groups())) for key in shape if (m := re.match(r"backbone\.layers\.(\d+)\.(\d+)\.", key))}
    sizes = {
        "vocab_size": shape[_WORDS][0],
        "embedding_size": shape[_WORDS][1],
        "max_position_embeddings": shape.get("backbone.position_embeddings.weight", (row.max_position_embeddings,))[0],
        "type_vocab_size": shape.get("backbone.token_type_embeddings.weight", (row.type_vocab_size,))[0],
        "intermediate_size": shape.get("backbone.layers.0.0.mlp.fc1.weight", (row.intermediate_size,))[0],
        "num_hidden_groups": 1 + max((group for group, _ in groups), default=0),
        "inner_group_num": 1 + max((inner for _, inner in groups), default=0),
    }
    default = asdict(row)
    no_pooler = not any(key.startswith(("backbone.pooler.", "head.")) for key in shape)
    options: dict[str, Any] = {key: value for key, value in sizes.items() if value != default[key]}
    return options | ({"pooler": False} if no_pooler else {})


def from_config(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Return the variant that is closest to a config.json, and the options in which they differ."""
    names = {field.name for field in fields(Config)}
    options = {key: value for key, value in config.items() if key in names}
    name = max(CONFIGS, key=lambda name: sum(options.get(k) == v for k, v in asdict(CONFIGS[name]).items()))
    default = asdict(CONFIGS[name])
    return name, {key: value for key, value in options.items() if value != default[key]}


#: MNLI accuracy after fine-tuning, from the authors' table.
_MNLI = {
    "albert_base": {"v2": 84.6, "v1": 81.6},
    "albert_large": {"v2": 86.5, "v1": 83.5},
    "albert_xlarge": {"v2": 87.9, "v1": 86.4},
    "albert_xxlarge": {"v2": 90.6, "v1": 90.8},
}


def _published(name: str) -> tuple[Published, ...]:
    repo = f"albert/{name.replace('_', '-')}"
    return tuple(
        Published(tag, "MNLI, fine-tuned", value, "512 tokens", "official README", "language", f"{repo}-{tag}")
        for tag, value in _MNLI[name].items()
    )


def _variant(name: str, config: Config) -> Variant:
    return Variant(
        backbone=partial(Albert, config),
        language_head=_masked_language_head,
        published=_published(name),
        tasks=("language",),
    )


register(
    Family(
        name="albert",
        paper="arXiv 1909.11942",
        variants={name: _variant(name, config) for name, config in CONFIGS.items()},
        convert=convert,
        implied=implied,
        from_config=from_config,
        options={
            "hidden_act": "activation: gelu_new (default), gelu, relu",
            "vocab_size": "tokens in the vocabulary, default 30000",
            "embedding_size": "channels of the word embeddings, default 128",
            "hidden_size": "channels of a token",
            "num_attention_heads": "attention heads",
            "num_hidden_layers": "number of layers that are computed",
            "num_hidden_groups": "sets of parameters that the layers share, default 1",
            "inner_group_num": "different layers in each set, default 1",
            "intermediate_size": "channels inside the feed-forward network",
            "max_position_embeddings": "most tokens in a sequence, default 512",
            "type_vocab_size": "number of token types (segments), default 2",
            "layer_norm_eps": "epsilon of the norms, default 1e-12",
            "hidden_dropout_prob": "dropout in training, default 0",
            "attention_probs_dropout_prob": "dropout of attention weights in training, default 0",
            "pad_token_id": "id of the padding token, default 0",
            "pooler": "False: an encoder without the layer that returns one vector per sequence; default True",
        },
        licence="Apache-2.0",
    )
)
