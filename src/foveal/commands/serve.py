"""The verb ``serve``."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..serving.limits import Limits
from .console import ANY_ENGINE, Engines, say

_LIMITS = Limits()


def serve(
    models: list[str] | None = None,
    /,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    keys: Path | None = None,
    allow_host: list[str] | None = None,
    allow_url: list[str] | None = None,
    log_requests: bool = True,
    limits: Annotated[Limits, Parameter(name="*")] = _LIMITS,
    engine: Engines = ANY_ENGINE,
) -> int:
    """Serve models over HTTP, with a page to click on.

    Parameters
    ----------
    models
        Bundled names, checkpoints, exported files or training runs, each also as NAME=REF; default: the bundled models.
    host
        Address to listen on; 0.0.0.0 for other machines.
    port
        Port to listen on; 0 for any free port.
    keys
        File with one key per line; every request needs one of them (Authorization: Bearer KEY).
    allow_host
        Name of this service that requests may have in the header Host; repeat the option for more. Default: on a
        loopback address the names of this machine, on other addresses any name.
    allow_url
        Host from which the service may fetch images by https address; repeat the option for more. Default: none.
    log_requests
        Write a line of JSON for each request to standard error.
    """
    from ..serving.addresses import Fetcher, parse_hosts
    from ..serving.keys import Keys, read_keys
    from ..serving.models import default_refs
    from ..serving.names import names_of
    from ..serving.server import address_of, bind
    from ..serving.server import serve as run
    from ..serving.service import Settings

    fetcher = Fetcher(parse_hosts(allow_url or []), limits.body_bytes)
    known = read_keys(keys) if keys else Keys()
    with bind(host, port) as bound:
        settings = Settings(limits, known, fetcher, names_of(bound, host, allow_host or ()))
        address = address_of(bound)
        run(
            models or default_refs(),
            settings,
            bound,
            engine.options(),
            lambda service: _say_ready(address, service.models),
            log_requests,
        )
    return 0


def _say_ready(address: str, models: Iterable[str]) -> None:
    say(f"{address} serves {', '.join(models)}; Ctrl+C ends it")
    sys.stdout.flush()  # a program that started this one waits for the line
