"""What goes back to a client: an answer, or a refusal with a status and one line."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from ..errors import ConfigError, DependencyError, FovealError, InputError
from ..images.formats import SizeError


class Answer(NamedTuple):
    """The body of a successful response.

    Attributes:
        content: the body.
        media_type: of the body.
        headers: further headers.
    """

    content: bytes
    media_type: str
    headers: Mapping[str, str] = {}


class RefusalError(Exception):
    """A request that gets no result.

    Attributes:
        status: HTTP status, 4xx or 5xx.
        reason: one word for the metrics.
        headers: further headers, for example Retry-After.
    """

    def __init__(self, status: int, message: str, reason: str = "", headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.reason, self.headers = status, reason, dict(headers or {})


def busy(message: str, reason: str, seconds: float = 1) -> RefusalError:
    """A refusal that asks the client to try again in ``seconds``."""
    return RefusalError(503, message, reason, {"Retry-After": str(max(1, min(60, round(seconds))))})


def refusal_of(error: FovealError) -> RefusalError:
    """The refusal for an error of the library: the client's mistakes are 4xx."""
    if isinstance(error, SizeError):
        return RefusalError(413, str(error))
    if isinstance(error, DependencyError):
        return RefusalError(501, str(error))
    if isinstance(error, InputError | ConfigError):
        return RefusalError(422, str(error))
    return RefusalError(500, str(error))
