"""The outermost layer of the application: heads, names, keys, one line of log and one JSON error per request."""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
import time
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .limits import HEADER_BYTES, MAX_HEADERS, MAX_PATH
from .logs import REQUESTS
from .names import name_in
from .replies import RefusalError
from .service import Service

_LOG = logging.getLogger(__name__)
#: Answered without a key: whether the service lives, and the page, which asks for the key.
_KEYED = ("/api/", "/v2", "/metrics", "/openapi.json")
_OPEN = ("/v2/health/",)
_POLICY = (
    "default-src 'self'; img-src 'self' blob: data:; style-src 'self' 'unsafe-inline'; script-src 'self' "
    "'wasm-unsafe-eval'; connect-src 'self' blob: data:; worker-src 'self' blob:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'self'"
)
_CLOSING = (400, 414, 431)  # statuses after which nothing sensible is expected from a client
_BRAKED = (*_CLOSING, 401, 403)  # statuses of requests that no correct client sends again and again
_HEADERS = [
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", _POLICY.encode()),
    (b"referrer-policy", b"no-referrer"),
]


class Gate:
    """ASGI middleware.

    Args:
        app: the application.
        service: whose keys, names, brake and metrics count.
    """

    def __init__(self, app: ASGIApp, service: Service) -> None:
        self.app, self.service, self.metrics = app, service, service.metrics
        self.keys, self.names = service.settings.keys, service.settings.names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, facts = time.perf_counter(), {}
        scope.setdefault("state", {})["facts"] = facts
        number, status, sent = secrets.token_hex(8), 0, 0

        async def sending(message: Message) -> None:
            nonlocal status, sent
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {**message, "headers": [*message["headers"], *_HEADERS, (b"x-request-id", number.encode())]}
            else:
                sent += len(message.get("body", b""))
            await send(message)

        try:
            _check_head(scope)
            self._check_name(scope)
            if not self._may_pass(scope):
                raise RefusalError(
                    401, "no valid key: send Authorization: Bearer KEY", "keys", {"WWW-Authenticate": "Bearer"}
                )
            await self.app(scope, receive, sending)
        except RefusalError as error:
            self.metrics.rejected.labels(error.reason or "other").inc()
            if error.status in _BRAKED:
                scope["state"]["braked"] = True
                await asyncio.sleep(self.service.brake.pause())
            await refuse(error, sending)
        except Exception:
            _LOG.exception("request %s failed", number)
            if not status:
                await refuse(RefusalError(500, f"the service failed; its log has more under {number}"), sending)
        finally:
            self._note(scope, facts, number, status, sent, time.perf_counter() - started)

    def _check_name(self, scope: Scope) -> None:
        """Refuse pages of other sites whose names lead to this machine."""
        name = name_in(scope["headers"])
        if self.names and name not in self.names:
            raise RefusalError(403, f"Host {name[:100]!r} is no name of this service: --allow-host adds names", "host")

    def _may_pass(self, scope: Scope) -> bool:
        path: str = scope["path"]
        keyed = path.startswith(_KEYED) and not path.startswith(_OPEN)
        return not keyed or self.keys.allow(scope["headers"])

    def _note(self, scope: Scope, facts: dict[str, Any], number: str, status: int, sent: int, seconds: float) -> None:
        call = facts.get("call", "other")
        self.metrics.requests.labels(call, facts.get("model", ""), str(status)).inc()
        self.metrics.latency.labels(call).observe(seconds)
        if status == 503:
            self.metrics.refusal.observe(seconds)
        client = scope.get("client") or ("", 0)
        line = {"event": "request", "id": number, "client": client[0], "method": scope["method"][:20]}
        line |= {"path": scope["path"][:200], "status": status, "ms": round(1000 * seconds, 1), "sent": sent, **facts}
        REQUESTS.info("", extra={"facts": line})


def _check_head(scope: Scope) -> None:
    """Refuse heads that no client of ours sends."""
    headers = scope["headers"]
    size = sum(len(name) + len(value) + 4 for name, value in headers)
    if len(headers) > MAX_HEADERS or size > HEADER_BYTES:
        raise RefusalError(431, f"above {MAX_HEADERS} headers or {HEADER_BYTES >> 10} KiB of them", "size")
    if len(scope["raw_path"]) + len(scope["query_string"]) > MAX_PATH:
        raise RefusalError(414, f"an address of more than {MAX_PATH} characters: send options in the body", "size")
    if any(ord(sign) < 32 or ord(sign) == 127 for sign in scope["path"]):
        raise RefusalError(400, "an address with control characters")


async def refuse(error: RefusalError, send: Send) -> None:
    """Send a refusal as JSON."""
    body = json.dumps({"error": " ".join(str(error).split())}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status in _CLOSING:
        headers.append((b"connection", b"close"))
    headers += [(name.lower().encode(), value.encode()) for name, value in error.headers.items()]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
