"""Connections with time limits: for heads, bodies, answers that nobody reads, and idle connections.

uvicorn has a limit for idle connections only: a client that sends a byte now and then would keep a connection for ever.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from .brake import Brake
from .limits import HEADER_BYTES, MAX_HEADERS, Limits
from .metrics import Metrics

_STEP = 0.25  # seconds between two looks at all connections
_LINGER = 2.0  # seconds for which the rest of a refused body is read, so that the client can read the answer


class Connection(H11Protocol):
    """One connection; :meth:`check` closes it when a limit is exceeded.

    Attributes:
        limits: of the service; set by :func:`guarded`.
        metrics: of the service.
        brake: of the service.
    """

    limits: Limits
    metrics: Metrics
    brake: Brake

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.phase, self.since = "head", time.monotonic()
        self.moved = 0  # bytes received or sent in this phase
        self.received = self.since  # when bytes came last
        self.unsent = 0  # bytes that the client has not taken yet, at the last look
        self.refused = False  # by an answer that waits for the brake

    # ---- what asyncio calls

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.limits.connections:
            self._make_room()

    def data_received(self, data: bytes) -> None:
        if self.refused or self.transport.is_closing():
            return  # of a client that does not read why
        self.moved += len(data)
        self.received = time.monotonic()
        if self.conn.their_state is h11.IDLE and self._is_too_large(data):
            self.metrics.rejected.labels("size").inc()
            self._refuse_slowly(431, f"above {MAX_HEADERS} headers or {HEADER_BYTES >> 10} KiB of them")
            return
        try:
            super().data_received(data)
        except h11.LocalProtocolError:  # nonsense in the rest of a body that has its answer
            self.transport.close()
        self._follow()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._follow()

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no HTTP, in JSON as all other refusals."""
        self.metrics.rejected.labels("http").inc()
        self._refuse_slowly(400, "no valid HTTP request, or its head is too large")

    def shutdown(self) -> None:
        """Close the connection, or let its request be the last one: the service ends."""
        try:
            super().shutdown()
        except h11.LocalProtocolError:
            self.transport.close()

    # ---- limits

    def _is_too_large(self, data: bytes) -> bool:
        """Whether a head is above the limits, found without parsing it: thousands of headers take milliseconds."""
        before = self.conn.trailing_data[0]
        head = (before + data[: HEADER_BYTES + 1])[: HEADER_BYTES + 1]
        ends = [end for end in (head.find(b"\r\n\r\n"), head.find(b"\n\n")) if end >= 0]
        if not ends and len(head) > HEADER_BYTES:
            return True
        return head.count(b"\n", 0, min(ends, default=len(head))) > MAX_HEADERS

    def _follow(self) -> None:
        """Note what the connection waits for, and since when."""
        answered = self.cycle is None or self.cycle.response_complete
        state = self.conn.their_state
        if answered and self.transport.get_write_buffer_size():
            phase = "sending"
        elif state is h11.SEND_BODY:
            phase = "rest" if answered else "body"
        elif not answered:
            phase = "answer"
        elif self.cycle is None or self.conn.trailing_data[0]:
            phase = "head"
        else:
            phase = "idle"
        if phase != self.phase:
            self.phase, self.since, self.moved = phase, time.monotonic(), 0

    def check(self, now: float) -> None:
        """Close the connection if it exceeds a limit.

        Args:
            now: on the clock of ``time.monotonic``.
        """
        if self.refused:
            return
        self._follow()
        unsent = self.transport.get_write_buffer_size()
        if self.phase in ("answer", "sending"):
            self.moved += max(0, self.unsent - unsent)
        self.unsent = unsent
        waited, limits = now - self.since, self.limits
        granted = self.moved / (limits.min_rate * 1024)  # seconds for what was moved
        if self.phase == "head" and waited > limits.header_seconds:
            self._refuse_slow("the head of the request")
        elif self.phase == "idle" and waited > limits.idle_seconds:
            self.transport.close()
        elif self.phase == "body":
            if self.flow.read_paused:  # the service reads slowly, not the client
                self.since += _STEP
                self.received = now
            elif (  # a large body that is nearly complete must not be held until its time is over
                waited > limits.body_seconds + (granted if self._has_length else 0)
                or now - self.received > limits.body_seconds
            ):
                self._refuse_slow("the body of the request")
        elif self.phase == "rest" and waited > _LINGER:
            self.transport.close()
        elif self.phase == "answer" and not self.flow.write_paused:
            self.since, self.moved = now, 0  # the service works on it
        elif self.phase in ("answer", "sending") and waited > limits.sending_seconds + granted:
            self.metrics.rejected.labels("slow").inc()
            self.transport.abort()

    @property
    def _has_length(self) -> bool:
        """Whether the head says how long the body is; otherwise it could go on for ever."""
        return any(name == b"content-length" for name, _ in self.headers)

    @property
    def waits(self) -> bool:
        """Whether it has no complete request, or a wrong one, so that it may be closed to make room."""
        return self.phase in ("head", "idle", "body", "rest") or self._is_braked

    @property
    def _is_braked(self) -> bool:
        """Whether the answer, a refusal, waits for the brake."""
        return self.refused or (self.cycle is not None and self.cycle.scope.get("state", {}).get("braked", False))

    def _make_room(self) -> None:
        """Close the connection that has been without a request for longest; it may be this one."""
        # Of many connections that come at once, those that were closed for the others are still in the set.
        alive = [each for each in self.connections if isinstance(each, Connection) and not each.transport.is_closing()]
        if len(alive) <= self.limits.connections:
            return
        waiting = [each for each in alive if each.waits]
        oldest = min(waiting, key=lambda each: (not each._is_braked, each.phase == "body", each.since), default=self)
        self.metrics.rejected.labels("connections").inc()
        oldest.transport.abort() if oldest is not self else self._refuse(503, "busy: too many connections")

    def _refuse_slowly(self, status: int, message: str) -> None:
        """Answer as soon as the brake allows; until then nothing more is read."""
        self.refused = True
        self.transport.pause_reading()
        self.loop.call_later(self.brake.pause(), self._refuse, status, message)

    def _refuse_slow(self, what: str) -> None:
        self.metrics.rejected.labels("slow").inc()
        self._refuse(408, f"{what} came too slowly")

    def _refuse(self, status: int, message: str) -> None:
        """Answer if that is still possible, then close."""
        self.refused = False
        if self.transport.is_closing():
            return
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = json.dumps({"error": message}).encode()
            headers = [
                ("Content-Type", "application/json"),
                ("Content-Length", str(len(body))),
                ("Connection", "close"),
            ]
            if status == 503:
                headers.append(("Retry-After", "1"))
            for event in (h11.Response(status_code=status, headers=headers), h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()
        self._follow()


def guarded(limits: Limits, metrics: Metrics, brake: Brake) -> type[Connection]:
    """The class of connections of a service."""
    return type("GuardedConnection", (Connection,), {"limits": limits, "metrics": metrics, "brake": brake})


async def watch(connections: Callable[[], set[Any]]) -> None:
    """Check all connections until cancelled.

    Args:
        connections: those that are open.
    """
    while True:
        await asyncio.sleep(_STEP)
        now = time.monotonic()
        for connection in list(connections()):
            if isinstance(connection, Connection):
                connection.check(now)
