"""How much a server takes on: the bounds of everything that a client can make grow."""

from dataclasses import dataclass

__all__ = ["MAX_CELLS", "Limits"]

MAX_CELLS = 1_000_000
"""Rows times different features that a request to learn may have; they become a table."""


@dataclass(frozen=True)
class Limits:
    """How much the server takes on.

    Parameters
    ----------
    queue : int, default 256
        Requests that may wait.
    batch_rows : int, default 1024
        Rows that go to the model at once. A larger request to predict is cut into pieces; one to learn goes alone.
    timeout : float, default 30
        Seconds until a request is cancelled.
    save_every : float, default 30
        Seconds between two savings of what was learned.
    hang : float, optional
        Seconds without an answer after which the worker counts as hung and is replaced. A request that is only slow is
        cancelled after ``timeout`` and the worker stays. Twice ``timeout``, but at least 20 s, when None, the default.
    queue_bytes : int, default 64 MiB
        Bytes that the bodies of all waiting requests may have.
    keys : int, default 10000
        Idempotency keys that are remembered; the oldest is forgotten first.
    journal_bytes : int, default 64 MiB
        Bytes of learned requests that may wait to be saved in the model. A quarter of it makes the server save early;
        at the limit, which a disk that refuses the model leads to, requests to learn are refused.
    sample_images : int, default 64
        Images that one request may have generated.
    sample_steps : int, default 250
        Steps of the sampler that one request may ask for.
    sample_work : int, default 20000000
        Images times steps times values of an image, twice that with guidance, that one request may ask for.
    """

    queue: int = 256
    batch_rows: int = 1024
    timeout: float = 30.0
    save_every: float = 30.0
    hang: float | None = None
    queue_bytes: int = 64 * 2**20
    keys: int = 10_000
    journal_bytes: int = 64 * 2**20
    sample_images: int = 64
    sample_steps: int = 250
    sample_work: int = 20_000_000

    @property
    def hang_after(self) -> float:
        """``hang``, or its default."""
        return self.hang if self.hang is not None else max(20.0, 2 * self.timeout)
