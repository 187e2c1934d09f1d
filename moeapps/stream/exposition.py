"""``--metrics-port``: what a run tells Prometheus.

Numbers are taken in the thread of the run, after each batch, and read by the thread that answers.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from moeapps.core.errors import ConfigError
from moeapps.core.packages import needs

if TYPE_CHECKING:
    from moeapps.stream.run import StreamRun

__all__ = ["Latencies", "learning_of", "metrics_page"]


class Latencies:
    """Seconds from the arrival of an event to its written prediction, of the last 10,000 events.

    Events that are handled together arrive and are written together.
    """

    MOST = 10_000

    def __init__(self) -> None:
        self._batches: deque[tuple[float, int]] = deque()
        self._count = 0

    def add(self, seconds: float, events: int) -> None:
        """Note a batch."""
        self._batches.append((seconds, events))
        self._count += events
        while self._count - self._batches[0][1] >= self.MOST:
            self._count -= self._batches.popleft()[1]

    def quantile(self, share: float) -> float:
        """Seconds that this share of the events took at most; NaN before any."""
        wanted, done = share * self._count, 0
        for seconds, events in sorted(self._batches):
            done += events
            if done >= wanted:
                return seconds
        return float("nan")


def learning_of(run: "StreamRun") -> dict[str, Any]:
    """A run's numbers, see :data:`moeapps.core.exposition.Learning`."""
    labels = getattr(run.model, "_labels", None)
    return {
        "metric": "accuracy" if run.scores.COUNTS_HITS else "mae",
        "total": run.scores.total, "windowed": run.scores.windowed, "window": run.window, "scored": run.scores.n,
        "alarms": run.watch_errors.count, "renewed": int((run.model.drift_events_["event"] == "renewed").sum()),
        "learned": run.model.n_seen_, "waiting": len(run.waiting),
        "classes": None if labels is None else len(labels.labels),
        "named": run.named.as_dict(), "named_windowed": run.named.windowed(),
    }  # fmt: skip


@contextmanager
def metrics_page(run: "StreamRun", port: int | None, host: str = "127.0.0.1") -> Iterator[None]:
    """Offer ``/metrics`` while a run is at work; nothing where ``port`` is None.

    Parameters
    ----------
    run : StreamRun
        The run.
    port : int, optional
        Port, 0 for any free one; the run's ``notes`` tell which.
    host : str, default "127.0.0.1"
        Address to listen on.

    Raises
    ------
    ConfigError
        If prometheus_client is not installed, or the port is taken.
    """
    if port is None:
        yield
        return
    if not 0 <= port <= 65535:
        raise ConfigError(f"--metrics-port must be 0 to 65535, got {port}")
    with needs("--metrics-port", "moeapps[serve]"):
        from prometheus_client import CollectorRegistry, start_http_server

        from moeapps.core.exposition import expose, expose_learning
    now: dict[str, Any] = {}
    registry = CollectorRegistry()
    expose_learning(registry, lambda: now.get("learning"))
    for name, about in (
        ("events", "Events read"),
        ("rejected", "Events that could not be used"),
        ("repeated", "Events that came again"),
        ("unlabeled", "Events that came without a label"),
        ("lag", "What is in the source and not read: bytes of a file, messages of Kafka, else 0"),
        ("checkpoint_time_seconds", "When the last checkpoint was written, since 1970; 0 if none was"),
        ("events_per_second", "Events per second of the run"),
    ):
        expose(registry, f"moeapps_stream_{name}", about, lambda name=name: now.get(name, 0.0))  # type: ignore[misc]
    for short in ("p50", "p99"):
        about = f"From the arrival of an event to its written prediction, {short} of the last 10,000 events"
        expose(
            registry, f"moeapps_stream_prediction_seconds_{short}", about,
            lambda short=short: now.get(short, float("nan")),  # type: ignore[misc]
        )  # fmt: skip

    def observe() -> None:
        counts = run.counts
        now.update(
            learning=learning_of(run), events=counts.events, rejected=counts.rejected, repeated=counts.repeated,
            unlabeled=counts.unlabeled, lag=getattr(run.source, "lag", 0), events_per_second=run.rate,
            checkpoint_time_seconds=run.saved_at or 0.0, p50=run.latencies.quantile(0.5),
            p99=run.latencies.quantile(0.99),
        )  # fmt: skip

    try:
        server, thread = start_http_server(port, host, registry)
    except OSError as error:
        raise ConfigError(f"--metrics-port {port}: {host} cannot be listened on: {error}") from None
    run.notes.append(f"metrics on http://{host}:{server.server_port}/metrics")
    run.observe = observe
    try:
        yield
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
