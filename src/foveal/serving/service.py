"""From a request to an answer: room in the queue, inputs, options, the lane, the deadline, a client that has gone."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from fastapi import Request

from ..errors import FovealError, nearest
from ..images.bands import read_size
from ..images.formats import SizeError
from .addresses import Fetcher
from .brake import Brake
from .calls import LANES, Asked, Call, Served
from .embeddings import EmbeddingCache, content_hash
from .inputs import Bodies, Holding, Inputs, parse_options, read_inputs
from .keys import Keys
from .lanes import Lane, Work, late
from .limits import Limits
from .metrics import Metrics
from .models import calls_of
from .replies import Answer, RefusalError, busy, refusal_of

_FETCHES = 4  # images that are downloaded at once
_BYTES = 4 + 1  # of a pixel and channel: float32 for the network, and as it was read
_MEDIA = {  # by format, what a client may ask for with Accept
    "json": "application/json",
    "png": "image/png",
    "overlay": "image/jpeg",
    "polygons": "application/geo+json",
    "logits": "application/octet-stream",
}


@dataclass(frozen=True)
class Settings:
    """What a service is started with.

    Attributes:
        limits: what clients are granted.
        keys: of clients; none: all are served.
        fetcher: of images by address.
        names: of the service in the header Host, as :func:`foveal.serving.names.names_of` gives them; none: any.
    """

    limits: Limits = field(default_factory=Limits)
    keys: Keys = field(default_factory=Keys)
    fetcher: Fetcher = field(default_factory=Fetcher)
    names: frozenset[str] = frozenset()


class Service:
    """The models with their lanes.

    Args:
        models: by name.
        settings: of the service.

    Attributes:
        brake: for answers to requests that no correct client sends.
        ending: whether the service drains.
    """

    def __init__(self, models: Mapping[str, Served], settings: Settings) -> None:
        self.models, self.settings, self.limits = models, settings, settings.limits
        self.metrics = Metrics()
        self.bodies = Bodies(self.limits)
        self.brake = Brake()
        self.cache = EmbeddingCache(self.limits.embedding_bytes)
        self.metrics.add_gauge("embedding_bytes", "Bytes of kept embeddings.", lambda: self.cache.bytes)
        self.metrics.add_gauge("body_bytes", "Bytes of the bodies of requests.", lambda: self.bodies.held)
        calls = [call for served in models.values() for call in calls_of(served.predictor).values()]
        wanted = {call.lane for call in calls} | {"prompts" for call in calls if call.takes_embeddings}
        self.lanes = {
            name: Lane(name, self.limits.queue, LANES[name] or self.limits.batch_size, self.metrics)
            for name in LANES
            if name in wanted
        }
        self.ending = False
        self._side = ThreadPoolExecutor(2, "foveal-headers")
        self._fetchers, self._fetching = ThreadPoolExecutor(_FETCHES, "foveal-fetch"), 0

    def end(self) -> None:
        """End the threads."""
        for lane in self.lanes.values():
            lane.end()
        for pool in (self._side, self._fetchers):
            pool.shutdown(wait=False, cancel_futures=True)

    def find(self, model: str) -> Served:
        """A model by name.

        Raises:
            RefusalError: 404, there is none.
        """
        if model not in self.models:
            raise RefusalError(404, f"no model {model[:80]!r}{nearest(model[:80], self.models)}")
        return self.models[model]

    def find_call(self, served: Served, name: str) -> Call:
        """A call of a model.

        Raises:
            RefusalError: 404, it has none of this name.
        """
        calls = calls_of(served.predictor)
        if name not in calls:
            task = served.predictor.info.task
            raise RefusalError(404, f"{served.name} is for {task!r}: it has {', '.join(calls)}, not {name!r}")
        return calls[name]

    async def answer(self, model: str, name: str, request: Request) -> Answer:
        """Answer one call.

        Raises:
            RefusalError: the request gets no result.
        """
        served = self.find(model)
        call = self.find_call(served, name)
        request.state.facts |= {"model": served.name, "call": name}
        if not call.takes_embeddings:  # else the body says in which lane it waits
            self.lanes[call.lane].check_room()
        with self.bodies.holding() as holding:
            inputs = await read_inputs(request, holding)
            write = call.formats[_choose_format(inputs, request.headers.get("accept", ""), call)]
            asked, size = await self._ask(served, call, inputs, holding)
            request.state.facts |= {"pixels": size[0] * size[1], "bytes": holding.bytes}
            lane = self.lanes["prompts" if asked.embedding is not None else call.lane]
            bands = served.predictor.bands.count
            asked = dataclasses.replace(asked, check=lambda: work.check())
            work = Work(
                served.batches,
                lambda: call.read(served, asked),
                lambda result: write(served, asked, result),
                size[0] * size[1] * bands * _BYTES,
                time.monotonic() + min(self.limits.seconds, asked.options.timeout or self.limits.seconds),
            )
            return await self.run([(lane, work)], request)

    async def run(self, works: list[tuple[Lane, Work]], request: Request) -> Any:
        """Wait for the answers of work, until the deadline, and as long as the client is there.

        Returns:
            The answer; of several works a list.

        Raises:
            RefusalError: one of them gets no result.
        """
        answers = asyncio.gather(*(asyncio.wrap_future(work.future) for _, work in works))
        gone = asyncio.ensure_future(request.receive())
        try:
            for lane, work in works:
                lane.submit(work)
            left = min(work.deadline for _, work in works) - time.monotonic()
            await asyncio.wait((answers, gone), timeout=max(0, left), return_when=asyncio.FIRST_COMPLETED)
            if not answers.done():
                raise RefusalError(499, "the client has gone", "cancelled") if gone.done() else late()
            request.state.facts["batch"] = works[0][1].batch
            results = answers.result()
            return results if len(works) > 1 else results[0]
        except FovealError as error:
            raise refusal_of(error) from error
        finally:
            for task in (answers, gone):
                task.cancel()
            for lane, work in works:
                lane.drop(work)

    async def _ask(self, served: Served, call: Call, inputs: Inputs, holding: Holding) -> tuple[Asked, tuple[int, int]]:
        """The checked request, and (H, W) of its image from the header alone."""
        url, name = inputs.options.pop("url", None), inputs.options.pop("embedding", None)
        options = parse_options(call.options, inputs.options)
        if sum((bool(inputs.image), url is not None, name is not None)) != 1:
            kinds = "an image or the name of an embedding" if call.takes_embeddings else "an image"
            raise RefusalError(422, f"give {kinds}, and only one")
        if name is not None:
            return self._ask_again(served, call, name, options)
        loop = asyncio.get_running_loop()
        try:
            content = inputs.image
            if url is not None:
                content = await self._fetch(str(url))
                holding.add(len(content))
            size = await loop.run_in_executor(self._side, self.check_size, content)
            digest = await loop.run_in_executor(self._side, content_hash, content) if call.takes_embeddings else ""
        except FovealError as error:
            raise refusal_of(error) from error
        kept = self._kept(served, digest) if call.takes_embeddings else None

        def keep(embedding: Any) -> None:
            self.cache.put(served.name, digest, embedding)

        return Asked(content, options, digest, kept, keep), size

    async def _fetch(self, url: str) -> bytes:
        """The image at an address; few at once, since each waits for another server."""
        if self._fetching >= _FETCHES:
            raise busy("busy: too many images are being downloaded", "addresses")
        self._fetching += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._fetchers, self.settings.fetcher.fetch, url)
        finally:
            self._fetching -= 1

    def check_size(self, content: bytes) -> tuple[int, int]:
        """(H, W) of an image, from its header.

        Raises:
            InputError: it is too large, or no image.
        """
        most = int(self.limits.max_pixels)
        try:
            return read_size(content, max_pixels=most)
        except SizeError as error:
            text = str(error).partition(", above")[0]
            raise SizeError(f"{text}, above this service's limit of {most / 1e6:g}: shrink it") from None

    def _ask_again(self, served: Served, call: Call, name: Any, options: Any) -> tuple[Asked, tuple[int, int]]:
        if not call.takes_embeddings:
            raise RefusalError(422, "embedding: this call needs the image itself")
        if (kept := self._kept(served, str(name).lower())) is None:
            raise RefusalError(404, "no such embedding, or no longer: encode the image again")
        return Asked(b"", options, str(name).lower(), kept), kept.size

    def _kept(self, served: Served, digest: str) -> Any:
        kept = self.cache.get(served.name, digest)
        self.metrics.embeddings.labels("yes" if kept is not None else "no").inc()
        return kept


def _choose_format(inputs: Inputs, accept: str, call: Call) -> str:
    """The format of the answer: that of the option, else the first that Accept names, else the default.

    Raises:
        RefusalError: 422, an unknown format.
    """
    wanted = inputs.options.pop("format", None)
    if wanted is not None:
        if not isinstance(wanted, str) or wanted not in call.formats:
            raise RefusalError(422, f"format {str(wanted)[:80]!r}{nearest(str(wanted)[:80], call.formats)}")
        return str(wanted)
    media = [part.partition(";")[0].strip().lower() for part in accept[:1000].split(",")]
    for kind in media:
        for name in call.formats:
            if _MEDIA.get(name) == kind:
                return name
    return next(iter(call.formats))
