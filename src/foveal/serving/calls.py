"""What clients may ask of a model: the options of a call, how it runs, and the formats of its answer."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from ..files import parse_json
from ..images import regions
from ..prediction.batching import Batches, Prepared
from ..prediction.predictor import Predictor
from ..prediction.prompting import Embedding
from .replies import Answer

MAX_JSON = 1 << 20  #: bytes of an option that is JSON text

#: Lanes, and how many requests of one model they run at once (0: as the limits say).
LANES = {"images": 0, "prompts": 1, "everything": 1}


@dataclass(frozen=True)
class Served:
    """A model of a service.

    Attributes:
        name: in addresses.
        predictor: the model.
        batches: runs it on several images.
    """

    name: str
    predictor: Predictor
    batches: Batches


class Options(BaseModel):
    """Options of every call."""

    model_config = ConfigDict(extra="forbid")

    timeout: float | None = Field(None, gt=0, le=3600, description="Seconds after which no answer is needed.")


@dataclass(frozen=True)
class Asked:
    """A request, after its options are checked.

    Attributes:
        content: of the image file; empty if the embedding is there.
        digest: name of the image's embedding.
        options: of the call.
        embedding: of the image, if it is kept.
        keep: keeps an embedding.
        check: raises an exception if nobody waits for the result.
    """

    content: bytes
    options: Any
    digest: str = ""
    embedding: Embedding | None = None
    keep: Callable[[Embedding], None] = field(default=lambda embedding: None)
    check: Callable[[], None] = field(default=lambda: None)


#: Turns a result into the answer in one format.
Write = Callable[[Served, Asked, Any], Answer]


@dataclass(frozen=True)
class Call:
    """One call.

    Attributes:
        words: what it does, for the OpenAPI document.
        options: their names, types and ranges.
        formats: of the answer, the default first.
        read: reads the image, and prepares it for the network.
        lane: in which it waits, a key of :data:`LANES`.
        takes_embeddings: whether an embedding may stand for the image.
    """

    words: str
    options: type[Options]
    formats: Mapping[str, Write]
    read: Callable[[Served, Asked], Prepared]
    lane: str = "images"
    takes_embeddings: bool = False


def json_answer(content: Any, media_type: str = "application/json") -> Answer:
    """An answer in JSON."""
    return Answer(json.dumps(content, allow_nan=False, separators=(",", ":")).encode(), media_type)


def geojson_answer(features: list[dict[str, Any]]) -> Answer:
    """An answer of polygons."""
    return json_answer({"type": "FeatureCollection", "features": features}, "application/geo+json")


def rle_of(mask: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed run-length encoding of a mask ``(H, W)``."""
    return regions.uncompressed_rle(regions.runs_of(mask), (mask.shape[0], mask.shape[1]))


def _parsed(value: Any) -> Any:
    """A list that is written as text in a query or a form."""
    if not isinstance(value, str):
        return value
    try:
        return parse_json(value, MAX_JSON)
    except ValueError as error:
        raise ValueError(f"not JSON such as [[10, 20]] ({error})") from None


#: Field of a list: JSON, or JSON text.
Parsed = BeforeValidator(_parsed)
Numbers = Annotated[list[float], Parsed]
Rows = Annotated[list[list[float]], Parsed]
