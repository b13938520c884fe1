"""Images by address, for services that allow certain hosts: what keeps a client from reaching anything else.

Only https, only hosts of a list, only public addresses, resolved once; redirects are errors; size and time are bounded.
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from ..errors import ConfigError, InputError

_PORT = 443
_LONGEST = 2048
_PART = 1 << 16
_STEP = 5.0  # seconds that a connection may be silent


def is_public(address: str) -> bool:
    """Whether an IP address is on the public internet: not private, local, shared, reserved or multicast."""
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip.sixtofour is not None or ip.teredo is not None or ip in _TRANSLATED:
            return False  # they stand for IPv4 addresses
    return ip.is_global and not ip.is_multicast


_TRANSLATED = ipaddress.ip_network("64:ff9b::/96")  # IPv4 addresses behind a translator


@dataclass(frozen=True)
class Fetcher:
    """Downloads images from allowed hosts.

    Attributes:
        hosts: allowed names, ``name`` or ``name:port``; empty: no address is allowed.
        max_bytes: largest file.
        seconds: for one file, from the connection to its last byte.
        allows: whether an IP address may be connected to.
        tls: how servers are verified.
    """

    hosts: frozenset[str] = frozenset()
    max_bytes: int = 64 << 20
    seconds: float = 10
    allows: Callable[[str], bool] = is_public
    tls: ssl.SSLContext = field(default_factory=ssl.create_default_context)

    def fetch(self, url: str) -> bytes:
        """The file at an address.

        Raises:
            InputError: one line about the address or about what its host answers.
        """
        parts, host, port = self._check(url)
        address = self._resolve(host, port)
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection = _Pinned(host, port, address, self.tls)
        clock = threading.Timer(self.seconds, connection.abort)
        clock.daemon = True
        clock.start()
        try:
            connection.request(
                "GET", path, headers={"Accept": "image/*", "User-Agent": "foveal", "Connection": "close"}
            )
            content = self._read(connection.getresponse(), host)
        except InputError:
            if connection.aborted:  # what came until then looks like an answer that ends early
                raise self._too_slow(host) from None
            raise
        except (OSError, http.client.HTTPException, ValueError) as error:
            if connection.aborted:
                raise self._too_slow(host) from error
            raise InputError(f"url: {host} cannot be read ({' '.join(str(error).split()) or 'no answer'})") from error
        finally:
            clock.cancel()
            connection.close()
        if connection.aborted:
            raise self._too_slow(host)
        return content

    def _too_slow(self, host: str) -> InputError:
        return InputError(f"url: {host} takes longer than {self.seconds:g} s")

    def _check(self, url: str) -> tuple[SplitResult, str, int]:
        """Parts, host and port of an allowed address."""
        if not self.hosts:
            raise InputError("url: this service takes no addresses: send the image itself")
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower().rstrip("."), parts.port or _PORT
        except ValueError:
            raise InputError("url: no valid address") from None
        if len(url) > _LONGEST or not url.isascii() or not url.isprintable() or " " in url:
            raise InputError("url: no valid address: give ASCII without spaces, of at most 2048 characters")
        if parts.scheme != "https":
            raise InputError("url: only https addresses are read")
        if parts.username is not None or parts.password is not None:
            raise InputError("url: no user name and password are sent")
        if host not in self.hosts and f"{host}:{port}" not in self.hosts:
            raise InputError(f"url: {host[:100]} is not among the hosts that this service allows")
        if port != _PORT and f"{host}:{port}" not in self.hosts:
            raise InputError(f"url: port {port} of {host} is not allowed")
        return parts, host, port

    def _resolve(self, host: str, port: int) -> str:
        """One IP address of a host, all of whose addresses are public."""
        try:
            found = {entry[4][0] for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
        except (OSError, UnicodeError):
            raise InputError(f"url: {host} is not known") from None
        addresses = sorted(map(str, found))
        if not addresses or not all(map(self.allows, addresses)):
            raise InputError(f"url: {host} has an address that is not public")
        return addresses[0]

    def _read(self, response: http.client.HTTPResponse, host: str) -> bytes:
        if response.status != 200:
            kind = "a redirect, which is not followed" if 300 <= response.status < 400 else "no image"
            raise InputError(f"url: {host} answers with status {response.status}, {kind}")
        content = bytearray()
        while part := response.read1(_PART):
            content += part
            if len(content) > self.max_bytes:
                raise InputError(f"url: larger than the limit of {self.max_bytes >> 20} MiB")
        if response.length:  # what is missing of the announced length
            raise InputError(f"url: {host} cannot be read (it ends {response.length} bytes early)")
        return bytes(content)


class _Pinned(http.client.HTTPSConnection):
    """A connection to one IP address, which is not resolved again, with the certificate of the host's name."""

    def __init__(self, host: str, port: int, address: str, tls: ssl.SSLContext) -> None:
        super().__init__(host, port, timeout=_STEP, context=tls)
        self.address, self.tls, self.aborted = address, tls, False
        self.opened: socket.socket | None = None  # also when the response has taken over ``sock``

    def connect(self) -> None:
        plain = socket.create_connection((self.address, self.port), self.timeout)
        try:
            self.sock = self.tls.wrap_socket(plain, server_hostname=self.host, do_handshake_on_connect=False)
        except BaseException:
            plain.close()
            raise
        self.opened = self.sock
        if self.aborted:
            raise TimeoutError
        self.sock.do_handshake()

    def abort(self) -> None:
        """End it, from another thread: a limit for each wait would not bound a host that sends a byte now and then."""
        self.aborted = True
        if self.opened is not None:
            with contextlib.suppress(OSError):
                # Not the method of TLS, which would change what the reader uses.
                socket.socket.shutdown(self.opened, socket.SHUT_RDWR)


def parse_hosts(hosts: list[str]) -> frozenset[str]:
    """Check the names of allowed hosts.

    Raises:
        ConfigError: an address instead of a name.
    """
    for host in hosts:
        name, _, port = host.partition(":")
        if not name or "/" in host or "*" in host or (":" in host and not port.isdecimal()):
            raise ConfigError(f"--allow-url {host}: give the name of a host, for example images.example.org")
    return frozenset(host.lower() for host in hosts)
