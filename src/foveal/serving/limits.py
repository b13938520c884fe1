"""What a service grants its clients: sizes, times, numbers. Every limit has a default; none is unlimited."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass

from ..errors import ConfigError
from ..images.formats import LIMIT, pixel_limit

MAX_PROMPTS = 64  #: prompts of one request, and points of one prompt
MAX_HEADERS = 100  #: headers of one request
HEADER_BYTES = 16 << 10  #: of the first line and all headers of one request
MAX_PATH = 2048  #: characters of a path and of a query


@dataclass(frozen=True)
class Limits:
    """Limits of a service. The descriptions are also the help texts of ``foveal serve``.

    Attributes:
        max_body: Largest body of a request, in MiB.
        max_bodies: Bodies of all requests and images that are downloaded for them, together, in MiB; further requests
            get 503.
        max_pixels: Largest image, in pixels; a larger one is refused when its header is read.
        seconds: Seconds from a complete request to its answer; after that it gets 504, and is not computed if it is
            still waiting.
        queue: Requests of each kind that wait or run at the same time; further ones get 503.
        batch_size: Images of one shape that run at once.
        header_seconds: Seconds in which the first line and the headers of a request must arrive.
        body_seconds: Seconds in which the body must arrive, in addition to the time for its Content-Length at the
            slowest rate (--min-rate); it is also refused if nothing of it arrives for as long as this.
        sending_seconds: Seconds in which the client must read the answer, in addition to the time at the slowest rate.
        min_rate: Slowest transfer of bodies and answers, in KiB per second.
        idle_seconds: Seconds after which a connection without a request is closed.
        connections: Connections at the same time; when there are more, the one that has been without a request for
            longest is closed.
        embeddings: Memory for the embeddings of images that are kept for further prompts, in MiB.
        drain: Seconds that requests get to finish when the service is asked to end.

    Raises:
        ConfigError: a limit is out of range.
    """

    max_body: float = 64
    max_bodies: float = 256
    max_pixels: float = 50e6
    seconds: float = 30
    queue: int = 32
    batch_size: int = 8
    header_seconds: float = 5
    body_seconds: float = 8
    sending_seconds: float = 8
    min_rate: float = 64
    idle_seconds: float = 10
    connections: int = 512
    embeddings: float = 256
    drain: float = 30

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            least = 1 if field.type == "int" else 0 if field.name in _MAY_BE_ZERO else 1e-3
            if not (math.isfinite(value) and value >= least):
                raise ConfigError(f"{_option(field.name)} {value:g}: give {least:g} or more")
        if self.max_bodies < self.max_body:
            raise ConfigError(f"--max-bodies {self.max_bodies:g}: give at least --max-body, {self.max_body:g} MiB")
        if self.max_pixels > pixel_limit():
            raise ConfigError(
                f"--max-pixels {self.max_pixels:g}: above {pixel_limit():g}, the limit of {LIMIT}: raise both"
            )

    @property
    def body_bytes(self) -> int:
        """Largest body, in bytes."""
        return round(self.max_body * (1 << 20))

    @property
    def bodies_bytes(self) -> int:
        """Bodies of all requests at once, in bytes."""
        return round(self.max_bodies * (1 << 20))

    @property
    def embedding_bytes(self) -> int:
        """Kept embeddings, in bytes."""
        return round(self.embeddings * (1 << 20))


_MAY_BE_ZERO = ("embeddings", "drain")


def _option(name: str) -> str:
    return "--" + name.replace("_", "-")
