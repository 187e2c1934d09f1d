"""The one form of a request that is not answered: status, code, message, from the model to the response."""

from collections.abc import Mapping, Sequence
from typing import Any

from moeapps.core.errors import MoEAppsError

__all__ = [
    "HALF_LEARNED", "Refusal", "half_learned", "key_reused", "model_failed", "no_worker", "not_reloaded", "not_saved",
    "queue_full", "refused_data", "timed_out",
]  # fmt: skip

HALF_LEARNED = "half_learned"
"""Code of :func:`half_learned`, upon which the server replaces the worker."""


class Refusal(MoEAppsError):
    """A request that is not answered, and why.

    Parameters
    ----------
    status : int
        Status of the HTTP response.
    code : str
        Name of the reason, for programs.
    message : str
        The reason in words.
    headers : mapping of str to str, optional
        Further headers of the response.
    faults : sequence of dict, optional
        What is wrong in the body, field by field (``{"field": ..., "fault": ...}``).
    """

    def __init__(
        self,
        status: int,
        code: str,
        message: str,
        headers: Mapping[str, str] | None = None,
        faults: Sequence[Mapping[str, str]] = (),
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers, self.faults = dict(headers or {}), [dict(fault) for fault in faults]

    def body(self) -> dict[str, Any]:
        """What the response says: ``error``, ``code``, and ``faults`` where there are some."""
        return {"error": self.message, "code": self.code, **({"faults": self.faults} if self.faults else {})}

    def to_json(self) -> dict[str, Any]:
        """What goes through the pipe from the worker; the constructor takes it."""
        return {"status": self.status, "code": self.code, "message": self.message}


def queue_full() -> Refusal:
    """As many requests wait as may."""
    return Refusal(503, "queue_full", "the queue is full: try again", {"Retry-After": "1"})


def no_worker() -> Refusal:
    """There is no worker, or it died before it answered."""
    return Refusal(503, "no_worker", "the model is being started: try again", {"Retry-After": "5"})


def timed_out() -> Refusal:
    """The answer did not come in time."""
    return Refusal(504, "timeout", "no answer in time: the request was cancelled")


def refused_data(error: Exception) -> Refusal:
    """The model cannot predict or learn this content."""
    message = str(error) or type(error).__name__
    return Refusal(422, "invalid_data", message if len(message) <= 1000 else f"{message[:1000]}...")


def model_failed() -> Refusal:
    """The model raised something else than a :class:`~moeapps.core.errors.DataError`; the log has the traceback."""
    return Refusal(500, "model_failed", "the model failed with an error of its own; the log says more")


def half_learned() -> Refusal:
    """The model failed while it learned, and is not what it was before. It is thrown away, so nothing was learned."""
    return Refusal(500, HALF_LEARNED, "the model failed while it learned; nothing of the request is kept")


def not_saved(error: OSError | str) -> Refusal:
    """The disk refuses what was learned."""
    return Refusal(503, "not_saved", f"what is learned could not be saved: {error}", {"Retry-After": "30"})


def key_reused(key: str) -> Refusal:
    """An idempotency key came with other content than before."""
    return Refusal(422, "key_reused", f"Idempotency-Key {key[:100]!r} came with another body before: use a new key")


def not_reloaded(why: str) -> Refusal:
    """The model that is served stays."""
    return Refusal(409, "not_reloaded", f"not reloaded, the model is served as before: {why}")
