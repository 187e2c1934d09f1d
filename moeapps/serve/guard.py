"""Before anything is parsed: token, size of the body, time it may take to arrive, HEAD; and the counting of answers."""

import asyncio
import secrets
import time
from collections.abc import Awaitable, Callable
from typing import Any

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from moeapps.core.json_text import json_bytes
from moeapps.serve.metrics import Metrics
from moeapps.serve.refusal import Refusal

__all__ = ["Guard", "Json", "replay", "respond"]

OPEN = ("/health", "/health/live", "/health/ready")
"""Paths that need no token."""

DISCARDED = 16 * 2**20
"""Bytes beyond the limit that are still read, so that the client receives the refusal."""


class Json(JSONResponse):
    """JSON in UTF-8; in ASCII where a text is half of a surrogate pair, which is sent as the client sent it."""

    def render(self, content: Any) -> bytes:
        """The body."""
        return json_bytes(content, allow_nan=False, separators=(",", ":"))


def respond(refusal: Refusal) -> JSONResponse:
    """A refusal as a response: the one place where they become JSON."""
    return Json(refusal.body(), refusal.status, refusal.headers)


class Guard:
    """The outermost layer of the application.

    The body is read here as a whole, so that neither a large nor a slow one gets any further. HEAD is answered as GET
    is, without the body.
    """

    def __init__(self, app: ASGIApp, max_body: int, token: str | None, seconds: float, metrics: Metrics) -> None:
        self.app, self.max_body, self.token = app, max_body, token
        self.seconds, self.metrics = seconds, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, path, head = time.perf_counter(), str(scope["path"]), scope["method"] == "HEAD"
        if head:
            scope = {**scope, "method": "GET"}

        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.metrics.count(path, int(message["status"]), time.perf_counter() - start)
            elif head and message["type"] == "http.response.body":
                message = {**message, "body": b""}
            await send(message)

        refusal = self._refused(scope)
        body: bytes | None = b""
        if refusal is None:
            try:
                body = await asyncio.wait_for(self._body(receive), self.seconds)
            except TimeoutError:
                message = f"the body did not arrive within {self.seconds:.0f} s"
                refusal = Refusal(408, "body_timeout", message, {"Connection": "close"})
            else:
                refusal = self._too_large() if body is None else None
        if refusal is not None:
            await respond(refusal)(scope, receive, counted)
            return
        scope["moeapps.body_bytes"] = len(body or b"")
        await self.app(scope, replay(body or b"", receive), counted)

    def _refused(self, scope: Scope) -> Refusal | None:
        headers = dict(scope["headers"])
        if self.token is not None and scope["path"] not in OPEN:
            given = headers.get(b"authorization", b"")
            if not secrets.compare_digest(given, b"Bearer " + self.token.encode()):
                wrong = "this is not the server's token; " if given.startswith(b"Bearer ") else ""
                message = f"{wrong}send the token as Authorization: Bearer <token>"
                return Refusal(401, "no_token", message, {"WWW-Authenticate": "Bearer"})
        length = headers.get(b"content-length", b"0")
        if length.isdigit() and len(length) < 20 and int(length) > self.max_body + DISCARDED:
            return self._too_large()
        return None

    def _too_large(self) -> Refusal:
        message = f"the body is larger than {self.max_body} bytes: send smaller requests, or start with --max-body"
        return Refusal(413, "too_large", message, {"Connection": "close"})

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


def replay(body: bytes, receive: Receive) -> Callable[[], Awaitable[Message]]:
    """What an application receives a body with that has been read already."""
    given = False

    async def again() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return again
