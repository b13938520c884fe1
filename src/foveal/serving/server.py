"""Start a service: bind the port, open the models, answer until a signal, then drain."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import signal
import socket
import sys
import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

import uvicorn

from ..errors import ConfigError
from .app import make_app
from .connections import guarded, watch
from .limits import HEADER_BYTES
from .logs import start_logs
from .models import open_models
from .service import Service, Settings

_BACKLOG = 128
_ARENAS = -8  # M_ARENA_MAX of glibc's malloc.h


def bind(host: str, port: int) -> socket.socket:
    """A socket with this address; it does not listen yet.

    Args:
        host: name or address of this machine.
        port: 0 for any that is free.

    Raises:
        ConfigError: the address cannot be used, or another program uses it.
    """
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: give 0 to 65535")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"--host {host}: no address of this machine") from error
    # With this protocol number, asyncio sets TCP_NODELAY: otherwise answers wait up to 40 ms for acknowledgements.
    bound = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise ConfigError(
            f"{host}:{port} cannot be used ({error.strerror}): give another --port, or 0 for any that is free"
        ) from error
    return bound


def address_of(bound: socket.socket) -> str:
    """The address of a bound socket for a browser."""
    host, port = bound.getsockname()[:2]
    host = "localhost" if host in ("0.0.0.0", "::") else host
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Server(uvicorn.Server):
    """uvicorn's server with watched connections, whose end by a signal is an ordinary end.

    Args:
        config: of uvicorn.
        service: the service.
        ready: called when it listens.
    """

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], object]) -> None:
        super().__init__(config)
        self.service, self.ready = service, ready
        self._watch: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._watch = asyncio.create_task(watch(lambda: self.server_state.connections))
        self.service.metrics.add_gauge("connections", "Open connections.", lambda: len(self.server_state.connections))
        self.ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.service.ending = True
        await super().shutdown(sockets)
        if self._watch is not None:
            self._watch.cancel()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        """As uvicorn's, but a signal that was obeyed is not raised again: the exit code is 0."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _share_process() -> None:
    """Settings of a process in which one thread answers while others compute."""
    # A thread that waits for Python's lock gets it after this time: requests are refused while results are written.
    sys.setswitchinterval(0.001)
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):  # another C library than glibc
            # By default every thread has an arena of its own, from which memory hardly returns to the system.
            ctypes.CDLL(None).mallopt(_ARENAS, 2)


def serve(
    refs: Sequence[str],
    settings: Settings,
    bound: socket.socket,
    engine: Mapping[str, Any],
    ready: Callable[[Service], object],
    log_requests: bool = True,
) -> None:
    """Open models and answer requests until SIGTERM or SIGINT; then finish what runs, and return.

    Args:
        refs: of the models, each also as NAME=REF.
        settings: of the service.
        bound: socket of :func:`bind`.
        engine: options of :func:`foveal.load`.
        ready: called when requests are taken.
        log_requests: whether each request gets a line in the log.

    Raises:
        FovealError: a model cannot be opened.
    """
    _share_process()
    models = open_models(refs, settings.limits.batch_size, engine)
    start_logs(requests=log_requests)
    app = make_app(models, settings)
    service: Service = app.state.service
    limits = settings.limits
    config = uvicorn.Config(
        app,
        http=guarded(limits, service.metrics, service.brake),
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_BACKLOG,
        h11_max_incomplete_event_size=HEADER_BYTES,
        timeout_keep_alive=max(1, round(limits.idle_seconds)),
        timeout_graceful_shutdown=round(limits.drain),
    )
    Server(config, service, lambda: ready(service)).run([bound])
