"""The HTTP side: paths, checks before anything is parsed, errors that name the fault, numbers for Prometheus."""

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
from moeapps.serve.batching import Backend, Busy, Refused, TooSlow, Unavailable, WorkFailed
from moeapps.serve.schema import learn_model, predict_model, rows_of

__all__ = ["make_app"]

OPEN = ("/health",)
"""Paths that need no token."""

DISCARDED = 16 * 2**20
"""Bytes beyond the limit that are read all the same, so that the client gets to see why."""


def make_app(
    backend: Backend, description: dict[str, Any], max_body: int = 1_048_576, token: str | None = None
) -> FastAPI:
    """The application.

    Args:
        backend: What answers.
        description: Of the model, from the worker.
        max_body: Bytes that a request may have.
        token: What clients have to send as ``Authorization: Bearer <token>``; none when None.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await backend.run()
        yield
        await backend.close()

    app = FastAPI(title=f"moeapps: {description['model']}", version=moeapps.__version__, lifespan=lifespan)
    numbers = _Numbers(backend)
    backend.observe = numbers.observe
    _add_errors(app)
    _add_paths(app, backend, description, numbers)
    app.add_middleware(_Gate, max_body=max_body, token=token, seconds=backend.limits.timeout, numbers=numbers)
    return app


def _add_paths(app: FastAPI, backend: Backend, description: dict[str, Any], numbers: "_Numbers") -> None:
    Predict: Any = predict_model(description)

    @app.post("/predict", summary="Predict rows")
    async def predict(body: Predict) -> JSONResponse:
        content = body.model_dump(by_alias=True)
        return JSONResponse({"predictions": await backend.ask("predict", content, rows_of(content))})

    if backend.learn_to is not None:
        Learn: Any = learn_model()

        @app.post("/learn", summary="Learn rows with their labels, in their order")
        async def learn(body: Learn) -> JSONResponse:
            content = body.model_dump(by_alias=True)
            return JSONResponse(await backend.ask("learn", content, rows_of(content)))

    @app.get("/health", summary="200 when requests are answered, 503 when not")
    async def health() -> JSONResponse:
        return JSONResponse({"ready": backend.ready}, 200 if backend.ready else 503)

    @app.get("/info", summary="The model, its schema, and the limits")
    async def info() -> dict[str, Any]:
        return {
            **description,
            "source": backend.source,
            "learns": backend.learn_to is not None,
            "unsaved_requests": backend.unsaved,
            "saved_at": backend.saved_at,
            "restarts": backend.restarts,
            "limits": vars(backend.limits),
            "version": moeapps.__version__,
        }

    @app.get("/metrics", summary="Numbers for Prometheus", response_class=PlainTextResponse)
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(numbers.text(), media_type=CONTENT_TYPE_LATEST)


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        faults = [
            {"field": ".".join(str(part) for part in fault["loc"] if part != "body") or "body", "fault": fault["msg"]}
            for fault in error.errors()[:20]
        ]
        malformed = any(fault["type"] == "json_invalid" for fault in error.errors())
        first = faults[0]
        return _error(400 if malformed else 422, f"{first['field']}: {first['fault']}", faults)

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        text = str(error.detail)
        if error.status_code == 404:
            paths = ", ".join(sorted(path for path in app.openapi()["paths"]))
            text = f"there is no {request.url.path}; there are {paths}"
        if error.status_code == 405:
            text = f"{request.method} is not for {request.url.path}"
        return _error(error.status_code, text, headers=dict(error.headers or {}))

    @app.exception_handler(Exception)
    async def fault(request: Request, error: Exception) -> JSONResponse:
        return _error(500, "a fault of the server; its log says more")

    handlers: dict[type[Exception], Callable[[Exception], JSONResponse]] = {
        Busy: lambda error: _error(503, "the queue is full: try again", headers={"Retry-After": "1"}),
        Unavailable: lambda error: _error(503, "the model is being started: try again", headers={"Retry-After": "5"}),
        TooSlow: lambda error: _error(504, "no answer in time: the request was given up"),
        Refused: lambda error: _error(422, str(error)),
        WorkFailed: lambda error: _error(500, "the model met a fault of its own; the log says more"),
    }
    for kind, answer in handlers.items():

        async def handle(request: Request, error: Exception, answer: Any = answer) -> JSONResponse:
            return answer(error)

        app.add_exception_handler(kind, handle)


def _error(
    status: int, text: str, faults: list[dict[str, str]] | None = None, headers: dict[str, str] | None = None
) -> JSONResponse:
    content: dict[str, Any] = {"error": text}
    if faults:
        content["faults"] = faults
    return JSONResponse(content, status, headers)


class _Gate:
    """Before anything is parsed: token, size of the body, time it may take to arrive; and the counting of answers.

    The body is read here as a whole, so that neither a large nor a slow one gets any further.
    """

    def __init__(self, app: ASGIApp, max_body: int, token: str | None, seconds: float, numbers: "_Numbers") -> None:
        self.app, self.max_body, self.token = app, max_body, token
        self.seconds, self.numbers = seconds, numbers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, path = time.perf_counter(), str(scope["path"])

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.numbers.count(path, int(message["status"]), time.perf_counter() - start)
            await send(message)

        refusal = self._refused(scope)
        if refusal is None:
            try:
                body = await asyncio.wait_for(self._body(receive), self.seconds)
            except TimeoutError:
                refusal = _error(
                    408, f"the body did not arrive within {self.seconds:.0f} s", headers={"Connection": "close"}
                )
            else:
                refusal = self._too_large() if body is None else None
        if refusal is not None:
            await refusal(scope, receive, counted)
            return
        await self.app(scope, _replay(body or b"", receive), counted)

    def _refused(self, scope: Scope) -> JSONResponse | None:
        headers = dict(scope["headers"])
        if self.token is not None and scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"")
            if not secrets.compare_digest(given, b"Bearer " + self.token.encode()):
                return _error(
                    401, "send the token as Authorization: Bearer <token>", headers={"WWW-Authenticate": "Bearer"}
                )
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and int(length) > self.max_body + DISCARDED:
            return self._too_large()
        return None

    def _too_large(self) -> JSONResponse:
        return _error(413, f"the body is larger than {self.max_body} bytes", headers={"Connection": "close"})

    async def _body(self, receive: Receive) -> bytes | None:
        """The whole body; None where it is too large.

        What is too much is read and thrown away, up to a limit: a connection that is closed while the client still
        sends would take the answer with it.
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


class _Numbers:
    """What ``/metrics`` shows."""

    def __init__(self, backend: Backend) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter("moeapps_requests", "Requests answered", ["path", "status"], registry=self.registry)
        self.seconds = Histogram("moeapps_request_seconds", "From request to answer", ["path"], registry=self.registry)
        self.rows = Histogram(
            "moeapps_batch_rows", "Rows that went to the model at once", registry=self.registry,
            buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024),
        )  # fmt: skip
        self.batches = Histogram("moeapps_batch_seconds", "Time the model took", registry=self.registry)
        for name, about, value in (
            ("waiting", "Requests in the queue", lambda: backend.waiting),
            ("restarts", "Workers that died or hung", lambda: backend.restarts),
            ("unsaved", "Requests learned but not on disk yet", lambda: backend.unsaved),
            ("ready", "Whether there is a worker", lambda: float(backend.ready)),
        ):
            Gauge(f"moeapps_{name}", about, registry=self.registry).set_function(value)

    def observe(self, name: str, value: float) -> None:
        """Note a batch."""
        (self.rows if name == "batch_rows" else self.batches).observe(value)

    def count(self, path: str, status: int, seconds: float) -> None:
        """Note a request; paths that do not exist are one, or a client could fill the memory with them."""
        path = path if status != 404 else "other"
        self.requests.labels(path, str(status)).inc()
        self.seconds.labels(path).observe(seconds)

    def text(self) -> bytes:
        """In Prometheus' format."""
        return generate_latest(self.registry)
