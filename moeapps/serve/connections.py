"""The connections: how many there may be, how long they may be silent, how long a request's head may be.

Before a request is complete uvicorn bounds none of these. It closes connections that are idle after an answer.
"""

import asyncio
import logging
from dataclasses import dataclass, field
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

__all__ = ["BoundedProtocol", "ConnectionLimits", "limit_connections", "raise_open_files"]

log = logging.getLogger("moeapps.serve")


@dataclass(frozen=True)
class ConnectionLimits:
    """Bounds of the connections.

    Parameters
    ----------
    connections : int, default 1000
        Connections at once.
    per_client : int, default 500
        Connections at once of one address. At either limit the connection that has been without a request for the
        longest time is closed for the new one; if all are at work, the new one is closed.
    head_seconds : float, default 10
        Seconds until the head of a request has to be there, from its first byte or from the connection's beginning.
    read_seconds : float, default 30
        Seconds in which a client has to take some of an answer.
    head_bytes : int, default 64 KiB
        Bytes of a request's head: its path and headers.
    headers : int, default 100
        Headers of a request.
    """

    connections: int = 1000
    per_client: int = 500
    head_seconds: float = 10.0
    read_seconds: float = 30.0
    head_bytes: int = 65_536
    headers: int = 100


@dataclass
class _Open:
    """The connections that are open: those without a request in the order in which they began to have none."""

    idle: dict["BoundedProtocol", None] = field(default_factory=dict)
    by_client: dict[str, int] = field(default_factory=dict)
    count: int = 0


class BoundedProtocol(HttpToolsProtocol):
    """A connection, within limits. :func:`limit_connections` makes the class that uvicorn is given."""

    limits: ConnectionLimits
    open: _Open

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._timer: asyncio.TimerHandle | None = None
        self._read_timer: asyncio.TimerHandle | None = None
        self._address = ""
        self._head = self._headers_bytes = 0
        self._in_head = True
        self._too_large = self._counted = False

    # --- how many

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Make room, and wait for the head of a request."""
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self._address = str(peer[0]) if isinstance(peer, tuple) else ""
        mine = self.open.by_client.get(self._address, 0)
        room = True
        if mine >= self.limits.per_client:
            room = self._close_oldest(self._address)
        elif self.open.count >= self.limits.connections:
            room = self._close_oldest(None)
        if not room:
            log.warning("more than %d connections: one of %s is refused", self.open.count, self._address)
            transport.abort()
            return
        self._counted = True
        self.open.count += 1
        self.open.by_client[self._address] = self.open.by_client.get(self._address, 0) + 1
        self.open.idle[self] = None
        self._expect_head()

    def _close_oldest(self, address: str | None) -> bool:
        """Close the connection that has waited longest for a request; False if all are at work."""
        for other in self.open.idle:
            if address is None or other._address == address:
                other._leave()
                other.transport.abort()
                return True
        return False

    def _leave(self) -> None:
        self.open.idle.pop(self, None)
        if self._counted:
            self._counted = False
            self.open.count -= 1
            left = self.open.by_client[self._address] - 1
            if left:
                self.open.by_client[self._address] = left
            else:
                del self.open.by_client[self._address]

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection, and its timers also where it broke."""
        self._leave()
        self._stop_timer()
        if self._read_timer is not None:
            self._read_timer.cancel()
        self._unset_keepalive_if_required()
        super().connection_lost(exc)

    # --- how long

    def _expect_head(self) -> None:
        if self._timer is None:
            self._timer = self.loop.call_later(self.limits.head_seconds, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _give_up(self) -> None:
        self._timer = None
        if self.cycle is not None and not self.cycle.response_complete:
            self._expect_head()  # of a pipeline, or a stray line break: the request before it is not answered yet
        elif not self.transport.is_closing():
            self.transport.abort()

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a head that is not complete yet."""
        in_head = self._in_head
        if in_head:
            self._expect_head()
        super().data_received(data)
        if in_head and self._in_head:
            self._head += len(data)
            if self._head > self.limits.head_bytes and not self.transport.is_closing():
                self._refuse_head()

    def on_message_begin(self) -> None:
        """A head begins; in a pipeline it may follow on a body."""
        super().on_message_begin()
        self._in_head, self._head, self._headers_bytes = True, 0, 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Refuse too many headers."""
        super().on_header(name, value)
        self._headers_bytes += len(name) + len(value)
        if len(self.headers) > self.limits.headers or self._headers_bytes > self.limits.head_bytes:
            self._too_large = True
            raise ValueError("too many headers")  # the parser stops, and uvicorn calls send_400_response

    def on_headers_complete(self) -> None:
        """From here on the application watches over the time."""
        self._in_head, self._head = False, 0
        self._stop_timer()
        self.open.idle.pop(self, None)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """What comes next is a head again."""
        super().on_message_complete()
        self._in_head = True
        self._stop_timer()

    def on_response_complete(self) -> None:
        """The connection is idle, if no further request waits in it."""
        super().on_response_complete()
        if self._counted and not self.transport.is_closing() and self.cycle.response_complete:
            self.open.idle[self] = None
            if not self._in_head:  # it was refused before its body was read; the rest of the body may not take forever
                self._expect_head()

    def pause_writing(self) -> None:
        """The client does not read: it has some time to begin."""
        super().pause_writing()
        if self._read_timer is None:
            self._read_timer = self.loop.call_later(self.limits.read_seconds, self.transport.abort)

    def resume_writing(self) -> None:
        """It reads."""
        super().resume_writing()
        if self._read_timer is not None:
            self._read_timer.cancel()
            self._read_timer = None

    # --- how large

    def send_400_response(self, msg: str) -> None:
        """What uvicorn answers to what is not HTTP; a head that is too large has a status of its own."""
        if self._too_large:
            self._refuse_head()
        elif not self.transport.is_closing():
            super().send_400_response(msg)

    def _refuse_head(self) -> None:
        text = f"at most {self.limits.headers} headers and {self.limits.head_bytes} bytes before the body"
        body = f'{{"error":"{text}","code":"head_too_large"}}'.encode()
        self.transport.write(
            b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%s" % (len(body), body)
        )
        self.transport.close()


def limit_connections(limits: ConnectionLimits) -> type[BoundedProtocol]:
    """The protocol for ``uvicorn.Config(http=...)``; its connections are counted together."""
    return type("Connection", (BoundedProtocol,), {"limits": limits, "open": _Open()})


def raise_open_files(connections: int, spare: int = 512) -> int:
    """Let the process have as many files open as it may, and return how many connections this allows.

    Parameters
    ----------
    connections : int
        How many are wanted.
    spare : int, default 512
        For what else is open, and for connections that are accepted and not counted yet.
    """
    try:
        import resource
    except ImportError:  # not on Windows
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + spare
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else max(16, min(connections, soft - spare))
