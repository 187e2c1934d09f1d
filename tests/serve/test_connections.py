"""Connections that say nothing, too much or too little, against a server with an application of two lines."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import httpx
import pytest
import uvicorn

from moeapps.cli.serve import _listen
from moeapps.serve.connections import ConnectionLimits, limit_connections, raise_open_files

LARGE = b"x" * 2**24


async def application(scope, receive, send) -> None:
    while scope["path"] != "/refused" and (await receive()).get("more_body"):
        pass
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": LARGE if scope["path"] == "/large" else b"ok"})


@contextmanager
def serving(**limits) -> Iterator[tuple[str, int]]:
    with _listen("127.0.0.1", 0) as listener:
        config = uvicorn.Config(
            application, http=limit_connections(ConnectionLimits(**limits)), lifespan="off", log_config=None, ws="none",
            timeout_graceful_shutdown=1,
        )  # fmt: skip
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        end = time.monotonic() + 20
        while not server.started:
            assert time.monotonic() < end
            time.sleep(0.01)
        yield listener.getsockname()[:2]
        server.should_exit = True
        thread.join(20)


def connect(address, sent: bytes = b"") -> socket.socket:
    found = socket.create_connection(address, timeout=10)
    found.sendall(sent)
    return found


def is_closed(connection: socket.socket, seconds: float) -> bool:
    """Whether the other end closes the connection within some seconds."""
    connection.settimeout(seconds)
    try:
        while connection.recv(65536):
            pass
    except TimeoutError:
        return False
    except OSError:
        pass
    return True


def drips(connection: socket.socket, drop: bytes) -> float:
    """Send drop by drop until the other end has closed, and return how long that took."""
    start = time.monotonic()
    with suppress(OSError):
        while time.monotonic() - start < 10:
            connection.sendall(drop)
            time.sleep(0.05)
    return time.monotonic() - start


def answers(address) -> bool:
    return httpx.get(f"http://{address[0]}:{address[1]}/").text == "ok"


HEAD = b"POST / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize("sent", [b"", b"POST / HT", HEAD, HEAD + b"X: y", b"\r\n\r\n"], ids=range(5))
def test_a_connection_without_a_whole_head_is_closed_in_time(sent):
    with serving(head_seconds=0.3) as address, connect(address, sent) as silent:
        assert is_closed(silent, 5)
        assert answers(address)


def test_a_head_that_comes_drop_by_drop_is_closed_in_time():
    with serving(head_seconds=0.4) as address, connect(address, HEAD) as slow:
        assert drips(slow, b"X: y\r\n") < 5


def answer(connection) -> bytes:
    """One answer to its last chunk, in however many parts it comes."""
    received = b""
    while not received.endswith(b"0\r\n\r\n"):
        received += (part := connection.recv(1000))
        assert part, received
    return received


def test_the_next_head_on_a_kept_connection_has_the_same_time():
    with serving(head_seconds=0.3) as address, connect(address, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n") as kept:
        assert answer(kept).startswith(b"HTTP/1.1 200")
        time.sleep(0.5)  # idle is no fault
        kept.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert answer(kept).startswith(b"HTTP/1.1 200")
        kept.sendall(b"GET / HTT")
        assert is_closed(kept, 5)


def test_the_rest_of_a_body_that_was_refused_may_not_take_forever():
    sent = b"POST /refused HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n"
    with serving(head_seconds=0.3) as address, connect(address, sent) as slow:
        assert slow.recv(1000).startswith(b"HTTP/1.1 200")
        assert drips(slow, b"x") < 5


def test_a_client_that_does_not_read_is_closed():
    with serving(read_seconds=0.3) as address, connect(address, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n") as deaf:
        time.sleep(1.0)
        deaf.settimeout(5)
        size = 0
        with suppress(ConnectionError):
            while part := deaf.recv(2**20):
                size += len(part)
        assert size < len(LARGE)


@pytest.mark.parametrize("kind", ["one header", "many headers", "a long path", "small pieces"])
def test_a_head_without_end_is_refused_with_431(kind):
    start, part = {
        "one header": (HEAD + b"X: ", b"a" * 10_000),
        "many headers": (HEAD, b"X: y\r\n" * 101 + b"\r\n"),
        "a long path": (b"GET /", b"a" * 10_000),
        "small pieces": (HEAD, b"X: " + b"a" * 5000 + b"\r\n"),
    }[kind]
    with serving() as address, connect(address, start) as endless:
        try:
            for _ in range(1 if kind == "many headers" else 1000):
                endless.sendall(part)
                time.sleep(0.001)
            assert kind == "many headers"
        except OSError:
            pass
        try:
            found = endless.recv(1000)
        except ConnectionResetError:
            found = b""
        assert found.startswith(b"HTTP/1.1 431") or (found == b"" and kind != "many headers")
        assert answers(address)


def test_silent_connections_make_room_for_others_and_working_ones_stay():
    with serving(per_client=5, connections=50) as address:
        working = connect(address, HEAD + b"Content-Length: 2\r\n\r\n1")  # its head is there, the oldest of all
        time.sleep(0.1)
        silent = []
        for _ in range(20):
            silent.append(connect(address))
            time.sleep(0.01)
        assert answers(address)
        assert [is_closed(connection, 0.2) for connection in silent[:15]] == [True] * 15
        working.sendall(b"2")
        assert working.recv(1000).startswith(b"HTTP/1.1 200")
        for connection in (working, *silent):
            connection.close()


def test_when_all_connections_are_at_work_a_further_one_is_closed():
    with serving(per_client=2) as address:
        working = [connect(address, HEAD + b"Content-Length: 2\r\n\r\n1") for _ in range(2)]
        time.sleep(0.2)
        with connect(address) as further:
            assert is_closed(further, 5)
        for connection in working:
            connection.sendall(b"2")
            assert connection.recv(1000).startswith(b"HTTP/1.1 200")
            connection.close()
        time.sleep(0.1)
        assert answers(address)


def test_small_answers_are_not_held_back():
    with _listen("127.0.0.1", 0) as listener:
        listener.listen()
        with connect(listener.getsockname()[:2]), listener.accept()[0] as accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_no_more_connections_than_files_may_be_open():
    resource = pytest.importorskip("resource")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        assert raise_open_files(100) == 100
        resource.setrlimit(resource.RLIMIT_NOFILE, (700, hard))
        assert raise_open_files(1000) == min(1000, hard - 512 if hard != resource.RLIM_INFINITY else 1000)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
