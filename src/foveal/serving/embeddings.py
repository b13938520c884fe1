"""Encoded images by the hash of their content, bounded in bytes: a click on an image does not encode it again."""

from __future__ import annotations

import dataclasses
import hashlib
import threading
from collections import OrderedDict

from ..prediction.prompting import Embedding


def content_hash(content: bytes) -> str:
    """Name of an image's embedding: the SHA-256 of the file, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


class EmbeddingCache:
    """Embeddings by model and content hash; the one that was not used for longest makes room.

    The pixels of the images are not kept.

    Args:
        limit: bytes of all embeddings.
    """

    def __init__(self, limit: int) -> None:
        self.limit, self.bytes = limit, 0
        self._lock = threading.Lock()
        self._entries: OrderedDict[tuple[str, str], Embedding] = OrderedDict()

    def get(self, model: str, name: str) -> Embedding | None:
        """The embedding of this content hash; ``None``: it was never there, or has made room."""
        with self._lock:
            if (found := self._entries.get((model, name))) is not None:
                self._entries.move_to_end((model, name))
            return found

    def put(self, model: str, name: str, embedding: Embedding) -> None:
        """Keep an embedding, unless it alone is above the limit."""
        embedding = dataclasses.replace(embedding, image=None)
        size = embedding.features.nbytes
        with self._lock:
            if (model, name) in self._entries or size > self.limit:
                return
            self._entries[model, name] = embedding
            self.bytes += size
            while self.bytes > self.limit:
                _, old = self._entries.popitem(last=False)
                self.bytes -= old.features.nbytes
