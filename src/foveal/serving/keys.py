"""API keys: read from a file, compared in constant time, never logged."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Iterable
from pathlib import Path

from ..errors import ConfigError

_SHORTEST = 16
_LARGEST = 1 << 20


class Keys:
    """The keys of a service; without any, every client may use it.

    Args:
        keys: the keys.
    """

    def __init__(self, keys: Iterable[str] = ()) -> None:
        # Hashes have one length, so that the time of a comparison tells nothing about a key.
        self._hashes = [_hash(key.encode()) for key in keys]

    def __bool__(self) -> bool:
        return bool(self._hashes)

    def allow(self, headers: Iterable[tuple[bytes, bytes]]) -> bool:
        """Whether a request with these headers may be answered: ``Authorization: Bearer KEY`` or ``X-API-Key: KEY``."""
        if not self._hashes:
            return True
        given = b""
        for name, value in headers:
            if name == b"x-api-key":
                given = value
            elif name == b"authorization" and value[:7].lower() == b"bearer ":
                given = value[7:]
        found = _hash(given.strip())
        return sum(hmac.compare_digest(found, known) for known in self._hashes) > 0  # always compares with all of them


def _hash(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


def read_keys(path: Path) -> Keys:
    """Read a file with one key a line; empty lines and lines that begin with # do not count.

    Raises:
        ConfigError: the file cannot be read, has no key, or a short one.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ConfigError(f"--keys {path}: above {_LARGEST >> 20} MiB, no file of keys")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--keys {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    keys = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    if not keys:
        raise ConfigError(f"--keys {path}: no keys: write one a line")
    for number, key in enumerate(keys, start=1):
        if len(key) < _SHORTEST or not key.isascii() or not key.isprintable() or " " in key:
            raise ConfigError(
                f"--keys {path}: key {number} is not {_SHORTEST} or more ASCII characters without spaces: make one "
                'with python -c "import secrets; print(secrets.token_urlsafe(32))"'
            )
    return Keys(keys)
