"""Damage files at random, reproducibly."""

from __future__ import annotations

import random


def spoil(content: bytes, rng: random.Random) -> bytes:
    """``content`` with a few bytes changed, removed or inserted, or truncated."""
    data = bytearray(content)
    for _ in range(rng.choice([1, 1, 2, 8])):
        place = rng.randrange(min(len(data), rng.choice([64, len(data)])))
        action = rng.random()
        if action < 0.7:
            data[place] = rng.choice([0, 255, rng.randrange(256)])
        elif action < 0.8:
            del data[place : place + rng.randrange(1, 9)]
        elif action < 0.9:
            data[place:place] = rng.randbytes(rng.randrange(1, 9))
        else:
            del data[place + 1 :]
        if not data:
            break
    return bytes(data)
