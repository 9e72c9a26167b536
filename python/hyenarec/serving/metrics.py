"""The service's metrics for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from hyenarec.serving.engine import Engine

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
SIZES = tuple(2**i for i in range(9))


class Metrics:
    """Counters and histograms of one service."""

    def __init__(self, engine: Engine) -> None:
        self._registry = registry = CollectorRegistry()
        self._requests = Counter("hyenarec_requests", "Requests", ("route", "status"), registry=registry)
        self._seconds = Histogram("hyenarec_seconds", "Per request", ("route",), buckets=SECONDS, registry=registry)
        self._batch = Histogram(
            "hyenarec_batch", "Requests served together", ("work",), buckets=SIZES, registry=registry
        )
        self._work = Histogram("hyenarec_batch_seconds", "Per batch", ("work",), buckets=SECONDS, registry=registry)
        self.events = Counter("hyenarec_events", "New events", registry=registry)
        users = Gauge("hyenarec_users", "Users whose states are in memory", registry=registry)
        users.set_function(lambda: len(engine.states))
        engine.observe = self._observe_batch

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Records a request that has been answered."""
        self._requests.labels(route, status).inc()
        self._seconds.labels(route).observe(seconds)

    def text(self) -> bytes:
        return generate_latest(self._registry)

    def _observe_batch(self, work: str, size: int, seconds: float) -> None:
        self._batch.labels(work).observe(size)
        self._work.labels(work).observe(seconds)
