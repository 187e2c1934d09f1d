"""The HTTP side: paths, checks before anything is parsed, refusals as responses, metrics for Prometheus.

1. ``_Guard`` reads the whole body, and refuses a wrong token, a body that is too large, or one that comes too slowly.
2. FastAPI checks the body against the model's schema (:mod:`moeapps.serve.schema`).
3. :meth:`~moeapps.serve.batching.ModelServer.submit` answers or refuses it.
4. A refusal from any of these becomes JSON in ``_respond``.
"""

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

import moeapps
from moeapps.serve.batching import ModelServer
from moeapps.serve.refusal import Refusal
from moeapps.serve.schema import learn_model, predict_model, rows_of

__all__ = ["make_app"]

OPEN = ("/health",)
"""Paths that need no token."""

DISCARDED = 16 * 2**20
"""Bytes beyond the limit that are still read, so that the client receives the refusal."""


def make_app(
    server: ModelServer, description: dict[str, Any], max_body: int = 1_048_576, token: str | None = None
) -> FastAPI:
    """The application.

    Parameters
    ----------
    server : ModelServer
        What answers.
    description : dict
        Of the model, from the worker.
    max_body : int, default 1 MiB
        Bytes that a request may have.
    token : str, optional
        What clients have to send as ``Authorization: Bearer <token>``; none when None, the default.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await server.run()
        yield
        await server.close()

    app = FastAPI(title=f"moeapps: {description['model']}", version=moeapps.__version__, lifespan=lifespan)
    counters = _Metrics(server)
    server.observe = counters.observe
    _add_errors(app)
    _add_paths(app, server, description, counters)
    app.add_middleware(_Guard, max_body=max_body, token=token, seconds=server.limits.timeout, metrics=counters)
    return app


def _add_paths(app: FastAPI, server: ModelServer, description: dict[str, Any], counters: "_Metrics") -> None:
    Predict: Any = predict_model(description)

    @app.post("/predict", summary="Predict rows")
    async def predict(body: Predict) -> JSONResponse:
        content = body.model_dump(by_alias=True)
        return JSONResponse({"predictions": await server.submit("predict", content, rows_of(content))})

    if server.learn_to is not None:
        Learn: Any = learn_model()

        @app.post("/learn", summary="Learn rows with their labels, in their order")
        async def learn(body: Learn) -> JSONResponse:
            content = body.model_dump(by_alias=True)
            return JSONResponse(await server.submit("learn", content, rows_of(content)))

    @app.get("/health", summary="200 when requests are answered, 503 when not")
    async def health() -> JSONResponse:
        return JSONResponse({"ready": server.ready}, 200 if server.ready else 503)

    @app.get("/info", summary="The model, its schema, and the limits")
    async def info() -> dict[str, Any]:
        return {
            **description,
            "source": server.source,
            "learns": server.learn_to is not None,
            "unsaved_requests": server.unsaved,
            "saved_at": server.saved_at,
            "restarts": server.restarts,
            "limits": vars(server.limits),
            "version": moeapps.__version__,
        }

    @app.get("/metrics", summary="Numbers for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(counters.text(), media_type=CONTENT_TYPE_LATEST)


def _respond(refusal: Refusal) -> JSONResponse:
    """A refusal as a response: the one place where they become JSON."""
    return JSONResponse(refusal.body(), refusal.status, refusal.headers)


def _add_errors(app: FastAPI) -> None:
    """Every error becomes a refusal."""

    @app.exception_handler(Refusal)
    async def refused(request: Request, error: Refusal) -> JSONResponse:
        return _respond(error)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [
            {"field": ".".join(str(part) for part in fault["loc"] if part != "body") or "body", "fault": fault["msg"]}
            for fault in error.errors()[:20]
        ]
        malformed = any(fault["type"] == "json_invalid" for fault in error.errors())
        message = f"{faults[0]['field']}: {faults[0]['fault']}"
        code = "invalid_json" if malformed else "invalid_request"
        return _respond(Refusal(400 if malformed else 422, code, message, faults=faults))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        code, message = "http_error", str(error.detail)
        if error.status_code == 400:  # FastAPI's, for a body that its parser gives up on
            code = "invalid_json"
        if error.status_code == 404:
            paths = ", ".join(sorted(path for path in app.openapi()["paths"]))
            code, message = "not_found", f"there is no {request.url.path}; there are {paths}"
        if error.status_code == 405:
            code, message = "method_not_allowed", f"{request.url.path} does not take {request.method}"
        return _respond(Refusal(error.status_code, code, message, error.headers))

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return _respond(Refusal(500, "server_failed", "the server failed with an error of its own; its log says more"))


class _Guard:
    """Before anything is parsed: token, size of the body, time it may take to arrive; and the counting of answers.

    The body is read here as a whole, so that neither a large nor a slow one gets any further.
    """

    def __init__(self, app: ASGIApp, max_body: int, token: str | None, seconds: float, metrics: "_Metrics") -> None:
        self.app, self.max_body, self.token = app, max_body, token
        self.seconds, self.metrics = seconds, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, path = time.perf_counter(), str(scope["path"])

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.count(path, int(message["status"]), time.perf_counter() - start)
            await send(message)

        refusal = self._refused(scope)
        if refusal is None:
            try:
                body = await asyncio.wait_for(self._body(receive), self.seconds)
            except TimeoutError:
                message = f"the body did not arrive within {self.seconds:.0f} s"
                refusal = Refusal(408, "body_timeout", message, {"Connection": "close"})
            else:
                refusal = self._too_large() if body is None else None
        if refusal is not None:
            await _respond(refusal)(scope, receive, counted)
            return
        await self.app(scope, _replay(body or b"", receive), counted)

    def _refused(self, scope: Scope) -> Refusal | None:
        headers = dict(scope["headers"])
        if self.token is not None and scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"")
            if not secrets.compare_digest(given, b"Bearer " + self.token.encode()):
                message = "send the token as Authorization: Bearer <token>"
                return Refusal(401, "no_token", message, {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body + DISCARDED:
            return self._too_large()
        return None

    def _too_large(self) -> Refusal:
        return Refusal(413, "too_large", f"the body is larger than {self.max_body} bytes", {"Connection": "close"})

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None where it is too large.

        What is too much is read and thrown away, up to a limit: if the connection were closed while the client still
        sends, the client would not receive the refusal.
        """
        parts: list[bytes] = []
        size = 0
        while size <= self.max_body + DISCARDED:
            message = await receive()
            if message["type"] == "http.disconnect":
                break
            part = message.get("body", b"")
            size += len(part)
            if size <= self.max_body:
                parts.append(part)
            if not message.get("more_body", False):
                break
        return b"".join(parts) if size <= self.max_body else None


def _replay(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again


class _Metrics:
    """What ``/metrics`` shows."""

    def __init__(self, server: ModelServer) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("moeapps_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("moeapps_request_seconds", "From request to answer", ["path"], registry=self.registry)
        self.rows = Histogram(
            "moeapps_batch_rows", "Rows that went to the model at once", registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
        )  # fmt: skip
        self.batches = Histogram("moeapps_batch_seconds", "Time the model took", registry=self.registry)
        for name, about, value in (
            ("waiting", "Requests in the queue", lambda: server.waiting),
            ("restarts", "Workers that died or hung", lambda: server.restarts),
            ("unsaved", "Requests learned but not on disk yet", lambda: server.unsaved),
            ("ready", "Whether there is a worker", lambda: float(server.ready)),
        ):
            Gauge(f"moeapps_{name}", about, registry=self.registry).set_function(value)

    def observe(self, name: str, value: float) -> None:
        """Count a batch."""
        (self.rows if name == "batch_rows" else self.batches).observe(value)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Count a request. Unknown paths are counted as one, or a client could fill the memory with labels."""
        path = path if status != 404 else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
