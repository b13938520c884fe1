"""Metrics of a service in Prometheus' format."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """Counters of one service.

    Attributes:
        requests: by call, model and status.
        latency: seconds from the headers of a request to its last byte, by call.
        refusal: seconds from the head of a request to its 503.
        rejected: requests without a result, by reason: queue, bodies, deadline, cancelled, size, slow, keys, memory,
            connections, http, host, addresses, ending, other.
        out_of_memory: images for which the network had too little memory.
        embeddings: looked up, by whether they were there.
    """

    def __init__(self) -> None:
        disable_created_metrics()
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self.requests = Counter("foveal_requests", "Requests.", ("call", "model", "status"), registry=self.registry)
        self.latency = Histogram(
            "foveal_request_seconds", "Time of requests.", ("call",), buckets=_SECONDS, registry=self.registry
        )
        self.refusal = Histogram(
            "foveal_refusal_seconds",
            "Time from the head of a request to 503.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.rejected = Counter("foveal_rejected", "Requests without a result.", ("reason",), registry=self.registry)
        self.out_of_memory = Counter(
            "foveal_out_of_memory", "Images for which the network had too little memory.", registry=self.registry
        )
        self.embeddings = Counter(
            "foveal_embeddings", "Embeddings looked up in the cache.", ("found",), registry=self.registry
        )
        self._depth = Gauge("foveal_queue_depth", "Requests that wait or run.", ("lane",), registry=self.registry)
        self._batch = Histogram(
            "foveal_batch_size", "Requests that ran at once.", ("lane",), buckets=_SIZES, registry=self.registry
        )
        self._compute = Histogram(
            "foveal_compute_seconds", "Time of a batch.", ("lane",), buckets=_SECONDS, registry=self.registry
        )

    def add_lane(self, name: str, depth: Callable[[], float]) -> None:
        """Show the number of requests of a lane."""
        self._depth.labels(name).set_function(depth)

    def add_gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Show a number under ``foveal_<name>``."""
        Gauge(f"foveal_{name}", text, registry=self.registry).set_function(value)

    def computed(self, lane: str, count: int, seconds: float) -> None:
        """Count a batch."""
        self._batch.labels(lane).observe(count)
        self._compute.labels(lane).observe(seconds)

    def text(self) -> bytes:
        """All metrics as text."""
        return generate_latest(self.registry)
