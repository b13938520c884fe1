"""From a request to an image and options: raw bytes, multipart forms and JSON, all of them bounded."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect

from ..errors import nearest
from ..files import parse_json
from .limits import Limits
from .replies import RefusalError, busy

#: Content types of the file itself; the second is what curl --data-binary sends unless it is told another one.
_RAW = ("application/octet-stream", "application/x-www-form-urlencoded", "")
T = TypeVar("T", bound=BaseModel)
_FIELDS = 40  # of a form
_FIELD_BYTES = 1 << 20
_MAX_VALUES = 100_000  # in JSON: each becomes an object of Python


@dataclass
class Inputs:
    """What a request holds.

    Attributes:
        image: content of the image file; empty: none.
        options: by name, not yet checked.
    """

    image: bytes = b""
    options: dict[str, Any] = field(default_factory=dict)


class Bodies:
    """Reads bodies, bounded each and together.

    Args:
        limits: of the service.
    """

    def __init__(self, limits: Limits) -> None:
        self.limits, self.held = limits, 0

    @contextmanager
    def holding(self) -> Iterator[Holding]:
        """Count the bytes of a request's body until the request is done."""
        holding = Holding(self)
        try:
            yield holding
        finally:
            self.held -= holding.bytes


class Holding:
    """What one request holds: its body, and an image that is downloaded for it."""

    def __init__(self, bodies: Bodies) -> None:
        self.bodies, self.bytes = bodies, 0

    def add(self, count: int) -> None:
        """Count further bytes.

        Raises:
            RefusalError: 503, all requests together hold too much.
        """
        if self.bodies.held + count > self.bodies.limits.bodies_bytes:
            raise busy("busy: too many large requests at once", "bodies")
        self.bytes += count
        self.bodies.held += count

    async def stream(self, request: Request) -> AsyncGenerator[bytes, None]:
        """Parts of the body.

        Raises:
            RefusalError: the body is too large, bodies together are, or the client has gone.
        """
        limit = self.bodies.limits.body_bytes
        declared = request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            raise _too_large(self.bodies.limits)
        try:
            async for part in request.stream():
                if self.bytes + len(part) > limit:
                    raise _too_large(self.bodies.limits)
                self.add(len(part))
                yield part
        except ClientDisconnect:
            raise RefusalError(499, "the client has gone", "cancelled") from None

    async def read(self, request: Request) -> bytes:
        """The whole body; errors as :meth:`stream`."""
        content = bytearray()
        async for part in self.stream(request):
            content += part
        return bytes(content)


def _too_large(limits: Limits) -> RefusalError:
    return RefusalError(413, f"the body is above the limit of {limits.max_body:g} MiB", "size")


def refuse_encoding(request: Request) -> None:
    """Refuse compressed bodies, whose size only shows when they are decompressed.

    Raises:
        RefusalError: 415.
    """
    encoding = request.headers.get("content-encoding", "identity").strip().lower()
    if encoding not in ("identity", ""):
        raise RefusalError(415, f"Content-Encoding {encoding[:40]!r}: send the body as it is")


async def read_inputs(request: Request, holding: Holding) -> Inputs:
    """Read the image and the options of a request; options in the query add to those in the body.

    Raises:
        RefusalError: the body cannot be read.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    query: dict[str, Any] = {}
    for name, value in request.query_params.multi_items():
        if name in query:
            raise RefusalError(400, f"{name!r:.80} is in the query twice: give it once")
        query[name] = value
    refuse_encoding(request)
    if kind == "multipart/form-data":
        inputs = await _read_form(request, holding)
    elif kind == "application/json":
        inputs = await asyncio.to_thread(_read_json, await holding.read(request))
    elif kind.startswith("image/") or kind in _RAW:
        inputs = Inputs(await holding.read(request))
    else:
        raise RefusalError(
            415,
            f"Content-Type {kind[:80]!r}: send image/*, application/octet-stream, multipart/form-data or "
            "application/json",
        )
    if twice := sorted(query.keys() & inputs.options.keys()):
        raise RefusalError(400, f"{twice[0]!r:.80} is in the query and in the body: give it once")
    inputs.options |= query
    return inputs


async def _read_form(request: Request, holding: Holding) -> Inputs:
    parser = _MemoryParser(
        request.headers, holding.stream(request), max_files=1, max_fields=_FIELDS, max_part_size=_FIELD_BYTES
    )
    try:
        form = await parser.parse()
    except MultiPartException as error:
        raise RefusalError(400, f"the form cannot be read: {error.message}") from error
    if not parser.complete:
        raise RefusalError(400, "the form cannot be read: it ends before its last boundary")
    inputs = Inputs()
    for name, value in form.multi_items():
        if isinstance(value, str):
            if name in inputs.options:
                raise RefusalError(400, f"{name!r:.80} is in the form twice: give it once")
            inputs.options[name] = value
        elif name == "image":
            inputs.image = await value.read()
            await value.close()
        else:
            raise RefusalError(400, f"the form has a file {name!r:.80}: name the field of the image 'image'")
    return inputs


class _MemoryParser(MultiPartParser):
    """Keeps files in memory: they are bounded, and must not reach a disk."""

    spool_max_size = 1 << 40
    complete = False

    def on_end(self) -> None:
        self.complete = True


def _read_json(body: bytes) -> Inputs:
    if body.count(b",") + body.count(b"[") > _MAX_VALUES:
        raise RefusalError(413, f"more than {_MAX_VALUES} values in JSON", "size")
    try:
        content = parse_json(body, len(body))
    except (ValueError, UnicodeDecodeError) as error:
        raise RefusalError(400, f"the body is no JSON: {' '.join(str(error).split())[:200]}") from error
    if not isinstance(content, dict):
        raise RefusalError(400, 'the body is no JSON object: send {"image": "<base64>", ...}')
    image = content.pop("image", None)
    if image is None:
        return Inputs(b"", content)
    if not isinstance(image, str):
        raise RefusalError(422, "image: give the file in base64, as text")
    if image.startswith("data:"):
        image = image.partition(",")[2]
    try:
        return Inputs(base64.b64decode(image, validate=True), content)
    except (binascii.Error, ValueError):
        raise RefusalError(422, "image: no valid base64") from None


#: Instead of pydantic's own words, by type of error.
_WORDS = {
    "list_type": "give a list of numbers, in points and boxes one for each: [[420, 310]]",
    "too_long": "give at most {max_length}",
    "too_short": "give at least {min_length}",
}


def parse_options(kind: type[T], values: dict[str, Any]) -> T:
    """Check the options of a call.

    Raises:
        RefusalError: 422, one line about the first option that cannot be used.
    """
    try:
        return kind(**{str(name): value for name, value in values.items()})
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name = str(first["loc"][0])
        if first["type"] == "extra_forbidden":
            raise RefusalError(422, f"unknown option {name[:80]!r}{nearest(name[:80], kind.model_fields)}") from None
        place = "".join(f"[{part}]" for part in first["loc"][1:] if isinstance(part, int))
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] in _WORDS:
            reason = _WORDS[first["type"]].format(**first.get("ctx", {}))
        raise RefusalError(422, f"{name}{place}: {reason[:1].lower()}{reason[1:]}") from None
