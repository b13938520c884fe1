"""Names by which clients may call a service, in the header Host.

The owner of a website can make its name lead to 127.0.0.1. A page of that site then reaches a service on the visitor's
machine, and the browser lets it read the answers (DNS rebinding). Its requests still have the site's name in Host.
"""

from __future__ import annotations

import ipaddress
import re
import socket
from collections.abc import Iterable

from ..errors import ConfigError

_LOCAL = ("localhost", "127.0.0.1", "::1")
_NAME = re.compile(r"[a-z0-9_-]+(\.[a-z0-9_-]+)*")


def names_of(bound: socket.socket, host: str, allowed: Iterable[str] = ()) -> frozenset[str]:
    """The names that a service answers to.

    Args:
        bound: the socket of the service.
        host: name or address with which it was bound.
        allowed: further names, without ports.

    Returns:
        Names in lower case. Empty, which means any name: the address is no loopback address, and none is ``allowed``.

    Raises:
        ConfigError: one of ``allowed`` is no name.
    """
    address = bound.getsockname()[0].partition("%")[0]
    wanted = [_parse(name) for name in allowed]
    if not wanted and not _is_loopback(address):
        return frozenset()
    return frozenset((*_LOCAL, address, host.lower(), *wanted))


def _is_loopback(address: str) -> bool:
    ip = ipaddress.ip_address(address)
    mapped = ip.ipv4_mapped if isinstance(ip, ipaddress.IPv6Address) else None
    return (mapped or ip).is_loopback


def _parse(text: str) -> str:
    name = text.lower().rstrip(".")
    try:
        return str(ipaddress.ip_address(name.strip("[]")))
    except ValueError:
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"--allow-host {text}: give a name without a port, for example models.example.org"
            ) from None
        return name


def name_in(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """The name in the header Host, in lower case, without port and brackets; empty if there is no such header."""
    value = next((value for name, value in headers if name == b"host"), b"").decode("latin-1").strip().lower()
    if value.startswith("["):
        return value[1:].partition("]")[0]
    return value.partition(":")[0].rstrip(".")
