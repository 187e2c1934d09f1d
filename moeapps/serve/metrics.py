"""What ``/metrics`` shows, for Prometheus."""

from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from moeapps.core.exposition import expose, expose_learning
from moeapps.core.tabledata.vocabulary import Vocabulary
from moeapps.serve.batching import ModelServer

__all__ = ["Metrics"]


class Metrics:
    """Counters of a server.

    Parameters
    ----------
    server : ModelServer
        The server.
    routes : iterable of str
        Paths that are labels. All others are counted as "other", or clients could make the page grow.
    """

    def __init__(self, server: ModelServer, routes: Iterable[str] = ()) -> None:
        self.routes = frozenset(routes)
        self.registry = CollectorRegistry()
        self.requests = Counter("moeapps_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("moeapps_request_seconds", "From request to answer", ["path"], registry=self.registry)
        self.rows = Histogram(
            "moeapps_batch_rows", "Rows that went to the model at once", registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
        )  # fmt: skip
        self.batches = Histogram("moeapps_batch_seconds", "Time the model took", registry=self.registry)
        self.scenarios = Counter(
            "moeapps_scenario_rows", "Rows predicted, by scenario", ["column", "scenario"], registry=self.registry
        )
        expose_learning(self.registry, lambda: server.learning)
        for name, about, value in (
            ("waiting", "Requests in the queue", lambda: server.waiting),
            ("restarts", "Workers that died or hung", lambda: server.restarts),
            ("unsaved", "Requests learned that are in the journal only", lambda: server.unsaved),
            ("ready", "Whether requests are answered", lambda: float(server.ready)),
        ):
            expose(self.registry, f"moeapps_{name}", about, value)

    def observe(self, name: str, value: float) -> None:
        """Count a batch."""
        (self.rows if name == "batch_rows" else self.batches).observe(value)

    def count_scenarios(self, scenario: Mapping[str, Any], rows: Iterable[Mapping[str, Any]]) -> None:
        """Count predicted rows by scenario.

        Parameters
        ----------
        scenario : mapping
            The ``column``, and the ``values`` that are labels. All others are counted as "other", as are missing ones,
            or clients could make the page grow.
        rows : iterable of mappings
            The rows.
        """
        column, vocabulary = scenario["column"], Vocabulary(scenario["values"])
        for row in rows:
            code = -1 if (value := row.get(column)) is None else vocabulary.code(value)
            name = str(vocabulary.values[code]) if code >= 0 else "other"
            self.scenarios.labels(column, name).inc()

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count a request."""
        path = path if path in self.routes else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
